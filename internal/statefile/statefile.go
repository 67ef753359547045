// Package statefile makes the files in which a state travels from one process
// to the next, and checks those that arrive: files without a path, of a bounded
// size, and sealed where the system can do that, so that who maps one need not
// trust that it stays as it is.
//
// On Linux they are memfds, see memfd_create(2), and never files on a disk. Elsewhere
// they are temporary files in [os.TempDir] that were unlinked at once; those cannot
// be sealed.
package statefile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/crossfade-go/crossfade/scm"
)

// MaxSize is the most bytes that a state may have, 1 GiB.
const MaxSize = 1 << 30

// What is wrong with a state, or with the use of it. Match with [errors.Is].
var (
	// ErrTooLarge: more than MaxSize bytes.
	ErrTooLarge = fmt.Errorf("a state has at most %d bytes", int64(MaxSize))
	// ErrOver: the writer was sealed or abandoned.
	ErrOver = errors.New("the state is not to be written any more")
	// ErrUnsealed: the file could be sealed and is not, so that its maker could
	// still change what is read, or end a reader that has mapped it with SIGBUS.
	ErrUnsealed = errors.New("the state is not sealed")
)

// Writer writes one state. It must be ended by Seal or Abandon. All methods may
// be called concurrently.
type Writer struct {
	file *os.File
	// plain is a second description of the file, read-only, if the file cannot
	// be sealed; else nil.
	plain *os.File

	mu   sync.Mutex // held during a write(2): Abandon must not take it
	size int64
	err  error // why every further write fails
}

// Create makes an empty state. The name is for people who look at a process's
// descriptors: at most 200 bytes.
func Create(name string) (*Writer, error) {
	file, err := newMemory(name)
	if errors.Is(err, errors.ErrUnsupported) {
		return createTemporary()
	}
	if err != nil {
		return nil, err
	}
	return &Writer{file: file}, nil
}

// createTemporary is Create on systems without memfds.
func createTemporary() (*Writer, error) {
	write, err := os.CreateTemp("", "crossfade-state-*")
	if err != nil {
		return nil, err
	}
	read, err := os.Open(write.Name())
	if removeErr := os.Remove(write.Name()); err == nil && removeErr != nil {
		err = errors.Join(removeErr, read.Close())
	}
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	return &Writer{file: write, plain: read}, nil
}

// Write implements [io.Writer], unbuffered. Errors: ErrTooLarge, ErrOver, those
// of write(2). After an error every call returns it, and so does Seal.
func (w *Writer) Write(p []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return 0, w.err
	case int64(len(p)) > MaxSize-w.size:
		w.err = ErrTooLarge
		return 0, w.err
	}
	n, err = w.file.Write(p)
	w.size += int64(n)
	if errors.Is(err, os.ErrClosed) {
		err = ErrOver
	}
	w.err = err
	return n, err
}

// Abandon gives the state up and returns at once. A Write that is under way
// ends, and frees the file, when the kernel lets it.
func (w *Writer) Abandon() {
	_ = w.file.Close() // nobody misses what it could not write
	if w.plain != nil {
		_ = w.plain.Close()
	}
}

// Seal ends the state and returns its descriptor, which is the caller's and
// can only read, unless the system cannot reopen a file. Nobody can change the
// state from here on if it could be sealed. On an error it is abandoned.
func (w *Writer) Seal() (*scm.FD, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.Abandon()
	if w.err != nil {
		return nil, w.err
	}
	w.err = ErrOver
	if w.plain != nil {
		// Some file systems say only now what could not be written.
		if err := w.file.Close(); err != nil {
			return nil, err
		}
		return scm.DupFD(w.plain)
	}
	if err := seal(w.file); err != nil {
		return nil, err
	}
	fd, err := scm.DupFD(w.file)
	if err != nil {
		return nil, err
	}
	if again, err := reopen(fd); err == nil {
		_ = fd.Close()
		return again, nil
	}
	return fd, nil
}

// Check checks a state from another process, which remains the caller's: it must
// be a regular file of at most MaxSize bytes, and sealed if it is of a sort that
// can be. sealed is false for a file that cannot: its maker may change it at any
// time. Errors: ErrTooLarge, ErrUnsealed.
func Check(fd *scm.FD) (sealed bool, err error) {
	file, err := fd.File("state")
	if err != nil {
		return false, err
	}
	defer file.Close()
	sealed, err = checkSeals(file) // first: what is sealed keeps its size
	if err != nil {
		return false, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("a state is a regular file, not one of mode %v", info.Mode())
	case info.Size() > MaxSize:
		return false, fmt.Errorf("%w, this one has %d", ErrTooLarge, info.Size())
	}
	return sealed, nil
}

// Open returns a state that Check has passed as a file to read, at its beginning,
// which is the caller's; fd stays the caller's too. On Linux the file has an offset of its own; where a
// file cannot be reopened it shares that of fd.
func Open(fd *scm.FD, name string) (*os.File, error) {
	if again, err := reopen(fd); err == nil {
		defer again.Close()
		return again.File(name)
	}
	file, err := fd.File(name)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

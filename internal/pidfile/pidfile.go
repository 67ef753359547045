// Package pidfile writes the file that tells a supervisor or an operator which
// process is the main one. Several processes in turn write one file: whoever
// becomes the owner overwrites it, and only the one whose pid it holds removes
// it.
//
// The file is information, not a lock: see package rendezvous for those.
package pidfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// ErrFileType says that something else than a plain file is at the path, which
// [Write] would replace.
var ErrFileType = errors.New("not a plain file")

const mode fs.FileMode = 0o644

// maxSize is more than a pid file of anybody's holds.
const maxSize = 64

// Check says whether [Write] would succeed now. It finds out by making and
// removing a temporary file beside path, and leaves path as it is.
func Check(path string) error {
	temp, err := create(path)
	if err != nil {
		return err
	}
	if err := os.Remove(temp); err != nil {
		return fmt.Errorf("pid file %s: %w", path, err)
	}
	return nil
}

// Write puts this process's pid into path, mode 0644 whatever the umask, and
// replaces what the file held. A reader sees the old content or the new one,
// never a part: it is a temporary file that is renamed.
func Write(path string) error {
	temp, err := create(path)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(fmt.Errorf("pid file %s: %w", path, err), os.Remove(temp))
	}
	return nil
}

// Remove removes path if it holds this process's pid. A file that is missing,
// or that another process has written since, is no error and stays as it is.
//
// Between reading and removing, another process could write. Let only one be the
// owner at a time, and let only the owner write.
func Remove(path string) error {
	if err := checkTarget(path); err != nil {
		return err
	}
	content, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("pid file %s: %w", path, err)
	}
	if string(bytes.TrimSpace(content)) != strconv.Itoa(os.Getpid()) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pid file %s: %w", path, err)
	}
	return nil
}

// create makes a complete temporary file beside path and returns its name.
func create(path string) (name string, err error) {
	if err := checkTarget(path); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", fmt.Errorf("pid file %s: no file can be made in its directory: %w", path, err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err != nil {
		return "", errors.Join(fmt.Errorf("pid file %s: %w", path, err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// checkTarget refuses what a rename to path cannot or should not replace.
func checkTarget(path string) error {
	if path == "" {
		return errors.New("pid file has an empty path")
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("pid file %s: %w", path, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("pid file %s is a file of type %v: choose another path: %w", path, info.Mode().Type(), ErrFileType)
	}
	if err := checkSticky(path, info); err != nil {
		return fmt.Errorf("pid file %s: %w", path, err)
	}
	return nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSize))
}

package scm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// FD owns one descriptor. The descriptor is close-on-exec and not registered
// with the runtime's poller, so holding one that another process accepts on
// costs no wake-ups.
//
// All methods may be called concurrently. A Close during a use takes effect
// when the use is over, so that a number is never reused under a system call.
// There is no finalizer: an FD that is dropped without Close is a leak.
type FD struct {
	mu     sync.Mutex
	num    int
	uses   int
	closed bool
}

// NewFD takes ownership of the descriptor fd and sets it close-on-exec.
func NewFD(fd int) *FD {
	setCloseOnExec(fd)
	return &FD{num: fd}
}

// Inherited takes ownership of the descriptor fd, which whoever started this
// process has left open for it, and sets it close-on-exec. A descriptor that is
// not open, and one that is close-on-exec already, are errors and remain as they
// are: the latter has not come through exec(2), but belongs to somebody in this
// process, such as the runtime's poller.
func Inherited(fd int) (*FD, error) {
	if err := checkInherited(fd); err != nil {
		return nil, err
	}
	return NewFD(fd), nil
}

// DupFD duplicates the descriptor behind c, which remains the caller's. The
// duplicate is close-on-exec from the start (F_DUPFD_CLOEXEC) and O_NONBLOCK
// stays as it is. To close c afterwards is the caller's decision; a
// [*net.UnixListener] unlinks its path then, see SetUnlinkOnClose.
func DupFD(c syscall.Conn) (*FD, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		num    int
		dupErr error
	)
	if err := raw.Control(func(fd uintptr) { num, dupErr = dupDescriptor(int(fd)) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return &FD{num: num}, nil
}

// Dup returns a second descriptor for the same open file description. The
// caller owns it; f stays as it is.
func (f *FD) Dup() (*FD, error) {
	var (
		num    int
		dupErr error
	)
	if err := f.Control(func(fd uintptr) { num, dupErr = dupDescriptor(int(fd)) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return &FD{num: num}, nil
}

// Control calls fn with the descriptor, which stays open until fn returns. fn
// must neither keep nor close it. After Close the error is [net.ErrClosed].
func (f *FD) Control(fn func(fd uintptr)) error {
	num, err := f.acquire()
	if err != nil {
		return err
	}
	defer f.release()
	fn(uintptr(num))
	return nil
}

// Close closes the descriptor, or has the last use under way close it. Further
// calls do nothing and return nil.
func (f *FD) Close() error {
	if f == nil {
		return os.ErrInvalid
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if f.uses > 0 {
		return nil
	}
	return closeDescriptor(f.num)
}

// File returns a Go file named name on a duplicate. f stays the caller's.
// O_NONBLOCK stays as it is; the file uses the poller if it is set.
func (f *FD) File(name string) (*os.File, error) {
	d, err := f.Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(d.disown()), name), nil
}

// Listener returns a Go listener on a duplicate: a [*net.TCPListener] or a
// [*net.UnixListener], which does not unlink its path on Close. f stays the
// caller's. O_NONBLOCK is set on the open file description. A socket that does
// not listen is an error.
func (f *FD) Listener() (net.Listener, error) {
	if err := f.requireListening(); err != nil {
		return nil, err
	}
	file, err := f.File("listener")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	ln, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return ln, nil
}

// PacketConn returns a Go packet connection on a duplicate, such as a
// [*net.UDPConn]. f stays the caller's. O_NONBLOCK is set on the open file
// description. A socket that keeps a connection
// is an error.
func (f *FD) PacketConn() (net.PacketConn, error) {
	id, err := f.Identify()
	if err != nil {
		return nil, err
	}
	if id.Type != TypeSocket || id.SockType == syscall.SOCK_STREAM || id.SockType == syscall.SOCK_SEQPACKET {
		return nil, fmt.Errorf("descriptor is no packet socket but %s", id)
	}
	file, err := f.File("packet connection")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FilePacketConn(file)
}

// Conn returns a Go connection on a duplicate, such as a [*net.TCPConn]. f
// stays the caller's. O_NONBLOCK is set on the open file description.
//
// [net.FileConn] switches TCP_NODELAY and keep-alive on and rewrites the
// keep-alive times. The socket is shared with whoever chose them, so they are
// put back. A listening socket is an error.
func (f *FD) Conn() (net.Conn, error) {
	id, err := f.Identify()
	if err != nil {
		return nil, err
	}
	if id.Type != TypeSocket || id.Listening {
		return nil, fmt.Errorf("descriptor is no connection but %s", id)
	}
	file, err := f.File("connection")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	num, err := f.acquire()
	if err != nil {
		return nil, err
	}
	defer f.release()
	restore := saveOptions(num)
	c, err := net.FileConn(file)
	if restoreErr := restore(); err == nil && restoreErr != nil {
		err = errors.Join(restoreErr, c.Close())
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Listen calls listen(2), which may be done again on a socket that listens
// already. From then on peer credentials that a connecting client sees are this
// process's. It also sets the backlog of the shared queue: a smaller one
// shrinks it.
func (f *FD) Listen(backlog int) error {
	var listenErr error
	if err := f.Control(func(fd uintptr) { listenErr = listen(int(fd), backlog) }); err != nil {
		return err
	}
	return listenErr
}

// RefuseDescriptors is [Conn.RefuseDescriptors] for what a listening socket accepts, which
// has it from the moment when the client connects. It stays when the socket is handed
// over. A system without it ignores the call.
func (f *FD) RefuseDescriptors() error {
	return f.Control(func(fd uintptr) { refuseDescriptors(int(fd)) })
}

// Identify asks the kernel what the descriptor is.
func (f *FD) Identify() (Identity, error) {
	var (
		id    Identity
		idErr error
	)
	if err := f.Control(func(fd uintptr) { id, idErr = identify(int(fd)) }); err != nil {
		return Identity{}, err
	}
	return id, idErr
}

func (f *FD) requireListening() error {
	id, err := f.Identify()
	if err != nil {
		return err
	}
	if !id.Listening {
		return fmt.Errorf("descriptor is no listening socket but %s", id)
	}
	return nil
}

// acquire begins a use. Every successful call is followed by one of release.
func (f *FD) acquire() (int, error) {
	if f == nil {
		return -1, os.ErrInvalid
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return -1, net.ErrClosed
	}
	f.uses++
	return f.num, nil
}

// acquireAll begins a use of each of fds. After success release ends them.
func acquireAll(fds []*FD) (nums []int, release func(), err error) {
	release = func() {
		for _, f := range fds[:len(nums)] {
			f.release()
		}
	}
	for i, f := range fds {
		num, err := f.acquire()
		if err != nil {
			release()
			return nil, nil, fmt.Errorf("descriptor %d of %d: %w", i+1, len(fds), err)
		}
		nums = append(nums, num)
	}
	return nums, release, nil
}

func (f *FD) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.uses--
	if f.closed && f.uses == 0 {
		_ = closeDescriptor(f.num) // nobody is left to tell
	}
}

// disown gives the number away. f must not have been shared yet.
func (f *FD) disown() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.num
}

// closeAll closes what was received and is not wanted. Nobody could act on an
// error.
func closeAll(fds []*FD) {
	for _, f := range fds {
		_ = f.Close()
	}
}

package scm

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
)

// ErrNotProcess says that a descriptor is no pidfd.
var ErrNotProcess = errors.New("the descriptor names no process")

// Alive returns the two ends of a pipe that nobody writes to. As long as this
// process keeps held, whoever has a copy of watched can tell that it lives:
// when the last copy of held is closed, at the latest at the end of the
// process, [FD.HungUp] and [Watch.Wait] say so. Both are the caller's.
func Alive() (watched, held *FD, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	defer w.Close()
	if watched, err = DupFD(r); err != nil {
		return nil, nil, err
	}
	if held, err = DupFD(w); err != nil {
		return nil, nil, errors.Join(err, watched.Close())
	}
	return watched, held, nil
}

// HungUp reports whether nobody holds the other end of the pipe f any more. It
// reads nothing and does not wait. An f that is closed, or no pipe, has not hung
// up.
func (f *FD) HungUp() bool {
	hungUp := false
	err := f.Control(func(fd uintptr) { hungUp = pollHangUp(int(fd)) })
	return err == nil && hungUp
}

// Watch waits for the end of a pipe. Its methods may be called concurrently.
type Watch struct{ file *os.File }

// Watch returns a watch on a duplicate of f, the read end of a pipe, which stays
// the caller's. O_NONBLOCK is set on the open file description: nobody reads
// from such a pipe.
func (f *FD) Watch() (*Watch, error) {
	d, err := f.Dup()
	if err != nil {
		return nil, err
	}
	if err := setNonblock(d.num); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &Watch{os.NewFile(uintptr(d.disown()), "watched pipe")}, nil
}

// Wait returns nil when nobody holds the other end of the pipe any more, and an
// error after Close. It reads nothing: what is written to the pipe stays there.
func (w *Watch) Wait() error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return pollHangUp(int(fd)) })
}

// Close ends Wait. Further calls return an error.
func (w *Watch) Close() error { return w.file.Close() }

// OwnPidfd returns a pidfd of this process, which names it and never another,
// whatever becomes of its number, in every pid namespace: pidfd_open(2), Linux
// 5.3. Elsewhere the error matches [errors.ErrUnsupported].
func OwnPidfd() (*FD, error) {
	return OpenPidfd(os.Getpid())
}

// CheckPidfd returns an error that matches [ErrNotProcess] if f is no pidfd. The
// process may have ended.
func (f *FD) CheckPidfd() error {
	var checkErr error
	if err := f.Control(func(fd uintptr) { checkErr = checkPidfd(int(fd)) }); err != nil {
		return err
	}
	return checkErr
}

// PidfdID returns the inode number of the pidfd f, which no two processes have
// between two boots: a number that a process can be named by and that, unlike a
// pid, is not used again. Where the kernel gives none the error matches
// [errors.ErrUnsupported]: pidfs came with Linux 6.9, and a 32-bit kernel cuts
// the number off.
func (f *FD) PidfdID() (uint64, error) {
	var (
		id    uint64
		idErr error
	)
	if err := f.Control(func(fd uintptr) { id, idErr = pidfdID(int(fd)) }); err != nil {
		return 0, err
	}
	return id, idErr
}

// PidfdIDOf is [FD.PidfdID] of the process that has this number now, see [OpenPidfd].
func PidfdIDOf(pid int) (uint64, error) {
	f, err := OpenPidfd(pid)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.PidfdID()
}

// OpenPidfd returns a pidfd of the process with this number: pidfd_open(2), Linux
// 5.3. An error that matches [os.ErrProcessDone] says that there is none. Unless
// the process is a child that has not been waited for, the number may have been
// given to another one meanwhile.
func OpenPidfd(pid int) (*FD, error) {
	num, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	return NewFD(num), nil
}

// Signal sends a signal to the process that the pidfd f names, unless it is this
// one. pidfd_send_signal(2). An error that matches [os.ErrProcessDone] says that
// it has ended already, one that matches [os.ErrPermission] that this process
// may not. A process of a pid namespace that is not this one or below it cannot
// be signalled: EINVAL. Like any signal it is sent before it is delivered.
func (f *FD) Signal(s syscall.Signal) error {
	var signalErr error
	if err := f.Control(func(fd uintptr) { signalErr = signal(int(fd), s) }); err != nil {
		return err
	}
	return signalErr
}

// Connection is an established stream connection of this process.
type Connection struct {
	Network       string // tcp, unix or unixpacket
	Local, Remote string // as package net prints addresses; a unix client's is empty as a rule
}

// Connections lists the established connections of this process that were
// accepted from one of these listening sockets, known by the Network and Address
// of [FD.Identify]; that is, its connected sockets whose local address a client
// of the listener reaches. Duplicates of one socket count once. Linux only, as
// it takes a list of this process's descriptors; elsewhere the error matches
// [errors.ErrUnsupported]. It takes a few microseconds for each descriptor that
// is open, whatever it is.
func Connections(listeners []Identity) ([]Connection, error) { return connections(listeners) }

// acceptedFrom reports whether a connection with this local address may have
// come from the listener.
func acceptedFrom(listener Identity, network, local string) bool {
	if listener.Network != network {
		return false
	}
	if network != "tcp" {
		return listener.Address == local
	}
	have, err := netip.ParseAddrPort(listener.Address)
	got, err2 := netip.ParseAddrPort(local)
	if err != nil || err2 != nil || have.Port() != got.Port() {
		return false
	}
	on, at := have.Addr().Unmap(), got.Addr().Unmap()
	return on == at || on.IsUnspecified() && (on.Is6() || at.Is4())
}

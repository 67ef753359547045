//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package scm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func setCloseOnExec(fd int) { unix.CloseOnExec(fd) }

func checkInherited(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	switch {
	case err != nil:
		return fmt.Errorf("descriptor %d: %w", fd, os.NewSyscallError("fcntl", err))
	case flags&unix.FD_CLOEXEC != 0:
		return fmt.Errorf("descriptor %d was not passed to this process, or is taken: it is close-on-exec: %w", fd, unix.EBADF)
	}
	return nil
}

// firstNumber is the lowest number a duplicate gets. A process that was started
// without standard streams must not find a socket in their place.
const firstNumber = 3

func dupDescriptor(fd int) (int, error) {
	for {
		num, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstNumber)
		if err == unix.EINTR {
			continue
		}
		return num, os.NewSyscallError("fcntl", err)
	}
}

// closeDescriptor does not repeat an interrupted close(2): the number is free
// by then and may be another's.
func closeDescriptor(fd int) error {
	err := unix.Close(fd)
	if err == unix.EINTR {
		return nil
	}
	return os.NewSyscallError("close", err)
}

func listen(fd, backlog int) error {
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

// option is a socket option of type int.
type option struct{ level, name int }

// saveOptions remembers the options of a TCP socket that net.FileConn
// overwrites. restore puts them back; it leaves out what could not be read,
// which is all of them on another sort of socket.
func saveOptions(fd int) (restore func() error) {
	values := make(map[option]int, len(tcpOptions))
	for _, o := range tcpOptions {
		if v, err := unix.GetsockoptInt(fd, o.level, o.name); err == nil {
			values[o] = v
		}
	}
	if _, ok := values[option{unix.IPPROTO_TCP, unix.TCP_NODELAY}]; !ok {
		return func() error { return nil }
	}
	return func() error {
		var errs []error
		for _, o := range tcpOptions {
			v, ok := values[o]
			if !ok {
				continue
			}
			if now, err := unix.GetsockoptInt(fd, o.level, o.name); err == nil && now == v {
				continue
			}
			errs = append(errs, os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, o.level, o.name, v)))
		}
		return errors.Join(errs...)
	}
}

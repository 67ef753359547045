//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package scm

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const maxPath = 103

// scmPidfd is no control message of these systems.
const scmPidfd = -1

func controlInt([]byte) (int, bool) { return 0, false }

// peerClosed reports whether the peer holds its end open no more. Both a close
// and SHUT_WR make a read return 0; only a close takes the peer's name away.
func peerClosed(fd int) bool {
	_, err := unix.Getpeername(fd)
	return err == unix.ENOTCONN || err == unix.EINVAL
}

// refuseDescriptors: these systems have nothing of the kind.
func refuseDescriptors(int) {}

// growBuffers raises both buffers: what is sent is charged to the receiver's
// here.
func growBuffers(fd int) error {
	if err := growBuffer(fd, unix.SO_SNDBUF, sendBuffer, sendBuffer); err != nil {
		return err
	}
	return growBuffer(fd, unix.SO_RCVBUF, sendBuffer, sendBuffer)
}

// newSocket holds the fork lock: not every one of these systems can make a
// socket close-on-exec in one step.
func newSocket(sockType int) (int, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_UNIX, sockType, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func newSocketPair() ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

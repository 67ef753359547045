//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package scm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func supported() error { return nil }

func bindUnix(sockType int, path string) (int, error) {
	fd, err := newSocket(sockType)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", path, os.NewSyscallError("bind", err))
	}
	return fd, nil
}

// socketPair returns two ends in blocking mode.
func socketPair() (a, b int, err error) {
	fds, err := newSocketPair()
	if err != nil {
		return -1, -1, os.NewSyscallError("socketpair", err)
	}
	return fds[0], fds[1], nil
}

//go:build dragonfly || freebsd || netbsd || openbsd

package scm

import "golang.org/x/sys/unix"

func recvmsgCloseOnExec(fd int, p, control []byte) (n, controlLen, flags int, err error) {
	return recvRaw(fd, p, control, unix.MSG_CMSG_CLOEXEC)
}

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package scm

import (
	"os"

	"golang.org/x/sys/unix"
)

// pollHangUp asks for nothing, so that only the end of the other side is told,
// which poll(2) does unasked.
func pollHangUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && p[0].Revents&unix.POLLHUP != 0
	}
}

func setNonblock(fd int) error { return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)) }

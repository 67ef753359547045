package scm

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const maxPath = 107

// scmPidfd is the type of the control message that SO_PASSPIDFD asks for, Linux
// 6.5.
const scmPidfd = unix.SCM_PIDFD

func controlInt(data []byte) (int, bool) {
	if len(data) < 4 {
		return 0, false
	}
	return int(int32(binary.NativeEndian.Uint32(data))), true
}

func recvmsgCloseOnExec(fd int, p, control []byte) (n, controlLen, flags int, err error) {
	return recvRaw(fd, p, control, unix.MSG_CMSG_CLOEXEC)
}

// peerClosed reports whether the peer holds its end open no more. Both a close
// and SHUT_WR make a read return 0; only a close shuts both directions, which
// is POLLHUP. unix(7), poll(2).
func peerClosed(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && p[0].Revents&unix.POLLHUP != 0
	}
}

// refuseDescriptors ignores kernels before 6.16, which do not know the option.
func refuseDescriptors(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) }

// growBuffers raises the send buffer. Linux doubles what is asked for, to have
// room for its own overhead, and reports the double; the receive buffer has no
// meaning here. With CAP_NET_ADMIN a low net.core.wmem_max is no obstacle.
func growBuffers(fd int) error {
	if err := growBuffer(fd, unix.SO_SNDBUF, sendBuffer, sendBuffer/2); err != nil {
		return err
	}
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil || have >= sendBuffer {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer/2)
}

func newSocket(sockType int) (int, error) {
	return unix.Socket(unix.AF_UNIX, sockType|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

func newSocketPair() ([2]int, error) {
	return unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
}

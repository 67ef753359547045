//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package scm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// controlRoom is the space for control data that every read offers: the most
// descriptors any system puts into one message, and what else a socket may have
// been asked to add. Too little of it would lose descriptors.
var controlRoom = unix.CmsgSpace(254*4) + 256

// recvmsg reads once without blocking. The caller owns the descriptors; with an
// error there are none. Both n and the error are zero at the end of the stream.
func recvmsg(fd int, p []byte) (n int, fds []*FD, err error) {
	control := make([]byte, controlRoom)
	var controlLen, flags int
	for {
		n, controlLen, flags, err = recvmsgCloseOnExec(fd, p, control)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EMSGSIZE) {
		// This is how macOS says that the descriptor table is full.
		return 0, nil, truncated(0)
	}
	if err != nil {
		return 0, nil, os.NewSyscallError("recvmsg", err)
	}
	fds, err = parseRights(control[:controlLen])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = truncated(len(fds))
	}
	if err != nil {
		closeAll(fds)
		return 0, nil, err
	}
	return n, fds, nil
}

// recvRaw drops the sender's address and with it the error of decoding it: the
// bytes and descriptors have been received all the same.
func recvRaw(fd int, p, control []byte, flags int) (n, controlLen, recvFlags int, err error) {
	n, controlLen, recvFlags, _, err = unix.Recvmsg(fd, p, control, flags|unix.MSG_DONTWAIT)
	if n >= 0 {
		err = nil
	}
	return n, controlLen, recvFlags, err
}

// parseRights takes the descriptors out of control data. It returns those found
// before an error as well.
func parseRights(control []byte) ([]*FD, error) {
	if len(control) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("control data: %w", os.NewSyscallError("recvmsg", err))
	}
	var fds []*FD
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_RIGHTS:
			nums, err := unix.ParseUnixRights(&m)
			if err != nil {
				return fds, err
			}
			for _, num := range nums {
				fds = append(fds, &FD{num: num})
			}
		case scmPidfd:
			// Nobody asked for it: an inherited socket came with the option set.
			if nums, ok := controlInt(m.Data); ok {
				_ = closeDescriptor(nums)
			}
		}
	}
	return fds, nil
}

func truncated(arrived int) error {
	return &FrameError{Err: ErrTruncated, Got: arrived, Want: descriptorLimit()}
}

// sendmsg writes once without blocking and without SIGPIPE.
func sendmsg(fd int, p, control []byte) (int, error) {
	for {
		n, err := unix.SendmsgN(fd, p, control, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("sendmsg", err)
		}
		return n, nil
	}
}

func rights(nums []int) []byte {
	if len(nums) == 0 {
		return nil
	}
	return unix.UnixRights(nums...)
}

// sendBuffer is what SO_SNDBUF should report: twice two messages of 64 KiB, and
// as much again for what the kernel adds to each. It is what Linux allows
// everybody by default.
const sendBuffer = 416 << 10

// prepare checks that fd is a stream socket and sizes its buffers.
func prepare(fd int) error {
	t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if t != unix.SOCK_STREAM {
		return fmt.Errorf("socket is of type %d, frames need a stream: %w", t, unix.EPROTOTYPE)
	}
	// A smaller buffer than wished for works.
	_ = growBuffers(fd)
	return nil
}

// growBuffer raises a buffer to the size that want asks for.
func growBuffer(fd, name, want, request int) error {
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
	if err != nil || have >= want {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, name, request)
}

func requireConnected(fd int) error {
	_, err := unix.Getpeername(fd)
	return os.NewSyscallError("getpeername", err)
}

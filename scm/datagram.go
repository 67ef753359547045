package scm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"syscall"
)

// SendDatagram sends one datagram, with descriptors, to the AF_UNIX datagram
// socket at address: a path or, on Linux, an abstract name that begins with @.
// The descriptors remain the caller's. If the receiver's queue is full it waits
// until ctx ends, whose cause the error then is; only Linux lets a sender wait,
// elsewhere the error is ENOBUFS. Each datagram goes out on a socket of its own: a
// receiver that has been replaced at the same path gets it.
//
// The errors of connect(2) and sendmsg(2) are visible through [errors.Is]: ENOENT
// or ECONNREFUSED if nobody is there, EMSGSIZE, ENAMETOOLONG. A datagram without
// payload is an error: its descriptors would be lost. Success says that the
// datagram is in the receiver's queue.
func SendDatagram(ctx context.Context, address string, payload []byte, fds ...*FD) error {
	if err := CheckDatagramAddress(address); err != nil {
		return err
	}
	if len(payload) == 0 {
		return fmt.Errorf("a datagram without payload: %w", syscall.EINVAL)
	}
	if len(fds) > MaxDescriptors {
		return fmt.Errorf("%w: %d, the limit is %d", ErrTooManyDescriptors, len(fds), MaxDescriptors)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Connecting to a datagram socket does not wait.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	nums, release, err := acquireAll(fds)
	if err != nil {
		return err
	}
	defer release()
	var pause backoff
	for {
		_, err := writeSome(ctx, c, raw, payload, rights(nums))
		if !errors.Is(err, syscall.ETOOMANYREFS) {
			return explainSend(err, len(fds) > 0)
		}
		if err := pause.wait(ctx, nil, err); err != nil {
			return err
		}
	}
}

// CheckDatagramAddress reports why [SendDatagram] cannot send to address,
// whoever is there.
func CheckDatagramAddress(address string) error {
	name, abstract := strings.CutPrefix(address, "@")
	switch {
	case !abstract:
		return checkPath(address)
	case runtime.GOOS != "linux":
		return fmt.Errorf("the abstract name %q, on %s: %w", address, runtime.GOOS, errors.ErrUnsupported)
	case name == "":
		return fmt.Errorf("the abstract name %q is empty: %w", address, syscall.EINVAL)
	case len(name) > MaxPath:
		// The zero byte in front of it takes the place of the one behind a path.
		return fmt.Errorf("the abstract name %q has %d bytes, a unix socket takes at most %d: %w", address, len(name), MaxPath, syscall.ENAMETOOLONG)
	}
	return nil
}

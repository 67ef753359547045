package pausable

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// errShutdown says why half of a shared socket cannot be closed: shutdown(2) acts
// on the socket, not on the descriptor.
var errShutdown = fmt.Errorf("shutting down one direction would end it for every process that holds the socket: %w", errors.ErrUnsupported)

// UnixConn is a *[net.UnixConn] on a datagram socket whose reading can pause. It
// has the whole method set; see [PacketConn] for what differs. Closing it
// unlinks nothing.
//
// What [UDPConn] says of File and the embedded connection holds here too.
type UnixConn struct {
	*net.UnixConn
	packets packets
}

// Read reads from a connected socket: see [net.UnixConn.Read].
func (c *UnixConn) Read(b []byte) (n int, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, err = c.UnixConn.Read(b)
		return err
	})
	return n, err
}

// ReadFrom implements [net.PacketConn].
func (c *UnixConn) ReadFrom(b []byte) (n int, addr net.Addr, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, addr, err = c.UnixConn.ReadFrom(b)
		return err
	})
	return n, addr, err
}

// ReadFromUnix acts like [UnixConn.ReadFrom] but returns a *[net.UnixAddr].
func (c *UnixConn) ReadFromUnix(b []byte) (n int, addr *net.UnixAddr, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, addr, err = c.UnixConn.ReadFromUnix(b)
		return err
	})
	return n, addr, err
}

// ReadMsgUnix reads a packet and its out-of-band data: see
// [net.UnixConn.ReadMsgUnix]. Descriptors in it are the caller's.
func (c *UnixConn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, oobn, flags, addr, err = c.UnixConn.ReadMsgUnix(b, oob)
		return err
	})
	return n, oobn, flags, addr, err
}

// CloseRead fails with an error that matches [errors.ErrUnsupported]: it would
// end reading in every process that holds the socket.
func (c *UnixConn) CloseRead() error { return c.refuseShutdown() }

// CloseWrite fails with an error that matches [errors.ErrUnsupported]: it would
// end writing in every process that holds the socket.
func (c *UnixConn) CloseWrite() error { return c.refuseShutdown() }

func (c *UnixConn) refuseShutdown() error { return c.packets.gate.refuse("close", errShutdown) }

// SetDeadline sets the read and write deadlines. It outlasts pauses.
func (c *UnixConn) SetDeadline(t time.Time) error { return c.packets.setDeadline(t) }

// SetReadDeadline sets the deadline of all present and future reads, paused or
// not. The zero time removes it.
func (c *UnixConn) SetReadDeadline(t time.Time) error { return c.packets.gate.setProgramDeadline(t) }

// SyscallConn returns access to the descriptor: see [UDPConn.SyscallConn].
func (c *UnixConn) SyscallConn() (syscall.RawConn, error) { return c.packets.syscallConn() }

// Close ends reads and writes. Closing again does nothing and returns nil.
func (c *UnixConn) Close() error { return c.packets.close() }

// Pause implements [PacketConn].
func (c *UnixConn) Pause() { c.packets.pause() }

// Resume implements [PacketConn].
func (c *UnixConn) Resume() { c.packets.resume() }

// Retire implements [PacketConn].
func (c *UnixConn) Retire() { c.packets.retire() }

// Raw returns the plain *[net.UnixConn]: see [PacketConn].
func (c *UnixConn) Raw() net.PacketConn { return c.UnixConn }

package pausable

import (
	"net"
	"net/netip"
	"syscall"
	"time"
)

// UDPConn is a *[net.UDPConn] whose reading can pause. It has the whole method
// set, so that it satisfies the interfaces that libraries ask for; see
// [PacketConn] for what differs.
//
// The embedded connection is the one that Raw returns. A descriptor from its File
// method is a copy of its own: its reads are not held back, it keeps the port
// taken until it is closed, and the Fd method of that file would put the socket
// into blocking mode for every process that holds it.
type UDPConn struct {
	*net.UDPConn
	packets packets
}

// Read reads from a connected socket: see [net.UDPConn.Read].
func (c *UDPConn) Read(b []byte) (n int, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, err = c.UDPConn.Read(b)
		return err
	})
	return n, err
}

// ReadFrom implements [net.PacketConn].
func (c *UDPConn) ReadFrom(b []byte) (n int, addr net.Addr, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, addr, err = c.UDPConn.ReadFrom(b)
		return err
	})
	return n, addr, err
}

// ReadFromUDP acts like [UDPConn.ReadFrom] but returns a *[net.UDPAddr].
func (c *UDPConn) ReadFromUDP(b []byte) (n int, addr *net.UDPAddr, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, addr, err = c.UDPConn.ReadFromUDP(b)
		return err
	})
	return n, addr, err
}

// ReadFromUDPAddrPort acts like [UDPConn.ReadFrom] but returns a [netip.AddrPort].
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (n int, addr netip.AddrPort, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, addr, err = c.UDPConn.ReadFromUDPAddrPort(b)
		return err
	})
	return n, addr, err
}

// ReadMsgUDP reads a packet and its out-of-band data: see [net.UDPConn.ReadMsgUDP].
func (c *UDPConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, oobn, flags, addr, err = c.UDPConn.ReadMsgUDP(b, oob)
		return err
	})
	return n, oobn, flags, addr, err
}

// ReadMsgUDPAddrPort acts like [UDPConn.ReadMsgUDP] but returns a [netip.AddrPort].
func (c *UDPConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, addr netip.AddrPort, err error) {
	err = c.packets.gate.do("read", func() (err error) {
		n, oobn, flags, addr, err = c.UDPConn.ReadMsgUDPAddrPort(b, oob)
		return err
	})
	return n, oobn, flags, addr, err
}

// SetDeadline sets the read and write deadlines. It outlasts pauses.
func (c *UDPConn) SetDeadline(t time.Time) error { return c.packets.setDeadline(t) }

// SetReadDeadline sets the deadline of all present and future reads, paused or
// not. The zero time removes it.
func (c *UDPConn) SetReadDeadline(t time.Time) error { return c.packets.gate.setProgramDeadline(t) }

// SyscallConn returns access to the descriptor. Its Read pauses like every other
// read; its Write and Control do not. The functions passed to it must not call
// Pause, Retire or Close.
func (c *UDPConn) SyscallConn() (syscall.RawConn, error) { return c.packets.syscallConn() }

// Close ends reads and writes. Closing again does nothing and returns nil.
func (c *UDPConn) Close() error { return c.packets.close() }

// Pause implements [PacketConn].
func (c *UDPConn) Pause() { c.packets.pause() }

// Resume implements [PacketConn].
func (c *UDPConn) Resume() { c.packets.resume() }

// Retire implements [PacketConn].
func (c *UDPConn) Retire() { c.packets.retire() }

// Raw returns the plain *[net.UDPConn]: see [PacketConn].
func (c *UDPConn) Raw() net.PacketConn { return c.UDPConn }

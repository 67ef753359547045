package pausable

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

var (
	_ PacketConn = (*UDPConn)(nil)
	_ PacketConn = (*UnixConn)(nil)
)

// PacketConn is a [net.PacketConn] on a socket that other processes may hold
// too: a *[UDPConn] or a *[UnixConn]. It starts paused.
//
// Only reading pauses: two processes that read one socket split its packets at
// random, but any number may write. Answers that are still owed can be written in
// every state until Close. For their sake the descriptor stays registered with the
// runtime's poller, so a paused connection still wakes its process now and then.
//
// Whoever shares the socket must leave it in non-blocking mode: a read that blocks
// in the kernel cannot be interrupted, so Pause, Retire and Close would wait for
// the next packet.
//
// All methods may be called concurrently, in any order and repeatedly.
type PacketConn interface {
	net.PacketConn
	syscall.Conn

	// Pause makes reads block and returns when none is in flight. A packet that a
	// read has taken by then is delivered. Deadlines and Close end a blocked read.
	Pause()

	// Resume lets reads go on, under the program's own read deadline. After Retire
	// and Close it does nothing.
	Resume()

	// Retire ends reading for good, with an error that matches net.ErrClosed, and
	// returns when no read is in flight. The descriptor stays open for writing until
	// the program calls Close.
	Retire()

	// Raw returns the plain *net.UDPConn or *net.UnixConn, in every state. Its reads
	// are not held back: two processes then split packets until the old one stops
	// reading. It remains the PacketConn's, and closing it closes both.
	Raw() net.PacketConn
}

// NewPacketConn returns a paused *[UDPConn] or *[UnixConn] on a duplicate of fd,
// which must be a UDP or a unix datagram socket. fd remains the caller's. The
// socket is in non-blocking mode afterwards. closed, which may be nil, is called
// once, from the first Close; retiring does not call it.
//
// On systems where descriptors cannot be passed the error matches
// [errors.ErrUnsupported], as it does for another kind of socket.
func NewPacketConn(fd *scm.FD, closed func()) (PacketConn, error) {
	id, err := fd.Identify()
	if err != nil {
		return nil, fmt.Errorf("cannot tell what the packet connection's descriptor is: %w", err)
	}
	if id.Network != "udp" && id.Network != "unixgram" {
		return nil, fmt.Errorf("the descriptor is neither a UDP nor a unix datagram socket but %s: %w", id, errors.ErrUnsupported)
	}
	plain, err := fd.PacketConn()
	if err != nil {
		return nil, err
	}
	switch plain := plain.(type) {
	case *net.UDPConn:
		c := &UDPConn{UDPConn: plain}
		c.packets.init(plain, closed)
		return c, nil
	case *net.UnixConn:
		c := &UnixConn{UnixConn: plain}
		c.packets.init(plain, closed)
		return c, nil
	}
	_ = plain.Close()
	return nil, fmt.Errorf("a packet connection of type %T cannot be paused: %w", plain, errors.ErrUnsupported)
}

// plainPacketConn is what *net.UDPConn and *net.UnixConn have in common.
type plainPacketConn interface {
	net.Conn
	ReadFrom(p []byte) (int, net.Addr, error)
	SyscallConn() (syscall.RawConn, error)
}

// packets is the part of UDPConn and UnixConn that does not depend on the type.
type packets struct {
	gate   gate
	plain  plainPacketConn
	closed func()
}

func (p *packets) init(plain plainPacketConn, closed func()) {
	p.plain, p.closed = plain, closed
	local := plain.LocalAddr()
	failure := net.OpError{Net: local.Network(), Source: local, Addr: plain.RemoteAddr()}
	p.gate.init(failure, local, plain.SetReadDeadline)
	p.gate.retiredErr = net.ErrClosed
}

func (p *packets) pause() {
	p.gate.transition.Lock()
	defer p.gate.transition.Unlock()
	p.gate.stop(paused)
}

func (p *packets) resume() {
	p.gate.transition.Lock()
	defer p.gate.transition.Unlock()
	if p.gate.now() == paused {
		p.gate.run(func() {})
	}
}

func (p *packets) retire() {
	p.gate.transition.Lock()
	defer p.gate.transition.Unlock()
	p.gate.stop(retired)
}

func (p *packets) close() error {
	first, err := p.closeOnce()
	if first && p.closed != nil {
		p.closed()
	}
	return err
}

func (p *packets) closeOnce() (first bool, err error) {
	p.gate.transition.Lock()
	defer p.gate.transition.Unlock()
	if !p.gate.stop(closed) {
		return false, nil
	}
	// A program may have closed it through Raw.
	if err := p.plain.Close(); !errors.Is(err, net.ErrClosed) {
		return true, err
	}
	return true, nil
}

func (p *packets) setDeadline(t time.Time) error {
	if err := p.gate.setProgramDeadline(t); err != nil {
		return err
	}
	return p.plain.SetWriteDeadline(t)
}

func (p *packets) syscallConn() (syscall.RawConn, error) {
	raw, err := p.plain.SyscallConn()
	if err != nil {
		return nil, err
	}
	return rawPackets{RawConn: raw, gate: &p.gate}, nil
}

// rawPackets is the RawConn of a packet connection. Libraries that read packets
// in batches do it through here.
type rawPackets struct {
	syscall.RawConn
	gate *gate
}

// Read may call fn again after a pause: it was interrupted only if fn's last
// answer was false, or if fn was not called.
func (r rawPackets) Read(fn func(fd uintptr) bool) error {
	return r.gate.do("raw-read", func() error { return r.RawConn.Read(fn) })
}

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
	_ net.Listener = (*Listener)(nil)
	_ syscall.Conn = (*Listener)(nil)
)

// Listener is a [net.Listener] on a socket that other processes may hold too. It
// starts paused.
//
// While it runs it has a plain Go listener on a duplicate of the descriptor.
// Pause closes that one, so that a paused Listener is in no epoll or kqueue set:
// the process is not woken for connections that are another's to accept. The
// accept queue belongs to the socket and stays as long as any copy is open.
//
// Resume puts the socket into non-blocking mode, and whoever shares it must leave
// it there: an accept(2) that blocks in the kernel cannot be interrupted, so
// Pause, Retire and Close would wait for the next connection.
//
// All methods may be called concurrently, in any order and repeatedly.
type Listener struct {
	fd   *scm.FD
	opts ListenerOptions
	gate gate

	// plain is nil but while running. It is written under gate.mu with no call in
	// flight, so a call in flight may read it without.
	plain plainListener
}

// ListenerOptions are the hooks of a [Listener]. The zero value has none.
type ListenerOptions struct {
	// Accepted is called with each connection before Accept returns it, from the
	// goroutine that called Accept. The place to set what is not inherited from the
	// listening socket, such as a program's own keep-alive.
	Accepted func(net.Conn)

	// Closed is called once, from the first Close, after the Listener is closed.
	// Pausing and retiring do not call it.
	Closed func()

	// Addr is what the Addr method returns, and errors name. Nil: the address that
	// the socket was bound to. For a unix socket that was renamed after bind the two
	// differ.
	Addr net.Addr
}

// plainListener is what *net.TCPListener and *net.UnixListener have in common.
type plainListener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// NewListener returns a paused Listener on fd, which must be a listening stream
// or seqpacket socket. fd remains the caller's, who must keep it open for as
// long as Resume may be called: the Listener holds a duplicate only while it
// runs. Nothing is ever unlinked.
//
// On systems where descriptors cannot be passed the error matches
// [errors.ErrUnsupported].
func NewListener(fd *scm.FD, opts ListenerOptions) (*Listener, error) {
	// Opened once here, so that a socket for which Go has no listener is found now
	// and not at Resume, when another process has already stopped accepting.
	plain, err := openListener(fd)
	if err != nil {
		return nil, err
	}
	if opts.Addr == nil {
		opts.Addr = plain.Addr()
	}
	if err := plain.Close(); err != nil {
		return nil, err
	}
	l := &Listener{fd: fd, opts: opts}
	failure := net.OpError{Net: opts.Addr.Network(), Addr: opts.Addr}
	l.gate.init(failure, opts.Addr, func(t time.Time) error { return l.plain.SetDeadline(t) })
	return l, nil
}

// Accept returns the next connection: a plain *net.TCPConn or *net.UnixConn. It
// blocks while the Listener is paused or retired. A deadline that passes, before
// or during, gives an error that matches [os.ErrDeadlineExceeded], Close one
// that matches [net.ErrClosed], both in a *net.OpError as from package net. No
// other error comes from pausing, resuming or retiring.
func (l *Listener) Accept() (net.Conn, error) {
	var c net.Conn
	err := l.gate.do("accept", func() (err error) {
		c, err = l.plain.Accept()
		return err
	})
	if err != nil {
		return nil, err
	}
	// Outside the gate: the hook may call Pause.
	if l.opts.Accepted != nil {
		l.opts.Accepted(c)
	}
	return c, nil
}

// Pause makes Accept block, closes the plain listener, and returns when no
// accept(2) is in flight. A connection that accept(2) has returned by then is
// delivered.
func (l *Listener) Pause() {
	l.gate.transition.Lock()
	defer l.gate.transition.Unlock()
	if l.gate.stop(paused) {
		// close(2) on a listening socket that lives on elsewhere has nothing to report.
		_ = l.drop()
	}
}

// Resume makes Accept take connections again. On an error, such as a full
// descriptor table, the Listener stays paused. After Retire and Close it does
// nothing.
func (l *Listener) Resume() error {
	l.gate.transition.Lock()
	defer l.gate.transition.Unlock()
	if l.gate.now() != paused {
		return nil
	}
	plain, err := openListener(l.fd)
	if err != nil {
		return err
	}
	l.gate.run(func() { l.plain = plain })
	return nil
}

// Retire is Pause without return: this process is out. When it is done the
// Listener holds no copy of the descriptor; that of the caller of [NewListener]
// is the caller's to close. Accept goes on blocking until the program calls
// Close, because a server that sees its listener vanish takes that for a failure.
func (l *Listener) Retire() {
	l.gate.transition.Lock()
	defer l.gate.transition.Unlock()
	if l.gate.stop(retired) {
		_ = l.drop()
	}
}

// Close ends every Accept. It is for the program only; the socket itself is
// closed when its last copy is. Closing again does nothing and returns nil.
func (l *Listener) Close() error {
	first, err := l.close()
	if first && l.opts.Closed != nil {
		l.opts.Closed()
	}
	return err
}

func (l *Listener) close() (first bool, err error) {
	l.gate.transition.Lock()
	defer l.gate.transition.Unlock()
	if !l.gate.stop(closed) {
		return false, nil
	}
	return true, l.drop()
}

// Addr returns the listener's address, in every state.
func (l *Listener) Addr() net.Addr { return l.opts.Addr }

// SetDeadline sets the deadline of all present and future Accepts, in every
// state but closed; it outlasts pauses. The zero time removes it.
func (l *Listener) SetDeadline(t time.Time) error { return l.gate.setProgramDeadline(t) }

// SyscallConn returns access to the descriptor, also while paused. As with the
// listeners of package net, Control works and Read and Write do not. After
// Retire or Close, Control's error matches [net.ErrClosed]. The function must
// neither close the descriptor nor change whether it blocks, which would hold
// for every process that shares the socket.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return rawListener{l}, nil }

// Raw returns the plain *net.TCPListener or *net.UnixListener in use, nil while
// there is none. It is valid until the first Pause: that closes it, which a
// program that accepts from it sees as net.ErrClosed. It remains the Listener's.
func (l *Listener) Raw() net.Listener {
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	if l.plain == nil {
		return nil
	}
	return l.plain
}

// drop closes the plain listener, if there is one. No call is in flight and the
// caller holds transition.
func (l *Listener) drop() error {
	l.gate.mu.Lock()
	plain := l.plain
	l.plain = nil
	l.gate.mu.Unlock()
	if plain == nil {
		return nil
	}
	// A program may have closed it through Raw.
	if err := plain.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// openListener returns a Go listener on a duplicate of fd.
func openListener(fd *scm.FD) (plainListener, error) {
	ln, err := fd.Listener()
	if err != nil {
		return nil, err
	}
	plain, ok := ln.(plainListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("a listener of type %T cannot be paused: %w", ln, errors.ErrUnsupported)
	}
	return plain, nil
}

// rawListener is the RawConn of a Listener.
type rawListener struct{ l *Listener }

func (r rawListener) Control(fn func(fd uintptr)) error {
	err := error(net.ErrClosed)
	if r.l.gate.now() < retired {
		err = r.l.fd.Control(fn)
	}
	if err != nil {
		return r.l.gate.refuse("raw-control", err)
	}
	return nil
}

func (rawListener) Read(func(fd uintptr) bool) error  { return syscall.EINVAL }
func (rawListener) Write(func(fd uintptr) bool) error { return syscall.EINVAL }

package crossfade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// ErrNotTaken: the successor has no use for a connection, which stays the caller's.
var ErrNotTaken = handoff.ErrNotTaken

// HandOver is what travels with an established connection.
type HandOver struct {
	// Unread is what was read from the connection and not used: the successor reads
	// it first.
	Unread []byte
	// State is what the program wants its successor to know of the connection. With
	// Unread it may have 512 KiB.
	State []byte
}

// HandOverConn gives an established connection to the successor, once this process
// has retired ([ErrRetired]); there it comes out of [Upgrader.HandedOver] of that
// listener's name. Nobody may read, write or close c meanwhile. c is a *net.TCPConn,
// a *net.UnixConn or what wraps one and implements [syscall.Conn]; what the wrapper
// has read and not given out belongs into h, which may be nil.
//
// On nil the successor has it, and c was closed here without a word to the client.
// On an error c is the caller's and untouched, and may be served or offered again:
// ErrWrongState before this process has retired; ErrUnimplemented if the successor
// is of a version that takes none; ErrLimit if h is too large; ErrNotTaken with the
// reason; ErrLost if the successor has ended; the cause of ctx.
//
// Only if ctx ends after the connection was sent, while a frozen successor does not
// answer, the error matches ErrOutcomeUnknown: then c is no longer the caller's, and
// is closed here as soon as the successor has answered or ended. No deadline of c
// need be set or reset.
//
// At most 64 are on their way at the same time; further calls wait. It may be called
// concurrently.
func (u *Upgrader) HandOverConn(ctx context.Context, listener string, c net.Conn, h *HandOver) error {
	if err := u.handOverConn(ctx, listener, c, h); err != nil {
		return fmt.Errorf("crossfade: handing over a connection: %w", err)
	}
	return nil
}

func (u *Upgrader) handOverConn(ctx context.Context, listener string, c net.Conn, h *HandOver) error {
	if u.cfg.Disabled {
		return errors.ErrUnsupported
	}
	if err := checkName(listener); err != nil {
		return err
	}
	if h == nil {
		h = new(HandOver)
	}
	raw, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("a %T does not implement syscall.Conn: %w", c, errors.ErrUnsupported)
	}
	fd, err := scm.DupFD(raw)
	if err != nil {
		return err
	}
	id, err := fd.Identify()
	if err == nil && (id.Type != scm.TypeSocket || id.Listening) {
		err = fmt.Errorf("it is no connection but %s", id)
	}
	if err != nil {
		return errors.Join(err, fd.Close())
	}
	passed := &handoff.Connection{Listener: listener, Unread: h.Unread, State: h.State, Identity: id, FD: fd}
	err = u.server.HandOver(ctx, passed, func(error) {
		_ = fd.Close()
		_ = c.Close()
	})
	if errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	_ = fd.Close()
	if err == nil {
		_ = c.Close() // of one copy of two: the client sees nothing
	}
	return err
}

// HandedOver returns a listener whose Accept gives the connections that the
// predecessor hands over for the listener of that name. It is the same for every
// call with that name until it is closed. What arrives before the first call is
// refused, as it is after Close: so call it before Ready. Like a listener of
// [Upgrader.Listen] it is not closed by Exit.
//
// What Accept returns reads what the predecessor had read first. It is a
// *[HandedTCPConn] or a *[HandedUnixConn]; socket options are those that the
// predecessor has set. [HandOverOf] has the state that came along.
//
// A protocol that begins with a greeting, as TLS does, must not take them for new
// connections: that is why they do not come out of Accept of the listener itself.
// For one that does not, [Upgrader.MergeHandedOver] joins the two.
func (u *Upgrader) HandedOver(listener string) net.Listener {
	return u.handed.open(listener)
}

// MergeHandedOver returns a listener that accepts from ln and from what the predecessor
// hands over for the listener of that name, for protocols in which a connection means
// the same at every moment between two requests. It takes ownership of ln.
func (u *Upgrader) MergeHandedOver(ln net.Listener, name string) net.Listener {
	return newMerged(ln, u.HandedOver(name))
}

// HandOverOf returns what travelled with a connection that was handed over.
func HandOverOf(c net.Conn) (*HandOver, bool) {
	h, ok := c.(interface{ handOver() *HandOver })
	if !ok {
		return nil, false
	}
	return h.handOver(), true
}

// HandedTCPConn is a TCP connection that was handed over. Reading by other means than
// Read and WriteTo misses what the predecessor had read.
type HandedTCPConn struct {
	*net.TCPConn
	handed
}

// Read reads what the predecessor had read first.
func (c *HandedTCPConn) Read(p []byte) (int, error) { return c.read(c.TCPConn, p) }

// WriteTo implements [io.WriterTo].
func (c *HandedTCPConn) WriteTo(w io.Writer) (int64, error) { return c.writeTo(c.TCPConn, w) }

// HandedUnixConn is a unix stream connection that was handed over. Reading by other
// means than Read misses what the predecessor had read.
type HandedUnixConn struct {
	*net.UnixConn
	handed
}

// Read reads what the predecessor had read first.
func (c *HandedUnixConn) Read(p []byte) (int, error) { return c.read(c.UnixConn, p) }

// handed is what came with a connection.
type handed struct {
	mu     sync.Mutex
	unread []byte // what is still to be read of h.Unread
	h      *HandOver
}

func (h *handed) handOver() *HandOver { return h.h }

// take copies what is unread.
func (h *handed) take(p []byte) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := copy(p, h.unread)
	h.unread = h.unread[n:]
	return n
}

func (h *handed) read(below io.Reader, p []byte) (int, error) {
	if n := h.take(p); n > 0 {
		return n, nil
	}
	return below.Read(p)
}

func (h *handed) writeTo(below io.WriterTo, w io.Writer) (n int64, err error) {
	h.mu.Lock()
	unread := h.unread
	h.unread = nil
	h.mu.Unlock()
	if len(unread) > 0 {
		written, err := w.Write(unread)
		if err != nil {
			return int64(written), err
		}
		n = int64(written)
	}
	rest, err := below.WriteTo(w)
	return n + rest, err
}

// maxHanded is how many connections may wait for Accept: far above what anybody
// leaves waiting, and below what would exhaust the process before its own limit does.
const maxHanded = 1 << 14

// spareDescriptors is how much room for descriptors this process must have to take a
// connection: enough for what may be on its way, so that none is lost for want of it.
const spareDescriptors = 128

// handedOver are the listeners of HandedOver.
type handedOver struct {
	mu        sync.Mutex
	listeners map[string]*handedListener
}

func (hs *handedOver) open(name string) *handedListener {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	l := hs.listeners[name]
	if l == nil {
		l = &handedListener{of: hs, name: name, queue: make(chan net.Conn, maxHanded), closed: make(chan struct{})}
		if hs.listeners == nil {
			hs.listeners = make(map[string]*handedListener)
		}
		hs.listeners[name] = l
	}
	return l
}

// receive takes a connection in. It takes ownership of c.FD.
func (hs *handedOver) receive(c *handoff.Connection) (deliver func(), err error) {
	defer c.FD.Close()
	hs.mu.Lock()
	l := hs.listeners[c.Listener]
	hs.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody takes connections for %q", c.Listener)
	}
	if err := checkIdentity(handoff.Descriptor{Kind: handoff.KindConn, Identity: c.Identity, FD: c.FD}); err != nil {
		return nil, err
	}
	if err := scm.Reserve(spareDescriptors); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	conn, err := c.FD.Conn()
	if err != nil {
		return nil, err
	}
	h := &HandOver{Unread: c.Unread, State: c.State}
	var made net.Conn
	switch conn := conn.(type) {
	case *net.TCPConn:
		made = &HandedTCPConn{TCPConn: conn, handed: handed{unread: c.Unread, h: h}}
	case *net.UnixConn:
		made = &HandedUnixConn{UnixConn: conn, handed: handed{unread: c.Unread, h: h}}
	default:
		return nil, errors.Join(fmt.Errorf("a %T cannot be taken", conn), conn.Close())
	}
	if len(l.queue) == cap(l.queue) {
		return nil, errors.Join(fmt.Errorf("%d connections for %q wait already", len(l.queue), l.name), conn.Close())
	}
	return func() { l.deliver(made) }, nil
}

// handedListener gives out what was handed over for one listener.
type handedListener struct {
	of    *handedOver
	name  string
	queue chan net.Conn // as many as may wait

	mu     sync.Mutex // held for delivering and closing
	closed chan struct{}
}

// deliver is never called for more than there is room for: one machine asks whether
// there is any, and delivers.
func (l *handedListener) deliver(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if isClosed(l.closed) {
		_ = c.Close() // the program wants none any more
		return
	}
	l.queue <- c
}

// Accept returns the next connection, or [net.ErrClosed] after Close.
func (l *handedListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, l.errClosed()
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, l.errClosed()
	}
}

// Close refuses what comes from now on, and closes what nobody has accepted.
func (l *handedListener) Close() error {
	l.of.mu.Lock()
	if l.of.listeners[l.name] == l {
		delete(l.of.listeners, l.name)
	}
	l.of.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if isClosed(l.closed) {
		return l.errClosed()
	}
	close(l.closed)
	for {
		select {
		case c := <-l.queue:
			_ = c.Close()
		default:
			return nil
		}
	}
}

// Addr returns the name of the listener that the connections came from.
func (l *handedListener) Addr() net.Addr { return handedAddr(l.name) }

func (l *handedListener) errClosed() error {
	return &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

// handedAddr is the address of a listener that is not on any network.
type handedAddr string

func (handedAddr) Network() string  { return "crossfade" }
func (a handedAddr) String() string { return string(a) }

// merged accepts from two listeners.
type merged struct {
	net.Listener // the one that it is known by
	other        net.Listener
	accepted     chan acceptance // without room: what is accepted is given out or closed
	closing      chan struct{}
	once         sync.Once
	err          error
}

type acceptance struct {
	conn net.Conn
	err  error
}

func newMerged(ln, other net.Listener) *merged {
	m := &merged{Listener: ln, other: other, accepted: make(chan acceptance), closing: make(chan struct{})}
	for _, from := range []net.Listener{ln, other} {
		go m.pump(from)
	}
	return m
}

// pump ends with its listener, or with a permanent error of it.
func (m *merged) pump(from net.Listener) {
	for {
		conn, err := from.Accept()
		select {
		case m.accepted <- acceptance{conn, err}:
		case <-m.closing:
			if conn != nil {
				_ = conn.Close()
			}
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// Accept returns the next connection of either.
func (m *merged) Accept() (net.Conn, error) {
	select {
	case a := <-m.accepted:
		return a.conn, a.err
	case <-m.closing:
		return nil, &net.OpError{Op: "accept", Net: m.Addr().Network(), Addr: m.Addr(), Err: net.ErrClosed}
	}
}

// Close closes both.
func (m *merged) Close() error {
	m.once.Do(func() {
		close(m.closing)
		m.err = errors.Join(m.Listener.Close(), m.other.Close())
	})
	return m.err
}

package crossfade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// HandOver is what travels with an established connection. Together it may have 512
// KiB.
type HandOver struct {
	// Unread is what the program has read from the connection and not used: the
	// successor reads it first.
	Unread []byte
	// State is what the program wants its successor to know of the connection.
	State []byte
}

// HandOverConn gives an established connection to the successor, once this process
// has retired ([ErrRetired]); there it comes out of [Upgrader.HandedOver] of that
// listener's name. Nobody may read, write or close c meanwhile. c is a *net.TCPConn,
// a *net.UnixConn of a stream, or what wraps one and implements [syscall.Conn]; what
// the wrapper has read and not given out belongs into h, which may be nil. What came
// with c when it was handed over to this process, and was not read, goes along by
// itself.
//
// On nil the successor has it, and c was closed here without a word to the client.
// On an error c is the caller's and untouched, and may be served or offered again:
// ErrWrongState before this process has retired; ErrUnimplemented if the successor
// is of a version that takes none; ErrLimit if h is too large; ErrNotTaken with the
// reason; ErrLost if the successor has ended, or has closed its end; ErrProtocol if
// it has broken the protocol before; ErrTimeout if it could not be written to;
// [errors.ErrUnsupported] for another sort of connection; the cause of ctx.
//
// Only if the error matches ErrOutcomeUnknown c is no longer the caller's: ctx has
// ended after c was sent, while a frozen successor does not answer, or the answer
// could not be understood. Then c is closed here as soon as it is of no use any more,
// and what the successor does with it shows there. No deadline of c need be set or
// reset.
//
// At most 64 are on their way at the same time; further calls wait. It may be called
// concurrently. The process must not exit before the calls have returned.
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
	// The duplicate is made when its turn has come: a program that moves all it has
	// at once needs no second table for it.
	if ctx.Err() != nil {
		return context.Cause(ctx) // a select would choose at random
	}
	select {
	case u.handing <- struct{}{}:
		defer func() { <-u.handing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	fd, id, err := dupConn(c)
	if err != nil {
		return err
	}
	unread := h.Unread
	if came := handedOf(c); came != nil {
		unread = slices.Concat(unread, came.rest())
	}
	passed := &handoff.Connection{Listener: listener, Unread: unread, State: h.State, Identity: id, FD: fd}
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

// maxHanding is how many connections are handed over at the same time.
const maxHanding = handoff.ConnectionWindow

// dupConn returns a second descriptor of a connection that can be handed over.
func dupConn(c net.Conn) (*scm.FD, scm.Identity, error) {
	raw, ok := c.(syscall.Conn)
	if !ok {
		return nil, scm.Identity{}, fmt.Errorf("a %T does not implement syscall.Conn: %w", c, errors.ErrUnsupported)
	}
	fd, err := scm.DupFD(raw)
	if err != nil {
		return nil, scm.Identity{}, err
	}
	id, err := fd.Identify()
	if err == nil && !isStream(id) {
		err = fmt.Errorf("it is no connection of a stream but %s: %w", id, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, scm.Identity{}, errors.Join(err, fd.Close())
	}
	return fd, id, nil
}

// isStream reports whether bytes that were read before mean the same afterwards.
func isStream(id scm.Identity) bool {
	return !id.Listening && (id.Network == "tcp" || id.Network == "unix")
}

// HandedOver returns a listener whose Accept gives the connections that the
// predecessor hands over for the listener of that name. It is the same for every
// call with that name until it is closed. What arrives before the first call is
// refused, as it is after Close, and once this process has retired itself: so call
// it before Ready. Like a listener of [Upgrader.Listen] it is not closed by Exit.
//
// Nobody else has what was taken once. So Accept goes on after Close until all of it
// is given out, and only then returns [net.ErrClosed]: a program that has retired
// closes it, accepts up to there, and hands those over in turn.
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
// the same at every moment between two requests. It takes ownership of ln. After Close,
// Accept gives out what either had accepted before it returns [net.ErrClosed]: call it
// until then.
func (u *Upgrader) MergeHandedOver(ln net.Listener, name string) net.Listener {
	return newMerged(ln, u.HandedOver(name))
}

// HandOverOf returns the state that travelled with a connection that was handed over
// to this process. What was unread is for Read, and Unread is nil: thus the result is
// what HandOverConn needs to pass the same connection on. c may wrap the connection,
// if it has the method NetConn, as *[crypto/tls.Conn] has.
func HandOverOf(c net.Conn) (*HandOver, bool) {
	h := handedOf(c)
	if h == nil {
		return nil, false
	}
	return &HandOver{State: h.state}, true
}

// handedOf is what came with a connection, nil if nothing has.
func handedOf(c net.Conn) *handed {
	for {
		if h, ok := c.(interface{ came() *handed }); ok {
			return h.came()
		}
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = wrapper.NetConn()
	}
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
	state []byte

	mu     sync.Mutex
	unread []byte // what is still to be read of it
}

func (h *handed) came() *handed { return h }

// rest is what is unread.
func (h *handed) rest() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unread
}

// TakeUnread returns what the predecessor had read and Read has not given out yet. Read
// gives none of it out any more: it is for a caller that reads below the connection.
func (h *handed) TakeUnread() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	unread := h.unread
	h.unread = nil
	return unread
}

// take copies what is unread.
func (h *handed) take(p []byte) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := copy(p, h.unread)
	h.unread = h.unread[n:]
	if len(h.unread) == 0 {
		h.unread = nil // for the collector
	}
	return n
}

func (h *handed) read(below io.Reader, p []byte) (int, error) {
	if n := h.take(p); n > 0 {
		return n, nil
	}
	return below.Read(p)
}

func (h *handed) writeTo(below io.WriterTo, w io.Writer) (n int64, err error) {
	if unread := h.TakeUnread(); len(unread) > 0 {
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
// connection: twice what may be on its way. One that arrives where there is none is
// lost to this process, and the handoff connection with it.
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
		l = &handedListener{of: hs, name: name}
		l.changed.L = &l.mu
		if hs.listeners == nil {
			hs.listeners = make(map[string]*handedListener)
		}
		hs.listeners[name] = l
	}
	return l
}

// receive takes a connection in. It takes ownership of c.FD.
func (hs *handedOver) receive(c *handoff.Connection) (answered func(taken bool), err error) {
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
	if !isStream(c.Identity) {
		return nil, fmt.Errorf("it is no connection of a stream but %s", c.Identity)
	}
	if err := c.FD.Reserve(spareDescriptors); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	conn, err := openHanded(c)
	if err != nil {
		return nil, err
	}
	if err := l.expect(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func(taken bool) { l.deliver(conn, taken) }, nil
}

// openHanded makes a Go connection on a duplicate of c.FD.
func openHanded(c *handoff.Connection) (net.Conn, error) {
	conn, err := c.FD.Conn()
	if err != nil {
		return nil, err
	}
	if conn.RemoteAddr() == nil {
		// Programs do not expect that of a connection. What the client had sent
		// before is for the predecessor.
		return nil, errors.Join(errors.New("the client has gone"), conn.Close())
	}
	switch conn := conn.(type) {
	case *net.TCPConn:
		return &HandedTCPConn{TCPConn: conn, handed: handed{unread: c.Unread, state: c.State}}, nil
	case *net.UnixConn:
		return &HandedUnixConn{UnixConn: conn, handed: handed{unread: c.Unread, state: c.State}}, nil
	default:
		return nil, errors.Join(fmt.Errorf("a %T cannot be taken", conn), conn.Close())
	}
}

// handedListener gives out what was handed over for one listener.
type handedListener struct {
	of   *handedOver
	name string

	mu       sync.Mutex
	changed  sync.Cond
	queue    []net.Conn // what waits for Accept
	expected int        // how many more will be delivered, or are not taken after all
	closed   bool
}

// expect says that there will be a delivery, if there is room for one.
func (l *handedListener) expect() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return fmt.Errorf("nobody takes connections for %q any more", l.name)
	case len(l.queue)+l.expected >= maxHanded:
		return fmt.Errorf("%d connections for %q wait already", maxHanded, l.name)
	}
	l.expected++
	return nil
}

// deliver follows each call of expect.
func (l *handedListener) deliver(c net.Conn, taken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expected--
	if taken {
		l.queue = append(l.queue, c)
	} else {
		_ = c.Close()
	}
	l.changed.Broadcast()
}

// Accept returns the next connection, or [net.ErrClosed] after Close, when there is
// none any more.
func (l *handedListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 {
		if l.closed && l.expected == 0 {
			return nil, l.errClosed("accept")
		}
		l.changed.Wait()
	}
	c := l.queue[0]
	l.queue[0] = nil // for the collector
	l.queue = l.queue[1:]
	return c, nil
}

// Close refuses what comes from now on. What has come is still given out.
func (l *handedListener) Close() error {
	l.of.mu.Lock()
	if l.of.listeners[l.name] == l {
		delete(l.of.listeners, l.name)
	}
	l.of.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.errClosed("close")
	}
	l.closed = true
	l.changed.Broadcast()
	return nil
}

// Addr returns the name of the listener that the connections came from.
func (l *handedListener) Addr() net.Addr { return handedAddr(l.name) }

func (l *handedListener) errClosed(op string) error {
	return &net.OpError{Op: op, Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

// handedAddr is the address of a listener that is not on any network.
type handedAddr string

func (handedAddr) Network() string  { return "crossfade" }
func (a handedAddr) String() string { return string(a) }

// merged accepts from two listeners.
type merged struct {
	net.Listener // the one that it is known by
	other        net.Listener
	accepted     chan acceptance // without room: who accepts has all that was accepted, but one of each
	done         chan struct{}   // closed when both have ended
}

type acceptance struct {
	conn net.Conn
	err  error
}

func newMerged(ln, other net.Listener) *merged {
	m := &merged{Listener: ln, other: other, accepted: make(chan acceptance), done: make(chan struct{})}
	var pumps sync.WaitGroup
	for _, from := range []net.Listener{ln, other} {
		pumps.Go(func() { m.pump(from) })
	}
	go func() {
		pumps.Wait()
		close(m.done)
	}()
	return m
}

// pump ends with its listener. Nothing that it has accepted is thrown away, and
// nobody else has it: so it waits for Accept.
func (m *merged) pump(from net.Listener) {
	for {
		conn, err := from.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		m.accepted <- acceptance{conn, err}
	}
}

// Accept returns the next connection of either, or [net.ErrClosed] when both are
// closed and have no more.
func (m *merged) Accept() (net.Conn, error) {
	select {
	case a := <-m.accepted:
		return a.conn, a.err
	case <-m.done:
		return nil, &net.OpError{Op: "accept", Net: m.Addr().Network(), Addr: m.Addr(), Err: net.ErrClosed}
	}
}

// Close closes both.
func (m *merged) Close() error { return errors.Join(m.Listener.Close(), m.other.Close()) }

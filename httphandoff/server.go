package httphandoff

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-go/crossfade"
)

// Server lets an [http.Server] hand its connections over. Its methods may be called
// concurrently.
type Server struct {
	upg  upgrader
	srv  *http.Server
	name string

	handed  net.Listener
	install sync.Once
	joined  sync.Once     // handed is served too
	slots   chan struct{} // has an element for each connection on its way

	serving sync.WaitGroup // the calls of http.Server.Serve and ServeTLS

	// These are used with each request, and so without a lock that is common to all.
	plan    atomic.Int32 // a plan, which changes once
	conns   sync.Map     // net.Conn to *tracked: those that are neither closed nor hijacked
	count   counts
	changed chan struct{} // has room for one word that a count has, once there is a plan

	mu         sync.Mutex
	listeners  map[*listener]struct{}
	onShutdown []func()
	drain      context.Context // of Shutdown, in whose time connections move
	moved      int
	kept       int
	failure    error // why the first of kept was
}

// upgrader is what is needed of a [crossfade.Upgrader].
type upgrader interface {
	HandOverConn(ctx context.Context, listener string, c net.Conn, h *crossfade.HandOver) error
	HandedOver(listener string) net.Listener
	Err() error
	Settled() <-chan struct{}
}

// plan is how the connections are to end.
type plan int32

const (
	stay     plan = iota // not at all
	move                 // a successor takes them
	farewell             // at their next response: somebody else serves from now on
	finish               // at the end of their request: nobody does
)

// What travels with a connection. Whoever does not know a value takes the connection
// for a new one, and so does this package.
const (
	stateNew  = ""     // no request was read
	stateIdle = "idle" // it has had a response
)

const (
	// maxMoving is how many connections may be on their way. Each takes a second
	// descriptor; more than crossfade sends without an answer would only wait.
	maxMoving = 64
	// maxSilence is how long a connection may keep a server that stops for good from
	// ending, if nothing has come on it: as long as [http.Server.Shutdown] lets it.
	maxSilence = 5 * time.Second
	// goodbye is how much of the drain is left for the end of HTTP/2 connections,
	// which takes a second after GOAWAY (net/http).
	goodbye = 2 * time.Second
)

// New prepares srv to take over connections of the predecessor's Server of that name,
// and to hand over its own. Call it before [crossfade.Upgrader.Ready]: a predecessor
// begins to hand over as soon as it has retired. The name is that of the listener by
// custom, but any will do, one for each Server.
//
// srv may be configured until Serve or ServeTLS is called for the first time, and must
// not be changed or served in other ways after that: these add hooks of their own to
// ConnContext, ConnState and Handler, and call what was there.
func New(upg *crossfade.Upgrader, srv *http.Server, name string) *Server {
	return newServer(upg, srv, name)
}

func newServer(upg upgrader, srv *http.Server, name string) *Server {
	return &Server{
		upg: upg, srv: srv, name: name,
		handed:    upg.HandedOver(name),
		slots:     make(chan struct{}, maxMoving),
		listeners: make(map[*listener]struct{}),
		changed:   make(chan struct{}, 1),
	}
}

// Serve is [http.Server.Serve] for connections that can move, and for those that the
// predecessor hands over. Those of ln can move if its Accept returns *[net.TCPConn] or
// *[net.UnixConn], as that of [crossfade.Upgrader.Listen] does; all others, such as
// those of [tls.NewListener], end as [Server.Shutdown] says. It may be called for
// several listeners.
//
// It takes ownership of ln, and returns [http.ErrServerClosed] after Shutdown.
func (s *Server) Serve(ln net.Listener) error {
	return s.serve(ln, s.wrap, s.srv.Serve)
}

// ServeTLS is [http.Server.ServeTLS]. Its connections cannot move. What a predecessor
// that served the same name without TLS hands over is served here, without TLS.
func (s *Server) ServeTLS(ln net.Listener, certFile, keyFile string) error {
	return s.serve(ln, asItIs, func(ln net.Listener) error { return s.srv.ServeTLS(ln, certFile, keyFile) })
}

func (s *Server) serve(ln net.Listener, wrap func(net.Conn) net.Conn, serve func(net.Listener) error) error {
	s.install.Do(s.addHooks)
	l := &listener{Listener: ln, wrap: wrap, addr: ln.Addr(), begins: func() { s.serveHanded(ln.Addr()) }}
	s.mu.Lock()
	if s.planned() != stay {
		s.mu.Unlock()
		return errors.Join(http.ErrServerClosed, ln.Close())
	}
	s.listeners[l] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	err := serve(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	if s.planned() != stay && errors.Is(err, net.ErrClosed) {
		return http.ErrServerClosed
	}
	return err
}

// serveHanded serves what is handed over, from the first Accept of a listener of the
// program's on: its call has set the server up by then. Of ServeTLS and Serve whichever
// does so first decides whether HTTP/2 is spoken.
func (s *Server) serveHanded(addr net.Addr) {
	s.joined.Do(func() {
		handed := &listener{Listener: s.handed, wrap: s.wrap, addr: addr, begins: func() {}}
		s.serving.Go(func() { _ = s.srv.Serve(handed) }) // until it is closed
	})
}

// listener accepts what the server sees.
type listener struct {
	net.Listener
	wrap   func(net.Conn) net.Conn
	addr   net.Addr // for BaseContext
	begins func()   // comes before each Accept
}

func (l *listener) Accept() (net.Conn, error) {
	l.begins()
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wrap(c), nil
}

func (l *listener) Addr() net.Addr { return l.addr }

func asItIs(c net.Conn) net.Conn { return c }

// wrap makes a Conn of what can move. Another type is unknown here, and may have read
// more than it has given out.
func (s *Server) wrap(accepted net.Conn) net.Conn {
	c := &Conn{server: s}
	switch a := accepted.(type) {
	case *net.TCPConn, *net.UnixConn:
		c.below = a
		return c
	case *crossfade.HandedTCPConn:
		c.below, c.unread = a.TCPConn, a.TakeUnread()
	case *crossfade.HandedUnixConn:
		c.below, c.unread = a.UnixConn, a.TakeUnread()
	default:
		return accepted
	}
	came, _ := crossfade.HandOverOf(accepted)
	if string(came.State) == stateIdle {
		c.idle = idleArrival{came: true, limit: max(0, s.idleTimeout())}
	}
	return c
}

// idleTimeout is the one that the server uses.
func (s *Server) idleTimeout() time.Duration {
	if s.srv.IdleTimeout != 0 {
		return s.srv.IdleTimeout
	}
	return s.srv.ReadTimeout
}

// addHooks has the server tell of its connections.
func (s *Server) addHooks() {
	connContext, connState, handler := s.srv.ConnContext, s.srv.ConnState, s.srv.Handler
	s.srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		s.track(c)
		if connContext != nil {
			if ctx = connContext(ctx, c); ctx == nil {
				return nil // which is the server's to complain of
			}
		}
		return context.WithValue(ctx, connKey{s}, c)
	}
	s.srv.ConnState = func(c net.Conn, state http.ConnState) {
		if connState != nil {
			connState(c, state)
		}
		s.follow(c, state)
	}
	s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(connKey{s}).(net.Conn)
		if s.endsWithResponse(c) && !mayUpgrade(r) {
			// For HTTP/2 too, where net/http makes a GOAWAY of it.
			w.Header().Set("Connection", "close")
		}
		if handler == nil {
			http.DefaultServeMux.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// mayUpgrade reports whether the response may be one to an upgrade, whose Connection is
// its own. Some clients offer h2c with each request (Java's HttpClient does); whoever
// accepts that hijacks, and writes the response itself.
func mayUpgrade(r *http.Request) bool {
	upgrade := r.Header.Get("Upgrade")
	return upgrade != "" && !strings.EqualFold(upgrade, "h2c")
}

// connKey leads from a request to its connection.
type connKey struct{ s *Server }

func (s *Server) planned() plan { return plan(s.plan.Load()) }

// endsWithResponse reports whether the client shall not send another request.
func (s *Server) endsWithResponse(c net.Conn) bool {
	switch s.planned() {
	case stay:
		return false
	case move:
		own, ok := c.(*Conn)
		return !ok || !own.canMove()
	default:
		return true
	}
}

// tracked is a connection of the server that is neither closed nor hijacked.
type tracked struct {
	mu    sync.Mutex
	state http.ConnState
	http2 bool
}

// counts are the connections by what is done with them. Each is exact at every moment,
// which a sum of several would not be.
type counts struct {
	http1     atomic.Int64 // those that are to move, or to be told in a response to go
	inRequest atomic.Int64 // of these, those that may be in a request, or before the first
	active    atomic.Int64 // of these, those that are in a request
	http2     atomic.Int64
}

// add counts a connection, or with a d of -1 does not count it any more.
func (n *counts) add(t *tracked, d int64) {
	if t.http2 {
		n.http2.Add(d)
		return
	}
	n.http1.Add(d)
	if t.state != http.StateIdle {
		n.inRequest.Add(d)
	}
	if t.state == http.StateActive {
		n.active.Add(d)
	}
}

func (s *Server) track(c net.Conn) {
	if !reflect.TypeOf(c).Comparable() {
		return // a listener's own type, which only the server can follow
	}
	t := &tracked{state: http.StateNew}
	s.count.add(t, 1)
	s.conns.Store(c, t)
	// Shutdown sets the plan before it looks for connections.
	if own, ok := c.(*Conn); ok && s.planned() == move {
		own.want()
	}
}

// follow is the server's ConnState.
func (s *Server) follow(c net.Conn, state http.ConnState) {
	if own, ok := c.(*Conn); ok {
		own.state(state)
	}
	if !reflect.TypeOf(c).Comparable() {
		return
	}
	found, ok := s.conns.Load(c)
	if !ok {
		return
	}
	t := found.(*tracked)
	t.mu.Lock()
	before := tracked{state: t.state, http2: t.http2}
	t.state = state
	if state == http.StateHijacked || state == http.StateClosed {
		s.conns.Delete(c)
	} else {
		t.http2 = t.http2 || state != http.StateNew && speaksHTTP2(c)
		s.count.add(t, 1) // first, so that no count is zero in between
	}
	s.count.add(&before, -1)
	t.mu.Unlock()
	if s.planned() == stay {
		return
	}
	select {
	case s.changed <- struct{}{}:
	default: // it was told
	}
}

// speaksHTTP2 is for a connection on which something was read.
func speaksHTTP2(c net.Conn) bool {
	switch c := c.(type) {
	case *Conn:
		return c.http2()
	case *tls.Conn:
		return c.ConnectionState().NegotiatedProtocol == "h2"
	default:
		return false
	}
}

// handOver gives a connection to the successor and reports whether it is not this
// process's any more. Without a slot it waits for one.
func (s *Server) handOver(c net.Conn, unread []byte, state string, slot bool) bool {
	s.mu.Lock()
	ctx := s.drain
	s.mu.Unlock()
	var err error
	if slot || s.takeSlot(ctx) {
		err = s.upg.HandOverConn(ctx, s.name, c, &crossfade.HandOver{Unread: unread, State: []byte(state)})
		s.freeSlot()
	} else {
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || errors.Is(err, crossfade.ErrOutcomeUnknown) {
		s.moved++
		return true
	}
	s.kept++
	if s.failure == nil {
		s.failure = err
		slog.Warn("a connection has not moved to the successor: it is told to close in its next response, and so are others",
			"listener", s.name, "client", c.RemoteAddr().String(), "err", err)
	}
	return false
}

// takeSlot reports false if ctx has ended before.
func (s *Server) takeSlot(ctx context.Context) bool {
	select {
	case s.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Server) freeSlot() { <-s.slots }

// Stats are the connections that Shutdown has dealt with so far.
type Stats struct {
	Moved int // to the successor
	Kept  int // could have moved, but were not taken
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Moved: s.moved, Kept: s.kept}
}

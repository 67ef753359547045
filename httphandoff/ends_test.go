//go:build unix

package httphandoff_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/httphandoff"
)

// failing is an Upgrader whose successor takes nothing.
type failing struct {
	*crossfade.Upgrader
	err  error
	once func() // called before the first failure
	mu   sync.Mutex
}

func (f *failing) HandOverConn(context.Context, string, net.Conn, *crossfade.HandOver) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.once != nil {
		f.once()
		f.once = nil
	}
	return f.err
}

func (s *side) expectKept(t *testing.T, want int) {
	t.Helper()
	if got := s.Stats(); got.Kept != want || got.Moved != 0 {
		t.Errorf("%+v, want %d kept and none moved", got, want)
	}
}

// What the successor does not take goes on here, and is told to close in a response.
func TestNotTaken(t *testing.T) {
	t.Run("by a successor that does not use the package", func(t *testing.T) {
		st := newStage(t, options{})
		idle, fresh, busy := st.dial(), st.dial(), st.dial()
		idle.wants("before", idle.get("/who"), "old")
		busy.send("GET /wait HTTP/1.1\nHost: x\n\n")
		<-st.old.inHandler
		st.upgrade(options{without: true})
		eventually(func() bool { return st.old.Stats().Kept == 2 })
		idle.wants("idle", idle.get("/who"), "old close")
		idle.ended()
		fresh.wants("new", fresh.get("/who"), "old close")
		fresh.ended()
		close(st.old.release)
		busy.wants("in a handler", busy.answer("GET"), "old")
		busy.wants("then", busy.get("/who"), "old close")
		st.old.ends(t)
		st.old.expectKept(t, 3)
	})
	t.Run("by one that has gone, while a request comes", func(t *testing.T) {
		// The request comes while the connection is on its way.
		var c *client
		st := newStage(t, options{behind: func(upg *crossfade.Upgrader) httphandoff.Upgrader {
			return &failing{Upgrader: upg, err: crossfade.ErrLost, once: func() { c.send("GET /who HTTP/1.1\nHost: x\n\n") }}
		}})
		c = st.dial()
		c.wants("before", c.get("/who"), "old")
		st.old.reaches(t, http.StateIdle)
		st.upgrade(options{})
		c.wants("on its way", c.answer("GET"), "old close")
		c.ended()
		st.old.ends(t)
		st.old.expectKept(t, 1)
	})
	t.Run("and with bytes of a request", func(t *testing.T) {
		st := newStage(t, options{behind: func(upg *crossfade.Upgrader) httphandoff.Upgrader {
			return &failing{Upgrader: upg, err: crossfade.ErrNotTaken}
		}})
		c := st.dial()
		c.send("GET /wait HTTP/1.1\nHost: x\n\nGET")
		<-st.old.inHandler
		st.upgrade(options{})
		close(st.old.release)
		c.wants("first", c.answer("GET"), "old")
		st.old.reaches(t, http.StateIdle)
		eventually(func() bool { return st.old.Stats().Kept == 1 })
		c.send(" /who HTTP/1.1\nHost: x\n\n")
		c.wants("second", c.answer("GET"), "old close")
		st.old.ends(t)
	})
	t.Run("and a client that offers HTTP/2 with each request", func(t *testing.T) {
		st := newStage(t, options{})
		c := st.dial()
		c.wants("before", c.get("/who"), "old")
		st.upgrade(options{without: true})
		eventually(func() bool { return st.old.Stats().Kept == 1 })
		c.send("GET /who HTTP/1.1\nHost: x\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: \n\n")
		c.wants("after", c.answer("GET"), "old close")
		st.old.ends(t)
	})
	t.Run("and the end of the drain closes it", func(t *testing.T) {
		st := newStage(t, options{behind: func(upg *crossfade.Upgrader) httphandoff.Upgrader {
			return &failing{Upgrader: upg, err: crossfade.ErrNotTaken}
		}})
		c := st.dial()
		c.wants("before", c.get("/who"), "old")
		st.old.reaches(t, http.StateIdle)
		st.next = st.side("next", options{})
		<-st.old.upg.Exit()
		drain, end := context.WithCancel(t.Context())
		go func() { st.old.ended <- st.old.Shutdown(drain) }()
		eventually(func() bool { return st.old.Stats().Kept == 1 })
		end()
		if err := <-st.old.ended; !errors.Is(err, context.Canceled) && err != nil {
			t.Errorf("Shutdown returns %v", err)
		}
		c.ended()
	})
	t.Run("but with an unknown outcome nobody touches it", func(t *testing.T) {
		var own *httphandoff.Conn
		st := newStage(t, options{behind: func(upg *crossfade.Upgrader) httphandoff.Upgrader {
			return &failing{Upgrader: upg, err: crossfade.ErrOutcomeUnknown, once: func() { own.Close() }}
		}})
		c := st.dial()
		c.wants("before", c.get("/who"), "old")
		own = (<-st.old.accepted).(*httphandoff.Conn)
		st.upgrade(options{})
		st.old.ends(t)
		if _, err := own.NetConn().Write([]byte("x")); err != nil {
			t.Errorf("it was closed: %v", err)
		}
		must(t, own.NetConn().Close())
	})
}

// certificate is that of httptest, and what trusts it.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	ts := httptest.NewUnstartedServer(http.NotFoundHandler())
	ts.EnableHTTP2 = true
	ts.StartTLS()
	defer ts.Close()
	client = ts.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	client.ServerName = "example.com"
	return &tls.Config{Certificates: ts.TLS.Certificates}, client
}

func withTLS(config *tls.Config) options {
	return options{
		configure: func(s *side) { s.srv.TLSConfig = config.Clone() },
		serve:     func(s *side, ln net.Listener) error { return s.ServeTLS(ln, "", "") },
	}
}

// Connections with TLS stay, and are told to close.
func TestTLS(t *testing.T) {
	server, config := certificate(t)
	for _, test := range []struct {
		name string
		o    options
	}{
		{"ServeTLS", withTLS(server)},
		{"tls.NewListener", options{serve: func(s *side, ln net.Listener) error { return s.Serve(tls.NewListener(ln, server)) }}},
	} {
		t.Run(test.name, func(t *testing.T) {
			st := newStage(t, test.o)
			dial := func() *client {
				c, err := tls.Dial("tcp", st.address, config)
				must(t, err)
				return newClient(t, c)
			}
			idle, fresh, busy := dial(), dial(), dial()
			idle.wants("before", idle.get("/who"), "old")
			busy.send("GET /wait HTTP/1.1\nHost: x\n\n")
			<-st.old.inHandler
			st.upgrade(test.o)
			close(st.old.release)
			busy.wants("in a handler", busy.answer("GET"), "old")
			for _, c := range []*client{busy, fresh, idle} {
				c.wants("then", c.get("/who"), "old close")
				c.ended()
			}
			st.old.ends(t)
			late := dial()
			late.wants("another", late.get("/who"), "next")
			st.old.expectKept(t, 0)
		})
	}
}

// The first call of Serve or ServeTLS decides whether a server speaks HTTP/2. So that
// must be the program's, not the one for what is handed over.
func TestServesHandedOverLast(t *testing.T) {
	st := newStage(t, options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	web := httphandoff.New(st.old.upg, &http.Server{BaseContext: func(net.Listener) context.Context {
		t.Error("something is served although ServeTLS has failed")
		return t.Context()
	}}, "tls")
	if err := web.ServeTLS(ln, "/nonexistent", "/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ServeTLS returns %v", err)
	}
	must(t, web.Shutdown(t.Context())) // waits for all calls of Serve
}

// HTTP/2 is told to go, and what is under way ends here.
func TestHTTP2(t *testing.T) {
	server, config := certificate(t)
	for _, test := range []struct {
		name      string
		o         options
		transport func(*http.Transport)
		scheme    string
	}{
		{"TLS", withTLS(server), func(tr *http.Transport) { tr.TLSClientConfig, tr.ForceAttemptHTTP2 = config, true }, "https://"},
		{"unencrypted", options{configure: withHTTP2}, func(tr *http.Transport) {
			tr.Protocols = new(http.Protocols)
			tr.Protocols.SetUnencryptedHTTP2(true)
		}, "http://"},
	} {
		t.Run(test.name, func(t *testing.T) {
			st := newStage(t, test.o)
			tr := new(http.Transport)
			test.transport(tr)
			defer tr.CloseIdleConnections()
			get := func(path string) string {
				resp, err := (&http.Client{Transport: tr}).Get(test.scheme + st.address + path)
				if err != nil {
					t.Errorf("%s: %v", path, err)
					return ""
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.ProtoMajor != 2 {
					t.Errorf("%s: %s, %v", path, resp.Proto, err)
				}
				return string(body)
			}
			if who := get("/who"); who != "old" {
				t.Fatalf("before: %q", who)
			}
			waits := make(chan string, 1)
			go func() { waits <- get("/wait") }()
			<-st.old.inHandler
			st.upgrade(test.o)
			close(st.old.release)
			if who := <-waits; who != "old" {
				t.Errorf("in the handler: %q", who)
			}
			for range limit / time.Millisecond { // until GOAWAY has been read
				if get("/who") == "next" {
					break
				}
			}
			st.old.ends(t)
			if who := get("/who"); who != "next" {
				t.Errorf("after: %q", who)
			}
			st.old.expectKept(t, 0)
		})
	}
}

// A moved connection that was idle may be so for as long as IdleTimeout allows, and
// its limits begin with the next request.
func TestMovedConnectionIsIdle(t *testing.T) {
	const short, longer = 100 * time.Millisecond, 300 * time.Millisecond
	silent := func() { <-time.After(longer) }
	post := func(st *stage, c *client) string {
		c.send("POST /echo HTTP/1.1\nHost: x\nContent-Length: 4\n\nbo")
		st.next.reaches(st.t, http.StateActive) // so that the rest is read by another Read
		c.send("dy")
		return c.answer("POST")
	}
	start := func(t *testing.T, configure func(*http.Server)) (*stage, *client) {
		st := newStage(t, options{})
		c := st.dial()
		c.wants("before", c.get("/who"), "old")
		st.upgrade(options{configure: func(s *side) { configure(s.srv) }})
		st.old.ends(t)
		st.next.reaches(t, http.StateNew)
		return st, c
	}
	t.Run("longer than the limits of a request", func(t *testing.T) {
		st, c := start(t, func(srv *http.Server) {
			srv.ReadTimeout, srv.ReadHeaderTimeout, srv.IdleTimeout = short, short, limit
		})
		silent()
		c.wants("after a silence", post(st, c), "next body ")
		silent()
		c.wants("after another", post(st, c), "next body ")
	})
	t.Run("not longer than IdleTimeout", func(t *testing.T) {
		_, c := start(t, func(srv *http.Server) { srv.ReadHeaderTimeout, srv.IdleTimeout = limit, short })
		c.ended()
	})
	t.Run("not longer than ReadTimeout in its place", func(t *testing.T) {
		_, c := start(t, func(srv *http.Server) { srv.ReadTimeout, srv.ReadHeaderTimeout = short, limit })
		c.ended()
	})
	t.Run("and then as long for a header as ReadHeaderTimeout", func(t *testing.T) {
		_, c := start(t, func(srv *http.Server) { srv.ReadHeaderTimeout, srv.IdleTimeout = short, limit })
		silent()
		c.send("GET /who HT")
		if resp := c.response("GET"); resp.code != http.StatusBadRequest || !resp.last {
			t.Errorf("half a request is answered with %+v", resp)
		}
	})
	t.Run("unless nothing had ever come on it", func(t *testing.T) {
		st := newStage(t, options{})
		c := st.dial()
		st.old.reaches(t, http.StateNew)
		st.upgrade(options{configure: func(s *side) { s.srv.ReadHeaderTimeout, s.srv.IdleTimeout = short, limit }})
		st.old.ends(t)
		c.ended()
	})
}

// The limits of the server that hands over hold until it does.
func TestLimitsWithoutAMove(t *testing.T) {
	st := newStage(t, options{configure: func(s *side) { s.srv.IdleTimeout = 50 * time.Millisecond }})
	c := st.dial()
	c.wants("a request", c.get("/who"), "old")
	c.ended()
}

// Without a successor nothing moves, and no request is dropped that can be seen.
func TestStop(t *testing.T) {
	st := newStage(t, options{})
	idle, fresh, busy := st.dial(), st.dial(), st.dial()
	idle.wants("before", idle.get("/who"), "old")
	st.old.reaches(t, http.StateIdle)
	busy.send("GET /wait HTTP/1.1\nHost: x\n\n")
	<-st.old.inHandler
	st.old.upg.Stop()
	st.old.shutdown(t)
	fresh.wants("accepted before", fresh.get("/who"), "old close")
	close(st.old.release)
	busy.wants("in a handler", busy.answer("GET"), "old")
	idle.ended()
	st.old.ends(t)
	if err := st.old.Shutdown(t.Context()); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("a second Shutdown returns %v", err)
	}
}

// What came to a process that was replaced before it served goes on to the next.
func TestReplacedBeforeItServed(t *testing.T) {
	st := newStage(t, options{})
	c := st.dial()
	c.send("GET /wait HTTP/1.1\nHost: x\n\nGET")
	<-st.old.inHandler
	st.upgrade(options{serve: func(s *side, ln net.Listener) error {
		<-s.release
		return s.Serve(ln)
	}})
	between := st.next
	defer close(between.release)
	close(st.old.release)
	c.wants("before", c.answer("GET"), "old")
	st.old.ends(t)
	last := st.side("last", options{})
	<-between.upg.Exit()
	between.shutdown(t)
	between.ends(t)
	c.send(" /who HTTP/1.1\nHost: x\n\n")
	c.wants("after", c.answer("GET"), "last")
	last.reaches(t, http.StateIdle)
}

// After a rollback the predecessor serves: nobody is cut off.
func TestRolledBack(t *testing.T) {
	st := newStage(t, options{probation: limit})
	st.next = st.side("next", options{})
	// For an instant both accept.
	dial := func() *client {
		for {
			c := st.dial()
			select {
			case <-st.next.accepted:
				return c
			case <-st.old.accepted:
			}
		}
	}
	idle, fresh := dial(), dial()
	idle.wants("before", idle.get("/who"), "next")
	st.next.reaches(t, http.StateIdle)
	must(t, st.next.upg.Rollback(t.Context(), "a test"))
	st.next.shutdown(t)
	fresh.wants("accepted before", fresh.get("/who"), "next close")
	idle.wants("idle", idle.get("/who"), "next close")
	st.next.ends(t)
	later := st.dial()
	later.wants("afterwards", later.get("/who"), "old")
}

// The microsecond in which the connection is taken is that in which the client sends.
func TestSendsWhileItMoves(t *testing.T) {
	st := newStage(t, options{})
	const clients = 50
	var all []*client
	for range clients {
		c := st.dial()
		c.wants("before", c.get("/who"), "old")
		all = append(all, c)
	}
	st.next = st.side("next", options{})
	<-st.old.upg.Exit()
	start := make(chan struct{})
	var sending sync.WaitGroup
	answers := make(chan string, clients)
	for i, c := range all {
		sending.Go(func() {
			<-start
			for range i * 20 { // each a bit later than the one before
				_ = c.RemoteAddr().String()
			}
			for _, piece := range []string{"G", "ET /who HTTP/1.1\r\nHo", "st: x\r\n\r\n"} {
				if _, err := io.WriteString(c.Conn, piece); err != nil {
					answers <- err.Error()
					return
				}
			}
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				answers <- err.Error()
				return
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			answers <- string(body)
		})
	}
	close(start)
	st.old.shutdown(t)
	sending.Wait()
	for range clients {
		if who := <-answers; who != "old" && who != "next" {
			t.Errorf("an answer is %q", who)
		}
	}
	for _, c := range all {
		c.wants("after", c.get("/who"), "next")
	}
	st.old.ends(t)
}

// The program's hooks see what they would without the package.
func TestHooks(t *testing.T) {
	type key struct{}
	var mu sync.Mutex
	states := make(map[net.Conn][]http.ConnState)
	st := newStage(t, options{configure: func(s *side) {
		s.srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, key{}, c) }
		s.srv.ConnState = func(c net.Conn, state http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			states[c] = append(states[c], state)
		}
		s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if states[r.Context().Value(key{}).(net.Conn)] == nil {
				t.Error("ConnContext and ConnState see different connections")
			}
		})
	}})
	c := st.dial()
	c.wants("before", c.get("/"), "")
	st.upgrade(options{})
	st.old.ends(t)
	eventually(func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, seen := range states {
			return seen[len(seen)-1] == http.StateClosed
		}
		return false
	})
	st.next.reaches(t, http.StateNew)
	c.wants("after", c.get("/who"), "next")
	st.next.reaches(t, http.StateIdle)
}

// waiting is an Upgrader whose successor does not answer until it is released.
type waiting struct {
	*crossfade.Upgrader
	called, release chan struct{}
}

func (w *waiting) HandOverConn(context.Context, string, net.Conn, *crossfade.HandOver) error {
	w.called <- struct{}{}
	<-w.release
	return crossfade.ErrNotTaken
}

// However slow the successor is, a connection is served here until its turn has come.
func TestServedBeforeItsTurn(t *testing.T) {
	const more = 10
	const clients = httphandoff.MaxMoving + more
	successor := &waiting{called: make(chan struct{}, clients), release: make(chan struct{})}
	st := newStage(t, options{behind: func(upg *crossfade.Upgrader) httphandoff.Upgrader {
		successor.Upgrader = upg
		return successor
	}})
	answers := make(chan string, clients)
	var all []*client
	for range clients {
		c := st.dial()
		c.wants("before", c.get("/who"), "old")
		all = append(all, c)
		st.old.reaches(t, http.StateIdle)
	}
	st.next = st.side("next", options{})
	<-st.old.upg.Exit()
	go func() { st.old.ended <- st.old.Shutdown(t.Context()) }()
	for range httphandoff.MaxMoving {
		<-successor.called
	}
	for _, c := range all {
		c.send("GET /who HTTP/1.1\nHost: x\n\n")
		go func() {
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				answers <- err.Error()
				return
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			answers <- string(body)
		}()
	}
	for i := range clients {
		if who := <-answers; who != "old" {
			t.Errorf("an answer is %q", who)
		}
		if i == more-1 {
			close(successor.release)
		}
	}
	for _, c := range all {
		c.Close()
	}
	st.old.ends(t)
}

// A stream that ends only when it is told to is told at once, and its connection moves.
func TestRegisterOnShutdown(t *testing.T) {
	st := newStage(t, options{})
	st.old.RegisterOnShutdown(func() { close(st.old.release) })
	c := st.dial()
	c.send("GET /stream HTTP/1.1\nHost: x\n\n")
	<-st.old.inHandler
	st.upgrade(options{})
	c.wants("the stream", c.answer("GET"), "old")
	c.wants("after", c.get("/who"), "next")
	st.old.ends(t)
	st.old.RegisterOnShutdown(func() { t.Error("a function is called that came too late") })
	if err := st.old.Shutdown(t.Context()); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("a second Shutdown returns %v", err)
	}
}

// A program that hijacks hands over by itself: here a line protocol with a count.
func TestHijacked(t *testing.T) {
	counting := func(s *side) *counter { return &counter{side: s, done: make(chan struct{})} }
	var old, next *counter
	st := newStage(t, options{configure: func(s *side) { old = counting(s); old.prepare() }})
	c := st.dial()
	c.send("GET /count HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: count\n\none\ntwo\nhal")
	line := func() string {
		t.Helper()
		text, err := c.r.ReadString('\n')
		must(t, err)
		return text
	}
	for _, want := range []string{"HTTP/1.1 101 Switching Protocols\r\n", "Connection: Upgrade\r\n", "Upgrade: count\r\n", "\r\n", "old 1 one\r\n", "old 2 two\r\n"} {
		if got := line(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	st.upgrade(options{configure: func(s *side) { next = counting(s); next.prepare() }})
	st.old.ends(t) // without the hijacked
	old.handOver(t)
	c.send("f\n")
	if got := line(); got != "next 3 half\r\n" {
		t.Errorf("after: %q", got)
	}
	c.Close()
	<-next.done
}

// counter serves the line protocol of TestHijacked.
type counter struct {
	*side
	conn  net.Conn
	lines *bufio.Reader
	count byte
	done  chan struct{} // closed when nobody reads any more
	rest  string        // of a line whose reading was ended
}

const countName = "count" // no Server has this name

// prepare comes before Ready.
func (n *counter) prepare() {
	mux := http.NewServeMux()
	mux.Handle("/", n.srv.Handler)
	mux.HandleFunc("/count", func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: count\r\n\r\n")
		n.conn, n.lines = conn, rw.Reader
		n.run()
	})
	n.srv.Handler = mux
	handed := n.upg.HandedOver(countName)
	go func() {
		conn, err := handed.Accept()
		if err != nil {
			return
		}
		came, _ := crossfade.HandOverOf(conn)
		n.conn, n.lines, n.count = conn, bufio.NewReader(conn), came.State[0]
		n.run()
	}()
}

func (n *counter) run() {
	defer close(n.done)
	for {
		line, err := n.lines.ReadString('\n')
		if err != nil {
			n.rest = line
			return
		}
		n.count++
		_, _ = io.WriteString(n.conn, n.name+" "+string('0'+rune(n.count))+" "+line)
	}
}

func (n *counter) handOver(t *testing.T) {
	must(t, n.conn.SetReadDeadline(time.Unix(1, 0)))
	<-n.done
	must(t, n.upg.HandOverConn(t.Context(), countName, n.conn, &crossfade.HandOver{
		Unread: append([]byte(n.rest), httphandoff.Unread(n.conn, n.lines)...),
		State:  []byte{n.count},
	}))
}

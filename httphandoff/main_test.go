//go:build unix

package httphandoff_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/httphandoff"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// limit bounds what must not hang.
const limit = 30 * time.Second

// What a predecessor leaves behind lasts as long as its process, which is that of the
// tests, so leaks cannot be looked for here.
func TestMain(m *testing.M) {
	reexec.Main(map[string]func(){"service": reexec.Checked(service)})
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// stage is a service whose predecessor and successor are both in this process.
type stage struct {
	t       *testing.T
	socket  string
	address string // where the service is, "" before the first side
	old     *side
	next    *side
}

// side is a process of the service, as far as it needs one.
type side struct {
	*httphandoff.Server
	name  string
	upg   *crossfade.Upgrader
	srv   *http.Server
	ended chan error // has room for what Shutdown returns

	inHandler chan string         // the paths of requests that wait to be released
	release   chan struct{}       // closed when they may go on
	states    chan http.ConnState // what ConnState has said, without an end
	accepted  chan net.Conn       // what ConnContext has seen, as well
}

// options are what a test changes.
type options struct {
	probation time.Duration                                  // that it grants
	configure func(*side)                                    // before Serve
	behind    func(*crossfade.Upgrader) httphandoff.Upgrader // nil: the Upgrader itself
	serve     func(s *side, ln net.Listener) error           // nil: Serve
	without   bool                                           // the successor does not use the package
}

func newStage(t *testing.T, o options) *stage {
	t.Helper()
	st := &stage{t: t, socket: socketPath(t), address: "127.0.0.1:0"}
	st.old = st.side("old", o)
	return st
}

// socketPath is where a control socket can be: the paths of t.TempDir are too long.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "httph")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// side starts one, which owns when it is returned.
func (st *stage) side(name string, o options) *side {
	t := st.t
	t.Helper()
	upg, err := crossfade.New(t.Context(), &crossfade.Config{
		Socket: st.socket, DrainTimeout: limit, Probation: o.probation,
		OnDrainTimeout: func() {}, // the process of a test goes on when a server in it was replaced
	})
	must(t, err)
	t.Cleanup(upg.Stop)
	ln, err := upg.Listen(t.Context(), "http", "tcp", st.address)
	must(t, err)
	st.address = ln.Addr().String()
	s := &side{
		name: name, upg: upg, ended: make(chan error, 1),
		inHandler: make(chan string, 100), release: make(chan struct{}), states: make(chan http.ConnState, 1000), accepted: make(chan net.Conn, 100),
	}
	s.srv = &http.Server{
		Handler:   s.handler(),
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		ConnState: func(_ net.Conn, state http.ConnState) { s.states <- state },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			s.accepted <- c
			return ctx
		},
	}
	if o.configure != nil {
		o.configure(s)
	}
	t.Cleanup(func() { s.srv.Close() })
	if o.without {
		go s.srv.Serve(ln)
		must(t, upg.Ready(t.Context()))
		return s
	}
	var behind httphandoff.Upgrader = upg
	if o.behind != nil {
		behind = o.behind(upg)
	}
	s.Server = httphandoff.NewBehind(behind, s.srv, "http")
	served := make(chan error, 1)
	go func() {
		if o.serve != nil {
			served <- o.serve(s, ln)
		} else {
			served <- s.Serve(ln)
		}
	}()
	must(t, upg.Ready(t.Context()))
	t.Cleanup(func() {
		if !errors.Is(upg.Err(), crossfade.ErrRetired) {
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			_ = s.Shutdown(ended)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("%s: Serve returns %v", name, err)
		}
	})
	return s
}

// upgrade starts the successor, and with it the old side's Shutdown.
func (st *stage) upgrade(o options) {
	st.t.Helper()
	st.next = st.side("next", o)
	<-st.old.upg.Exit()
	st.old.shutdown(st.t)
}

// shutdown ends a side as a program does, and returns when no connection can be served by mistake.
func (s *side) shutdown(t *testing.T) {
	drain, cancel := s.upg.DrainContext(context.Background())
	t.Cleanup(cancel)
	go func() { s.ended <- s.Shutdown(drain) }()
	eventually(func() bool { return httphandoff.AllTold(s.Server) })
}

// eventually waits for what there is no event for.
func eventually(happened func() bool) {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for !happened() {
		<-ticker.C
	}
}

// ends expects the end of a Shutdown.
func (s *side) ends(t *testing.T) {
	t.Helper()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("%s: Shutdown returns %v", s.name, err)
		}
	case <-time.After(limit):
		t.Fatalf("%s: Shutdown does not return", s.name)
	}
}

// reaches waits until the server says that a connection is in a state.
func (s *side) reaches(t *testing.T, want http.ConnState) {
	t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case got := <-s.states:
			if got == want {
				return
			}
		case <-timeout:
			t.Fatalf("%s: no connection becomes %s", s.name, want)
		}
	}
}

// handler answers with the name of its side.
func (s *side) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/who", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s.name) })
	mux.HandleFunc("/wait", func(w http.ResponseWriter, r *http.Request) {
		s.inHandler <- r.URL.Path
		<-s.release
		io.WriteString(w, s.name)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%s %s %s", s.name, body, r.Trailer.Get("Check"))
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "Check")
		io.WriteString(w, s.name)
		_ = http.NewResponseController(w).Flush()
		s.inHandler <- "/stream"
		<-s.release
		w.Header().Set("Check", "yes")
	})
	mux.HandleFunc("/unchanged", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })
	return mux
}

// client is a raw client.
type client struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func (st *stage) dial() *client {
	st.t.Helper()
	c, err := net.Dial("tcp", st.address)
	must(st.t, err)
	return newClient(st.t, c)
}

func newClient(t *testing.T, c net.Conn) *client {
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(limit))
	return &client{Conn: c, t: t, r: bufio.NewReader(c)}
}

func (c *client) send(text string) {
	c.t.Helper()
	_, err := io.WriteString(c.Conn, strings.ReplaceAll(text, "\n", "\r\n"))
	must(c.t, err)
}

// get sends a request and returns who has answered.
func (c *client) get(path string) string {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\nHost: x\n\n")
	return c.answer("GET")
}

// answer reads a response and returns its body, and whether it says that the connection
// ends.
func (c *client) answer(method string) string {
	c.t.Helper()
	resp := c.response(method)
	if resp.last {
		return resp.body + " close"
	}
	return resp.body
}

// response is one that was read to its end.
type response struct {
	code    int
	body    string
	trailer http.Header
	last    bool
}

func (c *client) response(method string) response {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no response: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(c.t, err)
	return response{resp.StatusCode, string(body), resp.Trailer, resp.Close}
}

func (c *client) wants(what, got, want string) {
	c.t.Helper()
	if got != want {
		c.t.Fatalf("%s: the answer is %q, want %q", what, got, want)
	}
}

// ended expects that the server closes the connection.
func (c *client) ended() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); len(rest) > 0 || err != nil {
		c.t.Errorf("instead of its end the connection has %q, %v", rest, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

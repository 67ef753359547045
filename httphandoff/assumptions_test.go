//go:build unix

package httphandoff_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/httphandoff"
)

// recorder is a connection that writes down what the server does with it. What Read
// returns is scripted: a call that finds nothing waits.
type recorder struct {
	net.Conn
	reads      chan string    // what Reads get, one each; EOF when it is closed
	background chan byte      // what Reads of a single byte get
	taken      sync.WaitGroup // for what of background was not read
	past       chan struct{}  // has an element for each past deadline
	ended      chan struct{}

	mu    sync.Mutex
	calls []string
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *recorder) Read(p []byte) (int, error) {
	if len(p) == 1 {
		select {
		case p[0] = <-r.background:
			r.taken.Done()
			<-r.past // of the end of the request: the server thinks that it has ended the Read
			return 1, nil
		case <-r.past:
			return 0, os.ErrDeadlineExceeded
		}
	}
	r.note("read %d", len(p))
	text, ok := <-r.reads
	if !ok {
		return 0, io.EOF
	}
	if len(text) > len(p) {
		panic("the script gives more than fits")
	}
	return copy(p, text), nil
}

func (r *recorder) Write(p []byte) (int, error) {
	if strings.HasPrefix(string(p), "HTTP/1.1") {
		r.note("response")
	}
	return len(p), nil
}

func (r *recorder) SetReadDeadline(t time.Time) error {
	switch {
	case t.IsZero():
		r.note("no deadline")
	case t.Before(time.Now()):
		r.note("past deadline")
		r.past <- struct{}{}
	default:
		r.note("deadline")
	}
	return nil
}

func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (r *recorder) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (r *recorder) Close() error                     { r.note("close"); return nil }

// one is a listener with one connection.
type one struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *one) Close() error   { close(l.closed); return nil }
func (l *one) Addr() net.Addr { return &net.TCPAddr{} }

// TestAssumptions records what the server of this Go release does with a connection
// and compares it with what assumptions.go rests on. If it fails on a new release,
// read conn.serve there before anything is changed here: until both agree again,
// requests can be lost.
func TestAssumptions(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	const post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nb"
	full := fmt.Sprintf("read %d", httphandoff.BufferSize)
	less := func(n int) string { return fmt.Sprintf("read %d", httphandoff.BufferSize-n) }
	plain := func(*http.Server) {}
	limited := func(srv *http.Server) {
		srv.ReadTimeout, srv.ReadHeaderTimeout, srv.IdleTimeout = time.Hour, time.Hour, time.Hour
	}
	http2 := func(srv *http.Server) {
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
	}
	for _, test := range []struct {
		name      string
		configure func(*http.Server)
		reads     []string
		// What is recorded from the first StateIdle on.
		want []string
	}{
		{"a request", plain, []string{get}, []string{"idle", "no deadline", full, "close", "closed"}},
		{
			"with limits", limited,
			[]string{get},
			[]string{"idle", "deadline", full, "close", "closed"},
		},
		{
			"two requests", plain,
			[]string{get, get},
			[]string{"idle", "no deadline", full, "no deadline", "no deadline", "active", "no deadline", "response", "idle", "no deadline", full, "close", "closed"},
		},
		{
			"a POST", plain,
			[]string{post},
			[]string{"idle", "no deadline", full, "close", "closed"},
		},
		{
			"three bytes of a second one", plain,
			[]string{get + "GET"},
			[]string{"idle", "no deadline", less(3), "close", "closed"},
		},
		{
			"four bytes of a second one", plain,
			[]string{get + "GET "},
			[]string{"idle", "no deadline", "no deadline", less(4)},
		},
		{
			"a line of a second one", plain,
			[]string{get + "GET / HTTP/1.1\r\n"},
			[]string{"idle", "no deadline", "no deadline", full},
		},
		{
			"a second one as a whole", plain,
			[]string{get + get},
			[]string{"idle", "no deadline", "no deadline", "no deadline", "active", "no deadline", "response", "idle", "no deadline", full, "close", "closed"},
		},
		{
			"a byte that the background has read", plain,
			[]string{get, "&G", "ET / HTTP/1.1\r\nHost: x\r\n\r\n"},
			[]string{"idle", "no deadline", less(1), "no deadline", "no deadline", "active"},
		},
		{
			"where HTTP/2 is allowed", http2,
			[]string{get[:14], get[14:]},
			[]string{"idle", "no deadline", full, "close", "closed"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			calls := record(t, test.configure, test.reads)
			i := slices.Index(calls, "idle")
			if i < 0 {
				t.Fatalf("the server never says that it is idle: %q", calls)
			}
			got, want := normal(calls[i:]), normal(test.want)
			if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
				t.Errorf("with %s the server does\n%q, expected\n%q,\nof all\n%q", runtime.Version(), got, want, calls)
			}
		})
	}
}

// normal leaves out the deadlines between the beginning of a request and its response:
// those belong to the background read.
func normal(calls []string) []string {
	var kept []string
	inRequest := false
	for _, call := range calls {
		switch call {
		case "active":
			inRequest = true
		case "idle":
			inRequest = false
		}
		if inRequest && strings.HasSuffix(call, "deadline") {
			continue
		}
		kept = append(kept, call)
	}
	return kept
}

// record serves one connection whose Reads get what is given, and then EOF.
func record(t *testing.T, configure func(*http.Server), reads []string) []string {
	t.Helper()
	r := &recorder{
		reads: make(chan string, len(reads)), background: make(chan byte, len(reads)),
		past: make(chan struct{}, 100), ended: make(chan struct{}),
	}
	ln := &one{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	srv := &http.Server{
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			_, _ = io.ReadAll(req.Body)
			r.taken.Wait()
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			r.note("%s", state)
			if state == http.StateClosed {
				close(r.ended)
			}
		},
	}
	configure(srv)
	for _, text := range reads {
		if b, ok := strings.CutPrefix(text, "&"); ok {
			r.taken.Add(1)
			r.background <- b[0]
			continue
		}
		r.reads <- text
	}
	close(r.reads)
	ln.conn <- r
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	<-r.ended
	srv.Close()
	<-served
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

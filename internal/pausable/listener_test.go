package pausable_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/pausable"
	"github.com/crossfade-go/crossfade/scm"
)

func TestListenerStartsPaused(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			fd := listening(t, network)
			l := listener(t, fd, pausable.ListenerOptions{})
			results := accept(t, l, 1)
			dial(t, l.Addr())
			served(t, accept(t, other(t, fd), 1))
			nothing(t, results)

			resume(t, l)
			dial(t, l.Addr())
			served(t, results)
		})
	}
}

func TestPauseHoldsBackAcceptsInFlight(t *testing.T) {
	const n = 8
	fd := listening(t, "tcp")
	l := listener(t, fd, pausable.ListenerOptions{})
	results := accept(t, l, n)
	for range 3 {
		resume(t, l)
		awaitInFlight(l, n)
		l.Pause()
		if left := pausable.InFlight(l); left != 0 {
			t.Fatalf("%d accepts in flight after Pause", left)
		}
		dial(t, l.Addr())
		served(t, accept(t, other(t, fd), 1))
		nothing(t, results)
	}
	resume(t, l)
	for range n {
		dial(t, l.Addr())
		served(t, results)
	}
}

func TestConnectionQueuedWhilePaused(t *testing.T) {
	tests := map[string]func(t *testing.T, fd *scm.FD, l *pausable.Listener) net.Listener{
		"is served by the listener after Resume": func(t *testing.T, _ *scm.FD, l *pausable.Listener) net.Listener {
			resume(t, l)
			return l
		},
		"is served by another holder": func(t *testing.T, fd *scm.FD, _ *pausable.Listener) net.Listener {
			return other(t, fd)
		},
		"outlives the listener": func(t *testing.T, fd *scm.FD, l *pausable.Listener) net.Listener {
			l.Close()
			return other(t, fd)
		},
	}
	for name, server := range tests {
		t.Run(name, func(t *testing.T) {
			fd := listening(t, "tcp")
			l := listener(t, fd, pausable.ListenerOptions{})
			resume(t, l)
			l.Pause()
			c := dial(t, l.Addr())
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			r := <-accept(t, server(t, fd, l), 1)
			if r.err != nil {
				t.Fatal(r.err)
			}
			defer r.conn.Close()
			got := make([]byte, 5)
			if _, err := io.ReadFull(r.conn, got); err != nil || string(got) != "hello" {
				t.Fatalf("read %q, %v", got, err)
			}
		})
	}
}

// Two listeners on one socket take turns under a dialling load, as predecessor
// and successor do. Whoever dials is answered, once.
func TestTurnsLoseNoConnection(t *testing.T) {
	const turns, dialers = 60, 4
	fd := listening(t, "tcp")
	twin, err := fd.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	sides := []*pausable.Listener{listener(t, fd, pausable.ListenerOptions{}), listener(t, twin, pausable.ListenerOptions{})}

	// Each answer is announced, so that a turn ends only after one was given in it.
	answers := make([]chan struct{}, len(sides))
	var answered atomic.Int64
	var servers, clients sync.WaitGroup
	for i, l := range sides {
		answers[i] = make(chan struct{}, 1)
		for range 3 {
			servers.Go(func() {
				for {
					c, err := l.Accept()
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("Accept: %v", err)
						return
					}
					if _, err := c.Write([]byte{'a' + byte(i)}); err != nil {
						t.Errorf("answering: %v", err)
					}
					c.Close()
					answered.Add(1)
					select {
					case answers[i] <- struct{}{}:
					default: // one is enough
					}
				}
			})
		}
	}

	var stop atomic.Bool
	var dialled atomic.Int64
	for range dialers {
		clients.Go(func() {
			for !stop.Load() {
				c, err := net.Dial("tcp", sides[0].Addr().String())
				if err != nil {
					t.Errorf("refused: %v", err)
					return
				}
				dialled.Add(1)
				answer, err := io.ReadAll(c)
				if err != nil || len(answer) != 1 {
					t.Errorf("answer %q, %v; want one byte", answer, err)
				}
				c.Close()
			}
		})
	}

	for turn := range turns {
		at := turn % len(sides)
		select {
		case <-answers[at]: // of an earlier turn
		default:
		}
		resume(t, sides[at])
		<-answers[at]
		sides[at].Pause()
	}
	// Whoever has dialled by now is still to be answered.
	stop.Store(true)
	resume(t, sides[0])
	clients.Wait()
	for _, l := range sides {
		l.Close()
	}
	servers.Wait()
	if d, a := dialled.Load(), answered.Load(); d != a {
		t.Fatalf("%d connections dialled, %d answered", d, a)
	}
}

func TestListenerDeadline(t *testing.T) {
	states := map[string]func(t *testing.T, l *pausable.Listener){
		"paused":  func(*testing.T, *pausable.Listener) {},
		"running": resume,
		"paused again": func(t *testing.T, l *pausable.Listener) {
			resume(t, l)
			l.Pause()
		},
		"retired": func(_ *testing.T, l *pausable.Listener) { l.Retire() },
	}
	tests := map[string]func(t *testing.T, l *pausable.Listener, enter func()) error{
		"passed before Accept": func(t *testing.T, l *pausable.Listener, enter func()) error {
			enter()
			set(t, l, past())
			_, err := l.Accept()
			return err
		},
		"set before the state": func(t *testing.T, l *pausable.Listener, enter func()) error {
			set(t, l, past())
			enter()
			_, err := l.Accept()
			return err
		},
		"passes during Accept": func(t *testing.T, l *pausable.Listener, enter func()) error {
			enter()
			set(t, l, time.Now().Add(time.Millisecond))
			_, err := l.Accept()
			return err
		},
		"without a monotonic reading": func(t *testing.T, l *pausable.Listener, enter func()) error {
			enter()
			set(t, l, time.Now().Add(time.Millisecond).Round(0))
			_, err := l.Accept()
			return err
		},
		"passes while the state changes": func(t *testing.T, l *pausable.Listener, enter func()) error {
			set(t, l, time.Now().Add(time.Millisecond))
			results := accept(t, l, 1)
			enter()
			return (<-results).err
		},
		"shortened during Accept": func(t *testing.T, l *pausable.Listener, enter func()) error {
			set(t, l, never())
			results := accept(t, l, 1)
			enter()
			set(t, l, past())
			return (<-results).err
		},
	}
	// What package net says in the same place.
	plain := other(t, listening(t, "tcp"))
	if err := plain.(*net.TCPListener).SetDeadline(past()); err != nil {
		t.Fatal(err)
	}
	_, want := plain.Accept()

	for state, enter := range states {
		for name, test := range tests {
			t.Run(state+"/"+name, func(t *testing.T) {
				l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{Addr: plain.Addr()})
				err := test(t, l, func() { enter(t, l) })
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
				}
				sameFailure(t, err, want)
			})
		}
	}
}

func TestListenerDeadlineOverQueuedConnection(t *testing.T) {
	l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{})
	dial(t, l.Addr())
	set(t, l, past())
	resume(t, l)
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	set(t, l, time.Time{})
	served(t, accept(t, l, 1))
}

func TestListenerDeadlineMovedAway(t *testing.T) {
	for name, to := range map[string]time.Time{"removed": {}, "extended": never()} {
		t.Run(name, func(t *testing.T) {
			l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{})
			first := time.Now().Add(10 * time.Millisecond)
			set(t, l, first)
			results := accept(t, l, 4)
			set(t, l, to)
			resume(t, l)
			pausable.LateTimer(l)
			// The first deadline must have passed, or this would show nothing.
			<-time.After(time.Until(first.Add(10 * time.Millisecond)))
			nothing(t, results)
			l.Pause()
			resume(t, l)
			for range 4 {
				dial(t, l.Addr())
				served(t, results)
			}
		})
	}
}

// A deadline that passed is no longer in force once the program moves it, also
// for accepts that the old one had reached in the kernel.
func TestListenerDeadlineMovedWhileItPasses(t *testing.T) {
	const n = 4
	l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{})
	resume(t, l)
	for range 100 {
		results := make(chan accepted, n)
		for range n {
			go func() {
				c, err := l.Accept()
				results <- accepted{c, err}
			}()
		}
		awaitInFlight(l, n)
		set(t, l, past())
		set(t, l, time.Time{})
		for range n {
			dial(t, l.Addr())
		}
		timeouts := 0
		for range n {
			r := <-results
			switch {
			case r.err == nil:
				r.conn.Close()
			case errors.Is(r.err, os.ErrDeadlineExceeded):
				timeouts++
			default:
				t.Fatal(r.err)
			}
		}
		for range timeouts {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
}

func TestListenerClose(t *testing.T) {
	states := map[string]func(t *testing.T, l *pausable.Listener){
		"paused":  func(*testing.T, *pausable.Listener) {},
		"running": resume,
		"paused again": func(t *testing.T, l *pausable.Listener) {
			resume(t, l)
			l.Pause()
		},
		"retired": func(_ *testing.T, l *pausable.Listener) { l.Retire() },
	}
	plain := other(t, listening(t, "tcp"))
	plain.Close()
	_, want := plain.Accept()

	for state, enter := range states {
		t.Run(state, func(t *testing.T) {
			var hooks atomic.Int32
			l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{
				Closed: func() { hooks.Add(1) },
				Addr:   plain.Addr(),
			})
			results := accept(t, l, 3)
			enter(t, l)
			if got := hooks.Load(); got != 0 {
				t.Fatalf("Closed called %d times before Close", got)
			}
			var closers sync.WaitGroup
			for range 4 {
				closers.Go(func() {
					if err := l.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
			}
			closers.Wait()
			for range 3 {
				sameFailure(t, (<-results).err, want)
			}
			_, err := l.Accept()
			sameFailure(t, err, want)
			if got := hooks.Load(); got != 1 {
				t.Fatalf("Closed called %d times, want once", got)
			}

			if err := l.SetDeadline(never()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("SetDeadline after Close: %v", err)
			}
			l.Pause()
			l.Retire()
			resume(t, l)
			if raw := l.Raw(); raw != nil {
				t.Errorf("Resume after Close opened %v", raw)
			}
			_, err = l.Accept()
			sameFailure(t, err, want)
		})
	}
}

func TestHTTPServerNoticesNothing(t *testing.T) {
	fd := listening(t, "tcp")
	l := listener(t, fd, pausable.ListenerOptions{})
	var logged bytes.Buffer // read after Serve and all handlers have returned
	srv := &http.Server{Handler: answer("first"), ErrorLog: slog.NewLogLogger(slog.NewTextHandler(&logged, nil), slog.LevelError)}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://" + l.Addr().String()
	for range 5 {
		// Asked while paused, answered once resumed.
		got := make(chan string, 1)
		go func() { got <- get(client, url) }()
		resume(t, l)
		if body := <-got; body != "first" {
			t.Fatalf("answer %q", body)
		}
		l.Pause()
	}
	resume(t, l)
	l.Retire()

	second := &http.Server{Handler: answer("second")}
	secondEnded := make(chan error, 1)
	ln := other(t, fd)
	go func() { secondEnded <- second.Serve(ln) }()
	if body := get(client, url); body != "second" {
		t.Fatalf("answer after Retire: %q", body)
	}
	nothing(t, ended)

	for srv, ended := range map[*http.Server]chan error{srv: ended, second: secondEnded} {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Fatalf("Serve returned %v", err)
		}
	}
	if logged.Len() > 0 {
		t.Fatalf("the server logged:\n%s", logged.String())
	}
}

func TestTLSListenerOverIt(t *testing.T) {
	fd := listening(t, "tcp")
	l := listener(t, fd, pausable.ListenerOptions{})
	srv := httptest.NewUnstartedServer(answer("tls"))
	srv.Listener.Close()
	srv.Listener = l
	srv.StartTLS()
	defer srv.Close()
	client := srv.Client()
	client.Transport.(*http.Transport).DisableKeepAlives = true
	for range 3 {
		got := make(chan string, 1)
		go func() { got <- get(client, srv.URL) }()
		resume(t, l)
		if body := <-got; body != "tls" {
			t.Fatalf("answer %q", body)
		}
		l.Pause()
	}
}

func TestRetireFreesThePort(t *testing.T) {
	for name, enter := range map[string]func(t *testing.T, l *pausable.Listener){
		"from paused":  func(*testing.T, *pausable.Listener) {},
		"from running": resume,
	} {
		t.Run(name, func(t *testing.T) {
			fd := listening(t, "tcp")
			l := listener(t, fd, pausable.ListenerOptions{})
			results := accept(t, l, 2)
			enter(t, l)
			addr := l.Addr().String()
			if ln, err := net.Listen("tcp", addr); err == nil {
				ln.Close()
				t.Fatal("the port was free before Retire")
			}

			l.Retire()
			if err := fd.Close(); err != nil {
				t.Fatal(err)
			}
			fresh, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatalf("the port is not free: %v", err)
			}
			defer fresh.Close()
			// A Resume that comes too late changes nothing.
			resume(t, l)
			dial(t, fresh.Addr())
			served(t, accept(t, fresh, 1))
			nothing(t, results)

			l.Close()
			for range 2 {
				if r := <-results; !errors.Is(r.err, net.ErrClosed) {
					t.Fatalf("Accept after Close: %v", r.err)
				}
			}
		})
	}
}

func TestAcceptedHook(t *testing.T) {
	var l *pausable.Listener
	var seen net.Conn
	l = listener(t, listening(t, "tcp"), pausable.ListenerOptions{Accepted: func(c net.Conn) {
		seen = c
		l.Pause() // the hook is not in flight, so this ends
	}})
	resume(t, l)
	dial(t, l.Addr())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.TCPConn); !ok || seen != c {
		t.Fatalf("accepted %T, hook saw %v", c, seen)
	}
}

func TestListenerRaw(t *testing.T) {
	l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{})
	if raw := l.Raw(); raw != nil {
		t.Fatalf("paused: %v", raw)
	}
	resume(t, l)
	raw, ok := l.Raw().(*net.TCPListener)
	if !ok {
		t.Fatalf("running: %T", l.Raw())
	}
	results := accept(t, raw, 1)
	dial(t, l.Addr())
	served(t, results)
	l.Pause()
	if _, err := raw.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("the plain listener after Pause: %v", err)
	}
	if raw := l.Raw(); raw != nil {
		t.Fatalf("paused again: %v", raw)
	}

	// Closed behind its back, Accept says so and does not spin.
	resume(t, l)
	l.Raw().Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("Accept on a plain listener that was closed: %v", err)
	}
	l.Pause()
	resume(t, l)
	dial(t, l.Addr())
	served(t, accept(t, l, 1))
}

func TestListenerSyscallConn(t *testing.T) {
	fd := listening(t, "tcp")
	l := listener(t, fd, pausable.ListenerOptions{})
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// It works while paused: a descriptor can be taken from it.
	taken, err := scm.DupFD(l)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dial(t, l.Addr())
	served(t, accept(t, other(t, taken), 1))
	if err := raw.Read(func(uintptr) bool { return true }); err == nil {
		t.Error("Read on a listener succeeded")
	}
	if err := raw.Write(func(uintptr) bool { return true }); err == nil {
		t.Error("Write on a listener succeeded")
	}
	l.Retire()
	if err := raw.Control(func(uintptr) { t.Error("called") }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Control after Retire: %v", err)
	}
}

func TestUnixListenerKeepsItsFile(t *testing.T) {
	fd := listening(t, "unix")
	l := listener(t, fd, pausable.ListenerOptions{})
	path := l.Addr().String()
	resume(t, l)
	l.Pause()
	resume(t, l)
	l.Retire()
	l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
}

func TestListenerAddr(t *testing.T) {
	renamed := &net.UnixAddr{Name: "/where/it/was/renamed/to", Net: "unix"}
	l := listener(t, listening(t, "unix"), pausable.ListenerOptions{Addr: renamed})
	if got := l.Addr(); got != net.Addr(renamed) {
		t.Fatalf("got %v, want %v", got, renamed)
	}
}

func TestNewListenerRefuses(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := listening(t, "tcp")
	gone.Close()
	for name, fd := range map[string]*scm.FD{
		"a packet socket":     dup(t, udp.(*net.UDPConn)),
		"a closed descriptor": gone,
	} {
		t.Run(name, func(t *testing.T) {
			if l, err := pausable.NewListener(fd, pausable.ListenerOptions{}); err == nil {
				l.Close()
				t.Fatal("no error")
			}
		})
	}
}

func TestFailedResumeStaysPaused(t *testing.T) {
	fd := listening(t, "tcp")
	l := listener(t, fd, pausable.ListenerOptions{})
	fd.Close()
	if err := l.Resume(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("Resume without a descriptor: %v", err)
	}
	set(t, l, time.Now().Add(time.Millisecond))
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Accept after a failed Resume: %v", err)
	}
}

// Every method at once, in no order. The race detector and the leak check judge.
func TestListenerInAnyOrder(t *testing.T) {
	for range 20 {
		l := listener(t, listening(t, "tcp"), pausable.ListenerOptions{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					c, err := l.Accept()
					switch {
					case err == nil:
						c.Close()
					case errors.Is(err, os.ErrDeadlineExceeded):
					case errors.Is(err, net.ErrClosed):
						return
					default:
						t.Errorf("Accept: %v", err)
						return
					}
				}
			})
		}
		anyOrder(&wg, l.Pause, func() { _ = l.Resume() }, func() { l.Raw() }, l.Pause, func() { _ = l.Resume() },
			func() { _ = l.SetDeadline(past()) }, func() { _ = l.SetDeadline(time.Time{}) }, func() { _ = l.SetDeadline(time.Now().Add(time.Microsecond)) },
			func() {
				if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
					c.Close()
				}
			})
		wg.Go(l.Retire)
		wg.Go(func() { l.Close() })
		wg.Wait()
	}
}

// anyOrder runs each step many times, all at once.
func anyOrder(wg *sync.WaitGroup, steps ...func()) {
	var inner sync.WaitGroup
	for _, step := range steps {
		inner.Add(1)
		wg.Go(func() {
			defer inner.Done()
			for range 50 {
				step()
			}
		})
	}
	inner.Wait()
}

// set sets a deadline.
func set(t *testing.T, l *pausable.Listener, at time.Time) {
	t.Helper()
	if err := l.SetDeadline(at); err != nil {
		t.Fatal(err)
	}
}

// answer is a handler that says who it is.
func answer(who string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, who) })
}

// get returns the body of url, or the error's text.
func get(client *http.Client, url string) string {
	resp, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

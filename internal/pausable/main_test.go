package pausable_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/pausable"
	"github.com/crossfade-go/crossfade/scm"
)

func TestMain(m *testing.M) { leak.Main(m) }

// never is a deadline that no test lives to see.
func never() time.Time { return time.Now().Add(time.Hour) }

// past is a deadline that has passed.
func past() time.Time { return time.Now().Add(-time.Second) }

// dup takes a descriptor from c, which it closes: what remains is what a process
// holds after receiving it.
func dup(t *testing.T, c interface {
	syscall.Conn
	Close() error
},
) *scm.FD {
	t.Helper()
	fd, err := scm.DupFD(c)
	if cerr := c.Close(); cerr != nil {
		t.Fatal(cerr)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("descriptors cannot be passed here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

// shortDir is a directory whose paths fit into a socket address, which those of
// t.TempDir need not.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// listening opens a listening socket of a network.
func listening(t *testing.T, network string) *scm.FD {
	t.Helper()
	switch network {
	case "tcp":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return dup(t, ln.(*net.TCPListener))
	case "unix", "unixpacket":
		ln, err := net.Listen(network, filepath.Join(shortDir(t), "s"))
		if errors.Is(err, syscall.EPROTONOSUPPORT) {
			t.Skipf("no %s sockets here: %v", network, err)
		}
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		return dup(t, ln.(*net.UnixListener))
	}
	panic(network)
}

// listener returns a paused Listener on fd that is closed when the test ends.
func listener(t *testing.T, fd *scm.FD, opts pausable.ListenerOptions) *pausable.Listener {
	t.Helper()
	l, err := pausable.NewListener(fd, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// resume resumes l.
func resume(t *testing.T, l *pausable.Listener) {
	t.Helper()
	if err := l.Resume(); err != nil {
		t.Fatal(err)
	}
}

// other returns a plain listener on the same socket, as another process has it.
func other(t *testing.T, fd *scm.FD) net.Listener {
	t.Helper()
	ln, err := fd.Listener()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// dial connects to addr.
func dial(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// accepted is the outcome of an Accept.
type accepted struct {
	conn net.Conn
	err  error
}

// accept calls ln.Accept in n goroutines, and waits for them when the test ends.
// The channel has room for all, so that none of them outlives an Accept.
func accept(t *testing.T, ln net.Listener, n int) <-chan accepted {
	t.Helper()
	results := make(chan accepted, n)
	ended := make(chan struct{}, n)
	for range n {
		go func() {
			c, err := ln.Accept()
			results <- accepted{c, err}
			ended <- struct{}{}
		}()
	}
	t.Cleanup(func() {
		ln.Close()
		for range n {
			<-ended
		}
		close(results)
		for r := range results {
			if r.conn != nil {
				r.conn.Close()
			}
		}
	})
	return results
}

// served fails the test unless the next outcome is a connection, and closes it.
func served(t *testing.T, results <-chan accepted) {
	t.Helper()
	r := <-results
	if r.err != nil {
		t.Fatalf("Accept: %v", r.err)
	}
	r.conn.Close()
}

// nothing fails the test if a call has returned. What has just happened to
// another holder of the socket shows that this one did not take it.
func nothing[T any](t *testing.T, results <-chan T) {
	t.Helper()
	select {
	case r := <-results:
		t.Fatalf("a call that should be blocked returned %+v", r)
	default:
	}
}

// awaitInFlight returns once n calls have passed x's gate.
func awaitInFlight(x any, n int) {
	for pausable.InFlight(x) != n {
		runtime.Gosched()
	}
}

// sameFailure fails the test unless got is the error that package net returns.
func sameFailure(t *testing.T, got, want error) {
	t.Helper()
	var g, w *net.OpError
	if !errors.As(got, &g) || !errors.As(want, &w) {
		t.Fatalf("got %#v, want a *net.OpError like %#v", got, want)
	}
	if got.Error() != want.Error() || g.Op != w.Op || g.Timeout() != w.Timeout() || g.Temporary() != w.Temporary() {
		t.Fatalf("got %q (timeout %v), want %q (timeout %v)", got, g.Timeout(), want, w.Timeout())
	}
}

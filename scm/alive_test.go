//go:build unix

package scm_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// alive returns both ends of an alive pipe, which the end of the test closes.
func alive(t *testing.T) (watched, held *scm.FD) {
	t.Helper()
	watched, held, err := scm.Alive()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = watched.Close(), held.Close() })
	return watched, held
}

func TestWatch(t *testing.T) {
	wait := func(t *testing.T, w *scm.Watch) error {
		t.Helper()
		done := make(chan error, 1) // has room, so that the goroutine ends with a failed test
		go func() { done <- w.Wait() }()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			t.Fatal("Wait does not return")
			return nil
		}
	}
	watch := func(t *testing.T, fd *scm.FD) *scm.Watch {
		t.Helper()
		w, err := fd.Watch()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close() })
		return w
	}
	t.Run("tells when the last holder has gone", func(t *testing.T) {
		watched, held := alive(t)
		second, err := held.Dup()
		if err != nil {
			t.Fatal(err)
		}
		a, b := watch(t, watched), watch(t, watched)
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		if watched.HungUp() {
			t.Error("it has hung up though there is another holder")
		}
		if err := second.Close(); err != nil {
			t.Fatal(err)
		}
		if !watched.HungUp() {
			t.Error("it has not hung up")
		}
		if err := errors.Join(wait(t, a), wait(t, b)); err != nil { // every watch is told
			t.Error(err)
		}
	})
	t.Run("is not told by data", func(t *testing.T) {
		watched, held := alive(t)
		w := watch(t, watched)
		f, err := held.File("held")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("nobody should"); err != nil {
			t.Fatal(err)
		}
		if watched.HungUp() {
			t.Error("it has hung up")
		}
		f.Close()
		held.Close()
		if err := wait(t, w); err != nil { // though nobody has read it
			t.Error(err)
		}
	})
	t.Run("ends with Close", func(t *testing.T) {
		watched, _ := alive(t)
		w := watch(t, watched)
		done := make(chan error, 1) // has room, so that the goroutine ends with a failed test
		go func() { done <- w.Wait() }()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("Wait returns nil after Close")
		}
	})
	t.Run("is told by the death of a process", func(t *testing.T) {
		watched, held := alive(t)
		w := watch(t, watched)
		f, err := held.File("held")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "1000")
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		f.Close()
		held.Close()
		if watched.HungUp() {
			t.Error("it has hung up while the process lives")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, w); err != nil {
			t.Error(err)
		}
	})
	t.Run("of what is closed", func(t *testing.T) {
		watched, _ := alive(t)
		watched.Close()
		if _, err := watched.Watch(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Watch: %v", err)
		}
		if watched.HungUp() {
			t.Error("it has hung up")
		}
	})
}

func TestPidfd(t *testing.T) {
	own, err := scm.OwnPidfd()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close() })
	if err := own.CheckPidfd(); err != nil {
		t.Errorf("CheckPidfd of one's own: %v", err)
	}
	if err := own.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Kill of oneself: %v", err)
	}
	watched, _ := alive(t)
	if err := watched.CheckPidfd(); !errors.Is(err, scm.ErrNotProcess) {
		t.Errorf("CheckPidfd of a pipe: %v", err)
	}
	if err := watched.Signal(syscall.SIGKILL); !errors.Is(err, scm.ErrNotProcess) {
		t.Errorf("Kill of a pipe: %v", err)
	}
}

func TestConnections(t *testing.T) {
	if runtime.GOOS != "linux" {
		if _, err := scm.Connections(nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Connections: %v", err)
		}
		return
	}
	dir, err := os.MkdirTemp("", "scm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, tt := range []struct{ network, listen, dial string }{
		{"tcp", "127.0.0.1:0", "127.0.0.1"},
		{"tcp", "[::1]:0", "::1"},
		{"tcp", ":0", "127.0.0.1"},
		{"tcp", ":0", "::1"},
		{"tcp4", "0.0.0.0:0", "127.0.0.1"},
		{"unix", filepath.Join(dir, "s"), ""},
		{"unixpacket", filepath.Join(dir, "p"), ""},
		{"unix", "@scm test of connections", ""},
	} {
		t.Run(tt.network+" "+tt.listen+" "+tt.dial, func(t *testing.T) {
			ln, err := net.Listen(tt.network, tt.listen)
			if err != nil {
				t.Skipf("this machine has no such address: %v", err)
			}
			defer ln.Close()
			fd := dup(t, ln.(syscall.Conn))
			identity, err := fd.Identify()
			if err != nil {
				t.Fatal(err)
			}
			// By what is left to know a listener by when it has been closed.
			listeners := []scm.Identity{{Network: identity.Network, Address: identity.Address}}
			count := func(want int) []scm.Connection {
				t.Helper()
				found, err := scm.Connections(listeners)
				if err != nil || len(found) != want {
					t.Fatalf("Connections: %+v, %v, want %d", found, err, want)
				}
				return found
			}
			count(0)
			address := ln.Addr().String()
			if tt.dial != "" {
				_, port, err := net.SplitHostPort(address)
				if err != nil {
					t.Fatal(err)
				}
				address = net.JoinHostPort(tt.dial, port)
			}
			client, err := net.Dial(tt.network, address)
			if err != nil {
				t.Skipf("this machine has no such address: %v", err)
			}
			defer client.Close()
			count(0) // nobody has accepted it
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			twice := dup(t, c.(syscall.Conn))
			found := count(1) // a duplicate is no other connection
			if local := c.LocalAddr().String(); found[0].Local != local || found[0].Remote == "" && tt.dial != "" ||
				tt.dial != "" && found[0].Remote != client.LocalAddr().String() {
				t.Errorf("it is %+v, want one from %v on %s", found[0], client.LocalAddr(), local)
			}
			_, _ = ln.Close(), fd.Close()
			count(1)
			_, _ = c.Close(), twice.Close()
			count(0)
		})
	}
	t.Run("of another listener", func(t *testing.T) {
		if found, err := scm.Connections([]scm.Identity{{Network: "tcp", Address: "127.0.0.1:1"}, {Network: "unix"}, {}}); err != nil || len(found) > 0 {
			t.Errorf("Connections: %+v, %v", found, err)
		}
	})
}

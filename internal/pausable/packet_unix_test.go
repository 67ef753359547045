//go:build unix

package pausable_test

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/pausable"
)

// Reading through the RawConn is how packets are read in batches, so it is a
// reading method like the others.
func init() {
	for network := range readMethods {
		readMethods[network]["SyscallConn"] = rawRead
	}
}

func rawRead(c pausable.PacketConn, b []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var callErr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, callErr = syscall.Recvfrom(int(fd), b, 0)
		return !errors.Is(callErr, syscall.EAGAIN)
	})
	if err == nil {
		err = callErr
	}
	return n, err
}

func TestRawReadThatPanicsDoesNotHoldUpPause(t *testing.T) {
	c := openPacket(t, "udp").open(nil)
	c.Resume()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not come through")
			}
		}()
		_ = raw.Read(func(uintptr) bool { panic("in the program's function") })
	}()
	c.Pause()
}

// A descriptor can arrive in blocking mode, since a careless holder has put it
// there for everyone. Deadlines, Pause and Close must work all the same.
func TestDescriptorInBlockingMode(t *testing.T) {
	t.Run("listener", func(t *testing.T) {
		fd := listening(t, "tcp")
		block(t, fd)
		l := listener(t, fd, pausable.ListenerOptions{})
		block(t, fd)
		resume(t, l)
		set(t, l, time.Now().Add(time.Millisecond))
		if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
		}
		set(t, l, time.Time{})
		results := accept(t, l, 2)
		awaitInFlight(l, 2)
		l.Pause()
		nothing(t, results)
	})
	t.Run("packet conn", func(t *testing.T) {
		s := openPacket(t, "udp")
		block(t, s.fd)
		c := s.open(nil)
		c.Resume()
		if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := readFrom(c, make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
		}
	})
}

// block puts a socket into blocking mode.
func block(t *testing.T, fd interface{ Control(func(uintptr)) error }) {
	t.Helper()
	var err error
	if cerr := fd.Control(func(fd uintptr) { err = syscall.SetNonblock(int(fd), false) }); cerr != nil {
		t.Fatal(cerr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

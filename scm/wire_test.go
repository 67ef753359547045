//go:build unix

package scm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/scm"
)

// wire is the far end of a connection without any code of package scm: tests
// put on it what they like, byte by byte.
type wire struct {
	t  testing.TB
	fd int
}

// connect returns a Conn and the wire at its other end.
func connect(t testing.TB) (*scm.Conn, *wire) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	w := &wire{t: t, fd: fds[1]}
	t.Cleanup(w.close)
	c, err := scm.OpenConn(scm.NewFD(fds[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, w
}

// send makes one sendmsg(2) of p and the descriptors.
func (w *wire) send(p []byte, fds ...int) {
	w.t.Helper()
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	if n, err := unix.SendmsgN(w.fd, p, control, nil, unix.MSG_NOSIGNAL); err != nil || n != len(p) {
		w.t.Fatalf("sent %d of %d bytes: %v", n, len(p), err)
	}
}

// readAll reads n bytes.
func (w *wire) readAll(n int) []byte {
	w.t.Helper()
	p := make([]byte, n)
	for got := 0; got < n; {
		k, err := unix.Read(w.fd, p[got:])
		if err != nil || k == 0 {
			w.t.Fatalf("read %d of %d bytes: %v", got, n, err)
		}
		got += k
	}
	return p
}

func (w *wire) shutdownWrite() {
	w.t.Helper()
	if err := unix.Shutdown(w.fd, unix.SHUT_WR); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) close() {
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
		w.fd = -1
	}
}

// frame encodes a frame by the book, with whatever its header is to say.
func frame(nfds int, payload string) []byte {
	return append(rawHeader(uint32(len(payload)), uint16(nfds), 0), payload...)
}

func rawHeader(length uint32, nfds, reserved uint16) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = binary.BigEndian.AppendUint16(b, nfds)
	return binary.BigEndian.AppendUint16(b, reserved)
}

// canary tells when the last copy of a descriptor has been closed.
type canary struct {
	t    testing.TB
	r, w *os.File
	num  int // of w
}

func newCanary(t testing.TB) *canary {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	c := &canary{t: t, r: r, w: w}
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { c.num = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return c
}

// copies returns n times the number of the canary's descriptor, to be sent.
func (c *canary) copies(n int) []int {
	nums := make([]int, n)
	for i := range nums {
		nums[i] = c.num
	}
	return nums
}

// fds returns n owned copies.
func (c *canary) fds(n int) []*scm.FD {
	c.t.Helper()
	fds := make([]*scm.FD, n)
	for i := range fds {
		fd, err := scm.DupFD(c.w)
		if err != nil {
			c.t.Fatal(err)
		}
		fds[i] = fd
		c.t.Cleanup(func() { fd.Close() })
	}
	return fds
}

// requireClosed fails the test unless all copies that were ever made are closed.
func (c *canary) requireClosed() {
	c.t.Helper()
	c.w.Close()
	// The limit is for a failing test only.
	if err := c.r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.r.Read(make([]byte, 1)); err != io.EOF {
		c.t.Fatalf("a copy of the descriptor is still open somewhere: %v", err)
	}
}

// inode says which open file a descriptor is.
func inode(t testing.TB, fd *scm.FD) uint64 {
	t.Helper()
	id, err := fd.Identify()
	if err != nil {
		t.Fatal(err)
	}
	return id.Ino
}

// closeFDs closes what a test has received.
func closeFDs(t testing.TB, fds []*scm.FD) {
	t.Helper()
	for _, fd := range fds {
		if err := fd.Close(); err != nil {
			t.Error(err)
		}
	}
}

var errEnded = errors.New("this context was over from the start")

// ended is a context that has ended: Receive then only looks at what is there.
func ended() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errEnded)
	return ctx
}

// patient is for what should succeed: a test that hangs fails.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

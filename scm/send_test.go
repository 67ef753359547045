//go:build unix

package scm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

// pair returns two connected Conns.
func pair(t testing.TB) (a, b *scm.Conn) {
	t.Helper()
	a, w := connect(t)
	b, err := scm.OpenConn(scm.NewFD(w.fd))
	w.fd = -1
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return a, b
}

func TestSendLimits(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	dog := newCanary(t)
	fds := dog.fds(scm.MaxDescriptors + 1)
	if err := a.Send(patient(t), nil, fds...); !errors.Is(err, scm.ErrTooManyDescriptors) {
		t.Errorf("%d descriptors gave %v", len(fds), err)
	}
	if err := a.Send(patient(t), make([]byte, scm.MaxPayload+1)); !errors.Is(err, scm.ErrPayloadTooLarge) {
		t.Errorf("a payload beyond the limit gave %v", err)
	}
	closeFDs(t, fds[:1])
	if err := a.Send(patient(t), nil, fds[1], fds[0]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed descriptor gave %v", err)
	}
	if err := a.Send(patient(t), nil, nil); err == nil {
		t.Error("a nil descriptor was sent")
	}
	if err := a.Send(ended(), []byte("too late")); err != errEnded {
		t.Errorf("a context that has ended gave %v", err)
	}
	// None of these has left a byte behind.
	if err := a.Send(patient(t), []byte("fine"), fds[1:]...); err != nil {
		t.Fatal(err)
	}
	payload, got, err := b.Receive(patient(t), scm.MaxDescriptors)
	if err != nil || string(payload) != "fine" || len(got) != scm.MaxDescriptors {
		t.Fatalf("received %q, %d descriptors, %v", payload, len(got), err)
	}
	closeFDs(t, got)
	closeFDs(t, fds)
	dog.requireClosed()
}

func TestSendsDoNotInterleave(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	dog := newCanary(t)
	fds := dog.fds(10)
	const senders, frames = 6, 30
	var sending sync.WaitGroup
	for i := range senders {
		sending.Go(func() {
			for range frames {
				n := rand.IntN(len(fds) + 1)
				payload := bytes.Repeat([]byte{byte('a' + i)}, 1+rand.IntN(100_000))
				payload[0] = byte(n)
				if err := a.Send(patient(t), payload, fds[:n]...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range senders * frames {
		payload, got, err := b.Receive(patient(t), len(fds))
		if err != nil {
			t.Fatal(err)
		}
		rest := payload[1:]
		if len(rest) > 0 && len(bytes.Trim(rest, string(rest[:1]))) > 0 {
			t.Fatalf("frame %d mixes two senders", i)
		}
		if len(got) != int(payload[0]) {
			t.Fatalf("frame %d came with %d descriptors of %d", i, len(got), payload[0])
		}
		closeFDs(t, got)
	}
	sending.Wait()
	closeFDs(t, fds)
	dog.requireClosed()
}

func TestAFrameThatBrokeOffBreaksTheWritingSide(t *testing.T) {
	leak.Check(t)
	a, w := connect(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	sent := make(chan error, 1) // one result
	go func() { sent <- a.Send(ctx, make([]byte, scm.MaxPayload)) }()
	w.readAll(1) // it has begun, and so much fits into no socket
	cancel(errEnded)
	first := <-sent
	if !errors.Is(first, errEnded) {
		t.Fatalf("the first Send gave %v", first)
	}
	if again := a.Send(patient(t), nil); again != first {
		t.Errorf("the next Send gave %v, want %v", again, first)
	}
	// The other direction is not concerned.
	w.send(frame(0, "hello"))
	if payload, _, err := a.Receive(patient(t), 0); err != nil || string(payload) != "hello" {
		t.Errorf("received %q, %v", payload, err)
	}
}

func TestSendWaitsItsTurnNoLongerThanItsContext(t *testing.T) {
	leak.Check(t)
	a, w := connect(t)
	sent := make(chan error, 1) // one result
	large := string(make([]byte, scm.MaxPayload))
	go func() { sent <- a.Send(patient(t), []byte(large)) }()
	w.readAll(1) // the large frame has its turn, and so much fits into no socket
	ctx, cancel := context.WithTimeoutCause(context.Background(), 5*time.Millisecond, errEnded)
	defer cancel()
	if err := a.Send(ctx, []byte("small")); !errors.Is(err, errEnded) {
		t.Errorf("Send gave %v", err)
	}
	// Nothing of it was sent, and nothing is broken.
	w.readAll(len(frame(0, large)) - 1)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	want := frame(0, "hello")
	if err := a.Send(patient(t), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got := w.readAll(len(want)); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCloseEndsSend(t *testing.T) {
	leak.Check(t)
	a, _ := pair(t)
	var sending sync.WaitGroup
	for range 2 { // one writes, one waits for its turn
		sending.Go(func() {
			if err := a.Send(context.Background(), make([]byte, scm.MaxPayload)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send gave %v", err)
			}
		})
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	sending.Wait()
}

func TestSendToNobody(t *testing.T) {
	leak.Check(t)
	c, w := connect(t)
	w.close()
	if err := c.Send(patient(t), []byte("hello")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v", err)
	}
}

// Two pages that nobody has read leave room for a last word: they take no more
// than half of the send buffer.
func TestRoomForTheLastWord(t *testing.T) {
	leak.Check(t)
	far, near := unixConns(t)
	b, err := scm.NewConn(far)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a, err := scm.NewConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	size := ask(t, near, func(fd int) (int, error) { return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF) })
	if size/2 <= 2*64<<10 {
		t.Errorf("half of a send buffer of %d bytes does not hold two pages", size)
	}
	dog := newCanary(t)
	fds := dog.fds(scm.MaxDescriptors)
	for _, size := range []int{64 << 10, 64 << 10, 1000} {
		if err := a.Send(patient(t), make([]byte, size), fds...); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		_, got, err := b.Receive(ended(), scm.MaxDescriptors)
		if err != nil {
			t.Fatal(err)
		}
		closeFDs(t, got)
	}
	closeFDs(t, fds)
	dog.requireClosed()
}

func BenchmarkSend(b *testing.B) {
	for _, n := range []int{1, 100, 250} {
		b.Run(fmt.Sprintf("%d descriptors", n), func(b *testing.B) {
			from, to := pair(b)
			fds := newCanary(b).fds(n)
			payload := make([]byte, 50*n)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				if err := from.Send(ctx, payload, fds...); err != nil {
					b.Fatal(err)
				}
				_, got, err := to.Receive(ctx, n)
				if err != nil {
					b.Fatal(err)
				}
				closeFDs(b, got)
			}
		})
	}
}

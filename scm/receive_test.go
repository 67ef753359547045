//go:build unix

package scm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

func TestMalformedFrames(t *testing.T) {
	type step struct {
		bytes []byte
		fds   int
	}
	tests := []struct {
		name   string
		steps  []step // the receiver looks after each
		maxFDs int
		want   error
	}{
		{"a length beyond the limit", []step{{rawHeader(scm.MaxPayload+1, 0, 0), 0}}, 9, scm.ErrPayloadTooLarge},
		{"a length of 4 GiB", []step{{rawHeader(1<<32-1, 0, 0), 0}}, 9, scm.ErrPayloadTooLarge},
		{"a length of 4 GiB with descriptors", []step{{rawHeader(1<<32-1, 3, 0), 3}}, 9, scm.ErrPayloadTooLarge},
		{"more descriptors announced than a frame may have", []step{{rawHeader(1, 251, 0), 3}}, 300, scm.ErrTooManyDescriptors},
		{"65535 descriptors announced", []step{{rawHeader(1, 65535, 0), 3}}, 1 << 20, scm.ErrTooManyDescriptors},
		{"reserved bytes used", []step{{rawHeader(1, 0, 1), 0}}, 9, scm.ErrReserved},
		{"reserved bytes used, with descriptors", []step{{rawHeader(1, 2, 0x8000), 2}}, 9, scm.ErrReserved},
		{"text of another protocol", []step{{[]byte("GET / HTTP/1.1\r\n\r\n"), 1}}, 9, scm.ErrReserved},
		{"one announced, none came", []step{{frame(1, "x"), 0}}, 9, scm.ErrDescriptorCount},
		{"two announced, one came", []step{{frame(2, "x"), 1}}, 9, scm.ErrDescriptorCount},
		{"one announced, two came", []step{{frame(1, "x"), 2}}, 9, scm.ErrDescriptorCount},
		{"none announced, one came", []step{{frame(0, "x"), 1}}, 9, scm.ErrDescriptorCount},
		{"they ride on the payload", []step{{frame(2, "xy")[:8], 0}}, 9, scm.ErrDescriptorCount},
		{"they ride on the second byte", []step{{frame(1, "y")[:1], 0}, {frame(1, "y")[1:], 1}}, 9, scm.ErrDescriptorCount},
		{"more ride on the payload", []step{{frame(2, "xy")[:8], 2}, {[]byte("xy"), 1}}, 9, scm.ErrDescriptorCount},
		{"more ride on an unfinished payload", []step{{frame(2, "xyz")[:8], 2}, {[]byte("x"), 1}}, 9, scm.ErrDescriptorCount},
		{"more ride on an unfinished header", []step{{frame(2, "")[:2], 2}, {frame(2, "")[2:4], 2}}, 9, scm.ErrDescriptorCount},
		{"announced where none is wanted", []step{{frame(1, "x"), 1}}, 0, scm.ErrUnexpectedDescriptors},
		{"announced where a negative number is wanted", []step{{frame(1, "x"), 1}}, -1, scm.ErrUnexpectedDescriptors},
		{"unannounced where none is wanted", []step{{frame(0, "x"), 1}}, 0, scm.ErrUnexpectedDescriptors},
		{"on the first byte where none is wanted", []step{{frame(1, "x")[:1], 1}}, 0, scm.ErrUnexpectedDescriptors},
		{"on a later byte where none is wanted", []step{{frame(0, "x")[:8], 0}, {[]byte("x"), 1}}, 0, scm.ErrUnexpectedDescriptors},
		{"more than wanted", []step{{frame(3, "x"), 3}}, 2, scm.ErrUnexpectedDescriptors},
		{"more than wanted, on the first byte", []step{{frame(3, "x")[:1], 3}}, 2, scm.ErrUnexpectedDescriptors},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			c, w := connect(t)
			dog := newCanary(t)
			var err error
			for i, s := range tt.steps {
				if i > 0 && !errors.Is(err, errEnded) {
					t.Fatalf("step %d gave %v already", i, err)
				}
				w.send(s.bytes, dog.copies(s.fds)...)
				var (
					payload []byte
					fds     []*scm.FD
				)
				payload, fds, err = c.Receive(ended(), tt.maxFDs)
				if err == nil || payload != nil || fds != nil {
					t.Fatalf("received %q, %d descriptors, error %v", payload, len(fds), err)
				}
			}
			var frameErr *scm.FrameError
			if !errors.Is(err, tt.want) || !errors.As(err, &frameErr) {
				t.Fatalf("error is %v, not a FrameError with %v", err, tt.want)
			}
			dog.requireClosed()
			w.send(frame(0, "a good one"))
			if _, _, again := c.Receive(ended(), 9); again != err {
				t.Errorf("a connection out of step goes on with %v", again)
			}
		})
	}
}

func TestDescriptorsKeepTheirFrame(t *testing.T) {
	frames := []struct {
		payload string
		nfds    int
	}{
		{"first", 2},
		{"", 0},
		{strings.Repeat("long ", 2000), 1},
		{"no descriptors", 0},
		{"", 3},
		{"directly behind", 1},
		{"last", 0},
	}
	for _, size := range []int{1, 3, 7, 100, 1 << 20} {
		for _, reader := range []string{"looks after each write", "reads at the end"} {
			t.Run(fmt.Sprintf("written in %d bytes, %s", size, reader), func(t *testing.T) {
				leak.Check(t)
				c, w := connect(t)
				var (
					want  [][]uint64
					chunk [][]byte
					ride  [][]int
				)
				for _, f := range frames {
					var inodes []uint64
					var nums []int
					for range f.nfds {
						dog := newCanary(t)
						inodes = append(inodes, inode(t, dog.fds(1)[0]))
						nums = append(nums, dog.copies(1)...)
					}
					want = append(want, inodes)
					for part := range slices.Chunk(frame(f.nfds, f.payload), size) {
						chunk = append(chunk, part)
						ride = append(ride, nums)
						nums = nil
					}
				}
				got := 0
				take := func(ctx context.Context) bool {
					payload, fds, err := c.Receive(ctx, 3)
					if errors.Is(err, errEnded) {
						return false
					}
					if err != nil {
						t.Fatalf("frame %d: %v", got, err)
					}
					var inodes []uint64
					for _, fd := range fds {
						inodes = append(inodes, inode(t, fd))
					}
					closeFDs(t, fds)
					if string(payload) != frames[got].payload || !slices.Equal(inodes, want[got]) {
						t.Fatalf("frame %d came as %q with %v, want %q with %v", got, payload, inodes, frames[got].payload, want[got])
					}
					got++
					return true
				}
				if reader == "reads at the end" && size < 100 {
					// So many small messages do not fit into the socket at once.
					written := make(chan struct{})
					go func() {
						defer close(written)
						for i := range chunk {
							w.send(chunk[i], ride[i]...)
						}
					}()
					for got < len(frames) {
						take(patient(t))
					}
					<-written
					return
				}
				for i := range chunk {
					w.send(chunk[i], ride[i]...)
					for reader == "looks after each write" && got < len(frames) && take(ended()) {
					}
				}
				for got < len(frames) {
					if !take(ended()) {
						t.Fatalf("only %d of %d frames came", got, len(frames))
					}
				}
			})
		}
	}
}

// What is merged in front of a message with descriptors on Linux must not take
// them for its own.
func TestPlainFramesAreMergedInFront(t *testing.T) {
	leak.Check(t)
	c, w := connect(t)
	dog := newCanary(t)
	for range 20 {
		w.send(frame(0, "plain"))
	}
	w.send(frame(1, "with one"), dog.copies(1)...)
	w.send(frame(0, "behind"))
	for i := range 22 {
		// Not even a receiver that wants none takes offence at those of a later
		// frame.
		maxFDs := 0
		if i == 20 {
			maxFDs = 1
		}
		_, fds, err := c.Receive(ended(), maxFDs)
		if err != nil || len(fds) != maxFDs {
			t.Fatalf("frame %d: %d descriptors, %v", i, len(fds), err)
		}
		closeFDs(t, fds)
	}
	dog.requireClosed()
}

func TestAPartialFrameOutlivesItsContext(t *testing.T) {
	leak.Check(t)
	c, w := connect(t)
	dog := newCanary(t)
	whole := frame(2, "payload")
	w.send(whole[:10], dog.copies(2)...)

	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("something else to do")
	received := make(chan error, 1) // one result
	go func() {
		_, _, err := c.Receive(ctx, 2)
		received <- err
	}()
	cancel(reason)
	if err := <-received; err != reason {
		t.Fatalf("Receive returned %v, want the cause of its context", err)
	}

	w.send(whole[10:])
	payload, fds, err := c.Receive(patient(t), 2)
	if err != nil || string(payload) != "payload" || len(fds) != 2 {
		t.Fatalf("received %q, %d descriptors, %v", payload, len(fds), err)
	}
	closeFDs(t, fds)
	dog.requireClosed()
}

func TestWhatWasSentComesBeforeTheContext(t *testing.T) {
	leak.Check(t)
	c, w := connect(t)
	w.send(frame(0, "one"))
	w.send(frame(0, "two"))
	for _, want := range []string{"one", "two"} {
		payload, _, err := c.Receive(ended(), 0)
		if err != nil || string(payload) != want {
			t.Fatalf("received %q, %v, want %q", payload, err, want)
		}
	}
	if _, _, err := c.Receive(ended(), 0); err != errEnded {
		t.Fatalf("an empty connection gave %v", err)
	}
	w.close()
	if _, _, err := c.Receive(ended(), 0); err != io.EOF {
		t.Fatalf("a closed connection gave %v", err)
	}
}

// The end of one context must not interrupt the next Receive, nor lose a frame.
func TestCancellationRacesWithArrival(t *testing.T) {
	leak.Check(t)
	c, w := connect(t)
	for i := range 500 {
		want := fmt.Sprint(i)
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			w.send(frame(0, want))
		}()
		payload, _, err := c.Receive(ctx, 0)
		if errors.Is(err, context.Canceled) {
			payload, _, err = c.Receive(patient(t), 0)
		}
		if err != nil || string(payload) != want {
			t.Fatalf("received %q, %v, want %q", payload, err, want)
		}
		<-sent
		cancel()
	}
}

// A deadline that outlives its context would have every later wait end at once.
func TestACancelledContextLeavesNoDeadlineBehind(t *testing.T) {
	leak.Check(t)
	far, near := unixConns(t)
	defer far.Close()
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c, err := scm.NewConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 200 {
		ctx, cancel := context.WithCancel(context.Background())
		go cancel()
		if _, _, err := c.Receive(ctx, 0); err != context.Canceled {
			t.Fatal(err)
		}
		if err := raw.Read(func(uintptr) bool { return true }); err != nil {
			t.Fatalf("round %d: the next read would fail with %v", i, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	sent := make(chan error, 1) // one result
	go func() { sent <- c.Send(ctx, make([]byte, scm.MaxPayload)) }()
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-sent; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := raw.Write(func(uintptr) bool { return true }); err != nil {
		t.Fatalf("the next write would fail with %v", err)
	}
}

// A deadline that was set before NewConn is none of its business.
func TestNewConnForgetsOldDeadlines(t *testing.T) {
	leak.Check(t)
	far, near := unixConns(t)
	if err := near.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	c, err := scm.NewConn(near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	received := make(chan error, 1) // one result
	go func() {
		_, _, err := c.Receive(patient(t), 0)
		received <- err
	}()
	far.Close()
	if err := <-received; err != io.EOF {
		t.Error(err)
	}
}

// unixConns returns two connected Go connections, which the caller closes.
func unixConns(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return dialled.(*net.UnixConn), accepted.(*net.UnixConn)
}

func TestEndOfStream(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		w.send(frame(0, "last words"))
		w.close()
		if !c.HungUp() {
			t.Error("HungUp does not see a close behind unread data")
		}
		if payload, _, err := c.Receive(patient(t), 0); err != nil || string(payload) != "last words" {
			t.Fatalf("received %q, %v", payload, err)
		}
		for range 2 {
			if _, _, err := c.Receive(patient(t), 0); err != io.EOF {
				t.Fatalf("got %v, want EOF", err)
			}
		}
	})
	t.Run("a shut down writing side is none", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		w.send(frame(0, "last words"))
		w.shutdownWrite()
		if payload, _, err := c.Receive(patient(t), 0); err != nil || string(payload) != "last words" {
			t.Fatalf("received %q, %v", payload, err)
		}
		for range 3 {
			if _, _, err := c.Receive(ended(), 0); err != errEnded {
				t.Fatalf("SHUT_WR gave %v", err)
			}
		}
		if c.HungUp() {
			t.Error("HungUp takes SHUT_WR for a close")
		}
		if err := c.Send(patient(t), []byte("you can still hear me")); err != nil {
			t.Fatal(err)
		}
		w.readAll(8 + 21)
		received := make(chan error, 1) // one result
		go func() {
			_, _, err := c.Receive(patient(t), 0)
			received <- err
		}()
		w.close()
		if err := <-received; err != io.EOF {
			t.Fatalf("the close after SHUT_WR gave %v", err)
		}
	})
	t.Run("a copy keeps it open", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		held := scm.NewFD(w.fd)
		second, err := held.Dup()
		if err != nil {
			t.Fatal(err)
		}
		w.fd = -1
		closeFDs(t, []*scm.FD{held})
		if _, _, err := c.Receive(ended(), 0); err != errEnded || c.HungUp() {
			t.Fatalf("one of two copies closed: %v, hung up %v", err, c.HungUp())
		}
		closeFDs(t, []*scm.FD{second})
		if _, _, err := c.Receive(ended(), 0); err != io.EOF || !c.HungUp() {
			t.Fatalf("both closed: %v, hung up %v", err, c.HungUp())
		}
	})
	t.Run("a reset counts", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		w.send(frame(0, "last words"))
		if err := c.Send(patient(t), []byte("never read")); err != nil {
			t.Fatal(err)
		}
		w.close()
		if payload, _, err := c.Receive(patient(t), 0); err != nil || string(payload) != "last words" {
			t.Fatalf("received %q, %v", payload, err)
		}
		if _, _, err := c.Receive(patient(t), 0); err != io.EOF {
			t.Fatalf("a reset gave %v", err)
		}
	})
	t.Run("after a failed write the queue is still read", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		w.send(frame(0, "refused, because"))
		w.close()
		if err := c.Send(patient(t), []byte("hello")); err == nil {
			t.Fatal("sent to nobody")
		}
		if payload, _, err := c.Receive(patient(t), 0); err != nil || string(payload) != "refused, because" {
			t.Fatalf("received %q, %v", payload, err)
		}
	})
	for _, cut := range []int{1, 7, 8, 12} {
		t.Run(fmt.Sprintf("after %d bytes of a frame", cut), func(t *testing.T) {
			leak.Check(t)
			c, w := connect(t)
			dog := newCanary(t)
			w.send(frame(2, "payload")[:cut], dog.copies(2)...)
			w.close()
			if _, _, err := c.Receive(patient(t), 2); err != io.EOF {
				t.Fatalf("got %v, want EOF", err)
			}
			dog.requireClosed()
		})
	}
}

func TestDiscard(t *testing.T) {
	t.Run("closes what comes until the peer closes", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		dog := newCanary(t)
		w.send(rawHeader(1, 1, 7), dog.copies(1)...)
		if _, _, err := c.Receive(patient(t), 9); !errors.Is(err, scm.ErrReserved) {
			t.Fatal(err)
		}
		discarded := make(chan error, 1) // one result
		go func() { discarded <- c.Discard(context.Background()) }()
		for range 10 {
			w.send([]byte(strings.Repeat("junk", 1000)), dog.copies(20)...)
		}
		dog.requireClosed()
		w.shutdownWrite()
		w.close()
		if err := <-discarded; err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Receive(patient(t), 0); !errors.Is(err, scm.ErrReserved) && err != io.EOF {
			t.Errorf("Receive afterwards gave %v", err)
		}
	})
	t.Run("ends with its context", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		dog := newCanary(t)
		w.send(frame(1, "unread"), dog.copies(1)...)
		if err := c.Discard(ended()); err != errEnded {
			t.Fatalf("got %v, want the cause of the context", err)
		}
		dog.requireClosed()
		if _, _, err := c.Receive(ended(), 0); err == nil || errors.Is(err, errEnded) {
			t.Errorf("Receive after Discard gave %v", err)
		}
		w.close()
		if err := c.Discard(ended()); err != nil {
			t.Errorf("the peer has closed: %v", err)
		}
	})
	t.Run("does not listen to one who never stops", func(t *testing.T) {
		leak.Check(t)
		c, w := connect(t)
		talking := make(chan struct{})
		far, err := scm.OpenConn(scm.NewFD(w.fd))
		if err != nil {
			t.Fatal(err)
		}
		w.fd = -1
		go func() {
			defer close(talking)
			junk := make([]byte, 1<<16)
			for far.Send(context.Background(), junk) == nil {
			}
		}()
		ctx, cancel := context.WithCancelCause(context.Background())
		go cancel(errEnded)
		if err := c.Discard(ctx); err != errEnded {
			t.Errorf("got %v, want the cause of the context", err)
		}
		if err := far.Close(); err != nil {
			t.Error(err)
		}
		<-talking
	})
}

func TestCloseEndsReceive(t *testing.T) {
	leak.Check(t)
	c, w := connect(t)
	dog := newCanary(t)
	w.send(frame(1, "half")[:9], dog.copies(1)...)
	if _, _, err := c.Receive(ended(), 1); err != errEnded {
		t.Fatal(err)
	}
	received := make(chan error, 1) // one result
	go func() {
		_, _, err := c.Receive(context.Background(), 1)
		received <- err
	}()
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-received; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive gave %v", err)
	}
	dog.requireClosed()
	if err := c.Send(context.Background(), nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send gave %v", err)
	}
	if _, _, err := c.Receive(context.Background(), 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive gave %v", err)
	}
	if err := c.Discard(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Discard gave %v", err)
	}
	if _, err := c.Peer(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Peer gave %v", err)
	}
	if c.HungUp() {
		t.Error("HungUp of a closed connection")
	}
}

// refusing is the bit of FuzzReceive that has the side take little.
const refusing = 0x80

// FuzzReceive writes arbitrary bytes in arbitrary pieces, some with
// descriptors. Whatever comes: a frame or an error, never both, no more
// descriptors than were asked for, and none left open in the end.
func FuzzReceive(f *testing.F) {
	f.Add(frame(0, "plain"), []byte{0x0d}, byte(3))
	f.Add(frame(2, "two"), []byte{0x2f}, byte(3))
	f.Add(append(frame(1, "a"), frame(0, "b")...), []byte{0x19, 0x09}, byte(1))
	f.Add(frame(1, "dribble"), []byte{0x11, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, byte(1))
	f.Add(frame(1, "late"), []byte{0x08, 0x14}, byte(1))
	f.Add(rawHeader(1<<32-1, 65535, 65535), []byte{0x18}, byte(9))
	f.Add(rawHeader(100, 1, 0), []byte{0x18}, byte(9))
	f.Add([]byte{}, []byte{}, byte(0))
	f.Add(append(frame(1, "a"), frame(1, "refused")...), []byte{0x19, 0x19}, byte(refusing+1))
	f.Add(frame(0, "longer than it may be"), []byte{0x0f, 0x0f}, byte(refusing))
	f.Fuzz(func(t *testing.T, data, cuts []byte, maxFDs byte) {
		c, w := connect(t)
		limited := maxFDs&refusing != 0
		if limited {
			maxFDs &^= refusing
			c.LimitPayload(10)
		}
		dog := newCanary(t)
		receive := func() error {
			payload, fds, err := c.Receive(ended(), int(maxFDs))
			if err != nil && (payload != nil || fds != nil) {
				t.Fatalf("both %q with %d descriptors and %v", payload, len(fds), err)
			}
			if limit := map[bool]int{true: scm.MaxPayload, false: 10}[!limited]; len(payload) > limit {
				t.Fatalf("%d bytes of payload, at most %d are wanted", len(payload), limit)
			}
			if len(fds) > int(maxFDs) {
				t.Fatalf("%d descriptors, wanted %d", len(fds), maxFDs)
			}
			closeFDs(t, fds)
			return err
		}
		data = data[:min(len(data), 4096)]
		// A cut says how many bytes go into a message, and how many descriptors.
		for i := 0; len(data) > 0; i++ {
			size, nfds := len(data), 0
			if i < len(cuts) {
				size, nfds = min(max(int(cuts[i]&15), 1), len(data)), int(cuts[i]>>4)
			}
			if limited && i > 0 {
				nfds = 0 // the kernel may let none through any more
			}
			w.send(data[:size], dog.copies(nfds)...)
			data = data[size:]
			if limited && i == 0 {
				c.RefuseDescriptors() // what came before is closed
			}
			if i%3 == 0 {
				_ = receive() // checked within; what error it is depends on the bytes
			}
		}
		w.close()
		for receive() == nil {
		}
		if err := receive(); err != io.EOF {
			var frameErr *scm.FrameError
			if !errors.As(err, &frameErr) {
				t.Fatalf("ended with %v", err)
			}
			if err := c.Discard(ended()); err != nil {
				t.Fatal(err)
			}
		}
		dog.requireClosed()
	})
}

func TestLargestFrame(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	dog := newCanary(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), scm.MaxPayload/16)
	fds := dog.fds(scm.MaxDescriptors)
	sent := make(chan error, 1) // one result
	go func() { sent <- a.Send(patient(t), want, fds...) }()
	payload, got, err := b.Receive(patient(t), scm.MaxDescriptors)
	if err != nil || !bytes.Equal(payload, want) || len(got) != scm.MaxDescriptors {
		t.Fatalf("received %d bytes, %d descriptors, %v", len(payload), len(got), err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	closeFDs(t, got)
	closeFDs(t, fds)
	dog.requireClosed()
}

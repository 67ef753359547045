//go:build unix

package handoff_test

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/transcript"
	"github.com/crossfade-go/crossfade/scm"
)

// These tests put the bytes of the transcripts on real sockets.

// spell writes a frame one byte at a time, its descriptors on the first.
func spell(t *testing.T, c *net.UnixConn, frame []byte, fds []*scm.FD) {
	t.Helper()
	var nums []int
	for _, fd := range fds {
		if err := fd.Control(func(num uintptr) { nums = append(nums, int(num)) }); err != nil {
			t.Fatal(err)
		}
	}
	var rights []byte
	if len(nums) > 0 {
		rights = syscall.UnixRights(nums...)
	}
	for i := range frame {
		if _, _, err := c.WriteMsgUnix(frame[i:i+1], rights, nil); err != nil {
			t.Fatal(err)
		}
		rights = nil
	}
}

func readTapes(t *testing.T) map[string]*transcript.Conversation {
	t.Helper()
	tapes := make(map[string]*transcript.Conversation)
	for name := range scenes {
		tape, err := transcript.Read(filepath.Join(transcripts, name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		tapes[name] = tape
	}
	return tapes
}

// TestRecordedFrames: the frame layer reads what it wrote when a transcript was
// recorded, byte by byte, and writes the same bytes again.
func TestRecordedFrames(t *testing.T) {
	for name, tape := range readTapes(t) {
		t.Run(name, func(t *testing.T) {
			reader, writer := rawPair(t)
			sender, receiver := rawPair(t)
			for i, e := range tape.Events {
				if e.Frame == nil {
					continue
				}
				fds := fdsOf(t, e.Descriptors())
				written := make(chan struct{})
				go func() { defer close(written); spell(t, writer, e.Frame, fds) }()
				payload, got, err := reader.Receive(inTime(t), scm.MaxDescriptors)
				closeFDs(got)
				<-written
				if err != nil || len(got) != len(fds) || !bytes.Equal(payload, e.Payload()) {
					t.Fatalf("event %d, %s: read %x with %d descriptors, %v", i, e.Text, payload, len(got), err)
				}
				sent := make(chan error, 1) // has room, so that the goroutine ends with a failed test too
				ctx := inTime(t)
				go func() { sent <- sender.Send(ctx, e.Payload(), fds...) }()
				frame := make([]byte, len(e.Frame))
				if _, err := io.ReadFull(receiver, frame); err != nil {
					t.Fatal(err)
				}
				if err := <-sent; err != nil || !bytes.Equal(frame, e.Frame) {
					t.Fatalf("event %d, %s: written as %x, %v", i, e.Text, frame, err)
				}
			}
		})
	}
}

// TestARecordedPredecessorOnASocket spells a recorded predecessor's bytes, with
// real descriptors, to a successor on a real socket. (Real processes hear the
// recorded successors in the tests of package crossfade.)
func TestARecordedPredecessorOnASocket(t *testing.T) {
	for name, tape := range readTapes(t) {
		c := scenes[name]
		if c.client != nil || c.controller != nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			conn, predecessor := rawPair(t)
			back := mustConn(t, predecessor)
			r, cfg := successorOn(t)
			cfg.Process, cfg.WaitUntil = handoff.Process{Instance: "v2", PID: 22}, time.Time{}
			if c.asks != nil {
				c.asks(cfg)
			}
			s := &successorProgram{t: t, receiver: r, connected: make(chan struct{}), result: make(chan error, 1)}
			ctx := inTime(t)
			go func() {
				defer close(s.connected)
				s.taking, s.err = handoff.Connect(ctx, conn, cfg)
			}()
			for i, e := range tape.Events {
				switch {
				case e.Kind == transcript.Act:
					s.act(strings.Fields(e.Text))
				case e.Kind == transcript.FromPredecessor && e.Text == transcript.End:
					if err := back.Close(); err != nil {
						t.Fatal(err)
					}
				case e.Kind == transcript.FromPredecessor:
					spell(t, predecessor, e.Frame, fdsOf(t, e.Descriptors()))
				case e.Text != transcript.End: // the successor's end shows in what it does
					payload, _, err := back.Receive(inTime(t), 0)
					if err != nil || shortName(member(true, payload)) != e.Text {
						t.Fatalf("event %d: heard %s, %v instead of %s", i, shortName(member(true, payload)), err, e.Text)
					}
				}
			}
			s.owns() // Ready has returned, if it was called
			if s.taking != nil {
				s.taking.Leave() // everything that has come was handled before
			}
			if owns := strings.HasPrefix(tape.Successor, "owner"); s.owns() != owns {
				t.Errorf("the successor has owned: %t, and was recorded as %s", s.owns(), tape.Successor)
			}
		})
	}
}

// successorProgram is a program that does what a transcript says.
type successorProgram struct {
	t         *testing.T
	receiver  *receiver
	connected chan struct{}
	taking    *handoff.Taking
	err       error
	called    bool
	result    chan error // of Ready, taken once
	ready     error
}

func (s *successorProgram) act(words []string) {
	s.t.Helper()
	if words[0] != "successor" {
		return
	}
	<-s.connected
	if s.taking == nil {
		return
	}
	switch words[1] {
	case "Progress":
		s.taking.Progress("warming up", 5*time.Minute)
	case "Ready":
		var unclaimed []handoff.Descriptor
		for _, d := range s.receiver.got {
			if slices.Contains(words[2:], strconv.FormatUint(d.ID, 10)) {
				unclaimed = append(unclaimed, d)
			}
		}
		s.called = true
		ctx := inTime(s.t)
		go func() { s.result <- s.taking.Ready(ctx, unclaimed) }()
	case "Settle":
		s.owns() // it was ready by then
		go func() { _ = s.taking.Settle(s.t.Context()) }()
	case "Rollback":
		s.owns()
		go func() { _ = s.taking.Rollback(s.t.Context(), "not good enough") }()
	case "Abort":
		s.taking.Abort(errBoom)
	case "Leave":
		s.taking.Leave()
	}
}

// owns waits for Connect and Ready, as far as they were called, and reports
// whether the service was given to this program, which has not given it back.
func (s *successorProgram) owns() bool {
	<-s.connected
	if s.err != nil || !s.called {
		return false
	}
	if s.result != nil {
		s.ready, s.result = <-s.result, nil
	}
	return s.ready == nil && s.receiver.count("Fail") == 0
}

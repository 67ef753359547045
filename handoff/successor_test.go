package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

func TestSuccessorLimits(t *testing.T) {
	tests := []struct {
		name string
		said []proto.Message
	}{
		{"Welcome", nil},
		{"ManifestPage", []proto.Message{welcome(1)}},
	}
	for _, tt := range tests {
		bubble(t, "patience at "+tt.name, func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			elapse(patience / 2)
			p.say(tt.said...)
			if len(tt.said) > 0 {
				elapse(patience / 2) // it counts for each step
			}
			elapse(patience/2 - time.Nanosecond)
			select {
			case <-c.connected:
				t.Fatalf("Connect: %v, too early", c.err)
			default:
			}
			elapse(patience/2 + time.Nanosecond)
			<-c.connected
			want := "successor, at " + tt.name + ": no " + tt.name + " within 7s"
			if c.err == nil || c.err.Error() != want {
				t.Errorf("Connect: %v, want %v", c.err, want)
			}
			mustMatch(t, c.err, is(handoff.ErrTimeout))
			if _, last, closed := p.hearAll(); !closed || last.(*pb.Abort).GetCode() != pb.AbortCode_ABORT_CODE_TIMEOUT {
				t.Errorf("the last word is %v, closed: %v", last, closed)
			}
		})
	}
	missing := []string{"ManifestPage", "Commit"}
	for i, said := range [][]proto.Message{{}, {manifestPage(1)}} {
		bubble(t, fmt.Sprintf("Commit, %d", i), func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			p.say(welcome(0), manifestPage(0))
			c.mustHaveReceived()
			elapse(24 * time.Hour) // up to Ready the predecessor's limit holds
			c.ready(t.Context())
			p.say(said...)
			elapse(limits.Commit - time.Nanosecond)
			synctest.Wait()
			if c.receiver.count("Fail") != 0 {
				t.Fatalf("calls are %v, too early", &c.receiver.calls)
			}
			elapse(time.Nanosecond)
			synctest.Wait()
			err := c.outcome()
			mustMatch(t, err, is(handoff.ErrTimeout), "successor, at "+missing[i]+": no "+missing[i]+" within 11s")
			if errors.Is(err, handoff.ErrCancelled) {
				t.Error("the error says that the caller has cancelled")
			}
			p.say(&pb.Commit{}) // too late, and not read
			p.hearAll()
			if c.receiver.count("Own") != 0 || c.receiver.count("Fail") != 1 {
				t.Errorf("calls are %v", &c.receiver.calls)
			}
		})
	}
}

func TestConnectCancelled(t *testing.T) {
	for i, said := range [][]proto.Message{{}, {welcome(1)}} {
		for _, cause := range []error{errBoom, io.EOF, fmt.Errorf("input: %w", io.EOF)} {
			bubble(t, fmt.Sprintf("after %d messages, by %v", i, cause), func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				c := newCandidate(t)
				c.dial(ctx)
				p := &player{t: t, end: c.pipe.server}
				p.say(said...)
				cancel(cause)
				<-c.connected
				mustMatch(t, c.err, is(handoff.ErrCancelled, cause))
				if errors.Is(c.err, handoff.ErrLost) {
					t.Error("the error says that the owner is gone")
				}
				if _, last, closed := p.hearAll(); !closed || last.(*pb.Abort).GetCode() != pb.AbortCode_ABORT_CODE_CANCELLED {
					t.Errorf("the last word is %v, closed: %v", last, closed)
				}
			})
		}
	}
}

// TestReadyCancelled cancels with causes that must not be taken for the
// predecessor's end: it lives, and owns.
func TestReadyCancelled(t *testing.T) {
	for _, cause := range []error{errBoom, io.EOF, handoff.ErrLost, handoff.ErrTimeout} {
		bubble(t, fmt.Sprint("before Commit, by ", cause), func(t *testing.T) {
			o := newOwner(t)
			block := make(chan struct{})
			o.service.onFreeze = func(context.Context) { <-block }
			c := o.connected()
			ctx, cancel := context.WithCancelCause(t.Context())
			c.ready(ctx)
			cancel(cause)
			synctest.Wait()
			mustMatch(t, c.outcome(), is(handoff.ErrCancelled, cause))
			mustHaveCalled(t, &c.receiver.calls, "Receive 3, Fail")
			close(block)
			synctest.Wait()
			o.mustBe(handoff.StateOwner)
			mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Thaw")
			o.takeOverAgain()
		})
	}
	bubble(t, "before Ready was called", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c.ready(ctx)
		mustMatch(t, c.outcome(), is(handoff.ErrCancelled, context.Canceled))
		if c.pipe.sent("> Ready") {
			t.Error("Ready was sent all the same")
		}
		o.takeOver()
	})
	bubble(t, "after Commit it is too late", func(t *testing.T) {
		o := newOwner(t)
		ctx, cancel := context.WithCancel(t.Context())
		c := newCandidate(t)
		c.receiver.onOwn = cancel
		c.connect(t.Context(), o).ready(ctx)
		c.mustOwn()
		o.mustBe(handoff.StateDraining)
	})
	bubble(t, "Abort crosses Commit", func(t *testing.T) {
		o := newOwner(t)
		ctx, cancel := context.WithCancel(t.Context())
		c := newCandidate(t)
		c.pipe.before = func(message string) {
			if message == "< Commit" {
				cancel()
				elapse(time.Nanosecond) // the fake clock moves when all others have come to rest
			}
		}
		c.connect(t.Context(), o)
		c.ready(ctx)
		elapse(time.Second)
		synctest.Wait()
		mustMatch(t, c.outcome(), is(handoff.ErrCancelled))
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Fail")
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Resume")
		o.takeOver()
	})
}

func TestReceiverThatFails(t *testing.T) {
	for _, cause := range []error{errBoom, io.EOF} {
		bubble(t, "the offer, "+cause.Error(), func(t *testing.T) {
			o := newOwner(t)
			c := newCandidate(t)
			c.receiver.receiveErr = cause
			c.connect(t.Context(), o)
			<-c.connected
			mustMatch(t, c.err, is(handoff.ErrDescriptor, cause), "successor, at ManifestPage")
			if errors.Is(c.err, handoff.ErrLost) {
				t.Error("the error says that the owner is gone")
			}
			mustMatch(t, errors.New(o.failure()), nil, "aborted by the other side", cause.Error())
			o.takeOver()
		})
		bubble(t, "the changes, "+cause.Error(), func(t *testing.T) {
			o := newOwner(t)
			c := o.connected()
			c.receiver.applyErr = cause
			c.ready(t.Context())
			mustMatch(t, c.outcome(), is(handoff.ErrDescriptor, cause))
			mustMatch(t, errors.New(o.failure()), nil, "aborted by the other side", cause.Error())
			mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Thaw")
			o.takeOver()
		})
	}
}

func TestLeave(t *testing.T) {
	bubble(t, "of a candidate", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.taking.Leave()
		synctest.Wait()
		if !c.pipe.sent("> Abort: ABORT_CODE_STOPPING") {
			t.Errorf("on the wire was\n%s", c.pipe.transcript())
		}
		mustMatch(t, c.taking.Ready(t.Context(), nil), is(handoff.ErrStopping))
		o.takeOver()
	})
	bubble(t, "of an heir", func(t *testing.T) {
		c := newOwner(t).connected()
		c.pipe.server.kill()
		synctest.Wait()
		c.taking.Leave()
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Inherit 2, Gone, Fail")
	})
	bubble(t, "of an owner whose predecessor has not retired", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		c.pipe.after = func(message string) {
			if message == "> CommitAck" {
				c.pipe.server.freeze()
			}
		}
		c.connect(t.Context(), o).ready(t.Context())
		c.mustOwn()
		c.taking.Leave()
		c.pipe.server.thaw()
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Resume")
		o.takeOver()
	})
	bubble(t, "of an owner that is deaf", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		p.say(welcome(0), manifestPage(0))
		c.ready(t.Context())
		p.say(manifestPage(1), &pb.Commit{})
		p.write(unknownMember)
		c.mustOwn()
		c.taking.Leave()
		if !c.pipe.client.isClosed() {
			t.Error("the connection is still open")
		}
	})
	bubble(t, "twice at once", func(t *testing.T) {
		c := newOwner(t).connected()
		done := make(chan struct{})
		go func() { defer close(done); c.taking.Leave() }()
		c.taking.Leave()
		<-done
	})
}

func TestAbortByTheProgram(t *testing.T) {
	for _, cause := range []error{errBoom, io.EOF} {
		bubble(t, "before Ready, "+cause.Error(), func(t *testing.T) {
			o := newOwner(t)
			c := o.connected()
			c.taking.Abort(cause)
			mustHaveCalled(t, &c.receiver.calls, "Receive 3, Fail")
			mustMatch(t, c.taking.Ready(t.Context(), nil), is(cause))
			mustMatch(t, errors.New(o.failure()), nil, "aborted by the other side: successor, at the call of Ready: "+cause.Error())
			o.takeOver()
		})
	}
	bubble(t, "as an owner it is ignored", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.ready(t.Context())
		c.mustOwn()
		c.taking.Abort(errBoom)
		c.pipe.server.kill()
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Own 2, Settled, Gone")
		c.taking.Abort(errBoom) // the machine has ended
	})
}

func TestSuccessorProgress(t *testing.T) {
	bubble(t, "after Ready it does nothing", func(t *testing.T) {
		c := newOwner(t).connected()
		c.ready(t.Context())
		c.mustOwn()
		c.taking.Progress("late", time.Hour)
		synctest.Wait()
		if c.pipe.sent("> Progress") {
			t.Errorf("on the wire was\n%s", c.pipe.transcript())
		}
	})
	bubble(t, "any text and any time can be sent", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.taking.Progress("x"+strings.Repeat("é", handoff.MaxStatus)+"\n\xff", -time.Hour)
		synctest.Wait()
		if got := o.server.Status(t.Context()).Attempt.Status; !strings.HasPrefix(got, "xéé") || len(got) > handoff.MaxStatus {
			t.Errorf("the status has %d bytes: %.10q...", len(got), got)
		}
		c.ready(t.Context())
		c.mustOwn()
	})
	bubble(t, "to a predecessor that does not read, Ready still follows", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.pipe.server.freeze()
		for range 100 {
			c.taking.Progress("busy", time.Second)
		}
		c.ready(t.Context())
		c.pipe.server.thaw()
		synctest.Wait()
		c.mustOwn()
	})
}

func TestUnclaimed(t *testing.T) {
	bubble(t, "are named to the predecessor", func(t *testing.T) {
		o := newOwner(t)
		o.service.offer.Descriptors = descriptors(t, 300)
		c := o.connected()
		c.ready(t.Context(), c.receiver.got[100:]...)
		c.mustOwn()
		var ids []uint64
		for id := uint64(101); id <= 300; id++ {
			ids = append(ids, id)
		}
		mustHaveCalled(t, &o.service.calls, fmt.Sprintf("Offer, Freeze, Pause %v, Pause [], Retire", ids))
	})
}

func TestStrangeBuildVersion(t *testing.T) {
	bubble(t, "does not keep Hello from being sent", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		c.cfg.Process.BuildVersion = "v2\xff\n"
		c.connect(t.Context(), o)
		c.mustHaveReceived()
		if got := o.server.Status(t.Context()).Attempt.Successor.BuildVersion; got != "v2??" {
			t.Errorf("the status shows the version %q", got)
		}
	})
}

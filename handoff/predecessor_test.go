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
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

func TestPredecessorLimits(t *testing.T) {
	tests := []struct {
		name  string
		said  []proto.Message
		limit time.Duration
		want  string
	}{
		{"Prepared", []proto.Message{hello()}, limits.Ready, "no Prepared within 1m0s"},
		{"PageAck", []proto.Message{hello(), prepared}, limits.Ready, "no PageAck within 1m0s"},
		{"Received", []proto.Message{hello(), prepared, pageAck(1)}, limits.Ready, "no Received within 1m0s"},
		{"Ready", []proto.Message{hello(), prepared, pageAck(1), received}, limits.Ready, "no Ready within 1m0s"},
		{"PageAck", []proto.Message{hello(), prepared, pageAck(1), received, ready}, limits.Commit, "no PageAck within 11s"},
		{"FinalReceived", []proto.Message{hello(), prepared, pageAck(1), received, ready, pageAck(2)}, limits.Commit, "no FinalReceived within 11s"},
	}
	for i, tt := range tests {
		bubble(t, fmt.Sprintf("%d %s", i, tt.name), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			p.say(tt.said...)
			p.hearAll()
			elapse(tt.limit - time.Nanosecond)
			p.mustHear()
			elapse(time.Nanosecond)
			m, _ := p.hear()
			abort, ok := m.(*pb.Abort)
			if !ok || abort.GetCode() != pb.AbortCode_ABORT_CODE_TIMEOUT || !strings.Contains(abort.GetReason(), tt.want) {
				t.Errorf("the answer is %v, want an Abort for %q", m, tt.want)
			}
			p.mustHear("EOF")
			if want := "predecessor, at " + tt.name + ": " + tt.want; o.failure() != want {
				t.Errorf("the failure is %q, want %q", o.failure(), want)
			}
			if o.service.count("Thaw") != 1 {
				t.Errorf("calls are %v", &o.service.calls)
			}
			o.takeOver()
		})
	}
	bubble(t, "Hello", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		elapse(limits.Hello)
		m, _ := p.hear()
		if refuse, ok := m.(*pb.Refuse); !ok || !strings.Contains(refuse.GetReason(), "no Hello within 3s") {
			t.Errorf("the answer is %v", m)
		}
		p.mustHear("EOF")
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "a hook that honours its context", func(t *testing.T) {
		o := newOwner(t)
		o.service.onFreeze = func(ctx context.Context) {
			<-ctx.Done()
			o.service.freezeErr = context.Cause(ctx)
		}
		c := o.connected()
		c.ready(t.Context())
		elapse(limits.Commit * 4 / 5) // the successor, which has the same limit, is to learn of it
		synctest.Wait()
		mustMatch(t, c.outcome(), []error{handoff.ErrHook, handoff.ErrAborted}, "no last page within 8.8s")
		mustMatch(t, errors.New(o.failure()), nil, "predecessor, at the last page: hook failed: no last page within 8.8s")
		o.takeOverAgain()
	})
}

// takeOverAgain is takeOver with hooks that do nothing.
func (o *owner) takeOverAgain() {
	o.t.Helper()
	o.service.onOffer, o.service.onFreeze = nil, nil
	o.service.offerErr, o.service.freezeErr = nil, nil
	o.takeOver()
}

func TestProgress(t *testing.T) {
	received := func(t *testing.T) (*owner, *player) {
		o := newOwner(t)
		p := o.client()
		p.say(hello(), prepared, pageAck(1), received)
		p.hearAll()
		return o, p
	}
	progress := func(status string, extend time.Duration) *pb.Progress {
		return &pb.Progress{Status: status, Extend: durationpb.New(extend)}
	}
	bubble(t, "moves the deadline and shows in the status", func(t *testing.T) {
		o, p := received(t)
		elapse(50 * time.Second)
		p.say(progress("loading\x1b[2J", 5*time.Minute))
		st := o.server.Status(t.Context())
		if a := st.Attempt; a == nil || a.Status != "loading?[2J" || a.Step != "Ready" || a.Successor.Instance != "by hand" ||
			a.Successor.Generation != 2 || time.Until(a.Deadline) != 5*time.Minute || time.Since(a.Began) != 50*time.Second {
			t.Errorf("the status shows the attempt %+v", st.Attempt)
		}
		elapse(5*time.Minute - time.Nanosecond)
		o.mustBe(handoff.StateOffering)
		elapse(time.Nanosecond)
		p.mustHear("Abort", "EOF")
		if want := "no Ready within 5m50s"; !strings.Contains(o.failure(), want) {
			t.Errorf("the failure is %q, want %q", o.failure(), want)
		}
	})
	bubble(t, "never shortens", func(t *testing.T) {
		_, p := received(t)
		p.say(progress("", 0), progress("", -time.Hour))
		elapse(limits.Ready - time.Nanosecond)
		p.mustHear()
	})
	bubble(t, "is capped, counted from the offer", func(t *testing.T) {
		o, p := received(t)
		p.say(progress("", 1<<62))
		elapse(limits.MaxReady - time.Nanosecond)
		o.mustBe(handoff.StateOffering)
		elapse(time.Nanosecond)
		p.mustHear("Abort", "EOF")
		if want := "no Ready within 10m0s"; !strings.Contains(o.failure(), want) {
			t.Errorf("the failure is %q, want %q", o.failure(), want)
		}
	})
	bubble(t, "a stream of it does not put the deadline off", func(t *testing.T) {
		o, p := received(t)
		p.end.peer.freeze()
		for range 1000 {
			p.say(progress("", time.Hour))
		}
		elapse(limits.MaxReady + time.Second)
		p.end.peer.thaw()
		p.mustHear("Abort", "EOF")
		if p.end.peer.reads > 100 {
			t.Errorf("%d messages were read before the deadline was noticed", p.end.peer.reads)
		}
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "a long status is cut between two characters", func(t *testing.T) {
		o, p := received(t)
		p.say(progress("x"+strings.Repeat("é", handoff.MaxStatus), time.Second))
		q := newPipe(t)
		go o.server.Serve(q.server, nil)
		st, err := handoff.QueryStatusOn(t.Context(), q.client)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Attempt.Status; len(got) < handoff.MaxStatus-1 || len(got) > handoff.MaxStatus || !strings.HasPrefix(got, "xéé") {
			t.Errorf("the status has %d bytes: %.10q...", len(got), got)
		}
	})
}

// TestAMessageBeatsTheTimer has a message and a deadline happen while the
// machine is not looking. The message must win each time.
func TestAMessageBeatsTheTimer(t *testing.T) {
	const rounds = 200
	bubble(t, "Ready", func(t *testing.T) {
		for range rounds {
			o := newOwner(t)
			p := o.client()
			p.say(hello(), prepared, pageAck(1), received)
			p.end.peer.freeze()
			elapse(limits.Ready)
			p.say(ready)
			p.end.peer.thaw()
			p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1")
			p.close()
		}
	})
	bubble(t, "FinalReceived", func(t *testing.T) {
		for range rounds {
			o := newOwner(t)
			p := o.client()
			p.say(hello(), prepared, pageAck(1), received, ready)
			p.end.peer.freeze()
			p.say(pageAck(2), finalReceived)
			elapse(limits.Commit)
			p.end.peer.thaw()
			p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1", "Commit")
			o.mustBe(handoff.StateStandby)
			p.close()
		}
	})
	bubble(t, "Commit", func(t *testing.T) {
		for range rounds {
			c := newCandidate(t)
			p := c.server()
			p.say(welcome(0), manifestPage(0))
			c.ready(t.Context())
			p.say(manifestPage(1))
			c.pipe.client.freeze()
			p.say(&pb.Commit{})
			elapse(limits.Commit)
			c.pipe.client.thaw()
			synctest.Wait()
			c.mustOwn()
			p.close()
		}
	})
	bubble(t, "Abort against Stop", func(t *testing.T) {
		for range rounds {
			o := newOwner(t)
			p := o.client()
			p.say(hello(), prepared, pageAck(1), received)
			p.end.peer.freeze()
			p.say(&pb.Abort{Reason: "mine"})
			go o.server.Stop()
			synctest.Wait()
			p.end.peer.thaw()
			p.mustHear("Welcome", "ManifestPage 0", "EOF")
			if !strings.Contains(o.failure(), "mine") {
				t.Fatalf("the failure is %q", o.failure())
			}
		}
	})
	bubble(t, "a command against the deadline", func(t *testing.T) {
		for range rounds {
			o := newOwner(t)
			p := o.client()
			p.say(hello(), prepared, pageAck(1), received)
			p.end.peer.freeze()
			go o.server.Stop()
			elapse(limits.Ready)
			p.end.peer.thaw()
			if _, last, _ := p.hearAll(); last.(*pb.Abort).GetCode() != pb.AbortCode_ABORT_CODE_STOPPING {
				t.Fatalf("the last word is %v", last)
			}
		}
	})
}

func TestACommandBeatsTheTimer(t *testing.T) {
	bubble(t, "when both came while a hook ran", func(t *testing.T) {
		o := newOwner(t)
		block := make(chan struct{})
		o.service.onOffer = func(context.Context) { <-block }
		p := o.client()
		p.say(hello())
		go o.server.Stop()
		elapse(limits.Ready + time.Second)
		close(block)
		if _, last, _ := p.hearAll(); last.(*pb.Abort).GetCode() != pb.AbortCode_ABORT_CODE_STOPPING {
			t.Errorf("the last word is %v", last)
		}
	})
}

func TestHooksThatFail(t *testing.T) {
	// What a hook returns may wrap anything. None of it may be taken for the
	// candidate's end: the candidate would then be left without an Abort, and
	// own as well.
	causes := []error{errBoom, io.EOF, fmt.Errorf("reading: %w", io.EOF), &handoff.AbortedError{Reason: "of another handoff"}, handoff.ErrLost, context.Canceled}
	for i, cause := range causes {
		bubble(t, fmt.Sprintf("Offer, %d", i), func(t *testing.T) {
			o := newOwner(t)
			o.service.offerErr = cause
			c := newCandidate(t).connect(t.Context(), o)
			<-c.connected
			mustMatch(t, c.err, is(handoff.ErrAborted, handoff.ErrHook), cause.Error())
			mustHaveCalled(t, &o.service.calls, "Offer, Thaw")
			o.takeOverAgain()
		})
		bubble(t, fmt.Sprintf("Freeze, %d", i), func(t *testing.T) {
			o := newOwner(t)
			o.service.freezeErr = cause
			c := o.connected()
			c.ready(t.Context())
			mustMatch(t, c.outcome(), is(handoff.ErrAborted, handoff.ErrHook), cause.Error())
			mustHaveCalled(t, &c.receiver.calls, "Receive 3, Fail")
			mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Thaw")
			mustMatch(t, errors.New(o.failure()), nil, "predecessor, at the last page: hook failed: "+cause.Error())
			o.takeOverAgain()
		})
	}
	bubble(t, "more descriptors than the protocol carries", func(t *testing.T) {
		o := newOwner(t)
		fd := o.service.offer.Descriptors[0]
		for len(o.service.offer.Descriptors) <= handoff.MaxDescriptors {
			o.service.offer.Descriptors = append(o.service.offer.Descriptors, fd)
		}
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAborted, handoff.ErrLimit), "131073", "131072")
		o.mustBe(handoff.StateOwner)
	})
}

func TestAnAbortThatCannotBeWritten(t *testing.T) {
	stuck := func(t *testing.T) (*owner, *player) {
		o := newOwner(t)
		p := o.client()
		p.say(hello(), prepared, pageAck(1), received)
		p.hearAll()
		p.end.peer.fill()
		elapse(limits.Ready + handoff.WriteTimeout)
		synctest.Wait()
		o.mustBe(handoff.StateOffering)
		p.mustHear() // and it is open
		return o, p
	}
	bubble(t, "nobody else may take over before the candidate has gone", func(t *testing.T) {
		o, p := stuck(t)
		for range 3 {
			elapse(24 * time.Hour)
			c := newCandidate(t).connect(t.Context(), o)
			<-c.connected
			mustMatch(t, c.err, is(handoff.ErrBusy), `instance "by hand"`)
		}
		if w := o.server.Status(t.Context()).Warnings; len(w) != 1 || !strings.Contains(w[0], `ends when instance "by hand"`) {
			t.Errorf("the warnings are %q", w)
		}
		mustHaveCalled(t, &o.service.calls, "Offer, Thaw") // what stood still goes on at once
		p.say(received, ready, finalReceived)              // to deaf ears
		o.mustBe(handoff.StateOffering)
		p.close()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Thaw")
		mustMatch(t, errors.New(o.failure()), nil, "no Ready within 1m0s")
		o.takeOver()
	})
	bubble(t, "an owner that stops is out, and leaves the path to the candidate", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.pipe.server.fill()
		elapse(limits.Ready + handoff.WriteTimeout)
		synctest.Wait()
		c.receiver.onOwn = func() { o.mustBe(handoff.StateOut) }
		if o.server.Stop() {
			t.Error("Stop says that the path is this process's to unlink")
		}
		o.mustBe(handoff.StateOut)
		c.ready(t.Context())
		elapse(time.Second)
		if c.receiver.count("Own") != 0 {
			t.Error("the candidate owns although this process has not let go of anything yet")
		}
		o.server.Finish()
		synctest.Wait()
		c.mustOwn()
	})
	bubble(t, "an owner that stops at this very moment", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.pipe.server.fill()
		owned := make(chan bool, 1)
		go func() { owned <- o.server.Stop() }()
		elapse(handoff.WriteTimeout)
		synctest.Wait()
		if len(owned) == 0 || <-owned {
			t.Error("Stop waits, or says that the path is this process's to unlink")
		}
		mustHaveCalled(t, &o.service.calls, "Offer") // nothing goes on that would have to stop again
		o.server.Finish()
		c.ready(t.Context())
		c.mustOwn()
		o.mustBe(handoff.StateOut)
	})
	bubble(t, "before the offer it need not be written", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		p.say(hello())
		p.end.peer.fill()
		elapse(limits.Ready + handoff.WriteTimeout)
		p.mustHear("Welcome", "EOF")
		o.takeOver()
	})
	bubble(t, "the candidate's own reason is read first", func(t *testing.T) {
		o := newOwner(t)
		o.service.offer.Descriptors = descriptors(t, 600)
		p := o.client()
		p.end.peer.freeze()
		p.say(hello(), prepared, &pb.Abort{Code: pb.AbortCode_ABORT_CODE_LIMIT, Reason: "no room"})
		p.close()
		p.end.peer.thaw()
		synctest.Wait()
		mustMatch(t, errors.New(o.failure()), nil, "no room")
		o.takeOver()
	})
}

func TestStandby(t *testing.T) {
	bubble(t, "lasts as long as the successor stands still", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		for range 100 {
			elapse(time.Hour)
			o.mustBe(handoff.StateStandby)
		}
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze") // it accepts
		st := o.server.Status(t.Context())
		if st.Attempt == nil || st.Attempt.Step != "CommitAck" || !st.Attempt.Deadline.IsZero() {
			t.Errorf("the status shows the attempt %+v", st.Attempt)
		}
		p.mustHear()
		p.say(commitAck(true))
		p.mustHear("Retired")
		o.mustBe(handoff.StateDraining)
	})
	bubble(t, "Commit that cannot be written is waited for as well", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		p.say(hello(), prepared, pageAck(1), received, ready, pageAck(2))
		p.end.peer.fill()
		p.say(finalReceived)
		elapse(24 * time.Hour)
		o.mustBe(handoff.StateStandby)
		p.close()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Resume")
	})
	bubble(t, "Retired that cannot be written is no decision", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.end.peer.fill()
		p.say(commitAck(true))
		elapse(24 * time.Hour)
		o.mustBe(handoff.StateProbation)
		p.close()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Resume")
		mustMatch(t, errors.New(o.failure()), nil, "at Settle or Rollback", "no room to write a message within 5s")
		o.takeOver()
	})
	bubble(t, "Resumed that cannot be written is waited for as well", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		p.mustHear("ProbationOver")
		p.end.peer.fill()
		p.say(&pb.Rollback{Reason: "not good"})
		elapse(24 * time.Hour)
		o.mustBe(handoff.StateProbation)
		p.mustHear() // an end without Resumed would make the successor own again
		p.close()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Resume")
		o.takeOver()
	})
	bubble(t, "the owner decides when its probation is over", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		p.mustHear("ProbationOver")
		elapse(1000 * time.Hour)
		p.mustHear()
		o.mustBe(handoff.StateProbation)
	})
}

func TestStop(t *testing.T) {
	// stop has o stop and returns a channel for its result.
	stop := func(o *owner) chan bool {
		owned := make(chan bool, 1)
		go func() { owned <- o.server.Stop() }()
		synctest.Wait()
		return owned
	}
	var said []proto.Message
	for i, at := range serverSteps {
		said = append(said, at.said...)
		if !at.state.Owns() || i == 0 {
			continue
		}
		bubble(t, fmt.Sprintf("%d, at %s: Abort first", i, at.step), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			p.say(said...)
			p.hearAll()
			owned := <-stop(o)
			m, _ := p.hear()
			if a, ok := m.(*pb.Abort); !ok || a.GetCode() != pb.AbortCode_ABORT_CODE_STOPPING || a.GetReason() == "" {
				t.Errorf("the candidate hears %v", m)
			}
			p.mustHear("EOF")
			if !owned {
				t.Error("Stop says that this process was not the owner")
			}
			o.mustBe(handoff.StateOut)
			mustHaveCalled(t, &o.service.calls, at.calls)
		})
	}
	bubble(t, "of the owner at rest", func(t *testing.T) {
		o := newOwner(t)
		if !o.server.Stop() || o.server.Stop() {
			t.Error("the first Stop, and no other, says that this process was the owner")
		}
		o.mustBe(handoff.StateOut)
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrStopping))
	})
	bubble(t, "of a candidate", func(t *testing.T) {
		o := newOwner(t)
		s := handoff.NewServer(o.cfg)
		if s.Stop() {
			t.Error("Stop says that a candidate was the owner")
		}
	})
	bubble(t, "of an heir", func(t *testing.T) {
		o := newOwner(t)
		s := handoff.NewServer(o.cfg)
		s.Inherit(7)
		if got := s.Generation(); got != 7 || !s.Stop() {
			t.Errorf("an heir of generation %d is not about to be the owner", got)
		}
	})
	bubble(t, "on standby: the successor settles", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		owned := stop(o)
		p.mustHear("ProbationOver")
		p.say(commitAck(true))
		p.mustHear("Retired")
		if <-owned {
			t.Error("Stop says that this process was the owner")
		}
		o.mustBe(handoff.StateDraining)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Retire")
	})
	bubble(t, "on standby: the successor ends", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		owned := stop(o)
		p.close()
		if !<-owned {
			t.Error("Stop says that this process was not the owner")
		}
		o.mustBe(handoff.StateOut)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Resume")
	})
	bubble(t, "on standby: the successor has aborted", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		owned := stop(o)
		p.say(&pb.Abort{Reason: "no"})
		if !<-owned {
			t.Error("Stop says that this process was not the owner")
		}
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Resume")
	})
	bubble(t, "on standby: the successor stands still", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		owned := stop(o)
		elapse(limits.Commit)
		if <-owned {
			t.Error("Stop says that this process was the owner")
		}
		p.mustHear("ProbationOver", "EOF")
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Retire")
	})
	bubble(t, "on standby: the successor owns and has not decided", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		owned := stop(o)
		p.say(commitAck(false))
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause []") // from then on only the successor accepts
		o.mustBe(handoff.StateProbation)
		p.say(settle)
		p.mustHear("ProbationOver", "Retired")
		if <-owned {
			t.Error("Stop says that this process was the owner")
		}
	})
	bubble(t, "in probation: the successor settles late", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		owned := stop(o)
		p.mustHear("ProbationOver", "ProbationOver")
		elapse(limits.Commit - time.Nanosecond)
		p.say(settle)
		p.mustHear("Retired")
		if <-owned {
			t.Error("Stop says that this process was the owner")
		}
	})
	bubble(t, "in probation: an Abort is no release", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		owned := stop(o)
		p.say(&pb.Abort{Reason: "too late"})
		if <-owned {
			t.Error("Stop says that this process was the owner")
		}
	})
	bubble(t, "of a deaf one", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.write(unknownMember)
		owned := stop(o)
		if <-owned {
			t.Error("Stop says that this process was the owner")
		}
		o.mustBe(handoff.StateDraining)
	})
	bubble(t, "while it drains", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughRetired(p)
		if <-stop(o) {
			t.Error("Stop says that this process was the owner")
		}
		o.mustBe(handoff.StateDraining)
		p.mustHear() // the connection stays open until the process ends
	})
	bubble(t, "twice at once", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		first, second := stop(o), stop(o)
		if len(first)+len(second) != 0 {
			t.Error("a call has not waited for the successor's decision")
		}
		p.close()
		if a, b := <-first, <-second; a == b {
			t.Errorf("two calls of Stop gave %v and %v, want one true", a, b)
		}
	})
}

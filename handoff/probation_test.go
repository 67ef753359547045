package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

const granted = 30 * time.Second

// granting is an owner that gives a probation to who does not ask for one.
func granting(c *handoff.ServerConfig) {
	c.Limits.Probation, c.Limits.MaxProbation = granted, 10*time.Minute
}

// onProbation returns an owner whose successor owns and is on probation.
func onProbation(t *testing.T, configure ...func(*candidate)) (*owner, *candidate) {
	t.Helper()
	o := newOwner(t, granting)
	c := newCandidate(t)
	for _, f := range configure {
		f(c)
	}
	c.connect(t.Context(), o)
	c.mustHaveReceived()
	c.ready(t.Context())
	c.mustOwn()
	o.mustBe(handoff.StateProbation)
	return o, c
}

// alone returns a successor on probation whose predecessor is played.
func alone(t *testing.T, configure ...func(*candidate)) (*candidate, *player) {
	t.Helper()
	c := newCandidate(t)
	for _, f := range configure {
		f(c)
	}
	p := c.server()
	w := welcome(0)
	w.Probation = durationpb.New(granted)
	p.say(w, manifestPage(0))
	c.mustHaveReceived()
	c.ready(t.Context())
	p.say(manifestPage(1), &pb.Commit{})
	c.mustOwn()
	p.mustHear("Hello", "Prepared", "PageAck 1", "Received", "Ready", "PageAck 2", "FinalReceived", "CommitAck")
	return c, p
}

func rollingBack(c *candidate) { c.cfg.AtProbationEnd = handoff.RollbackAtEnd }

// async runs f and returns a channel for its result, when nothing moves any more.
func async(f func() error) chan error {
	result := make(chan error, 1)
	go func() { result <- f() }()
	synctest.Wait()
	return result
}

func TestWhatProbationIsGranted(t *testing.T) {
	none, second, hour, nonsense := time.Duration(0), time.Second, time.Hour, -time.Hour
	for _, tt := range []struct {
		name   string
		wanted *time.Duration
		want   time.Duration
	}{
		{"to one that does not ask", nil, granted},
		{"to one that asks for less", &second, second},
		{"to one that asks for none", &none, 0},
		{"to one that asks for too much", &hour, 10 * time.Minute},
		{"to one that asks for nonsense", &nonsense, 0},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			o := newOwner(t, granting)
			var asked handoff.Candidate
			o.cfg.Accept = func(_ context.Context, c handoff.Candidate) error { asked = c; return nil }
			o.server = handoff.NewServer(o.cfg)
			o.server.Own(1, true, true)
			c := newCandidate(t)
			c.cfg.Probation = tt.wanted
			rollingBack(c)
			c.connect(t.Context(), o)
			c.mustHaveReceived()
			if asked.Probation != tt.want || asked.AtProbationEnd != handoff.RollbackAtEnd {
				t.Errorf("the policy sees the candidate %+v", asked)
			}
			c.ready(t.Context())
			c.mustOwn()
			want := "Receive 3, Apply +0 -0, Own 2"
			if tt.want > 0 {
				want += fmt.Sprintf(" until %v, then rollback", tt.want)
			} else {
				want += ", Settled"
			}
			mustHaveCalled(t, &c.receiver.calls, want)
		})
	}
}

func TestTheEndOfProbation(t *testing.T) {
	bubble(t, "is asked for when the time is over, and once", func(t *testing.T) {
		o := newOwner(t, granting)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		st := o.server.Status(t.Context())
		if st.State != handoff.StateProbation || st.Attempt == nil || time.Until(st.Attempt.Deadline) != granted {
			t.Errorf("the status is %+v", st)
		}
		elapse(granted - time.Nanosecond)
		p.mustHear()
		elapse(time.Nanosecond)
		p.mustHear("ProbationOver")
		for range 100 {
			elapse(time.Hour)
			p.mustHear()
			o.mustBe(handoff.StateProbation) // it never retires by itself
		}
		p.say(settle)
		p.mustHear("Retired")
	})
	bubble(t, "is not asked for if the answer was there", func(t *testing.T) {
		for range 200 {
			o := newOwner(t, granting)
			p := o.client()
			throughCommit(p)
			p.say(commitAck(false))
			p.end.peer.freeze()
			p.say(settle)
			elapse(granted)
			p.end.peer.thaw()
			p.mustHear("Retired")
			o.mustBe(handoff.StateDraining)
			p.close()
		}
	})
	bubble(t, "settled by CommitAck", func(t *testing.T) {
		o := newOwner(t, granting)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired")
		o.mustBe(handoff.StateDraining)
	})
	bubble(t, "the owner stays", func(t *testing.T) {
		o, c := onProbation(t)
		elapse(granted)
		synctest.Wait()
		o.mustBe(handoff.StateDraining)
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Own 2 until 30s, then settle, Settling, Settled")
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Retire")
	})
	bubble(t, "the owner gives the service back", func(t *testing.T) {
		o, c := onProbation(t, rollingBack)
		elapse(granted)
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Own 2 until 30s, then rollback, Yield, Fail")
		mustMatch(t, c.receiver.failure, is(handoff.ErrRolledBack), "the probation is over, and nobody has settled it")
		mustMatch(t, errors.New(o.failure()), nil, "the successor rolled back: the probation is over")
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Resume")
		o.takeOver()
	})
	bubble(t, "the owner has answered before", func(t *testing.T) {
		c, p := alone(t, rollingBack)
		settled := async(func() error { return c.taking.Settle(t.Context()) })
		p.mustHear("Settle")
		p.say(&pb.ProbationOver{}, &pb.ProbationOver{})
		p.mustHear()
		p.say(&pb.Retired{})
		if err := <-settled; err != nil {
			t.Errorf("Settle: %v", err)
		}
	})
	bubble(t, "the owner tries again to give the service back", func(t *testing.T) {
		o, c := onProbation(t, rollingBack)
		c.receiver.failYield(errBoom)
		elapse(granted)
		synctest.Wait()
		o.mustBe(handoff.StateProbation)
		elapse(3*limits.Commit + time.Second)
		synctest.Wait()
		if got := c.receiver.count("Yield"); got != 4 {
			t.Errorf("it has tried %d times; calls are %v", got, &c.receiver.calls)
		}
		c.receiver.failYield(nil)
		elapse(limits.Commit)
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		o.takeOver()
	})
	bubble(t, "the owner tries again, and is settled meanwhile", func(t *testing.T) {
		o, c := onProbation(t, rollingBack)
		c.receiver.failYield(errBoom)
		elapse(granted)
		synctest.Wait()
		if err := c.taking.Settle(t.Context()); err != nil {
			t.Errorf("Settle: %v", err)
		}
		elapse(time.Hour)
		synctest.Wait()
		o.mustBe(handoff.StateDraining)
		if got := c.receiver.count("Yield"); got != 1 {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	})
	bubble(t, "a predecessor that retires unasked is not believed", func(t *testing.T) {
		c, p := alone(t)
		p.say(&pb.Retired{})
		if c.receiver.count("Settled") != 0 {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
		p.close()
		mustHaveCalled(t, &c.receiver.calls, "Receive 0, Apply +0 -0, Own 2 until 30s, then settle, Settled, Gone")
	})
}

func TestSettle(t *testing.T) {
	bubble(t, "waits for the predecessor", func(t *testing.T) {
		c, p := alone(t)
		first := async(func() error { return c.taking.Settle(t.Context()) })
		second := async(func() error { return c.taking.Settle(t.Context()) })
		if len(first)+len(second) != 0 {
			t.Error("a call has not waited")
		}
		p.mustHear("Settle")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errBoom)
		mustMatch(t, c.taking.Settle(ctx), is(errBoom))
		mustMatch(t, c.taking.Rollback(t.Context(), "too late"), is(handoff.ErrSettled))
		p.say(&pb.Retired{})
		if err := errors.Join(<-first, <-second, c.taking.Settle(t.Context())); err != nil {
			t.Errorf("Settle: %v", err)
		}
		p.mustHear()
		p.close()
		if err := c.taking.Settle(t.Context()); err != nil {
			t.Errorf("Settle, when the predecessor has gone: %v", err)
		}
		mustMatch(t, c.taking.Rollback(t.Context(), "too late"), is(handoff.ErrSettled))
	})
	bubble(t, "returns when the receiver knows", func(t *testing.T) {
		known := make(chan struct{})
		_, c := onProbation(t, func(c *candidate) { c.receiver.onSettled = func() { <-known } })
		settled := async(func() error { return c.taking.Settle(t.Context()) })
		if len(settled) != 0 {
			t.Error("Settle has returned before")
		}
		close(known)
		if err := <-settled; err != nil {
			t.Errorf("Settle: %v", err)
		}
	})
	bubble(t, "is answered by the predecessor's end as well", func(t *testing.T) {
		c, p := alone(t)
		settled := async(func() error { return c.taking.Settle(t.Context()) })
		p.close()
		if err := <-settled; err != nil {
			t.Errorf("Settle: %v", err)
		}
	})
	bubble(t, "waits for the end of a predecessor that broke the protocol", func(t *testing.T) {
		c, p := alone(t)
		p.write(unknownMember)
		settled := async(func() error { return c.taking.Settle(t.Context()) })
		p.mustHear()
		p.close()
		if err := <-settled; err != nil {
			t.Errorf("Settle: %v", err)
		}
	})
	bubble(t, "says when the answer takes long", func(t *testing.T) {
		var log strings.Builder
		c, p := alone(t, func(c *candidate) { c.cfg.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		settled := async(func() error { return c.taking.Settle(t.Context()) })
		elapse(limits.Commit) // far less than the probation
		synctest.Wait()
		if !strings.Contains(log.String(), "has not retired yet") {
			t.Errorf("the log has nothing of it:\n%s", log.String())
		}
		p.close()
		if err := <-settled; err != nil {
			t.Errorf("Settle: %v", err)
		}
	})
	bubble(t, "without a probation", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		mustMatch(t, c.taking.Settle(t.Context()), is(handoff.ErrNotReady))
		c.ready(t.Context())
		c.mustOwn()
		if err := c.taking.Settle(t.Context()); err != nil {
			t.Errorf("Settle: %v", err)
		}
		mustMatch(t, c.taking.Rollback(t.Context(), ""), is(handoff.ErrSettled))
	})
	bubble(t, "of an heir", func(t *testing.T) {
		o := newOwner(t, granting)
		c := o.connected()
		c.pipe.server.kill()
		synctest.Wait()
		mustMatch(t, c.taking.Settle(t.Context()), is(handoff.ErrNotReady))
		mustMatch(t, c.taking.Rollback(t.Context(), ""), is(handoff.ErrNotReady))
		c.ready(t.Context())
		c.mustOwn()
		if err := c.taking.Settle(t.Context()); err != nil {
			t.Errorf("Settle: %v", err)
		}
		mustMatch(t, c.taking.Rollback(t.Context(), ""), is(handoff.ErrSettled))
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Inherit 2, Gone, Own 2, Settled")
	})
	bubble(t, "of one that leaves", func(t *testing.T) {
		o, c := onProbation(t)
		c.pipe.server.freeze()
		settled := async(func() error { return c.taking.Settle(t.Context()) })
		c.taking.Leave()
		if err := <-settled; err == nil {
			t.Error("Settle says that the predecessor cannot come back")
		}
		c.pipe.server.thaw()
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
	})
}

func TestRollback(t *testing.T) {
	bubble(t, "ceases to own before it says so", func(t *testing.T) {
		var c *candidate
		o, c := onProbation(t, func(cc *candidate) {
			cc.receiver.onYield = func(context.Context) {
				if c.pipe.sent("> Rollback") {
					t.Error("Rollback was written before")
				}
			}
		})
		o.service.onResume = func() {
			if !c.pipe.sent("< Resumed") {
				t.Error("the predecessor acts as the owner before it has written Resumed")
			}
		}
		if err := c.taking.Rollback(t.Context(), "slow\nand wrong"); err != nil {
			t.Errorf("Rollback: %v", err)
		}
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Own 2 until 30s, then settle, Yield, Fail")
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Resume")
		mustMatch(t, errors.New(o.failure()), nil, "the successor rolled back: slow; and wrong")
		mustMatch(t, c.taking.Settle(t.Context()), is(handoff.ErrRolledBack))
		mustMatch(t, c.taking.Rollback(t.Context(), "again"), is(handoff.ErrRolledBack))
		o.takeOver()
	})
	bubble(t, "of one that cannot let go", func(t *testing.T) {
		o, c := onProbation(t)
		c.receiver.yieldErr = errBoom
		mustMatch(t, c.taking.Rollback(t.Context(), ""), is(handoff.ErrHook, errBoom), "successor, at giving the service back")
		o.mustBe(handoff.StateProbation)
		if c.pipe.sent("> Rollback") {
			t.Error("Rollback was written all the same")
		}
		c.receiver.yieldErr = nil
		if err := c.taking.Rollback(t.Context(), "now"); err != nil {
			t.Errorf("Rollback: %v", err)
		}
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "of one that takes too long to let go", func(t *testing.T) {
		_, c := onProbation(t)
		c.receiver.onYield = func(ctx context.Context) {
			<-ctx.Done()
			c.receiver.yieldErr = context.Cause(ctx)
		}
		before := time.Now()
		mustMatch(t, c.taking.Rollback(t.Context(), ""), is(handoff.ErrHook, handoff.ErrTimeout), "no giving the service back within 11s")
		if time.Since(before) != limits.Commit {
			t.Errorf("it took %v", time.Since(before))
		}
	})
	bubble(t, "crosses the question", func(t *testing.T) {
		c, p := alone(t)
		result := async(func() error { return c.taking.Rollback(t.Context(), "bad") })
		p.mustHear("Rollback")
		p.say(&pb.ProbationOver{}, &pb.Draining{})
		p.mustHear()
		p.say(&pb.Resumed{})
		p.mustHear("EOF")
		if err := <-result; err != nil {
			t.Errorf("Rollback: %v", err)
		}
	})
	bubble(t, "is waited for by everybody who has called it", func(t *testing.T) {
		c, p := alone(t)
		first := async(func() error { return c.taking.Rollback(t.Context(), "bad") })
		second := async(func() error { return c.taking.Rollback(t.Context(), "worse") })
		mustMatch(t, c.taking.Settle(t.Context()), is(handoff.ErrRolledBack))
		p.mustHear("Rollback")
		elapse(24 * time.Hour) // it has no limit
		p.say(&pb.Resumed{})
		if err := errors.Join(<-first, <-second); err != nil {
			t.Errorf("Rollback: %v", err)
		}
		mustHaveCalled(t, &c.receiver.calls, "Receive 0, Apply +0 -0, Own 2 until 30s, then settle, Yield, Fail")
	})
	bubble(t, "has a result also where the program ends the context because of it", func(t *testing.T) {
		for range 20 { // select would choose at random
			c, p := alone(t)
			ctx, cancel := context.WithCancel(t.Context())
			c.receiver.onFail = cancel
			result := async(func() error { return c.taking.Rollback(ctx, "bad") })
			p.mustHear("Rollback")
			p.say(&pb.Resumed{})
			if err := <-result; err != nil {
				t.Fatalf("Rollback: %v", err)
			}
			synctest.Wait()
			for name, again := range map[string]func(context.Context) error{
				"Settle": c.taking.Settle, "Rollback": func(ctx context.Context) error { return c.taking.Rollback(ctx, "") },
			} {
				if err := again(ctx); !errors.Is(err, handoff.ErrRolledBack) {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
	})
	bubble(t, "goes on when its caller has no more patience", func(t *testing.T) {
		c, p := alone(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		mustMatch(t, c.taking.Rollback(ctx, "bad"), is(context.DeadlineExceeded))
		p.mustHear("Rollback")
		p.say(&pb.Resumed{})
		mustMatch(t, c.receiver.failure, is(handoff.ErrRolledBack), "bad")
	})
	bubble(t, "to a predecessor that dies", func(t *testing.T) {
		c, p := alone(t)
		result := async(func() error { return c.taking.Rollback(t.Context(), "bad") })
		p.close()
		mustMatch(t, <-result, is(handoff.ErrLost), "successor, at Resumed")
		mustHaveCalled(t, &c.receiver.calls, "Receive 0, Apply +0 -0, Own 2 until 30s, then settle, Yield, Own 2, Settled, Gone")
		if err := c.taking.Settle(t.Context()); err != nil {
			t.Errorf("Settle: %v", err)
		}
	})
	bubble(t, "to a predecessor that dies when it has resumed", func(t *testing.T) {
		c, p := alone(t)
		result := async(func() error { return c.taking.Rollback(t.Context(), "bad") })
		c.pipe.client.freeze()
		p.say(&pb.Resumed{})
		p.close()
		c.pipe.client.thaw()
		if err := <-result; err != nil { // Resumed was there before the end
			t.Errorf("Rollback: %v", err)
		}
	})
	bubble(t, "of one that leaves", func(t *testing.T) {
		o, c := onProbation(t)
		c.pipe.server.freeze()
		result := async(func() error { return c.taking.Rollback(t.Context(), "bad") })
		c.taking.Leave()
		mustMatch(t, <-result, is(handoff.ErrStopping))
		c.pipe.server.thaw()
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Own 2 until 30s, then settle, Yield")
	})
	bubble(t, "with an answer that was not understood", func(t *testing.T) {
		var c *candidate
		o, c := onProbation(t, func(cc *candidate) {
			cc.receiver.onYield = func(context.Context) {
				if err := cc.pipe.server.Send(context.Background(), []byte{0xff}); err != nil {
					t.Error(err)
				}
			}
		})
		mustMatch(t, c.taking.Rollback(t.Context(), "bad"), is(handoff.ErrProtocol))
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		if c.receiver.count("Own") != 1 || c.receiver.count("Fail") != 1 {
			t.Errorf("the successor's calls are %v", &c.receiver.calls)
		}
		o.takeOver()
	})
	bubble(t, "over a broken connection", func(t *testing.T) {
		c, p := alone(t)
		p.write(unknownMember)
		mustMatch(t, c.taking.Rollback(t.Context(), "bad"), is(handoff.ErrProtocol))
		p.mustHear()
		if c.receiver.count("Yield") != 0 {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	})
	bubble(t, "against Settle: one of them decides", func(t *testing.T) {
		for range 100 {
			o, c := onProbation(t)
			results := make(chan error, 2)
			go func() { results <- c.taking.Rollback(t.Context(), "bad") }()
			go func() { results <- c.taking.Settle(t.Context()) }()
			synctest.Wait()
			a, b := <-results, <-results
			if (a == nil) == (b == nil) {
				t.Fatalf("Rollback and Settle gave %v and %v", a, b)
			}
			want := handoff.StateOwner
			if c.receiver.count("Settled") == 1 {
				want = handoff.StateDraining
			}
			o.mustBe(want)
			if settled, rolledBack := c.pipe.sent("> Settle"), c.pipe.sent("> Rollback"); settled == rolledBack {
				t.Fatalf("on the wire was\n%s", c.pipe.transcript())
			}
			c.end()
		}
	})
}

// Whatever else a predecessor sends to one that yields is no answer.
func TestYieldingAgainstWrongMessages(t *testing.T) {
	legal := []string{"Resumed", "ProbationOver", "Draining"}
	for _, w := range wrongs(false, serverMessages, legal) {
		bubble(t, w.name, func(t *testing.T) {
			c, p := alone(t)
			result := async(func() error { return c.taking.Rollback(t.Context(), "bad") })
			p.mustHear("Rollback")
			p.write(w.payload, fdsOf(t, w.fds)...)
			// It is out: if it waited for the predecessor's end, or owned at
			// that, there could be two.
			p.mustHear("EOF")
			mustMatch(t, <-result, is(handoff.ErrProtocol, handoff.ErrRolledBack), "bad")
			mustMatch(t, c.receiver.failure, is(handoff.ErrProtocol, handoff.ErrRolledBack))
			p.close()
			mustHaveCalled(t, &c.receiver.calls, "Receive 0, Apply +0 -0, Own 2 until 30s, then settle, Yield, Fail")
		})
	}
}

// While one side is killed or frozen around each message of a probation, there
// are never two owners, and in the end one.
func TestFaultsDuringAProbation(t *testing.T) {
	endings := map[string]func(*candidate){
		"settle":   func(c *candidate) { go func() { _ = c.taking.Settle(context.Background()) }() },
		"rollback": func(c *candidate) { go func() { _ = c.taking.Rollback(context.Background(), "bad") }() },
	}
	messages := map[string][]string{
		"settle":   {"< Commit", "> CommitAck", "> Settle", "< Retired"},
		"rollback": {"< Commit", "> CommitAck", "> Rollback", "< Resumed"},
	}
	for ending, decide := range endings {
		for _, message := range messages[ending] {
			for _, side := range []string{"predecessor", "successor"} {
				for _, when := range []string{"before", "after"} {
					for _, fault := range []string{"killed", "frozen"} {
						name := fmt.Sprintf("%s, %s %s, %s %s", ending, when, strings.Trim(message, "<> "), side, fault)
						bubble(t, name, func(t *testing.T) {
							faultDuringProbation(t, decide, message, side, when, fault)
						})
					}
				}
			}
		}
	}
}

func faultDuringProbation(t *testing.T, decide func(*candidate), message, side, when, fault string) {
	o := newOwner(t, granting)
	c := newCandidate(t)
	victim := c.pipe.client
	if side == "predecessor" {
		victim = c.pipe.server
	}
	var once sync.Once
	strike := func(m string) {
		if m != message {
			return
		}
		once.Do(func() {
			if fault == "killed" {
				victim.kill()
			} else {
				victim.freeze()
			}
		})
	}
	if when == "before" {
		c.pipe.before = strike
	} else {
		c.pipe.after = strike
	}
	c.connect(t.Context(), o)
	c.mustHaveReceived()
	c.ready(t.Context())
	successorOwns := func() bool {
		list := c.receiver.list
		i, j := slices.Index(list, "Yield"), slices.Index(list, "Fail")
		k := slices.IndexFunc(list, func(s string) bool { return strings.HasPrefix(s, "Own") })
		last := len(list) > 0 && strings.HasPrefix(list[len(list)-1], "Own 2")
		return k >= 0 && j < 0 && (i < 0 || i < k || last || slices.Index(list, "Settled") > i)
	}
	check := func(moment string) {
		t.Helper()
		synctest.Wait()
		c.receiver.mu.Lock()
		both := successorOwns() && o.server.State().Owns() && fault != "killed"
		c.receiver.mu.Unlock()
		if both {
			t.Fatalf("%s, both own; on the wire:\n%s", moment, c.pipe.transcript())
		}
	}
	check("after Ready")
	decide(c)
	check("after the decision")
	elapse(granted + 24*time.Hour)
	check("after a day")
	if fault == "frozen" {
		victim.thaw()
		check("after the thaw")
		elapse(granted + 24*time.Hour)
		check("a day after the thaw")
	}
	c.receiver.mu.Lock()
	owned := successorOwns()
	calls := slices.Clone(c.receiver.list)
	c.receiver.mu.Unlock()
	switch {
	case fault == "killed" && side == "successor":
		// Retired that it did not live to read was the decision all the same.
		if !o.server.State().Owns() && !(message == "< Retired" && when == "after") {
			t.Errorf("the predecessor is in state %v; on the wire:\n%s", o.server.State(), c.pipe.transcript())
		}
	case fault == "killed":
		// Resumed is the predecessor's word that it owns, and it died upon it.
		if !owned && !(message == "< Resumed" && when == "after") {
			t.Errorf("the successor's calls are %v; on the wire:\n%s", calls, c.pipe.transcript())
		}
	case owned == o.server.State().Owns():
		t.Errorf("the predecessor is in state %v, the successor's calls are %v; on the wire:\n%s",
			o.server.State(), calls, c.pipe.transcript())
	}
}

func TestRefusalsOfAnOwnerOnProbation(t *testing.T) {
	bubble(t, "say who and until when, and are held until it is settled", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(2, true, false)
		o.server.SetProbation(&handoff.Probation{Predecessor: handoff.Process{Instance: "v0", PID: 7}, Until: time.Now().Add(granted)})
		elapse(time.Second)
		p := o.client()
		p.say(hello())
		m, closed := p.hear()
		r, ok := m.(*pb.Refuse)
		if !ok || closed || r.GetCode() != pb.RefuseCode_REFUSE_CODE_PROBATION || r.GetWho().GetPid() != 7 ||
			r.GetSince().AsDuration() != time.Second || r.GetUntil().AsDuration() != granted-time.Second {
			t.Fatalf("the answer is %v", m)
		}
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrProbation), "in probation itself", `instance "v0"`)
		var refused *handoff.RefusedError
		if !errors.As(c.err, &refused) || !refused.Passing() || refused.Who.PID != 7 || time.Until(refused.Until) != granted-time.Second {
			t.Errorf("the refusal is %+v", refused)
		}
		elapse(time.Hour)
		o.server.SetSettling()
		p.mustHear() // for the predecessor may still come back
		q := o.client()
		q.say(hello())
		if m, _ := q.hear(); m.(*pb.Refuse).GetCode() != pb.RefuseCode_REFUSE_CODE_NOT_READY {
			t.Errorf("once it has settled the answer is %v", m)
		}
		o.server.SetSettled()
		p.mustHear("EOF")
		q.mustHear("EOF")
		o.takeOver()
	})
	bubble(t, "a process that yields is no longer the owner", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(2, true, false)
		o.server.SetProbation(&handoff.Probation{Until: time.Now()})
		o.server.Yield()
		st := o.server.Status(t.Context())
		if st.State != handoff.StateYielding || st.Probation != nil || len(st.Warnings) != 1 {
			t.Errorf("its status is %+v", st)
		}
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrMoved))
	})
}

// While the program takes back what it had let go of, this process owns already.
func TestAnOwnerThatIsResuming(t *testing.T) {
	bubble(t, "is busy", func(t *testing.T) {
		o, c := onProbation(t)
		resumed := make(chan struct{})
		o.service.onResume = func() { <-resumed }
		c.pipe.client.kill()
		synctest.Wait()
		o.mustBe(handoff.StateOwner)
		p := o.client()
		p.say(hello())
		elapse(2 * time.Second) // it looks first whether the one ahead has gone
		if m, closed := p.hear(); closed || m.(*pb.Refuse).GetCode() != pb.RefuseCode_REFUSE_CODE_BUSY {
			t.Errorf("a candidate hears %v", m)
		}
		close(resumed)
		p.mustHear("EOF") // it may ask again
		o.takeOver()
	})
}

func TestStatusShowsTheProbation(t *testing.T) {
	bubble(t, "on the wire too", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(2, true, false)
		want := handoff.Probation{Predecessor: handoff.Process{Instance: "v0", PID: 7}, Until: time.Now().Add(granted), AtEnd: handoff.RollbackAtEnd}
		o.server.SetProbation(&want)
		q := newPipe(t)
		go o.server.Serve(q.server, nil)
		st, err := handoff.QueryStatusOn(t.Context(), q.client)
		if err != nil {
			t.Fatal(err)
		}
		if st.Probation == nil || *st.Probation != want {
			t.Errorf("the probation is %+v, want %+v", st.Probation, want)
		}
	})
}

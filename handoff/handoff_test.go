package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
)

// These tests are about both machines together.

func TestHandoff(t *testing.T) {
	bubble(t, "from Hello to the end of the drain", func(t *testing.T) {
		o := newOwner(t)
		o.service.changes = handoff.Changes{Added: descriptors(t, 5)[3:], Removed: []uint64{2}}
		c := o.connected()
		o.mustBe(handoff.StateOffering)
		if got := c.taking.Generation(); got != 2 {
			t.Errorf("the candidate got generation %d, want 2", got)
		}
		if got := c.taking.Predecessor(); got.Instance != "v1" || got.Generation != 1 || got.PID != 11 {
			t.Errorf("the candidate was told that its predecessor is %v", got)
		}
		if got := c.receiver.control; got == nil || *got != *o.service.offer.Control {
			t.Errorf("the candidate was told of the control path %+v, want %+v", got, o.service.offer.Control)
		}
		c.taking.Progress("warming up", time.Minute)
		synctest.Wait()
		c.ready(t.Context(), c.receiver.got[2])
		c.mustOwn()
		o.mustBe(handoff.StateDraining)
		c.taking.Leave()
		synctest.Wait()

		want := strings.TrimSpace(`
> Hello: versions [1], ROLE_SUCCESSOR, instance v2
< Welcome: version 1, generation 2, total 3
> Prepared
< ManifestPage 0: descriptors 3, removed 0, last + 3 fds
> PageAck 1
> Received
> Progress: "warming up", extend 1m0s
> Ready: unclaimed 1 [3]
< ManifestPage 1: descriptors 2, removed 1, last + 2 fds
> PageAck 2
> FinalReceived
< Commit
> CommitAck: settle true
< Retired`)
		if got := c.pipe.transcript(); got != want {
			t.Errorf("on the wire was\n%s\nwant\n%s", got, want)
		}
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [3], Pause [], Retire")
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +2 -1, Own 2, Settled")
		if !c.pipe.server.isClosed() {
			t.Error("the predecessor keeps its end although the successor has closed its own")
		}
	})
	bubble(t, "the end of the predecessor is noticed", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		c.ready(t.Context())
		c.mustOwn()
		c.pipe.server.kill()
		mustHaveCalled(t, &c.receiver.calls, "Receive 3, Apply +0 -0, Own 2, Settled, Gone")
	})
	bubble(t, "the program is asked to end its drain", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughRetired(p)
		p.say(endDrain)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Retire, EndDrain")
	})
}

func TestPages(t *testing.T) {
	for _, n := range []int{0, 1, 250, 251, 500, 600} {
		bubble(t, fmt.Sprintf("%d descriptors", n), func(t *testing.T) {
			o := newOwner(t)
			o.service.offer.Descriptors = descriptors(t, n)
			c := o.connected()
			c.ready(t.Context())
			c.mustOwn()
			if got := len(c.receiver.got); got != n {
				t.Errorf("%d descriptors were received, want %d", got, n)
			}
			for i, d := range c.receiver.got {
				if want := o.service.offer.Descriptors[i]; d.ID != want.ID || d.Name != want.Name {
					t.Fatalf("descriptor %d is %d %q, want %d %q", i, d.ID, d.Name, want.ID, want.Name)
				}
			}
			pages := strings.Count(c.pipe.transcript(), "< ManifestPage")
			if want := max(1, (n+249)/250) + 1; pages != want {
				t.Errorf("%d pages were sent, want %d", pages, want)
			}
			if c.pipe.widest > handoff.PageWindow {
				t.Errorf("%d pages were unacknowledged at once, at most %d may be", c.pipe.widest, handoff.PageWindow)
			}
		})
	}
	bubble(t, "a reader that stands still gets no more than the window", func(t *testing.T) {
		o := newOwner(t)
		o.service.offer.Descriptors = descriptors(t, 1000)
		p := o.client()
		p.say(hello(), prepared)
		p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1")
		p.say(pageAck(1))
		p.mustHear("ManifestPage 2")
		p.say(pageAck(3))
		p.mustHear("ManifestPage 3")
	})
	bubble(t, "long names make smaller pages", func(t *testing.T) {
		o := newOwner(t)
		ds := descriptors(t, 500)
		for i := range ds {
			ds[i].Name = fmt.Sprintf("%0*d", handoff.MaxName, i)
			ds[i].Address = strings.Repeat("a", 200)
		}
		o.service.offer.Descriptors = ds
		sizes := make(map[string]int)
		c := newCandidate(t)
		c.connect(t.Context(), o)
		c.mustHaveReceived()
		for line := range strings.SplitSeq(c.pipe.transcript(), "\n") {
			var page, n int
			if _, err := fmt.Sscanf(line, "< ManifestPage %d: descriptors %d", &page, &n); err == nil {
				sizes[line] = n
				if n*(handoff.MaxName+200) > handoff.MaxPageSize {
					t.Errorf("a page holds %d descriptors of more than 400 bytes each", n)
				}
			}
		}
		if len(sizes) < 4 || len(c.receiver.got) != 500 {
			t.Errorf("%d descriptors came on %d pages", len(c.receiver.got), len(sizes))
		}
	})
	bubble(t, "what was added and removed late comes in pages too", func(t *testing.T) {
		o := newOwner(t)
		o.service.offer.Descriptors = descriptors(t, 300)
		o.service.changes.Added = descriptors(t, 700)[300:]
		for id := range uint64(300) {
			o.service.changes.Removed = append(o.service.changes.Removed, id+1)
		}
		c := o.connected()
		c.ready(t.Context())
		c.mustOwn()
		mustHaveCalled(t, &c.receiver.calls, "Receive 250, Receive 50, Apply +250 -0, Apply +150 -300, Own 2, Settled")
	})
}

// conversation is every message of a handoff, in order.
var conversation = []string{
	"> Hello", "< Welcome", "> Prepared", "< ManifestPage 0", "> PageAck 1", "> Received", "> Ready",
	"< ManifestPage 1", "> PageAck 2", "> FinalReceived", "< Commit", "> CommitAck", "< Retired",
}

// moment is one before or after a message is written.
type moment struct {
	message string
	after   bool
}

func (m moment) String() string {
	if m.after {
		return "after " + m.message[2:]
	}
	return "before " + m.message[2:]
}

// reached reports whether the conversation has come as far as message when it
// is cut at m: its writer has at least begun to write it.
func (m moment) reached(message string) bool {
	return slices.Index(conversation, m.message) >= slices.Index(conversation, message)
}

// passed reports whether message was written by then.
func (m moment) passed(message string) bool {
	return m.reached(message) && (m.after || m.message != message)
}

func moments() []moment {
	var ms []moment
	for _, message := range conversation {
		ms = append(ms, moment{message, false}, moment{message, true})
	}
	return ms
}

// at has p call f at m.
func (m moment) at(p *pipe, f func()) {
	hook := func(message string) {
		if message == m.message {
			f()
		}
	}
	if m.after {
		p.after = hook
	} else {
		p.before = hook
	}
}

// attempt runs a handoff as far as it goes and calls f at m.
func attempt(t *testing.T, o *owner, m moment, f func(c *candidate)) *candidate {
	t.Helper()
	c := newCandidate(t)
	m.at(c.pipe, func() { f(c) })
	c.connect(t.Context(), o)
	select {
	case <-c.connected:
		if c.taking != nil {
			c.ready(t.Context())
		}
	default:
	}
	return c
}

func TestTheSuccessorDies(t *testing.T) {
	for _, m := range moments() {
		bubble(t, m.String(), func(t *testing.T) {
			o := newOwner(t)
			attempt(t, o, m, func(c *candidate) { c.pipe.client.kill() })
			thaws, resumes := 1, 0
			switch {
			case m.passed("< Retired"):
				// It was the only owner, and is its supervisor's business now.
				o.mustBe(handoff.StateDraining)
				return
			case m.passed("> FinalReceived"): // Commit is written, or was tried to
				thaws, resumes = 0, 1
			case !m.passed("> Hello"):
				thaws = 0 // no attempt has begun
			}
			o.mustBe(handoff.StateOwner)
			if got := o.service.count("Thaw"); got != thaws {
				t.Errorf("Thaw was called %d times, want %d: %v", got, thaws, &o.service.calls)
			}
			if got := o.service.count("Resume"); got != resumes {
				t.Errorf("Resume was called %d times, want %d: %v", got, resumes, &o.service.calls)
			}
			if m.passed("> Hello") && !strings.Contains(o.failure(), "the other side is gone") {
				t.Errorf("the failure in the status is %q", o.failure())
			}
			o.takeOver()
		})
	}
}

func TestThePredecessorDies(t *testing.T) {
	for _, m := range moments() {
		bubble(t, m.String(), func(t *testing.T) {
			c := attempt(t, newOwner(t), m, func(c *candidate) { c.pipe.server.kill() })
			<-c.connected
			if !m.passed("< ManifestPage 0") {
				mustMatch(t, c.err, is(handoff.ErrLost), "successor, at ", "the other side is gone: it has closed the connection")
				var lost *handoff.LostError
				want := uint64(0)
				if m.passed("< Welcome") {
					want = 2
				}
				if !errors.As(c.err, &lost) || lost.Generation != want {
					t.Errorf("the error %#v does not say that generation %d was given", c.err, want)
				}
				if got := c.receiver.String(); got != "" {
					t.Errorf("calls are %v, want none", got)
				}
				return
			}
			c.mustOwn()
			want := "Receive 3"
			if !m.reached("> Ready") {
				want += ", Inherit 2, Gone, Own 2, Settled"
			} else {
				if m.passed("< ManifestPage 1") {
					want += ", Apply +0 -0"
				}
				if !m.passed("< Commit") {
					want += ", Inherit 2"
				}
				want += ", Own 2, Settled, Gone"
			}
			mustHaveCalled(t, &c.receiver.calls, want)
		})
	}
}

// TestOneSideStandsStill freezes a side at every moment for a day.
func TestOneSideStandsStill(t *testing.T) {
	const day = 24 * time.Hour
	for _, m := range moments() {
		bubble(t, "the successor, "+m.String(), func(t *testing.T) {
			o := newOwner(t)
			c := attempt(t, o, m, func(c *candidate) { c.pipe.client.freeze() })
			elapse(day)
			synctest.Wait()
			switch {
			case m.passed("> CommitAck"):
				o.mustBe(handoff.StateDraining)
			case m.passed("> FinalReceived"):
				// It may wake up and read Commit: nobody may own meanwhile,
				// and this process goes on accepting.
				o.mustBe(handoff.StateStandby)
				mustHaveCalled(t, &o.service.calls, "Offer, Freeze")
			default:
				o.mustBe(handoff.StateOwner)
				if o.service.count("Resume") != 0 {
					t.Errorf("calls are %v", &o.service.calls)
				}
				o.takeOver()
			}
			c.pipe.client.thaw()
			synctest.Wait()
			if m.passed("> FinalReceived") {
				o.mustBe(handoff.StateDraining)
				c.mustOwn()
			} else if c.receiver.count("Own") != 0 {
				t.Errorf("a candidate that was given up owns when it wakes up: %v", &c.receiver.calls)
			}
		})
		bubble(t, "the predecessor, "+m.String(), func(t *testing.T) {
			o := newOwner(t)
			c := attempt(t, o, m, func(c *candidate) { c.pipe.server.freeze() })
			elapse(day)
			synctest.Wait()
			select {
			case <-c.connected:
			default:
				t.Fatal("Connect still waits")
			}
			if c.err == nil {
				select {
				case c.err = <-c.result:
				default:
					t.Fatal("Ready still waits")
				}
			}
			if m.passed("< Commit") {
				if c.err != nil {
					t.Errorf("the owner of the service was told %v", c.err)
				}
				return
			}
			mustMatch(t, c.err, is(handoff.ErrTimeout))
			c.pipe.server.thaw()
			synctest.Wait()
			o.mustBe(handoff.StateOwner)
			o.takeOver()
		})
	}
}

// TestOwnersNeverOverlap cancels both sides at the same moment, so that an
// Abort may cross Commit, and checks that exactly one of them owns.
func TestOwnersNeverOverlap(t *testing.T) {
	for _, m := range moments() {
		if !m.reached("> Ready") {
			continue
		}
		bubble(t, m.String(), func(t *testing.T) {
			o := newOwner(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			c := newCandidate(t)
			m.at(c.pipe, func() { cancel(errBoom) })
			c.connect(t.Context(), o).ready(ctx)
			err := c.outcome()
			owns := c.receiver.count("Own") == 1
			if owns != (err == nil) {
				t.Errorf("Ready: %v, but the calls are %v", err, &c.receiver.calls)
			}
			if owns == o.server.State().Owns() {
				t.Errorf("the successor owns: %v, and the predecessor is in state %v", owns, o.server.State())
			}
			if err != nil {
				mustMatch(t, err, is(handoff.ErrCancelled, errBoom))
				if c.receiver.count("Fail") != 1 {
					t.Errorf("calls are %v", &c.receiver.calls)
				}
				o.takeOver()
			}
		})
	}
}

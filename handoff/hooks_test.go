package handoff_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// newSlowOwner returns an owner that has a fourth descriptor to make, by a
// function of the test.
func newSlowOwner(t *testing.T, complete func(ctx context.Context) error) *owner {
	t.Helper()
	o := newOwner(t)
	o.service.offer.Pending = 1
	made := descriptors(t, 4)[3:]
	made[0].Kind, made[0].Moment = handoff.KindState, handoff.AtOffer
	o.service.offer.Complete = func(ctx context.Context) ([]handoff.Descriptor, error) {
		o.service.add("Complete")
		return made, complete(ctx)
	}
	return o
}

// becomeQuick takes the fourth descriptor out again.
func (o *owner) becomeQuick() {
	o.service.offer.Descriptors = o.service.offer.Descriptors[:3]
	o.service.offer.Pending, o.service.offer.Complete = 0, nil
}

func TestWhatIsPendingMayTakeItsTime(t *testing.T) {
	bubble(t, "more than the successor's patience", func(t *testing.T) {
		o := newSlowOwner(t, func(context.Context) error { elapse(limits.Ready - time.Second); return nil })
		c := newCandidate(t).connect(t.Context(), o)
		elapse(limits.Ready - time.Second)
		synctest.Wait()
		c.mustHaveReceived()
		mustHaveCalled(t, &c.receiver.calls, "Receive 4")
		if d := c.receiver.got[3]; d.Kind != handoff.KindState || d.Moment != handoff.AtOffer {
			t.Errorf("the fourth is %v, written %v", d.Kind, d.Moment)
		}
		c.ready(t.Context())
		c.mustOwn()
		mustHaveCalled(t, &o.service.calls, "Offer, Complete, Freeze, Pause [], Pause [], Retire")
	})
	bubble(t, "no more than the owner's limit", func(t *testing.T) {
		o := newSlowOwner(t, func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
		c := newCandidate(t).connect(t.Context(), o)
		elapse(limits.Ready)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAborted, handoff.ErrHook), "no offer within 1m0s")
		mustHaveCalled(t, &o.service.calls, "Offer, Complete, Thaw")
		o.becomeQuick()
		o.takeOver()
	})
	bubble(t, "no longer than the owner said, if it says nothing more", func(t *testing.T) {
		block := make(chan struct{})
		o := newSlowOwner(t, func(context.Context) error { <-block; return nil })
		c := newCandidate(t).connect(t.Context(), o)
		elapse(limits.Ready + patience)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrTimeout), "no ManifestPage within 1m7s")
		want := "the handoff is overdue at the offer for 7s: a function of this program does not return"
		if w := o.server.Status(t.Context()).Warnings; len(w) != 1 || !strings.HasPrefix(w[0], want) {
			t.Errorf("the warnings are %q, want %q", w, want)
		}
		close(block)
		synctest.Wait()
		if w := o.server.Status(t.Context()).Warnings; len(w) != 0 {
			t.Errorf("the warnings stay: %q", w)
		}
		o.becomeQuick()
		o.takeOver()
	})
	bubble(t, "and may fail", func(t *testing.T) {
		o := newSlowOwner(t, func(context.Context) error { return errBoom })
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAborted, handoff.ErrHook), errBoom.Error())
		mustMatch(t, errors.New(o.failure()), nil, "predecessor, at the offer: hook failed: "+errBoom.Error())
		mustHaveCalled(t, &o.service.calls, "Offer, Complete, Thaw")
		o.becomeQuick()
		o.takeOver()
	})
	bubble(t, "if there is room for it", func(t *testing.T) {
		o := newSlowOwner(t, func(context.Context) error { return nil })
		o.service.offer.Pending = handoff.MaxDescriptors - 2
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAborted, handoff.ErrLimit), "131073", "131072")
		mustHaveCalled(t, &o.service.calls, "Offer, Thaw")
	})
}

// What ends an attempt ends the context of the hook that runs for it, at once.
func TestAHookNeedNotGoOnForNothing(t *testing.T) {
	stopped := func(t *testing.T, o *owner) { t.Helper(); go o.server.Stop(); synctest.Wait() }
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, o *owner, c *candidate)
		want error
		says string
	}{
		{"the successor dies", func(_ *testing.T, _ *owner, c *candidate) { c.pipe.client.kill() }, handoff.ErrLost, "the other side is gone"},
		{"this process is stopped", func(t *testing.T, o *owner, _ *candidate) { stopped(t, o) }, handoff.ErrStopping, "stopping"},
	} {
		during := func(name string, begin func(t *testing.T, hook func(context.Context) error) (*owner, *candidate)) {
			bubble(t, tt.name+", during "+name, func(t *testing.T) {
				var cause error
				o, c := begin(t, func(ctx context.Context) error {
					<-ctx.Done()
					cause = context.Cause(ctx)
					return cause
				})
				tt.end(t, o, c)
				synctest.Wait()
				mustMatch(t, cause, is(tt.want))
				mustMatch(t, errors.New(o.failure()), nil, tt.says)
				if o.service.count("Thaw") != 1 {
					t.Errorf("calls are %v", &o.service.calls)
				}
			})
		}
		during("Complete", func(t *testing.T, hook func(context.Context) error) (*owner, *candidate) {
			o := newSlowOwner(t, hook)
			return o, newCandidate(t).connect(t.Context(), o)
		})
		during("Freeze", func(t *testing.T, hook func(context.Context) error) (*owner, *candidate) {
			o := newOwner(t)
			o.service.onFreeze = func(ctx context.Context) { _ = hook(ctx) } // it may succeed all the same
			c := o.connected()
			c.ready(t.Context())
			return o, c
		})
	}
	bubble(t, "the next attempt can come while it returns", func(t *testing.T) {
		o := newSlowOwner(t, func(ctx context.Context) error { <-ctx.Done(); return nil })
		c := newCandidate(t).connect(t.Context(), o)
		c.pipe.client.kill()
		synctest.Wait()
		o.becomeQuick()
		o.takeOver()
	})
}

// All that a candidate may say during a hook is Abort. What else it says ends the
// hook like its death.
func TestAMessageDuringAHook(t *testing.T) {
	bubble(t, "ends it", func(t *testing.T) {
		var ended time.Duration
		o := newSlowOwner(t, func(ctx context.Context) error {
			began := time.Now()
			<-ctx.Done()
			ended = time.Since(began)
			return nil
		})
		p := o.client()
		p.say(hello(), prepared)
		p.mustHear("Welcome")
		elapse(time.Second)
		p.say(received)
		_, last, closed := p.hearAll()
		if abort, ok := last.(*pb.Abort); !ok || !closed || !strings.HasSuffix(abort.GetReason(), "protocol error: Received instead of the offer") {
			t.Errorf("the last word is %v", last)
		}
		if ended != time.Second {
			t.Errorf("the hook's context ended after %v", ended)
		}
	})
}

func TestAHookThatEndsItsGoroutine(t *testing.T) {
	bubble(t, "is one that fails", func(t *testing.T) {
		o := newOwner(t)
		o.service.onFreeze = func(context.Context) { runtime.Goexit() }
		c := o.connected()
		c.ready(t.Context())
		mustMatch(t, c.outcome(), is(handoff.ErrHook, handoff.ErrAborted), "it has ended its goroutine")
		o.takeOverAgain()
	})
}

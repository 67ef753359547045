package handoff_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// older returns generations that have not gone, the oldest first.
func older(n int) []handoff.Generation {
	all := []handoff.Generation{
		{
			Process: handoff.Process{Instance: "ancient", BuildVersion: "v0", Generation: 3, PID: 33},
			State:   handoff.StateDraining, Since: time.Now().Add(-time.Minute), Connections: 12, Deadline: time.Now().Add(time.Hour),
		},
		{
			Process: handoff.Process{Instance: "old", Generation: 4},
			State:   handoff.StateDraining, Since: time.Now(), Connections: -1,
		},
	}
	return all[:n]
}

func TestMaxDraining(t *testing.T) {
	allow := func(n int) func(*handoff.ServerConfig) {
		return func(cfg *handoff.ServerConfig) { cfg.Limits.MaxDraining = n }
	}
	for _, tt := range []struct{ limit, draining int }{{0, 2}, {3, 2}, {2, 1}, {1, 0}} {
		bubble(t, "there is room", func(t *testing.T) {
			o := newOwner(t, allow(tt.limit))
			o.service.older = older(tt.draining)
			o.takeOver()
		})
	}
	for _, tt := range []struct{ limit, draining int }{{2, 2}, {1, 1}, {1, 2}} {
		bubble(t, "there is none", func(t *testing.T) {
			o := newOwner(t, allow(tt.limit))
			o.service.older = older(tt.draining)
			c := newCandidate(t).connect(t.Context(), o)
			<-c.connected
			mustMatch(t, c.err, is(handoff.ErrDraining), `the oldest is instance "ancient", generation 3, version v0, pid 33`,
				"draining for 1m0s", "12 connections", "at most 1h0m0s more")
			refused := new(handoff.RefusedError)
			if !errors.As(c.err, &refused) || refused.Who == nil || *refused.Who != older(1)[0].Process ||
				time.Since(refused.Since) != time.Minute || time.Until(refused.Until) != time.Hour || !refused.Passing() {
				t.Errorf("the refusal is %+v", refused)
			}
			o.mustBe(handoff.StateOwner)
			_, err := o.server.SpawnOn(newPipe(t).server)
			mustMatch(t, err, is(handoff.ErrDraining), "ancient")
			mustHaveCalled(t, &o.service.calls, "")
		})
	}
	bubble(t, "who waits is told when one has gone", func(t *testing.T) {
		o := newOwner(t, allow(2))
		o.service.older = older(2)
		c := newCandidate(t)
		c.cfg.WaitUntil = time.Now().Add(time.Hour)
		c.connect(t.Context(), o)
		elapse(time.Minute)
		select {
		case <-c.connected:
			t.Fatalf("Connect: %v", c.err)
		default:
		}
		o.service.older = older(1)
		o.server.GenerationGone(handoff.Process{Generation: 1})
		synctest.Wait()
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAskAgain, handoff.ErrDraining))
		o.takeOver()
	})
}

func TestStatusOfGenerations(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := newOwner(t)
		o.service.older = append(older(2), handoff.Generation{
			Process: handoff.Process{Instance: "late", Generation: 5}, State: handoff.StateDraining, Since: time.Now(),
			Deadline: time.Now().Add(-time.Second),
		}, handoff.Generation{
			Process: handoff.Process{Instance: "latest", Generation: 6}, State: handoff.StateProbation, Since: time.Now(),
			Connections: -1, Limit: time.Hour,
		})
		p := newPipe(t)
		go o.server.Serve(p.server, nil)
		status, err := handoff.QueryStatusOn(t.Context(), p.client)
		if err != nil {
			t.Fatal(err)
		}
		if len(status.Draining) != len(o.service.older) {
			t.Fatalf("the status lists %v", status.Draining)
		}
		for i, want := range o.service.older {
			got := status.Draining[i]
			if got.Process != want.Process || got.State != want.State || !got.Since.Equal(want.Since) ||
				got.Connections != want.Connections || !got.Deadline.Equal(want.Deadline) || got.Limit != want.Limit {
				t.Errorf("the status lists\n\t%v\nwant\n\t%v", got, want)
			}
		}
	})
}

// The drain of the predecessor has not begun, and that of an older generation
// has: what remains of it becomes less while the offer is made.
func TestAnOfferThatTakesTimeEatsNoLimit(t *testing.T) {
	taken := limits.Ready / 2
	for _, tt := range []struct {
		name     string
		limit    time.Duration
		received time.Duration
	}{
		{"a limit", 2 * time.Second, 2 * time.Second},
		{"for ever", math.MaxInt64, 100 * 365 * 24 * time.Hour}, // as far as durations go
		{"none", 0, 0},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			o := newSlowOwner(t, func(context.Context) error { elapse(taken); return nil })
			draining, own := older(1)[0], handoff.Generation{Process: o.cfg.Process, State: handoff.StateOffering, Limit: tt.limit}
			o.service.offer.Descriptors[0].Alive, o.service.offer.Descriptors[1].Alive = &draining, &own
			c := newCandidate(t).connect(t.Context(), o)
			elapse(taken)
			synctest.Wait()
			c.mustHaveReceived()
			if got := c.receiver.got[0].Alive; !got.Deadline.Equal(draining.Deadline) || got.Limit != 0 {
				t.Errorf("the older one comes as %v, was sent as %v", got, draining)
			}
			if got := c.receiver.got[1].Alive; got.Limit != tt.received || !got.Deadline.IsZero() {
				t.Errorf("the predecessor comes as %v, was sent as %v", got, own)
			}
			c.ready(t.Context())
			c.mustOwn()
		})
	}
	bubble(t, "one that is over is still one", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		page := manifestPage(0)
		page.Descriptors = []*pb.Descriptor{{Id: 1, Name: "a", Kind: pb.Kind_KIND_ALIVE, Alive: &pb.Generation{
			State: pb.State_STATE_OFFERING, Remaining: durationpb.New(-time.Second),
		}}}
		p.say(welcome(1))
		p.write(wrap(false, page), descriptors(t, 1)[0].FD)
		if got := c.receiver.got[0].Alive; got.Limit <= 0 || got.Limit > time.Millisecond || !got.Deadline.IsZero() {
			t.Errorf("it comes as %+v", got)
		}
	})
}

func TestServiceManagerIsPassedOn(t *testing.T) {
	unit := handoff.ServiceManager{NotifySocket: "@manager", Watchdog: time.Minute, FDStore: true, FDStoreMax: 12}
	bubble(t, "before anybody hears that the predecessor has retired", func(t *testing.T) {
		o := newOwner(t)
		o.service.unit = &unit
		p := o.client()
		attempt := make(chan struct{})
		o.service.onRelieve = func() {
			if o.service.count("Retire") > 0 {
				t.Error("the program had heard of it")
			}
			close(attempt)
		}
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired", "Draining")
		<-attempt
		if who := o.service.relieved; who.Instance != "by hand" || who.Generation != 2 || who.PID != 33 {
			t.Errorf("the successor is %v", who)
		}
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Retire")
	})
	bubble(t, "never when the successor settles and is gone", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.close()
		if o.service.relieved.Instance != "" {
			t.Errorf("Relieve was called for %v", o.service.relieved)
		}
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "later, by one that had to wait for it itself", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired")
		o.server.Relieved(unit)
		m, _ := p.hear()
		if d, ok := m.(*pb.Draining); !ok || d.GetServiceManager().GetNotifySocket() != "@manager" || d.Connections != nil {
			t.Errorf("the successor hears %v", m)
		}
	})
	bubble(t, "by the successor's machine", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		p.say(welcome(0), manifestPage(0))
		c.ready(t.Context())
		p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{}, &pb.Draining{ServiceManager: &pb.ServiceManager{
			NotifySocket: "@manager", Watchdog: durationpb.New(time.Minute), FdStore: true, FdStoreMax: 12,
		}})
		c.mustOwn()
		if got := c.receiver.unit; got != unit {
			t.Errorf("it has got %+v", got)
		}
		if got := c.receiver.count("Draining"); got != 0 {
			t.Errorf("it was told %d times of connections that nobody has counted", got)
		}
	})
}

func TestParting(t *testing.T) {
	bubble(t, "one that has retired passes for gone", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired")
		o.server.Part()
		if m, closed := p.hear(); !closed {
			t.Errorf("the successor hears %v", m)
		}
	})
	bubble(t, "an owner does not", func(t *testing.T) {
		o := newOwner(t)
		o.server.Part()
		p := o.client()
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired")
	})
}

func TestDrainingIsTold(t *testing.T) {
	retired := func(t *testing.T) (*owner, *player) {
		o := newOwner(t)
		p := o.client()
		if o.server.Draining(5, time.Time{}) {
			t.Error("an owner has somebody to tell")
		}
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired")
		return o, p
	}
	bubble(t, "to the successor", func(t *testing.T) {
		o, p := retired(t)
		for n := range 3 {
			if !o.server.Draining(n, time.Now().Add(time.Hour)) {
				t.Error("there is nobody to tell")
			}
			m, _ := p.hear()
			if d, ok := m.(*pb.Draining); !ok || d.GetConnections() != uint64(n) || d.GetRemaining().AsDuration() != time.Hour {
				t.Errorf("the successor hears %v", m)
			}
		}
		p.say(endDrain) // it is read all the while
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Pause [], Retire, EndDrain")
		p.close()
		if o.server.Draining(0, time.Time{}) {
			t.Error("there is somebody to tell when the successor has gone")
		}
	})
	bubble(t, "without a number", func(t *testing.T) {
		o, p := retired(t)
		o.server.Draining(-1, time.Now().Add(time.Hour))
		m, _ := p.hear()
		if d, ok := m.(*pb.Draining); !ok || d.Connections != nil || d.GetRemaining().AsDuration() != time.Hour {
			t.Errorf("the successor hears %v", m)
		}
	})
	bubble(t, "from before the program hears of its retirement", func(t *testing.T) {
		o := newOwner(t)
		o.service.onRetire = func() { o.server.Draining(7, time.Time{}) }
		p := o.client()
		throughCommit(p)
		p.say(commitAck(true))
		p.mustHear("Retired", "Draining")
	})
	bubble(t, "not to one that has broken the protocol", func(t *testing.T) {
		o, p := retired(t)
		p.say(settle)
		if o.server.Draining(1, time.Time{}) {
			t.Error("there is somebody to tell")
		}
		p.mustHear()
	})
	bubble(t, "by the successor's machine", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		p.say(welcome(0), manifestPage(0))
		c.ready(t.Context())
		p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{}, &pb.Draining{Connections: proto.Uint64(4)}, &pb.Draining{Connections: proto.Uint64(1 << 63)}, &pb.Draining{}, &pb.Draining{Connections: proto.Uint64(0)})
		c.mustOwn()
		if got := c.receiver.String(); !strings.HasSuffix(got, "Draining 4, Draining 2147483647, Draining -1, Draining 0") {
			t.Errorf("calls are %v", got)
		}
	})
}

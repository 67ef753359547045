package handoff_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// logBook keeps what a machine logs.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(line)
}

func (b *logBook) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// A limit that has passed names the side whose limit it is, the step and how
// long it was (I10): in the error, in the log, and where the peer is told why, in
// what it is told.
func TestEveryTimeoutNamesSideStepAndLimit(t *testing.T) {
	upToReady := []proto.Message{hello(), prepared, pageAck(1), received}
	late := func(ctx context.Context) error { // a function of the program that heeds its context
		<-ctx.Done()
		return ctx.Err()
	}
	controller := &pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER}

	// The predecessor's, as a client by hand and the owner's log meet them.
	for i, tt := range []struct {
		step  string
		limit time.Duration
		said  []proto.Message
		hook  func(*owner) // what makes the program slow, nil for nothing
		heard string       // the message that tells the peer, "" for none
		says  string
	}{
		{"Hello", limits.Hello, nil, nil, "Refuse", "no Hello within 3s"},
		{"ControlRequest", limits.Hello, []proto.Message{controller}, nil, "Refuse", "no ControlRequest within 3s"},
		{
			"Hello", limits.Hello,
			[]proto.Message{hello()},
			func(o *owner) { o.refuse = late },
			"Refuse", "no decision of the policy within 3s",
		},
		{
			"the offer", limits.Ready,
			[]proto.Message{hello()},
			func(o *owner) { o.service.onOffer = func(ctx context.Context) { o.service.offerErr = late(ctx) } },
			"Abort", "hook failed: no offer within 1m0s",
		},
		{"Prepared", limits.Ready, upToReady[:1], nil, "Abort", "no Prepared within 1m0s"},
		{"PageAck", limits.Ready, upToReady[:2], nil, "Abort", "no PageAck within 1m0s"},
		{"Received", limits.Ready, upToReady[:3], nil, "Abort", "no Received within 1m0s"},
		{"Ready", limits.Ready, upToReady, nil, "Abort", "no Ready within 1m0s"},
		{
			"the last page", limits.Commit * 4 / 5, append(upToReady[:4:4], ready),
			func(o *owner) { o.service.onFreeze = func(ctx context.Context) { o.service.freezeErr = late(ctx) } },
			"Abort", "hook failed: no last page within 8.8s",
		},
		{"PageAck", limits.Commit, append(upToReady[:4:4], ready), nil, "Abort", "no PageAck within 11s"},
		{"FinalReceived", limits.Commit, append(upToReady[:4:4], ready, pageAck(2)), nil, "Abort", "no FinalReceived within 11s"},
		{"CommitAck", limits.Commit, append(upToReady[:4:4], ready, pageAck(2), finalReceived), nil, "", "no CommitAck within 11s"},
	} {
		bubble(t, fmt.Sprintf("predecessor %d, %s", i, tt.step), func(t *testing.T) {
			var log logBook
			var o *owner
			o = newOwner(t, func(cfg *handoff.ServerConfig) {
				cfg.Log = log.logger()
				cfg.Accept = func(ctx context.Context, _ handoff.Candidate) error {
					if o.refuse != nil {
						return o.refuse(ctx)
					}
					return nil
				}
			})
			if tt.hook != nil {
				tt.hook(o)
			}
			p := o.client()
			p.say(tt.said...)
			p.hearAll()
			elapse(tt.limit - time.Nanosecond)
			p.mustHear()
			elapse(time.Nanosecond)
			names, last, _ := p.hearAll()
			want := "predecessor, at " + tt.step + ": " + tt.says
			if tt.heard != "" {
				r, ok := last.(interface{ GetReason() string })
				if !ok || len(names) != 1 || names[0] != tt.heard || !strings.Contains(r.GetReason(), want) {
					t.Errorf("it tells the peer %q %v, want %s with %q", names, last, tt.heard, want)
				}
			}
			if tt.heard == "Abort" && !strings.Contains(o.failure(), want) {
				t.Errorf("the failure in the status is %q, want %q", o.failure(), want)
			}
			if !strings.Contains(log.String(), want) {
				t.Errorf("it logs\n%swant %q", log.String(), want)
			}
		})
	}

	// The successor's. Its error is what the program logs.
	for i, tt := range []struct {
		step  string
		limit time.Duration
		said  []proto.Message
		says  string
	}{
		{"Welcome", patience, nil, "no Welcome within 7s"},
		{"ManifestPage", patience, []proto.Message{welcome(0)}, "no ManifestPage within 7s"},
		{"ManifestPage", limits.Commit, []proto.Message{welcome(0), manifestPage(0), nil}, "no ManifestPage within 11s"},
		{"Commit", limits.Commit, []proto.Message{welcome(0), manifestPage(0), nil, manifestPage(1)}, "no Commit within 11s"},
	} {
		bubble(t, fmt.Sprintf("successor %d, %s", i, tt.step), func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			for _, m := range tt.said {
				if m == nil {
					c.ready(t.Context())
					continue
				}
				p.say(m)
			}
			p.hearAll()
			elapse(tt.limit - time.Nanosecond)
			p.mustHear()
			elapse(time.Nanosecond)
			synctest.Wait()
			err := c.err
			if err == nil {
				err = c.outcome()
			}
			want := "successor, at " + tt.step + ": " + tt.says
			if err == nil || err.Error() != want {
				t.Errorf("the error is %v, want %s", err, want)
			}
			if _, last, _ := p.hearAll(); last == nil || last.(*pb.Abort).GetReason() != want {
				t.Errorf("it tells the peer %v, want %s", last, want)
			}
		})
	}
	bubble(t, "successor, a refusal that does not pass", func(t *testing.T) {
		c := newCandidate(t)
		c.cfg.WaitUntil = time.Now().Add(20 * time.Second)
		p := c.server()
		p.say(&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_DRAINING, Reason: "two are draining"})
		elapse(20 * time.Second)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrDraining, handoff.ErrTimeout), "successor, at Welcome: ", "two are draining", "no change within 20s")
	})
	for _, tt := range []struct {
		step  string
		limit time.Duration
		act   func(*candidate, *player)
	}{
		{"Retired", limits.Commit, func(*candidate, *player) {}},
		{"Resumed", limits.Commit, func(c *candidate, p *player) {
			go func() { c.result <- c.taking.Rollback(context.Background(), "bad") }()
			synctest.Wait()
		}},
	} {
		bubble(t, "successor, waiting without a limit for "+tt.step, func(t *testing.T) {
			var log logBook
			c := newCandidate(t)
			c.cfg.Log = log.logger()
			p := c.server()
			w := welcome(0)
			if tt.step == "Resumed" {
				w.Probation = durationpb.New(time.Hour)
			}
			p.say(w, manifestPage(0))
			c.ready(t.Context())
			p.say(manifestPage(1), &pb.Commit{})
			c.mustOwn()
			tt.act(c, p)
			elapse(tt.limit)
			synctest.Wait()
			if want := "successor, at " + tt.step + ": no " + tt.step + " within 11s"; !strings.Contains(log.String(), want) {
				t.Errorf("it logs\n%swant %q", log.String(), want)
			}
		})
	}
}

// A function of the program that fails because its time was up says both.
func TestHookThatIsLate(t *testing.T) {
	bubble(t, "its own error and the limit", func(t *testing.T) {
		o := newOwner(t)
		o.service.onFreeze = func(ctx context.Context) {
			<-ctx.Done()
			o.service.freezeErr = errors.New("the database is busy")
		}
		c := o.connected()
		c.ready(t.Context())
		elapse(limits.Commit)
		synctest.Wait()
		mustMatch(t, errors.New(o.failure()), nil, "no last page within 8.8s", "the database is busy")
	})
}

package handoff_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// reader is a rule that lets everybody read and nobody change.
func reader(_ *scm.Peer, access handoff.Access) error {
	if access != handoff.AccessRead {
		return errors.New("uid 1 of /secret does not match")
	}
	return nil
}

// mustBeDenied fails unless the last word is a refusal that says nothing of the cause.
func mustBeDenied(t *testing.T, last proto.Message, part string) {
	t.Helper()
	r, ok := last.(*pb.Refuse)
	if !ok || r.GetCode() != pb.RefuseCode_REFUSE_CODE_DENIED || !strings.Contains(r.GetReason(), part) {
		t.Fatalf("the answer is %v", last)
	}
	if strings.Contains(r.GetReason(), "secret") || r.GetWho() != nil {
		t.Errorf("the answer tells a stranger %v", r)
	}
}

func TestWhatAReaderMayAskFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		request *pb.ControlRequest
		may     bool
	}{
		{"status", statusRequest, true},
		{"watch", watchRequest, true},
		{"check", checkRequest, true},
		{"upgrade", upgradeRequest, false},
		{"settle", settleRequest, false},
		{"rollback", rollbackRequest, false},
		{"cancel", cancelRequest("", true), false},
		{"end_drain", endDrainRequest, false},
		{"stop", stopRequest, false},
		{"what this version does not know", &pb.ControlRequest{}, false},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			o, calls := commanded(t, func(c *handoff.ServerConfig) { c.Authorize = reader })
			p := o.controller(tt.request)
			_, last, closed := p.hearAll()
			if tt.may {
				if _, ok := last.(*pb.ControlResponse); !ok {
					t.Errorf("the answer is %v", last)
				}
				p.close()
				return
			}
			mustBeDenied(t, last, "may not change anything or take over: the log of the process that serves has the reason")
			if !closed || calls.String() != "" {
				t.Errorf("closed: %t; the program was asked for %q", closed, calls)
			}
		})
	}
}

// TestEveryRequestIsJudged: a request that is added later is one that changes
// something, until somebody says that it does not.
func TestEveryRequestIsJudged(t *testing.T) {
	fields := new(pb.ControlRequest).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	var open []string
	for i := range fields.Len() {
		r := new(pb.ControlRequest)
		m := r.ProtoReflect()
		m.Set(fields.Get(i), m.NewField(fields.Get(i)))
		if !handoff.ChangesSomething(r) {
			open = append(open, string(fields.Get(i).Name()))
		}
	}
	if got := strings.Join(open, " "); got != "status watch check" {
		t.Errorf("readers may ask for %q", got)
	}
}

func TestAReaderMayNotTakeOver(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		var log bytes.Buffer
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Authorize, c.Log = reader, slog.New(slog.NewTextHandler(&log, nil))
		})
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrDenied), "this client may not change anything or take over")
		if strings.Contains(c.err.Error(), "secret") {
			t.Errorf("the candidate is told %v", c.err)
		}
		if calls := o.service.String(); o.server.State() != handoff.StateOwner || strings.Contains(calls, "Offer") {
			t.Errorf("the owner is %v, and was asked for %q", o.server.State(), calls)
		}
		if text := log.String(); !strings.Contains(text, "uid 1 of /secret does not match") || !strings.Contains(text, "turned away") {
			t.Errorf("the log has %q", text)
		}
	})
}

// The rehearsal is honest about who asks, and a process that has moved still says so.
func TestTheRehearsalOfAReader(t *testing.T) {
	bubble(t, "an owner", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) { c.Authorize = reader })
		reply := o.controller(checkRequest).answer().GetCheck()
		mustBeDenied(t, reply.GetRefuse(), "take over")
	})
	bubble(t, "one that has moved", func(t *testing.T) {
		rule := func(*scm.Peer, handoff.Access) error { return nil }
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Authorize = func(p *scm.Peer, access handoff.Access) error { return rule(p, access) }
		})
		o.takeOver()
		rule = reader
		mustBeError(t, o.controller(checkRequest).answer(), pb.ErrorCode_ERROR_CODE_MOVED, "")
	})
}

// TestCredentialsAreThoseOfTheConnect: each question is about the same peer, which
// the server asks the kernel for once.
func TestCredentialsAreThoseOfTheConnect(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		peer := &scm.Peer{UID: 7, GID: 8}
		var asked []handoff.Access
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Authorize = func(p *scm.Peer, access handoff.Access) error {
				if p != peer {
					t.Errorf("asked about %v", p)
				}
				asked = append(asked, access)
				return nil
			}
		})
		c := newCandidate(t)
		go o.server.Serve(c.pipe.server, peer)
		c.dial(t.Context())
		c.mustHaveReceived()
		if len(asked) != 2 || asked[0] != handoff.AccessRead || asked[1] != handoff.AccessChange {
			t.Errorf("asked about %v", asked)
		}
	})
}

func TestTheRefusalNamesOnlyTheClient(t *testing.T) {
	for name, tt := range map[string]struct {
		peer *scm.Peer
		want string
	}{
		"a user":                  {&scm.Peer{UID: 7, GID: 8, PID: 9}, "uid 7 may not speak here"},
		"a user without a number": {&scm.Peer{UID: 65534, GID: 8}, "this client may not speak here"},
		"nobody knows whom":       {nil, "this client may not speak here"},
	} {
		bubble(t, name, func(t *testing.T) {
			o := newOwner(t, func(c *handoff.ServerConfig) {
				c.Authorize = func(*scm.Peer, handoff.Access) error { return errors.New("secret") }
			})
			p := newPipe(t)
			go o.server.Serve(p.server, tt.peer)
			hears := &player{t: t, end: p.client}
			_, last, closed := hears.hearAll()
			mustBeDenied(t, last, tt.want)
			if !closed {
				t.Error("the server keeps the connection")
			}
			hears.close()
		})
	}
}

// TestAFloodOfStrangersDoesNotFillTheLog: what was left out is counted.
func TestAFloodOfStrangersDoesNotFillTheLog(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		var log bytes.Buffer
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Authorize = func(*scm.Peer, handoff.Access) error { return errBoom }
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		knock := func(times int) (lines int, text string) {
			log.Reset()
			for range times {
				o.client().close()
			}
			return strings.Count(log.String(), "turned away"), log.String()
		}
		if lines, _ := knock(1000); lines != handoff.NoiseBurst {
			t.Errorf("%d lines about 1000 strangers", lines)
		}
		elapse(handoff.NoiseInterval)
		if lines, text := knock(3); lines != 1 || !strings.Contains(text, fmt.Sprintf("left_out=%d", 1000-handoff.NoiseBurst)) {
			t.Errorf("after a pause: %q", text)
		}
		elapse(time.Hour)
		if lines, text := knock(2); lines != 2 || strings.Count(text, "left_out=2") != 1 {
			t.Errorf("after an hour: %q", text)
		}
	})
}

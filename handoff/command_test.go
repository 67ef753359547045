package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// commands is a [handoff.Commands] that records its calls and does what a test
// says: nothing, at first.
type commands struct {
	calls

	upgrade  func(ctx context.Context, settled bool) error
	settle   func(context.Context) error
	rollback func(context.Context) error
	endDrain func() (string, error)
	onStop   func()
}

func (c *commands) Upgrade(ctx context.Context, settled bool) error {
	c.add("Upgrade %t", settled)
	if c.upgrade == nil {
		return nil
	}
	return c.upgrade(ctx, settled)
}

func (c *commands) Settle(ctx context.Context) error {
	c.add("Settle")
	if c.settle == nil {
		return nil
	}
	return c.settle(ctx)
}

func (c *commands) Rollback(ctx context.Context, reason string) error {
	c.add("Rollback %q", reason)
	if c.rollback == nil {
		return nil
	}
	return c.rollback(ctx)
}

func (c *commands) EndDrain(_ context.Context, generation uint64) (string, error) {
	c.add("EndDrain %d", generation)
	if c.endDrain == nil {
		return "asked", nil
	}
	return c.endDrain()
}

func (c *commands) Stop(reason string) {
	c.add("Stop %q", reason)
	if c.onStop != nil {
		c.onStop()
	}
}

// commanded returns an owner that does what controllers wish.
func commanded(t *testing.T, configure ...func(*handoff.ServerConfig)) (*owner, *commands) {
	c := new(commands)
	return newOwner(t, append(configure, func(cfg *handoff.ServerConfig) { cfg.Commands = c })...), c
}

// The requests.
var (
	statusRequest   = &pb.ControlRequest{Request: &pb.ControlRequest_Status{Status: &pb.StatusRequest{}}}
	watchRequest    = &pb.ControlRequest{Request: &pb.ControlRequest_Watch{Watch: &pb.WatchRequest{}}}
	upgradeRequest  = &pb.ControlRequest{Request: &pb.ControlRequest_Upgrade{Upgrade: &pb.UpgradeRequest{}}}
	settledRequest  = &pb.ControlRequest{Request: &pb.ControlRequest_Upgrade{Upgrade: &pb.UpgradeRequest{WaitSettled: true}}}
	settleRequest   = &pb.ControlRequest{Request: &pb.ControlRequest_Settle{Settle: &pb.SettleRequest{}}}
	rollbackRequest = &pb.ControlRequest{Request: &pb.ControlRequest_Rollback{Rollback: &pb.RollbackRequest{Reason: "too slow\n"}}}
	endDrainRequest = &pb.ControlRequest{Request: &pb.ControlRequest_EndDrain{EndDrain: &pb.EndDrainRequest{Generation: 1}}}
	stopRequest     = &pb.ControlRequest{Request: &pb.ControlRequest_Stop{Stop: &pb.StopRequest{Reason: "for good"}}}
	checkRequest    = &pb.ControlRequest{Request: &pb.ControlRequest_Check{Check: &pb.CheckRequest{Successor: &pb.Process{Instance: "v2"}}}}
)

func cancelRequest(instance string, kill bool) *pb.ControlRequest {
	return &pb.ControlRequest{Request: &pb.ControlRequest_Cancel{Cancel: &pb.CancelRequest{Instance: instance, Kill: kill, Reason: "not today"}}}
}

// controller has a player ask o, and returns when nothing moves any more. What it
// hears is behind Welcome.
func (o *owner) controller(r *pb.ControlRequest) *player {
	o.t.Helper()
	p := o.client()
	p.say(&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER})
	p.mustHear("Welcome")
	p.say(r)
	return p
}

// answer is the one answer that has come and ended the connection.
func (p *player) answer() *pb.ControlResponse {
	p.t.Helper()
	names, last, closed := p.hearAll()
	r, ok := last.(*pb.ControlResponse)
	if !ok || len(names) != 1 || !closed {
		p.t.Fatalf("the answer is %q, closed: %t: %v", names, closed, last)
	}
	return r
}

// mustWait fails if the answer has come.
func (p *player) mustWait() {
	p.t.Helper()
	p.mustHear()
}

// mustBeOutcome compares an outcome with its code, 0 for a success, and a part of
// its reason.
func mustBeOutcome(t *testing.T, r *pb.ControlResponse, code pb.OutcomeCode, part string) *pb.Outcome {
	t.Helper()
	out := r.GetOutcome()
	if out == nil || out.GetOk() != (code == 0) || out.GetCode() != code || !strings.Contains(out.GetReason(), part) || out.GetReason() == "" {
		t.Errorf("the answer is %v, want %v %q", r, code, part)
	}
	return out
}

func mustBeError(t *testing.T, r *pb.ControlResponse, code pb.ErrorCode, part string) {
	t.Helper()
	if e := r.GetError(); e == nil || e.GetCode() != code || !strings.Contains(e.GetReason(), part) || e.GetReason() == "" {
		t.Errorf("the answer is %v, want %v %q", r, code, part)
	}
}

// ask has a controller command o, and returns its result when it is there.
func (o *owner) ask(ctx context.Context, r *pb.ControlRequest) chan error {
	p := newPipe(o.t)
	go o.server.Serve(p.server, nil)
	return async(func() error {
		_, err := handoff.CommandOn(ctx, p.client, r)
		return err
	})
}

// situations are the states of a process that a controller can meet.
var situations = []struct {
	name  string
	state handoff.State
	enter func(o *owner)
}{
	{"owner", handoff.StateOwner, func(*owner) {}},
	{"owner that is not ready", handoff.StateOwner, func(o *owner) { o.server.Own(1, false, true) }},
	{"heir", handoff.StateHeir, func(o *owner) { o.server.Inherit(1) }},
	{"offering", handoff.StateOffering, func(o *owner) { o.connected() }},
	{"committing", handoff.StateCommitting, func(o *owner) {
		o.client().say(hello(), prepared, pageAck(1), received, ready)
	}},
	{"standby", handoff.StateStandby, func(o *owner) { throughCommit(o.client()) }},
	{"probation", handoff.StateProbation, func(o *owner) {
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
	}},
	{"draining", handoff.StateDraining, func(o *owner) { throughRetired(o.client()) }},
	{"yielding", handoff.StateYielding, func(o *owner) {
		o.server.Own(2, true, false)
		o.server.SetProbation(&handoff.Probation{Predecessor: handoff.Process{Instance: "v0", Generation: 1}, Until: time.Now().Add(time.Minute)})
		o.server.Yield()
	}},
	{"out", handoff.StateOut, func(o *owner) { o.server.Stop() }},
}

// TestRequestsByState: who answers what in which state. Whether a command that
// reaches the process can be done is its own affair.
func TestRequestsByState(t *testing.T) {
	const (
		moved     = "MOVED"
		status    = "a status"
		event     = "an event"
		lastEvent = "a last event"
		refused   = "refused: "
	)
	// What is asked, what it has the process do, and what the answers are that
	// differ from the first.
	tests := []struct {
		request *pb.ControlRequest
		does    string
		answer  string
		others  map[handoff.State]string
	}{
		{statusRequest, "", status, nil},
		{watchRequest, "", event, map[handoff.State]string{
			handoff.StateProbation: lastEvent, handoff.StateDraining: lastEvent, handoff.StateOut: lastEvent,
		}},
		{upgradeRequest, "Upgrade false", "upgraded: the successor owns", notOwner(moved)},
		{settledRequest, "Upgrade true", "upgraded, and settled: this process cannot come back", notOwner(moved)},
		{settleRequest, "Settle", "settled: the predecessor cannot come back", notOwner(moved)},
		{rollbackRequest, `Rollback "too slow?"`, "rolled back: the predecessor owns again", with(notOwner(moved), handoff.StateYielding, "")},
		{endDrainRequest, "EndDrain 1", "asked", notOwner(moved)},
		{stopRequest, `Settle, Stop "for good"`, "stopping", notOwner(moved)},
		{cancelRequest("nobody", false), "", "nothing to cancel: no such attempt is under way", with(notOwner(moved), handoff.StateStandby, "")},
		{checkRequest, "", "rehearsed", map[handoff.State]string{
			handoff.StateOffering: refused + "BUSY", handoff.StateCommitting: refused + "BUSY", handoff.StateStandby: refused + "BUSY",
			handoff.StateHeir:      refused + "NOT_READY",
			handoff.StateProbation: moved, handoff.StateDraining: moved, handoff.StateYielding: moved,
			handoff.StateOut: refused + "STOPPING",
		}},
	}
	for _, at := range situations {
		for _, tt := range tests {
			name := strings.TrimSuffix(strings.SplitN(fmt.Sprint(tt.request), ":", 2)[0], " ")
			bubble(t, at.name+", "+name, func(t *testing.T) {
				o, did := commanded(t)
				at.enter(o)
				synctest.Wait()
				o.mustBe(at.state)
				want := tt.answer
				if other := tt.others[at.state]; other != "" {
					want = other
				}
				if at.name == "owner that is not ready" && tt.request == checkRequest {
					want = refused + "NOT_READY"
				}
				p := o.controller(tt.request)
				names, last, closed := p.hearAll()
				r, _ := last.(*pb.ControlResponse)
				if len(names) != 1 || closed == (want == event) {
					t.Fatalf("the answer is %q, closed: %t", names, closed)
				}
				does := tt.does
				switch {
				case want == moved:
					mustBeError(t, r, pb.ErrorCode_ERROR_CODE_MOVED, at.state.String())
					does = ""
				case want == status:
					if s := r.GetStatus(); s == nil || handoff.State(s.GetState()) != at.state {
						t.Errorf("the answer is %v", r)
					}
				case want == event, want == lastEvent:
					if e := r.GetEvent(); e == nil || handoff.State(e.GetState()) != at.state || e.GetText() == "" {
						t.Errorf("the answer is %v", r)
					}
				case strings.HasPrefix(want, refused):
					code := "REFUSE_CODE_" + strings.TrimPrefix(want, refused)
					if c := r.GetCheck(); c == nil || c.GetRefuse().GetCode().String() != code {
						t.Errorf("the answer is %v, want %s", r, code)
					}
				case want == "rehearsed":
					if c := r.GetCheck(); c == nil || c.GetRefuse() != nil {
						t.Errorf("the answer is %v", r)
					}
				default:
					out := mustBeOutcome(t, r, 0, want)
					if handoff.State(out.GetState()) != at.state {
						t.Errorf("the outcome is of the state %v", out.GetState())
					}
				}
				mustHaveCalled(t, &did.calls, does)
			})
		}
	}
}

// notOwner gives the same answer in every state of a process that does not own.
func notOwner(answer string) map[handoff.State]string {
	m := make(map[handoff.State]string)
	for _, s := range []handoff.State{
		handoff.StateStandby, handoff.StateProbation, handoff.StateDraining, handoff.StateYielding, handoff.StateOut,
	} {
		m[s] = answer
	}
	return m
}

func with(m map[handoff.State]string, state handoff.State, answer string) map[handoff.State]string {
	m[state] = answer
	return m
}

// TestWhoServesNow: an outcome says so, as far as the one that answers can know.
func TestWhoServesNow(t *testing.T) {
	for _, at := range situations {
		bubble(t, at.name, func(t *testing.T) {
			o, did := commanded(t)
			decided := make(chan struct{})
			did.settle = func(context.Context) error { <-decided; return nil }
			p := o.controller(settleRequest)
			at.enter(o) // while the command is under way
			close(decided)
			who := mustBeOutcome(t, p.answer(), 0, "settled").GetServing()
			want := ""
			switch at.state {
			case handoff.StateOwner, handoff.StateOffering, handoff.StateCommitting:
				want = "v1"
			case handoff.StateProbation, handoff.StateDraining:
				want = "by hand"
			case handoff.StateYielding:
				want = "v0"
			}
			if who.GetInstance() != want {
				t.Errorf("it says that %v serves, want %q", who, want)
			}
		})
	}
}

func TestOutcomeCodes(t *testing.T) {
	passing := &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_PROBATION, Reason: "later", Who: &pb.Process{Instance: "v0"}}
	tests := []struct {
		name string
		err  error
		code pb.OutcomeCode // 0: an Error
		as   pb.ErrorCode
		is   []error // what the controller's error matches
		says string
	}{
		{name: "any", err: errBoom, code: pb.OutcomeCode_OUTCOME_CODE_FAILED, is: is(handoff.ErrFailed), says: "boom"},
		{
			name: "a timeout", err: &handoff.Error{Side: handoff.Predecessor, Step: "Ready", Err: &handoff.TimeoutError{For: "Ready", Limit: time.Minute}},
			code: pb.OutcomeCode_OUTCOME_CODE_TIMEOUT, is: is(handoff.ErrTimeout), says: "predecessor, at Ready: no Ready within 1m0s",
		},
		{
			name: "cancelled by a limit", err: fmt.Errorf("%w: %w", handoff.ErrCancelled, &handoff.TimeoutError{For: "end", Limit: time.Second}),
			code: pb.OutcomeCode_OUTCOME_CODE_TIMEOUT, is: is(handoff.ErrTimeout), says: "no end within 1s",
		},
		{name: "cancelled", err: handoff.ErrCancelled, code: pb.OutcomeCode_OUTCOME_CODE_CANCELLED, is: is(handoff.ErrCancelled), says: "cancelled"},
		{name: "rolled back", err: handoff.ErrRolledBack, code: pb.OutcomeCode_OUTCOME_CODE_ROLLED_BACK, is: is(handoff.ErrRolledBack), says: "rolled back"},
		{name: "settled", err: handoff.ErrSettled, code: pb.OutcomeCode_OUTCOME_CODE_SETTLED, is: is(handoff.ErrSettled), says: "settled"},
		{name: "committed", err: handoff.ErrCommitted, code: pb.OutcomeCode_OUTCOME_CODE_COMMITTED, is: is(handoff.ErrCommitted), says: "committed"},
		{name: "policy", err: handoff.ErrPolicy, code: pb.OutcomeCode_OUTCOME_CODE_REFUSED, is: is(handoff.ErrPolicy), says: "policy"},
		{name: "incompatible", err: handoff.ErrIncompatible, code: pb.OutcomeCode_OUTCOME_CODE_REFUSED, is: is(handoff.ErrPolicy), says: "version"},
		{name: "control lost", err: handoff.ErrControlLost, code: pb.OutcomeCode_OUTCOME_CODE_REFUSED, is: is(handoff.ErrPolicy), says: "control"},
		{
			name: "unknown, whatever the cause", err: fmt.Errorf("%w: %w", handoff.ErrOutcomeUnknown, context.Canceled),
			code: pb.OutcomeCode_OUTCOME_CODE_UNKNOWN, is: is(handoff.ErrOutcomeUnknown), says: "not known",
		},
		{
			name: "a refusal that passes", err: handoff.RefusedFromWire(passing),
			code: pb.OutcomeCode_OUTCOME_CODE_BUSY, is: is(handoff.ErrBusy), says: "later",
		},
		{
			name: "a refusal that stands", err: handoff.RefusedFromWire(&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_STOPPING}),
			code: pb.OutcomeCode_OUTCOME_CODE_FAILED, is: is(handoff.ErrFailed), says: "stopping",
		},
		{name: "moved", err: fmt.Errorf("%w: to the moon", handoff.ErrMoved), as: pb.ErrorCode_ERROR_CODE_MOVED, is: is(handoff.ErrMoved), says: "to the moon"},
		{name: "not allowed", err: fmt.Errorf("%w: by nobody", handoff.ErrNotAllowed), as: pb.ErrorCode_ERROR_CODE_NOT_ALLOWED, is: is(handoff.ErrNotAllowed), says: "not allowed: by nobody"},
		{name: "wrong state", err: handoff.ErrWrongState, as: pb.ErrorCode_ERROR_CODE_WRONG_STATE, is: is(handoff.ErrWrongState), says: "not possible"},
		{name: "not ready", err: handoff.ErrNotReady, as: pb.ErrorCode_ERROR_CODE_WRONG_STATE, is: is(handoff.ErrWrongState), says: "not ready yet"},
	}
	seen := make(map[int32]bool)
	for _, tt := range tests {
		seen[int32(tt.code)] = true
		bubble(t, tt.name, func(t *testing.T) {
			o, did := commanded(t)
			did.settle = func(context.Context) error { return tt.err }
			r := o.controller(settleRequest).answer()
			if tt.code == 0 {
				mustBeError(t, r, tt.as, tt.says)
			} else if out := mustBeOutcome(t, r, tt.code, tt.says); tt.code == pb.OutcomeCode_OUTCOME_CODE_BUSY && out.GetWho().GetInstance() != "v0" {
				t.Errorf("in the way is %v", out.GetWho())
			}
			err := <-o.ask(t.Context(), settleRequest)
			mustMatch(t, err, tt.is, tt.says)
			out := new(handoff.OutcomeError)
			if got := errors.As(err, &out); got != (tt.code != 0) || got && (out.Serving == nil || out.Serving.Instance != "v1" || out.State != handoff.StateOwner) {
				t.Errorf("%#v", err)
			}
		})
	}
	for number, name := range pb.OutcomeCode_name {
		if number != 0 && !seen[number] {
			t.Errorf("nothing leads to %s", name)
		}
	}
}

func TestUpgradeOfAController(t *testing.T) {
	bubble(t, "has the time that it gives", func(t *testing.T) {
		for d, want := range map[time.Duration]time.Duration{-time.Hour: 0, 0: 0, time.Minute: time.Minute} {
			o, did := commanded(t)
			var took time.Duration
			did.upgrade = func(ctx context.Context, _ bool) error {
				began := time.Now()
				<-ctx.Done()
				took = time.Since(began)
				return context.Cause(ctx)
			}
			p := o.controller(&pb.ControlRequest{Request: &pb.ControlRequest_Upgrade{Upgrade: &pb.UpgradeRequest{Timeout: durationpb.New(d)}}})
			elapse(max(d, 0))
			synctest.Wait()
			mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_TIMEOUT, fmt.Sprintf("no end of the upgrade within %v", want))
			if took != want {
				t.Errorf("it has taken %v, want %v", took, want)
			}
		}
	})
	bubble(t, "ends when the controller leaves", func(t *testing.T) {
		o, did := commanded(t)
		ended := make(chan error, 1)
		did.upgrade = func(ctx context.Context, _ bool) error {
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return context.Cause(ctx)
		}
		p := o.controller(upgradeRequest)
		elapse(time.Hour)
		p.mustWait()
		p.close()
		mustMatch(t, <-ended, nil, "the controller has left")
	})
	bubble(t, "is told by whoever else may command", func(t *testing.T) {
		o := newOwner(t) // nobody may
		for _, r := range []*pb.ControlRequest{upgradeRequest, settleRequest, rollbackRequest, endDrainRequest, stopRequest, {}} {
			mustBeError(t, o.controller(r).answer(), pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED, "does not implement")
		}
		mustBeOutcome(t, o.controller(cancelRequest("", false)).answer(), 0, "nothing to cancel")
	})
	bubble(t, "is logged with who asks", func(t *testing.T) {
		var log strings.Builder // of one bubble, and read when all is at rest
		o, did := commanded(t, func(c *handoff.ServerConfig) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		p := newPipe(t)
		go o.server.Serve(p.server, &scm.Peer{PID: 4711})
		if _, err := handoff.CommandOn(t.Context(), p.client, settleRequest); err != nil {
			t.Fatal(err)
		}
		did.settle = func(context.Context) error { return handoff.ErrNotAllowed }
		p = newPipe(t)
		go o.server.Serve(p.server, &scm.Peer{PID: 4712})
		_, err := handoff.CommandOn(t.Context(), p.client, settleRequest)
		mustMatch(t, err, is(handoff.ErrNotAllowed))
		synctest.Wait()
		for _, part := range []string{
			`msg="a controller's request was fulfilled" request=SettleRequest peer="pid 4711,`,
			`msg="a controller's request was not fulfilled" request=SettleRequest peer="pid 4712,`,
		} {
			if !strings.Contains(log.String(), part) {
				t.Errorf("the log is\n%s", &log)
			}
		}
	})
}

// stranger is the process of a candidate, for the tests of what ends it.
type stranger struct {
	calls

	exited chan struct{}
	onKill func() error
}

func newStranger() *stranger { return &stranger{exited: make(chan struct{})} }

func (p *stranger) Exited() <-chan struct{} { return p.exited }

func (p *stranger) PidfdID() (uint64, error) { return 0, errors.ErrUnsupported }

func (p *stranger) Kill() error {
	p.add("Kill")
	return p.onKill()
}

// spawn begins the attempt of a process that the owner has started, which Kill ends.
func (o *owner) spawn(ctx context.Context, c *candidate, pid int) (process *stranger, fate chan error) {
	o.t.Helper()
	process = newStranger()
	process.onKill = func() error {
		close(process.exited)
		c.pipe.client.kill()
		return nil
	}
	sp, err := o.server.SpawnOn(c.pipe.server)
	if err != nil {
		o.t.Fatal(err)
	}
	return process, async(func() error { return sp.Run(ctx, pid, process) })
}

// upgradesTo has a controller's Upgrade start the candidate.
func (o *owner) upgradesTo(did *commands, c *candidate) *stranger {
	process := newStranger()
	process.onKill = func() error { return errBoom }
	did.upgrade = func(ctx context.Context, settled bool) error {
		end := c.pipe.server
		if did.count("Upgrade") > 1 {
			end = newPipe(o.t).server
		}
		sp, err := o.server.SpawnOn(end)
		if err != nil {
			return err
		}
		if err := sp.Run(ctx, 22, process); err != nil || !settled {
			return err
		}
		return sp.Settled(ctx)
	}
	return process
}

func probationFor(d time.Duration) func(*handoff.SuccessorConfig) {
	return func(c *handoff.SuccessorConfig) { c.Probation = &d }
}

func TestUpgradeThroughAController(t *testing.T) {
	begin := func(t *testing.T, r *pb.ControlRequest, asks ...func(*handoff.SuccessorConfig)) (*owner, *candidate, *player) {
		o, did := commanded(t, granting)
		c := newCandidate(t)
		for _, ask := range asks {
			ask(c.cfg)
		}
		o.upgradesTo(did, c)
		p := o.controller(r)
		c.dial(t.Context())
		c.mustHaveReceived()
		p.mustWait()
		return o, c, p
	}
	bubble(t, "the answer comes when the successor owns", func(t *testing.T) {
		o, c, p := begin(t, upgradeRequest)
		c.ready(t.Context())
		c.mustOwn()
		out := mustBeOutcome(t, p.answer(), 0, "the successor owns")
		if s := out.GetServing(); s.GetInstance() != "v2" || s.GetGeneration() != 2 || out.GetState() != pb.State_STATE_PROBATION {
			t.Errorf("the outcome is %v", out)
		}
		o.mustBe(handoff.StateProbation)
	})
	bubble(t, "the answer is written before the program hears that it is replaced", func(t *testing.T) {
		for _, r := range []*pb.ControlRequest{upgradeRequest, settledRequest} {
			o, c, p := begin(t, r, probationFor(0))
			told := false
			o.service.onRetire = func() { told = p.end.pipe.sent("< ControlResponse") }
			c.ready(t.Context())
			c.mustOwn()
			mustBeOutcome(t, p.answer(), 0, "upgraded")
			if !told || o.service.count("Retire") != 1 {
				t.Errorf("the answer was written first: %t; %v", told, &o.service.calls)
			}
		}
	})
	bubble(t, "a controller that does not read delays that for a moment only", func(t *testing.T) {
		o, c, p := begin(t, settledRequest, probationFor(0))
		p.end.peer.fill()
		var after time.Duration
		began := time.Now()
		o.service.onRetire = func() { after = time.Since(began) }
		c.ready(t.Context())
		c.mustOwn()
		elapse(time.Minute)
		synctest.Wait()
		if after != handoff.DebtLimit {
			t.Errorf("it has waited for %v", after)
		}
		o.mustBe(handoff.StateDraining)
	})
	bubble(t, "the answer of one that waits comes when it is settled", func(t *testing.T) {
		_, c, p := begin(t, settledRequest)
		c.ready(t.Context())
		c.mustOwn()
		elapse(granted / 2)
		p.mustWait()
		if err := c.taking.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out := mustBeOutcome(t, p.answer(), 0, "settled"); out.GetServing().GetInstance() != "v2" {
			t.Errorf("the outcome is %v", out)
		}
	})
	for _, end := range []struct {
		name string
		does func(c *candidate) error
		says string
	}{
		{"rolled back", func(c *candidate) error { return c.taking.Rollback(c.t.Context(), "too slow") }, "too slow"},
		{"dead", func(c *candidate) error { c.pipe.client.kill(); return nil }, "it has closed the connection"},
	} {
		bubble(t, "one that waits hears of a successor that is "+end.name, func(t *testing.T) {
			o, c, p := begin(t, settledRequest)
			c.ready(t.Context())
			c.mustOwn()
			if err := end.does(c); err != nil {
				t.Fatal(err)
			}
			out := mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_ROLLED_BACK, end.says)
			if out.GetServing().GetInstance() != "v1" || out.GetState() != pb.State_STATE_OWNER {
				t.Errorf("the outcome is %v", out)
			}
			o.takeOver()
		})
	}
	bubble(t, "one that waits hears that the process was told to stop, before its program does", func(t *testing.T) {
		o, c, p := begin(t, settledRequest)
		c.ready(t.Context())
		c.mustOwn()
		c.pipe.client.freeze() // it does not answer ProbationOver
		told := false
		o.service.onRetire = func() { told = p.end.pipe.sent("< ControlResponse") }
		o.server.Stop()
		mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_UNKNOWN, "this process")
		if !told {
			t.Error("the program was told first")
		}
	})
	bubble(t, "a candidate that fails", func(t *testing.T) {
		o, c, p := begin(t, upgradeRequest)
		c.taking.Abort(errBoom)
		out := mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_FAILED, "boom")
		if out.GetServing().GetInstance() != "v1" {
			t.Errorf("the outcome is %v", out)
		}
		o.takeOver()
	})
	bubble(t, "a second one is busy with the first", func(t *testing.T) {
		o, _, _ := begin(t, upgradeRequest)
		out := mustBeOutcome(t, o.controller(upgradeRequest).answer(), pb.OutcomeCode_OUTCOME_CODE_BUSY, "another handoff is under way")
		if out.GetWho().GetInstance() != "v2" {
			t.Errorf("the outcome is %v", out)
		}
	})
}

// TestHangUp: who has asked for an upgrade and leaves cancels it, up to Commit.
func TestHangUp(t *testing.T) {
	stages := []struct {
		name      string
		reach     func(c *candidate)
		cancelled bool
		state     handoff.State
	}{
		{"before Hello", func(*candidate) {}, true, handoff.StateOwner},
		{"before Ready", func(c *candidate) { c.dial(c.t.Context()) }, true, handoff.StateOwner},
		{"at FinalReceived", func(c *candidate) {
			c.pipe.after = func(m string) {
				if m == "< ManifestPage 1" {
					c.pipe.client.freeze()
				}
			}
			c.dial(c.t.Context())
			c.ready(c.t.Context())
		}, true, handoff.StateOwner},
		{"at CommitAck", func(c *candidate) {
			c.pipe.after = func(m string) {
				if m == "< Commit" {
					c.pipe.client.freeze()
				}
			}
			c.dial(c.t.Context())
			c.ready(c.t.Context())
		}, false, handoff.StateStandby},
		{"on probation", func(c *candidate) { c.dial(c.t.Context()); c.ready(c.t.Context()) }, false, handoff.StateProbation},
	}
	for _, at := range stages {
		bubble(t, at.name, func(t *testing.T) {
			o, did := commanded(t, granting)
			c := newCandidate(t)
			o.upgradesTo(did, c)
			p := o.controller(settledRequest)
			at.reach(c)
			p.mustWait()
			p.close()
			o.mustBe(at.state)
			if !p.end.peer.isClosed() {
				t.Error("the server keeps the connection")
			}
			if !at.cancelled {
				if f := o.failure(); f != "none" {
					t.Errorf("the attempt has failed: %s", f)
				}
				c.pipe.client.thaw()
				synctest.Wait()
				o.mustBe(handoff.StateProbation)
				return
			}
			if f := o.failure(); !strings.Contains(f, "cancelled: the controller has left") {
				t.Errorf("the failure is %q", f)
			}
			c.pipe.client.thaw()
			synctest.Wait()
			o.takeOver()
		})
	}
}

func TestCancel(t *testing.T) {
	bubble(t, "a candidate that initialises", func(t *testing.T) {
		o, _ := commanded(t)
		c := o.connected()
		out := mustBeOutcome(t, o.controller(cancelRequest("", false)).answer(), 0, "cancelled")
		if out.GetWho().GetInstance() != "v2" || out.GetWho().GetGeneration() != 2 || out.GetServing().GetInstance() != "v1" {
			t.Errorf("the outcome is %v", out)
		}
		c.ready(t.Context())
		mustMatch(t, c.outcome(), is(handoff.ErrAborted, handoff.ErrCancelled), "cancelled: not today")
		o.takeOver()
	})
	bubble(t, "without a reason", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		o.controller(&pb.ControlRequest{Request: &pb.ControlRequest_Cancel{Cancel: &pb.CancelRequest{}}}).answer()
		c.ready(t.Context())
		mustMatch(t, c.outcome(), is(handoff.ErrCancelled), "by a controller")
	})
	bubble(t, "by its instance", func(t *testing.T) {
		o := newOwner(t)
		c := o.connected()
		mustBeOutcome(t, o.controller(cancelRequest("another", false)).answer(), 0, "nothing to cancel")
		o.mustBe(handoff.StateOffering)
		mustBeOutcome(t, o.controller(cancelRequest("v2", false)).answer(), 0, "cancelled")
		o.mustBe(handoff.StateOwner)
		c.taking.Leave()
		for _, instance := range []string{"v2", "another"} {
			again := newCandidate(t)
			again.cfg.Process.Instance = instance
			again.connect(t.Context(), o)
			<-again.connected
			mustMatch(t, again.err, is(handoff.ErrCancelled), "was cancelled before it began")
		}
		c = newCandidate(t)
		c.cfg.Process.Instance = "v3"
		c.connect(t.Context(), o).mustHaveReceived()
	})
	bubble(t, "by what is no instance", func(t *testing.T) {
		o := newOwner(t)
		o.connected()
		for _, instance := range []string{strings.Repeat("x", handoff.MaxName+1), "a\x00b"} {
			mustBeOutcome(t, o.controller(cancelRequest(instance, true)).answer(), pb.OutcomeCode_OUTCOME_CODE_FAILED, "the instance: ")
		}
		o.mustBe(handoff.StateOffering)
	})
	bubble(t, "so many are remembered", func(t *testing.T) {
		o := newOwner(t)
		for i := range handoff.MaxCancelled + 1 {
			o.controller(cancelRequest(fmt.Sprint(i), false)).answer()
			o.controller(cancelRequest(fmt.Sprint(i), false)).answer() // counts once
		}
		for i, target := range []error{nil, handoff.ErrCancelled} {
			c := newCandidate(t)
			c.cfg.Process.Instance = fmt.Sprint(i)
			c.connect(t.Context(), o)
			<-c.connected
			if !errors.Is(c.err, target) {
				t.Errorf("instance %d: %v, want %v", i, c.err, target)
			}
			if c.taking != nil {
				c.taking.Leave()
			}
		}
	})
	bubble(t, "a process that the owner has started, before its Hello", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		_, fate := o.spawn(t.Context(), c, 22)
		mustBeOutcome(t, o.controller(cancelRequest("", false)).answer(), 0, "cancelled")
		mustMatch(t, <-fate, is(handoff.ErrCancelled), "predecessor, at Hello: cancelled: not today")
		c.dial(t.Context())
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrCancelled), "not today")
		o.takeOver()
	})
	bubble(t, "the same, which never says anything, and is killed", func(t *testing.T) {
		o := newOwner(t)
		process, fate := o.spawn(t.Context(), newCandidate(t), 22)
		p := o.controller(cancelRequest("", true))
		mustMatch(t, <-fate, is(handoff.ErrCancelled))
		o.spawn(t.Context(), newCandidate(t), 23) // which has not said who it is either
		elapse(handoff.CancelGrace)
		mustBeOutcome(t, p.answer(), 0, "cancelled, and its process was killed")
		mustHaveCalled(t, &process.calls, "Kill")
	})
	bubble(t, "the same by the instance that it will say", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		_, fate := o.spawn(t.Context(), c, 22)
		mustBeOutcome(t, o.controller(cancelRequest("v2", false)).answer(), 0, "nothing to cancel")
		c.dial(t.Context())
		mustMatch(t, <-fate, is(handoff.ErrCancelled))
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrCancelled), "was cancelled before it began")
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "during a hook of the program", func(t *testing.T) {
		o := newOwner(t)
		o.service.onFreeze = func(ctx context.Context) { <-ctx.Done() }
		c := o.connected()
		c.ready(t.Context())
		o.mustBe(handoff.StateCommitting)
		mustBeOutcome(t, o.controller(cancelRequest("", false)).answer(), 0, "cancelled")
		mustMatch(t, c.outcome(), is(handoff.ErrCancelled), "not today")
		o.service.onFreeze = nil
		o.takeOver()
	})
	bubble(t, "of the owner itself", func(t *testing.T) {
		o := newOwner(t)
		mustBeOutcome(t, o.controller(cancelRequest("v1", false)).answer(), pb.OutcomeCode_OUTCOME_CODE_COMMITTED, `instance "v1"`)
		o.takeOver() // and not one word of it is remembered
	})
	bubble(t, "of one that has owned", func(t *testing.T) {
		o := newOwner(t)
		o.service.older = []handoff.Generation{{Process: handoff.Process{Instance: "v0"}, State: handoff.StateDraining}}
		mustBeOutcome(t, o.controller(cancelRequest("v0", true)).answer(), pb.OutcomeCode_OUTCOME_CODE_COMMITTED, "has owned the service, and is draining")
	})
	bubble(t, "of the successor", func(t *testing.T) {
		o, _ := onProbation(t)
		mustBeOutcome(t, o.controller(cancelRequest("v2", true)).answer(), pb.OutcomeCode_OUTCOME_CODE_COMMITTED, `instance "v2"`)
		o.mustBe(handoff.StateProbation)
	})
	bubble(t, "when the controller leaves", func(t *testing.T) {
		o := newOwner(t)
		block := make(chan struct{})
		o.service.onFreeze = func(context.Context) { <-block }
		o.connected().ready(t.Context())
		p := o.controller(cancelRequest("", false))
		p.mustWait()
		p.close()
		close(block)
		synctest.Wait()
		o.mustBe(handoff.StateOwner) // it was asked for
	})
}

// frozen is a candidate that has been stopped by its system before it has read Abort,
// or even Commit.
func frozen(t *testing.T, pid int, committed bool) (*owner, *candidate, *stranger, chan error) {
	t.Helper()
	o := newOwner(t, granting)
	c := newCandidate(t)
	process, fate := o.spawn(t.Context(), c, pid)
	if committed {
		c.pipe.after = func(m string) {
			if m == "< Commit" {
				c.pipe.client.freeze()
			}
		}
	}
	c.dial(t.Context())
	c.mustHaveReceived()
	if committed {
		c.ready(t.Context())
		o.mustBe(handoff.StateStandby)
	} else {
		c.pipe.client.freeze()
	}
	return o, c, process, fate
}

func TestCancelOfAFrozenCandidate(t *testing.T) {
	bubble(t, "that can be told", func(t *testing.T) {
		o, c, process, fate := frozen(t, 22, false)
		mustBeOutcome(t, o.controller(cancelRequest("", false)).answer(), 0, "cancelled")
		mustMatch(t, <-fate, is(handoff.ErrCancelled))
		mustHaveCalled(t, &process.calls, "")
		o.takeOver()
		c.pipe.client.thaw()
		c.ready(t.Context())
		mustMatch(t, c.outcome(), is(handoff.ErrCancelled))
	})
	bubble(t, "that can be told, and is killed", func(t *testing.T) {
		o, _, process, _ := frozen(t, 22, false)
		p := o.controller(cancelRequest("", true))
		p.mustWait()
		o.mustBe(handoff.StateOwner)
		elapse(handoff.CancelGrace)
		mustBeOutcome(t, p.answer(), 0, "cancelled, and its process was killed")
		mustHaveCalled(t, &process.calls, "Kill")
		o.takeOver()
	})
	bubble(t, "that exits by itself", func(t *testing.T) {
		o, _, process, _ := frozen(t, 22, false)
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace / 2)
		p.mustWait()
		close(process.exited)
		mustBeOutcome(t, p.answer(), 0, "its process has ended")
		mustHaveCalled(t, &process.calls, "")
	})
	bubble(t, "that may not be killed", func(t *testing.T) {
		o, _, process, _ := frozen(t, 22, false)
		process.onKill = func() error { return os.ErrPermission }
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace)
		mustBeError(t, p.answer(), pb.ErrorCode_ERROR_CODE_NOT_ALLOWED, "permission")
	})
	bubble(t, "that ends as it is to be killed", func(t *testing.T) {
		o, _, process, _ := frozen(t, 22, false)
		process.onKill = func() error { close(process.exited); return os.ErrProcessDone }
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace)
		mustBeOutcome(t, p.answer(), 0, "cancelled")
	})
	bubble(t, "of which it is not certain which process it is", func(t *testing.T) {
		o, _, process, _ := frozen(t, 23, false) // the started process is a shell
		mustBeOutcome(t, o.controller(cancelRequest("", true)).answer(), 0, "cancelled; whether its process ends is not known here")
		elapse(time.Hour)
		mustHaveCalled(t, &process.calls, "")
	})
	bubble(t, "whose process has begun another attempt", func(t *testing.T) {
		o, _, process, _ := frozen(t, 22, false)
		p := o.controller(cancelRequest("", true))
		again := newCandidate(t)
		again.cfg.Process.Instance = "v2 again"
		again.connect(t.Context(), o).mustHaveReceived()
		elapse(handoff.CancelGrace)
		mustBeError(t, p.answer(), pb.ErrorCode_ERROR_CODE_WRONG_STATE, "another attempt")
		mustHaveCalled(t, &process.calls, "")
		again.ready(t.Context())
		again.mustOwn()
	})
	untold := func(t *testing.T) (*owner, *candidate, *stranger) {
		o, c, process, _ := frozen(t, 22, false)
		c.pipe.server.fill()
		return o, c, process
	}
	bubble(t, "that cannot be told", func(t *testing.T) {
		o, _, process := untold(t)
		p := o.controller(cancelRequest("", false))
		elapse(handoff.WriteTimeout)
		out := mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_UNKNOWN, "cannot be told")
		if out.GetServing().GetInstance() != "v1" || out.GetWho().GetInstance() != "v2" {
			t.Errorf("the outcome is %v", out)
		}
		mustHaveCalled(t, &process.calls, "")
		_, err := o.server.SpawnOn(newPipe(t).server)
		mustMatch(t, err, is(handoff.ErrBusy), "the end of a broken connection")
	})
	bubble(t, "that cannot be told, and is killed", func(t *testing.T) {
		o, _, process := untold(t)
		p := o.controller(cancelRequest("", true))
		elapse(handoff.WriteTimeout)
		p.mustWait()
		elapse(handoff.CancelGrace)
		mustBeOutcome(t, p.answer(), 0, "cancelled, and its process was killed")
		mustHaveCalled(t, &process.calls, "Kill")
		o.takeOver()
	})
	bubble(t, "that was committed to", func(t *testing.T) {
		o, c, process, _ := frozen(t, 22, true)
		out := mustBeOutcome(t, o.controller(cancelRequest("", false)).answer(), pb.OutcomeCode_OUTCOME_CODE_COMMITTED, "has not answered")
		if out.GetServing() != nil || out.GetWho().GetInstance() != "v2" || out.GetState() != pb.State_STATE_STANDBY {
			t.Errorf("the outcome is %v", out)
		}
		mustHaveCalled(t, &process.calls, "")
		c.pipe.client.thaw()
		synctest.Wait()
		c.mustOwn()
	})
	bubble(t, "that was committed to, and is killed", func(t *testing.T) {
		o, c, process, fate := frozen(t, 22, true)
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace)
		out := mustBeOutcome(t, p.answer(), 0, "cancelled, and its process was killed")
		if out.GetServing().GetInstance() != "v1" {
			t.Errorf("the outcome is %v", out)
		}
		mustMatch(t, <-fate, is(handoff.ErrCancelled), "predecessor, at CommitAck: cancelled: not today, and its process was killed")
		mustHaveCalled(t, &process.calls, "Kill")
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Resume")
		if c.receiver.count("Own") != 0 {
			t.Error("it owned")
		}
		o.takeOver()
	})
	// A signal is sent before it is delivered: what the candidate still writes
	// must not make this process retire, for there would be nobody left.
	bubble(t, "that answers as it is killed", func(t *testing.T) {
		o, c, process, fate := frozen(t, 22, true)
		c.cfg.Probation = new(time.Duration)
		killed := make(chan struct{})
		process.onKill = func() error {
			c.pipe.client.thaw()
			close(killed)
			return nil
		}
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace)
		<-killed
		synctest.Wait()
		o.mustBe(handoff.StateStandby)
		if err := c.taking.Settle(canceled()); !errors.Is(err, context.Canceled) {
			t.Errorf("Settle: %v", err)
		}
		synctest.Wait()
		o.mustBe(handoff.StateStandby)
		p.mustWait()
		close(process.exited)
		c.pipe.client.kill()
		synctest.Wait()
		mustBeOutcome(t, p.answer(), 0, "killed")
		mustMatch(t, <-fate, is(handoff.ErrCancelled))
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "that answers before it is killed", func(t *testing.T) {
		o, c, process, _ := frozen(t, 22, true)
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace / 2)
		p.mustWait()
		c.pipe.client.thaw()
		synctest.Wait()
		c.mustOwn()
		if out := mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_COMMITTED, "has come to own"); out.GetServing().GetInstance() != "v2" {
			t.Errorf("the outcome is %v", out)
		}
		elapse(time.Hour)
		mustHaveCalled(t, &process.calls, "")
	})
	bubble(t, "that has answered, while this process has not finished to stand by", func(t *testing.T) {
		o, c, process, _ := frozen(t, 22, true)
		p := o.controller(cancelRequest("", true))
		paused := make(chan struct{})
		o.service.onPause = func() { <-paused }
		c.pipe.client.thaw()
		elapse(handoff.CancelGrace)
		p.mustWait()
		close(paused)
		synctest.Wait()
		mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_COMMITTED, "has come to own")
		mustHaveCalled(t, &process.calls, "")
		o.mustBe(handoff.StateProbation)
	})
	bubble(t, "that was committed to, by an uncertain process", func(t *testing.T) {
		o, _, process, _ := frozen(t, 23, true)
		mustBeError(t, o.controller(cancelRequest("", true)).answer(), pb.ErrorCode_ERROR_CODE_NOT_ALLOWED, "not certain which")
		mustHaveCalled(t, &process.calls, "")
		o.mustBe(handoff.StateStandby)
	})
	bubble(t, "that was committed to and has broken the protocol", func(t *testing.T) {
		o, c, process, _ := frozen(t, 22, true)
		c.pipe.server.set(func() { c.pipe.server.queue = append(c.pipe.server.queue, frame{payload: []byte{0xff}}) })
		synctest.Wait()
		o.mustBe(handoff.StateStandby)
		process.onKill = func() error { return nil }
		p := o.controller(cancelRequest("", true))
		elapse(handoff.CancelGrace)
		p.mustWait()
		mustHaveCalled(t, &process.calls, "Kill")
		o.mustBe(handoff.StateStandby) // a signal is sent before it is delivered
		close(process.exited)
		mustBeOutcome(t, p.answer(), 0, "killed")
		o.takeOver()
	})
	bubble(t, "of a process that is told to stop meanwhile", func(t *testing.T) {
		o, _, process, _ := frozen(t, 22, true)
		p := o.controller(cancelRequest("", true))
		stopped := async(func() error { o.server.Stop(); return nil })
		elapse(handoff.CancelGrace)
		mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_FAILED, "this process")
		mustHaveCalled(t, &process.calls, "")
		elapse(limits.Commit)
		<-stopped
		o.mustBe(handoff.StateDraining)
	})
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestRehearsal(t *testing.T) {
	who := &handoff.Candidate{
		Process: handoff.Process{Instance: "v2", BuildVersion: "2.0", Epoch: 3}, Force: true, Probation: time.Hour,
		AtProbationEnd: handoff.RollbackAtEnd,
	}
	rehearse := func(t *testing.T, o *owner, who *handoff.Candidate) *handoff.Rehearsal {
		t.Helper()
		p := newPipe(t)
		go o.server.Serve(p.server, &scm.Peer{PID: 4711})
		r, err := handoff.CheckOn(t.Context(), p.client, who)
		if err != nil {
			t.Fatal(err)
		}
		mustHaveCalled(t, &o.service.calls, "")
		return r
	}
	bubble(t, "shows the policy what a Hello would, and nothing begins", func(t *testing.T) {
		var seen []handoff.Candidate
		o := newOwner(t, granting, func(c *handoff.ServerConfig) {
			c.Process.Epoch = 4
			c.Accept = func(_ context.Context, who handoff.Candidate) error { seen = append(seen, who); return nil }
		})
		r := rehearse(t, o, who)
		if r.Refusal != nil || r.Descriptors != 3 || r.Ready != limits.Ready || r.MaxReady != limits.MaxReady || r.Commit != limits.Commit ||
			r.Probation != 10*time.Minute {
			t.Errorf("it gives %+v", r)
		}
		want := *who
		want.Probation = 10 * time.Minute // what is granted
		if len(seen) != 1 || seen[0].Peer == nil || seen[0].Peer.PID != 4711 {
			t.Fatalf("the policy sees %+v", seen)
		}
		seen[0].Peer = nil
		if fmt.Sprint(seen[0]) != fmt.Sprint(want) {
			t.Errorf("the policy sees %+v, want %+v", seen[0], want)
		}
		c := newCandidate(t)
		c.cfg.Process.Epoch = 4
		c.connect(t.Context(), o).mustHaveReceived()
		if c.taking.Generation() != 2 {
			t.Errorf("a generation was given out: the next is %d", c.taking.Generation())
		}
	})
	bubble(t, "of nobody in particular", func(t *testing.T) {
		o := newOwner(t, granting)
		if r := rehearse(t, o, new(handoff.Candidate)); r.Refusal != nil || r.Probation != granted {
			t.Errorf("it gives %+v", r)
		}
	})
	bubble(t, "tells what stands before what passes", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) { c.Process.Epoch = 4 })
		o.server.Own(1, false, true)
		r := rehearse(t, o, new(handoff.Candidate))
		mustMatch(t, r.Refusal, is(handoff.ErrPolicy), "epoch")
		r = rehearse(t, o, who)
		mustMatch(t, r.Refusal, is(handoff.ErrNotReady), "Ready")
	})
	bubble(t, "finds a lost control path", func(t *testing.T) {
		o := newOwner(t)
		o.service.controlErr = errBoom
		r := rehearse(t, o, who)
		mustMatch(t, r.Refusal, is(handoff.ErrControlLost), "boom")
	})
}

// A command may be for one instance alone.
func TestCommandForAnInstance(t *testing.T) {
	for _, r := range []*pb.ControlRequest{upgradeRequest, settleRequest, rollbackRequest, endDrainRequest, stopRequest} {
		name := fmt.Sprintf("%T", r.GetRequest())
		meant := func(instance string) *pb.ControlRequest {
			c := proto.CloneOf(r)
			c.Instance = instance
			return c
		}
		bubble(t, name+" for the owner", func(t *testing.T) {
			o, _ := commanded(t)
			mustBeOutcome(t, o.controller(meant("v1")).answer(), 0, "")
		})
		bubble(t, name+" for another", func(t *testing.T) {
			o, did := commanded(t)
			mustBeError(t, o.controller(meant("v\x1b0")).answer(), pb.ErrorCode_ERROR_CODE_WRONG_STATE,
				`the owner is instance "v1", generation 1, pid 11, and not instance "v?0"`)
			mustHaveCalled(t, &did.calls, "")
		})
		bubble(t, name+" for another, where nobody can say who owns", func(t *testing.T) {
			o, did := commanded(t)
			o.server.Yield()
			mustBeError(t, o.controller(meant("v0")).answer(), pb.ErrorCode_ERROR_CODE_MOVED, "yielding")
			mustHaveCalled(t, &did.calls, "")
		})
	}
}

func TestEndDrainOfAGeneration(t *testing.T) {
	for _, generation := range []uint64{0, 2, 99} {
		bubble(t, fmt.Sprintf("that has not owned, %d", generation), func(t *testing.T) {
			o, did := commanded(t)
			r := &pb.ControlRequest{Request: &pb.ControlRequest_EndDrain{EndDrain: &pb.EndDrainRequest{Generation: generation}}}
			mustBeError(t, o.controller(r).answer(), pb.ErrorCode_ERROR_CODE_WRONG_STATE, fmt.Sprintf("generation %d has not owned", generation))
			mustHaveCalled(t, &did.calls, "")
		})
	}
}

func TestStopOfAController(t *testing.T) {
	bubble(t, "does not stop an owner that cannot settle", func(t *testing.T) {
		o, did := commanded(t)
		did.settle = func(context.Context) error { return errBoom }
		mustBeOutcome(t, o.controller(stopRequest).answer(), pb.OutcomeCode_OUTCOME_CODE_FAILED, "boom")
		mustHaveCalled(t, &did.calls, "Settle")
	})
	bubble(t, "is answered before the program hears of it", func(t *testing.T) {
		o, did := commanded(t)
		closed := make(chan struct{})
		did.onStop = func() {
			go func() { // as the facade does
				o.server.Stop()
				o.server.Close()
				close(closed)
			}()
		}
		p := o.controller(stopRequest)
		<-closed
		r := p.answer()
		mustBeOutcome(t, r, 0, "stopping")
		if who := r.GetOutcome().GetWho().GetInstance(); who != o.server.Status(t.Context()).Process.Instance {
			t.Errorf("it says that %q stops", who)
		}
	})
}

// watcher has a player watch o.
func (o *owner) watcher() *player { return o.controller(watchRequest) }

// events are the texts of the events that a watcher has heard, "EOF" at its end.
func (p *player) events() (texts []string) {
	p.t.Helper()
	for {
		m, closed := p.hear()
		switch {
		case m != nil:
			texts = append(texts, m.(*pb.ControlResponse).GetEvent().GetText())
		case closed:
			return append(texts, "EOF")
		default:
			return texts
		}
	}
}

func (p *player) mustBeTold(want ...string) {
	p.t.Helper()
	if got := p.events(); !slices.Equal(got, want) {
		p.t.Errorf("it was told\n\t%q\nwant\n\t%q", got, want)
	}
}

func TestWatch(t *testing.T) {
	const owns = "this process owns the service"
	bubble(t, "a handoff", func(t *testing.T) {
		o := newOwner(t, granting)
		p := o.watcher()
		p.mustBeTold(owns)
		c := o.connected()
		p.mustBeTold("a successor is taking over")
		c.taking.Progress("reading the index", 0)
		c.taking.Progress("reading the index", time.Minute) // no news
		c.taking.Progress("warming up", 0)
		p.mustBeTold("the successor says: reading the index", "the successor says: warming up")
		c.ready(t.Context())
		p.mustBeTold("the successor is ready: the service is being committed to it", "the service was committed to the successor",
			"the successor owns: this process stands by", "EOF")
	})
	bubble(t, "a handoff without a probation, before the program hears of it", func(t *testing.T) {
		o := newOwner(t)
		p := o.watcher()
		told := 0
		o.service.onRetire = func() { told = strings.Count(p.end.pipe.transcript(), "< ControlResponse") }
		o.takeOver()
		if texts := p.events(); len(texts) != told+1 || texts[told-1] != "the successor owns: this process stands by" {
			t.Errorf("it was told %d things at Retire, and in the end %q", told, texts)
		}
	})
	bubble(t, "a failure, with its attempt", func(t *testing.T) {
		o := newOwner(t)
		var events []handoff.Event
		pipe := newPipe(t)
		go o.server.Serve(pipe.server, nil)
		done := async(func() error {
			return handoff.WatchOn(t.Context(), pipe.client, func(e handoff.Event) error {
				events = append(events, e)
				if e.Failure != nil {
					return errBoom
				}
				return nil
			})
		})
		c := o.connected()
		c.taking.Progress("so far", 0)
		synctest.Wait()
		c.taking.Abort(errors.New("no room"))
		mustMatch(t, <-done, is(errBoom))
		last := events[len(events)-1]
		if len(events) != 4 || last.State != handoff.StateOwner || last.Process.Instance != "v1" || last.Process.Generation != 1 ||
			last.Attempt == nil || last.Attempt.Successor.Generation != 2 || last.Attempt.Status != "so far" ||
			!strings.Contains(last.Failure.Reason, "no room") || last.Failure.Successor.Instance != "v2" {
			t.Errorf("the events are %+v", events)
		}
	})
	bubble(t, "what is not a change of state", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(2, false, false)
		p := o.watcher()
		p.mustBeTold(owns)
		o.server.SetReady()
		o.server.SetReady()
		o.server.GenerationGone(handoff.Process{Instance: "v0", Generation: 1})
		o.server.SetSettled()
		p.mustBeTold("ready: this process hands over from now on", `an older generation has gone: instance "v0", generation 1`,
			"settled: the predecessor cannot come back")
	})
	bubble(t, "a stop", func(t *testing.T) {
		o := newOwner(t)
		p := o.watcher()
		o.server.Stop()
		o.server.Close()
		p.mustBeTold(owns, "this process is out", "EOF")
	})
	// As one whose connection was accepted before the switch.
	for _, at := range situations[6:] {
		bubble(t, "a process that is "+at.name+" already", func(t *testing.T) {
			o := newOwner(t)
			at.enter(o)
			p := o.watcher()
			if texts := p.events(); at.state != handoff.StateYielding && (len(texts) != 2 || texts[1] != "EOF") {
				t.Errorf("it is told %q", texts)
			}
			o.server.GenerationGone(handoff.Process{Generation: 1}) // is news for nobody
			p.hearAll()
		})
	}
	bubble(t, "a watcher that leaves is forgotten", func(t *testing.T) {
		o := newOwner(t)
		p := o.watcher()
		p.close()
		if !p.end.peer.isClosed() {
			t.Error("the server keeps the connection")
		}
	})
	bubble(t, "so many, and no more", func(t *testing.T) {
		o := newOwner(t)
		first := o.watcher()
		for range handoff.MaxWatchers - 1 {
			o.watcher().mustBeTold(owns)
		}
		mustBeError(t, o.watcher().answer(), pb.ErrorCode_ERROR_CODE_NOT_ALLOWED, "too many")
		first.close()
		o.watcher().mustBeTold(owns)
		if s := o.controller(statusRequest).answer().GetStatus(); s == nil {
			t.Error("nobody else is served")
		}
	})
	bubble(t, "one that does not read is cut off, and delays nobody", func(t *testing.T) {
		o := newOwner(t)
		slow, quick := o.watcher(), o.watcher()
		slow.end.peer.fill()
		for i := range handoff.WatchQueue + 3 {
			o.server.GenerationGone(handoff.Process{Generation: uint64(i)})
			if len(quick.events()) == 0 {
				t.Fatal("the other was told nothing")
			}
		}
		elapse(handoff.WriteTimeout)
		synctest.Wait()
		if !slow.end.peer.isClosed() {
			t.Error("it was not cut off")
		}
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "a successor that never stops talking cuts nobody off", func(t *testing.T) {
		o := newOwner(t)
		p := o.watcher()
		c := o.connected()
		p.end.freeze()
		for i := range 10 * handoff.WatchQueue {
			c.taking.Progress(fmt.Sprint(i), 0)
		}
		synctest.Wait()
		p.end.thaw()
		if n := len(p.events()); n != handoff.AllowedAtOnce+2 {
			t.Errorf("%d events have come", n)
		}
		if s := o.server.Status(t.Context()).Attempt.Status; s != fmt.Sprint(10*handoff.WatchQueue-1) {
			t.Errorf("the status is %q", s)
		}
		elapse(time.Second)
		c.taking.Progress("later", 0)
		p.mustBeTold("the successor says: later")
	})
	bubble(t, "the end is no error, before the first event it is one", func(t *testing.T) {
		for n, target := range []error{handoff.ErrLost, nil} {
			p := newPipe(t)
			server := &player{t: t, end: p.server}
			server.say(welcome(0))
			for range n {
				server.say(&pb.ControlResponse{Response: &pb.ControlResponse_Event{Event: &pb.Event{}}})
			}
			server.close()
			if err := handoff.WatchOn(t.Context(), p.client, func(handoff.Event) error { return nil }); !errors.Is(err, target) {
				t.Errorf("after %d events: %v, want %v", n, err, target)
			}
		}
	})
}

func TestManyControllers(t *testing.T) {
	bubble(t, "wait for the same end", func(t *testing.T) {
		o, did := commanded(t)
		settled := make(chan struct{})
		did.settle = func(context.Context) error { <-settled; return nil }
		var all []*player
		for range handoff.MaxConnections {
			all = append(all, o.controller(settleRequest))
		}
		close(settled)
		synctest.Wait()
		for _, p := range all {
			mustBeOutcome(t, p.answer(), 0, "settled")
		}
	})
}

// TestCommandAgainstWrongAnswers: nothing that a server says is taken for a success
// but a success.
func TestCommandAgainstWrongAnswers(t *testing.T) {
	response := func(r *pb.ControlResponse) proto.Message { return r }
	for _, tt := range []struct {
		name   string
		said   []proto.Message
		target error
		says   string
	}{
		{"nothing", nil, handoff.ErrUnanswered, "no answer: the other side is gone"},
		{"Welcome alone", []proto.Message{welcome(0)}, handoff.ErrLost, ""},
		{"an empty response", []proto.Message{welcome(0), response(&pb.ControlResponse{})}, handoff.ErrProtocol, "instead of Outcome"},
		{"a status", []proto.Message{welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: &pb.StatusReply{}}}}, handoff.ErrProtocol, "StatusReply"},
		{"another message", []proto.Message{welcome(0), &pb.Retired{}}, handoff.ErrProtocol, "Retired"},
		{"an empty outcome", []proto.Message{welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{}}}}, nil, "not done"},
		{
			"a code of the future",
			[]proto.Message{welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{Code: 99, Reason: "new\n"}}}},
			nil, "new?",
		},
		{
			"an error of the future",
			[]proto.Message{welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Error{Error: &pb.Error{Code: 99, Reason: "new"}}}},
			nil, "did not serve the request: new",
		},
		{"a refusal", []proto.Message{&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_DENIED, Reason: "no"}}, handoff.ErrDenied, "no"},
	} {
		bubble(t, tt.name, func(t *testing.T) {
			p := newPipe(t)
			server := &player{t: t, end: p.server}
			server.say(tt.said...)
			server.close()
			_, err := handoff.CommandOn(t.Context(), p.client, settleRequest)
			if errors.Is(err, handoff.ErrUnanswered) != (len(tt.said) == 0) {
				t.Errorf("%v says whether the request was read", err)
			}
			var targets []error
			if tt.target != nil {
				targets = is(tt.target)
			}
			mustMatch(t, err, targets, tt.says)
		})
	}
	bubble(t, "more descriptors than there can be", func(t *testing.T) {
		p := newPipe(t)
		server := &player{t: t, end: p.server}
		server.say(welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Check{Check: &pb.CheckReply{Total: handoff.MaxDescriptors + 1}}})
		_, err := handoff.CheckOn(t.Context(), p.client, new(handoff.Candidate))
		mustMatch(t, err, is(handoff.ErrProtocol), "the limit is")
	})
	bubble(t, "a server that says nothing", func(t *testing.T) {
		p := newPipe(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := handoff.CommandOn(ctx, p.client, settleRequest)
		mustMatch(t, err, is(context.DeadlineExceeded))
		if !p.client.isClosed() {
			t.Error("the connection is kept")
		}
	})
}

// TestCallsThatMeetTheEnd: Fail of the facade waits until controllers have their
// answers, so these must not wait for Fail.
func TestCallsThatMeetTheEnd(t *testing.T) {
	bubble(t, "of a rollback", func(t *testing.T) {
		_, c := onProbation(t)
		var late []error
		c.receiver.onFail = func() {
			late = append(late, c.taking.Rollback(t.Context(), "as well"), c.taking.Settle(t.Context()))
		}
		if err := c.taking.Rollback(t.Context(), "too slow"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, err := range late {
			mustMatch(t, err, is(handoff.ErrRolledBack), "too slow")
		}
		if len(late) != 2 || c.receiver.count("Fail") != 1 {
			t.Errorf("%v; %v", late, &c.receiver.calls)
		}
	})
	bubble(t, "of a rollback that is not understood", func(t *testing.T) {
		c, p := alone(t)
		late := make(chan error, 1)
		c.receiver.onFail = func() { late <- c.taking.Rollback(t.Context(), "as well") }
		first := async(func() error { return c.taking.Rollback(t.Context(), "too slow") })
		p.write([]byte{0xff})
		for _, result := range []chan error{first, late} {
			mustMatch(t, <-result, is(handoff.ErrRolledBack, handoff.ErrProtocol), "too slow")
		}
	})
	bubble(t, "that the machine has not seen any more", func(t *testing.T) {
		late := make(chan error, 1)
		c, p := alone(t, func(c *candidate) {
			c.cfg.Log = slog.New(&listener{Handler: slog.DiscardHandler, on: "broke the protocol instead of resuming", do: func() {
				go func() { late <- c.taking.Rollback(t.Context(), "as well") }()
				elapse(time.Nanosecond) // until it is queued
			}})
			c.receiver.onFail = func() { late <- <-late }
		})
		first := async(func() error { return c.taking.Rollback(t.Context(), "too slow") })
		p.write([]byte{0xff})
		elapse(time.Second)
		for _, result := range []chan error{first, late} {
			mustMatch(t, <-result, is(handoff.ErrRolledBack, handoff.ErrProtocol), "too slow")
		}
	})
	bubble(t, "for a controller it is a success", func(t *testing.T) {
		o, did := commanded(t)
		did.rollback = func(context.Context) error { return handoff.ErrRolledBack }
		mustBeOutcome(t, o.controller(rollbackRequest).answer(), 0, "rolled back")
		did.rollback = func(context.Context) error { return fmt.Errorf("%w: %w", handoff.ErrRolledBack, handoff.ErrProtocol) }
		mustBeOutcome(t, o.controller(rollbackRequest).answer(), pb.OutcomeCode_OUTCOME_CODE_ROLLED_BACK, "rolled back")
	})
}

// listener is a log that does something when it is told of one thing.
type listener struct {
	slog.Handler

	on string
	do func()
}

func (l *listener) Enabled(context.Context, slog.Level) bool { return true }

func (l *listener) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, l.on) {
		l.do()
	}
	return nil
}

package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

func TestRefusalsThatStand(t *testing.T) {
	tests := []struct {
		name   string
		config func(*handoff.ServerConfig)
		owner  func(*owner)
		asks   func(*handoff.SuccessorConfig)
		target error // nil: it gets through
		want   string
	}{
		{
			name: "POLICY",
			config: func(c *handoff.ServerConfig) {
				c.Accept = func(_ context.Context, who handoff.Candidate) error { return fmt.Errorf("not %v", who.Process) }
			},
			target: handoff.ErrPolicy, want: `not instance "v2", pid 22`,
		},
		{
			name:   "POLICY for an older epoch",
			config: func(c *handoff.ServerConfig) { c.Process.Epoch = 5 },
			asks:   func(c *handoff.SuccessorConfig) { c.Process.Epoch = 4 },
			target: handoff.ErrPolicy, want: "epoch 5 and the candidate of epoch 4",
		},
		{
			name:   "POLICY for no epoch",
			config: func(c *handoff.ServerConfig) { c.Process.Epoch = 5 },
			target: handoff.ErrPolicy, want: "epoch 5 and the candidate of epoch 0",
		},
		{
			name:   "an older epoch by force",
			config: func(c *handoff.ServerConfig) { c.Process.Epoch = 5 },
			asks:   func(c *handoff.SuccessorConfig) { c.Process.Epoch, c.Force = 4, true },
		},
		{
			name:   "the same epoch",
			config: func(c *handoff.ServerConfig) { c.Process.Epoch = 5 },
			asks:   func(c *handoff.SuccessorConfig) { c.Process.Epoch = 5 },
		},
		{
			name: "an owner without an epoch",
			asks: func(c *handoff.SuccessorConfig) { c.Process.Epoch = 5 },
		},
		{
			name:   "CONTROL_LOST",
			owner:  func(o *owner) { o.service.controlErr = errBoom },
			target: handoff.ErrControlLost, want: "boom",
		},
		{
			name:   "STOPPING",
			owner:  func(o *owner) { o.server.Stop() },
			target: handoff.ErrStopping, want: "stopping for good",
		},
		{
			name: "STOPPING, whatever the policy would say",
			config: func(c *handoff.ServerConfig) {
				c.Accept = func(context.Context, handoff.Candidate) error { return errBoom }
			},
			owner:  func(o *owner) { o.server.Stop() },
			target: handoff.ErrStopping, want: "stopping for good",
		},
		{
			name:   "MOVED",
			owner:  func(o *owner) { o.takeOver() },
			target: handoff.ErrMoved, want: "no longer the owner: draining",
		},
		{
			name:   "MOVED, even if the one that drains was told to stop",
			owner:  func(o *owner) { o.takeOver(); o.server.Stop() },
			target: handoff.ErrMoved, want: "no longer the owner: draining",
		},
	}
	for _, tt := range tests {
		bubble(t, tt.name, func(t *testing.T) {
			var config []func(*handoff.ServerConfig)
			if tt.config != nil {
				config = append(config, tt.config)
			}
			o := newOwner(t, config...)
			if tt.owner != nil {
				tt.owner(o)
			}
			state, calls := o.server.State(), o.service.String()
			c := newCandidate(t)
			c.cfg.WaitUntil = time.Now().Add(time.Hour) // does not help
			if tt.asks != nil {
				tt.asks(c.cfg)
			}
			c.connect(t.Context(), o)
			if tt.target == nil {
				c.mustHaveReceived()
				return
			}
			<-c.connected
			mustMatch(t, c.err, is(tt.target), "successor, at Welcome: refused: ", tt.want)
			var refused *handoff.RefusedError
			if !errors.As(c.err, &refused) || refused.Passing() {
				t.Errorf("%v passes", c.err)
			}
			if !c.pipe.server.isClosed() {
				t.Error("the server keeps the connection")
			}
			if o.server.State() != state || o.service.String() != calls {
				t.Errorf("the refusal has changed the owner: %v, %v", o.server.State(), &o.service.calls)
			}
		})
	}
}

func TestDeniedBeforeAByteIsRead(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) { c.Authorize = func(*scm.Peer, handoff.Access) error { return errBoom } })
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrDenied), "this client may not speak here")
		if c.pipe.server.reads != 0 {
			t.Errorf("%d messages were read", c.pipe.server.reads)
		}
	})
}

func TestIncompatibleVersions(t *testing.T) {
	later := &pb.Hello{Versions: []uint32{7, 8}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "later"}}
	bubble(t, "the server names both sets", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		p.say(later)
		_, last, closed := p.hearAll()
		r, ok := last.(*pb.Refuse)
		if !ok || !closed || r.GetCode() != pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE || len(r.GetVersions()) != 1 || r.GetVersions()[0] != handoff.Version ||
			!strings.Contains(r.GetReason(), "version 1") || !strings.Contains(r.GetReason(), "[7 8]") {
			t.Errorf("the answer is %v", last)
		}
	})
	bubble(t, "the candidate names both sets", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		p.say(&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE, Reason: "too old", Versions: []uint32{7, 8}})
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrIncompatible), "[7 8]", "this process 1")
	})
	bubble(t, "one version in common is enough", func(t *testing.T) {
		p := newOwner(t).client()
		p.say(&pb.Hello{Versions: []uint32{8, 1, 7}, Role: pb.Role_ROLE_SUCCESSOR, Process: later.GetProcess()})
		p.mustHear("Welcome")
	})
	bubble(t, "what a later version adds to Hello does not matter", func(t *testing.T) {
		p := newOwner(t).client()
		payload, err := proto.Marshal(hello())
		if err != nil {
			t.Fatal(err)
		}
		payload = append(payload, unknownMember...)
		p.write(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), payload))
		p.mustHear("Welcome")
	})
}

// TestRefusalsThatPass is about clients that wait: their connection is closed
// exactly when it is worthwhile to ask again.
func TestRefusalsThatPass(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		name    string
		owner   func(o *owner)
		target  error
		want    string
		nothing []func(o *owner) // does not end the wait
		passes  func(o *owner)
	}{
		{
			name:    "until SetReady",
			owner:   func(o *owner) { o.server.Own(1, false, true) },
			target:  handoff.ErrNotReady,
			want:    "has not called Ready",
			nothing: []func(*owner){func(o *owner) { o.server.SetSettled() }},
			passes:  func(o *owner) { o.server.SetReady() },
		},
		{
			name:    "until SetSettled",
			owner:   func(o *owner) { o.server.Own(1, true, false) },
			target:  handoff.ErrNotReady,
			want:    "predecessor is just retiring",
			nothing: []func(*owner){func(o *owner) { o.server.SetReady() }},
			passes:  func(o *owner) { o.server.SetSettled() },
		},
		{
			name:   "until SetReady and SetSettled",
			owner:  func(o *owner) { o.server.Own(1, false, false) },
			target: handoff.ErrNotReady,
			want:   "has not called Ready",
			nothing: []func(*owner){
				func(o *owner) { o.server.SetReady() },
			},
			passes: func(o *owner) { o.server.SetSettled() },
		},
		{
			name:    "until an heir owns",
			owner:   func(o *owner) { o.server.Inherit(1) },
			target:  handoff.ErrNotReady,
			want:    "has not called Ready",
			nothing: []func(*owner){func(o *owner) { o.server.SetReady() }},
			passes:  func(o *owner) { o.server.Own(1, true, true) },
		},
		{
			name:   "until the owner stops",
			owner:  func(o *owner) { o.server.Own(1, false, true) },
			target: handoff.ErrNotReady,
			want:   "has not called Ready",
			passes: func(o *owner) { o.server.Stop() },
		},
	}
	for _, tt := range tests {
		bubble(t, tt.name, func(t *testing.T) {
			o := newOwner(t)
			tt.owner(o)
			c := newCandidate(t).connect(t.Context(), o) // NOT_READY is always waited for
			for _, f := range append([]func(*owner){func(*owner) {}}, tt.nothing...) {
				f(o)
				elapse(day)
				synctest.Wait()
				select {
				case <-c.connected:
					t.Fatalf("Connect: %v, too early", c.err)
				default:
				}
			}
			tt.passes(o)
			<-c.connected
			mustMatch(t, c.err, is(handoff.ErrAskAgain, tt.target), tt.want)
			if o.server.State().Owns() {
				o.takeOver()
			}
		})
	}
	bubble(t, "the wait ends with the context", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(1, false, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := newCandidate(t).connect(ctx, o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrNotReady, context.DeadlineExceeded), "and it stayed so")
		if errors.Is(c.err, handoff.ErrAskAgain) {
			t.Error("the error says that the reason has passed")
		}
	})
	bubble(t, "a client that leaves is forgotten", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(1, false, true)
		p := o.client()
		p.say(hello())
		p.mustHear("Refuse")
		p.close()
		if !p.end.peer.isClosed() {
			t.Error("the server keeps the connection")
		}
	})
}

func TestBusy(t *testing.T) {
	busy := func(t *testing.T) (*owner, *candidate) {
		o := newOwner(t)
		first := o.connected()
		elapse(10 * time.Second)
		return o, first
	}
	bubble(t, "names who is in the way", func(t *testing.T) {
		o, _ := busy(t)
		c := newCandidate(t).connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrBusy), `instance "v2", generation 2, pid 22, for 10s, now at Ready`)
		var refused *handoff.RefusedError
		if !errors.As(c.err, &refused) || refused.Who == nil || refused.Who.Instance != "v2" || refused.Who.Generation != 2 ||
			time.Since(refused.Since) != 10*time.Second || !refused.Passing() {
			t.Errorf("the refusal is %+v", refused)
		}
	})
	bubble(t, "is waited for until the first has failed", func(t *testing.T) {
		o, first := busy(t)
		c := newCandidate(t)
		c.cfg.WaitUntil = time.Now().Add(time.Hour)
		c.connect(t.Context(), o)
		first.taking.Progress("slow", time.Minute) // another step is no reason to ask again
		elapse(30 * time.Second)
		synctest.Wait()
		select {
		case <-c.connected:
			t.Fatalf("Connect: %v, too early", c.err)
		default:
		}
		first.taking.Leave()
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAskAgain, handoff.ErrBusy))
		o.takeOver()
	})
	bubble(t, "is waited for until the first has taken over", func(t *testing.T) {
		o, first := busy(t)
		c := newCandidate(t)
		c.cfg.WaitUntil = time.Now().Add(time.Hour)
		c.connect(t.Context(), o)
		first.ready(t.Context())
		first.mustOwn()
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrAskAgain, handoff.ErrBusy))
		again := newCandidate(t).connect(t.Context(), o)
		<-again.connected
		mustMatch(t, again.err, is(handoff.ErrMoved))
	})
	bubble(t, "is waited for no longer than wanted", func(t *testing.T) {
		o, _ := busy(t)
		c := newCandidate(t)
		c.cfg.WaitUntil = time.Now().Add(20 * time.Second)
		start := time.Now()
		c.connect(t.Context(), o)
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrBusy), "and it stayed so")
		if took := time.Since(start); took != 20*time.Second {
			t.Errorf("the wait was %v, want 20s", took)
		}
	})
	bubble(t, "a dead candidate is not in the way", func(t *testing.T) {
		o := newOwner(t)
		block := make(chan struct{})
		o.service.onOffer = func(context.Context) { <-block }
		first := newCandidate(t).connect(t.Context(), o)
		first.pipe.client.kill() // unnoticed: the machine is in a hook
		o.service.onOffer = nil
		second := newCandidate(t)
		go o.server.Serve(second.pipe.server, nil)
		second.dial(t.Context())
		close(block)
		synctest.Wait()
		second.mustHaveReceived()
	})
	bubble(t, "a hook that takes long is", func(t *testing.T) {
		o := newOwner(t)
		block := make(chan struct{})
		o.service.onOffer = func(context.Context) { <-block }
		first := newCandidate(t).connect(t.Context(), o)
		second := newCandidate(t).connect(t.Context(), o)
		<-second.connected
		mustMatch(t, second.err, is(handoff.ErrBusy), "now at the offer")
		close(block)
		synctest.Wait()
		first.mustHaveReceived()
	})
	bubble(t, "of many at once one gets through", func(t *testing.T) {
		o := newOwner(t)
		var all []*candidate
		for range 20 {
			c := newCandidate(t)
			all = append(all, c)
			go o.server.Serve(c.pipe.server, nil)
			go func() {
				defer close(c.connected)
				c.taking, c.err = handoff.ConnectOn(t.Context(), c.pipe.client, c.cfg)
			}()
		}
		synctest.Wait()
		through := 0
		for _, c := range all {
			<-c.connected
			if c.err == nil {
				through++
			} else {
				mustMatch(t, c.err, is(handoff.ErrBusy))
			}
		}
		if through != 1 || o.service.count("Offer") != 1 {
			t.Errorf("%d candidates got through, want 1: %v", through, &o.service.calls)
		}
	})
}

func TestGenerations(t *testing.T) {
	bubble(t, "grow with every attempt", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(7, true, true)
		for want := uint64(8); want < 11; want++ {
			c := o.connected()
			if got := c.taking.Generation(); got != want {
				t.Errorf("the attempt got generation %d, want %d", got, want)
			}
			c.taking.Leave()
			synctest.Wait()
		}
		if got := o.server.Generation(); got != 7 {
			t.Errorf("the owner's generation is %d, want 7", got)
		}
	})
}

func TestStatus(t *testing.T) {
	query := func(t *testing.T, o *owner) (*handoff.Status, error) {
		p := newPipe(t)
		go o.server.Serve(p.server, nil)
		defer synctest.Wait()
		return handoff.QueryStatusOn(t.Context(), p.client)
	}
	bubble(t, "of the owner at rest", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) { c.Process.BuildVersion, c.Process.Epoch = "1.2.3", 4 })
		o.service.controlErr = errors.New("the path is gone\nor \xff foreign")
		elapse(time.Hour)
		st, err := query(t, o)
		if err != nil {
			t.Fatal(err)
		}
		want := handoff.Process{Instance: "v1", BuildVersion: "1.2.3", Epoch: 4, Generation: 1, PID: 11}
		if st.Process != want || st.State != handoff.StateOwner || !st.Ready || st.Attempt != nil || st.LastFailure != nil || time.Since(st.Since) != time.Hour {
			t.Errorf("the status is %+v", st)
		}
		if len(st.Warnings) != 1 || st.Warnings[0] != "the path is gone; or ? foreign" {
			t.Errorf("the warnings are %q", st.Warnings)
		}
	})
	for i, at := range serverSteps[1:] {
		bubble(t, fmt.Sprintf("during a handoff, %d, at %s", i+1, at.step), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			for _, step := range serverSteps[:i+2] {
				p.say(step.said...)
			}
			st, err := query(t, o)
			if err != nil {
				t.Fatal(err)
			}
			if st.State != at.state {
				t.Errorf("the state is %v, want %v", st.State, at.state)
			}
			if at.state == handoff.StateDraining {
				if st.Attempt != nil {
					t.Errorf("the attempt is %+v, want none", st.Attempt)
				}
			} else if st.Attempt == nil || st.Attempt.Step != at.step {
				t.Errorf("the attempt is %+v, want one at %s", st.Attempt, at.step)
			}
		})
	}
	bubble(t, "after a failure", func(t *testing.T) {
		o := newOwner(t)
		o.service.freezeErr = errors.New("first line\nsecond \xff line")
		c := o.connected()
		c.ready(t.Context())
		mustMatch(t, c.outcome(), is(handoff.ErrHook))
		elapse(time.Minute)
		st, err := query(t, o)
		if err != nil {
			t.Fatal(err)
		}
		f := st.LastFailure
		if f == nil || f.Step != "the last page" || f.Successor.Instance != "v2" || f.Successor.Generation != 2 || time.Since(f.At) != time.Minute ||
			!strings.Contains(f.Reason, "hook failed: first line; second ? line") {
			t.Errorf("the failure is %+v", f)
		}
	})
	bubble(t, "of 5000 descriptors", func(t *testing.T) {
		o := newOwner(t)
		for i := range 5000 {
			o.service.listed = append(o.service.listed, handoff.DescriptorStatus{
				Name: fmt.Sprintf("listener-%d-%s", i, strings.Repeat("x", 100)), Kind: handoff.KindListener,
				Network: "tcp", Address: "[::]:80", Origin: handoff.OriginInherited,
			})
		}
		p := newPipe(t)
		go o.server.Serve(p.server, nil)
		st, err := handoff.QueryStatusOn(t.Context(), p.client)
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Descriptors) != 5000 {
			t.Fatalf("%d descriptors are listed", len(st.Descriptors))
		}
		for i, d := range st.Descriptors {
			if d != o.service.listed[i] {
				t.Fatalf("descriptor %d is %+v, want %+v", i, d, o.service.listed[i])
			}
		}
		if pages := strings.Count(p.transcript(), "< ControlResponse"); pages < 9 {
			t.Errorf("the answer has %d pages", pages)
		}
	})
	bubble(t, "names that cannot be printed do not keep it from being sent", func(t *testing.T) {
		o := newOwner(t)
		o.service.listed = []handoff.DescriptorStatus{{Name: "a", Kind: handoff.KindListener, Network: "unix", Address: "/run/\xff\n"}}
		st, err := query(t, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Descriptors[0].Address; got != "/run/??" {
			t.Errorf("the address is %q", got)
		}
	})
}

func TestControllers(t *testing.T) {
	greeting := &pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER}
	requests := []*pb.ControlRequest{
		{Request: &pb.ControlRequest_Upgrade{Upgrade: &pb.UpgradeRequest{}}},
		{Request: &pb.ControlRequest_Stop{Stop: &pb.StopRequest{}}},
		{},
	}
	for i, request := range requests {
		bubble(t, fmt.Sprintf("a request that is not served, %d", i), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			p.say(greeting)
			p.mustHear("Welcome")
			p.say(request)
			_, last, closed := p.hearAll()
			m, ok := last.(*pb.ControlResponse)
			if !ok || !closed || m.GetError().GetCode() != pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED || m.GetError().GetReason() == "" {
				t.Errorf("the answer is %v, closed: %v", last, closed)
			}
		})
	}
	for name, payload := range map[string][]byte{
		"another message": wrap(true, ready), "an unknown member": unknownMember, "garbage": {0xff},
	} {
		bubble(t, name+" instead of a request", func(t *testing.T) {
			p := newOwner(t).client()
			p.say(greeting)
			p.mustHear("Welcome")
			p.write(payload)
			_, last, closed := p.hearAll()
			if m, ok := last.(*pb.Refuse); !ok || !closed || m.GetCode() != pb.RefuseCode_REFUSE_CODE_PROTOCOL || m.GetReason() == "" {
				t.Errorf("the answer is %v, closed: %v", last, closed)
			}
		})
	}
	bubble(t, "one that asks for nothing is sent away", func(t *testing.T) {
		p := newOwner(t).client()
		p.say(greeting)
		p.mustHear("Welcome")
		elapse(limits.Hello)
		p.mustHear("Refuse", "EOF")
	})
	bubble(t, "one that leaves is no trouble", func(t *testing.T) {
		o := newOwner(t)
		for _, said := range [][]proto.Message{{}, {greeting}} {
			p := o.client()
			p.say(said...)
			p.close()
			if !p.end.peer.isClosed() {
				t.Error("the server keeps the connection")
			}
		}
		o.takeOver()
	})
	bubble(t, "an epoch or a policy is not for them", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Process.Epoch = 9
			c.Accept = func(context.Context, handoff.Candidate) error { return errBoom }
		})
		p := newPipe(t)
		go o.server.Serve(p.server, nil)
		if _, err := handoff.QueryStatusOn(t.Context(), p.client); err != nil {
			t.Error(err)
		}
	})
}

func TestQueryStatusAgainstWrongAnswers(t *testing.T) {
	page := func(r *pb.StatusReply) *pb.ControlResponse {
		return &pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: r}}
	}
	first := page(&pb.StatusReply{Process: &pb.Process{Instance: "by hand"}})
	tests := []struct {
		name    string
		said    []proto.Message
		target  error
		want    string
		garbage bool
	}{
		{name: "nothing", target: handoff.ErrLost, want: "it has closed the connection"},
		{name: "no Welcome", said: []proto.Message{first}, target: handoff.ErrProtocol, want: "instead of Welcome"},
		{name: "half an answer", said: []proto.Message{welcome(0), first}, target: handoff.ErrLost},
		{name: "DENIED", said: []proto.Message{&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_DENIED, Reason: "no"}}, target: handoff.ErrDenied, want: "no"},
		{name: "another message", said: []proto.Message{welcome(0), &pb.Retired{}}, target: handoff.ErrProtocol, want: "Retired instead of"},
		{name: "garbage", said: []proto.Message{welcome(0)}, target: handoff.ErrProtocol, garbage: true},
		{name: "a first page of nobody", said: []proto.Message{welcome(0), page(&pb.StatusReply{})}, target: handoff.ErrProtocol},
		{name: "a second first page", said: []proto.Message{welcome(0), first, first}, target: handoff.ErrProtocol},
		{name: "empty pages", said: []proto.Message{welcome(0), first, page(&pb.StatusReply{})}, target: handoff.ErrProtocol, want: "empty"},
		{
			name: "an error",
			said: []proto.Message{welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Error{Error: &pb.Error{
				Code: pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED, Reason: "what?",
			}}}},
			want: "what?", target: handoff.ErrUnimplemented,
		},
	}
	for _, tt := range tests {
		bubble(t, tt.name, func(t *testing.T) {
			p := newPipe(t)
			server := &player{t: t, end: p.server}
			result := make(chan error, 1)
			go func() {
				_, err := handoff.QueryStatusOn(t.Context(), p.client)
				result <- err
			}()
			synctest.Wait()
			server.say(tt.said...)
			if tt.garbage {
				server.write([]byte{0xff})
			}
			server.close()
			mustMatch(t, <-result, is(tt.target), tt.want)
		})
	}
	bubble(t, "the wait ends with the context", func(t *testing.T) {
		p := newPipe(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := handoff.QueryStatusOn(ctx, p.client)
		mustMatch(t, err, is(context.DeadlineExceeded))
	})
}

func TestSpawn(t *testing.T) {
	// spawn returns a candidate whose connection the owner has made itself, and
	// the channel of Run's result.
	spawn := func(t *testing.T, o *owner, ctx context.Context) (*candidate, chan error) {
		t.Helper()
		c := newCandidate(t)
		sp, err := o.server.SpawnOn(c.pipe.server)
		if err != nil {
			t.Fatal(err)
		}
		fate := make(chan error, 1)
		exited := make(chan struct{})
		t.Cleanup(func() { close(exited); synctest.Wait() })
		go func() { fate <- sp.Run(ctx, c.cfg.Process.PID, processOf(exited)) }()
		return c, fate
	}
	undecided := func(t *testing.T, fate chan error) {
		t.Helper()
		synctest.Wait()
		select {
		case err := <-fate:
			t.Fatalf("Run: %v, too early", err)
		default:
		}
	}
	bubble(t, "Run returns when the successor owns", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		c.dial(t.Context())
		c.mustHaveReceived()
		undecided(t, fate)
		c.pipe.before = func(message string) {
			if message == "> CommitAck" {
				c.pipe.client.freeze()
			}
		}
		c.ready(t.Context())
		undecided(t, fate)
		c.pipe.client.thaw()
		if err := <-fate; err != nil {
			t.Errorf("Run: %v", err)
		}
		synctest.Wait()
		c.mustOwn()
	})
	bubble(t, "only one at a time", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		sp, err := o.server.SpawnOn(c.pipe.server)
		if err != nil {
			t.Fatal(err)
		}
		o.mustBe(handoff.StateOffering)
		p := newPipe(t)
		_, err = o.server.SpawnOn(p.server)
		mustMatch(t, err, is(handoff.ErrBusy))
		if !p.server.isClosed() {
			t.Error("the refused connection is open")
		}
		other := newCandidate(t).connect(t.Context(), o)
		<-other.connected
		mustMatch(t, other.err, is(handoff.ErrBusy))
		sp.Abandon(errBoom)
		o.mustBe(handoff.StateOwner)
		mustMatch(t, errors.New(o.failure()), nil, "predecessor, at start: boom")
		if !c.pipe.server.isClosed() {
			t.Error("the abandoned connection is open")
		}
		o.takeOver()
	})
	bubble(t, "not before Ready", func(t *testing.T) {
		o := newOwner(t)
		o.server.Own(1, false, true)
		p := newPipe(t)
		_, err := o.server.SpawnOn(p.server)
		mustMatch(t, err, is(handoff.ErrNotReady))
	})
	bubble(t, "a child that ends without a word", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		_ = c.pipe.client.Close()
		mustMatch(t, <-fate, is(handoff.ErrLost), "predecessor, at Hello")
		o.takeOver()
	})
	bubble(t, "a child that ends while it initialises", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		c.dial(t.Context())
		c.pipe.client.kill()
		mustMatch(t, <-fate, is(handoff.ErrLost), "predecessor, at Ready")
		o.takeOver()
	})
	bubble(t, "a child that aborts", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		c.dial(t.Context())
		c.taking.Abort(errBoom)
		mustMatch(t, <-fate, is(handoff.ErrAborted), "boom")
		o.takeOver()
	})
	bubble(t, "a child that is silent", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		elapse(limits.Ready - time.Nanosecond)
		undecided(t, fate)
		elapse(time.Nanosecond)
		mustMatch(t, <-fate, is(handoff.ErrTimeout), "predecessor, at Hello: no Hello within 1m0s")
		p := &player{t: t, end: c.pipe.client}
		if _, last, closed := p.hearAll(); !closed || last == nil {
			t.Errorf("the child hears %v, closed: %v", last, closed)
		}
		o.takeOver()
	})
	bubble(t, "a child that speaks something else", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		p := &player{t: t, end: c.pipe.client}
		p.write(unknownMember)
		mustMatch(t, <-fate, is(handoff.ErrProtocol))
		p.mustHear("Refuse", "EOF")
	})
	bubble(t, "a child that comes as a controller", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		p := &player{t: t, end: c.pipe.client}
		p.say(&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER})
		mustMatch(t, <-fate, is(handoff.ErrProtocol), "ROLE_CONTROLLER")
		p.mustHear("Refuse", "EOF")
	})
	bubble(t, "a child that the policy refuses", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Accept = func(context.Context, handoff.Candidate) error { return errBoom }
		})
		c, fate := spawn(t, o, t.Context())
		c.dial(t.Context())
		mustMatch(t, <-fate, is(handoff.ErrPolicy), "boom")
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrPolicy), "boom")
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "a hook that fails", func(t *testing.T) {
		o := newOwner(t)
		o.service.freezeErr = errBoom
		c, fate := spawn(t, o, t.Context())
		c.dial(t.Context())
		c.ready(t.Context())
		mustMatch(t, <-fate, is(handoff.ErrHook, errBoom))
		o.takeOverAgain()
	})
	for i, m := range moments() {
		if m.message[0] != '>' || m.after {
			continue
		}
		bubble(t, fmt.Sprintf("cancelled, %d, %v", i, m), func(t *testing.T) {
			o := newOwner(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			c, fate := spawn(t, o, ctx)
			m.at(c.pipe, func() { c.pipe.client.freeze() })
			c.dial(t.Context())
			if c.pipe.sent("> Received") {
				c.ready(t.Context())
			}
			undecided(t, fate)
			cancel(errBoom)
			err := <-fate
			synctest.Wait()
			if m.message == "> CommitAck" {
				// Commit was written: what became of it is not known.
				if !errors.Is(err, errBoom) || errors.Is(err, handoff.ErrCancelled) {
					t.Errorf("Run: %v, want the cause alone", err)
				}
				o.mustBe(handoff.StateStandby)
				return
			}
			mustMatch(t, err, is(handoff.ErrCancelled, errBoom), "predecessor, at ")
			o.mustBe(handoff.StateOwner)
			c.pipe.client.thaw()
			synctest.Wait()
			if c.taking == nil {
				<-c.connected
				mustMatch(t, c.err, is(handoff.ErrCancelled))
			}
			o.takeOver()
		})
	}
	bubble(t, "its fate is told although Abort cannot be written", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		p := &player{t: t, end: c.pipe.client}
		p.say(hello(), prepared, pageAck(1), received)
		c.pipe.server.fill()
		elapse(limits.Ready + handoff.WriteTimeout)
		mustMatch(t, <-fate, is(handoff.ErrTimeout)) // so that the child can be killed
		o.mustBe(handoff.StateOffering)
		p.close()
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "cancelled when Abort could not be written", func(t *testing.T) {
		o := newOwner(t)
		ctx, cancel := context.WithCancel(t.Context())
		c, fate := spawn(t, o, ctx)
		p := &player{t: t, end: c.pipe.client}
		p.say(hello(), prepared, pageAck(1), received)
		c.pipe.server.fill()
		elapse(limits.Ready + time.Second) // it is trying to write Abort
		cancel()
		elapse(handoff.WriteTimeout)
		mustMatch(t, <-fate, is(handoff.ErrTimeout))
		o.mustBe(handoff.StateOffering) // the candidate may still hold everything
		if c.pipe.server.isClosed() {
			t.Error("the owner has closed its end without Abort")
		}
		p.close()
		o.mustBe(handoff.StateOwner)
	})
	bubble(t, "Stop of the owner on standby, and the child settles", func(t *testing.T) {
		o := newOwner(t)
		c, fate := spawn(t, o, t.Context())
		p := &player{t: t, end: c.pipe.client}
		p.say(hello(), prepared, pageAck(1), received, ready, pageAck(2), finalReceived)
		undecided(t, fate)
		go o.server.Stop()
		synctest.Wait()
		p.say(commitAck(true))
		if err := <-fate; err != nil {
			t.Errorf("Run: %v", err)
		}
		p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1", "Commit", "ProbationOver", "Retired")
	})
	bubble(t, "Stop of the owner before Run", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		sp, err := o.server.SpawnOn(c.pipe.server)
		if err != nil {
			t.Fatal(err)
		}
		owned := make(chan bool, 1)
		go func() { owned <- o.server.Stop() }()
		synctest.Wait()
		c.dial(t.Context())
		mustMatch(t, sp.Run(t.Context(), 0, processOf(nil)), is(handoff.ErrStopping))
		if !<-owned {
			t.Error("Stop says that this process was not the owner")
		}
	})
	bubble(t, "the exit of the child counts although something holds its connection", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		sp, err := o.server.SpawnOn(c.pipe.server)
		if err != nil {
			t.Fatal(err)
		}
		exited := make(chan struct{})
		fate := make(chan error, 1)
		go func() { fate <- sp.Run(t.Context(), 33, processOf(exited)) }()
		p := &player{t: t, end: c.pipe.client}
		p.say(hello(), prepared, pageAck(1), received)
		close(exited)
		mustMatch(t, <-fate, is(handoff.ErrLost), "its process has exited")
		o.takeOver()
	})
	bubble(t, "the exit of another process does not", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		sp, err := o.server.SpawnOn(c.pipe.server)
		if err != nil {
			t.Fatal(err)
		}
		exited := make(chan struct{})
		fate := make(chan error, 1)
		go func() { fate <- sp.Run(t.Context(), 44, processOf(exited)) }() // a wrapper, which by-hand's 33 is not
		p := &player{t: t, end: c.pipe.client}
		p.say(hello(), prepared, pageAck(1), received)
		close(exited)
		undecided(t, fate)
		o.mustBe(handoff.StateOffering)
		p.say(&pb.Abort{})
		mustMatch(t, <-fate, is(handoff.ErrAborted))
	})
}

func TestCloseAnswersWhoHasAsked(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := newOwner(t)
		answering := make(chan struct{})
		o.service.onWarnings = func() { <-answering }
		asked := o.controller(statusRequest)
		silent, welcomed := o.client(), o.client()
		welcomed.say(&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER})
		welcomed.mustHear("Welcome")
		began := time.Now()
		closed := make(chan time.Duration)
		go func() {
			o.server.Stop()
			o.server.Close()
			closed <- time.Since(began)
		}()
		synctest.Wait()
		silent.mustHear("EOF")
		// So it knows that nothing was done.
		mustBeError(t, welcomed.answer(), pb.ErrorCode_ERROR_CODE_MOVED, "has not read the request")
		asked.mustWait()
		close(answering)
		if took := <-closed; took != 0 {
			t.Errorf("closing took %v", took)
		}
		if s := asked.answer().GetStatus(); s == nil || handoff.State(s.GetState()) != handoff.StateOut {
			t.Errorf("the answer is %v", s)
		}
	})
}

func TestRetireAnswersWhoHasAsked(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := newOwner(t)
		answering := make(chan struct{})
		o.service.onWarnings = func() { <-answering }
		asked, welcomed := o.controller(statusRequest), o.client()
		welcomed.say(&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER})
		welcomed.mustHear("Welcome")
		o.takeOver()
		mustBeError(t, welcomed.answer(), pb.ErrorCode_ERROR_CODE_MOVED, "has not read the request")
		if o.service.count("Retire") != 0 {
			t.Error("the program was told before the answer")
		}
		close(answering)
		if s := asked.answer().GetStatus(); s == nil || handoff.State(s.GetState()) != handoff.StateDraining {
			t.Errorf("the answer is %v", s)
		}
		synctest.Wait()
		if o.service.count("Retire") != 1 {
			t.Errorf("the program was not told: %v", &o.service.calls)
		}
	})
}

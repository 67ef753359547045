package handoff_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// hostile is a text that would harm a log or a terminal.
const hostile = "a\x1b[2Jb\nc\x00d\u202ee"

// mustBeTame fails the test if a text that came from the other side could harm a log or
// a terminal.
func mustBeTame(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("this came through: %q", text)
		}
	}
}

// FuzzControllerMessages has a server say anything to a controller. Whatever it says,
// each request gives a value or an error, and no text that harms a terminal.
func FuzzControllerMessages(f *testing.F) {
	who := &pb.Process{Instance: hostile, BuildVersion: hostile, Epoch: 1, Generation: 2, Pid: -1}
	response := func(r *pb.ControlResponse) []byte { return wrap(false, r) }
	welcome := wrap(false, &pb.Welcome{Version: handoff.Version, Predecessor: who})
	status := &pb.StatusReply{
		Process: who, State: 99, Warnings: []string{hostile}, Last: true,
		Attempt:     &pb.Attempt{Successor: who, Step: hostile, Status: hostile, Remaining: durationpb.New(time.Second)},
		Draining:    []*pb.Generation{{Process: who, State: 8, Connections: proto.Uint64(1 << 63), Remaining: durationpb.New(-1)}},
		Probation:   &pb.Probation{Predecessor: who, Remaining: durationpb.New(time.Second), AtEnd: 7},
		LastFailure: &pb.Failure{Successor: who, Step: hostile, Reason: hostile},
		Descriptors: []*pb.DescriptorStatus{{Name: hostile, Network: hostile, Address: hostile, Kind: 99}},
	}
	for _, second := range [][]byte{
		response(&pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: status}}),
		response(&pb.ControlResponse{Response: &pb.ControlResponse_Event{Event: &pb.Event{Process: who, Text: hostile, State: 3}}}),
		response(&pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{Reason: hostile, Serving: who, Who: who, Code: 99}}}),
		response(&pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{Ok: true, Reason: hostile}}}),
		response(&pb.ControlResponse{Response: &pb.ControlResponse_Check{Check: &pb.CheckReply{Total: 5, Refuse: &pb.Refuse{Reason: hostile, Who: who}}}}),
		response(&pb.ControlResponse{Response: &pb.ControlResponse_Error{Error: &pb.Error{Code: 1, Reason: hostile}}}),
		wrap(false, &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_BUSY, Reason: hostile, Who: who, Until: durationpb.New(1)}),
		{0xff, 0xff},
	} {
		for ask := range byte(4) {
			f.Add(ask, welcome, second, second)
			f.Add(ask, second, welcome, []byte{})
		}
	}
	f.Fuzz(func(t *testing.T, ask byte, first, second, third []byte) {
		synctest.Test(t, func(t *testing.T) {
			p := newPipe(t)
			for _, payload := range [][]byte{first, second, third} {
				if err := p.server.Send(t.Context(), payload); err != nil {
					t.Fatal(err)
				}
			}
			go func() { // it hears the request out
				_ = p.server.Discard(t.Context())
			}()
			go func() { // and leaves
				elapse(time.Minute)
				_ = p.server.Close()
			}()
			var err error
			switch ask % 4 {
			case 0:
				var s *handoff.Status
				if s, err = handoff.QueryStatusOn(t.Context(), p.client); err == nil {
					statusMustBeTame(t, s)
				}
			case 1:
				err = handoff.WatchOn(t.Context(), p.client, func(e handoff.Event) error {
					mustBeTame(t, e.Text, e.Process.String())
					return nil
				})
			case 2:
				var out *handoff.Outcome
				if out, err = handoff.CommandOn(t.Context(), p.client, upgradeRequest); err == nil {
					mustBeTame(t, out.Text)
				}
			case 3:
				var r *handoff.Rehearsal
				r, err = handoff.CheckOn(t.Context(), p.client, &handoff.Candidate{})
				if err == nil && r.Refusal != nil {
					mustBeTame(t, r.Refusal.Error())
				}
			}
			var refused *handoff.RefusedError
			var outcome *handoff.OutcomeError
			if errors.As(err, &refused) || errors.As(err, &outcome) {
				mustBeTame(t, err.Error())
			}
			if refused != nil && refused.Who != nil {
				mustBeTame(t, refused.Who.String())
			}
			elapse(2 * time.Minute) // for the goroutines
		})
	})
}

func statusMustBeTame(t *testing.T, s *handoff.Status) {
	t.Helper()
	mustBeTame(t, s.Process.String(), s.State.String())
	mustBeTame(t, s.Warnings...)
	for _, d := range s.Descriptors {
		mustBeTame(t, d.Name, d.Network, d.Address, d.Kind.String(), d.Origin.String())
	}
	for _, g := range s.Draining {
		mustBeTame(t, g.Process.String(), g.String())
	}
	if a := s.Attempt; a != nil {
		mustBeTame(t, a.Successor.String(), a.Step, a.Status)
	}
	if p := s.Probation; p != nil {
		mustBeTame(t, p.Predecessor.String())
	}
	if l := s.LastFailure; l != nil {
		mustBeTame(t, l.Successor.String(), l.Step, l.Reason)
	}
}

// FuzzName: what is taken for a name is one that a log, a terminal and the wire take as
// it is.
func FuzzName(f *testing.F) {
	for _, name := range []string{"web", "", hostile, strings.Repeat("x", handoff.MaxName+1), "тест", "a\u0301", "/run/app.sock"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := handoff.CheckName(name)
		tame := utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
		if want := tame && name != "" && len(name) <= handoff.MaxName; want != (err == nil) {
			t.Fatalf("CheckName(%q): %v", name, err)
		}
		if err != nil {
			mustBeTame(t, err.Error())
			return
		}
		payload, err := proto.Marshal(&pb.Process{Instance: name})
		if err != nil {
			t.Fatal(err)
		}
		again := new(pb.Process)
		if err := proto.Unmarshal(payload, again); err != nil || again.GetInstance() != name {
			t.Errorf("%q came back as %q, %v", name, again.GetInstance(), err)
		}
	})
}

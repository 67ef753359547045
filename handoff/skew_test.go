package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/transcript"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// These tests are about a peer that is newer than this code, or odd: each thing
// that one may not know has its defined outcome.

// skews is the table of section 17 of docs/protocol.md, with what proves it. A
// test of the documents compares the first column.
var skews = []struct {
	unknown string
	test    func(t *testing.T)
}{
	{unknown: "only versions that the server does not speak", test: onlyLaterVersions},
	{unknown: "a version beside one in common", test: laterVersionsBeside},
	{unknown: "a version in Welcome that was not offered", test: versionNotOffered},
	{unknown: "a feature in Hello", test: featureInHello},
	{unknown: "a feature in Welcome", test: featureInWelcome},
	{unknown: "a field of any message", test: fieldOfAnyMessage},
	{unknown: "a member of ClientMessage or ServerMessage", test: nil}, // at every step: TestServerAgainstWrongMessages, TestSuccessorAgainstWrongMessages
	{unknown: "a controller's request", test: controllersRequest},
	{unknown: "a response to a controller", test: responseToAController},
	{unknown: "a role", test: role},
	{unknown: "an answer at the end of the probation", test: probationEnd},
	{unknown: "a refuse code", test: refuseCode},
	{unknown: "an abort code", test: abortCode},
	{unknown: "an error code", test: errorCode},
	{unknown: "an outcome code", test: outcomeCode},
	{unknown: "a kind in the manifest", test: kindInTheManifest},
	{unknown: "a file type", test: fileType},
	{unknown: "a moment of a state", test: momentOfAState},
	{unknown: "a kind, a state or an origin in a status", test: inAStatus},
	{unknown: "a state in an event or an outcome", test: stateForAController},
	{unknown: "another frame header", test: frameHeader},
}

func TestSkew(t *testing.T) {
	for _, s := range skews {
		if s.test != nil {
			t.Run(s.unknown, s.test)
		}
	}
}

// unknownEnum says which row of skews each enumeration's fields are in.
var unknownEnum = map[protoreflect.FullName]string{
	"Hello.role":                    "a role",
	"Hello.at_probation_end":        "an answer at the end of the probation",
	"Probation.at_end":              "an answer at the end of the probation",
	"Refuse.code":                   "a refuse code",
	"Abort.code":                    "an abort code",
	"Error.code":                    "an error code",
	"Descriptor.kind":               "a kind in the manifest",
	"Identity.type":                 "a file type",
	"Descriptor.state_moment":       "a moment of a state",
	"StatusReply.state":             "a kind, a state or an origin in a status",
	"DescriptorStatus.kind":         "a kind, a state or an origin in a status",
	"DescriptorStatus.origin":       "a kind, a state or an origin in a status",
	"Generation.state":              "a kind, a state or an origin in a status",
	"CheckRequest.at_probation_end": "an answer at the end of the probation",
	"Outcome.code":                  "an outcome code",
	"Outcome.state":                 "a state in an event or an outcome",
	"Event.state":                   "a state in an event or an outcome",
}

// TestEveryEnumerationHasItsOutcome: who adds a field must say what an older or a
// newer peer makes of a value that it does not know.
func TestEveryEnumerationHasItsOutcome(t *testing.T) {
	fields := fieldsOf(func(fd protoreflect.FieldDescriptor) bool { return fd.Enum() != nil })
	if want := slices.Sorted(maps.Keys(unknownEnum)); !slices.Equal(fields, want) {
		t.Errorf("the fields of enumerations are\n%q\nand those with an outcome\n%q", fields, want)
	}
	for field, unknown := range unknownEnum {
		if unknown != "" && !slices.ContainsFunc(skews, func(s struct {
			unknown string
			test    func(t *testing.T)
		},
		) bool {
			return s.unknown == unknown
		}) {
			t.Errorf("%s: there is no row %q", field, unknown)
		}
	}
}

// fieldsOf lists the fields of all messages that are of one sort.
func fieldsOf(sort func(protoreflect.FieldDescriptor) bool) []protoreflect.FullName {
	var names []protoreflect.FullName
	messages := pb.File_crossfade_handoff_v1_handoff_proto.Messages()
	for i := range messages.Len() {
		for j := range messages.Get(i).Fields().Len() {
			if fd := messages.Get(i).Fields().Get(j); sort(fd) {
				names = append(names, localName(fd))
			}
		}
	}
	slices.Sort(names)
	return names
}

// unlike are values that no enumeration has, one of which looks like 3 in a byte.
var unlike = []int32{99, 256 + 3, math.MaxInt32, -1, math.MinInt32}

func onlyLaterVersions(t *testing.T) {
	later := &pb.Hello{Versions: []uint32{7, 8}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "later"}}
	// What each of the two is told beyond this: TestIncompatibleVersions.
	bubble(t, "changes nothing", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		p.say(later)
		p.mustHear("Refuse", "EOF")
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "")
		o.takeOver()
	})
	bubble(t, "nor does the owner's own child", func(t *testing.T) {
		o := newOwner(t)
		c := newCandidate(t)
		sp, err := o.server.SpawnOn(c.pipe.server)
		if err != nil {
			t.Fatal(err)
		}
		p := &player{t: t, end: c.pipe.client}
		fate := make(chan error, 1)
		go func() { fate <- sp.Run(t.Context(), 33, processOf(nil)) }()
		synctest.Wait()
		p.say(later)
		mustMatch(t, <-fate, is(handoff.ErrIncompatible), "version 1", "[7 8]")
		p.mustHear("Refuse", "EOF")
		o.takeOver()
	})
	bubble(t, "nor does a controller's Hello", func(t *testing.T) {
		p := newOwner(t).client()
		p.say(&pb.Hello{Versions: []uint32{7}, Role: pb.Role_ROLE_CONTROLLER})
		p.mustHear("Refuse", "EOF")
	})
	bubble(t, "a refusal of the future says why", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		p.write(unknownToo(t, false, &pb.Refuse{
			Code: pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE, Reason: "too old", Versions: []uint32{7, 8}, Features: []string{"news"},
		}))
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrIncompatible), "too old", "[7 8]", "this process 1")
	})
}

func laterVersionsBeside(t *testing.T) {
	for _, versions := range [][]uint32{{1, 99}, {99, 1}, {1, 1}, {0, math.MaxUint32, 1}} {
		bubble(t, fmt.Sprint(versions), func(t *testing.T) {
			p := newOwner(t).client()
			h := hello()
			h.Versions = versions
			p.say(h)
			if m, _ := p.hear(); m.(*pb.Welcome).GetVersion() != 1 {
				t.Errorf("the answer is %v", m)
			}
		})
	}
}

func versionNotOffered(t *testing.T) {
	for _, version := range []uint32{0, 2, 99, math.MaxUint32} {
		bubble(t, fmt.Sprint(version), func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			w := welcome(0)
			w.Version = version
			p.say(w)
			mustGiveUp(t, c, p, false)
			mustMatch(t, c.err, nil, fmt.Sprintf("version %d, which was not offered", version))
		})
	}
}

func featureInHello(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		var seen []string
		o := newOwner(t, func(c *handoff.ServerConfig) {
			c.Accept = func(_ context.Context, who handoff.Candidate) error { seen = who.Features; return nil }
		})
		p := o.client()
		h := hello()
		h.Features = []string{"news", "", "a\x1b[2Jb", strings.Repeat("x", handoff.MaxName+1), "more-news"}
		p.say(h)
		if m, _ := p.hear(); len(m.(*pb.Welcome).GetFeatures()) != 0 {
			t.Errorf("the answer is %v", m)
		}
		if !slices.Equal(seen, []string{"news", "more-news"}) {
			t.Errorf("the policy sees the features %q", seen)
		}
		p.say(prepared, pageAck(1), received, ready, pageAck(2), finalReceived, commitAck(true))
		o.mustBe(handoff.StateDraining)
	})
}

func featureInWelcome(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		w := welcome(0)
		w.Features = []string{"news", "", "a\x1b[2Jb"}
		p.say(w, manifestPage(0))
		c.mustHaveReceived()
		c.ready(t.Context())
		p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{})
		c.mustOwn()
	})
}

// unknownFields are fields of every wire type, with numbers at both ends of what
// is free.
var unknownFields = func() []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), math.MaxUint64)
	b = protowire.AppendBytes(protowire.AppendTag(b, 1001, protowire.BytesType), []byte("news\xff"))
	b = protowire.AppendFixed32(protowire.AppendTag(b, 1002, protowire.Fixed32Type), 7)
	b = protowire.AppendTag(protowire.AppendTag(b, 1003, protowire.StartGroupType), 1003, protowire.EndGroupType)
	return protowire.AppendFixed64(protowire.AppendTag(b, protowire.MaxValidNumber, protowire.Fixed64Type), 8)
}()

// unknownToo adds fields of the future to a message and to all that are in it. An
// envelope has none: a field that it does not know is a member.
func unknownToo(t *testing.T, fromClient bool, m proto.Message) []byte {
	t.Helper()
	var add func(protoreflect.Message)
	add = func(r protoreflect.Message) {
		each(r, add)
		if r.Descriptor().Oneofs().Len() == 0 {
			r.SetUnknown(unknownFields)
		}
	}
	m = proto.Clone(m)
	add(m.ProtoReflect())
	payload := wrap(fromClient, m)
	if n := len(payload) - len(wrap(fromClient, member(fromClient, payload))); n != 0 {
		t.Fatalf("%d bytes of the unknown fields were lost", n)
	}
	return payload
}

// fieldOfAnyMessage plays every transcript with fields that nobody knows in every
// message: it must end as it did without them.
func fieldOfAnyMessage(t *testing.T) {
	more := func(e transcript.Event) []byte {
		fromSuccessor := e.Kind == transcript.FromSuccessor
		payload := unknownToo(t, fromSuccessor, member(fromSuccessor, e.Payload()))
		if len(payload) < len(e.Payload())+len(unknownFields) && e.Text != "ControlRequest" && e.Text != "ControlResponse" {
			t.Errorf("%s has no unknown field", e.Text)
		}
		return payload
	}
	for name, c := range scenes {
		if c.server == nil {
			bubble(t, name+", of the successor", func(t *testing.T) { replay(t, name, c, transcript.FromSuccessor, more) })
		}
		if c.client == nil {
			bubble(t, name+", of the predecessor", func(t *testing.T) { replay(t, name, c, transcript.FromPredecessor, more) })
		}
	}
}

func controllersRequest(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		p := newOwner(t).client()
		p.say(&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER})
		p.mustHear("Welcome")
		request := new(pb.ControlRequest)
		request.ProtoReflect().SetUnknown(unknownMember)
		p.say(request)
		_, last, closed := p.hearAll()
		m, ok := last.(*pb.ControlResponse)
		if !ok || !closed || m.GetError().GetCode() != pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED || m.GetError().GetReason() == "" {
			t.Errorf("the answer is %v, closed: %v", last, closed)
		}
	})
}

// asked has a controller ask a player, which answers.
func asked(t *testing.T, answer ...proto.Message) (*handoff.Status, error) {
	t.Helper()
	p := newPipe(t)
	server := &player{t: t, end: p.server}
	server.say(welcome(0))
	server.say(answer...)
	return handoff.QueryStatusOn(t.Context(), p.client)
}

func responseToAController(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		r := new(pb.ControlResponse)
		r.ProtoReflect().SetUnknown(unknownMember)
		_, err := asked(t, r)
		mustMatch(t, err, is(handoff.ErrProtocol))
	})
}

func role(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			h := hello()
			h.Role = pb.Role(number)
			p.say(h)
			mustBeTurnedAway(t, p, "Hello")
			o.takeOver()
		})
	}
}

func probationEnd(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint("in Hello ", number), func(t *testing.T) {
			var seen handoff.Candidate
			o := newOwner(t, func(c *handoff.ServerConfig) {
				c.Accept = func(_ context.Context, who handoff.Candidate) error { seen = who; return nil }
			})
			p := o.client()
			h := hello()
			h.AtProbationEnd = pb.ProbationEnd(number)
			p.say(h)
			p.mustHear("Welcome")
			if seen.AtProbationEnd != handoff.SettleAtEnd {
				t.Errorf("the policy sees %v", seen.AtProbationEnd)
			}
		})
		bubble(t, fmt.Sprint("in a status ", number), func(t *testing.T) {
			st, err := asked(t, &pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: &pb.StatusReply{
				Last: true, Process: &pb.Process{}, Probation: &pb.Probation{AtEnd: pb.ProbationEnd(number)},
			}}})
			if err != nil || st.Probation.AtEnd != handoff.SettleAtEnd {
				t.Errorf("the status is %+v, %v", st, err)
			}
		})
		bubble(t, fmt.Sprint("in a rehearsal ", number), func(t *testing.T) {
			var seen handoff.Candidate
			o := newOwner(t, func(c *handoff.ServerConfig) {
				c.Accept = func(_ context.Context, who handoff.Candidate) error { seen = who; return errBoom }
			})
			r := o.controller(&pb.ControlRequest{Request: &pb.ControlRequest_Check{Check: &pb.CheckRequest{AtProbationEnd: pb.ProbationEnd(number)}}}).answer()
			if r.GetCheck().GetRefuse().GetCode() != pb.RefuseCode_REFUSE_CODE_POLICY || seen.AtProbationEnd != handoff.SettleAtEnd {
				t.Errorf("the policy sees %v, the answer is %v", seen.AtProbationEnd, r)
			}
		})
	}
}

func refuseCode(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			c := newCandidate(t)
			c.cfg.WaitUntil = time.Now().Add(time.Hour)
			p := c.server()
			p.say(&pb.Refuse{Code: pb.RefuseCode(number), Reason: "for a reason of the future"})
			<-c.connected // it has not waited
			mustMatch(t, c.err, is(handoff.ErrProtocol), "refused: for a reason of the future")
			var refused *handoff.RefusedError
			if !errors.As(c.err, &refused) || refused.Passing() {
				t.Errorf("%v passes", c.err)
			}
		})
	}
}

func abortCode(t *testing.T) {
	for _, number := range append(unlike, 0) {
		abort := &pb.Abort{Code: pb.AbortCode(number), Reason: "for a reason of the future"}
		bubble(t, fmt.Sprint("of the successor ", number), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			p.say(hello(), abort)
			p.mustHear("Welcome", "EOF")
			mustMatch(t, errors.New(o.failure()), nil, "aborted by the other side: for a reason of the future")
			o.takeOver()
		})
		bubble(t, fmt.Sprint("of the predecessor ", number), func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			p.say(welcome(0), abort)
			<-c.connected
			mustMatch(t, c.err, is(handoff.ErrAborted), "for a reason of the future")
			if errors.Is(c.err, handoff.ErrProtocol) {
				t.Errorf("%v is a protocol error", c.err)
			}
		})
	}
}

func errorCode(t *testing.T) {
	refusal := func(code pb.ErrorCode) *pb.ControlResponse {
		return &pb.ControlResponse{Response: &pb.ControlResponse_Error{Error: &pb.Error{Code: code, Reason: "for a reason of the future"}}}
	}
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			_, err := asked(t, refusal(pb.ErrorCode(number)))
			mustMatch(t, err, nil, "for a reason of the future")
			if errors.Is(err, handoff.ErrUnimplemented) || errors.Is(err, handoff.ErrMoved) {
				t.Errorf("%v claims to know why", err)
			}
		})
	}
	for code, target := range map[pb.ErrorCode]error{
		pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED: handoff.ErrUnimplemented, pb.ErrorCode_ERROR_CODE_MOVED: handoff.ErrMoved,
	} {
		bubble(t, code.String(), func(t *testing.T) {
			_, err := asked(t, refusal(code))
			mustMatch(t, err, is(target), "for a reason of the future")
		})
	}
}

// heard is what a controller gets for an outcome, and for an event.
func heard(t *testing.T, answer *pb.ControlResponse) (out *handoff.Outcome, events []handoff.Event, err error) {
	t.Helper()
	p := newPipe(t)
	server := &player{t: t, end: p.server}
	server.say(welcome(0), answer)
	if answer.GetOutcome() != nil {
		out, err = handoff.CommandOn(t.Context(), p.client, settleRequest)
		return out, nil, err
	}
	server.close()
	err = handoff.WatchOn(t.Context(), p.client, func(e handoff.Event) error { events = append(events, e); return nil })
	return nil, events, err
}

func outcomeCode(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			_, _, err := heard(t, &pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{
				Code: pb.OutcomeCode(number), Reason: "for a reason of the future", Serving: &pb.Process{Instance: "v1"},
			}}})
			mustMatch(t, err, nil, "for a reason of the future")
			var out *handoff.OutcomeError
			if !errors.As(err, &out) || out.Serving == nil || out.Serving.Instance != "v1" {
				t.Errorf("%#v", err)
			}
			for _, target := range []error{handoff.ErrFailed, handoff.ErrBusy, handoff.ErrOutcomeUnknown, handoff.ErrCommitted, nil} {
				if errors.Is(err, target) {
					t.Errorf("%v claims to be %v", err, target)
				}
			}
		})
		bubble(t, fmt.Sprint("of a success ", number), func(t *testing.T) {
			out, _, err := heard(t, &pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{Ok: true, Code: pb.OutcomeCode(number)}}})
			if err != nil || out.Serving != nil {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
}

func stateForAController(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			out, _, err := heard(t, &pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: &pb.Outcome{Ok: true, State: pb.State(number)}}})
			if err != nil || out.State != 0 {
				t.Errorf("%+v, %v", out, err)
			}
			_, events, err := heard(t, &pb.ControlResponse{Response: &pb.ControlResponse_Event{Event: &pb.Event{State: pb.State(number), Text: "news"}}})
			if err != nil || len(events) != 1 || events[0].State != 0 || events[0].Text != "news" {
				t.Errorf("%+v, %v", events, err)
			}
		})
	}
}

func kindInTheManifest(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			p.say(welcome(1))
			page := manifestPage(0)
			page.Descriptors = []*pb.Descriptor{{Id: 1, Name: "a", Kind: pb.Kind(number)}}
			p.write(wrap(false, page), fdsOf(t, 1)...)
			mustGiveUp(t, c, p, false)
			mustMatch(t, c.err, nil, fmt.Sprintf("unknown kind %d", number))
		})
	}
}

// offered has a successor take one descriptor and returns what its program gets
// to compare with the kernel.
func offered(t *testing.T, d *pb.Descriptor) handoff.Descriptor {
	t.Helper()
	c := newCandidate(t)
	p := c.server()
	p.say(welcome(1))
	page := manifestPage(0)
	page.Descriptors = []*pb.Descriptor{d}
	p.write(wrap(false, page), fdsOf(t, 1)...)
	c.mustHaveReceived()
	return c.receiver.got[0]
}

// fileType: the program compares it, and finds that no descriptor is of it. That
// it does so a test of package crossfade shows.
func fileType(t *testing.T) {
	known := []scm.Type{scm.TypeOther, scm.TypeSocket, scm.TypeRegular, scm.TypePipe}
	for _, number := range unlike {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			d := offered(t, &pb.Descriptor{Id: 1, Name: "a", Kind: pb.Kind_KIND_FILE, Identity: &pb.Identity{Type: pb.FileType(number)}})
			if slices.Contains(known, d.Identity.Type) {
				t.Errorf("it is taken for %v", d.Identity.Type)
			}
		})
	}
}

func momentOfAState(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			offered(t, &pb.Descriptor{Id: 1, Name: "a", Kind: pb.Kind_KIND_STATE, StateMoment: pb.StateMoment(number)})
		})
	}
}

func inAStatus(t *testing.T) {
	for _, number := range append(unlike, 0) {
		bubble(t, fmt.Sprint(number), func(t *testing.T) {
			st, err := asked(t, &pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: &pb.StatusReply{
				Last: true, Process: &pb.Process{}, State: pb.State(number),
				Descriptors: []*pb.DescriptorStatus{{Name: "a", Kind: pb.Kind(number), Origin: pb.Origin(number)}},
				Draining:    []*pb.Generation{{State: pb.State(number)}},
			}}})
			if err != nil {
				t.Fatal(err)
			}
			if d := st.Descriptors[0]; st.State != 0 || d.Kind != 0 || d.Origin != 0 || st.State.Owns() {
				t.Errorf("they are taken for %v, %v, %v", st.State, d.Kind, d.Origin)
			}
			if g := st.Draining[0]; g.State != 0 || g.Connections != -1 {
				t.Errorf("an older generation is taken for %v", g)
			}
		})
	}
}

// frameHeader: whoever counts in another way, or puts something where there is
// nothing, speaks another protocol, and is told so.
func frameHeader(t *testing.T) {
	const want = "reserved bytes of the frame header are not zero but 0x0001: the peer speaks another protocol"
	future := append([]byte{0, 0, 0, 2, 0, 0, 0, 1}, 0x12, 0)
	t.Run("from the successor", func(t *testing.T) {
		o := newOwner(t)
		server, client := rawPair(t)
		go o.server.Serve(server, nil)
		back := mustConn(t, client)
		if _, err := client.Write(future); err != nil {
			t.Fatal(err)
		}
		payload, _, err := back.Receive(inTime(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		r, ok := member(false, payload).(*pb.Refuse)
		if !ok || r.GetCode() != pb.RefuseCode_REFUSE_CODE_PROTOCOL || !strings.Contains(r.GetReason(), want) {
			t.Errorf("the answer is %v", r)
		}
		o.mustBe(handoff.StateOwner)
	})
	t.Run("from the predecessor", func(t *testing.T) {
		client, server := rawPair(t)
		back := mustConn(t, server)
		if _, err := server.Write(future); err != nil {
			t.Fatal(err)
		}
		_, cfg := successorOn(t)
		_, err := handoff.Connect(inTime(t), client, cfg)
		mustMatch(t, err, is(handoff.ErrProtocol), want)
		var last proto.Message
		for range 2 { // Hello is before it
			payload, _, err := back.Receive(inTime(t), 0)
			if err != nil {
				t.Fatal(err)
			}
			last = member(true, payload)
		}
		if m, ok := last.(*pb.Abort); !ok || m.GetCode() != pb.AbortCode_ABORT_CODE_PROTOCOL || !strings.Contains(m.GetReason(), want) {
			t.Errorf("the last word is %v", last)
		}
	})
}

// absurd are durations that a careless or hostile peer may send.
var absurd = map[string]*durationpb.Duration{
	"absent":               nil,
	"zero":                 {},
	"negative":             {Seconds: -1},
	"hugely negative":      {Seconds: math.MinInt64, Nanos: math.MinInt32},
	"huge":                 {Seconds: math.MaxInt64, Nanos: math.MaxInt32},
	"just too large":       {Seconds: math.MaxInt64/int64(time.Second) + 1},
	"too many nanos":       {Nanos: 2e9},
	"nanos against it":     {Seconds: 3, Nanos: -1e9},
	"nanos that outdo":     {Seconds: 1, Nanos: -2e9},
	"the largest there is": {Seconds: 315_576_000_000, Nanos: 999_999_999},
}

// durations says what becomes of an odd duration in each field, by its name: what
// is absurd is bounded, and no timer runs backwards.
var durations = map[protoreflect.FullName]func(t *testing.T, d *durationpb.Duration){
	"Hello.probation":           probationAskedFor,
	"Welcome.ready_timeout":     timesForTheProgram,
	"Welcome.max_ready_timeout": timesForTheProgram,
	"Welcome.commit_timeout":    commitTimeout,
	"Welcome.probation":         probationGranted,
	"Refuse.since":              whenRefused,
	"Refuse.until":              whenRefused,
	"Progress.extend":           extension,
	"StatusReply.since":         timesInAStatus,
	"Attempt.since":             timesInAStatus,
	"Attempt.remaining":         timesInAStatus,
	"Failure.ago":               timesInAStatus,
	"Probation.remaining":       timesInAStatus,
	"Generation.since":          timesInAStatus,
	"Generation.remaining":      timesInAStatus,
	"Draining.remaining":        drainingForDisplay,
	"ServiceManager.watchdog":   watchdogOfAUnit,
	"UpgradeRequest.timeout":    timeOfAnUpgrade,
	"CheckRequest.probation":    probationRehearsed,
	// What a rehearsal tells is for display.
	"CheckReply.ready_timeout":     rehearsedTimes,
	"CheckReply.max_ready_timeout": rehearsedTimes,
	"CheckReply.commit_timeout":    rehearsedTimes,
	"CheckReply.probation":         rehearsedTimes,
}

func TestAbsurdDurations(t *testing.T) {
	fields := fieldsOf(func(fd protoreflect.FieldDescriptor) bool {
		return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Duration"
	})
	if want := slices.Sorted(maps.Keys(durations)); !slices.Equal(fields, want) {
		t.Errorf("the durations are\n%q\nand those with an outcome\n%q", fields, want)
	}
	for field, test := range durations {
		for name, d := range absurd {
			if test != nil {
				bubble(t, string(field)+" "+name, func(t *testing.T) { test(t, d) })
			}
		}
	}
}

// sane is what a duration amounts to.
func sane(d *durationpb.Duration) time.Duration {
	return min(max(d.AsDuration(), -handoff.MaxDuration), handoff.MaxDuration)
}

func probationAskedFor(t *testing.T, d *durationpb.Duration) {
	p := newOwner(t, func(c *handoff.ServerConfig) {
		c.Limits.Probation, c.Limits.MaxProbation = time.Minute, time.Hour
	}).client()
	h := hello()
	h.Probation = d
	p.say(h)
	want := min(max(d.AsDuration(), 0), time.Hour)
	if d == nil {
		want = time.Minute
	}
	if m, _ := p.hear(); m.(*pb.Welcome).GetProbation().AsDuration() != want {
		t.Errorf("the answer is %v, want a probation of %v", m, want)
	}
}

func probationRehearsed(t *testing.T, d *durationpb.Duration) {
	o := newOwner(t, func(c *handoff.ServerConfig) {
		c.Limits.Probation, c.Limits.MaxProbation = time.Minute, time.Hour
	})
	r := o.controller(&pb.ControlRequest{Request: &pb.ControlRequest_Check{Check: &pb.CheckRequest{Probation: d}}}).answer()
	want := min(max(d.AsDuration(), 0), time.Hour)
	if d == nil {
		want = time.Minute
	}
	if r.GetCheck().GetProbation().AsDuration() != want {
		t.Errorf("the answer is %v, want a probation of %v", r, want)
	}
}

func rehearsedTimes(t *testing.T, d *durationpb.Duration) {
	p := newPipe(t)
	server := &player{t: t, end: p.server}
	server.say(welcome(0), &pb.ControlResponse{Response: &pb.ControlResponse_Check{Check: &pb.CheckReply{
		ReadyTimeout: d, MaxReadyTimeout: d, CommitTimeout: d, Probation: d,
		Refuse: &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_BUSY, Who: &pb.Process{}, Since: d, Until: d},
	}}})
	r, err := handoff.CheckOn(t.Context(), p.client, new(handoff.Candidate))
	if err != nil || r.Ready != sane(d) || r.MaxReady != sane(d) || r.Commit != sane(d) || r.Probation != sane(d) {
		t.Errorf("%+v, %v, want %v", r, err, sane(d))
	}
}

// watchdogOfAUnit: what is no time is no watchdog.
func watchdogOfAUnit(t *testing.T, d *durationpb.Duration) {
	c := newCandidate(t)
	p := c.server()
	p.say(welcome(0), manifestPage(0))
	c.ready(t.Context())
	p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{}, &pb.Draining{ServiceManager: &pb.ServiceManager{Watchdog: d}})
	c.mustOwn()
	if got, want := c.receiver.unit.Watchdog, max(sane(d), 0); got != want {
		t.Errorf("the watchdog is %v, want %v", got, want)
	}
}

// timeOfAnUpgrade: none is no limit, and what is not in the future has passed.
func timeOfAnUpgrade(t *testing.T, d *durationpb.Duration) {
	o, did := commanded(t)
	did.upgrade = func(ctx context.Context, _ bool) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	p := o.controller(&pb.ControlRequest{Request: &pb.ControlRequest_Upgrade{Upgrade: &pb.UpgradeRequest{Timeout: d}}})
	const long = 50 * 365 * 24 * time.Hour
	limit := long
	if d != nil {
		limit = min(max(sane(d), 0), long)
	}
	if limit > 0 {
		elapse(limit - time.Nanosecond)
		p.mustWait()
	}
	if limit < long {
		elapse(time.Nanosecond)
		mustBeOutcome(t, p.answer(), pb.OutcomeCode_OUTCOME_CODE_TIMEOUT, "end of the upgrade")
	}
}

// timesForTheProgram: the owner keeps these itself, and this side counts none.
func timesForTheProgram(t *testing.T, d *durationpb.Duration) {
	c := newCandidate(t)
	p := c.server()
	w := welcome(0)
	w.ReadyTimeout, w.MaxReadyTimeout = d, d
	p.say(w, manifestPage(0))
	c.mustHaveReceived()
}

func commitTimeout(t *testing.T, d *durationpb.Duration) {
	c := newCandidate(t)
	p := c.server()
	w := welcome(0)
	w.CommitTimeout = d
	p.say(w)
	if d.AsDuration() <= 0 {
		mustGiveUp(t, c, p, false)
		mustMatch(t, c.err, nil, "no commit timeout")
		return
	}
	p.say(manifestPage(0))
	c.mustHaveReceived()
	c.ready(t.Context())
	p.say(manifestPage(1))
	elapse(min(d.AsDuration(), 365*24*time.Hour) - time.Nanosecond)
	p.say(&pb.Commit{})
	c.mustOwn()
}

func probationGranted(t *testing.T, d *durationpb.Duration) {
	var log strings.Builder // of one bubble, and read when all is at rest
	c := newCandidate(t)
	c.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	p := c.server()
	w := welcome(0)
	w.Probation, w.CommitTimeout = d, absurd["huge"]
	p.say(w)
	if d.AsDuration() < 0 {
		mustGiveUp(t, c, p, false)
		mustMatch(t, c.err, nil, "grants a probation of -")
		return
	}
	p.say(manifestPage(0))
	c.mustHaveReceived()
	c.ready(t.Context())
	p.say(manifestPage(1), &pb.Commit{})
	c.mustOwn()
	want := "Receive 0, Apply +0 -0, Own 2"
	if d.AsDuration() > 0 {
		want += fmt.Sprintf(" until %v, then settle", sane(d))
	}
	mustHaveCalled(t, &c.receiver.calls, want)
	elapse(365 * 24 * time.Hour)
	synctest.Wait()
	if strings.Contains(log.String(), "has not retired yet") {
		t.Errorf("the predecessor is overdue too early:\n%s", &log)
	}
}

func whenRefused(t *testing.T, d *durationpb.Duration) {
	c := newCandidate(t)
	p := c.server()
	p.say(&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_PROBATION, Who: &pb.Process{Instance: "v0"}, Since: d, Until: d})
	<-c.connected
	mustMatch(t, c.err, is(handoff.ErrProbation))
	var refused *handoff.RefusedError
	if !errors.As(c.err, &refused) {
		t.Fatalf("%v is no refusal", c.err)
	}
	mustBeBefore(t, refused.Since, d)
	if d == nil != refused.Until.IsZero() || d != nil && time.Until(refused.Until) != sane(d) {
		t.Errorf("it lasts for %v", time.Until(refused.Until))
	}
}

// mustBeBefore fails unless at is as long ago as d says. The future is not.
func mustBeBefore(t *testing.T, at time.Time, d *durationpb.Duration) {
	t.Helper()
	if got, want := time.Since(at), max(sane(d), 0); got != want {
		t.Errorf("it was %v ago, want %v", got, want)
	}
}

func extension(t *testing.T, d *durationpb.Duration) {
	o := newOwner(t)
	p := o.client()
	p.say(hello(), prepared, pageAck(1), received, &pb.Progress{Extend: d})
	p.mustHear("Welcome", "ManifestPage 0")
	want := min(max(d.AsDuration(), limits.Ready), limits.MaxReady)
	if got := time.Until(o.server.Status(t.Context()).Attempt.Deadline); got != want {
		t.Errorf("there are %v left, want %v", got, want)
	}
	elapse(want - time.Nanosecond)
	p.mustHear()
	elapse(time.Nanosecond)
	p.mustHear("Abort", "EOF")
}

func timesInAStatus(t *testing.T, d *durationpb.Duration) {
	st, err := asked(t, &pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: &pb.StatusReply{
		Last: true, Process: &pb.Process{}, Since: d, Attempt: &pb.Attempt{Since: d, Remaining: d},
		LastFailure: &pb.Failure{Ago: d}, Probation: &pb.Probation{Remaining: d},
		Draining: []*pb.Generation{{State: pb.State_STATE_DRAINING, Since: d, Remaining: d}, {Since: d, Remaining: d}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	mustBeBefore(t, st.Since, d)
	mustBeBefore(t, st.Attempt.Began, d)
	mustBeBefore(t, st.LastFailure.At, d)
	mustBeBefore(t, st.Draining[0].Since, d)
	mustBeIn(t, st.Draining[0].Deadline, d)
	// Of one whose drain has not begun.
	if got := st.Draining[1].Limit; d == nil != (got == 0) || d != nil && got != max(sane(d), 1) || !st.Draining[1].Deadline.IsZero() {
		t.Errorf("its limit is %v, want %v", got, max(sane(d), 1))
	}
	if d == nil != st.Attempt.Deadline.IsZero() || d != nil && time.Until(st.Attempt.Deadline) != sane(d) || time.Until(st.Probation.Until) != sane(d) {
		t.Errorf("there are %v and %v left, want %v", time.Until(st.Attempt.Deadline), time.Until(st.Probation.Until), sane(d))
	}
}

func drainingForDisplay(t *testing.T, d *durationpb.Duration) {
	c := newCandidate(t)
	p := c.server()
	p.say(welcome(0), manifestPage(0))
	c.ready(t.Context())
	p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{}, &pb.Draining{Connections: proto.Uint64(math.MaxUint64), Remaining: d})
	c.mustOwn()
	p.close()
	mustHaveCalled(t, &c.receiver.calls, "Receive 0, Apply +0 -0, Own 2, Settled, Draining 2147483647, Gone")
	mustBeIn(t, c.receiver.deadline, d)
}

// mustBeIn fails unless at is as far away as d says, and none at all without it.
func mustBeIn(t *testing.T, at time.Time, d *durationpb.Duration) {
	t.Helper()
	if d == nil != at.IsZero() || d != nil && time.Until(at) != sane(d) {
		t.Errorf("it is %v, in %v, want %v", at, time.Until(at), sane(d))
	}
}

func TestAbsurdNumbers(t *testing.T) {
	for _, pid := range []int64{-1, math.MinInt64, math.MaxInt32 + 1, math.MaxInt64} {
		bubble(t, fmt.Sprintf("the pid %d is none", pid), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			h := hello()
			h.Process.Pid = pid
			p.say(h)
			p.mustHear("Welcome")
			if got := o.server.Status(t.Context()).Attempt.Successor.PID; got != 0 {
				t.Errorf("the status shows the pid %d", got)
			}
		})
	}
	bubble(t, "a generation in Hello is not its own", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		h := hello()
		h.Process.Generation = math.MaxUint64
		p.say(h)
		if m, _ := p.hear(); m.(*pb.Welcome).GetGeneration() != 2 {
			t.Errorf("the answer is %v", m)
		}
	})
	bubble(t, "the last generation that there is cannot be handed on", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		w := welcome(0)
		w.Generation = math.MaxUint64
		p.say(w)
		mustGiveUp(t, c, p, false)
		mustMatch(t, c.err, nil, "generation 18446744073709551615")
	})
	bubble(t, "and the one before it can be taken", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		w := welcome(0)
		w.Generation = math.MaxUint64 - 1
		p.say(w, manifestPage(0))
		c.mustHaveReceived()
	})
}

func TestAbsurdTexts(t *testing.T) {
	long := strings.Repeat("é", 100_000)
	bubble(t, "are cut and cleared where they are shown", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		h := hello()
		h.Process.BuildVersion = long[:40_000] // what a Hello may have, see the limits
		p.say(h, &pb.Abort{Reason: "a\x1b[2J\nb\u202e" + long})
		p.mustHear("Welcome", "EOF")
		f := o.server.Status(t.Context()).LastFailure
		if !strings.Contains(f.Reason, "a?[2J?b?é") || len(f.Reason) > 2*handoff.MaxReason || len(f.Successor.BuildVersion) > handoff.MaxReason {
			t.Errorf("the reason has %d bytes, the version %d: %.100q", len(f.Reason), len(f.Successor.BuildVersion), f.Reason)
		}
		o.takeOver()
	})
	bubble(t, "a refusal's too", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		p.say(&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_POLICY, Reason: "a\x1b[2J\nb" + long})
		<-c.connected
		mustMatch(t, c.err, is(handoff.ErrPolicy), "a?[2J?bé")
		if len(c.err.Error()) > 2*handoff.MaxReason {
			t.Errorf("the error has %d bytes", len(c.err.Error()))
		}
	})
	bubble(t, "and the names of what is unclaimed", func(t *testing.T) {
		var log strings.Builder // of one bubble, and read when all is at rest
		o := newOwner(t, func(c *handoff.ServerConfig) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		p := o.client()
		p.say(hello(), prepared, pageAck(1), received, &pb.Ready{
			Unclaimed: 1, UnclaimedIds: []uint64{1}, UnclaimedNames: append(slices.Repeat([]string{"name"}, 1000), long),
		})
		p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1")
		if n := strings.Count(log.String(), "name "); n == 0 || n > 100 || strings.Contains(log.String(), "éé") {
			t.Errorf("%d names are logged", n)
		}
		p.say(&pb.Abort{})
		o.takeOver()
	})
	for name, instance := range map[string]string{
		"one byte too long": strings.Repeat("x", handoff.MaxName+1), "a control character": "a\x00b", "nothing": "",
	} {
		bubble(t, "an instance of "+name, func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			h := hello()
			h.Process.Instance = instance
			p.say(h)
			mustBeTurnedAway(t, p, "Hello")
			o.takeOver()
		})
	}
	bubble(t, "an instance of the greatest length", func(t *testing.T) {
		p := newOwner(t).client()
		h := hello()
		h.Process.Instance = strings.Repeat("x", handoff.MaxName)
		p.say(h)
		p.mustHear("Welcome")
	})
	// Every string field, for protobuf decides it for all of them.
	invalid := func(fromClient bool, m proto.Message) []byte {
		payload := wrap(fromClient, m)
		return []byte(strings.ReplaceAll(string(payload), "UTF8", "\xff\xfe\xfd\xfc"))
	}
	bubble(t, "what is not UTF-8, in Hello", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		h := hello()
		h.Process.BuildVersion = "UTF8"
		p.write(invalid(true, h))
		mustBeTurnedAway(t, p, "Hello")
		o.takeOver()
	})
	bubble(t, "what is not UTF-8, in Welcome", func(t *testing.T) {
		c := newCandidate(t)
		p := c.server()
		w := welcome(0)
		w.Predecessor.BuildVersion = "UTF8"
		p.write(invalid(false, w))
		mustGiveUp(t, c, p, false)
	})
	bubble(t, "what is not UTF-8, after Commit", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		p.mustHear("ProbationOver")
		p.write(invalid(true, &pb.Rollback{Reason: "UTF8"}))
		mustBeDeaf(t, o, p, handoff.StateProbation)
		o.mustBe(handoff.StateOwner)
	})
}

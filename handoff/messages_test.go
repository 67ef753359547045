package handoff_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// These tests send every message at every step, to either side.

var (
	prepared      = &pb.Prepared{}
	received      = &pb.Received{}
	ready         = &pb.Ready{}
	finalReceived = &pb.FinalReceived{}
	endDrain      = &pb.EndDrain{}
	settle        = &pb.Settle{}
)

func pageAck(next uint32) *pb.PageAck { return &pb.PageAck{Next: next} }

func commitAck(settle bool) *pb.CommitAck { return &pb.CommitAck{Settle: settle} }

// throughCommit plays a successor up to the point where it has read Commit.
func throughCommit(p *player) {
	p.t.Helper()
	p.say(hello(), prepared, pageAck(1), received, ready, pageAck(2), finalReceived)
	p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1", "Commit")
}

func throughRetired(p *player) {
	p.t.Helper()
	throughCommit(p)
	p.say(commitAck(true))
	p.mustHear("Retired")
}

// unknownMember is a message of a later version.
var unknownMember = protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), []byte("news"))

// clientMessages is one of each that a client can send.
var clientMessages = []proto.Message{
	hello(), prepared, pageAck(1), pageAck(2), received, &pb.Progress{}, ready, finalReceived, commitAck(true), settle,
	&pb.Rollback{}, &pb.Abort{Code: pb.AbortCode_ABORT_CODE_FAILED, Reason: "no"}, &pb.ConnectionAck{}, endDrain, &pb.ControlRequest{},
}

// wrong is a payload that has no place at some step.
type wrong struct {
	name    string
	payload []byte
	fds     int
}

// wrongs lists what is not legal, of messages in one direction.
func wrongs(fromClient bool, all []proto.Message, legal []string) []wrong {
	list := []wrong{
		{name: "an unknown member", payload: unknownMember},
		{name: "an empty payload"},
		{name: "garbage", payload: []byte{0xff, 0xff, 0xff}},
	}
	for _, m := range all {
		payload := wrap(fromClient, m)
		switch name := shortName(m); {
		case !slices.Contains(legal, name):
			list = append(list, wrong{name: name, payload: payload})
		case fromClient:
			list = append(list, wrong{name: name + " with a descriptor", payload: payload, fds: 1})
		case name != "ManifestPage 0" && name != "ManifestPage 1":
			list = append(list, wrong{name: name + " with two descriptors", payload: payload, fds: 2})
		}
	}
	return list
}

// fdsOf returns n descriptors to send.
func fdsOf(t *testing.T, n int) []*scm.FD {
	var fds []*scm.FD
	for _, d := range descriptors(t, n) {
		fds = append(fds, d.FD)
	}
	return fds
}

// serverSteps are the places where a server waits for a successor.
var serverSteps = []struct {
	step  string
	said  []proto.Message // what has led there
	legal []string
	state handoff.State
	calls string // once the candidate has gone
}{
	{step: "Hello", legal: []string{"Hello"}, state: handoff.StateOwner},
	{
		step: "Prepared", said: []proto.Message{hello()}, legal: []string{"Prepared", "Abort"},
		state: handoff.StateOffering, calls: "Offer, Thaw",
	},
	{
		step: "PageAck", said: []proto.Message{prepared}, legal: []string{"PageAck 1", "Abort"},
		state: handoff.StateOffering, calls: "Offer, Thaw",
	},
	{
		step: "Received", said: []proto.Message{pageAck(1)}, legal: []string{"Received", "Abort"},
		state: handoff.StateOffering, calls: "Offer, Thaw",
	},
	{
		step: "Ready", said: []proto.Message{received}, legal: []string{"Ready", "Progress", "Abort"},
		state: handoff.StateOffering, calls: "Offer, Thaw",
	},
	{
		step: "PageAck", said: []proto.Message{ready}, legal: []string{"PageAck 2", "Abort"},
		state: handoff.StateCommitting, calls: "Offer, Freeze, Thaw",
	},
	{
		step: "FinalReceived", said: []proto.Message{pageAck(2)}, legal: []string{"FinalReceived", "Abort"},
		state: handoff.StateCommitting, calls: "Offer, Freeze, Thaw",
	},
	{
		step: "CommitAck", said: []proto.Message{finalReceived}, legal: []string{"CommitAck", "Abort"},
		state: handoff.StateStandby, calls: "Offer, Freeze, Resume",
	},
	{
		step: "Settle or Rollback", said: []proto.Message{commitAck(false)}, legal: []string{"Settle", "Rollback"},
		state: handoff.StateProbation, calls: "Offer, Freeze, Pause [], Resume",
	},
	{
		step: "the drain", said: []proto.Message{settle}, legal: []string{"EndDrain"},
		state: handoff.StateDraining, calls: "Offer, Freeze, Pause [], Pause [], Retire",
	},
}

func TestServerAgainstWrongMessages(t *testing.T) {
	var said []proto.Message
	for i, at := range serverSteps {
		said = append(said, at.said...)
		for _, w := range wrongs(true, clientMessages, at.legal) {
			bubble(t, fmt.Sprintf("%d %s, %s", i, at.step, w.name), func(t *testing.T) {
				o := newOwner(t)
				p := o.client()
				p.say(said...)
				_, _, closed := p.hearAll()
				if closed {
					t.Fatal("the server has closed")
				}
				o.mustBe(at.state)
				p.write(w.payload, fdsOf(t, w.fds)...)
				if at.state.Owns() {
					mustBeTurnedAway(t, p, at.step)
				} else {
					mustBeDeaf(t, o, p, at.state)
				}
				mustHaveCalled(t, &o.service.calls, at.calls)
				if at.state == handoff.StateDraining {
					return
				}
				o.mustBe(handoff.StateOwner)
				if at.calls != "" && o.failure() == "none" {
					t.Error("the status does not show the failure")
				}
				o.takeOver()
			})
		}
	}
}

// mustBeTurnedAway expects that p has got the reason and the end.
func mustBeTurnedAway(t *testing.T, p *player, step string) {
	t.Helper()
	_, last, closed := p.hearAll()
	if !closed {
		t.Error("the server has not closed")
	}
	switch m := last.(type) {
	case *pb.Refuse:
		if step != "Hello" || m.GetCode() != pb.RefuseCode_REFUSE_CODE_PROTOCOL || m.GetReason() == "" {
			t.Errorf("the answer is %v", m)
		}
	case *pb.Abort:
		if step == "Hello" || m.GetCode() != pb.AbortCode_ABORT_CODE_PROTOCOL || m.GetReason() == "" {
			t.Errorf("the answer is %v", m)
		}
	default:
		t.Errorf("the answer is %T", last)
	}
}

// mustBeDeaf expects that the server does nothing until p ends, which may take
// days, for p may own the service; and whatever p says.
func mustBeDeaf(t *testing.T, o *owner, p *player, state handoff.State) {
	t.Helper()
	for _, m := range append(clientMessages, settle) {
		p.say(m)
		elapse(24 * time.Hour)
	}
	synctest.Wait()
	o.mustBe(state)
	p.mustHear()
	if state != handoff.StateDraining {
		warnings := o.server.Status(t.Context()).Warnings
		if len(warnings) != 1 {
			t.Errorf("the status has the warnings %q, want one", warnings)
		}
	}
	p.close()
}

func TestServerAndLegalEnds(t *testing.T) {
	abort := &pb.Abort{Code: pb.AbortCode_ABORT_CODE_TIMEOUT, Reason: "too slow"}
	var said []proto.Message
	for i, at := range serverSteps {
		said = append(said, at.said...)
		if !slices.Contains(at.legal, "Abort") {
			continue
		}
		bubble(t, fmt.Sprintf("%d Abort at %s is a release", i, at.step), func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			p.say(said...)
			p.hearAll()
			p.say(abort)
			p.mustHear("EOF")
			o.mustBe(handoff.StateOwner)
			mustHaveCalled(t, &o.service.calls, at.calls)
			if want := "predecessor, at " + at.step + ": aborted by the other side: too slow"; o.failure() != want {
				t.Errorf("the failure is %q, want %q", o.failure(), want)
			}
			o.takeOver()
		})
	}
	bubble(t, "Rollback is answered before the predecessor owns", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		p.mustHear("ProbationOver")
		o.mustBe(handoff.StateProbation)
		p.say(&pb.Rollback{Reason: "not good"})
		p.mustHear("Resumed") // and no end, which would say the opposite to one that has misread it
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Resume")
		if want := "predecessor, at Settle or Rollback: the successor rolled back: not good"; o.failure() != want {
			t.Errorf("the failure is %q, want %q", o.failure(), want)
		}
		o.takeOver()
		p.mustHear()
		p.close()
	})
	bubble(t, "Settle is answered by Retired", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		p.mustHear("ProbationOver")
		p.say(settle)
		p.mustHear("Retired")
		o.mustBe(handoff.StateDraining)
	})
	bubble(t, "a successor that ends in probation", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false))
		p.close()
		o.mustBe(handoff.StateOwner)
		mustHaveCalled(t, &o.service.calls, "Offer, Freeze, Pause [], Resume")
		o.takeOver()
	})
	bubble(t, "an Abort after CommitAck is no release", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		throughCommit(p)
		p.say(commitAck(false), abort)
		p.mustHear("ProbationOver")
		mustBeDeaf(t, o, p, handoff.StateProbation)
		o.mustBe(handoff.StateOwner)
	})
}

func TestServerAgainstWrongContents(t *testing.T) {
	tests := []struct {
		name string
		said []proto.Message
		last proto.Message
		want string // in the reason
	}{
		{"an acknowledgement of no page", []proto.Message{hello(), prepared}, pageAck(0), "PageAck expects page 0"},
		{"an acknowledgement of a page that was not sent", []proto.Message{hello(), prepared}, pageAck(2), "PageAck expects page 2"},
		{"another count of unclaimed descriptors than listed", []proto.Message{hello(), prepared, pageAck(1), received}, &pb.Ready{Unclaimed: 1}, "counts 1"},
		{"a Hello for no role", nil, &pb.Hello{Versions: []uint32{1}}, "role"},
		{"a Hello of nobody", nil, &pb.Hello{Versions: []uint32{1}, Role: pb.Role_ROLE_SUCCESSOR}, "name is empty"},
	}
	for _, tt := range tests {
		bubble(t, tt.name, func(t *testing.T) {
			o := newOwner(t)
			p := o.client()
			p.say(tt.said...)
			p.say(tt.last)
			_, last, closed := p.hearAll()
			r, ok := last.(interface{ GetReason() string })
			if !closed || !ok {
				t.Fatalf("the answer is %v, closed: %v", last, closed)
			}
			mustMatch(t, fmt.Errorf("%s", r.GetReason()), nil, tt.want)
			o.takeOver()
		})
	}
}

// serverMessages is one of each that a server can send.
var serverMessages = []proto.Message{
	welcome(0), &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_POLICY, Reason: "no"}, manifestPage(0), manifestPage(1), &pb.Commit{},
	&pb.ProbationOver{}, &pb.Resumed{}, &pb.Retired{}, &pb.Abort{Code: pb.AbortCode_ABORT_CODE_HOOK, Reason: "no"},
	&pb.Connection{}, &pb.Draining{}, &pb.ControlResponse{},
}

func welcome(total uint32) *pb.Welcome {
	return &pb.Welcome{
		Version: handoff.Version, Generation: 2, Total: total, CommitTimeout: durationpb.New(limits.Commit),
		Predecessor: &pb.Process{Instance: "by hand"},
	}
}

// manifestPage is an empty last page.
func manifestPage(n uint32) *pb.ManifestPage { return &pb.ManifestPage{Page: n, Last: true} }

// server has c connect to a player.
func (c *candidate) server() *player {
	c.dial(c.t.Context())
	return &player{t: c.t, end: c.pipe.server}
}

// clientSteps are the places where a successor waits for its predecessor.
var clientSteps = []struct {
	step  string
	said  []proto.Message // what has led there
	ready bool            // the program calls Ready behind that
	legal []string
	owns  bool
}{
	{step: "Welcome", legal: []string{"Welcome", "Refuse", "Abort"}},
	{step: "ManifestPage", said: []proto.Message{welcome(0)}, legal: []string{"ManifestPage 0", "Abort"}},
	{step: "the call of Ready", said: []proto.Message{manifestPage(0)}, legal: []string{"Abort"}},
	{step: "Commit", ready: true, legal: []string{"ManifestPage 1", "Abort"}},
	{step: "Commit", said: []proto.Message{manifestPage(1)}, legal: []string{"Commit", "Abort"}},
	{step: "Retired", said: []proto.Message{&pb.Commit{}}, legal: []string{"Retired", "ProbationOver", "Draining"}, owns: true},
	{step: "EOF", said: []proto.Message{&pb.Retired{}}, legal: []string{"Retired", "ProbationOver", "Draining"}, owns: true},
}

func TestSuccessorAgainstWrongMessages(t *testing.T) {
	for i, at := range clientSteps {
		list := wrongs(false, serverMessages, at.legal)
		list = append(list, wrong{name: "a page with a descriptor that it does not list", payload: wrap(false, manifestPage(1)), fds: 1})
		for _, w := range list {
			bubble(t, fmt.Sprintf("%d %s, %s", i, at.step, w.name), func(t *testing.T) {
				c := newCandidate(t)
				p := c.server()
				for _, step := range clientSteps[:i+1] {
					p.say(step.said...)
					if step.ready {
						c.mustHaveReceived()
						c.ready(t.Context())
					}
				}
				p.hearAll()
				p.write(w.payload, fdsOf(t, w.fds)...)
				if !at.owns {
					mustGiveUp(t, c, p, i > 2)
					return
				}
				for _, m := range serverMessages { // it is deaf now
					p.say(m)
					elapse(24 * time.Hour)
				}
				p.mustHear()
				c.mustOwn()
				p.close()
				if c.receiver.count("Settled") != 1 || c.receiver.count("Gone") != 1 || c.receiver.count("Fail") != 0 {
					t.Errorf("calls are %v", &c.receiver.calls)
				}
			})
		}
	}
}

// mustGiveUp expects that c has told p why it gives up, and its program.
func mustGiveUp(t *testing.T, c *candidate, p *player, ready bool) {
	t.Helper()
	_, last, closed := p.hearAll()
	if m, ok := last.(*pb.Abort); !ok || !closed || m.GetCode() != pb.AbortCode_ABORT_CODE_PROTOCOL || m.GetReason() == "" {
		t.Errorf("the successor's last word is %v, closed: %v", last, closed)
	}
	<-c.connected
	err := c.err
	if c.taking != nil {
		if !ready {
			c.ready(t.Context())
		}
		err = c.outcome()
		if c.receiver.count("Fail") != 1 {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	}
	mustMatch(t, err, is(handoff.ErrProtocol), "successor, at ")
	if c.receiver.count("Own") != 0 {
		t.Errorf("calls are %v", &c.receiver.calls)
	}
}

func TestSuccessorAndAbort(t *testing.T) {
	for i, at := range clientSteps {
		if !slices.Contains(at.legal, "Abort") {
			continue
		}
		bubble(t, fmt.Sprintf("%d %s", i, at.step), func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			for _, step := range clientSteps[:i+1] {
				p.say(step.said...)
				if step.ready {
					c.ready(t.Context())
				}
			}
			p.hearAll()
			p.say(&pb.Abort{Code: pb.AbortCode_ABORT_CODE_HOOK, Reason: "the hook says no"})
			p.mustHear("EOF") // an Abort is not answered
			<-c.connected
			if c.taking != nil {
				if i <= 2 {
					c.ready(t.Context())
				}
				c.err = c.outcome()
			}
			mustMatch(t, c.err, is(handoff.ErrAborted, handoff.ErrHook), "the hook says no", "at "+at.step)
		})
	}
}

func TestSuccessorAgainstWrongContents(t *testing.T) {
	page := func(n uint32, names ...string) *pb.ManifestPage {
		p := manifestPage(n)
		for i, name := range names {
			p.Descriptors = append(p.Descriptors, &pb.Descriptor{Id: uint64(i), Name: name, Kind: pb.Kind_KIND_FILE})
		}
		return p
	}
	with := func(m *pb.Welcome, change func(*pb.Welcome)) *pb.Welcome { change(m); return m }
	tests := []struct {
		name string
		said []proto.Message
		want string
	}{
		{"a version that was not offered", []proto.Message{with(welcome(0), func(w *pb.Welcome) { w.Version = 2 })}, "version 2"},
		{"no generation", []proto.Message{with(welcome(0), func(w *pb.Welcome) { w.Generation = 0 })}, "no generation"},
		{"no commit timeout", []proto.Message{with(welcome(0), func(w *pb.Welcome) { w.CommitTimeout = nil })}, "no commit timeout"},
		{"more descriptors than any service has", []proto.Message{welcome(handoff.MaxDescriptors + 1)}, "the limit is"},
		{"more descriptors pending than there are", []proto.Message{with(welcome(1), func(w *pb.Welcome) { w.Pending = 2 })}, "2 of them pending"},
		{"more descriptors than announced", []proto.Message{welcome(1), page(0, "a", "b")}, "makes 2 descriptors"},
		{"fewer descriptors than announced", []proto.Message{welcome(2), page(0, "a")}, "announced 2 descriptors and ends after 1"},
		{"a page out of order", []proto.Message{welcome(1), page(1, "a")}, "page 1 came instead of page 0"},
		{"a page that removes from the offer", []proto.Message{welcome(1), &pb.ManifestPage{Last: true, Removed: []uint64{1}}}, "removes"},
		{"an empty page that is not the last", []proto.Message{welcome(1), &pb.ManifestPage{}}, "is empty"},
		{"an unprintable name", []proto.Message{welcome(1), page(0, "a\x1b[2J")}, "unprintable"},
		{"no name", []proto.Message{welcome(1), page(0, "")}, "name is empty"},
		{"a long name", []proto.Message{welcome(1), page(0, string(make([]byte, 201)))}, "201 bytes"},
		{"no kind", []proto.Message{welcome(1), &pb.ManifestPage{Last: true, Descriptors: []*pb.Descriptor{{Name: "a"}}}}, "unknown kind 0"},
		{"an unknown kind", []proto.Message{welcome(1), &pb.ManifestPage{Last: true, Descriptors: []*pb.Descriptor{{Name: "a", Kind: 99}}}}, "unknown kind 99"},
		{"a negative kind", []proto.Message{welcome(1), &pb.ManifestPage{Last: true, Descriptors: []*pb.Descriptor{{Name: "a", Kind: -1}}}}, "unknown kind -1"},
		{
			"the control socket on a late page",
			[]proto.Message{welcome(0), manifestPage(0), &pb.ManifestPage{Page: 1, Last: true, Control: &pb.Control{}}},
			"only page 0",
		},
		{"the last page again", []proto.Message{welcome(0), manifestPage(0), manifestPage(0)}, "page 0 came instead of page 1"},
		{
			"the removal of more than was offered",
			[]proto.Message{welcome(0), manifestPage(0), &pb.ManifestPage{Page: 1, Last: true, Removed: []uint64{1}}},
			"1 removed descriptors of 0",
		},
	}
	for _, tt := range tests {
		bubble(t, tt.name, func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			for i, m := range tt.said {
				if i == 2 {
					c.mustHaveReceived()
					c.ready(t.Context())
				}
				n := 0
				if m, ok := m.(*pb.ManifestPage); ok {
					n = len(m.GetDescriptors())
				}
				p.write(wrap(false, m), fdsOf(t, n)...)
			}
			<-c.connected
			if c.taking != nil {
				c.err = c.outcome()
			}
			mustMatch(t, c.err, is(handoff.ErrProtocol), tt.want)
			if _, last, closed := p.hearAll(); !closed || shortName(last) != "Abort" {
				t.Errorf("the successor's last word is %v, closed: %v", last, closed)
			}
		})
	}
}

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/internal/leak"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// The service processes of a cell are this binary again.
func TestMain(m *testing.M) {
	if encoded, ok := os.LookupEnv(roleEnv); ok {
		os.Exit(serve(encoded))
	}
	leak.Main(m)
}

func table(t *testing.T) ([]cell, map[string]string) {
	t.Helper()
	cells, rules, err := parseTable(expectations)
	if err != nil {
		t.Fatal(err)
	}
	return cells, rules
}

func find(t *testing.T, name string) cell {
	t.Helper()
	cells, _ := table(t)
	i := slices.IndexFunc(cells, func(c cell) bool { return c.String() == name })
	if i < 0 {
		t.Fatalf("there is no cell %s", name)
	}
	return cells[i]
}

func TestRulesAreThoseOfTheProtocol(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	normal := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	protocol := normal(string(text))
	_, rules := table(t)
	for name, words := range rules {
		if !strings.Contains(protocol, normal(words)) {
			t.Errorf("rule %s is not in docs/protocol.md: %s", name, words)
		}
	}
}

// elsewhere says why a message has no row of its own.
var elsewhere = map[string]string{
	"Refuse":          "no attempt has begun: see the scenarios",
	"ControlRequest":  "a controller's",
	"ControlResponse": "a controller's",
	"EndDrain":        "not sent by this version",
}

func TestEveryMessageHasARow(t *testing.T) {
	cells, _ := table(t)
	rows := make(map[string]bool)
	for _, c := range cells {
		name, _, _ := strings.Cut(c.message, ".")
		rows[name] = true
	}
	for _, m := range []proto.Message{&pb.ClientMessage{}, &pb.ServerMessage{}} {
		members := m.ProtoReflect().Descriptor().Fields()
		for i := range members.Len() {
			name := string(members.Get(i).Message().Name())
			if rows[name] == (elsewhere[name] != "") {
				t.Errorf("%s has a row: %t; that it needs none: %q", name, rows[name], elsewhere[name])
			}
		}
	}
}

func TestTableThatMeansNothingIsRefused(t *testing.T) {
	for _, tt := range []struct{ name, table string }{
		{"a moment that is none", "rule A words\nscenario x\nHello whenever P/A S/A H/A F/A"},
		{"a row with too few cells", "rule A words\nscenario x\nHello wire P/A S/A H/A"},
		{"an outcome that is none", "rule A words\nscenario x\nHello wire P/A S/A H/A Z/A"},
		{"a rule that is none", "rule A words\nscenario x\nHello wire P/A S/A H/A P/B"},
		{"a cell without a rule", "rule A words\nscenario x\nHello wire P/A S/A H/A P"},
		{"a rule that nothing follows from", "rule A words\nrule B words\nscenario x\nHello wire P/A S/A H/A F/A"},
		{"a row that is there twice", "rule A words\nscenario x\nHello wire P/A S/A H/A F/A\nHello wire P/A S/A H/A F/A"},
		{"no scenario", "rule A words\nHello wire P/A S/A H/A F/A"},
		{"a stop without an end", "rule A words\nscenario x\nHello before P/A S/A H/A F/A/failed P/A S/A"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := parseTable(tt.table); err == nil {
				t.Error("it was accepted")
			}
		})
	}
}

func TestShortFormCoversEveryMessageAndIsTheSameForTheSameSeed(t *testing.T) {
	cells, _ := table(t)
	chosen := choose(cells, 7)
	if !slices.Equal(chosen, choose(cells, 7)) {
		t.Error("the same seed chose others")
	}
	if slices.Equal(chosen, choose(cells, 8)) {
		t.Error("another seed chose the same")
	}
	for _, c := range cells {
		if !slices.ContainsFunc(chosen, func(d cell) bool { return d.scenario == c.scenario && d.message == c.message }) {
			t.Errorf("%s of %s is not covered", c.message, c.scenario)
		}
		if !slices.ContainsFunc(chosen, func(d cell) bool { return d.scenario == c.scenario && d.phase() == c.phase() && d.column == c.column }) {
			t.Errorf("%v in the phase %q of %s is not covered", c.column, c.phase(), c.scenario)
		}
	}
}

// A harness that finds everything right whatever happens would be worth nothing.
func TestWrongExpectationFails(t *testing.T) {
	for _, tt := range []struct {
		cell string
		want outcome
	}{
		{"commit/Commit/before/kill-S", outcomeSuccessor},
		{"commit/Commit/after/kill-P", outcomePredecessor},
		{"commit/Retired/after/kill-S", outcomePredecessor},
		{"commit/Hello/after/kill-P", outcomeSuccessor}, // the clients that are turned away for a moment
	} {
		t.Run(tt.cell, func(t *testing.T) {
			t.Parallel()
			c := find(t, tt.cell)
			c.want = tt.want
			o := options{only: regexp.MustCompile(""), parallel: 1}
			m := &matrix{options: o, rows: []cell{c}, results: make(map[string]*result)}
			m.tests = []test{cellTest(c, nil)}
			// What is awaited here never comes.
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			dir, err := os.MkdirTemp("", "chaos") // the paths of sockets have to be short
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			m.run(ctx, dir)
			var out bytes.Buffer
			if m.report(&out, time.Second) != 1 {
				t.Fatal("it was found right")
			}
			for _, part := range []string{"(" + string(tt.want) + ")", "WRONG " + tt.cell, "msg=state from=candidate to=owner", "chaos: 1 cells, 1 wrong"} {
				if !strings.Contains(out.String(), part) {
					t.Errorf("the report does not have %q", part)
				}
			}
		})
	}
}

func TestTwoOwnersAreFound(t *testing.T) {
	for _, tt := range []struct {
		name  string
		a, b  *process
		wrong bool
	}{
		{
			"one after the other",
			&process{events: states(1, "owner", 5, "standby")}, &process{events: states(6, "owner")}, false,
		},
		{
			"both for a moment",
			&process{events: states(1, "owner", 5, "standby")}, &process{events: states(4, "owner")}, true,
		},
		{
			"the first has been stopped for good",
			&process{events: states(1, "owner"), released: 3}, &process{events: states(4, "owner")}, false,
		},
		{
			"the first has not been stopped early enough",
			&process{events: states(1, "owner"), released: 5}, &process{events: states(4, "owner")}, true,
		},
		{
			"one that offers owns",
			&process{events: states(1, "owner", 2, "offering", 3, "committing")}, &process{events: states(4, "owner")}, true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &stage{processes: []*process{tt.a, tt.b}, journal: process{news: make(chan struct{})}}
			s.judgeOwners()
			if wrong := len(s.wrong) > 0; wrong != tt.wrong {
				t.Errorf("found: %q", s.wrong)
			}
		})
	}
}

func TestAnswersOfWhoMustNotAcceptAreFound(t *testing.T) {
	for _, tt := range []struct {
		name  string
		p     *process
		try   try
		wrong bool
	}{
		{"of an owner", &process{events: states(1, "owner")}, try{began: 2, ended: 3}, false},
		{"of a candidate", &process{events: states(5, "owner")}, try{began: 2, ended: 3}, true},
		{"of one that had accepted before it paused", &process{events: states(1, "owner", 4, "probation")}, try{began: 2, ended: 9}, false},
		{"of one on probation", &process{events: states(1, "owner", 4, "probation", 10, "draining")}, try{began: 5, ended: 9}, true},
		{"of one that waits for its successor's word", &process{events: states(1, "owner", 4, "standby")}, try{began: 5, ended: 9}, false},
		{"of one that yields", &process{events: states(1, "owner", 4, "yielding")}, try{began: 5, ended: 9}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.name, tt.try.who = "P", "P"
			s := &stage{
				processes: []*process{tt.p}, tries: []try{tt.try}, counts: make(map[string]int),
				journal: process{news: make(chan struct{})},
			}
			s.judgeTries()
			if wrong := len(s.wrong) > 0; wrong != tt.wrong {
				t.Errorf("found: %q", s.wrong)
			}
		})
	}
}

func TestFailedClientsAreExcusedByTheEndOfTheirServerOnly(t *testing.T) {
	ended := &process{name: "P", events: states(1, "owner"), released: 10}
	for _, tt := range []struct {
		name  string
		try   try
		gone  []window
		wrong bool
	}{
		{"nothing had happened to anybody", try{began: 11, connected: 12, ended: 13}, nil, true},
		{"its server may have ended", try{began: 5, connected: 6, ended: 13}, nil, false},
		{"it queued while nobody accepted", try{began: 5, connected: 6, ended: 13, queued: true}, nil, true},
		{"it was refused", try{began: 5, ended: 6}, nil, true},
		{"the service was nobody's", try{began: 11, ended: 12}, []window{{from: 11, to: 20}}, false},
		{"the service had been nobody's", try{began: 21, ended: 22}, []window{{from: 11, to: 20}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.try.err = io.EOF
			s := &stage{
				processes: []*process{ended}, tries: []try{tt.try}, gone: tt.gone, counts: make(map[string]int),
				journal: process{news: make(chan struct{})},
			}
			s.judgeTries()
			if wrong := len(s.wrong) > 0; wrong != tt.wrong {
				t.Errorf("found: %q", s.wrong)
			}
		})
	}
}

// states are events of changes of state: stamp, state, stamp, state...
func states(pairs ...any) []event {
	var events []event
	from := "candidate"
	for i := 0; i < len(pairs); i += 2 {
		to := pairs[i+1].(string)
		events = append(events, event{At: int64(pairs[i].(int)), Name: eventLog, Text: "level=DEBUG msg=state from=" + from + " to=" + to})
		from = to
	}
	return events
}

// rig is a relay between two connections of the test.
type rig struct {
	*relay
	owner, candidate *scm.Conn
}

func newRig(t *testing.T, handle func(*relay, *frame)) *rig {
	t.Helper()
	far, near, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	owner := open(t, near)
	g := &rig{owner: owner}
	r, theirs, err := newRelay(func() (*scm.Conn, error) { return far, nil }, func(f *frame) { handle(g.relay, f) }, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	g.relay, g.candidate = r, open(t, theirs)
	r.run()
	t.Cleanup(func() {
		r.close()
		_ = far.Close() // if nobody has dialled
		_ = g.owner.Close()
		_ = g.candidate.Close()
	})
	return g
}

// open makes a connection of an end that is for a process.
func open(t *testing.T, end *os.File) *scm.Conn {
	t.Helper()
	fd, err := scm.DupFD(end)
	if err != nil {
		t.Fatal(err)
	}
	_ = end.Close()
	conn, err := scm.OpenConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), generous)
	t.Cleanup(cancel)
	return ctx
}

var (
	helloMessage = encode(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: &pb.Hello{}}})
	pageMessage  = encode(&pb.ServerMessage{Message: &pb.ServerMessage_ManifestPage{ManifestPage: &pb.ManifestPage{Page: 1}}})
)

func TestRelayPassesDescriptorsAndKeepsNone(t *testing.T) {
	ctx := soon(t)
	g := newRig(t, func(r *relay, f *frame) { r.deliver(f) })
	if err := g.candidate.Send(ctx, helloMessage); err != nil {
		t.Fatal(err)
	}
	if payload, _, err := g.owner.Receive(ctx, 0); err != nil || messageOf(successor, payload) != "Hello" {
		t.Fatalf("the owner got %q, %v", payload, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := scm.DupFD(w)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if err := g.owner.Send(ctx, pageMessage, fd, fd); err != nil {
		t.Fatal(err)
	}
	_ = fd.Close()
	payload, fds, err := g.candidate.Receive(ctx, scm.MaxDescriptors)
	if err != nil || messageOf(predecessor, payload) != "ManifestPage.1" || len(fds) != 2 {
		t.Fatalf("the successor got %q with %d descriptors, %v", payload, len(fds), err)
	}
	for _, fd := range fds {
		_ = fd.Close()
	}
	if err := r.SetReadDeadline(time.Now().Add(generous)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("reading from a pipe whose other end nobody should hold: %d, %v", n, err)
	}
}

func TestRelayPassesTheEndOnBehindWhatCameBefore(t *testing.T) {
	ctx := soon(t)
	arrived := make(chan func(), 1)
	g := newRig(t, func(r *relay, f *frame) {
		if f.from == predecessor {
			release := r.holdBack(predecessor)
			arrived <- release
		}
		r.deliver(f)
	})
	if err := g.candidate.Send(ctx, helloMessage); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.owner.Receive(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := g.owner.Send(ctx, pageMessage); err != nil {
		t.Fatal(err)
	}
	release := <-arrived
	_ = g.owner.Close()
	if g.candidate.HungUp() {
		t.Error("the end came before the message")
	}
	release()
	if _, _, err := g.candidate.Receive(ctx, 0); err != nil {
		t.Errorf("instead of the message came %v", err)
	}
	if _, _, err := g.candidate.Receive(ctx, 0); !errors.Is(err, io.EOF) {
		t.Errorf("instead of the end came %v", err)
	}
}

func TestRelayThrowsAwayWhatComesFromOneThatIsCutOff(t *testing.T) {
	ctx := soon(t)
	g := newRig(t, func(r *relay, f *frame) {
		if f.from == predecessor {
			r.cutOff(predecessor)
		}
		r.deliver(f)
	})
	if err := g.candidate.Send(ctx, helloMessage); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.owner.Receive(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := g.owner.Send(ctx, pageMessage); err != nil {
		t.Fatal(err)
	}
	_ = g.owner.Close()
	if _, _, err := g.candidate.Receive(ctx, 0); !errors.Is(err, io.EOF) {
		t.Errorf("instead of the end came %v", err)
	}
}

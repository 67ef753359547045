//go:build linux

package main

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// scenario is a story that the matrix has no row for. It is played on a stage
// with a first process and returns the owner, with nobody else about, or nil if
// something was wrong.
type scenario struct {
	name string
	rule string // that it follows from
	play func(s *stage, p *process) *process
	// options are those of the first process.
	options []option
}

var scenarios = []scenario{
	{
		name: "eight successors at once, none waits", rule: "section 13, BUSY",
		play: (*stage).eightAtOnce,
	},
	{
		name: "eight successors at once, all wait", rule: "section 13, BUSY",
		play: (*stage).eightInARow,
	},
	{
		name: "a successor during probation", rule: "section 11, The chain",
		play: (*stage).duringProbation,
	},
	{
		name: "the owner is stopped during an offer", rule: "section 16",
		play: (*stage).stoppedOwner,
	},
	{
		name: "controllers that hang", rule: "section 10: nobody waits for another",
		play: (*stage).hangingControllers,
	},
	{
		name: "a child holds the connection, before Ready", rule: "section 5, The pidfd",
		play: func(s *stage, p *process) *process { return s.heldByChild(p, "", true) },
	},
	{
		name: "a child holds the connection, after Commit", rule: "section 5, The pidfd",
		play: func(s *stage, p *process) *process { return s.heldByChild(p, "to=owner", true) },
	},
	{
		name: "a child holds the connection, before Ready, no pidfd", rule: "I2",
		play: func(s *stage, p *process) *process { return s.heldByChild(p, "", false) },
	},
	{
		name: "a child holds the connection, after Commit, no pidfd", rule: "I2",
		play: func(s *stage, p *process) *process { return s.heldByChild(p, "to=owner", false) },
	},
	{
		name: "exec before Ready", rule: "I2",
		play: func(s *stage, p *process) *process { return s.execs(p, false) },
	},
	{
		name: "exec on probation", rule: "I2",
		play: func(s *stage, p *process) *process { return s.execs(p, true) },
	},
	{
		name: "sibling pid namespaces", rule: "I2: no process id is asked",
		play: (*stage).siblingNamespaces, options: []option{inPIDNamespace},
	},
}

// runScenario runs one scenario on a stage of its own.
func runScenario(ctx context.Context, dir string, sc scenario) *result {
	ctx, cancel := context.WithTimeoutCause(ctx, generous, errors.New("the patience of the harness is at its end"))
	defer cancel()
	st, err := newStage(ctx, dir)
	if err != nil {
		return &result{wrong: []string{err.Error()}}
	}
	p, err := st.open(st.spec("P"), sc.options...)
	if len(sc.options) > 0 && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL)) {
		st.close()
		return &result{skipped: err.Error()}
	}
	if !st.fail(err) {
		if owner := sc.play(st, p); owner != nil && st.faults() == 0 {
			st.atRest(owner)
			st.epilogue(owner, "N")
		}
	}
	st.close()
	return &result{wrong: st.wrong, transcript: st.transcript()}
}

// many starts n successors at the same time.
func (s *stage) many(n int, sp func(spec) spec) []*process {
	var all []*process
	for i := range n {
		p, err := s.start(sp(s.spec("S" + strconv.Itoa(i+1))))
		if s.fail(err) {
			return nil
		}
		all = append(all, p)
	}
	return all
}

// eightAtOnce: exactly one gets through, and the others learn who is ahead.
func (s *stage) eightAtOnce(p *process) *process {
	all := s.many(8, func(sp spec) spec { sp.Gate = true; return sp })
	var winner *process
	for _, c := range all {
		e, err := c.await(s.ctx, "answer of the owner", func(e event) bool { return e.Name == eventReceived || e.Name == eventFailed })
		switch {
		case s.fail(err):
			return nil
		case e.Name == eventFailed:
			continue
		case winner != nil:
			s.failf("%s and %s hold the offer at the same time", winner.name, c.name)
			return nil
		}
		winner = c
	}
	if winner == nil {
		s.failf("none of %d successors got through", len(all))
		return nil
	}
	for _, c := range all {
		if c == winner {
			continue
		}
		e, err := c.expect(s.ctx, eventFailed)
		if !s.fail(err) && !strings.Contains(e.Error, strconv.Quote(winner.name)) {
			s.failf("%s was not told that %s is ahead: %s", c.name, winner.name, e.Error)
		}
		s.leave(c, "ErrBusy", 1)
	}
	if s.fail(winner.tell(commandReady)) {
		return nil
	}
	return s.tookOver(winner, p)
}

// tookOver waits until next owns and old, which has retired, is gone.
func (s *stage) tookOver(next, old *process) *process {
	for _, name := range []string{eventReady, eventSettled} {
		if _, err := next.expect(s.ctx, name); s.fail(err) {
			return nil
		}
	}
	if _, err := old.expect(s.ctx, eventExit); s.fail(err) {
		return nil
	}
	s.verify(next)
	s.leave(old, "ErrRetired", 0)
	return next
}

// eightInARow: each gets its turn.
func (s *stage) eightInARow(p *process) *process {
	all := s.many(8, func(sp spec) spec { sp.Wait = longTime; return sp })
	turns := map[int]*process{1: p}
	for _, c := range all {
		e, err := c.expect(s.ctx, eventReady)
		if s.fail(err) {
			return nil
		}
		generation := number(e.Text)
		if turns[generation] != nil {
			s.failf("%s and %s have the same generation", turns[generation].name, c.name)
		}
		turns[generation] = c
	}
	// The oldest first: each keeps its connection until its predecessor has gone.
	order := slices.Sorted(maps.Keys(turns))
	owner := turns[order[len(order)-1]]
	for _, generation := range order[:len(order)-1] {
		s.leave(turns[generation], "ErrRetired", 0)
	}
	if _, err := owner.expect(s.ctx, eventSettled); s.fail(err) {
		return nil
	}
	s.verify(owner)
	return owner
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

// duringProbation: an owner that may have to give the service back hands it to
// nobody; who waits gets it when it may.
func (s *stage) duringProbation(p *process) *process {
	owner, err := s.start(s.spec("S"), onProbation(longTime))
	if s.fail(err) {
		return nil
	}
	if _, err := owner.expect(s.ctx, eventReady); s.fail(err) {
		return nil
	}
	if s.fail(p.expectState(s.ctx, handoff.StateProbation.String())) {
		return nil
	}
	refused, err := s.start(s.spec("S2"))
	if s.fail(err) {
		return nil
	}
	s.leave(refused, "ErrProbation", 1)
	waiting := s.spec("S3")
	waiting.Wait = longTime
	next, err := s.start(waiting)
	if s.fail(err) || s.fail(next.expectLog(s.ctx, "the owner asks to wait")) {
		return nil
	}
	if next.happened(eventReceived) || p.current() != handoff.StateProbation.String() {
		s.failf("%s was offered the service by an owner on probation", next.name)
	}
	if s.fail(owner.tell(commandSettle)) {
		return nil
	}
	s.leave(p, "ErrRetired", 0)
	return s.tookOver(next, owner)
}

// stoppedOwner: a candidate must not adopt what was told to stop.
func (s *stage) stoppedOwner(p *process) *process {
	sp := s.spec("S")
	sp.Gate = true
	candidate, err := s.start(sp)
	if s.fail(err) {
		return nil
	}
	if _, err := candidate.expect(s.ctx, eventReceived); s.fail(err) {
		return nil
	}
	s.stopForGood(p)
	s.leave(candidate, "ErrStopping", 1)
	fresh, err := s.start(s.spec("S2"))
	if s.fail(err) {
		return nil
	}
	if _, err := fresh.expect(s.ctx, eventReady); s.fail(err) {
		return nil
	}
	s.back()
	s.busy()
	s.verify(fresh)
	return fresh
}

// hangingControllers: clients of the control socket that do nothing more, at each
// point where they can, delay nobody.
func (s *stage) hangingControllers(p *process) *process {
	hello := encode(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: &pb.Hello{
		Versions: []uint32{1}, Role: pb.Role_ROLE_CONTROLLER,
	}}})
	request := encode(&pb.ClientMessage{Message: &pb.ClientMessage_Control{Control: &pb.ControlRequest{
		Request: &pb.ControlRequest_Status{Status: &pb.StatusRequest{}},
	}}})
	for _, says := range [][][]byte{nil, nil, nil, {hello}, {hello, request}} {
		conn, err := scm.Dial(s.ctx, s.path("control"))
		if s.fail(err) {
			return nil
		}
		defer conn.Close()
		for _, payload := range says {
			s.fail(conn.Send(s.ctx, payload))
		}
	}
	half, err := net.Dial("unix", s.path("control"))
	if s.fail(err) {
		return nil
	}
	defer half.Close()
	_, err = half.Write([]byte{0, 0}) // of a header of eight bytes
	s.fail(err)
	next, err := s.start(s.spec("S"))
	if s.fail(err) {
		return nil
	}
	owner := s.tookOver(next, p)
	if owner != nil && owner.count(logs("was turned away")) > 0 {
		s.failf("%s has sent away clients of its predecessor", owner.name)
	}
	return owner
}

// heldByChild: the successor dies, and a child of its own holds the connection. A
// pidfd that is certainly the successor's frees the predecessor at once; without
// one only the child's end does. stop is the line of its log at which the
// successor dies; before Ready if it is empty.
func (s *stage) heldByChild(p *process, stop string, pidfd bool) *process {
	sp := s.spec("S")
	sp.Gate, sp.Break = stop == "", stop
	var candidate *process
	var err error
	if pidfd {
		candidate, err = s.start(sp)
	} else {
		r, theirs, relayErr := newRelay(func() (*scm.Conn, error) { return scm.Dial(s.ctx, s.path("control")) }, nil, s.note)
		if s.fail(relayErr) {
			return nil
		}
		defer r.close()
		r.handle = func(f *frame) { r.deliver(f) }
		candidate, err = s.start(sp, withConnection(theirs))
		_ = theirs.Close()
		r.run()
	}
	if s.fail(err) {
		return nil
	}
	reached, state := eventReceived, handoff.StateOffering
	if stop != "" {
		reached, state = eventBreak, handoff.StateStandby
	}
	if _, err := candidate.expect(s.ctx, reached); s.fail(err) {
		return nil
	}
	if s.fail(candidate.tell(commandHold)) {
		return nil
	}
	e, err := candidate.expect(s.ctx, eventHolding)
	if err == nil && e.Error != "" {
		err = errors.New(e.Error)
	}
	if s.fail(err) {
		return nil
	}
	child := number(e.Text)
	s.end(candidate)
	if !pidfd {
		// It does not know, and says so for as long as it is asked.
		status, err := queryStatus(s.ctx, s.path("control"))
		if !s.fail(err) && status.State != state {
			s.failf("%s is %v, although a process holds the connection", p.name, status.State)
		}
		if p.count(logs("the handoff failed")) > 0 {
			s.failf("%s has given up, although a process holds the connection", p.name)
		}
		s.note("the child ends")
		s.fail(syscall.Kill(child, syscall.SIGKILL))
	}
	s.fail(p.expectLog(s.ctx, "the handoff failed"))
	if pidfd {
		s.fail(syscall.Kill(child, syscall.SIGKILL)) // it has lived until now
	}
	s.verify(p)
	return p
}

// execs: the connection is close-on-exec, so a successor that becomes another
// program has given up, though its pid lives on.
func (s *stage) execs(p *process, owned bool) *process {
	sp := s.spec("S")
	sp.Gate = !owned
	next, err := s.start(sp, onProbation(longTime))
	if s.fail(err) {
		return nil
	}
	reached := map[bool]string{false: eventReceived, true: eventReady}[owned]
	if _, err := next.expect(s.ctx, reached); s.fail(err) {
		return nil
	}
	if owned && s.fail(p.expectState(s.ctx, handoff.StateProbation.String())) {
		return nil
	}
	s.quiet() // what it had accepted would end with it
	next.release()
	if s.fail(next.tell(commandExec)) {
		return nil
	}
	if s.fail(p.expectLog(s.ctx, "the handoff failed")) {
		return nil
	}
	if !next.alive() {
		s.failf("%s has ended instead of becoming another program", next.name)
	}
	s.busy()
	s.verify(p)
	return p
}

// siblingNamespaces: each process is pid 1 where it lives, and the kernel tells
// neither who the other is.
func (s *stage) siblingNamespaces(p *process) *process {
	sp := s.spec("S")
	sp.Break = "to=owner"
	killed, err := s.start(sp, inPIDNamespace)
	if s.fail(err) {
		return nil
	}
	if _, err := killed.expect(s.ctx, eventBreak); s.fail(err) {
		return nil
	}
	s.end(killed)
	if s.fail(p.expectLog(s.ctx, "the handoff failed")) {
		return nil
	}
	s.verify(p)
	next, err := s.start(s.spec("S2"), inPIDNamespace)
	if s.fail(err) {
		return nil
	}
	return s.tookOver(next, p)
}

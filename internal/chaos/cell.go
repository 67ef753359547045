//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// attempt is one handoff through a relay, in which the fault of a cell is placed,
// and what is found out about it.
type attempt struct {
	*stage
	cell   cell
	fresh  spec // of a process that starts when nobody owns
	sides  [2]*process
	relay  *relay
	client *session      // that the predecessor has accepted before
	said   atomic.Bool   // Hello has been delivered as it was
	given  atomic.Uint64 // the generation of a Welcome that was delivered

	placed chan struct{} // closed when the fault is over, as far as the harness has a part in it
	found  bool          // the message has come; of the pump of its sender
}

// errNotPlaced: the message did not come, so that the cell says nothing.
var errNotPlaced = errors.New("the message of this cell never came")

// delay is how long a message is held back below every limit.
const delay = 100 * time.Millisecond

// limits sets the one limit that the rule of a cell is about to a short time.
// Nothing else may depend on how fast the machine is.
func (c cell) limits(p, s *spec) {
	switch {
	case c.rule == "T1", c.rule == "I5":
		s.DialTimeout = shortTime
	case c.rule == "T3":
		p.ReadyTimeout = shortTime
	case c.rule == "T4", c.rule == "D7", c.until == "overdue":
		p.CommitTimeout = shortTime
	}
	if c.scenario == "rollback" {
		s.AtProbationEnd = crossfade.RollbackAtEnd
	}
}

// probations are what the successor of each scenario asks for.
var probations = map[string]time.Duration{
	"commit": 0, "pages": 0, "giveup": 0, "settle": probation, "settle-unasked": longTime, "rollback": probation, "rollback-unasked": longTime,
	"connections": 0,
}

// probation is how long a successor is on probation before it is asked. What
// happens before the question does not depend on it.
const probation = 300 * time.Millisecond

// runCell runs one cell on a stage of its own, and returns what was wrong and
// everything that was seen.
func runCell(ctx context.Context, dir string, c cell) (wrong []string, transcript string) {
	ctx, cancel := context.WithTimeoutCause(ctx, generous, errors.New("the patience of the harness is at its end"))
	defer cancel()
	st, err := newStage(ctx, dir)
	if err != nil {
		return []string{err.Error()}, ""
	}
	st.play(c)
	st.close()
	return st.wrong, st.transcript()
}

func (s *stage) play(c cell) {
	if c.scenario == "pages" {
		s.files = manyFiles
	}
	pspec := s.spec("P")
	c.limits(&pspec, new(spec))
	if c.moment == at && c.holder() == predecessor {
		pspec.Break = "to=" + c.message
	}
	p, err := s.open(pspec)
	if s.fail(err) {
		return
	}
	if owner := s.attempt(c, p, s.spec("S")); owner != nil {
		s.epilogue(owner, "N")
	}
}

// manyFiles is how many files make an offer of three pages.
const manyFiles = 2*scm.MaxDescriptors + 20

// epilogue has the next process take over, and then stop for good.
func (s *stage) epilogue(owner *process, name string) {
	next := s.succeed(name, owner)
	if next == nil {
		return
	}
	s.verify(next)
	s.atRest(next)
	s.stopForGood(next)
}

// attempt has a process try to take over from p, places the fault of the cell,
// and checks what becomes of it. It returns the owner, with nobody else about;
// nil if something was wrong.
func (s *stage) attempt(c cell, p *process, sspec spec) *process {
	a := &attempt{stage: s, cell: c, fresh: sspec, placed: make(chan struct{})}
	a.fresh.Name += "-fresh"
	a.sides[predecessor] = p
	p.forget() // it may have had other successors
	var err error
	if a.client, err = newSession(s.address); s.fail(err) {
		return nil
	}
	defer a.client.close()
	if c.scenario == "connections" && s.fail(a.client.stay()) {
		return nil
	}
	c.limits(new(spec), &sspec)
	sspec.Progress, sspec.Gate = true, c.want == outcomeHeir || c.scenario == "giveup"
	before := s.faults()
	done := func() {}
	if c.moment == at {
		a.direct(sspec)
	} else {
		done = a.relayed(sspec)
	}
	defer done()
	var owner *process
	if s.faults() == before {
		s.count(c.column.String())
		owner = a.judge()
	}
	if s.faults() == before {
		return owner
	}
	for _, p := range a.sides { // the end of the relay is the end of a lease that they may still hold
		if p != nil {
			p.kill()
		}
	}
	return nil
}

// relayed starts the successor behind a relay and returns when the fault is over.
// done ends the relay.
func (a *attempt) relayed(sspec spec) (done func()) {
	dial := func() (*scm.Conn, error) { return scm.Dial(a.ctx, a.path("control")) }
	r, theirs, err := newRelay(dial, a.handle, a.note)
	if a.fail(err) {
		return func() {}
	}
	a.relay = r
	a.sides[successor], err = a.start(sspec, withConnection(theirs), onProbation(probations[a.cell.scenario]))
	_ = theirs.Close()
	if a.fail(err) {
		return r.close
	}
	r.run()
	go a.decide()
	select {
	case <-a.placed:
	case <-a.ctx.Done():
		a.fail(errNotPlaced)
	}
	return r.close
}

// holder is who stands still in the state that a direct cell is called after.
func (c cell) holder() side {
	if c.message == handoff.StateOwner.String() {
		return successor
	}
	return predecessor
}

// direct starts a successor that connects by itself, and kills the victim while
// whoever has entered the cell's state stands still.
func (a *attempt) direct(sspec spec) {
	holder := a.cell.holder()
	if holder == successor {
		sspec.Break = "to=" + a.cell.message
	}
	var err error
	if a.sides[successor], err = a.start(sspec); a.fail(err) {
		return
	}
	if _, err := a.sides[holder].expect(a.ctx, eventBreak); a.fail(err) {
		return
	}
	a.said.Store(true)
	if a.cell.want.nobody() {
		a.goneFrom()
	}
	a.end(a.victim())
	if holder != a.cell.victim {
		a.fail(a.sides[holder].tell(commandGo))
	}
}

// decide has the program of the successor do unasked what the scenario says.
func (a *attempt) decide() {
	decision, when := "", eventReady
	switch a.cell.scenario {
	case "connections":
		if _, err := a.sides[predecessor].expect(a.ctx, eventExit); err == nil {
			_ = a.sides[predecessor].tell(commandMove) // as below
		}
		return
	case "giveup":
		decision, when = commandStop, eventReceived
	case "settle-unasked":
		decision = commandSettle
	case "rollback-unasked":
		decision = commandRollback
	default:
		return
	}
	if _, err := a.sides[successor].expect(a.ctx, when); err == nil {
		_ = a.sides[successor].tell(decision) // it may be dead by now, as the cell wants it
	}
}

// handle is where every frame of the attempt comes by.
func (a *attempt) handle(f *frame) {
	if f.name != a.cell.message || a.found {
		if f.name == "Hello" {
			a.said.Store(true)
		}
		a.deliver(f)
		return
	}
	a.found = true
	if a.cell.want.nobody() {
		a.goneFrom()
	}
	if f.name == "Hello" {
		a.said.Store(a.cell.helloArrives())
	}
	switch a.cell.fault {
	case faultKill, faultClose:
		a.remove(f)
		close(a.placed)
	case faultStop:
		a.freeze(f)
	default:
		a.disturb(f)
		close(a.placed)
	}
}

// helloArrives reports whether the predecessor of a cell about Hello gets it, so
// that an attempt begins.
func (c cell) helloArrives() bool {
	switch c.fault {
	case faultGarbage, faultMisplaced:
		return false
	case faultStop: // one that is woken finds it; of one that is frozen nothing comes in time
		return c.moment == after || c.victim == predecessor
	default:
		return c.moment != before
	}
}

// deliver passes a frame on, and notes the generation that a Welcome has given.
func (a *attempt) deliver(f *frame) {
	m := new(pb.ServerMessage)
	if a.relay.deliver(f) && f.name == "Welcome" && proto.Unmarshal(f.payload, m) == nil {
		a.given.Store(m.GetWelcome().GetGeneration())
	}
}

func (a *attempt) victim() *process { return a.sides[a.cell.victim] }
func (a *attempt) other() *process  { return a.sides[a.cell.victim.other()] }

// remove takes the victim out, for good: it is killed, or stands still while its
// end closes.
func (a *attempt) remove(f *frame) {
	isSender := f.from == a.cell.victim
	if a.cell.moment == after && !isSender {
		a.relay.cutOff(a.cell.victim) // what it answers is never written
		a.deliver(f)
	}
	if a.fail(a.victim().stop()) {
		return
	}
	a.victim().release()
	if a.cell.moment == after && isSender {
		// The message and the full close behind it are there before the other
		// side can look, as if both had been written at once.
		if !a.fail(a.other().stop()) {
			a.deliver(f)
			a.takeOut(f)
			a.fail(a.other().cont())
		}
		return
	}
	a.takeOut(f)
}

func (a *attempt) takeOut(f *frame) {
	f.close() // before anybody can find that the harness has a copy
	a.relay.cutOff(a.cell.victim)
	// Nobody has accepted these but one who goes on.
	a.load.queue(queuedClients)
	a.note("%v of %s", a.cell.column, a.victim().name)
	if a.cell.fault == faultKill {
		a.victim().kill()
	}
	a.relay.shutdown(a.cell.victim.other())
}

// freeze stops the victim until the other side has reported what the cell says.
func (a *attempt) freeze(f *frame) {
	isSender := f.from == a.cell.victim
	release := func() {}
	if a.cell.moment == after {
		if !isSender {
			release = a.relay.holdBack(a.cell.victim)
		}
		a.deliver(f)
	}
	if a.fail(a.victim().stop()) {
		release()
		return
	}
	a.note("stopped %s", a.victim().name)
	a.load.queue(queuedClients)
	thaw := func() {
		a.fail(a.awaitReport())
		a.note("waking %s", a.victim().name)
		a.fail(a.victim().cont())
		release()
		close(a.placed)
	}
	switch {
	case !isSender:
		if a.cell.moment == before {
			a.deliver(f)
		}
		a.relay.wg.Go(thaw) // the other side must be able to go on writing
	default:
		thaw()
		if a.cell.moment == before {
			a.deliver(f)
		}
	}
}

// awaitReport waits for the other side's report on the victim that does not
// answer.
func (a *attempt) awaitReport() error {
	switch a.cell.until {
	case "failed":
		if a.cell.victim == predecessor {
			_, err := a.other().expect(a.ctx, eventFailed)
			return err
		}
		return a.other().expectLog(a.ctx, "the handoff failed")
	case "turned":
		return a.other().expectLog(a.ctx, "was turned away")
	case "overdue":
		if a.cell.victim == successor {
			return a.other().expectLog(a.ctx, "has not answered Commit")
		}
		_, err := a.other().await(a.ctx, "word that it takes long", func(e event) bool {
			return logs("has not retired yet")(e) || logs("has not resumed yet")(e)
		})
		return err
	case "standing":
		return a.other().expectLog(a.ctx, "standing by until it settles")
	case "asked":
		return a.other().expectLog(a.ctx, "the probation is over: asking")
	default: // exit, settled
		_, err := a.other().expect(a.ctx, a.cell.until)
		return err
	}
}

// disturb changes what is on the wire.
func (a *attempt) disturb(f *frame) {
	switch a.cell.fault {
	case faultGarbage:
		a.relay.inject(f.from, garbage)
	case faultRepeated:
		a.deliver(f)
		a.deliver(f)
	case faultMisplaced:
		a.relay.inject(f.from, misplaced(f.from))
		a.deliver(f)
	case faultNone:
		a.deliver(f)
	case faultDelayed:
		timer := time.NewTimer(delay)
		defer timer.Stop()
		<-timer.C
		a.deliver(f)
	}
}

// judge waits for the end that is expected, and looks at everything. It returns
// the owner.
func (a *attempt) judge() *process {
	switch a.cell.want {
	case outcomePredecessor:
		return a.predecessorOwns("", 1)
	case outcomeRolledBack:
		return a.predecessorOwns("ErrRolledBack", crossfade.ExitRolledBack)
	case outcomeYielding, outcomeReturning:
		return a.yields()
	case outcomeSuccessor, outcomeMoved, outcomeKept, outcomeLost:
		return a.successorOwns()
	case outcomeHeir:
		s := a.sides[successor]
		if a.fail(s.expectState(a.ctx, handoff.StateHeir.String())) || a.fail(s.tell(commandReady)) {
			return nil
		}
		return a.successorOwns()
	case outcomeFresh:
		return a.startsAfresh()
	case outcomeUnsettled, outcomeResumable:
		return a.standsBy()
	default:
		return a.nobodyOwns()
	}
}

// predecessorOwns is the end of an attempt that has failed, or was given back:
// the successor is out for that reason, and exits with that status.
func (a *attempt) predecessorOwns(reason string, status int) *process {
	p, s := a.sides[predecessor], a.sides[successor]
	if s.acts() { // until it has learned, it answers too
		if _, err := s.await(a.ctx, "end of its part", isOut); a.fail(err) {
			return nil
		}
	}
	if a.said.Load() {
		// Why it failed is in the log before anybody can see that it has.
		if a.fail(p.expectLog(a.ctx, "the handoff failed")) {
			return nil
		}
	}
	a.verify(p)
	a.fail(a.client.again())
	a.client.close()
	if s.acts() {
		a.leave(s, reason, status)
	}
	a.atRest(p)
	return p
}

// yields is the end of a rollback that the predecessor has not understood: both
// wait for the other's end, and the successor accepts meanwhile.
func (a *attempt) yields() *process {
	p, s := a.sides[predecessor], a.sides[successor]
	if a.fail(s.expectState(a.ctx, handoff.StateYielding.String())) || a.fail(a.broken()) {
		return nil
	}
	client, err := newSession(a.address)
	if err == nil {
		client.close()
	}
	if !a.fail(err) && client.who != s.name {
		a.failf("%s answers the clients, not %s, which has rolled back and waits", client.who, s.name)
	}
	if a.cell.want == outcomeYielding {
		a.end(s)
		return a.resumes()
	}
	a.end(p)
	if _, err := s.expect(a.ctx, eventSettled); a.fail(err) {
		return nil
	}
	a.verify(s)
	return a.remains(s)
}

// resumes checks that the predecessor owns, whose successor has just ended.
func (a *attempt) resumes() *process {
	p := a.sides[predecessor]
	if a.fail(p.expectLog(a.ctx, "the handoff failed")) {
		return nil
	}
	a.verify(p)
	a.fail(a.client.again())
	a.client.close()
	a.atRest(p)
	return p
}

func (a *attempt) successorOwns() *process {
	p, s := a.sides[predecessor], a.sides[successor]
	if _, err := s.expect(a.ctx, eventReady); a.fail(err) {
		return nil
	}
	if p.acts() {
		if _, err := p.expect(a.ctx, eventExit); a.fail(err) {
			return nil
		}
	}
	if _, err := s.expect(a.ctx, eventSettled); a.fail(err) {
		return nil
	}
	if a.fail(a.clientIsServed()) {
		return nil
	}
	a.verify(s)
	if p.acts() {
		a.leave(p, "ErrRetired", 0)
	}
	return a.remains(s)
}

// clientIsServed checks that the client which the predecessor had accepted is with the
// process that has it by the rules, and with nobody if that one was ended.
func (a *attempt) clientIsServed() error {
	defer a.client.close()
	p, s := a.sides[predecessor], a.sides[successor]
	switch a.cell.want {
	case outcomeMoved:
		return a.client.servedBy(s)
	case outcomeLost, outcomeNobodyLost:
		a.victim().kill() // it may stand still
		return a.client.lost()
	default: // it drains, and serves what it has accepted
		if !p.acts() {
			return nil
		}
		return a.client.servedBy(p)
	}
}

// remains checks that the owner, which is alone now, has what an owner at rest
// has.
func (a *attempt) remains(owner *process) *process {
	for _, p := range a.sides {
		if p != owner {
			p.kill() // it is out, and may stand still
		}
	}
	a.atRest(owner)
	return owner
}

func (a *attempt) startsAfresh() *process {
	s := a.sides[successor]
	ready, err := s.expect(a.ctx, eventReady)
	if a.fail(err) {
		return nil
	}
	a.back()
	// It keeps the generation of the attempt, if it has got one.
	if want := fmt.Sprint(max(a.given.Load(), 1)); ready.Text != want {
		a.failf("a fresh start has generation %s instead of %s", ready.Text, want)
	}
	a.verify(s)
	return a.remains(s)
}

// standsBy is the end of an attempt whose connection is broken after Commit: the
// predecessor waits for the end of the successor, and the successor for that of
// the predecessor.
func (a *attempt) standsBy() *process {
	p, s := a.sides[predecessor], a.sides[successor]
	if _, err := s.expect(a.ctx, eventReady); a.fail(err) {
		return nil
	}
	if a.fail(s.expectState(a.ctx, handoff.StateOwner.String())) {
		return nil
	}
	if a.fail(a.broken()) {
		return nil
	}
	if a.cell.want == outcomeResumable {
		a.end(s)
		return a.resumes()
	}
	if p.happened(eventExit) {
		a.fail(a.client.again())
		a.client.close()
		a.leave(p, "ErrRetired", 0)
	} else {
		a.end(p)
	}
	if _, err := s.expect(a.ctx, eventSettled); a.fail(err) {
		return nil
	}
	a.verify(s)
	return a.remains(s)
}

// nobodyOwns is the end of a sole owner, or of one that nobody can tell from a
// hung one.
func (a *attempt) nobodyOwns() *process {
	p, s := a.sides[predecessor], a.sides[successor]
	switch a.cell.victim {
	case predecessor:
		switch a.cell.scenario {
		case "commit", "pages":
			a.leave(s, "ErrTimeout", 1)
		case "giveup":
			a.leave(s, "ErrStopped", 1)
		default:
			a.leave(s, "ErrRolledBack", crossfade.ExitRolledBack)
		}
	default:
		if _, err := p.expect(a.ctx, eventExit); a.fail(err) {
			return nil
		}
		a.fail(a.clientIsServed())
	}
	a.victim().kill()
	fresh, err := a.start(a.fresh)
	if a.fail(err) {
		return nil
	}
	if _, err := fresh.expect(a.ctx, eventReady); a.fail(err) {
		return nil
	}
	a.back()
	a.verify(fresh)
	if p.acts() {
		a.client.close()
		a.leave(p, "ErrRetired", 0)
	}
	a.atRest(fresh)
	return fresh
}

// broken waits until the side that has met something misplaced says so, and
// checks that the successor is not settled by that.
func (a *attempt) broken() error {
	p, s := a.sides[predecessor], a.sides[successor]
	var err error
	switch a.cell.message {
	case "Commit", "Retired": // the successor reads these; the predecessor has retired meanwhile
		if err = s.expectLog(a.ctx, "waiting for its end"); err == nil {
			_, err = p.expect(a.ctx, eventExit)
		}
	case "ProbationOver":
		err = s.expectLog(a.ctx, "waiting for its end")
	default:
		err = p.expectLog(a.ctx, "standing by until the successor ends")
	}
	if err == nil && s.happened(eventSettled) {
		err = fmt.Errorf("%s is settled although %s holds the connection", s.name, p.name)
	}
	return err
}

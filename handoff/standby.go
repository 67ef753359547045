package handoff

import (
	"context"
	"errors"
	"time"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// This file is the predecessor's machine from Commit on: it stands by until the
// successor has decided, and drains or owns again.

// standby waits, however long it takes, for what became of Commit (I10).
func (p *predecessor) standby() {
	limit := p.server.limits.Commit
	m, err := p.await(time.Now().Add(limit), stepCommitAck, limit)
	if errors.As(err, new(*TimeoutError)) { // and not an Abort for a timeout
		p.server.log.Warn("the successor has not answered Commit: accepting and standing by until it does or ends",
			"successor", p.who.Process, "err", &Error{Side: Predecessor, Step: stepCommitAck, Err: err})
		p.enter(stepCommitAck, time.Time{})
		m, err = p.next(context.Background())
	}
	switch {
	case errors.Is(err, errStop):
		p.leave()
	case told(err): // it never read Commit
		p.resume(err)
	case err != nil:
		p.resume(p.broken(err))
	case m.GetCommitAck() != nil:
		p.probation(m.GetCommitAck().GetSettle())
	default:
		p.resume(p.broken(unexpected(m, stepCommitAck)))
	}
}

// probation is the time in which the successor owns and this process can
// resume. Its end belongs to the owner: this process asks and never decides.
func (p *predecessor) probation(settled bool) {
	p.standBy()
	if !settled {
		p.server.log.Info("the successor owns: standing by until it settles", "successor", p.who.Process, "probation", p.who.Probation)
	}
	limit := p.who.Probation
	until := time.Now().Add(limit)
	p.enter(stepSettle, until)
	for asked := false; !settled; {
		m, err := p.answer(asked, until)
		switch {
		case errors.As(err, new(*TimeoutError)) && !asked:
			asked = true
			p.server.log.Info("the probation is over: asking the successor to settle or to roll back", "successor", p.who.Process, "probation", limit)
			_ = p.send(&pb.ServerMessage{Message: &pb.ServerMessage_ProbationOver{ProbationOver: &pb.ProbationOver{}}}) // if it is gone, next says so
		case errors.Is(err, errStop):
			p.leave()
			return
		case err != nil:
			p.resume(p.broken(err))
			return
		case m.GetSettle() != nil:
			settled = true
		case m.GetRollback() != nil:
			// Written before this process acts as owner. A successor that meets
			// the end of the connection without it owns again, so it must not
			// end (I2).
			if err := p.send(&pb.ServerMessage{Message: &pb.ServerMessage_Resumed{Resumed: &pb.Resumed{}}}); err != nil {
				p.resume(p.broken(err))
				return
			}
			p.own(&rolledBackError{printable(m.GetRollback().GetReason())})
			// Nor after it, before the successor has closed its own: what has
			// arrived there may have been something else.
			_ = p.link.deaf()
			return
		default:
			p.resume(p.broken(unexpected(m, stepSettle)))
			return
		}
	}
	p.retire()
}

// standBy is what CommitAck leads to: the successor owns, and accepts.
func (p *predecessor) standBy() {
	p.server.closeControl()
	p.server.service.Pause(p.unclaimed)
	p.server.succeeded(p)   // which keeps it from being opened again
	p.server.closeControl() // if it was in between
	p.tell(nil)
}

// answer waits for the owner's: before it was asked until the probation is over,
// then as long as it takes (I10).
func (p *predecessor) answer(asked bool, until time.Time) (*pb.ClientMessage, error) {
	if !asked {
		return p.await(until, stepSettle, p.who.Probation)
	}
	p.enter(stepSettle, time.Time{})
	return p.next(context.Background())
}

// retire is the answer to Settle. Writing Retired is the decision.
func (p *predecessor) retire() {
	p.server.service.Pause(nil)
	if err := p.write(&pb.ServerMessage{Message: &pb.ServerMessage_Retired{Retired: &pb.Retired{}}}); err != nil {
		if !errors.Is(err, errStop) {
			err = p.broken(err)
		}
		p.resume(err)
		return
	}
	p.server.drains(p) // before the program hears of it
	if sm := p.server.service.Relieve(p.successor(), p.pidfdID()); sm != nil {
		// If it has gone, so has the part. Nothing else depends on it.
		_ = p.send(&pb.ServerMessage{Message: &pb.ServerMessage_Draining{Draining: &pb.Draining{ServiceManager: serviceManagerToWire(sm)}}})
	}
	p.decide(nil)
	p.server.payDebts() // the program may exit as soon as it does
	p.server.service.Retire()
	p.server.retired(p)
	p.drain()
}

// successor is who comes after this process, with the pid that the kernel gives, if
// it gives one. That of a process which this one has started is its own word: it
// may have been started through another.
func (p *predecessor) successor() Process {
	who := p.who.Process
	who.Generation = p.generation
	if p.who.Peer != nil {
		who.PID = p.who.Peer.PID
	}
	return who
}

// pidfdID is what the kernel knows the successor's process by, 0 if it does not say or
// if it is not certain which process that is.
func (p *predecessor) pidfdID() uint64 {
	var (
		id  uint64
		err error
	)
	switch {
	case p.who.Peer != nil:
		id, err = p.who.Peer.PidfdID()
	case p.process != nil:
		id, err = p.process.PidfdID()
	}
	if err != nil { // an older kernel, mostly: its number has to do
		return 0
	}
	return id
}

// drain serves the successor's wishes until it has gone. The connection stays
// open after it: its end is how the successor knows that this process is gone.
func (p *predecessor) drain() {
	p.enter(stepDrain, time.Time{})
	defer p.server.forget(p)
	defer p.transfers.gone() // the successor has closed its end
	for {
		m, err := p.next(context.Background())
		switch {
		case errors.Is(err, errStop):
			continue // there is nothing left to stop
		case lost(err), errors.Is(err, errPart):
			return
		case err == nil && m.GetEndDrain() != nil:
			p.server.service.EndDrain()
			continue
		case err == nil && m.GetConnectionAck() != nil && p.passes:
			if err = p.transfers.acknowledged(m.GetConnectionAck()); err == nil {
				continue
			}
		case err == nil:
			err = unexpected(m, stepDrain)
		}
		p.server.log.Warn("the successor sent what it must not send now", "successor", p.who.Process, "err", err)
		p.server.forget(p)
		p.transfers.broke(err)
		for { // only its end is left to wait for, and nothing to stop
			if stop := p.link.deaf(); stop == nil || errors.Is(stop, errPart) {
				return
			}
		}
	}
}

// broken waits for the peer's end after an error that leaves open whether the
// peer owns: only its end says that it does not (I2).
func (p *predecessor) broken(err error) error {
	if lost(err) {
		return err
	}
	p.server.log.Error("standing by until the successor ends", "successor", p.who.Process, "err", err)
	p.brokeAt = p.step
	p.enter(stepDeaf, time.Time{})
	if stop := p.link.deaf(); stop != nil {
		return stop
	}
	return err
}

// resume makes this process the owner again, or lets it leave if it was told
// to while it waited.
func (p *predecessor) resume(err error) {
	if errors.Is(err, errStop) {
		p.leave()
		return
	}
	p.link.close()
	p.own(err)
}

// own is resume for a connection that stays open.
func (p *predecessor) own(err error) {
	step := p.step
	if p.brokeAt != "" {
		step = p.brokeAt
	}
	p.server.resuming()
	p.server.service.Resume()
	p.server.failed(p, step, &Error{Side: Predecessor, Step: step, Err: err})
}

// leave ends the standby of a process that was told to stop: it asks the owner
// once more to decide, gives it a bounded time, and is out whatever it says.
// Only if the successor ends in that time is this process the owner that stops.
func (p *predecessor) leave() {
	_ = p.send(&pb.ServerMessage{Message: &pb.ServerMessage_ProbationOver{ProbationOver: &pb.ProbationOver{}}}) // if it is gone, await says so
	limit := p.server.limits.Commit
	deadline := time.Now().Add(limit)
	for {
		m, err := p.await(deadline, stepSettle, limit)
		if m.GetCommitAck() != nil {
			p.standBy()
		}
		switch {
		case errors.Is(err, errStop), m.GetCommitAck() != nil && !m.GetCommitAck().GetSettle():
			continue
		case lost(err), told(err) && p.server.State() == StateStandby: // as in standby
			p.resume(err)
			return
		case m.GetSettle() != nil, m.GetCommitAck().GetSettle():
			p.server.closeControl()
			p.retire()
			return
		}
		break
	}
	p.server.closeControl()
	p.server.service.Pause(nil)
	p.server.setState(StateDraining)
	p.server.service.Relieve(p.successor(), p.pidfdID()) // who has not settled is told nothing
	p.tell(errStop)
	p.decide(errStop)
	p.server.payDebts() // as in retire
	p.server.service.Retire()
	p.server.retired(p)
}

// rolledBackError is why a predecessor resumed although its successor lives.
type rolledBackError struct{ reason string }

func (e *rolledBackError) Error() string { return "the successor rolled back: " + e.reason }

func (e *rolledBackError) Is(target error) bool { return target == ErrRolledBack }

package handoff

import (
	"context"
	"errors"
	"time"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// This file is the successor's machine from CommitAck on: its probation, and how
// that ends.

// rollback is the decision to give the service back, on its way.
type rollback struct {
	reason  string
	results []chan error // of the calls that wait for it, each with room for one
}

// end tells the result to who waits for it.
func (r *rollback) end(err error) {
	for _, result := range r.results {
		result <- err
	}
}

// ownership lasts until the predecessor has gone, or owns again.
func (t *Taking) ownership() {
	t.overdue = t.warnUnsettled()
	defer t.overdue.Stop()
	for {
		m, fds, err := t.next(context.Background())
		if err == nil && m.GetConnection() != nil && t.passes && isClosed(t.settled) {
			if err = t.connection(m.GetConnection(), fds); err == nil {
				continue
			}
			fds = nil
		}
		closeAll(fds)
		if err == nil && m.GetProbationOver() != nil {
			err = t.probationOver()
			if err == nil {
				continue
			}
		}
		switch {
		case errors.Is(err, errRollback):
			if t.giveBack() {
				return
			}
			if !isClosed(t.settled) {
				continue
			}
		case errors.Is(err, errStop):
			t.err = &Error{Side: Successor, Step: stepRetired, Err: err}
			return
		case err == nil && m.GetRetired() != nil && t.answered:
			t.overdue.Stop()
			t.settle()
			continue
		case err == nil && m.GetDraining() != nil && isClosed(t.settled):
			t.draining(m.GetDraining())
			continue
		case !lost(err):
			if err == nil {
				err = unexpected(m, stepRetired)
			}
			if t.passes && isClosed(t.settled) {
				// Connections may be among what cannot be understood. The end of
				// this side gives them back, and means nothing else any more.
				t.log.Error("closing the connection to the retired predecessor, which keeps the clients that were not taken", "predecessor", t.predecessor, "err", err)
				break
			}
			if stop := t.listen(err); stop != nil {
				t.err = &Error{Side: Successor, Step: stepRetired, Err: stop}
				return
			}
		}
		t.overdue.Stop()
		t.link.close()
		t.settle()
		t.tellGone()
		return
	}
}

// warnUnsettled logs that the predecessor takes long to retire.
func (t *Taking) warnUnsettled() *time.Timer {
	limit := t.granted + t.commitLimit
	return time.AfterFunc(limit, func() {
		t.log.Warn("the predecessor has not retired yet: this process serves, and hands over to nobody before that", "predecessor", t.predecessor,
			"err", &Error{Side: Successor, Step: stepRetired, Err: &TimeoutError{For: stepRetired, Limit: limit}})
	})
}

// listen waits for the end of a predecessor that has broken the protocol. Nothing
// that it says counts any more, nor can anything be told to it.
func (t *Taking) listen(err error) error {
	t.log.Error("the predecessor broke the protocol: waiting for its end", "predecessor", t.predecessor, "err", err)
	t.broken = true
	return t.link.deaf()
}

// settle tells that the predecessor cannot come back, once.
func (t *Taking) settle() {
	if !isClosed(t.settled) {
		t.receiver.Settled() // first: who has called Settle may hand over when it returns
		close(t.settled)
	}
}

// probationOver answers the predecessor's question, unless it was answered
// before. errRollback is the answer to give the service back.
func (t *Taking) probationOver() error {
	switch {
	case t.answered:
		return nil
	case t.atEnd == RollbackAtEnd:
		return t.giveBackAtEnd()
	default:
		t.stay()
		return nil
	}
}

// giveBackAtEnd begins the rollback at the end of the probation, unless something
// else has been decided.
func (t *Taking) giveBackAtEnd() error {
	if !t.owns || t.answered || t.broken || isClosed(t.settled) {
		return nil
	}
	t.yielding = &rollback{reason: "the probation is over, and nobody has settled it"}
	return errRollback
}

// stay is the decision to keep the service.
func (t *Taking) stay() {
	t.answered = true
	t.receiver.Settling()
	t.overdue.Reset(t.commitLimit) // counted from the decision
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Settle{Settle: &pb.Settle{}}})
}

// beginRollback begins a rollback for a call, or joins it to the one that goes
// on, unless it is too late.
func (t *Taking) beginRollback(reason string, result chan error) error {
	switch {
	case t.yielding != nil:
		t.yielding.results = append(t.yielding.results, result)
	case !t.owns:
		result <- ErrNotReady
	case t.answered || isClosed(t.settled):
		result <- ErrSettled
	case t.broken:
		result <- protocolError("the connection to the predecessor is broken: nothing can be given back")
	default:
		t.yielding = &rollback{reason: oneLine(reason), results: []chan error{result}}
		return errRollback
	}
	return nil
}

// giveBack is the rollback. It reports whether this process's part has ended;
// otherwise it owns, because it could not let go or because the predecessor has
// died, and is settled in that case.
func (t *Taking) giveBack() (over bool) {
	r := t.yielding
	defer func() { t.yielding = nil }()
	ctx, cancel := context.WithTimeoutCause(context.Background(), t.commitLimit, &TimeoutError{For: stepYield, Limit: t.commitLimit})
	err := t.receiver.Yield(ctx)
	if err != nil {
		err = hookError(ctx, err)
	}
	cancel()
	if err != nil {
		t.log.Error("this process cannot give the service back, and keeps it", "predecessor", t.predecessor, "err", err)
		r.end(&Error{Side: Successor, Step: stepYield, Err: err})
		if len(r.results) == 0 {
			// The predecessor asks once, so nobody else would think of it.
			time.AfterFunc(t.commitLimit, func() { t.link.post(t.giveBackAtEnd) })
		}
		return false
	}
	t.answered, t.owns = true, false
	t.log.Warn("rolling back: the predecessor is to take the service again", "predecessor", t.predecessor, "reason", r.reason)
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Rollback{Rollback: &pb.Rollback{Reason: r.reason}}})
	err = t.awaitResumed()
	switch {
	case err == nil:
		r.end(nil) // first: who has asked is to be told before this process's part ends
		t.out(stepYield, &gaveBackError{reason: r.reason})
		return true
	case errors.Is(err, errStop): // the end of this side makes the predecessor resume
		t.err = &Error{Side: Successor, Step: stepResumed, Err: err}
		return true
	case !lost(err):
		// Resumed may be among what it cannot understand, so the end of the
		// connection would say nothing any more. It does not own, and closing
		// says just that.
		t.log.Error("the predecessor broke the protocol instead of resuming: this process is out", "predecessor", t.predecessor, "err", err)
		err = &gaveBackError{r.reason, err}
		r.end(&Error{Side: Successor, Step: stepResumed, Err: err})
		t.out(stepResumed, err)
		return true
	default:
		t.log.Warn("the predecessor has died before it could take the service again: this process owns it", "predecessor", t.predecessor)
		t.owns = true
		t.receiver.Own(t.generation, nil)
		t.settle()
		r.end(&Error{Side: Successor, Step: stepResumed, Err: err})
		return false
	}
}

// out ends this process's part after a rollback.
func (t *Taking) out(step string, err error) {
	t.link.close()
	t.fail(&Error{Side: Successor, Step: step, Err: err})
}

// awaitResumed waits until the predecessor owns again, however long that takes
// (I10). An error is errStop, or says that it is gone or has broken the protocol.
func (t *Taking) awaitResumed() error {
	overdue := time.AfterFunc(t.commitLimit, func() {
		t.log.Warn("the predecessor has not resumed yet: accepting for it until it does or ends", "predecessor", t.predecessor,
			"err", &Error{Side: Successor, Step: stepResumed, Err: &TimeoutError{For: stepResumed, Limit: t.commitLimit}})
	})
	defer overdue.Stop()
	for {
		m, fds, err := t.next(context.Background())
		closeAll(fds)
		switch {
		case err == nil && m.GetResumed() != nil:
			return nil
		case err == nil && (m.GetProbationOver() != nil || m.GetDraining() != nil):
			continue // it had not read Rollback yet
		case errors.Is(err, errStop), lost(err):
			return err
		case err == nil:
			err = unexpected(m, stepResumed)
		default:
			err = protocolError("%w, instead of %s", err, stepResumed)
		}
		return err
	}
}

// gaveBackError is how a successor's part ends that has rolled back.
type gaveBackError struct {
	reason string
	err    error // why it is not known whether the predecessor owns, or nil
}

func (e *gaveBackError) Error() string {
	text := "rolled back: " + e.reason
	if e.err != nil {
		text += "; and the answer was not understood: " + e.err.Error()
	}
	return text
}

func (e *gaveBackError) Is(target error) bool { return target == ErrRolledBack }

func (e *gaveBackError) Unwrap() error { return e.err }

// Settle decides to stay and returns nil once the predecessor cannot come back,
// which is at once if it was decided before. Errors: ErrNotReady before this
// process owns; ErrRolledBack if it has given the service back, or is about to;
// the cause of ctx, after whose end the predecessor may still retire.
func (t *Taking) Settle(ctx context.Context) error {
	refused := make(chan error, 1) // room, for nobody may read it
	t.link.post(func() error {
		switch {
		case t.owns && !t.answered && !t.broken:
			t.stay()
		case t.yielding != nil:
			refused <- ErrRolledBack
		case !t.owns:
			refused <- ErrNotReady
		}
		return nil
	})
	select {
	case <-t.settled:
		return nil
	case err := <-refused:
		return err
	case <-t.failed:
	case <-t.done:
	case <-ctx.Done():
	}
	// More than one of them may have happened. What is known counts: the program may
	// end ctx because of it.
	switch {
	case isClosed(t.settled):
		return nil
	case isClosed(t.failed), isClosed(t.done):
		return t.err
	default:
		return context.Cause(ctx)
	}
}

// Rollback gives the service back to the predecessor and returns nil once that
// one owns again; Fail of the receiver follows. Errors: ErrNotReady before
// this process owns; ErrSettled if it is too late; ErrHook if Yield has failed,
// after which this process owns as before; ErrLost if the predecessor has died
// meanwhile, after which it owns, settled; ErrProtocol if the predecessor did not
// answer with Resumed, and Fail follows; the cause of ctx, after whose end the
// rollback goes on.
func (t *Taking) Rollback(ctx context.Context, reason string) error {
	result := make(chan error, 1) // room, for nobody may read it
	if !t.link.post(func() error { return t.beginRollback(reason, result) }) {
		return t.ended(ctx)
	}
	select {
	case err := <-result:
		return err
	case <-t.failed:
	case <-t.done:
	case <-ctx.Done():
	}
	select {
	case err := <-result: // as in Settle
		return err
	default:
		return t.ended(ctx)
	}
}

// ended says why a machine that has ended, or is about to, takes no rollback.
func (t *Taking) ended(ctx context.Context) error {
	select {
	case <-t.failed:
	case <-t.done:
	case <-ctx.Done():
	}
	switch {
	case isClosed(t.settled):
		return ErrSettled
	case isClosed(t.failed), isClosed(t.done):
		return t.err
	default:
		return context.Cause(ctx)
	}
}

func (t *Taking) draining(m *pb.Draining) {
	if m.GetServiceManager() != nil { // it comes alone
		t.receiver.ServiceManager(serviceManagerFromWire(m.GetServiceManager()))
		return
	}
	connections := -1
	if m.Connections != nil { // whether it is there is the question
		connections = count(m.GetConnections())
	}
	var deadline time.Time
	if m.GetRemaining() != nil {
		deadline = after(m.GetRemaining())
	}
	t.receiver.Draining(connections, deadline)
}

// tellGone calls Gone, once.
func (t *Taking) tellGone() {
	if !t.gone {
		t.gone = true
		t.receiver.Gone()
	}
}

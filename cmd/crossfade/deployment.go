package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is what run does between the start of the new process and the report.
//
// Two rules hold everywhere. The new process is ended only if it certainly does not
// own, or if its end certainly gives the service back: either its instance was
// cancelled, after which the owner never commits to it, or the predecessor stands by.
// And whatever has happened, the exit status says who serves in the end, so that is
// looked at last.

// deployment is one run of the command. Only its own goroutine uses it.
type deployment struct {
	in     *invocation
	opts   *runOptions
	socket string // absolute

	// From before the start.
	before  *crossfade.Process      // who owned, nil for nobody
	old     *crossfade.Peer         // the same as the kernel knows it, nil if it does not
	granted time.Duration           // the probation that was promised; 0 if nobody was asked
	refusal *crossfade.RefusedError // of the policy, if that may have misjudged

	log    *outputLog
	child  *started
	began  time.Time
	sights chan sight
	stop   func() // ends what sends them

	// What was seen since.
	owner       *crossfade.Process   // the new process, once it has owned
	ownedAt     time.Time            // when that was seen
	took        time.Duration        // from the start until then, or until the report
	predecessor *crossfade.Process   // from whom it took over
	probation   *crossfade.Probation // its own, nil if it has none any more
	answered    bool                 // it has said itself that it owns
	failure     *crossfade.Failure   // what the owner says of its attempt
	lines       []string             // its last words
	busy        *crossfade.Process   // whose deployment was in its way
}

// start starts the new process and begins to watch the service.
func (d *deployment) start(program string) error {
	log, err := openLog(d.in, d.opts.log, program)
	if err != nil {
		return err
	}
	d.began = time.Now()
	child, err := startDetached(program, d.in.args, d.opts.environ(d.socket), log.stdout, log.stderr)
	if err != nil {
		log.discard()
		return err
	}
	log.started()
	d.log, d.child = log, child
	if log.path != "" {
		d.in.say("started %s as %v; its output goes to %s", filepath.Base(program), d.self(), log.path)
	} else {
		d.in.say("started %s as %v", filepath.Base(program), d.self())
	}
	d.sights = make(chan sight)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { follow(ctx, d.socket, d.sights) })
	d.stop = func() {
		cancel()
		wg.Wait()
	}
	return nil
}

func (d *deployment) close() {
	if d.stop != nil {
		d.stop()
	}
	if d.log != nil {
		d.log.close()
	}
	d.forgetOld()
}

func (d *deployment) forgetOld() {
	if d.old != nil {
		_ = d.old.Close()
		d.old = nil
	}
}

// self is the new process, as far as it is known.
func (d *deployment) self() *crossfade.Process {
	if d.owner != nil {
		return d.owner
	}
	return &crossfade.Process{Instance: d.opts.instance, Epoch: d.opts.epoch, PID: d.child.pid()}
}

func (d *deployment) ours(p *crossfade.Process) bool {
	return p != nil && p.Instance == d.opts.instance
}

func (d *deployment) look() sight { return look(context.Background(), d.socket) }

// standing is what a sight says of the new process.
type standing int

const (
	undecided standing = iota
	owns               // it owns, and is ready
	out                // it does not own, and will not
)

// judge takes note of a sight and says what it means.
func (d *deployment) judge(s sight) standing {
	d.note(s)
	switch st := s.status; {
	case st == nil:
		if errors.Is(s.err, crossfade.ErrNoOwner) && d.child.exitedBefore(s.at) {
			return out
		}
		return undecided
	case d.ours(&st.Process):
		if st.State.Owns() && st.Ready {
			return owns
		}
		return undecided // an heir, a first one that is not ready, one that gives back
	case !st.State.Owns():
		return undecided // who has committed, and may yet own again
	case d.failure != nil:
		return out
	case d.child.exitedBefore(s.at) && !d.underWay(s):
		return out
	default:
		return undecided
	}
}

// note keeps what a sight says of the new process.
func (d *deployment) note(s sight) {
	if e := s.event; e != nil {
		if e.Failure != nil && d.ours(&e.Failure.Successor) {
			d.failure = e.Failure
		}
		if e.Attempt != nil && d.ours(&e.Attempt.Successor) && handedOver(e.State) {
			d.owned(&e.Attempt.Successor)
			who := e.Process
			d.predecessor = &who
		}
	}
	st := s.status
	if st == nil {
		return
	}
	if st.LastFailure != nil && d.ours(&st.LastFailure.Successor) {
		d.failure = st.LastFailure
	}
	for i := range st.Draining { // it was replaced already
		if d.ours(&st.Draining[i].Process) {
			d.owned(&st.Draining[i].Process)
		}
	}
	if d.ours(&st.Process) && st.State.Owns() && st.Ready {
		d.owned(&st.Process)
		d.answered, d.probation = true, st.Probation
		if st.Probation != nil {
			d.predecessor = &st.Probation.Predecessor
		} else if d.predecessor == nil && st.Process.Generation > 1 {
			d.predecessor = d.before // which has retired by now, or died
		}
	}
}

// handedOver reports whether a process in this state knows that its successor owns.
func handedOver(s crossfade.State) bool {
	return s == crossfade.StateProbation || s == crossfade.StateDraining
}

func (d *deployment) owned(who *crossfade.Process) {
	if d.owner == nil {
		d.ownedAt = time.Now()
		d.took = d.ownedAt.Sub(d.began)
	}
	p := *who
	d.owner = &p
}

// conclude waits for the outcome, and is the rest of the command.
func (d *deployment) conclude(ctx context.Context) result {
	stands, why := d.awaitOwner(ctx)
	if stands == out {
		if next := d.succession(); next != nil {
			return d.report(codeDone, next, fmt.Sprintf("%s took over in %d ms, and has been replaced since: %s serves",
				name(*d.owner), d.took.Milliseconds(), name(*next)))
		}
	}
	if stands != owns {
		if r := d.abandon(why); r != nil {
			return *r
		}
	}
	switch {
	case d.opts.health != "":
		return d.bake(ctx)
	case d.probation != nil:
		then := "it stays"
		if d.probation.AtEnd == crossfade.RollbackAtEnd {
			then = "it rolls back"
		}
		return d.succeeded(fmt.Sprintf("; on probation until %s, when %s: `crossfade settle` and `crossfade rollback` decide before",
			clock(d.probation.Until), then))
	default:
		return d.succeeded("")
	}
}

// succession returns who has taken over from the new process since that one owned,
// nil if it has not come to that.
func (d *deployment) succession() *crossfade.Process {
	if d.owner == nil || d.opts.health != "" || d.failure != nil || d.child.status() != 0 {
		return nil
	}
	who := d.awaitServing().owner()
	if who == nil || d.ours(who) || d.predecessor == nil || who.Instance == d.predecessor.Instance {
		return nil
	}
	return who
}

// awaitOwner returns when the new process owns or has failed. The standing is
// undecided if the time is up, or ctx ended. The text says why it is not owns.
func (d *deployment) awaitOwner(ctx context.Context) (standing, string) {
	deadline := time.NewTimer(d.opts.timeout)
	defer deadline.Stop()
	exited := d.child.exited
	var last <-chan time.Time // when nothing more will be heard of a process that has exited
	hurried := false
	for {
		var s sight
		inOrder := false // all that was told before was seen before
		select {
		case s = <-d.sights:
			inOrder = true
		case <-exited:
			exited = nil
			last = time.After(changeLimit)
			s = d.look()
		case <-last:
			return out, d.child.fate()
		case <-deadline.C:
			if d.judge(d.look()) == owns {
				return owns, ""
			}
			return undecided, fmt.Sprintf("the new process does not serve after %v", d.opts.timeout)
		case <-ctx.Done():
			return undecided, "interrupted"
		}
		switch stands := d.judge(s); {
		case stands == owns, d.owner != nil && d.opts.health != "":
			// It has told its predecessor, or me as well: one that does not answer is
			// for the health check.
			return owns, ""
		case stands == out && d.child.hasExited() && d.untold(s, inOrder):
			// What an owner has told is on its way, if there was anything.
			if exited = nil; !hurried {
				hurried, last = true, time.After(lookTimeout)
			}
		case stands == out && d.child.hasExited():
			return out, d.child.fate()
		case stands == out:
			return out, "the attempt has failed"
		}
	}
}

// untold reports whether it may still be heard what became of a new process that has
// exited: it may have owned before, if the one that owned at the start does not any
// more; or that one has left as well, and its last words were not seen yet.
func (d *deployment) untold(s sight, inOrder bool) bool {
	switch {
	case d.owner != nil, d.failure != nil:
		return false
	case s.owner() == nil:
		return d.before != nil && !inOrder
	default:
		return d.before == nil || s.owner().Instance != d.before.Instance
	}
}

// abandon gives the attempt up and ends the new process, or what it has left behind.
// The result is nil if that one owns by now.
func (d *deployment) abandon(why string) *result {
	limit := time.Now().Add(changeLimit)
	for {
		err := d.cancel(why, false)
		switch {
		case err == nil, errors.Is(err, crossfade.ErrOutcomeUnknown) && !impatient(err):
			// The owner commits to it no more; in the second case it waits for its end.
			return pointer(d.failed(why))
		case errors.Is(err, crossfade.ErrNoOwner):
			return pointer(d.failed(why)) // it has not begun to listen
		}
		s := d.look()
		stands := d.judge(s)
		switch st := s.status; {
		case stands == owns:
			return nil
		case stands == out:
			return pointer(d.failed(why))
		case st == nil && d.owner == nil:
			return pointer(d.failed(why)) // nobody answers, and for all one can know it does not own
		case st == nil && !time.Now().Before(limit):
			return pointer(d.unknown(why + "; it has taken the service over and does not answer: `crossfade rollback --kill` would end it"))
		case st == nil: // it owns, and takes its time
		case d.ours(&st.Process) && st.State.Owns():
			return pointer(d.failed(why)) // the first generation, which has never been ready
		case d.ours(&st.Process) && st.State == crossfade.StateHeir:
			return pointer(d.unknown(why + "; its predecessor has died and left everything to it, so it goes on"))
		case !d.ours(&st.Process) && st.State.Owns() && !errors.Is(err, crossfade.ErrCommitted) && !errors.Is(err, crossfade.ErrMoved):
			return pointer(d.failed(why)) // too old for Cancel
		case !d.ours(&st.Process) && !time.Now().Before(limit):
			return d.abandonCommitted(why)
		case !time.Now().Before(limit):
			return pointer(d.unknown(why))
		}
		d.awaitChange(limit)
	}
}

// abandonCommitted ends a new process that was committed to and does not answer. Its
// predecessor, which stands by, knows best whether that is still so. The result is nil
// if the new process owns by now.
func (d *deployment) abandonCommitted(why string) *result {
	err := d.cancel(why, true)
	s := d.look()
	switch {
	case d.judge(s) == owns:
		return nil
	case err == nil:
		return pointer(d.failed(why))
	case errors.Is(err, crossfade.ErrNotAllowed) && s.status != nil && s.status.State == crossfade.StateStandby:
		d.child.kill() // whom the predecessor cannot identify, and this process can
		return pointer(d.failed(why))
	default:
		return pointer(d.unknown(why + "; it was committed to and does not answer: " + sentence(err)))
	}
}

func pointer(r result) *result { return &r }

// cancel has the owner refuse the new process for ever.
func (d *deployment) cancel(why string, kill bool) error {
	limit := answerTimeout
	if kill {
		limit = changeLimit
	}
	return d.tell(limit, func(ctx context.Context, c *crossfade.Controller) error {
		_, err := c.Cancel(ctx, &crossfade.CancelOptions{Instance: d.opts.instance, Reason: "its deployment has given up: " + why, Kill: kill})
		return err
	})
}

// tell makes a request of whoever owns.
func (d *deployment) tell(limit time.Duration, request func(context.Context, *crossfade.Controller) error) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, &impatienceError{limit})
	defer cancel()
	c, err := crossfade.Dial(ctx, d.socket)
	if err != nil {
		return err
	}
	return request(ctx, c)
}

// awaitChange returns when something was seen, or after a moment.
func (d *deployment) awaitChange(limit time.Time) {
	timer := time.NewTimer(min(healthInterval, max(time.Until(limit), 0)))
	defer timer.Stop()
	select {
	case s := <-d.sights:
		d.note(s)
	case <-timer.C:
	}
}

// others reports whether another process than the new one was seen to own.
func (d *deployment) others(s sight) bool { return s.owner() != nil && !d.ours(s.owner()) }

// underWay reports whether the attempt of the new process had not ended.
func (d *deployment) underWay(s sight) bool {
	return s.status != nil && s.status.Attempt != nil && d.ours(&s.status.Attempt.Successor)
}

// bake has the new owner prove that it is healthy, while its predecessor stands by.
func (d *deployment) bake(ctx context.Context) result {
	h := newHealth(d.opts.health, d.socket, d.owner, d.in.stderr)
	checking, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	passed := make(chan struct{})
	wg.Go(func() {
		if h.pass(checking) {
			close(passed)
		}
	})
	limit := d.bakeLimit()
	d.in.say("%s owns; its health is checked for at most %s", name(*d.owner), span(time.Until(limit)))
	timer := time.NewTimer(time.Until(limit))
	defer timer.Stop()
	for {
		select {
		case <-passed:
			return d.settle()
		case s := <-d.sights:
			if d.note(s); d.others(s) {
				return d.fellBack("the new process does not own any more")
			}
			timer.Reset(time.Until(d.bakeLimit())) // which it may have told
		case <-d.child.exited:
			return d.fellBack(d.child.fate())
		case <-timer.C:
			stop()
			return d.rollback(fmt.Sprintf("the health check has not passed: %s", h.why()))
		case <-ctx.Done():
			return d.rollback("interrupted before the health check has passed")
		}
	}
}

// bakeLimit is until when the check may pass: so that there is time to settle before
// the predecessor asks.
func (d *deployment) bakeLimit() time.Time {
	total, until := *d.opts.probation, time.Time{}
	switch {
	case d.probation != nil:
		until = d.probation.Until
		total = until.Sub(d.ownedAt)
	case d.answered:
		return d.ownedAt.Add(total) // nobody asks: it is settled
	default:
		if d.granted > 0 {
			total = min(total, d.granted)
		}
		until = d.ownedAt.Add(total)
	}
	return until.Add(-min(2*time.Second, max(total, 0)/5))
}

// settle ends the probation of an owner that is healthy.
func (d *deployment) settle() result {
	s := d.look()
	if d.note(s); d.others(s) {
		return d.fellBack("the new process was healthy, and does not own any more")
	}
	var serving *crossfade.Process
	err := d.tell(changeLimit, func(ctx context.Context, c *crossfade.Controller) error {
		out, err := c.For(d.opts.instance).Settle(ctx)
		if err == nil {
			serving = out.Serving
		}
		return err
	})
	switch {
	case err == nil && d.ours(serving):
		d.probation = nil
		if d.predecessor == nil {
			return d.succeeded("; it is healthy")
		}
		return d.succeeded("; it is healthy, and has settled")
	case err == nil, errors.Is(err, crossfade.ErrRolledBack):
		return d.fellBack("the new process was healthy, and was rolled back meanwhile")
	}
	s = d.look()
	d.note(s)
	switch {
	case d.others(s), errors.Is(s.err, crossfade.ErrNoOwner):
		return d.fellBack("the new process was healthy, and did not settle: " + sentence(err))
	default:
		// It may have decided to stay, so nothing may end it.
		return d.unknown("the new process is healthy, and has not said that it settles: " + sentence(err))
	}
}

// rollback has the new owner give the service back, and ends it if it does not
// answer.
func (d *deployment) rollback(why string) result {
	s := d.look()
	if d.note(s); d.others(s) {
		return d.fellBack(why)
	}
	err := d.tell(answerTimeout, func(ctx context.Context, c *crossfade.Controller) error {
		_, err := c.For(d.opts.instance).Rollback(ctx, why)
		return err
	})
	if err == nil {
		return d.fellBack(why)
	}
	s = d.look()
	d.note(s)
	switch st := s.status; {
	case errors.Is(s.err, crossfade.ErrNoOwner), st != nil && !d.ours(&st.Process):
		return d.fellBack(why)
	case st != nil && st.State == crossfade.StateYielding:
		return d.unknown(why + "; the new process gives the service back, and the old one has not taken it yet")
	case d.answered && d.probation == nil:
		return d.unhealthy(why, "it cannot give the service back: "+sentence(err))
	case d.predecessorGone():
		return d.unhealthy(why, "its predecessor has exited, so there is nothing to go back to")
	}
	// Its predecessor stands by, and nobody but this process settles: so the end of
	// this owner gives the service back.
	d.in.say("%s does not roll back: %s: killing it, so that its predecessor resumes", name(*d.self()), sentence(err))
	d.child.kill()
	return d.fellBack(why)
}

// predecessorGone reports whether the process from which the new one took over has
// certainly exited.
func (d *deployment) predecessorGone() bool {
	if d.old == nil || d.before == nil || d.predecessor == nil || d.predecessor.Instance != d.before.Instance {
		return false
	}
	select {
	case <-d.old.Exited(): // nil, and never ready, where the kernel does not tell
		return true
	default:
		return false
	}
}

// fellBack is the result when the new process has owned and does no longer. It is
// left to finish what it has, if it still runs.
func (d *deployment) fellBack(why string) result {
	s := d.awaitServing()
	d.child.await(exitGrace)
	return d.lost(why, s)
}

// failed is the result when the new process will not own: it is ended, if it has not
// exited.
func (d *deployment) failed(why string) result {
	if d.child == nil {
		return d.lost(why, d.look())
	}
	d.child.end(d.failure != nil)
	return d.lost(why, d.awaitServing())
}

// awaitServing returns who serves after the end of an attempt: that may take a
// moment. An owner that resumes still shows the attempt until it has taken back what it
// had lent, and can then say why it failed.
func (d *deployment) awaitServing() sight {
	for limit := time.Now().Add(changeLimit); ; d.awaitChange(limit) {
		s := d.look()
		if d.note(s); d.others(s) && (!d.underWay(s) || !time.Now().Before(limit)) {
			return s
		}
		if errors.Is(s.err, crossfade.ErrNoOwner) && d.child.hasExited() || !time.Now().Before(limit) {
			return s
		}
	}
}

// lost is the report of a deployment that has failed. s is the last look.
func (d *deployment) lost(why string, s sight) result {
	text := "the deployment failed: " + why
	d.predecessor, d.probation = nil, nil // nobody was replaced in the end
	if d.child != nil {
		if d.owner == nil {
			d.took = time.Since(d.began)
		}
		d.lines = d.log.tail()
		if fate := d.child.fate(); fate != why && d.child.hasExited() {
			text += "; " + fate
		}
	}
	if d.failure != nil && !strings.Contains(d.failure.Reason, why) { // which it may have from here
		text += "; the owner says: " + d.failure.Reason
	} else if d.refusal != nil && d.child != nil {
		text += "; the owner " + d.refusal.Error()
	}
	serving := s.owner()
	c := codeUnknown
	switch {
	case d.intruder(s) != nil:
		c, d.busy = codeBusy, d.intruder(s)
		text += fmt.Sprintf("; another deployment has come in between, that of %s; %s serves", name(*d.busy), name(*serving))
	case serving == nil && errors.Is(s.err, crossfade.ErrNoOwner):
		c = codeNobody
		text += "; nobody serves"
	case serving == nil && s.err != nil:
		if c = codeOf(s.err); c != codeDenied {
			c = codeUnknown
		}
		why := sentence(s.err)
		if silent(s.err) {
			why = silence(d.in, s.err)
		}
		text += "; who serves is not known: " + why
	case serving == nil:
		text += fmt.Sprintf("; who serves is not known: %s answers and is %v", name(s.status.Process), s.status.State)
	case d.ours(serving):
		text += "; all the same it owns"
	default:
		c = codeFailed
		if d.refusal != nil && d.child != nil && d.owner == nil && d.failure == nil {
			c = codeRefused
		}
		text += fmt.Sprintf("; %s serves", name(*serving))
	}
	d.quote()
	return d.report(c, serving, text)
}

// intruder is whose deployment was in the way of the new process, nil if none was: its
// attempt began after the rehearsal, and the owner knows nothing of the new process,
// which has exited by itself.
func (d *deployment) intruder(s sight) *crossfade.Process {
	if d.child == nil || d.owner != nil || d.failure != nil || d.child.sent != "" || !d.child.hasExited() || !d.others(s) {
		return nil
	}
	switch st := s.status; {
	case d.before == nil || s.owner().Instance != d.before.Instance:
		return s.owner()
	case st.Attempt != nil:
		return &st.Attempt.Successor // the rehearsal would have been told of an earlier one
	case st.LastFailure != nil && st.LastFailure.At.After(d.began):
		return &st.LastFailure.Successor
	default:
		return nil
	}
}

// unhealthy is the report when the new process serves and should not.
func (d *deployment) unhealthy(why, because string) result {
	d.lines = d.log.tail()
	d.quote()
	return d.report(codeUnhealthy, d.owner, fmt.Sprintf("%s; %s goes on serving: %s", why, name(*d.owner), because))
}

// unknown is the report when nobody can tell who will serve.
func (d *deployment) unknown(why string) result {
	if d.owner == nil {
		d.took = time.Since(d.began)
	}
	d.lines = d.log.tail()
	d.quote()
	return d.report(codeUnknown, d.look().owner(), why+"; the outcome is not known")
}

// quote shows a person the last words of the new process.
func (d *deployment) quote() {
	if len(d.lines) == 0 || d.in.json {
		return
	}
	d.in.say("the last lines of its output, %s:", d.log.path)
	for _, line := range d.lines {
		d.in.say("| %s", line)
	}
}

package crossfade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// drainGrace is the time between the end of DrainContext and the enforced end of
// the process.
const drainGrace = 2 * time.Second

const (
	// countInterval is the shortest time between two counts of the connections
	// that are still open, and countShare how much more than a count takes.
	countInterval = time.Second
	countShare    = 50

	// maxListed is how many connections are listed that were still open.
	maxListed = 20
)

// DrainContext returns a context for what remains to be done after Exit: it
// ends with parent, DrainTimeout after Exit, or when the successor asks for the
// end of the drain. Without any of these it never ends. It may be called
// before Exit; called after it, its Deadline tells when DrainTimeout ends.
//
// When DrainTimeout ends it, the cause matches [context.DeadlineExceeded], and a
// process that was replaced has 2 s to exit by itself, with whatever status it
// likes. See Config.DrainTimeout for what happens then.
func (u *Upgrader) DrainContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	over := fmt.Errorf("crossfade: the drain has lasted DrainTimeout, %v: %w", u.cfg.DrainTimeout, context.DeadlineExceeded)
	end := func() { cancel(context.Canceled) }
	if deadline := u.drainDeadlineIfKnown(); !deadline.IsZero() {
		timed, stop := context.WithDeadlineCause(ctx, deadline, over)
		go u.cancelAtEndDrain(timed, cancel)
		return timed, func() { end(); stop() }
	}
	go func() {
		select {
		case <-u.exit:
		case <-ctx.Done():
			return
		}
		if deadline := u.drainDeadline(); !deadline.IsZero() {
			timer := time.AfterFunc(time.Until(deadline), func() { cancel(over) })
			defer timer.Stop()
		}
		u.cancelAtEndDrain(ctx, cancel)
	}()
	return ctx, end
}

// drainDeadlineIfKnown is the drainDeadline, or the zero time also before Exit.
func (u *Upgrader) drainDeadlineIfKnown() time.Time {
	if !isClosed(u.exit) {
		return time.Time{}
	}
	return u.drainDeadline()
}

// cancelAtEndDrain waits for the end of ctx, which cancel brings about, and brings it
// about if the successor asks for it.
func (u *Upgrader) cancelAtEndDrain(ctx context.Context, cancel context.CancelCauseFunc) {
	select {
	case <-u.endDrain:
		cancel(fmt.Errorf("crossfade: the successor asked for the end of the drain: %w", context.Canceled))
	case <-ctx.Done():
	}
}

// endDrainOf asks an older generation to end its drain now, and says how. Its
// predecessor hears of it through their connection. Older ones know this process
// only as one that may signal them.
func (u *Upgrader) endDrainOf(ctx context.Context, generation uint64) (string, error) {
	if generation == u.server.Generation() {
		return "", fmt.Errorf("%w: generation %d owns the service: stop it instead", ErrWrongState, generation)
	}
	if u.taking != nil && u.taking.Predecessor().Generation == generation {
		if !isClosed(u.settled) {
			return "", fmt.Errorf("%w: generation %d stands by, and has not begun to drain: settle first", ErrWrongState, generation)
		}
		if u.taking.EndDrain(ctx) {
			return fmt.Sprintf("generation %d was asked to end its drain", generation), nil
		}
	}
	return u.older.EndDrain(generation)
}

// drainDeadline is when DrainTimeout is over, the zero time if there is none.
// Exit is closed.
func (u *Upgrader) drainDeadline() time.Time {
	if u.cfg.DrainTimeout == 0 {
		return time.Time{}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.exitAt.Add(u.cfg.DrainTimeout)
}

// mustDrain reports whether a process that exits because of err was replaced.
func mustDrain(err error) bool { return errors.Is(err, ErrRetired) || errors.Is(err, ErrRolledBack) }

// watchDrain lasts as long as the process, which is out: it tells the successor and
// the service manager what is still open. In one that was replaced it enforces
// DrainTimeout.
func (u *Upgrader) watchDrain(enforced bool) {
	deadline := u.drainDeadline()
	var overstayed <-chan time.Time
	if enforced && !deadline.IsZero() {
		// Not a sum of durations, which would overflow for one that is meant as
		// "for ever".
		timer := time.NewTimer(time.Until(deadline.Add(drainGrace)))
		defer timer.Stop()
		overstayed = timer.C
	}
	r := drainReport{u: u, deadline: deadline, last: -1}
	for {
		next, stop := r.tell()
		if next == nil && overstayed == nil {
			return
		}
		select {
		case <-overstayed:
			stop()
			u.overstay()
			overstayed = nil // the program goes on
		case <-next:
		case <-u.parked:
			stop()
			return
		}
	}
}

// drainReport is what the successor was told.
type drainReport struct {
	u        *Upgrader
	deadline time.Time
	last     int  // how many connections it was told of, -1 for none yet
	said     bool // it was told the deadline
	deaf     bool // it cannot be told any more
}

// tell counts the connections that are still open and tells the successor if the
// number has changed, and the deadline whether or not there is a number. next
// gets a value when it is time to count again, and never if there is nobody to
// tell or nothing to be known.
func (r *drainReport) tell() (next <-chan time.Time, stop func() bool) {
	stop = func() bool { return true }
	began := time.Now()
	open, err := r.u.fds.connections()
	n := len(open)
	if err != nil {
		r.u.log.Debug("the connections that are still open cannot be counted", "err", err)
		n = r.last // as far as anybody knows
	}
	if !r.deaf && (n != r.last || !r.said && !r.deadline.IsZero()) {
		r.deaf = !r.u.server.Draining(n, r.deadline)
		r.said = true
	}
	r.last = n
	if watched := r.u.unit.Draining(n, r.deadline); r.deaf && !watched {
		return nil, stop
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, stop
	}
	// Other errors pass, such as that of a process that has no descriptor left.
	timer := time.NewTimer(max(countInterval, countShare*time.Since(began)))
	return timer.C, timer.Stop
}

// overstay ends a process that drains for too long.
func (u *Upgrader) overstay() {
	listed := "unknown"
	open, err := u.fds.connections()
	if err == nil {
		listed = listConnections(open)
	}
	log := u.log.With("limit", u.cfg.DrainTimeout, "grace", drainGrace, "connections", listed)
	if u.cfg.OnDrainTimeout != nil {
		log.Warn("the drain has lasted too long: calling Config.OnDrainTimeout")
		u.cfg.OnDrainTimeout()
		return
	}
	log.Error("the drain has lasted too long: exiting", "status", ExitDrainTimeout)
	os.Exit(ExitDrainTimeout) //nolint:revive // what Config.DrainTimeout promises, because the program did not
}

// listConnections names connections for a log line.
func listConnections(open []scm.Connection) string {
	text := fmt.Sprintf("%d open", len(open))
	for i, c := range open {
		if i == maxListed {
			return text + ", ..."
		}
		remote := c.Remote
		if remote == "" {
			remote = "a client without a name"
		}
		text += fmt.Sprintf(", %s from %s on %s", c.Network, remote, c.Local)
	}
	return text
}

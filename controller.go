package crossfade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

// What a [Controller] tells.
type (
	// Process says who somebody is.
	Process = handoff.Process
	// Outcome is what became of a request that was fulfilled.
	Outcome = handoff.Outcome
	// OutcomeError says why a request was not fulfilled, and who serves now.
	OutcomeError = handoff.OutcomeError
	// RefusedError is an owner's refusal to hand over.
	RefusedError = handoff.RefusedError
	// Rehearsal is what a successor would meet if it came now.
	Rehearsal = handoff.Rehearsal
	// Attempt is a handoff that has not ended.
	Attempt = handoff.Attempt
	// Failure is how an attempt failed.
	Failure = handoff.Failure
	// Probation is the time in which an owner can still give the service back.
	Probation = handoff.Probation
	// Generation is a process that has owned the service and has not gone yet.
	Generation = handoff.Generation
)

// Controller asks and commands whoever owns a control socket. It takes nothing over.
// It holds no connection between two calls, so there is nothing to close, and each
// call finds the owner of that moment. All methods may be called concurrently, each
// is bounded by its ctx alone.
//
// Errors of all methods: ErrNoOwner if nobody owns the socket; ErrOwnerUnknown if
// that cannot be told; [os.ErrPermission] or ErrDenied without the right to ask;
// ErrLost if the owner ends meanwhile, or never answers but closes; ErrUnimplemented
// if it is too old for the request; ErrMoved if it is another process by now each time
// it is asked; the cause of ctx. Those that command return an [*OutcomeError] for what was not done, or
// ErrWrongState, or ErrNotAllowed.
type Controller struct {
	place    rendezvous.Place
	instance string // whom commands are for, empty for whoever owns
}

// Dial returns the controller of a control socket, which somebody owns: otherwise
// the error is one of those of [Controller].
//
// A controller believes whom the path names: root, this user, the user or the group
// that the socket or its directory is for. It matches ErrUnsafePath if that cannot be
// relied upon, because others could have put another socket there, or because somebody
// else listens. CROSSFADE_TRUST_DIRECTORY=1 is as for [Config.TrustDirectory].
func Dial(ctx context.Context, socket string) (*Controller, error) {
	trust, err := trustsDirectory(os.Getenv(envTrustDirectory))
	if err != nil {
		return nil, fmt.Errorf("crossfade: %w", err)
	}
	c := &Controller{place: rendezvous.Place{Path: socket, TrustDirectory: trust}}
	conn, err := c.reach(ctx)
	if err != nil {
		return nil, fmt.Errorf("crossfade: %w", err)
	}
	return c, conn.Close()
}

// For returns a controller of the same socket whose Upgrade, Settle, Rollback, EndDrain
// and Stop are for that instance alone: the error matches ErrWrongState if another owns.
// So a deployer decides about what it has deployed, and not about what somebody else
// has deployed meanwhile. What only asks, and Cancel, are as before.
func (c *Controller) For(instance string) *Controller {
	return &Controller{place: c.place, instance: instance}
}

// Status returns how the owner stands. Before it has said that it stands by, the
// predecessor of a new owner may answer: State tells.
func (c *Controller) Status(ctx context.Context) (*Status, error) {
	return ask(ctx, c, "status", handoff.QueryStatus)
}

// Watch calls each for every change, first for the state that is found, until ctx
// ends, each returns an error, or there is no more to hear: the process that was found
// has nothing to do with the control socket any more, which the last event tells, or
// has died, or each was so slow that hundreds of events were waiting for it. The
// result is the cause of ctx, the error, or nil: then look again, for somebody else
// may own, or nobody.
func (c *Controller) Watch(ctx context.Context, each func(Event) error) error {
	_, err := ask(ctx, c, "watch", func(ctx context.Context, conn *scm.Conn) (struct{}, error) {
		return struct{}{}, handoff.Watch(ctx, conn, each)
	})
	return err
}

// UpgradeOptions says how an owner is to upgrade itself.
type UpgradeOptions struct {
	// Timeout bounds the attempt, 0 for the owner's own limits.
	Timeout time.Duration
	// WaitSettled waits until the predecessor cannot come back, or has come back.
	// Default: until the successor owns.
	WaitSettled bool
}

// Upgrade has the owner start its successor as [Upgrader.Upgrade] does, and returns
// what became of that one. When ctx ends before Commit the attempt is cancelled; the
// error then matches ErrOutcomeUnknown, and Status tells the rest. opts may be nil.
//
// Reasons of an [*OutcomeError]: ErrBusy, also for what else passes; ErrPolicy,
// ErrTimeout, ErrCancelled, ErrRolledBack (WaitSettled), ErrFailed.
func (c *Controller) Upgrade(ctx context.Context, opts *UpgradeOptions) (*Outcome, error) {
	if opts == nil {
		opts = new(UpgradeOptions)
	}
	return ask(ctx, c, "upgrade", func(ctx context.Context, conn *scm.Conn) (*Outcome, error) {
		out, err := handoff.RequestUpgrade(ctx, conn, c.instance, opts.Timeout, opts.WaitSettled)
		return out, outcome(ctx, err)
	})
}

// CancelOptions says which attempt is to be cancelled, and how.
type CancelOptions struct {
	// Instance is the candidate's. This owner refuses it from now on too, so that
	// after a success a deployer can end it and be sure that it does not own.
	// Default: whichever attempt is under way.
	Instance string
	// Reason is for the candidate's error.
	Reason string
	// Kill ends the candidate's process if it has not exited a few seconds later,
	// because it is frozen perhaps. It works even after Commit, as long as the
	// candidate has not answered: nobody knows then who owns, until its end.
	// ErrNotAllowed if the owner is not certain which process it is.
	Kill bool
}

// Cancel has the owner give up the attempt under way, if there is one. The error
// matches ErrCommitted if it is too late for that, also if Instance has owned, and
// ErrOutcomeUnknown if the candidate is frozen and cannot be told: then use Kill.
// opts may be nil.
func (c *Controller) Cancel(ctx context.Context, opts *CancelOptions) (*Outcome, error) {
	if opts == nil {
		opts = new(CancelOptions)
	}
	return ask(ctx, c, "cancel", func(ctx context.Context, conn *scm.Conn) (*Outcome, error) {
		out, err := handoff.RequestCancel(ctx, conn, opts.Instance, opts.Reason, opts.Kill)
		return out, outcome(ctx, err)
	})
}

// Settle has the owner end its probation: it stays. It returns when the predecessor
// cannot come back, at once if it cannot anyway.
func (c *Controller) Settle(ctx context.Context) (*Outcome, error) {
	return ask(ctx, c, "settle", func(ctx context.Context, conn *scm.Conn) (*Outcome, error) {
		out, err := handoff.RequestSettle(ctx, conn, c.instance)
		return out, outcome(ctx, err)
	})
}

// Rollback has an owner on probation give the service back, and returns when its
// predecessor owns. The error matches ErrSettled if it is too late for that.
func (c *Controller) Rollback(ctx context.Context, reason string) (*Outcome, error) {
	return ask(ctx, c, "rollback", func(ctx context.Context, conn *scm.Conn) (*Outcome, error) {
		out, err := handoff.RequestRollback(ctx, conn, c.instance, reason)
		return out, outcome(ctx, err)
	})
}

// EndDrain has the owner ask an older generation to end its drain now. It returns
// when that one has been asked, or if it has gone. The error matches ErrNotAllowed
// if the owner cannot reach it, and says why.
func (c *Controller) EndDrain(ctx context.Context, generation uint64) (*Outcome, error) {
	return ask(ctx, c, "drain", func(ctx context.Context, conn *scm.Conn) (*Outcome, error) {
		out, err := handoff.RequestEndDrain(ctx, conn, c.instance, generation)
		return out, outcome(ctx, err)
	})
}

// Stop has the owner stop for good, as [Upgrader.Stop] does, but one on probation
// settles first. It returns when the owner is about to stop.
func (c *Controller) Stop(ctx context.Context, reason string) (*Outcome, error) {
	return ask(ctx, c, "stop", func(ctx context.Context, conn *scm.Conn) (*Outcome, error) {
		out, err := handoff.RequestStop(ctx, conn, c.instance, reason)
		return out, outcome(ctx, err)
	})
}

// Check asks the owner what s would meet as a successor, and hands nothing over. Of
// s it looks at what s says of itself; Peer is this process. That this process could
// not hold what would be handed over is an error that matches ErrLimit.
func (c *Controller) Check(ctx context.Context, s *Successor) (*Rehearsal, error) {
	rehearsal, err := ask(ctx, c, "check", func(ctx context.Context, conn *scm.Conn) (*Rehearsal, error) {
		return handoff.RequestCheck(ctx, conn, s)
	})
	if err != nil {
		return nil, err
	}
	if err := scm.Reserve(rehearsal.Descriptors); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("crossfade: check: %w: %w", ErrLimit, err)
	}
	return rehearsal, nil
}

// Peer returns the process that listens on the control socket, as the kernel says,
// without asking it anything: for one that does not answer. Close it.
func (c *Controller) Peer(ctx context.Context) (*Peer, error) {
	return ask(ctx, c, "peer", func(_ context.Context, conn *scm.Conn) (*Peer, error) {
		defer conn.Close()
		return conn.Peer()
	})
}

func (c *Controller) reach(ctx context.Context) (*scm.Conn, error) {
	return rendezvous.Reach(ctx, c.place)
}

// ask makes one request, again if it has met a process that is not the owner any
// more, or is just leaving.
func ask[T any](ctx context.Context, c *Controller, name string, request func(context.Context, *scm.Conn) (T, error)) (T, error) {
	for pause := time.Duration(0); ; pause = min(max(2*pause, time.Millisecond), maxJoinPause) {
		var answer T
		conn, err := c.reach(ctx)
		if err == nil {
			answer, err = request(ctx, conn)
		}
		if err == nil {
			return answer, nil
		}
		again := errors.Is(err, ErrMoved) || errors.Is(err, handoff.ErrUnanswered)
		if !again || !sleep(ctx, pause) {
			return answer, explainDenied(fmt.Errorf("crossfade: %s: %w", name, err), c.place.Path)
		}
	}
}

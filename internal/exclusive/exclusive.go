// Package exclusive guards what only one process may use at a time while a
// service changes hands.
package exclusive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
)

// Resource is what only one process may use at a time, behind Config.Suspend and
// Config.Resume. A process accepts only while it has it. Without these hooks it
// is nothing that could be in the way. All methods may be called concurrently.
type Resource struct {
	suspend, resume func(ctx context.Context) error // both nil, or neither
	limit           time.Duration                   // of one call
	log             *slog.Logger
	exit            <-chan struct{} // closed when this process is out

	turn chan struct{} // has room for who runs a hook: one at a time

	// Of who has the turn.
	suspended bool
	accepting bool   // accept was called, and nothing was let go of since
	accept    func() // to be called when it is back; nil while it is to stay away
	retrying  bool

	mu       sync.Mutex
	trouble  error              // why Resume has failed last, nil once it has not
	giveUp   context.CancelFunc // of the Resume that runs, or nil
	unwanted bool               // that one was ended: what it returns is no news
}

// New returns what suspend lets go of and resume takes back; both may be nil. limit
// bounds one call of resume. Nothing is tried any more once exit is closed.
func New(suspend, resume func(context.Context) error, limit time.Duration, log *slog.Logger, exit <-chan struct{}) *Resource {
	return &Resource{suspend: suspend, resume: resume, limit: limit, log: log, exit: exit, turn: make(chan struct{}, 1)}
}

// Guards reports whether there is anything to guard.
func (x *Resource) Guards() bool { return x.suspend != nil }

// LetGo lets go of it, in a process that has it. A Resume that is running is ended,
// and waited for. pause is called before, in any case: what stands still then stays
// so until TakeBack.
func (x *Resource) LetGo(ctx context.Context, pause func()) error {
	x.interrupt()
	select {
	case x.turn <- struct{}{}:
		defer func() { <-x.turn }()
	case <-ctx.Done():
		pause()
		return fmt.Errorf("waiting for the end of Config.Resume: %w", context.Cause(ctx))
	}
	x.accept = nil
	pause()
	had := x.accepting
	x.accepting = false
	if !x.Guards() || x.suspended || !had {
		return nil // it never had it, or has let go of it
	}
	if err := x.suspend(ctx); err != nil {
		return fmt.Errorf("letting go by Config.Suspend: %w", err)
	}
	x.suspended = true
	return nil
}

// TakeBack takes it back, if it was let go of, and then calls accept. It does not
// wait for a Resume that fails: that is tried again until it succeeds, LetGo is
// called or this process is out.
func (x *Resource) TakeBack(accept func()) {
	x.turn <- struct{}{}
	defer func() { <-x.turn }()
	x.accept = accept
	if !x.try() && !x.retrying {
		x.retrying = true
		go x.retry()
	}
}

// try reports whether there is nothing left to do.
func (x *Resource) try() bool {
	if x.accept == nil {
		return true
	}
	if x.suspended {
		err := x.resumeOnce()
		x.note(err)
		if err != nil {
			return false
		}
		x.suspended = false
	}
	x.accept()
	x.accept, x.accepting = nil, true
	return true
}

func (x *Resource) resumeOnce() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), x.limit,
		&handoff.TimeoutError{For: "end of Config.Resume", Limit: x.limit})
	defer cancel()
	x.running(cancel)
	defer x.running(nil)
	err := x.resume(ctx)
	if late := context.Cause(ctx); err != nil && late != nil && !errors.Is(err, late) {
		return fmt.Errorf("%w: %w", late, err)
	}
	return err
}

func (x *Resource) running(giveUp context.CancelFunc) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.giveUp = giveUp
	if giveUp != nil {
		x.unwanted = false
	}
}

// interrupt ends the Resume that runs, and forgets what was wrong with it: this
// process is not to have the resource.
func (x *Resource) interrupt() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.trouble = nil
	if x.giveUp != nil {
		x.unwanted = true
		x.giveUp()
	}
}

// note keeps and logs what has become of a Resume.
func (x *Resource) note(err error) {
	x.mu.Lock()
	before := x.trouble
	if x.unwanted {
		x.mu.Unlock()
		return
	}
	x.trouble = err
	x.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		x.log.Error("Config.Resume fails: this process accepts nothing before it succeeds, and tries again", "err", err)
	case err == nil && before != nil:
		x.log.Info("Config.Resume has succeeded: this process accepts again")
	}
}

// Warning says what a person should know of, or nothing.
func (x *Resource) Warning() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.trouble == nil {
		return ""
	}
	return "this process accepts nothing, because Config.Resume fails: " + x.trouble.Error()
}

// retry goes on with TakeBack. For what keeps Resume from succeeding there is no
// event.
func (x *Resource) retry() {
	for {
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-x.exit:
			timer.Stop()
		}
		x.turn <- struct{}{}
		done := x.over() || x.try()
		x.retrying = !done
		<-x.turn
		if done {
			return
		}
	}
}

func (x *Resource) over() bool {
	select {
	case <-x.exit:
		return true
	default:
		return false
	}
}

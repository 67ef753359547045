package crossfade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
)

// exclusive is what only one process may use at a time, behind Config.Suspend and
// Config.Resume. A process accepts only while it has it. Without these hooks it
// is nothing that could be in the way.
type exclusive struct {
	suspend, resume func(ctx context.Context) error // both nil, or neither
	limit           time.Duration                   // of one call
	log             *slog.Logger
	exit            <-chan struct{} // closed when this process is out

	mu        sync.Mutex // held while a hook runs, so that they run one at a time
	suspended bool
	accept    func() // to be called when it is back; nil while it is to stay away
	retrying  bool

	troubleMu sync.Mutex
	trouble   error // why Resume has failed last, nil once it has not
}

func newExclusive(c *Config, exit <-chan struct{}) *exclusive {
	return &exclusive{suspend: c.Suspend, resume: c.Resume, limit: c.CommitTimeout, log: c.Logger, exit: exit}
}

// guards reports whether there is anything to guard.
func (x *exclusive) guards() bool { return x.suspend != nil }

// letGo lets go of it. pause is called first, in any case: what stands still then
// stays so until takeBack.
func (x *exclusive) letGo(ctx context.Context, pause func()) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.accept = nil
	pause()
	if !x.guards() || x.suspended {
		return nil
	}
	if err := x.suspend(ctx); err != nil {
		return fmt.Errorf("letting go by Config.Suspend: %w", err)
	}
	x.suspended = true
	return nil
}

// takeBack takes it back, if it was let go of, and then calls accept. It does not
// wait for a Resume that fails: that is tried again until it succeeds, letGo is
// called or this process is out.
func (x *exclusive) takeBack(accept func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.accept = accept
	if !x.tryLocked() && !x.retrying {
		x.retrying = true
		go x.retry()
	}
}

// tryLocked reports whether there is nothing left to do.
func (x *exclusive) tryLocked() bool {
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
	x.accept = nil
	return true
}

func (x *exclusive) resumeOnce() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), x.limit,
		&handoff.TimeoutError{For: "end of Config.Resume", Limit: x.limit})
	defer cancel()
	err := x.resume(ctx)
	if late := context.Cause(ctx); err != nil && late != nil && !errors.Is(err, late) {
		return fmt.Errorf("%w: %w", late, err)
	}
	return err
}

// note keeps and logs what has become of a Resume.
func (x *exclusive) note(err error) {
	x.troubleMu.Lock()
	before := x.trouble
	x.trouble = err
	x.troubleMu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		x.log.Error("Config.Resume fails: this process accepts nothing before it succeeds, and tries again", "err", err)
	case err == nil && before != nil:
		x.log.Info("Config.Resume has succeeded: this process accepts again")
	}
}

// warning says what a person should know of, or nothing.
func (x *exclusive) warning() string {
	x.troubleMu.Lock()
	defer x.troubleMu.Unlock()
	if x.trouble == nil {
		return ""
	}
	return "this process accepts nothing, because Config.Resume fails: " + x.trouble.Error()
}

// retry goes on with takeBack. For what keeps Resume from succeeding there is no
// event.
func (x *exclusive) retry() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-x.exit:
		}
		x.mu.Lock()
		done := isClosed(x.exit) || x.tryLocked()
		x.retrying = !done
		x.mu.Unlock()
		if done {
			return
		}
	}
}

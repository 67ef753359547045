package systemd

import (
	"context"
	"fmt"
	"time"
)

// KeepAlive says [Alive] at once and then twice within limit, the
// [Environment].Watchdog, as long as check returns nil; a nil check always does.
// It returns when ctx ends.
//
// When check returns an error, or has not returned, nothing is said; the manager
// then does what the unit's settings have for a broken service, unless check
// recovers in time. The context of check ends with the time that it may take. What
// check and Send return other than nil is given to report.
//
// A limit of 0 is a unit without a watchdog: KeepAlive returns at once, and so it
// does for a nil Notifier.
func (n *Notifier) KeepAlive(ctx context.Context, limit time.Duration, check func(context.Context) error, report func(error)) {
	if n == nil || limit <= 0 {
		return
	}
	every := max(limit/2, 1)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if err := n.keepAlive(ctx, every, check); err != nil && ctx.Err() == nil {
			report(err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func (n *Notifier) keepAlive(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the watchdog waits no longer than %v", limit))
	defer cancel()
	if check != nil {
		if err := check(ctx); err != nil {
			return err
		}
	}
	return n.Send(ctx, Alive())
}

package main

import (
	"context"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is how run looks at a service, time and again.

// glance is what was seen of a service at one moment.
type glance struct {
	at     time.Time         // when the look began
	status *crossfade.Status // of who has answered; nil if nobody has
	event  *crossfade.Event  // the change that led to the look, or nil
	err    error             // why there is no status; nil with an event
}

// owner returns who owns, nil if that was not seen.
func (g glance) owner() *crossfade.Process {
	if g.status == nil || !g.status.State.Owns() {
		return nil
	}
	return &g.status.Process
}

func glanceAt(ctx context.Context, socket string) glance {
	g := glance{at: time.Now()}
	g.status, g.err = look(ctx, socket)
	return g
}

// observe sends a glance for each change that [follow] tells of, until ctx ends. When
// it has sent the first one of an owner, that one's predecessor accepts nothing any
// more.
func observe(ctx context.Context, socket string, glances chan<- glance) {
	_ = follow(ctx, socket, func(s sight) error {
		g := glanceAt(ctx, socket)
		if s.event != nil {
			if g.status == nil || g.status.Process.Instance != s.event.Process.Instance {
				// Another one answers already, or nobody: that is for the time when
				// this one has told its end.
				g.status, g.err = nil, nil
			}
			g.event = s.event
		}
		return send(ctx, glances, g)
	})
	// An owner that cannot be followed, because it is too old or too many do, can
	// still be asked.
	for ctx.Err() == nil {
		_ = send(ctx, glances, glanceAt(ctx, socket)) // it ends with ctx alone
		pause(ctx, lookPause)
	}
}

func send(ctx context.Context, glances chan<- glance, g glance) error {
	select {
	case glances <- g:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file asks the owner how it stands.

var statusCommand = &command{
	name: "status", args: "[--watch] [--timeout DURATION]",
	summary: "say who owns the service, and how it stands",
	long: `It prints the process that owns the service: its generation, version, pid and instance, its
state and since when; its probation; the attempt to replace it that is under way; the
last attempt that failed, with its reason; what it should be warned of; the older
processes that have not exited yet; and its descriptors, each inherited from its
predecessor, added by itself, or inherited and not asked for by the program.

A process that answers and does not own is shown too, with exit code 9: between Commit
and its answer, and after a rollback, it is not known for a moment who serves.

With --watch it goes on, over changes of owner and times without one, until SIGINT or
SIGTERM, which is a success. A terminal shows a live view. Anything else gets an object
on a line for each event.`,
	example: "crossfade status --socket /run/app/control.sock\ncrossfade status --socket /run/app/control.sock --json | jq .draining",
	codes:   []code{codeDone, codeNoOwner, codeDenied, codeRefused, codeUnknown},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		watching := flags.Bool("watch", false, "go on, and show every change")
		limit := timeout(flags, 5*time.Second, "how long to wait for the answer; not with --watch")
		return func(ctx context.Context, in *invocation) result {
			if *watching {
				return watch(ctx, in)
			}
			ctx, cancel := limit.context(ctx)
			defer cancel()
			s, err := status(ctx, in.socket)
			if err != nil {
				r := failure(in, err)
				r.fields = statusObject(nil)
				return r
			}
			return statusResult(s, time.Now())
		}
	},
}

func status(ctx context.Context, socket string) (*crossfade.Status, error) {
	c, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return c.Status(ctx)
}

func statusResult(s *crossfade.Status, now time.Time) result {
	r := result{serving: serving(s), output: renderStatus(s, now), fields: statusObject(s)}
	if r.serving == nil {
		r.code, r.reason = codeUnknown, fmt.Sprintf("%s answers and does not own: it is %v", name(s.Process), s.State)
		if s.State == crossfade.StateHeir {
			r.reason = fmt.Sprintf("the owner has died: %s will own once it is ready", name(s.Process))
		}
	}
	return r
}

// serving is who serves as far as a status tells, nil if it does not.
func serving(s *crossfade.Status) *crossfade.Process {
	if !s.State.Owns() {
		return nil
	}
	return &s.Process
}

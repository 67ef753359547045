package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file ends the service.

var stopCommand = &command{
	name: "stop", args: "[--drained] [--if-running] [--reason REASON] [--timeout DURATION]",
	summary: "end the service: the owner stops, and nobody comes after it",
	long: `The owner stops for good: one on probation settles first, so that its predecessor cannot
come back, and an attempt under way is aborted. The command returns when the process has
exited, as far as the kernel tells that (Linux 6.5), else when nobody owns the socket. What
the process does between, and for how long, is its program's affair: a server finishes
its requests. Older processes that still drain go on.

With --drained it waits for those first, and the owner serves meanwhile; code 6 if they take
too long, and nothing else has changed. So it is the ExecStop of a unit, where a signal to all would
cut off what they still do.

If somebody else owns by then, as a supervisor may start the service anew, that is code 5.
If the process has not exited in time, code 9 and what is known of it.`,
	example: "crossfade stop --socket /run/app/control.sock --timeout 90s --if-running\n" +
		"ExecStop=-/usr/bin/crossfade stop --socket /run/app/control.sock --drained --if-running",
	codes: []code{codeDone, codeNoOwner, codeFailed, codeTimeout, codeDenied, codeRefused, codeUnknown},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		drained := flags.Bool("drained", false, "first wait until all older processes have exited")
		optional := flags.Bool("if-running", false, "that nobody owns the socket is a success")
		reason := flags.String("reason", "asked for by crossfade stop", "the `reason`, for the logs")
		limit := timeout(flags, 30*time.Second, "how long to wait for the exit of the process")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := limit.context(ctx)
			defer cancel()
			r := result{}
			if *drained {
				r = awaitDrained(ctx, in)
			}
			if r.code == codeDone {
				r = stop(ctx, in, *reason)
			}
			if *optional && r.code == codeNoOwner {
				r.code = codeDone
			}
			if r.fields == nil {
				r.fields = object{"stopped": nil}
			}
			return r
		}
	},
}

// awaitDrained waits for the end of the older processes. A predecessor that stands by
// does not end before the owner is settled.
func awaitDrained(ctx context.Context, in *invocation) result {
	c, err := crossfade.Dial(ctx, in.socket)
	if err != nil {
		return failure(in, err)
	}
	status, err := c.Status(ctx)
	if err != nil {
		return failure(in, err)
	}
	if !settled(status) {
		if _, err := c.Settle(ctx); err != nil {
			return failure(in, err)
		}
	}
	var last string
	err = eachSight(ctx, in.socket, func(s sight) (enough bool) {
		if s.status != nil && len(s.status.Draining) > 0 {
			last = stillThere(s.status, s.status.Draining[0].Process.Generation)
		}
		return errors.Is(s.err, crossfade.ErrNoOwner) || s.status != nil && len(s.status.Draining) == 0
	})
	switch {
	case err == nil:
		return result{}
	case ctx.Err() == nil:
		return failure(in, err)
	default:
		serves, _ := whoServes(in.socket) // null if it is not known
		return result{code: codeTimeout, reason: notWithin(context.Cause(ctx)) + ": " + last, serving: serves}
	}
}

func stop(ctx context.Context, in *invocation, reason string) result {
	c, err := crossfade.Dial(ctx, in.socket)
	if err != nil {
		return failure(in, err)
	}
	// Before it is asked: afterwards there may be nobody left to be told of.
	before, err := c.Status(ctx)
	if err != nil {
		return failure(in, err)
	}
	peer, err := c.Peer(ctx)
	if err != nil {
		return failure(in, err)
	}
	defer peer.Close()
	out, err := c.Stop(ctx, reason)
	if err != nil && !errors.Is(err, crossfade.ErrLost) {
		return failure(in, err)
	}
	exited, stopped := peer.Exited(), before.Process
	if out != nil && out.Who != nil {
		stopped = *out.Who
		if stopped.Instance != before.Process.Instance {
			exited = nil // of another process, which owned a moment before
		}
	}
	r := gone(ctx, in, exited)
	if r.code == codeDone {
		r.reason = name(stopped) + " has stopped: " + r.reason
	}
	r.fields = object{"stopped": processObject(stopped)}
	return r
}

// gone returns when the process that was asked to stop has exited, or at least when
// it does not own any more, if exited is nil: then nothing tells of its exit.
func gone(ctx context.Context, in *invocation, exited <-chan struct{}) result {
	text := "its process has exited"
	if exited != nil {
		select {
		case <-exited:
		case <-ctx.Done():
			return notGone(ctx, in)
		}
	} else {
		text = "nobody owns the socket; whether its process has exited is not known"
		err := eachSight(ctx, in.socket, func(s sight) (enough bool) { return errors.Is(s.err, crossfade.ErrNoOwner) })
		if err != nil {
			return notGone(ctx, in)
		}
	}
	switch owner, err := whoServes(in.socket); {
	case err == nil:
		return result{code: codeFailed, serving: owner, reason: fmt.Sprintf("stopped, and %s owns now: somebody has started it", name(*owner))}
	case !errors.Is(err, crossfade.ErrNoOwner):
		return result{code: codeUnknown, reason: "stopped, and whether somebody else owns is not known: " + sentence(err)}
	default:
		return result{reason: text}
	}
}

func notGone(ctx context.Context, in *invocation) result {
	r := result{code: codeUnknown, reason: notWithin(context.Cause(ctx)) + ": "}
	switch owner, err := whoServes(in.socket); {
	case err == nil:
		r.serving = owner
		r.reason += name(*owner) + " owns"
	case errors.Is(err, crossfade.ErrNoOwner):
		r.reason += "nobody owns the socket, and the process that was asked to stop has not exited yet"
	default:
		r.reason += sentence(err)
	}
	return r
}

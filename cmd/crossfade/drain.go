package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file ends the drain of an older generation.

var drainCommand = &command{
	name: "drain", args: "--now GENERATION [--wait] [--timeout DURATION]",
	summary: "have an older process end its drain now",
	long: `The owner asks the older process to finish at once, and the command returns when it has been
asked, or if it has gone. With --wait it returns when it has exited.

The owner's own predecessor is asked by its program's means, and DrainContext ends. An
older one is sent SIGTERM, if the owner may end such processes (Config.KillOverdue): code 7
if it may not, with the pid. The owner itself cannot be asked, nor can a predecessor that
stands by (code 8): see crossfade stop and crossfade settle. Code 5 is for any other reason
for which the owner has not asked it.`,
	example: "crossfade drain --socket /run/app/control.sock --now 12 --wait",
	codes:   []code{codeDone, codeNoOwner, codeFailed, codeTimeout, codeDenied, codeRefused, codeUnknown, codeNobody},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		generation := flags.Uint64("now", 0, "the `generation` whose drain is to end")
		waiting := flags.Bool("wait", false, "wait until it has exited")
		limit := timeout(flags, 30*time.Second, "how long to wait for the owner, and with --wait for the exit")
		return func(ctx context.Context, in *invocation) result {
			if *generation == 0 {
				return usage("drain: which generation? give --now, `crossfade status` lists them")
			}
			ctx, cancel := limit.context(ctx)
			defer cancel()
			r := request(ctx, in, func(c *crossfade.Controller, ctx context.Context) (*crossfade.Outcome, error) {
				return c.EndDrain(ctx, *generation)
			})
			if r.code != codeDone || !*waiting {
				return r
			}
			return awaitGone(ctx, in, *generation)
		}
	},
}

// awaitGone returns when an older generation has exited.
func awaitGone(ctx context.Context, in *invocation, generation uint64) result {
	var serves *crossfade.Process
	seen, last, err := await(ctx, in.socket, func(s *crossfade.Status) string {
		serves = serving(s)
		return stillThere(s, generation)
	})
	switch {
	case err == nil:
		return result{reason: fmt.Sprintf("generation %d has gone", generation), serving: serving(seen)}
	case ctx.Err() != nil:
		return result{code: codeTimeout, reason: notWithin(err) + ": " + last, serving: serves}
	default:
		return failure(in, err)
	}
}

// stillThere says what a generation does that has not exited, or that it is yet to come;
// empty if it has exited. Numbers grow with every attempt: of those above its own the
// owner knows the last that it has given.
func stillThere(s *crossfade.Status, generation uint64) string {
	given := s.Process.Generation
	switch a, f := s.Attempt, s.LastFailure; {
	case given == generation:
		return name(s.Process) + " owns"
	case a != nil && a.Successor.Generation == generation:
		return name(a.Successor) + " is taking over"
	case a != nil:
		given = max(given, a.Successor.Generation)
	case f != nil:
		given = max(given, f.Successor.Generation)
	}
	if generation > given {
		return fmt.Sprintf("there has been no generation %d yet: the last is %d, and %s owns", generation, given, name(s.Process))
	}
	if i := slices.IndexFunc(s.Draining, func(g crossfade.Generation) bool { return g.Process.Generation == generation }); i >= 0 {
		g := s.Draining[i]
		text := fmt.Sprintf("%s is %v", name(g.Process), g.State)
		if g.Connections >= 0 {
			text += fmt.Sprintf(", with %d connections", g.Connections)
		}
		return text
	}
	return ""
}

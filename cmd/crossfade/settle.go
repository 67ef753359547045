package main

import (
	"context"
	"flag"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file has the requests that the owner fulfils and answers, and nothing else.

var settleCommand = &command{
	name: "settle", args: "[--instance INSTANCE] [--timeout DURATION]",
	summary: "end the probation of the new owner: it stays",
	long: `It tells the owner to stay, and returns when its predecessor cannot come back. Without a
probation there is nothing to do, and that is a success. With --instance nothing is done if
another instance owns: code 8. Code 5 says that the predecessor has the service back, for
it was rolled back before.`,
	example: "crossfade settle --socket /run/app/control.sock",
	codes:   []code{codeDone, codeNoOwner, codeFailed, codeDenied, codeRefused, codeUnknown, codeNobody},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		instance := forInstance(flags)
		limit := timeout(flags, 10*time.Second, "how long to wait for the owner and its predecessor")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := limit.context(ctx)
			defer cancel()
			return request(ctx, in, func(c *crossfade.Controller, ctx context.Context) (*crossfade.Outcome, error) {
				return c.For(*instance).Settle(ctx)
			})
		}
	},
}

// forInstance defines the flag by which a command decides about one deployment alone.
func forInstance(flags *flag.FlagSet) *string {
	return flags.String("instance", "", "only if this `instance` owns; default: whoever does")
}

var cancelCommand = &command{
	name: "cancel", args: "[--instance INSTANCE] [--kill] [--reason REASON] [--timeout DURATION]",
	summary: "abort the attempt to replace the owner that is under way",
	long: `The owner gives the attempt up and goes on; the successor learns the reason and fails. That
there is nothing to cancel is a success. An attempt that is committed cannot be cancelled
any more: code 8 if the successor owns, which crossfade rollback may undo, and code 9 if it
has not answered yet.

With --instance only the attempt of that instance is cancelled, and no later one of it can
begin: after a success it certainly never owns. With --kill a successor that has not exited
3 s later is ended, so that one which is frozen is in nobody's way, also after Commit: the
owner, which stands by then, resumes. Code 5 is for what the owner could not do, such as
while it stops.`,
	example: "crossfade cancel --socket /run/app/control.sock --kill --reason 'hotfix'",
	codes:   []code{codeDone, codeNoOwner, codeFailed, codeDenied, codeRefused, codeUnknown, codeNobody},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		opts := new(crossfade.CancelOptions)
		flags.StringVar(&opts.Instance, "instance", "", "cancel the attempt of this `instance` only, for good")
		flags.BoolVar(&opts.Kill, "kill", false, "end a successor that does not exit by itself")
		flags.StringVar(&opts.Reason, "reason", "", "the `reason`, for the successor and the logs")
		limit := timeout(flags, 10*time.Second, "how long to wait for the owner, and for the end of the successor")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := limit.context(ctx)
			defer cancel()
			return request(ctx, in, func(c *crossfade.Controller, ctx context.Context) (*crossfade.Outcome, error) {
				out, err := c.Cancel(ctx, opts)
				if err == nil && out.Who != nil {
					if more, ok := strings.CutPrefix(out.Text, "cancelled"); ok {
						out.Text = "the attempt of " + name(*out.Who) + " was cancelled" + more
					}
				}
				return out, err
			})
		}
	},
}

// request has the owner do something, and waits for its answer.
func request(ctx context.Context, in *invocation, do func(*crossfade.Controller, context.Context) (*crossfade.Outcome, error)) result {
	c, err := crossfade.Dial(ctx, in.socket)
	if err != nil {
		return failure(in, err)
	}
	out, err := do(c, ctx)
	if err != nil {
		return failure(in, err)
	}
	return result{reason: out.Text, serving: out.Serving, who: out.Who}
}

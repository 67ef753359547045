package main

import (
	"context"
	"flag"
	"time"

	"github.com/crossfade-go/crossfade"
)

var settleCommand = &command{
	name: "settle", args: "[--timeout D]",
	summary: "end the probation of the new owner: it stays",
	long: `It tells the owner to stay, and returns when its predecessor cannot come back. Without a
probation there is nothing to do, and that is a success.`,
	example: "crossfade settle --socket /run/app/control.sock",
	codes:   []code{codeDone, codeNoOwner, codeFailed, codeDenied, codeRefused, codeUnknown, codeNobody},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		limit := timeout(flags, 10*time.Second, "how long to wait for the owner and its predecessor")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := limit.context(ctx)
			defer cancel()
			c, err := crossfade.Dial(ctx, in.socket)
			if err != nil {
				return failure(in, err)
			}
			out, err := c.Settle(ctx)
			if err != nil {
				return failure(in, err)
			}
			return done(out)
		}
	},
}

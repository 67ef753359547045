package main

import (
	"context"
	"flag"
	"time"

	"github.com/crossfade-go/crossfade"
)

var settleCommand = &command{
	name: "settle", args: "[-socket S] [-timeout 10s] [-json]",
	summary: "end the probation of the new owner: it stays",
	long: `Settle tells the owner to stay, and returns when its predecessor cannot come back.
Without a probation there is nothing to do, and that is a success.`,
	example: "crossfade settle -socket /run/app/control.sock",
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		timeout := flags.Duration("timeout", 10*time.Second, "how long to wait for the owner")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := context.WithTimeout(ctx, *timeout)
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

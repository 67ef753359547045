package main

import (
	"context"
	"flag"
)

// activateCommand is between supervise and a program that gets activated sockets:
// LISTEN_PID has to have the number of the process, which nobody knows before there is
// one, and which stays when it becomes another program.
var activateCommand = &command{
	name: "activate", args: "FILE ARGV0 [ARG]...",
	summary: "become a program that gets activated sockets",
	long: `Activate sets LISTEN_PID to the number of its own process and becomes the program FILE. It is
what supervise starts where a service manager has passed it sockets.`,
	example: "crossfade activate /bin/env env",
	codes:   []code{codeNobody},
	local:   true, plain: true, operands: true, hidden: true,
	define: func(*flag.FlagSet) func(context.Context, *invocation) result {
		return func(_ context.Context, in *invocation) result {
			if len(in.args) < 2 {
				return usage("activate: what is to be started?")
			}
			return becomeActivated(in.args)
		}
	},
}

//go:build !unix

package main

import "context"

func supervise(context.Context, *invocation, superviseOptions) result {
	return usage("supervise: this system has no signals and no control sockets that could be handed over")
}

func becomeActivated([]string) result {
	return usage("activate: this system has no processes that become another program")
}

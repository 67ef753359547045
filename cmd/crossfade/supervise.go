package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"
)

// This file is the command line of supervise. What it does is in supervise_unix.go.

var superviseCommand = &command{
	name: "supervise", args: "[--socket S] [--timeout D] [--probation D] [--log FILE] -- APP [ARG...]",
	summary: "stay in the foreground, and start successors on SIGHUP",
	long: `It starts APP and stays as long as any generation of it lives: the one process that a
supervisor or a container watches while the processes that serve come and go. It reaps
what they leave behind, also as process 1. If the service already runs, APP takes over.

SIGHUP starts a successor by the same command line; APP is looked up anew, so that behind a
symbolic link that was switched the new code runs. One that fails changes nothing. A successor that
the service starts itself (crossfade upgrade) is followed too. Without a control socket it makes
one in a directory of its own, and says where.

SIGTERM, SIGINT and SIGQUIT go to every generation, other signals to the one that owns the
service. A program that does not use the library gets them all, SIGHUP too.

It ends when no generation lives any more, with the status of the one that owned last:
128 and the number of the signal if one has ended it.`,
	example: `crossfade supervise --socket /run/app/control.sock -- /opt/app/current/app --listen :8080
kill -HUP PID    # the pid of crossfade supervise: replace the service`,
	codes: []code{codeDone, codeFailed, codeNobody},
	local: true, operands: true, // a socket is made if none is given
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		var o superviseOptions
		flags.StringVar(&o.socket, "socket", "", "the `path` of the service's control socket; default: CROSSFADE_SOCKET, or one of its own")
		o.timeout = timeout(flags, time.Minute, "how long a successor may take until it owns the service")
		flags.Func("probation", "the `duration` for which a predecessor can come back; default: as the service is configured", func(text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 {
				return errors.New("a duration is written like 90s or 1m30s")
			}
			o.probation = &d
			return nil
		})
		flags.StringVar(&o.log, "log", "", "append the service's output to this `file`, which each generation opens anew; default: that of this command")
		return func(ctx context.Context, in *invocation) result {
			if len(in.args) == 0 {
				return usage("supervise: what is to be started? give -- and a command line")
			}
			if o.socket != "" {
				in.socket = o.socket
			}
			// The signals that end other commands are forwarded by this one.
			return supervise(context.WithoutCancel(ctx), in, o)
		}
	},
}

type superviseOptions struct {
	socket    string
	timeout   *patience
	probation *time.Duration // nil: as the service is configured
	log       string
}

// settings are the variables that are set for every generation.
func (o *superviseOptions) settings() []string {
	if o.probation == nil {
		return nil
	}
	return []string{fmt.Sprintf("CROSSFADE_PROBATION=%v", *o.probation)}
}

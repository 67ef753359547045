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
	name: "supervise", args: "[--socket PATH] [--timeout DURATION] [--probation DURATION] [--log FILE] -- COMMAND [ARG]...",
	summary: "stay in the foreground, and follow the service from generation to generation",
	long: `Supervise starts COMMAND and stays as long as any generation of the service lives: the one
process that a supervisor or a container watches, while those that serve come and go.
If the service runs already COMMAND takes over. What the generations leave behind is
reaped, also as process 1.

SIGHUP starts a successor by the same command line. The program is looked up anew, so
that the new code runs behind a symbolic link that was switched. If it fails the owner
goes on. A successor that the service starts itself (crossfade upgrade) is followed too.

SIGTERM, SIGINT and SIGQUIT go to every generation, other signals to the owner. Until
somebody owns, SIGHUP waits for at most --timeout. A program that has not come to own
until then does not use the library, as it seems, and gets SIGHUP like any other signal.

Below systemd, with Type=notify, it speaks for the service: when it is ready, reloads, stops
or does not answer, and in the status who owns. Activated sockets go to the first generation.

It ends with the status of the process that owned last: 128 and the number of the
signal if one has ended it. The exit codes below are for the other cases. Without
--socket and CROSSFADE_SOCKET it makes a socket in a directory of its own.`,
	example: `crossfade supervise --socket /run/app/control.sock -- /opt/app/current/app --listen :8080
kill -HUP PID    # of crossfade supervise: start a successor`,
	codes: []code{codeDone, codeFailed, codeUnknown, codeNobody},
	local: true, operands: true, // a socket is made if none is given
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		var o superviseOptions
		flags.StringVar(&o.socket, "socket", "", "the `path` of the service's control socket; default: CROSSFADE_SOCKET, or one of its own")
		o.timeout = timeout(flags, time.Minute, "how long a successor may take until it owns the service")
		flags.Func("probation", "the `duration` for which a predecessor stands by to resume; default: as the service is configured", func(text string) error {
			d, err := time.ParseDuration(text)
			if err != nil || d < 0 {
				return errors.New("a duration is written like 90s or 1m30s")
			}
			o.probation = &d
			return nil
		})
		flags.StringVar(&o.log, "log", "", "the `file` that the output of the service is appended to; each start opens it anew; default: the output of this command")
		return func(ctx context.Context, in *invocation) result {
			if len(in.args) == 0 {
				return usage("supervise: what is to be started? give it after --")
			}
			if err := checkLog(o.log); err != nil {
				return usage("supervise: %v: see `crossfade help supervise`", err)
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

package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file has the owner upgrade itself.

var upgradeCommand = &command{
	name: "upgrade", args: "[--timeout DURATION] [--wait-settled]",
	summary: "have the owner start its own successor, and wait for the outcome",
	long: `The owner starts its program again, as it was configured, and hands over to it. The
command returns when the successor owns; with --wait-settled, when the predecessor cannot
come back, or has come back. So it is an ExecReload that tells the truth.

SIGINT and SIGTERM cancel the attempt as long as it is not committed. Then the command says
what has become of it.`,
	example: "crossfade upgrade --socket /run/app/control.sock --timeout 90s\n" +
		"ExecReload=/usr/bin/crossfade upgrade --socket /run/app/control.sock",
	codes: []code{codeDone, codeNoOwner, codeBusy, codeFailed, codeDenied, codeRefused, codeUnknown, codeNobody},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		limit := timeout(flags, 0, "how long the attempt may take; 0 for the owner's own limits")
		settled := flags.Bool("wait-settled", false, "wait until the predecessor cannot come back")
		return func(ctx context.Context, in *invocation) result {
			return upgrade(ctx, in, &crossfade.UpgradeOptions{Timeout: limit.limit, WaitSettled: *settled})
		}
	},
}

// upgradeGrace is how much longer than the attempt itself the answer may take: the
// owner ends and reaps a child that has failed, before it says so.
const upgradeGrace = 15 * time.Second

func upgrade(ctx context.Context, in *invocation, opts *crossfade.UpgradeOptions) result {
	began := time.Now()
	r := askToUpgrade(ctx, in, opts)
	if r.fields == nil {
		r.fields = object{"replaced": nil}
	}
	r.fields["took_ms"] = time.Since(began).Milliseconds()
	return r
}

func askToUpgrade(ctx context.Context, in *invocation, opts *crossfade.UpgradeOptions) result {
	// What follows may take long for good reasons: whether the owner answers at all
	// is found out first.
	before := look(ctx, in.socket)
	if before.err != nil {
		return failure(in, before.err)
	}
	c, err := crossfade.Dial(ctx, in.socket)
	if err != nil {
		return failure(in, err)
	}
	asked := ctx
	if opts.Timeout > 0 {
		var cancel context.CancelFunc
		asked, cancel = (&patience{opts.Timeout + upgradeGrace}).context(ctx)
		defer cancel()
	}
	began := time.Now()
	out, err := c.Upgrade(asked, opts)
	switch {
	case err == nil:
		return replaced(before.status.Process, out, time.Since(began))
	case interrupted(ctx):
		return hungUp(in, before.status.Process, opts.WaitSettled)
	default:
		return failure(in, err)
	}
}

// replaced is the result of an upgrade that was done.
func replaced(old crossfade.Process, out *crossfade.Outcome, took time.Duration) result {
	r := result{reason: out.Text, serving: out.Serving, fields: object{"replaced": processObject(old)}}
	if out.Serving != nil {
		r.reason = fmt.Sprintf("%s replaced %s in %d ms", name(*out.Serving), name(old), took.Milliseconds())
	}
	return r
}

// hangUpLimit is how long an attempt may take to end that was cancelled by hanging up.
const hangUpLimit = 10 * time.Second

// hungUp finds out what has become of an attempt after the user has given up.
func hungUp(in *invocation, old crossfade.Process, wantSettled bool) result {
	in.say("hanging up, which cancels the attempt unless it is committed")
	ctx, cancel := (&patience{hangUpLimit}).context(context.Background())
	defer cancel()
	seen, last, err := await(ctx, in.socket, func(s *crossfade.Status) string {
		switch {
		case s.Attempt != nil:
			return fmt.Sprintf("the attempt of %s is still at %s", name(s.Attempt.Successor), s.Attempt.Step)
		case !s.State.Owns():
			return fmt.Sprintf("%s answers and is %v", name(s.Process), s.State)
		}
		return ""
	})
	if err != nil {
		return failure(in, fmt.Errorf("%w: interrupted, and %s", crossfade.ErrOutcomeUnknown, last))
	}
	r := result{serving: serving(seen)}
	switch {
	case seen.Process.Instance == old.Instance:
		r.code, r.reason = codeFailed, fmt.Sprintf("interrupted, and cancelled: %s serves", name(old))
		return r
	case wantSettled && !settled(seen):
		r.code, r.reason = codeUnknown, fmt.Sprintf("interrupted too late: %s has replaced %s, which can come back", name(seen.Process), name(old))
	default:
		r.reason = fmt.Sprintf("interrupted too late: %s has replaced %s", name(seen.Process), name(old))
	}
	r.fields = object{"replaced": processObject(old)}
	return r
}

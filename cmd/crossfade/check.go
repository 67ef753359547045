package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is the rehearsal of a handoff.

var checkCommand = &command{
	name: "check", args: "[--expect NAMES] [--version VERSION] [--epoch N] [--force] [--probation DURATION] [--timeout DURATION]",
	summary: "say what a successor would meet now, and hand nothing over",
	long: `It asks the owner as a successor would, and says what would be handed over, the limits
that the successor would get, and whether a handoff could begin now: with code 4 something
is in the way that passes, with code 8 something that does not. The owner's policy sees
the version, the epoch and the force that the flags give; RLIMIT_NOFILE is the tool's own.

With --expect, what the new version asks for is compared with what would be handed over: a
name that is missing would be opened afresh, one that is not expected would be closed
after the handoff. Both are code 8.`,
	example: "crossfade check --socket /run/app/control.sock --expect http,admin --epoch 7",
	codes:   []code{codeDone, codeNoOwner, codeBusy, codeDenied, codeRefused, codeUnknown},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		c := &check{who: crossfade.Successor{Process: crossfade.Process{
			Instance: fmt.Sprintf("crossfade-check-%d", os.Getpid()), PID: os.Getpid(),
		}}}
		flags.Var(&c.expect, "expect", "the `names` that the new version asks for, separated by commas")
		flags.StringVar(&c.who.BuildVersion, "version", "", "the `version` that the successor would have")
		flags.Uint64Var(&c.who.Epoch, "epoch", 0, "the epoch that the successor would have")
		flags.BoolVar(&c.who.Force, "force", false, "it would take over even from an owner of a higher epoch")
		flags.DurationVar(&c.who.Probation, "probation", 0, "the probation that it would ask for; 0 for the owner's default")
		limit := timeout(flags, 5*time.Second, "how long to wait for the answer")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := limit.context(ctx)
			defer cancel()
			if err := c.ask(ctx, in.socket); err != nil {
				r := failure(in, err)
				r.fields = c.fields()
				return r
			}
			r := c.verdict()
			r.output, r.fields, r.serving = c.render(), c.fields(), serving(c.status)
			return r
		}
	},
}

// check is one rehearsal.
type check struct {
	who    crossfade.Successor
	expect list

	status    *crossfade.Status    // nil until it has been asked for
	rehearsal *crossfade.Rehearsal // nil until it has been asked for
}

func (c *check) ask(ctx context.Context, socket string) (err error) {
	owner, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return err
	}
	if c.status, err = owner.Status(ctx); err != nil {
		return err
	}
	c.rehearsal, err = owner.Check(ctx, &c.who)
	return err
}

// verdict says whether a handoff could begin. What does not pass comes first.
func (c *check) verdict() result {
	refusal := c.rehearsal.Refusal
	missing, unclaimed := c.compare()
	var troubles []string
	if refusal != nil && !passing(refusal) {
		troubles = append(troubles, refusal.Error())
	}
	if len(missing) > 0 {
		troubles = append(troubles, "expected and not there: "+strings.Join(missing, ", "))
	}
	if len(unclaimed) > 0 {
		troubles = append(troubles, "there and not expected: "+strings.Join(unclaimed, ", "))
	}
	switch {
	case len(troubles) > 0:
		r := result{code: codeRefused, reason: strings.Join(troubles, "; ")}
		if refusal != nil && errors.Is(refusal, crossfade.ErrDenied) {
			r.code = codeDenied
		}
		return r
	case refusal != nil:
		return result{code: codeBusy, reason: "not now: " + refusal.Reason, who: refusal.Who}
	default:
		return result{reason: fmt.Sprintf("a handoff from %s could begin now", name(c.status.Process))}
	}
}

// passing reports whether it is a matter of time until a successor is not refused: once
// an owner that is stopping has gone the next one is the first.
func passing(refusal *crossfade.RefusedError) bool {
	return refusal.Passing() || errors.Is(refusal, crossfade.ErrStopping)
}

// compare holds what is expected against what is there.
func (c *check) compare() (missing, unclaimed []string) {
	if c.expect == nil || c.status == nil {
		return nil, nil
	}
	var there []string
	for _, d := range c.status.Descriptors {
		there = append(there, d.Name)
		if !slices.Contains(c.expect, d.Name) {
			unclaimed = append(unclaimed, d.Name)
		}
	}
	for _, name := range c.expect {
		if !slices.Contains(there, name) {
			missing = append(missing, name)
		}
	}
	return missing, unclaimed
}

func (c *check) fields() object {
	missing, unclaimed := c.compare()
	o := object{
		"descriptors": statusObject(c.status)["descriptors"], "missing": append([]string{}, missing...),
		"unclaimed": append([]string{}, unclaimed...), "limits": nil, "refusal": nil,
	}
	r := c.rehearsal
	if r == nil {
		return o
	}
	o["limits"] = object{
		"ready_ms": r.Ready.Milliseconds(), "max_ready_ms": r.MaxReady.Milliseconds(),
		"commit_ms": r.Commit.Milliseconds(), "probation_ms": r.Probation.Milliseconds(),
	}
	if f := r.Refusal; f != nil {
		o["refusal"] = object{
			"reason": f.Reason, "passes": passing(f), "who": process(f.Who), "since": instant(f.Since), "until": instant(f.Until),
		}
	}
	return o
}

func (c *check) render() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	r := c.rehearsal
	fmt.Fprintf(w, "owner\t%s, %v\n", name(c.status.Process), c.status.State)
	fmt.Fprintf(w, "until ready\t%s, with Progress at most %s\n", span(r.Ready), span(r.MaxReady))
	fmt.Fprintf(w, "ready to commit\t%s\n", span(r.Commit))
	probation := "none"
	if r.Probation > 0 {
		probation = span(r.Probation)
	}
	if r.Probation < c.who.Probation {
		probation += ", and " + span(c.who.Probation) + " would be asked for"
	}
	fmt.Fprintf(w, "probation\t%s\n", probation)
	w.Flush()
	renderDescriptors(&b, c.status)
	return b.String()
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file waits until the service stands as a script needs it.

var waitCommand = &command{
	name: "wait", args: "[--instance INSTANCE] [--generation GENERATION] [--version VERSION] [--settled] [--gone GENERATION] [--timeout DURATION]",
	summary: "wait for an owner that is ready, or for more than that",
	long: `It returns when a process owns the service and is ready, and everything holds that the
flags ask for besides; several are all waited for. A socket that does not exist yet is
waited for like everything else. Only what does not pass ends it at once, such as a
missing permission.

With --gone it returns when that older process has exited, as far as the owner knows: one
that has rolled back is in nobody's list, and counts as gone. One that is yet to come does not.`,
	example: "crossfade wait --socket /run/app/control.sock --version v2 --settled --timeout 2m",
	codes:   []code{codeDone, codeTimeout, codeDenied, codeRefused},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		c := new(condition)
		c.define(flags)
		limit := timeout(flags, time.Minute, "how long to wait")
		return func(ctx context.Context, in *invocation) result {
			ctx, cancel := limit.context(ctx)
			defer cancel()
			r := wait(ctx, in, c.unmet)
			if r.code == codeDone && c.gone != 0 {
				r.reason = fmt.Sprintf("generation %d has gone, and %s", c.gone, r.reason)
			}
			return r
		}
	},
}

// wait is the result of waiting for the owner to stand as it should.
func wait(ctx context.Context, in *invocation, unmet func(*crossfade.Status) string) result {
	began := time.Now()
	seen, last, err := await(ctx, in.socket, unmet)
	r := result{}
	switch {
	case err == nil:
		r.reason = name(seen.Process) + " owns"
	case ctx.Err() != nil:
		if last == unanswered {
			last = whyUnanswered(in)
		}
		r.code, r.reason = codeTimeout, notWithin(err)+": "+last
	default:
		r = failure(in, err)
	}
	if seen != nil {
		r.serving = serving(seen)
	}
	r.fields = object{"took_ms": time.Since(began).Milliseconds()}
	return r
}

// unanswered is what await has seen if it has seen nothing.
const unanswered = "nobody has answered"

// whyUnanswered looks why await has seen nothing: whoever is frozen tells of no change.
func whyUnanswered(in *invocation) string {
	switch err := look(context.Background(), in.socket).err; {
	case err == nil: // there was too little time
		return unanswered
	case silent(err):
		return silence(in, errors.New("no answer"))
	default:
		return sentence(err)
	}
}

// await returns when the owner stands as it should, or with an error. unmet says in
// one sentence why it does not, and is empty when it does. seen is what was seen last,
// nil if nobody answered, and last is the same in one sentence.
func await(ctx context.Context, socket string, unmet func(*crossfade.Status) string) (seen *crossfade.Status, last string, err error) {
	last = unanswered
	err = eachSight(ctx, socket, func(s sight) (enough bool) {
		switch {
		case s.status != nil:
			last = unmet(s.status)
		case s.err != nil:
			last = sentence(s.err)
		default: // the next sight tells who owns now
			return false
		}
		seen = s.status
		return last == ""
	})
	return seen, last, err
}

// notWithin says why waiting has ended without what was waited for.
func notWithin(err error) string {
	if late := new(impatienceError); errors.As(err, &late) {
		return "not within " + span(late.limit)
	}
	return "not waiting any longer: " + sentence(err)
}

// condition is what is waited for.
type condition struct {
	instance   string
	generation uint64
	version    string
	settled    bool
	gone       uint64
}

func (c *condition) define(flags *flag.FlagSet) {
	flags.StringVar(&c.instance, "instance", "", "wait until this `instance` owns")
	flags.Uint64Var(&c.generation, "generation", 0, "wait until this `generation` owns, or a later one")
	flags.StringVar(&c.version, "version", "", "wait until a process of this `version` owns")
	flags.BoolVar(&c.settled, "settled", false, "wait until no predecessor can come back")
	flags.Uint64Var(&c.gone, "gone", 0, "wait until the older process of this `generation` has exited")
}

// unmet says what is missing, empty for nothing.
func (c *condition) unmet(s *crossfade.Status) string {
	who := name(s.Process)
	switch {
	case !s.State.Owns():
		return fmt.Sprintf("%s answers and is %v", who, s.State)
	case !s.Ready:
		return who + " owns and is not ready yet"
	case c.instance != "" && s.Process.Instance != c.instance:
		return fmt.Sprintf("%s owns, whose instance is %s", who, s.Process.Instance)
	case s.Process.Generation < c.generation:
		return who + " owns"
	case c.version != "" && s.Process.BuildVersion != c.version:
		return who + " owns"
	case c.settled && !settled(s):
		return who + " owns and is not settled: its predecessor can come back"
	case c.gone != 0:
		return stillThere(s, c.gone)
	default:
		return ""
	}
}

// settled reports whether no predecessor of the owner can come back.
func settled(s *crossfade.Status) bool {
	return s.Probation == nil && !slices.ContainsFunc(s.Draining, func(g crossfade.Generation) bool {
		return g.State == crossfade.StateProbation
	})
}

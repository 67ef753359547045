package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file gives the service back to the predecessor.

var rollbackCommand = &command{
	name: "rollback", args: "[--instance INSTANCE | --kill] [--reason REASON] [--timeout DURATION]",
	summary: "have an owner on probation give the service back",
	long: `The owner on probation gives the service back, and the command returns when its predecessor
owns again. Without a predecessor that could, it is too late: code 8, and nothing changes.
If the owner tries and cannot let go it goes on: code 11. With --instance nothing is done if
another instance owns: code 8, too.

With --kill an owner that does not answer anything within the timeout is ended: then its
predecessor, if one stands by, owns at once. First the command says whom it ends, as the
kernel names the process that listens on the socket. A process that answers is never
ended, whoever it is. Whether there is a predecessor that stands by only the silent owner
could say: if there is none, its end is the end of the service, with code 10. For the case
that a successor is frozen before it owns, see crossfade cancel --kill.`,
	example: "crossfade rollback --socket /run/app/control.sock --reason 'error rate' --kill",
	codes:   []code{codeDone, codeNoOwner, codeDenied, codeRefused, codeUnknown, codeNobody, codeUnhealthy},
	define: func(flags *flag.FlagSet) func(context.Context, *invocation) result {
		instance := forInstance(flags)
		kill := flags.Bool("kill", false, "end an owner that does not answer")
		reason := flags.String("reason", "asked for by crossfade rollback", "the `reason`, for the logs of both")
		limit := timeout(flags, 10*time.Second, "how long to wait for the owner; after --kill, as long again for the predecessor")
		return func(ctx context.Context, in *invocation) result {
			if *kill && *instance != "" {
				return usage("rollback: an owner that does not answer cannot say which instance it is: give --instance or --kill")
			}
			r := rollback(ctx, in, *instance, *reason, *kill, limit)
			if _, ok := r.fields["killed"]; !ok {
				r.fields = object{"killed": nil}
			}
			return r
		}
	},
}

func rollback(ctx context.Context, in *invocation, instance, reason string, kill bool, limit *patience) result {
	began := time.Now()
	limited, cancel := limit.context(ctx)
	defer cancel()
	c, err := crossfade.Dial(limited, in.socket)
	if err != nil {
		return failure(in, err)
	}
	out, err := c.For(instance).Rollback(limited, reason)
	switch {
	case err == nil:
		r := result{reason: out.Text, serving: out.Serving}
		if out.Serving != nil {
			r.reason = fmt.Sprintf("rolled back: %s owns again, after %d ms", name(*out.Serving), time.Since(began).Milliseconds())
		}
		return r
	case kill && impatient(err) && ctx.Err() == nil:
		return killOwner(ctx, in, limit)
	}
	r := failure(in, err)
	if r.code == codeFailed { // the one that serves is the one that was to be replaced
		r.code = codeUnhealthy
	}
	return r
}

// killOwner ends the process that listens on the socket, unless anybody answers there
// after all, and waits until somebody else owns.
func killOwner(ctx context.Context, in *invocation, limit *patience) result {
	peer, r := silentOwner(ctx, in)
	if peer == nil {
		return r
	}
	defer peer.Close()
	in.say("the owner (%v) does not answer: ending it; whether a predecessor stands by that can take over, only it could say", peer)
	if err := peer.Kill(); err != nil {
		return notKilled(err, peer)
	}
	killed := object{"killed": object{"pid": peer.PID, "uid": peer.UID}}
	ctx, cancel := limit.context(ctx)
	defer cancel()
	select {
	case <-peer.Exited():
	case <-ctx.Done():
		return result{code: codeUnknown, reason: fmt.Sprintf("%v was killed and has not exited yet", peer), fields: killed}
	}
	r = takenOver(ctx, in)
	r.fields = killed
	return r
}

// silentOwner returns the process that listens on the socket and does not answer; or
// nil, and what there is to say, if somebody does. Close the peer.
//
// The peer is taken before the last look: what a connection names as its peer has
// called listen(2) last, which an owner does before its predecessor can hear that it
// has been succeeded. So a predecessor which is named still answers.
func silentOwner(ctx context.Context, in *invocation) (*crossfade.Peer, result) {
	asking, cancel := context.WithTimeoutCause(ctx, lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	var peer *crossfade.Peer
	c, err := crossfade.Dial(asking, in.socket)
	if err == nil {
		peer, err = c.Peer(asking)
	}
	if err != nil {
		return nil, failure(in, err)
	}
	s := look(ctx, in.socket)
	if s.err != nil && impatient(s.err) && ctx.Err() == nil {
		return peer, result{}
	}
	_ = peer.Close()
	if s.err != nil {
		return nil, failure(in, s.err)
	}
	return nil, result{
		code: codeUnknown, serving: s.owner(),
		reason: fmt.Sprintf("%s answers, and is %v: it is not ended; the rollback may still happen", name(s.status.Process), s.status.State),
	}
}

func notKilled(err error, peer *crossfade.Peer) result {
	r := result{code: codeUnknown, reason: fmt.Sprintf("%v cannot be ended: %v", peer, err)}
	switch {
	case errors.Is(err, fs.ErrPermission):
		r.code = codeDenied
	case errors.Is(err, errors.ErrUnsupported) && peer.PID != 0:
		r.reason += fmt.Sprintf(": make sure that the pid is still its own, and kill -KILL %d", peer.PID)
	}
	return r
}

// takenOver returns when somebody owns after the end of an owner, or when nobody will.
func takenOver(ctx context.Context, in *invocation) result {
	var r result
	last := "nobody has answered"
	err := eachSight(ctx, in.socket, func(s sight) (enough bool) {
		switch owner := s.owner(); {
		case owner != nil:
			r = result{reason: "ended: " + name(*owner) + " owns now", serving: owner}
			return true
		case errors.Is(s.err, crossfade.ErrNoOwner):
			r = result{code: codeNobody, reason: "ended, and nobody took over: nobody owns the socket"}
			return true
		case s.err != nil:
			last = sentence(s.err)
		}
		return false
	})
	if err != nil {
		return result{code: codeUnknown, reason: fmt.Sprintf("ended, and who owns now is not known: %s: %s", notWithin(err), last)}
	}
	return r
}

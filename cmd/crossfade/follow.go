package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file follows a service from owner to owner.

const (
	// lookTimeout is how long an owner may take to say how it stands.
	lookTimeout = 2 * time.Second
	// lookPause lies between two looks for an owner where there is none: nothing
	// tells that a path comes into being.
	lookPause = 50 * time.Millisecond
)

// sight is what a follower has seen: an event of the process that serves the control
// socket, or why nobody could be asked.
type sight struct {
	event *crossfade.Event // nil if err is not
	err   error
}

// errSeen ends a follow that has seen enough.
var errSeen = errors.New("seen")

// follow calls each for what happens on a control socket: for the present state, for
// each change, and again for that of whoever comes to own then. While there is
// nobody, each gets the reason, many times. It ends with ctx, whose cause it returns;
// with nil if each returns errSeen; or with an error that does not pass, such as one
// of permission. What each returns else counts like the loss of the owner.
func follow(ctx context.Context, socket string, each func(sight) error) error {
	for {
		err := followOne(ctx, socket, each)
		switch {
		case errors.Is(err, errSeen):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !passes(err):
			return err
		case err != nil:
			if err := each(sight{err: err}); errors.Is(err, errSeen) {
				return nil
			}
		}
		pause(ctx, lookPause)
	}
}

// followOne follows the process that serves the socket now, until that one has
// nothing to do with it any more.
func followOne(ctx context.Context, socket string, each func(sight) error) error {
	dial, cancel := context.WithTimeoutCause(ctx, lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	c, err := crossfade.Dial(dial, socket)
	if err != nil {
		return err
	}
	return c.Watch(ctx, func(e crossfade.Event) error { return each(sight{event: &e}) })
}

// passes reports whether what stands in the way of asking the owner can be another
// thing a moment later.
func passes(err error) bool {
	if codeOf(err) == codeDenied {
		return false
	}
	for _, sentinel := range []error{
		crossfade.ErrNoOwner, crossfade.ErrOwnerUnknown, crossfade.ErrLost, crossfade.ErrMoved, context.DeadlineExceeded,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}

// pause waits, and reports whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// look asks how whoever serves the socket stands, and does not wait long for it.
func look(ctx context.Context, socket string) (*crossfade.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	c, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return c.Status(ctx)
}

// whoServes asks for the owner, and waits a moment for one that is just about to
// own. Without one the error matches ErrNoOwner.
func whoServes(ctx context.Context, socket string) (*crossfade.Process, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	for {
		s, err := look(ctx, socket)
		switch {
		case err == nil && s.State.Owns():
			return &s.Process, nil
		case err == nil:
			err = fmt.Errorf("%s answers and is %v", name(s.Process), s.State)
		case !errors.Is(err, crossfade.ErrLost) && !errors.Is(err, crossfade.ErrMoved):
			return nil, err
		}
		if !pause(ctx, lookPause) {
			return nil, err
		}
	}
}

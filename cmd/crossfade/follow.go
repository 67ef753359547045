package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file tells what becomes of a service, whoever owns it.

// sight is what was seen of a service.
type sight struct {
	at     time.Time         // when the look began
	status *crossfade.Status // of who has answered; nil if nobody has
	event  *crossfade.Event  // the change that led to the look, or nil
	err    error             // why there is no status; nil with an event
}

// owner returns who owns, nil if that was not seen.
func (s sight) owner() *crossfade.Process {
	if s.status == nil || !s.status.State.Owns() {
		return nil
	}
	return &s.status.Process
}

const (
	// lookTimeout is how long an owner may take to say how it stands.
	lookTimeout = 2 * time.Second
	// lookPause is the time between two looks where nothing tells of a change: for
	// a socket to appear.
	lookPause = 50 * time.Millisecond
)

// look asks whoever serves the socket how it stands.
func look(ctx context.Context, socket string) sight {
	s := sight{at: time.Now()}
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	var c *crossfade.Controller
	if c, s.err = crossfade.Dial(ctx, socket); s.err == nil {
		s.status, s.err = c.Status(ctx)
	}
	return s
}

// follow sends what it sees of a service, from one owner to the next, until ctx ends:
// a sight for each change that an owner tells, and one whenever it had to be looked
// for. After the first one of an owner its predecessor accepts nothing any more.
func follow(ctx context.Context, socket string, sights chan<- sight) {
	for ctx.Err() == nil {
		if err := followOwner(ctx, socket, sights); err == nil {
			continue // it has told that it has nothing to do with the socket any more
		}
		_ = send(ctx, sights, look(ctx, socket))
		pause(ctx, lookPause)
	}
}

// eachSight calls each for what it sees of a service, until that one has seen enough:
// then it returns nil. Otherwise it ends with the cause of ctx, or with an error that
// does not pass, as that of a missing permission.
func eachSight(ctx context.Context, socket string, each func(sight) (enough bool)) error {
	following, stop := context.WithCancel(ctx)
	sights := make(chan sight)
	var follower sync.WaitGroup
	follower.Go(func() { follow(following, socket, sights) })
	defer follower.Wait()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-sights:
			switch {
			case s.err != nil && ctx.Err() != nil: // which is why there is an error
			case s.err != nil && !passes(s.err):
				return s.err
			case each(s):
				return nil
			}
		}
	}
}

// followOwner follows one owner. An error says that it has not told its end.
func followOwner(ctx context.Context, socket string, sights chan<- sight) error {
	dialCtx, cancel := context.WithTimeout(ctx, lookTimeout)
	c, err := crossfade.Dial(dialCtx, socket)
	cancel()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	events := make(chan *crossfade.Event)
	var watching sync.WaitGroup
	watching.Go(func() {
		defer close(events)
		err = c.Watch(ctx, func(e crossfade.Event) error { return send(ctx, events, &e) })
	})
	defer watching.Wait()
	defer stop()
	var unseen *crossfade.Event // after which nobody has answered
	var again <-chan time.Time  // to look once more
	for {
		var event *crossfade.Event
		select {
		case event = <-events:
			if event == nil {
				return err // of Watch
			}
			unseen = event
		case <-again:
		}
		again = nil
		s := sight{at: time.Now()}
		if unseen.State.Owns() { // else the event says it all, and who answers may be the next one
			s = look(ctx, socket)
		}
		if s.status == nil || s.status.Process.Instance != unseen.Process.Instance {
			// Nobody answers, or another one: the next one already, which is for the
			// time when this one has told its end, or the last one still. This one may
			// have no change to tell a second time.
			s.status, s.err = nil, nil
			if unseen.State.Owns() {
				again = time.After(lookPause)
			}
		}
		if s.event = event; s.event == nil && s.status == nil {
			continue
		}
		if err := send(ctx, sights, s); err != nil {
			return err
		}
	}
}

func send[T any](ctx context.Context, to chan<- T, what T) error {
	select {
	case to <- what:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pause waits where nothing tells of a change, and reports whether ctx has not ended.
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

// whoServes asks for the owner, and waits a moment for one that is just about to
// own. Without one the error matches ErrNoOwner.
func whoServes(socket string) (*crossfade.Process, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	for {
		s := look(ctx, socket)
		if owner := s.owner(); owner != nil {
			return owner, nil
		}
		switch {
		case s.status != nil:
			s.err = fmt.Errorf("%s answers and is %v", name(s.status.Process), s.status.State)
		case !passes(s.err) || codeOf(s.err) == codeNoOwner:
			return nil, s.err
		}
		if !pause(ctx, lookPause) {
			return nil, s.err
		}
	}
}

//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is how supervise learns who owns the service, and which process that is.

// sighting is a look at the service that also tells which process the owner is.
type sighting struct {
	sight

	located bool    // the rest is set, as far as it can be: of an owner that was not known
	pid     int     // as the kernel says; 0 if it has no number here
	handle  *handle // nil where there are none
}

func (v *sighting) release() {
	if v.handle != nil {
		v.handle.close()
		v.handle = nil
	}
}

// nobody reports whether certainly nobody owns.
func (v *sighting) nobody() bool { return errors.Is(v.err, crossfade.ErrNoOwner) }

// spot looks who owns, and which process that is.
func spot(ctx context.Context, socket string) *sighting {
	v := &sighting{sight: look(ctx, socket)}
	v.locate(ctx, socket, "")
	return v
}

// locate finds the process of the owner, unless its instance is the known one. The owner
// has called listen(2) since it owns, so that the kernel names it to whoever connects.
// That the handle is of the same process is certain if that one answers once more: until
// then its number was its own.
func (v *sighting) locate(ctx context.Context, socket, known string) {
	for owner := v.owner(); owner != nil && !v.located && owner.Instance != known; owner = v.owner() {
		pid, err := listener(ctx, socket)
		if err != nil {
			v.status, v.err = nil, err
			return
		}
		if pid == 0 && !pidNamespaces {
			pid = owner.PID
		}
		var h *handle // nil where there are none
		if pid != 0 {
			h, _ = openHandle(pid)
		}
		again := look(ctx, socket)
		v.status, v.err = again.status, again.err
		if now := v.owner(); now != nil && now.Instance == owner.Instance {
			v.located, v.pid, v.handle = true, pid, h
		} else if h != nil {
			h.close()
		}
	}
}

// listener returns the number of the process that listens on the socket.
func listener(ctx context.Context, socket string) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, &impatienceError{lookTimeout})
	defer cancel()
	c, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return 0, err
	}
	peer, err := c.Peer(ctx)
	if err != nil {
		return 0, err
	}
	return peer.PID, peer.Close()
}

// lastLook bounds the time between two looks where nobody owns: a program that does not
// use the library is never seen to.
const lastLook = time.Second

// watch tells the loop of every change, until the supervision ends.
func (s *supervisor) watch() {
	sights := make(chan sight)
	s.wg.Go(func() { follow(s.ctx, s.in.socket, sights) })
	known, wait := "", lookPause
	for {
		var v *sighting
		select {
		case seen := <-sights:
			v = &sighting{sight: seen}
		case <-s.ctx.Done():
			return
		}
		v.locate(s.ctx, s.in.socket, known)
		for v.event != nil && v.err != nil && !v.nobody() && pause(s.ctx, lookPause) {
			event := v.event // there may be no other for a long time
			v = spot(s.ctx, s.in.socket)
			v.event = event
		}
		known = ""
		if owner := v.owner(); owner != nil {
			known, wait = owner.Instance, lookPause
		}
		s.post(func() { s.changed(v) })
		if v.err != nil {
			s.rest(wait)
			wait = min(2*wait, lastLook)
		}
	}
}

// rest waits, unless there is a hurry.
func (s *supervisor) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.hurry:
	case <-s.ctx.Done():
	}
}

// changed takes in what has changed, or why that cannot be told.
func (s *supervisor) changed(v *sighting) {
	if v.nobody() {
		s.told = v.at
	}
	if e := v.event; e != nil && e.Attempt != nil && (e.State == crossfade.StateProbation || e.State == crossfade.StateDraining) {
		s.handedOver(e.Attempt.Successor)
	}
	s.see(v)
	switch {
	case v.event != nil && v.event.Failure != nil:
		f := v.event.Failure
		if !s.hasStarted(f.Successor) { // of those failed says more
			s.failure = fmt.Sprintf("%s has failed to take over: %s", name(f.Successor), f.Reason)
		}
		s.fails(f)
	case v.err == nil || v.nobody():
		s.trouble = ""
	case (errors.Is(v.err, crossfade.ErrOwnerUnknown) || !passes(v.err)) && sentence(v.err) != s.trouble:
		s.trouble = sentence(v.err)
		s.in.say("who owns the service cannot be told: %s", s.trouble)
	}
}

// handedOver notes that a process has owned, as its predecessor says: it may have ended
// before anybody saw it.
func (s *supervisor) handedOver(p crossfade.Process) {
	for _, g := range slices.Concat(s.live, s.ended) {
		if g.pid == p.PID && (g.instance == p.Instance || g.process.Instance == p.Instance) {
			g.process = p
			if s.last == nil || s.last.process.Generation < p.Generation {
				s.last = g
			}
		}
	}
}

package crossfade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/statefile"
)

// MaxStateSize is the most bytes that a state may have, 1 GiB.
const MaxStateSize = statefile.MaxSize

// Moment says when a state is written.
type Moment = handoff.Moment

// The moments of [Upgrader.OfferState].
const (
	// AtOffer: when a successor has come, while this process serves. The
	// successor can read the state while it initialises.
	AtOffer = handoff.AtOffer
	// AtCommit: between the successor's Ready and Commit, after Suspend. The
	// successor can read the state when its Ready has returned.
	AtCommit = handoff.AtCommit
)

// OfferState has write called for each successor, to write what that one shall
// find under the name by [Upgrader.TakeState]: bytes, at most MaxStateSize, which
// travel as a descriptor and are not copied on the way. A state is not handed on:
// a successor that wants its own successor to have it offers its own.
//
// write runs in a goroutine of its own; never twice at the same time, and states
// one after the other in the order in which they were first offered. ctx ends
// when three quarters of ReadyTimeout (AtOffer), or of what Suspend has left of
// CommitTimeout (AtCommit), are over, or when the attempt has failed meanwhile.
// A write that returns an error, panics, writes too much or does not return in
// time makes the attempt fail, for a reason that both sides are told, and changes
// nothing else. One that goes on after the end of ctx is waited for a moment and
// then left behind; it can write no more, and the next attempt waits for it. w
// is not buffered. write must not call Stop; one that runs AtCommit must not
// change the registry, which waits for it.
//
// The name is one of the registry, see [Fds]. A second call for it replaces what
// the first one said, and a nil write takes it back, both from the next writing
// on. What is first offered while a successor initialises is written AtCommit.
//
// On Linux a state is a memfd, and sealed, so that nobody can change it any more.
// It counts as memory of the control group of this process until this attempt,
// its probation included, has ended and the successor has closed it. Where they
// are forbidden there are no states. On other systems a state is an unlinked file
// in [os.TempDir].
//
// Errors: ErrNameTaken if a descriptor has the name; ErrHandoffInProgress as for
// [Fds]; once this process is out, [Upgrader.Err].
func (u *Upgrader) OfferState(name string, when Moment, write func(ctx context.Context, w io.Writer) error) error {
	if err := u.fds.offerState(name, when, write); err != nil {
		return fmt.Errorf("crossfade: state %q: %w", name, err)
	}
	return nil
}

// TakeState returns the state of that name that the predecessor has written: a
// file to read or to map, at its beginning. It is the caller's, and frees the
// memory when it is closed; a state can be taken once.
//
// A state of the moment AtOffer can be taken until Ready returns, and is closed
// then. One of the moment AtCommit can be taken when Ready has returned, until
// this process is out, and takes memory until then. There is none if the
// predecessor has died before it could commit: what it had written might be old
// by then.
//
// Errors: ErrNotInherited if there is no such state, or not yet; ErrNameTaken
// if it was taken before.
func (u *Upgrader) TakeState(name string) (*os.File, error) {
	file, err := u.fds.takeState(name, u.HasPredecessor())
	if err != nil {
		return nil, fmt.Errorf("crossfade: state %q: %w", name, err)
	}
	return file, nil
}

// states are the states in the registry, under its lock.
type states struct {
	offered  []*stateOffer                 // in the order in which they were first offered
	written  []handoff.Descriptor          // for the attempt under way: open until it has ended
	received map[string]handoff.Descriptor // by the predecessor, until they are taken
	taken    map[string]bool               // names
	owned    bool                          // Ready has returned, or is about to
}

// stateOffer is a state that the program wants its successors to have. It never
// changes; another one replaces it.
type stateOffer struct {
	name  string
	when  Moment
	write func(context.Context, io.Writer) error
	// running has room for one value, which is in it while write runs.
	running chan struct{}
}

func (f *Fds) offerState(name string, when Moment, write func(context.Context, io.Writer) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	if when != AtOffer && when != AtCommit {
		return fmt.Errorf("it cannot be written at %v", when)
	}
	unlock, err := f.change(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	if e := f.byName[name]; e != nil && e.origin != handoff.OriginUnclaimed {
		return fmt.Errorf("%w: %s %s %s", ErrNameTaken, e.Kind, e.Network, e.Address)
	}
	o := &stateOffer{name: name, when: when, write: write, running: make(chan struct{}, 1)}
	i := slices.IndexFunc(f.states.offered, func(o *stateOffer) bool { return o.name == name })
	switch {
	case write == nil && i >= 0:
		f.states.offered = slices.Delete(f.states.offered, i, i+1)
	case write == nil: // there is nothing to take back
	case i >= 0:
		f.states.offered[i] = o
	default:
		f.states.offered = append(f.states.offered, o)
	}
	return nil
}

// offers reports whether the program offers a state of that name.
func (s *states) offers(name string) bool {
	return slices.ContainsFunc(s.offered, func(o *stateOffer) bool { return o.name == name })
}

// list lists the states for a status.
func (s *states) list() []handoff.DescriptorStatus {
	var all []handoff.DescriptorStatus
	for _, o := range s.offered {
		all = append(all, handoff.DescriptorStatus{Name: o.name, Kind: handoff.KindState, Origin: handoff.OriginAdded})
	}
	for name := range s.received {
		all = append(all, handoff.DescriptorStatus{Name: name, Kind: handoff.KindState, Origin: handoff.OriginUnclaimed})
	}
	return all
}

// toWrite lists what is to be written at a moment of the attempt under way: at
// the end of it also what was offered since it began.
func (f *Fds) toWrite(when Moment) []*stateOffer {
	f.mu.Lock()
	defer f.mu.Unlock()
	var offers []*stateOffer
	for _, o := range f.states.offered {
		written := slices.ContainsFunc(f.states.written, func(d handoff.Descriptor) bool { return d.Name == o.name })
		if !written && (when == AtCommit || o.when == when) {
			offers = append(offers, o)
		}
	}
	return offers
}

// writeStates has states written for the attempt under way, within three
// quarters of the time that ctx leaves: the rest is for who waits for them. The
// descriptors stay open until thaw, resume, retire or release.
func (f *Fds) writeStates(ctx context.Context, when Moment, offers []*stateOffer) ([]handoff.Descriptor, error) {
	deadline, _ := ctx.Deadline() // every step of an attempt has one
	left := time.Until(deadline)
	limit := left - left/4
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		&handoff.TimeoutError{For: "end of writing", Limit: limit.Round(time.Millisecond)})
	defer cancel()
	ds := make([]handoff.Descriptor, 0, len(offers))
	for _, o := range offers {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		d, err := o.make(ctx, left/8, f.log)
		if err != nil {
			return nil, fmt.Errorf("state %q, written %v: %w", o.name, when, err)
		}
		d.Moment = when
		f.mu.Lock()
		f.lastID++
		d.ID = f.lastID
		f.states.written = append(f.states.written, d)
		f.mu.Unlock()
		ds = append(ds, d)
	}
	return ds, nil
}

// make has the state written. grace is how long a writer may take to return
// when ctx has ended.
func (o *stateOffer) make(ctx context.Context, grace time.Duration, log *slog.Logger) (d handoff.Descriptor, err error) {
	w, err := statefile.Create(o.name)
	if err != nil {
		return d, err
	}
	if err := o.call(ctx, grace, w, log); err != nil {
		w.Abandon()
		return d, err
	}
	fd, err := w.Seal()
	if err != nil {
		return d, err
	}
	d = handoff.Descriptor{Name: o.name, Kind: handoff.KindState, FD: fd}
	if d.Identity, err = fd.Identify(); err != nil {
		return d, errors.Join(err, fd.Close())
	}
	return d, nil
}

// call calls the program's function. One that does not return is left behind.
func (o *stateOffer) call(ctx context.Context, grace time.Duration, w io.Writer, log *slog.Logger) error {
	select {
	case o.running <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("its writer has not returned from an earlier call: %w", context.Cause(ctx))
	}
	result := make(chan error, 1) // room for the one result, for which nobody may wait any more
	go func() {
		err := errors.New("its writer has ended its goroutine") // by runtime.Goexit
		defer func() {
			if v := recover(); v != nil {
				log.Error("the writer of a state panicked", "name", o.name, "panic", v, "stack", string(debug.Stack()))
				err = fmt.Errorf("its writer panicked: %v", v)
			}
			<-o.running
			result <- err
		}()
		err = o.write(ctx, w)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-result:
		if err != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return err
	case <-timer.C:
		return fmt.Errorf("its writer does not return: %w", context.Cause(ctx))
	}
}

// closeWritten lets go of what was written for an attempt that has ended.
func (s *states) closeWritten() {
	closeDescriptors(s.written)
	s.written = nil
}

// closeReceived lets go of what the predecessor has written and nobody has taken.
func (s *states) closeReceived() {
	for name := range s.received {
		s.closeOne(name)
	}
}

func (s *states) closeOne(name string) {
	_ = s.received[name].FD.Close()
	delete(s.received, name)
}

// own ends the time for what was written AtOffer, and begins that for what was
// written AtCommit.
func (s *states) own(log *slog.Logger) {
	s.owned = true
	for name, d := range s.received {
		if d.Moment == AtOffer {
			log.Info("closing a state that nobody has taken", "name", name)
			s.closeOne(name)
		}
	}
}

// receiveStateLocked takes a state of the predecessor in. It takes ownership of
// its descriptor unless it returns an error.
func (f *Fds) receiveStateLocked(d handoff.Descriptor, late bool) error {
	// By what it came with, and not by what the manifest says of it, which may be
	// a moment that only a later version knows.
	d.Moment = AtOffer
	if late {
		d.Moment = AtCommit
	}
	sealed, err := statefile.Check(d.FD)
	if err != nil {
		return err
	}
	if !sealed {
		f.log.Warn("the predecessor could not seal a state: it can change while it is read", "name", d.Name)
	}
	if _, twice := f.states.received[d.Name]; twice || f.states.taken[d.Name] {
		return errors.New("the manifest has the name twice")
	}
	if f.states.received == nil {
		f.states.received, f.states.taken = make(map[string]handoff.Descriptor), make(map[string]bool)
	}
	f.states.received[d.Name] = d
	return nil
}

// forgetLateStates drops what was written AtCommit by a predecessor that has died
// before Commit: it may have gone on and changed what it had written.
func (f *Fds) forgetLateStates() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, d := range f.states.received {
		if d.Moment == AtCommit {
			f.log.Warn("dropping a state that may be old: the predecessor has died before Commit", "name", name)
			f.states.closeOne(name)
		}
	}
}

func (f *Fds) takeState(name string, successor bool) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.states.received[name]
	switch {
	case f.out != nil:
		return nil, fmt.Errorf("the registry is closed: %w", f.out)
	case f.states.taken[name]:
		return nil, fmt.Errorf("%w: the state was taken before", ErrNameTaken)
	case successor && !f.states.owned && d.Moment != AtOffer:
		return nil, fmt.Errorf("%w yet: what is written %v can be taken when Ready has returned", ErrNotInherited, AtCommit)
	case !ok:
		return nil, ErrNotInherited
	}
	file, err := statefile.Open(d.FD, name)
	if err != nil {
		return nil, err
	}
	_ = d.FD.Close() // the file is a second one
	delete(f.states.received, name)
	f.states.taken[name] = true
	return file, nil
}

package crossfade

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// The names and numbers of the library's own descriptors in a manifest. The
// registry counts its own from 1 on.
const (
	controlName = reservedPrefix + "control"
	lockName    = reservedPrefix + "lock"

	controlID = 1<<63 + iota
	lockID
)

// controlCheckInterval is how often an owner looks whether its control path
// still leads to it.
const controlCheckInterval = time.Minute

// service is the Upgrader as the predecessor's machine sees it.
type service struct{ u *Upgrader }

func (s service) Offer(context.Context) (*handoff.Offer, error) {
	offer := new(handoff.Offer)
	if claim := s.u.currentClaim(); claim != nil {
		control, ds, err := describeClaim(claim)
		if err != nil {
			return nil, err
		}
		offer.Control, offer.Descriptors = control, ds
	}
	self := s.u.cfg.process()
	self.Generation = s.u.server.Generation()
	alive, err := s.u.older.Offer(self, s.u.cfg.DrainTimeout)
	if err != nil {
		return nil, err
	}
	offer.Descriptors = slices.Concat(offer.Descriptors, alive, s.u.fds.offer())
	if states := s.u.fds.toWrite(AtOffer); len(states) > 0 {
		offer.Pending = len(states)
		offer.Complete = func(ctx context.Context) ([]handoff.Descriptor, error) {
			return s.u.fds.writeStates(ctx, AtOffer, states)
		}
	}
	return offer, nil
}

// describeClaim puts the control path into a manifest.
func describeClaim(claim *rendezvous.Claim) (*handoff.Control, []handoff.Descriptor, error) {
	id := claim.Identity()
	listener := handoff.Descriptor{
		ID: controlID, Name: controlName, Kind: handoff.KindControl, Network: "unix", Address: id.Path, FD: claim.Listener(),
	}
	lock := handoff.Descriptor{ID: lockID, Name: lockName, Kind: handoff.KindLock, FD: claim.Lock()}
	var err, err2 error
	listener.Identity, err = listener.FD.Identify()
	lock.Identity, err2 = lock.FD.Identify()
	control := &handoff.Control{Path: id.Path, Bound: id.Bound, Dev: id.Dev, Ino: id.Ino, Backlog: id.Backlog}
	return control, []handoff.Descriptor{listener, lock}, errors.Join(err, err2)
}

func (s service) Freeze(ctx context.Context) (*handoff.Changes, error) {
	changes, err := s.u.standStill(ctx)
	if err != nil {
		return nil, err
	}
	states, err := s.u.fds.writeStates(ctx, AtCommit, s.u.fds.toWrite(AtCommit))
	changes.Added = append(changes.Added, states...)
	return changes, err
}

func (s service) Thaw() {
	s.u.fds.thaw()
	s.u.older.EndOffer()
	s.u.accept()
}

func (s service) Pause(except []uint64) { s.u.fds.pause(except) }

func (s service) Resume() {
	s.u.fds.thaw()
	s.u.older.EndOffer()
	s.u.serveControl()
	s.u.writePIDFile()
	s.u.accept()
}

func (s service) Relieve(successor handoff.Process, pidfdID uint64) *handoff.ServiceManager {
	s.u.unit.Out()
	s.u.letGo(ErrRetired, true)
	return s.u.unit.Relieve(successor, pidfdID)
}

func (s service) Retire() { s.u.finish(ErrRetired) }

func (s service) EndDrain() { s.u.endDrainOnce.Do(func() { close(s.u.endDrain) }) }

func (s service) Warnings() []string {
	warnings := append(s.u.older.Warnings(), s.u.unit.Warnings()...)
	if w := s.u.exclusive.Warning(); w != "" {
		warnings = append(warnings, w)
	}
	return warnings
}

func (s service) Total() int {
	n := s.u.older.Total() + s.u.fds.total()
	if s.u.currentClaim() != nil {
		n += 2 // the listener and the lock
	}
	return n
}

func (s service) Descriptors() []handoff.DescriptorStatus { return s.u.fds.All() }

func (s service) Generations() []handoff.Generation { return s.u.older.All() }

// CheckControl compares the control path and its lock with what this process
// holds. What is missing is made anew, but only while no other process has
// copies of it and may need them.
func (s service) CheckControl(ctx context.Context) error {
	claim := s.u.currentClaim()
	if claim == nil {
		return nil
	}
	if err := claim.Verify(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.u.server.State() != handoff.StateOwner || !isClosed(s.u.settled) {
		return nil // the attempt under way decides first
	}
	rebound, err := claim.Check(ctx)
	if err != nil || !rebound {
		return err
	}
	s.u.log.Warn("the control path had vanished and was bound again", "path", claim.Identity().Path)
	return s.u.openControl()
}

// standStill stops what two processes must not do at once, until accept: the
// registry does not change, packet conns are not read, and exclusive resources are
// let go of. It returns what has changed since the offer. accept and thaw follow,
// after an error too.
func (u *Upgrader) standStill(ctx context.Context) (changes *handoff.Changes, err error) {
	err = u.exclusive.LetGo(ctx, func() { changes = u.fds.freeze(u.exclusive.Guards()) })
	return changes, err
}

// accept makes this process take from its sockets, as soon as it has its exclusive
// resources.
func (u *Upgrader) accept() { u.exclusive.TakeBack(u.fds.accept) }

// openControl serves the control path.
func (u *Upgrader) openControl() error {
	claim := u.currentClaim()
	if claim == nil {
		return nil
	}
	return u.server.Open(claim.Listener(), claim.Identity().Backlog)
}

// watchControl looks after the control path until this process is out.
func (u *Upgrader) watchControl() {
	ticker := time.NewTicker(controlCheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-u.exit:
			return
		case <-ticker.C:
		}
		if !u.server.State().Owns() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), u.cfg.DialTimeout)
		err := service{u}.CheckControl(ctx)
		cancel()
		u.reportControl(err)
	}
}

// reportControl logs trouble with the control path once.
func (u *Upgrader) reportControl(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	u.mu.Lock()
	news := u.lostWhy != why
	u.lostWhy = why
	u.mu.Unlock()
	if news && err != nil {
		u.log.Error("this process cannot hand over", "err", err)
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

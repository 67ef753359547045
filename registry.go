package crossfade

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/pausable"
	"github.com/crossfade-go/crossfade/scm"
)

// This file is the registry as a handoff sees it: what a predecessor offers,
// freezes and gives up, and what a successor receives, checks and owns.

// offer lists everything for a successor. Until thaw or retire what it lists
// stays open.
func (f *Fds) offer() []handoff.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offered = make(map[uint64]bool, len(f.byID))
	ds := make([]handoff.Descriptor, 0, len(f.byID))
	for _, e := range f.sortedLocked() {
		if f.byName[e.Name] == e { // what lost its name to another address ends here
			f.offered[e.ID] = true
			ds = append(ds, e.Descriptor)
		}
	}
	return ds
}

// total is how many descriptors an offer would have of this, with the states that
// are written for it.
func (f *Fds) total() int {
	states := len(f.toWrite(AtOffer))
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byName) + states
}

// freeze makes changes wait, pauses the packet conns, which two processes must
// not read at once, and with all the listeners too, and returns what has changed
// since the offer.
func (f *Fds) freeze(all bool) *handoff.Changes {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.thawed = make(chan struct{})
	changes := new(handoff.Changes)
	left := f.offered
	for _, e := range f.sortedLocked() {
		switch {
		case f.byName[e.Name] != e:
		case left[e.ID]:
			delete(left, e.ID)
		default:
			changes.Added = append(changes.Added, e.Descriptor)
		}
		if e.packets != nil {
			e.packets.Pause()
		}
	}
	if all {
		f.pauseLocked(nil)
	}
	for id := range left {
		changes.Removed = append(changes.Removed, id)
	}
	slices.Sort(changes.Removed)
	return changes
}

// pause stops accepting, but for the listeners with these ids, and returns once
// no accept is in flight.
func (f *Fds) pause(except []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pauseLocked(except)
}

func (f *Fds) pauseLocked(except []uint64) {
	f.accepting = false
	kept := setOf(except)
	for id, e := range f.byID {
		if e.listener != nil && !kept[id] {
			e.listener.Pause()
		}
	}
}

// accept makes this process take from its sockets.
func (f *Fds) accept() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accepting = true
	for _, e := range f.byID {
		if e.listener != nil {
			if err := e.listener.Resume(); err != nil {
				f.log.Error("a listener cannot accept yet: trying again", "name", e.Name, "err", err)
				go f.resumeLater(e)
			}
		}
		if e.packets != nil {
			e.packets.Resume()
		}
	}
}

// resumeLater makes a listener accept as soon as there is room for the
// descriptor that it needs for that, for whose coming there is no event. A
// process that has the service back and a full table must not lose a listener
// for good (I3).
func (f *Fds) resumeLater(e *entry) {
	ticker := time.NewTicker(resumeInterval)
	defer ticker.Stop()
	for range ticker.C {
		f.mu.Lock()
		done := !f.accepting || f.byID[e.ID] != e || e.listener.Resume() == nil
		f.mu.Unlock()
		if done {
			return
		}
	}
}

// resumeInterval is the time between two attempts of resumeLater.
const resumeInterval = 100 * time.Millisecond

// thaw undoes offer and freeze, but for what stands still: see accept.
func (f *Fds) thaw() {
	f.mu.Lock()
	closed := f.thawLocked()
	f.mu.Unlock()
	f.unlinkAll(closed)
}

// thawLocked lets changes go on. It returns what the program had closed
// meanwhile, whose paths remain.
func (f *Fds) thawLocked() (closed []*entry) {
	f.offered = nil
	if f.thawed != nil {
		close(f.thawed)
		f.thawed = nil
	}
	for _, e := range f.deferred {
		if f.byID[e.ID] == e {
			closed = append(closed, e)
		}
		f.dropLocked(e)
	}
	f.deferred = nil
	closed = append(closed, f.closedMeanwhile...)
	f.closedMeanwhile = nil
	closeFDs(f.kept)
	f.kept = nil
	f.states.closeWritten()
	return closed
}

func (f *Fds) unlinkAll(entries []*entry) {
	for _, e := range entries {
		if e.UnixPath != nil {
			f.unlink(e)
		}
	}
}

// retire closes every copy that this process holds (I6), and the registry,
// because of err. Wrappers of listeners go on blocking until the program closes
// them. Those of packet conns go on writing until then in a process that drains,
// and are closed in any other, which owes nobody an answer.
func (f *Fds) retire(err error, drains bool) {
	var left []pausable.PacketConn
	defer func() { // without the lock, which their close takes
		for _, c := range left {
			_ = c.Close()
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.out == nil { // as with Exit, the first reason is the one to tell
		f.out = err
	}
	f.accepting = false
	for id, e := range f.byID {
		if e.listener != nil {
			e.listener.Retire()
		}
		switch {
		case e.packets == nil:
		case drains:
			e.packets.Retire()
		default:
			left = append(left, e.packets)
		}
		_ = e.FD.Close()
		delete(f.byID, id)
	}
	clear(f.byName)
	f.deferred = nil
	f.states.closeReceived()
	f.thawLocked()
}

// release closes the registry of an owner that stops for good: it unlinks the
// paths of unix listeners and lets go of every descriptor. The program's
// listeners work on until it closes them.
func (f *Fds) release(err error) {
	f.mu.Lock()
	entries := f.sortedLocked()
	f.out = err
	clear(f.byID)
	clear(f.byName)
	f.states.closeReceived()
	f.thawLocked()
	f.mu.Unlock()
	for _, e := range entries {
		if e.UnixPath != nil {
			f.unlink(e)
		}
		_ = e.FD.Close()
	}
}

// receive takes descriptors of a predecessor in, once each was found to be what
// the manifest says. It takes ownership of all, also on an error.
func (f *Fds) receive(ds []handoff.Descriptor, late bool) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, d := range ds {
		if err := f.receiveLocked(d, late); err != nil {
			for _, rest := range ds[i:] {
				_ = rest.FD.Close()
			}
			return fmt.Errorf("%s %q: %w", d.Kind, d.Name, err)
		}
	}
	return nil
}

func (f *Fds) receiveLocked(d handoff.Descriptor, late bool) error {
	switch d.Kind {
	case handoff.KindListener, handoff.KindPacketConn, handoff.KindConn, handoff.KindFile, handoff.KindState:
	default:
		return errors.New("it does not belong here in the manifest")
	}
	if err := checkName(d.Name); err != nil {
		return err
	}
	if err := checkIdentity(d); err != nil {
		return err
	}
	old := f.byName[d.Name]
	if old != nil && old.activated && old.origin == handoff.OriginUnclaimed {
		f.dropLocked(old)
		old = nil
	}
	if _, isState := f.states.received[d.Name]; (old != nil || isState) && !late {
		return errors.New("the manifest has the name twice")
	}
	if d.Kind == handoff.KindState {
		return f.receiveStateLocked(d, late)
	}
	f.inherited[d.Name] = true
	f.lastID++
	e := &entry{Descriptor: d, origin: handoff.OriginUnclaimed, offeredID: d.ID, late: late}
	e.ID = f.lastID
	f.byID[e.ID] = e
	if old == nil {
		f.byName[e.Name] = e
	} else {
		f.log.Warn("the predecessor opened a name anew that this process has", "name", d.Name, "kept", old.Address, "dropped", d.Address)
	}
	return nil
}

// remove takes what the predecessor no longer has out again, unless the program
// has asked for it.
func (f *Fds) remove(offeredIDs []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	removed := setOf(offeredIDs)
	for _, e := range f.sortedLocked() {
		if e.offeredID == 0 || !removed[e.offeredID] {
			continue
		}
		if e.origin == handoff.OriginUnclaimed {
			f.orphanLocked(e)
			continue
		}
		f.log.Warn("this process uses what its predecessor has closed", "name", e.Name, "network", e.Network, "address", e.Address)
	}
}

// forget closes everything that was received, for a fresh start.
func (f *Fds) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.sortedLocked() {
		f.dropLocked(e)
	}
	f.states.closeReceived()
}

// unclaimed lists what was offered and not asked for, by the predecessor's
// numbers.
func (f *Fds) unclaimed() []handoff.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ds []handoff.Descriptor
	for _, e := range f.sortedLocked() {
		if e.origin == handoff.OriginUnclaimed && !e.late && !e.activated {
			d := e.Descriptor
			d.ID = e.offeredID
			ds = append(ds, d)
		}
	}
	return ds
}

// listeners counts the listeners that somebody has asked for.
func (f *Fds) listeners() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, e := range f.byID {
		if e.listener != nil {
			n++
		}
	}
	return n
}

// own closes what nobody asked for: a listener that nobody accepts from swallows
// clients.
func (f *Fds) own() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeUnclaimedLocked(false)
	f.states.own(f.log)
}

// settle ends the time in which late additions can be asked for. The paths of
// unix sockets that nobody asked for go now: the predecessor, which might have
// come back to them, has closed its copies.
func (f *Fds) settle() (orphans []*entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeUnclaimedLocked(true)
	orphans = f.orphans
	f.orphans = nil
	return orphans
}

// unlinkUnused unlinks the paths of what settle has returned.
func (f *Fds) unlinkUnused(orphans []*entry) {
	for _, e := range orphans {
		if !f.usesPath(e.UnixPath) {
			f.unlink(e)
		}
	}
}

// usesPath reports whether the file is a registered socket's too: one socket can
// have two names.
func (f *Fds) usesPath(path *handoff.UnixPath) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.byID {
		if u := e.UnixPath; u != nil && u.Dev == path.Dev && u.Ino == path.Ino {
			return true
		}
	}
	return false
}

func (f *Fds) closeUnclaimedLocked(late bool) {
	for _, e := range f.sortedLocked() {
		if e.origin == handoff.OriginUnclaimed && (late || !e.late) {
			f.log.Warn("closing what nobody asked for", "name", e.Name, "kind", e.Kind, "network", e.Network, "address", e.Address)
			f.orphanLocked(e)
		}
	}
}

// orphanLocked drops what nobody uses any more. Its path goes when this process
// is settled.
func (f *Fds) orphanLocked(e *entry) {
	if e.UnixPath != nil {
		f.orphans = append(f.orphans, e)
	}
	f.dropLocked(e)
}

// checkIdentity compares what the manifest says of a received descriptor with
// what the kernel says.
func checkIdentity(d handoff.Descriptor) error {
	got, err := d.FD.Identify()
	if err != nil {
		return err
	}
	want := d.Identity
	if want.Cookie == 0 { // the predecessor's system, or language, has none
		got.Cookie = 0
	}
	if want.Dev == 0 && want.Ino == 0 {
		got.Dev, got.Ino = 0, 0
	}
	if got != want {
		return fmt.Errorf("the manifest describes %s [%s], and what arrived is %s [%s]", want, numbers(want), got, numbers(got))
	}
	return checkKind(d)
}

// numbers are what an identity is compared by besides its description.
func numbers(id scm.Identity) string {
	return fmt.Sprintf("domain %d, type %d, protocol %d, cookie %#x, dev %#x, inode %d",
		id.Domain, id.SockType, id.Protocol, id.Cookie, id.Dev, id.Ino)
}

func setOf(ids []uint64) map[uint64]bool {
	set := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}

func closeFDs(fds []*scm.FD) {
	for _, fd := range fds {
		_ = fd.Close()
	}
}

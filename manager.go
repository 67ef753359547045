package crossfade

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/internal/unit"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// This file is the Upgrader's side of the service manager. What is said to it, and
// by which process, is the affair of package unit.

// sameUnit reports whether a process is in this one's unit.
var sameUnit = systemd.SameUnit

// takeManager takes what the service manager has put into the environment. With an
// error it is what makes sense of that.
func takeManager(cfg *Config) (*systemd.Environment, error) {
	if cfg != nil && cfg.IgnoreServiceManager {
		return new(systemd.Environment), nil
	}
	return systemd.Take()
}

func (u *Upgrader) newMember() *unit.Member {
	return unit.New(unit.Config{
		Log: u.log, Standing: u.standing, Stored: u.fds.stored, Alive: u.cfg.Watchdog,
		SameUnit: func(pid int) (bool, error) { return sameUnit(pid) },
		Tell:     func(m handoff.ServiceManager) { u.server.Relieved(m) },
	})
}

// standing is how this process stands, for the service manager.
func (u *Upgrader) standing() *unit.Standing {
	st := u.server.Standing()
	s := &unit.Standing{
		Process: st.Process, State: st.State, Ready: st.Ready,
		Attempt: st.Attempt, Probation: st.Probation, LastFailure: st.LastFailure, Err: u.Err(),
	}
	if u.taking != nil {
		predecessor := u.taking.Predecessor()
		s.Predecessor = &predecessor
	}
	return s
}

// joinUnit makes this process a member of the unit that the manager, if there is
// one, has started it in. The registry takes the sockets that it has passed.
func (u *Upgrader) joinUnit(manager *systemd.Environment, trouble error) {
	u.fds.activate(manager.Sockets, u.cfg.Disabled)
	manager.Sockets = nil
	u.unit.Misled(trouble)
	predecessor := unit.NoPredecessor
	if u.taking != nil {
		predecessor = u.peer
	}
	u.unit.Begin(unit.Part{
		Notifier: manager.Notifier, Watchdog: manager.Watchdog,
		Store:    !u.cfg.Disabled && (u.cfg.FDStore || manager.FDStore > 0),
		StoreMax: manager.FDStore,
	}, predecessor, u.env.fd >= 0)
}

// managed reports whether the parent of this process is the service manager, so that
// it should be that of the next main process, too. systemd takes a main process for its
// child or not when it is named, and what is not its child it neither waits for when the unit
// stops, nor misses when it dies.
//
// Of a parent that may not be looked at, because of ProtectProc=, it is known that a
// process 1 has the orphans of all. Process 1 itself, which can have no siblings, has the
// parent 0, and so has one whose parent is in another pid namespace.
func (u *Upgrader) managed() bool {
	if len(u.unit.Environ()) == 0 {
		return false
	}
	parent := os.Getppid()
	same, err := sameUnit(parent)
	if err != nil {
		return parent == 1
	}
	return !same
}

// activate takes in what the service manager has passed: from its sockets, and from
// its store. It is in the registry as if it were inherited. It takes ownership of
// all.
//
// A socket that a predecessor has handed over as well is the predecessor's, and so
// is a name. The manager's own list can have a socket twice, from a socket unit and
// from the store, which comes last and has the registry's name for it.
func (f *Fds) activate(passed []systemd.Socket, accepting bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accepting = f.accepting || accepting && len(passed) > 0
	for _, s := range slices.Backward(passed) {
		if err := f.activateLocked(s); err != nil {
			f.log.Warn("closing what the service manager has passed", "name", s.Name, "err", err)
			_ = s.FD.Close()
		}
	}
}

func (f *Fds) activateLocked(s systemd.Socket) error {
	f.inherited[s.Name] = true // also of what is refused: it must not stay in the store
	id, err := s.FD.Identify()
	if err != nil {
		return err
	}
	d := handoff.Descriptor{Name: s.Name, Kind: kindOf(id), Network: id.Network, Address: id.Address, Identity: id, FD: s.FD}
	if path, ok := rendezvous.PathOf(id.Address); ok && strings.HasPrefix(id.Network, "unix") {
		// Opened by an earlier process of this unit. Another may have bound the path
		// since, and died before it could have the manager keep that socket instead.
		at, err := rendezvous.IdentifyLiving(id.Network, path)
		if err != nil {
			return fmt.Errorf("a unix socket that its path does not lead to: %w", err)
		}
		d.Address = path
		d.UnixPath = &handoff.UnixPath{Path: path, Bound: id.Address, Dev: at.Dev, Ino: at.Ino}
	}
	for _, e := range f.byID {
		if id.Cookie != 0 && e.Identity.Cookie == id.Cookie {
			f.log.Debug("the service manager has passed what is there already", "name", s.Name, "as", e.Name)
			return s.FD.Close()
		}
	}
	old := f.byName[s.Name]
	if old != nil && !old.activated {
		return fmt.Errorf("the predecessor has handed over %s %s under this name", old.Network, old.Address)
	}
	f.lastID++
	e := &entry{Descriptor: d, origin: handoff.OriginUnclaimed, activated: true}
	e.ID = f.lastID
	f.byID[e.ID] = e
	f.passed = append(f.passed, e)
	if checkName(s.Name) == nil { // else it can be had by its address only
		f.byName[s.Name] = e
	}
	return nil
}

// kindOf is what a descriptor is of which nobody has said it.
func kindOf(id scm.Identity) handoff.Kind {
	switch {
	case id.Type != scm.TypeSocket:
		return handoff.KindFile
	case id.Listening:
		return handoff.KindListener
	case id.Network == "udp", id.Network == "unixgram":
		return handoff.KindPacketConn
	default:
		return handoff.KindConn
	}
}

// activatedLocked finds what the service manager has passed for a request: under
// its name, of which there may be several, and else by the address alone. The name
// of a socket unit is nothing that a program need know.
func (f *Fds) activatedLocked(name string, kind handoff.Kind, want *target) *entry {
	var found *entry
	for _, e := range f.passed {
		if f.byID[e.ID] != e || e.origin != handoff.OriginUnclaimed || e.Kind != kind || !want.matches(e) {
			continue
		}
		if e.Name == name {
			return e
		}
		if found == nil && want.definite() {
			found = e
		}
	}
	return found
}

// renameLocked gives what was passed the name that the program has for it. What had
// that stays without one.
func (f *Fds) renameLocked(e *entry, name string) {
	if f.byName[e.Name] == e {
		delete(f.byName, e.Name)
	}
	e.Name = name
	f.byName[name] = e
}

// stored lists what belongs in the service manager's store, and all names under
// which something has come.
func (f *Fds) stored() (entries []unit.Stored, inherited []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.sortedLocked() {
		if f.byName[e.Name] != e || e.origin == handoff.OriginUnclaimed || e.Kind == handoff.KindConn {
			continue
		}
		entries = append(entries, unit.Stored{
			Name: e.Name, ID: e.ID, FD: e.FD, Inherited: e.origin == handoff.OriginInherited && f.inherited[e.Name],
		})
	}
	return entries, slices.Collect(maps.Keys(f.inherited))
}

// changedLocked tells that stored may say something else.
func (f *Fds) changedLocked() {
	if f.changed != nil {
		f.changed()
	}
}

// closeUnclaimed closes what the service manager has passed to a first process, and
// what nobody has asked for.
func (u *Upgrader) closeUnclaimed() {
	u.fds.own()
	u.fds.unlinkUnused(u.fds.settle())
}

// peerPID is who is at the other end, as the kernel says, 0 if it does not. That of
// a pair of sockets which was inherited is the process that has made it.
func peerPID(conn *scm.Conn) int {
	peer, err := conn.Peer()
	if err != nil || peer == nil {
		return 0
	}
	defer peer.Close()
	return peer.PID
}

// Notifier returns what the program can tell the service manager more with, such as
// a field of its own. It is nil, which works and says nothing, while this process
// is not the main one of a unit: nobody would hear it. What the Upgrader says
// itself, READY=1, STATUS= and the like, it should not say.
func (u *Upgrader) Notifier() *systemd.Notifier { return u.unit.Notifier() }

// parking is what Park needs of the Upgraders of this process.
var parking struct {
	mu     sync.Mutex
	parked bool
	park   []func()
}

// whenParked calls f when Park is called, or at once if it was.
func whenParked(f func()) {
	parking.mu.Lock()
	if !parking.parked {
		parking.park = append(parking.park, f)
		f = nil
	}
	parking.mu.Unlock()
	if f != nil {
		f()
	}
}

// Park returns when ctx ends. It is for a process that was replaced, or has rolled
// back, and whose end would have it started again by who supervises it, so that it
// would take the service over again: in a container that is always restarted, and
// in a unit with Restart=always. Call it when the drain is over.
//
// A parked process has no part in the service any more. To its successor it has
// gone: WaitForPredecessor returns there, and neither MaxDraining nor KillOverdue
// nor this process's own DrainTimeout counts it. ctx should end with the signal
// that asks this process to exit.
func Park(ctx context.Context) {
	parking.mu.Lock()
	parking.parked = true
	park := parking.park
	parking.park = nil
	parking.mu.Unlock()
	for _, f := range park {
		f()
	}
	<-ctx.Done()
}

// park makes this process, which is out, pass for gone.
func (u *Upgrader) park() {
	u.parkOnce.Do(func() {
		close(u.parked)
		u.unit.Park()
		u.server.Part()
		u.older.Close()
	})
}

package crossfade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// The names of what tells the end of a generation, less its number. Both come
// under handoff.KindAlive.
const (
	aliveName = reservedPrefix + "alive."
	pidfdName = reservedPrefix + "pidfd."
)

// aliveIDs is where their numbers in a manifest begin. The registry counts its
// own from 1 on, and the control path has two above.
const aliveIDs = 1 << 62

// maxGenerations bounds what a predecessor may claim to be still there.
const maxGenerations = 256

// killGrace is how long after its deadline a generation is left alone: it exits
// by itself after drainGrace, and the two sides do not count from the same
// moment.
const killGrace = 5 * time.Second

// generations are the processes that owned the service before this one and have
// not gone yet, and what will tell later owners whether this one has.
//
// Each process keeps the write end of a pipe, and every later owner gets the
// read end from its predecessor: its end of file says that the process is gone,
// however many generations ago it retired. A pidfd that the process has opened
// of itself travels along, because a number says nothing: it is reused, and means
// another process in another pid namespace.
//
// All methods may be called concurrently.
type generations struct {
	log  *slog.Logger
	kill bool        // Config.KillOverdue
	owns func() bool // this process owns and is settled
	gone func()      // called when one has gone

	mu       sync.Mutex
	older    []*generation // the oldest first
	offering bool          // what is listed may be about to be sent
	kept     []*generation // gone during the offer: open until it has ended
	trusted  bool          // the predecessor's pidfds are believed
	deserted bool          // the predecessor has closed its connection

	// Of this process, nil where there are none. held stays open until the
	// process ends: that it does is the message.
	watched, held, pidfd *scm.FD
}

// generation is one of them.
type generation struct {
	handoff.Generation
	direct bool          // the predecessor of this process
	limit  time.Duration // how long its drain may last from its Retired on; 0 for any time
	alive  *scm.FD       // nil if it has sent none: then it is gone when its connection ends
	watch  *scm.Watch    // of alive
	pidfd  *scm.FD       // nil if there is none, or none to be trusted
	timer  *time.Timer   // runs until it is overdue, nil if it cannot be
}

// offer returns what tells the ends of the older generations and of this
// process, which is self and may drain for limit. What it lists stays open until
// endOffer.
func (gs *generations) offer(self handoff.Process, limit time.Duration) (ds []handoff.Descriptor, err error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.offering = true
	own := handoff.Generation{Process: self, State: handoff.StateOffering, Since: time.Now(), Connections: -1}
	if limit > 0 {
		own.Deadline = time.Now().Add(limit)
	}
	for _, g := range append(slices.Clone(gs.older), &generation{Generation: own, alive: gs.watched, pidfd: gs.pidfd}) {
		about := g.Generation // as it is now
		number := strconv.FormatUint(about.Process.Generation, 10)
		for _, d := range []handoff.Descriptor{
			{Name: aliveName + number, FD: g.alive},
			{Name: pidfdName + number, FD: g.pidfd},
		} {
			if d.FD == nil {
				continue
			}
			d.ID, d.Kind, d.Alive = aliveIDs+uint64(len(ds)), handoff.KindAlive, &about
			if d.Identity, err = d.FD.Identify(); err != nil {
				return nil, err
			}
			ds = append(ds, d)
		}
	}
	return ds, nil
}

// open makes what tells the end of this process, before there is anything to
// lose.
func (gs *generations) open() (err error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.watched, gs.held, err = scm.Alive(); err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			return nil // nothing can be handed over
		}
		return err
	}
	if gs.pidfd, err = scm.OwnPidfd(); err != nil {
		level := slog.LevelDebug
		if gs.kill {
			level = slog.LevelWarn // it could not end others either
		}
		gs.log.Log(context.Background(), level, "Config.KillOverdue has no effect on this system", "err", err)
		gs.pidfd = nil
	}
	return nil
}

// endOffer is called when an attempt has ended: what has gone meanwhile need not
// stay open any more.
func (gs *generations) endOffer() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.endOfferLocked()
}

func (gs *generations) endOfferLocked() {
	gs.offering = false
	for _, g := range gs.kept {
		g.close()
	}
	gs.kept = nil
}

// trust says whether the pidfds that arrive are believed to be of the processes
// that they are said to be of. Only these can tell: a predecessor that lies could
// have this process end any other. So it must gain nothing by that, and it does
// not if it could end whatever this process can.
func (gs *generations) trust(peer *Peer) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.trusted = peer != nil && !peer.Unmapped() && (peer.UID == 0 || int(peer.UID) == os.Geteuid())
}

// receive takes what belongs here out of a page and returns the rest. On an
// error it has closed all of ds.
func (gs *generations) receive(ds []handoff.Descriptor) (rest []handoff.Descriptor, err error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	rest = make([]handoff.Descriptor, 0, len(ds))
	for i, d := range ds {
		if d.Kind != handoff.KindAlive {
			rest = append(rest, d)
			continue
		}
		if err := gs.receiveLocked(d); err != nil {
			closeDescriptors(rest)
			closeDescriptors(ds[i:])
			return nil, fmt.Errorf("%s %q: %w", d.Kind, d.Name, err)
		}
	}
	return rest, nil
}

func (gs *generations) receiveLocked(d handoff.Descriptor) error {
	if err := checkIdentity(d); err != nil {
		return err
	}
	if d.Alive == nil || d.Alive.Process.Generation == 0 {
		return errors.New("it does not say whose end it tells")
	}
	number := strconv.FormatUint(d.Alive.Process.Generation, 10)
	switch d.Name {
	case aliveName + number:
		return gs.receiveAliveLocked(d)
	case pidfdName + number:
		return gs.receivePidfdLocked(d)
	default:
		gs.log.Debug("closing what this version does not use", "name", d.Name, "kind", d.Kind)
		return d.FD.Close()
	}
}

func (gs *generations) receiveAliveLocked(d handoff.Descriptor) error {
	g := gs.findLocked(d.Alive.Process.Generation)
	switch {
	case d.Identity.Type != scm.TypePipe:
		return fmt.Errorf("the descriptor is no pipe but %s", d.Identity)
	case g != nil && g.alive != nil:
		return errors.New("the manifest has the name twice")
	case g == nil && len(gs.older) == maxGenerations:
		return fmt.Errorf("there are more than %d older generations", maxGenerations)
	}
	watch, err := d.FD.Watch()
	if err != nil {
		return err
	}
	if g == nil {
		g = gs.addLocked(*d.Alive)
	}
	g.alive, g.watch = d.FD, watch
	go func() {
		if watch.Wait() == nil {
			gs.remove(g)
		}
	}()
	return nil
}

func (gs *generations) receivePidfdLocked(d handoff.Descriptor) error {
	g := gs.findLocked(d.Alive.Process.Generation)
	switch {
	case g == nil || g.alive == nil:
		return fmt.Errorf("%s%d does not come before it", aliveName, d.Alive.Process.Generation)
	case g.pidfd != nil:
		return errors.New("the manifest has the name twice")
	case !gs.trusted:
		return d.FD.Close()
	}
	if err := d.FD.CheckPidfd(); err != nil {
		return err
	}
	g.pidfd = d.FD
	return nil
}

func (gs *generations) findLocked(number uint64) *generation {
	for _, g := range gs.older {
		if g.Process.Generation == number {
			return g
		}
	}
	return nil
}

func (gs *generations) addLocked(about handoff.Generation) *generation {
	g := &generation{Generation: about}
	gs.older = append(gs.older, g)
	slices.SortStableFunc(gs.older, func(a, b *generation) int {
		return cmp.Compare(a.Process.Generation, b.Process.Generation)
	})
	return g
}

// follow is called when the whole offer of the predecessor has arrived. One that
// has said nothing of its own end is known by its connection alone.
func (gs *generations) follow(predecessor handoff.Process) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.findLocked(predecessor.Generation)
	if g == nil && gs.deserted {
		return // and it has gone already
	}
	if g == nil {
		g = gs.addLocked(handoff.Generation{Process: predecessor, Since: time.Now(), Connections: -1})
	}
	g.direct = true
	if !g.Deadline.IsZero() {
		g.limit, g.Deadline = time.Until(g.Deadline), time.Time{} // it has not begun
	}
	for _, older := range gs.older {
		older.State = handoff.StateDraining // else its successor could not have handed over
		if older == g {
			older.State = handoff.StateOffering
		}
		gs.armLocked(older)
	}
}

// succeeded is called when this process owns: its predecessor does not.
func (gs *generations) succeeded() {
	gs.change(func(g *generation) { g.State, g.Since = handoff.StateProbation, time.Now() })
}

// retired is called when the predecessor cannot come back: its drain begins.
func (gs *generations) retired() {
	gs.change(func(g *generation) {
		g.State, g.Since = handoff.StateDraining, time.Now()
		if g.limit > 0 {
			g.Deadline = g.Since.Add(g.limit)
		}
	})
}

// told takes in what the predecessor says of its drain. The zero deadline says
// nothing.
func (gs *generations) told(connections int, deadline time.Time) {
	gs.change(func(g *generation) {
		g.Connections = connections
		if !deadline.IsZero() {
			g.Deadline = deadline
		}
	})
}

// change changes the predecessor's entry, if it has not gone.
func (gs *generations) change(change func(*generation)) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.older {
		if g.direct {
			change(g)
			gs.armLocked(g)
		}
	}
}

// left is called when the predecessor has closed its end of the connection.
func (gs *generations) left() {
	gs.mu.Lock()
	gs.deserted = true
	var gone []*generation
	for _, g := range gs.older {
		if g.direct && g.alive == nil {
			gone = append(gone, g)
		}
	}
	gs.mu.Unlock()
	for _, g := range gone {
		gs.remove(g)
	}
}

// remove takes a generation out that has gone.
func (gs *generations) remove(g *generation) {
	gs.mu.Lock()
	i := slices.Index(gs.older, g)
	if i >= 0 {
		gs.older = slices.Delete(gs.older, i, i+1)
		gs.kept = append(gs.kept, g)
		if !gs.offering {
			gs.endOfferLocked()
		}
	}
	gs.mu.Unlock()
	if i >= 0 {
		gs.log.Info("an older generation has gone", "who", g.Process)
		gs.gone()
	}
}

// list returns those that have owned and not gone, after a look.
func (gs *generations) list() []handoff.Generation {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	var all []handoff.Generation
	for _, g := range gs.older {
		// What has hung up is about to be removed, and in nobody's way.
		if g.State != handoff.StateOffering && (g.alive == nil || !g.alive.HungUp()) {
			all = append(all, g.Generation)
		}
	}
	return all
}

// warnings says for a status which of them are overdue.
func (gs *generations) warnings() []string {
	var warnings []string
	for _, g := range gs.list() {
		if g.State == handoff.StateDraining && !g.Deadline.IsZero() && time.Since(g.Deadline) >= killGrace {
			warnings = append(warnings, fmt.Sprintf("an older generation is overdue: %v", g))
		}
	}
	return warnings
}

// armLocked has the end of g enforced when it is overdue.
func (gs *generations) armLocked(g *generation) {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if g.State != handoff.StateDraining || g.Deadline.IsZero() {
		return
	}
	// Not a sum of durations, which would overflow for one that is meant as "for
	// ever".
	g.timer = time.AfterFunc(time.Until(g.Deadline.Add(killGrace)), func() { gs.enforce(g) })
}

// enforce ends g, which is overdue, where that is wanted and this process's to
// do.
func (gs *generations) enforce(g *generation) {
	owns := gs.owns()
	gs.mu.Lock()
	defer gs.mu.Unlock()
	switch {
	case !slices.Contains(gs.older, g), g.Deadline.IsZero(), time.Since(g.Deadline) < killGrace:
		// It has gone, or has been given more time since.
	case !owns:
		g.timer.Reset(killGrace) // this process may come to own, or own again
	default:
		gs.endLocked(g)
	}
}

func (gs *generations) endLocked(g *generation) {
	late := time.Since(g.Deadline).Round(time.Millisecond)
	log := gs.log.With("who", g.Process, "draining", time.Since(g.Since).Round(time.Millisecond), "overdue", late)
	switch {
	case !gs.kill:
		log.Warn("an older generation is overdue: end it, or set Config.KillOverdue")
	case g.pidfd == nil:
		log.Warn("an older generation is overdue and cannot be ended: there is no pidfd of it that can be trusted")
	default:
		if err := g.pidfd.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			log.Error("an older generation is overdue and cannot be ended", "err", err)
			return
		}
		log.Warn("an older generation was overdue and has been killed (Config.KillOverdue)")
	}
}

// forget closes what an attempt has received of which nothing came.
func (gs *generations) forget() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.forgetLocked()
}

func (gs *generations) forgetLocked() {
	for _, g := range gs.older {
		g.close()
	}
	gs.older = nil
	gs.endOfferLocked()
}

// letGo closes every copy of what was received or handed over (I6), in a process
// that is out. What tells the end of this process stays.
func (gs *generations) letGo() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.forgetLocked()
	for _, fd := range []**scm.FD{&gs.watched, &gs.pidfd} {
		if *fd != nil {
			_ = (*fd).Close()
			*fd = nil
		}
	}
}

// close is letGo for a process after which nobody comes.
func (gs *generations) close() {
	gs.letGo()
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.held != nil {
		_ = gs.held.Close()
		gs.held = nil
	}
}

// close closes what this process has of a generation. The caller holds mu.
func (g *generation) close() {
	if g.timer != nil {
		g.timer.Stop()
	}
	if g.watch != nil {
		_ = g.watch.Close()
	}
	for _, fd := range []*scm.FD{g.alive, g.pidfd} {
		if fd != nil {
			_ = fd.Close()
		}
	}
}

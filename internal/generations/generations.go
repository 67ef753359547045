// Package generations keeps account of the processes that owned a service before
// this one and have not gone yet.
package generations

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
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// The names of what tells the end of a generation, less its number. Both come
// under handoff.KindAlive.
const (
	aliveName = "crossfade.alive."
	pidfdName = "crossfade.pidfd."
)

// aliveIDs is where their numbers in a manifest begin. The registry counts its
// own from 1 on, and the control path has two above.
const aliveIDs = 1 << 62

// Max is how many generations an offer may list, the predecessor included: a
// receiver takes no more.
const Max = 256

// killGrace is how long after its deadline a generation is left alone: it exits
// by itself after its grace, and the two sides do not count from the same
// moment.
const killGrace = 5 * time.Second

// Config is what [New] needs.
type Config struct {
	Log   *slog.Logger
	Kill  bool                           // end who is overdue, see Config.KillOverdue of the facade
	Owns  func() bool                    // this process owns and is settled
	Gone  func(handoff.Process)          // called when one has gone
	Check func(handoff.Descriptor) error // compares a received descriptor with the manifest
}

// New returns the list of a process that has none yet.
func New(cfg Config) *List { return &List{cfg: cfg} }

// List has the processes that owned the service before this one and have not gone
// yet, and what will tell later owners whether this one has.
//
// Each process keeps the write end of a pipe, and every later owner gets the
// read end from its predecessor: its end of file says that the process is gone,
// however many generations ago it retired. A pidfd that the process has opened
// of itself travels along, because a number says nothing: it is reused, and means
// another process in another pid namespace.
//
// All methods may be called concurrently.
type List struct {
	cfg Config

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
	direct bool        // the predecessor of this process
	alive  *scm.FD     // nil if it has sent none: then it is gone when its connection ends
	watch  *scm.Watch  // of alive
	pidfd  *scm.FD     // nil if there is none, or none to be trusted
	timer  *time.Timer // runs until it is overdue, nil if it cannot be
	said   bool        // that it is overdue has been logged
}

// Offer returns what tells the ends of the older generations and of this
// process, which is self and may drain for limit, 0 for any time. What it lists stays open until
// endOffer.
func (gs *List) Offer(self handoff.Process, limit time.Duration) (ds []handoff.Descriptor, err error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.offering = true
	own := handoff.Generation{Process: self, State: handoff.StateOffering, Since: time.Now(), Connections: -1, Limit: limit}
	for _, g := range append(slices.Clone(gs.older), &generation{Generation: own, alive: gs.watched, pidfd: gs.pidfd}) {
		if g.alive != nil && g.alive.HungUp() {
			continue // not in the way of this offer either, see All
		}
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

// Total is how many descriptors Offer would list.
func (gs *List) Total() int {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n := 0
	for _, g := range append(slices.Clone(gs.older), &generation{alive: gs.watched, pidfd: gs.pidfd}) {
		if g.alive != nil && g.alive.HungUp() {
			continue
		}
		for _, fd := range []*scm.FD{g.alive, g.pidfd} {
			if fd != nil {
				n++
			}
		}
	}
	return n
}

// Open makes what tells the end of this process, before there is anything to
// lose.
func (gs *List) Open() (err error) {
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
		if gs.cfg.Kill {
			level = slog.LevelWarn // it could not end others either
		}
		gs.cfg.Log.Log(context.Background(), level, "Config.KillOverdue has no effect on this system", "err", err)
		gs.pidfd = nil
	}
	return nil
}

// EndOffer is called when an attempt has ended: what has gone meanwhile need not
// stay open any more.
func (gs *List) EndOffer() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.endOfferLocked()
}

func (gs *List) endOfferLocked() {
	gs.offering = false
	for _, g := range gs.kept {
		g.close()
	}
	gs.kept = nil
}

// Trust says whether the pidfds that arrive are believed to be of the processes
// that they are said to be of. Only these can tell: a predecessor that lies could
// have this process end any other. So it must gain nothing by that, and it does
// not if it could end whatever this process can. Whoever conn leads to, it replaces
// the verdict on whoever came before, also if the system does not say who it is.
func (gs *List) Trust(conn *scm.Conn) {
	trusted := false
	if peer, err := conn.Peer(); err == nil {
		trusted = !peer.Unmapped() && (peer.UID == 0 || int(peer.UID) == os.Geteuid())
		_ = peer.Close() // nobody has asked it to watch
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.trusted = trusted
}

// Receive takes what belongs here out of a page and returns the rest. On an
// error it has closed all of ds.
func (gs *List) Receive(ds []handoff.Descriptor) (rest []handoff.Descriptor, err error) {
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

func (gs *List) receiveLocked(d handoff.Descriptor) error {
	if err := gs.cfg.Check(d); err != nil {
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
		gs.cfg.Log.Debug("closing what this version does not use", "name", d.Name, "kind", d.Kind)
		return d.FD.Close()
	}
}

func (gs *List) receiveAliveLocked(d handoff.Descriptor) error {
	g := gs.findLocked(d.Alive.Process.Generation)
	switch {
	case d.Identity.Type != scm.TypePipe:
		return fmt.Errorf("the descriptor is no pipe but %s", d.Identity)
	case g != nil && g.alive != nil:
		return errors.New("the manifest has the name twice")
	case g == nil && len(gs.older) == Max:
		return fmt.Errorf("there are more than %d older generations", Max)
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

func (gs *List) receivePidfdLocked(d handoff.Descriptor) error {
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

func (gs *List) findLocked(number uint64) *generation {
	for _, g := range gs.older {
		if g.Process.Generation == number {
			return g
		}
	}
	return nil
}

func (gs *List) addLocked(about handoff.Generation) *generation {
	g := &generation{Generation: about}
	gs.older = append(gs.older, g)
	slices.SortStableFunc(gs.older, func(a, b *generation) int {
		return cmp.Compare(a.Process.Generation, b.Process.Generation)
	})
	return g
}

// Follow is called when the whole offer of the predecessor has arrived. One that
// has said nothing of its own end is known by its connection alone.
func (gs *List) Follow(predecessor handoff.Process) {
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
	// Whatever they are said to do: the predecessor has not begun to drain, and
	// the older ones have, else their successors could not have handed over.
	for _, older := range gs.older {
		switch {
		case older == g:
			older.State = handoff.StateOffering
			if !g.Deadline.IsZero() {
				g.Limit, g.Deadline = max(time.Until(g.Deadline), 1), time.Time{}
			}
		default:
			older.State = handoff.StateDraining
			older.beginDrain(time.Now())
		}
		gs.armLocked(older)
	}
}

// Succeeded is called when this process owns: its predecessor does not.
func (gs *List) Succeeded() {
	gs.change(func(g *generation) { g.State, g.Since = handoff.StateProbation, time.Now() })
}

// Retired is called when the predecessor cannot come back: its drain begins.
func (gs *List) Retired() {
	gs.change(func(g *generation) {
		g.State, g.Since = handoff.StateDraining, time.Now()
		g.beginDrain(g.Since)
	})
}

// beginDrain turns the limit of a drain, if there is one, into its end.
func (g *generation) beginDrain(at time.Time) {
	if g.Limit > 0 {
		g.Deadline, g.Limit = at.Add(g.Limit), 0
	}
}

// Told takes in what the predecessor says of its drain. -1 connections and the
// zero deadline say nothing.
func (gs *List) Told(connections int, deadline time.Time) {
	gs.change(func(g *generation) {
		if connections >= 0 {
			g.Connections = connections
		}
		if !deadline.IsZero() {
			g.Deadline = deadline
		}
	})
}

// change changes the predecessor's entry, if it has not gone.
func (gs *List) change(change func(*generation)) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.older {
		if g.direct {
			change(g)
			gs.armLocked(g)
		}
	}
}

// Left is called when the predecessor has closed its end of the connection.
func (gs *List) Left() {
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
func (gs *List) remove(g *generation) {
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
		gs.cfg.Log.Info("an older generation has gone", "who", g.Process)
		gs.cfg.Gone(g.Process)
	}
}

// All returns those that have owned and not gone, after a look.
func (gs *List) All() []handoff.Generation {
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

// Warnings says for a status which of them are overdue.
func (gs *List) Warnings() []string {
	var warnings []string
	for _, g := range gs.All() {
		if g.State == handoff.StateDraining && !g.Deadline.IsZero() && time.Since(g.Deadline) >= killGrace {
			warnings = append(warnings, fmt.Sprintf("an older generation is overdue: %v", g))
		}
	}
	return warnings
}

// armLocked has the end of g enforced when it is overdue.
func (gs *List) armLocked(g *generation) {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if g.State != handoff.StateDraining || g.Deadline.IsZero() {
		return
	}
	// Not a sum of durations, which would overflow for one that is meant as "for
	// ever".
	left := time.Until(g.Deadline.Add(killGrace))
	if left > 0 {
		g.said = false // it has been given more time
	}
	g.timer = time.AfterFunc(left, func() { gs.enforce(g) })
}

// enforce ends g, which is overdue, where that is wanted and this process's to
// do.
func (gs *List) enforce(g *generation) {
	owns := gs.cfg.Owns()
	gs.mu.Lock()
	defer gs.mu.Unlock()
	switch {
	case !slices.Contains(gs.older, g), g.Deadline.IsZero(), time.Since(g.Deadline) < killGrace:
		// It has gone, or has been given more time since.
	case !owns:
		g.timer.Reset(killGrace) // this process may come to own, or own again
	case !g.said: // each Draining of one that is overdue leads here
		g.said = true
		gs.endLocked(g)
	}
}

func (gs *List) endLocked(g *generation) {
	late := time.Since(g.Deadline).Round(time.Millisecond)
	log := gs.cfg.Log.With("who", g.Process, "draining", time.Since(g.Since).Round(time.Millisecond), "overdue", late)
	switch {
	case !gs.cfg.Kill:
		log.Warn("an older generation is overdue: end it, or set Config.KillOverdue")
	case g.pidfd == nil:
		log.Warn("an older generation is overdue and cannot be ended: there is no pidfd of it that can be trusted")
	default:
		if err := g.pidfd.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			log.Error("an older generation is overdue and cannot be ended", "err", err)
			return
		}
		log.Warn("an older generation was overdue and has been killed (Config.KillOverdue)")
	}
}

// EndDrain asks a generation that drains to end, by SIGTERM, and says so. What that
// means is its program's affair.
func (gs *List) EndDrain(number uint64) (string, error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.findLocked(number)
	switch {
	case g == nil, g.alive != nil && g.alive.HungUp():
		return fmt.Sprintf("generation %d has gone", number), nil
	case !gs.cfg.Kill:
		return "", fmt.Errorf("%w: generation %d is not the owner's own predecessor, and Config.KillOverdue is not set: signal it yourself, %v",
			handoff.ErrNotAllowed, number, g.Process)
	case g.pidfd == nil:
		return "", fmt.Errorf("%w: there is no pidfd of generation %d that can be trusted: signal it yourself, %v", handoff.ErrNotAllowed, number, g.Process)
	}
	if err := g.pidfd.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return "", fmt.Errorf("%w: generation %d cannot be signalled: %w", handoff.ErrNotAllowed, number, err)
	}
	return fmt.Sprintf("generation %d was sent SIGTERM", number), nil
}

// Forget closes what an attempt has received of which nothing came.
func (gs *List) Forget() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.forgetLocked()
}

func (gs *List) forgetLocked() {
	for _, g := range gs.older {
		g.close()
	}
	gs.older = nil
	gs.endOfferLocked()
}

// LetGo closes every copy of what was received or handed over (I6), in a process
// that is out. What tells the end of this process stays.
func (gs *List) LetGo() {
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

// Close is LetGo for a process after which nobody comes.
func (gs *List) Close() {
	gs.LetGo()
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

func closeDescriptors(ds []handoff.Descriptor) {
	for _, d := range ds {
		_ = d.FD.Close()
	}
}

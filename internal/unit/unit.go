// Package unit is the part of a process in a unit of the service manager: which of
// the processes of a service speaks to systemd, when the part passes from one to
// the next, and what is said.
//
// A unit has one main process, and by default the manager listens to no other. So
// only the main process speaks: the one that the manager has started, and after a
// handoff in the same unit the successor, once the old one has said so. That is at
// Retired and never before: a main process that dies takes the unit down, and a
// successor on probation may.
//
// Nothing in here can fail the service. A manager that does not listen costs a
// bounded wait at the end of a handoff, and is a warning in the log and in the
// status.
package unit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/mailbox"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

const (
	// passLimit bounds the end of a handoff: the naming of the new main process,
	// and the manager's confirmation.
	// The last part of it is for what a failure leads to, before the process exits.
	passLimit = 5 * time.Second
	passSpare = 500 * time.Millisecond

	// sayLimit is how long the manager may take for one message. What it did not
	// take is said again after retryAfter.
	sayLimit   = 2 * time.Second
	retryAfter = 5 * time.Second

	// spacing is the shortest time between two messages that nobody waits for: a
	// successor that reports its progress without a pause must not flood the manager.
	spacing = 100 * time.Millisecond

	// grant is how much time is asked for at once, and grantEvery how often.
	grant      = 30 * time.Second
	grantEvery = 10 * time.Second
)

// Config is what [New] needs. All fields are required but Alive.
type Config struct {
	Log *slog.Logger
	// Standing is how the process stands. It does not block.
	Standing func() *Standing
	// Stored lists what belongs in the manager's store, and every name that was
	// inherited, from a predecessor or from the store.
	Stored func() (entries []Stored, inherited []string)
	// Alive is what the watchdog asks, nil if there is nothing to ask.
	Alive func(context.Context) error
	// SameUnit reports whether a process is in this one's unit.
	SameUnit func(pid int) (bool, error)
	// Tell gives the part to the successor of a process that has retired.
	Tell func(handoff.ServiceManager)
}

// Stored is a descriptor that belongs in the manager's store. FD remains its
// owner's, who may close it at any time.
type Stored struct {
	Name      string
	ID        uint64 // not 0; names this descriptor among all that ever had the name
	FD        *scm.FD
	Inherited bool // it came under this name
}

// Part is what the main process has to speak with.
type Part struct {
	Notifier *systemd.Notifier // nil for none
	Watchdog time.Duration
	Store    bool // the manager is to keep descriptors
	StoreMax int  // how many it can, 0 if that is not known
}

// role is whether this process speaks.
type role uint8

const (
	silent   role = iota // there is no manager, as far as is known
	waiting              // the predecessor is the main process of this one's unit
	speaking             // this is the main process
	relieved             // its successor is
)

// nextMain is who comes after this process.
type nextMain struct {
	handoff.Process
	pidfdID uint64 // 0 if it is not known
}

// Member is a process in a unit. The zero value is none: see [New]. All methods may
// be called concurrently.
type Member struct {
	cfg Config
	box *mailbox.Box[func()] // what is said goes through here, one after the other

	mu        sync.Mutex
	role      role
	part      Part
	arrived   chan struct{} // closed when this process waits for the part no longer
	successor *nextMain     // once this process has retired
	hush      context.CancelFunc
	woken     bool // the box is about to look at what is to be said
	lookAt    time.Time
	timer     *time.Timer // until then
	trouble   map[string]string

	// What is to be said, and what was.
	claims       bool // this process is the main one, by its own word
	ready        bool
	saidReady    bool
	reloads      int // upgrades under way
	toReload     bool
	saidReload   bool
	stopping     bool
	saidStopping bool
	out          bool // this process takes no part in the service any more
	extend       time.Duration
	text         string // the last status

	progress    string // of this process's own initialisation
	failure     string // of the last upgrade
	connections int    // that a process which is out still has, -1 if not known
	fewest      int    // of them so far, -1 before the first count
	drainEnds   time.Time
	nextGrant   time.Time
	parked      bool

	// Of the box: the ID of what is in the manager's store, by name, and the inherited
	// names that were met.
	stored map[string]uint64
	met    map[string]bool
}

// storedBefore is the ID of what the store may have from before this process's time:
// what was inherited under the name, if that is still what has it.
const storedBefore = 0

// New returns the member of a process that has nobody to speak to yet.
func New(cfg Config) *Member {
	m := &Member{
		cfg: cfg, box: mailbox.New(func(f func()) { f() }), trouble: make(map[string]string),
		arrived: make(chan struct{}), connections: -1, fewest: -1,
		stored: make(map[string]uint64), met: make(map[string]bool),
	}
	close(m.arrived)
	return m
}

// Begin makes a process a member that has no predecessor, or one with this pid, as
// the kernel says; 0 is one that is not known. inherited says that the predecessor
// has started this process, and given it what is in the part.
func (m *Member) Begin(part Part, predecessor int, inherited bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.part = part
	switch {
	case part.Notifier == nil:
	case predecessor >= 0 && m.shares(predecessor, inherited):
		m.role, m.arrived = waiting, make(chan struct{})
	default:
		m.speakLocked()
	}
}

// Misled is called with what is wrong with what the manager has passed, nil if
// nothing is.
func (m *Member) Misled(err error) {
	if err != nil {
		err = fmt.Errorf("not all that the service manager has passed makes sense: %w", err)
	}
	m.note("environment", err)
}

// NoPredecessor is the pid of a predecessor that does not exist, for Begin.
const NoPredecessor = -1

// shares reports whether the predecessor is in this process's unit. What is not
// known is none: a main process that keeps silent never starts its unit, and one
// that speaks although it is not heard does no harm.
func (m *Member) shares(pid int, inherited bool) bool {
	same, err := m.cfg.SameUnit(pid)
	if err != nil {
		m.cfg.Log.Debug("the predecessor's unit is not known", "pid", pid, "err", err)
		return inherited
	}
	return same
}

// speakLocked makes this process the one that speaks.
func (m *Member) speakLocked() {
	if m.role == waiting {
		close(m.arrived)
	}
	m.role = speaking
	ctx, cancel := context.WithCancel(context.Background())
	m.hush = cancel
	if m.part.Watchdog > 0 {
		go m.part.Notifier.KeepAlive(ctx, m.part.Watchdog, m.alive, func(err error) { // until this process speaks no longer
			m.note("watchdog", fmt.Errorf("the service manager hears no sign of life: %w", err))
		})
	}
	m.wakeLocked()
}

// alive asks the program whether it works. One that has left the service is not
// asked: what it would say is about a service that is another's.
func (m *Member) alive(ctx context.Context) error {
	m.mu.Lock()
	ask := m.cfg.Alive
	if m.out {
		ask = nil
	}
	m.mu.Unlock()
	if ask != nil {
		if err := ask(ctx); err != nil {
			return err
		}
	}
	m.note("watchdog", nil)
	return nil
}

// Given is called when the predecessor has named this process as the main one.
func (m *Member) Given(sm handoff.ServiceManager) {
	m.mu.Lock()
	if m.role == speaking || m.role == relieved {
		m.mu.Unlock()
		return
	}
	notifier := m.part.Notifier
	if notifier == nil {
		var err error
		if notifier, err = systemd.Open(sm.NotifySocket); err != nil {
			m.mu.Unlock()
			m.note("address", fmt.Errorf("the predecessor gave this process the part of the main process, and an address that is none: %w", err))
			return
		}
	}
	m.part = Part{Notifier: notifier, Watchdog: sm.Watchdog, Store: sm.FDStore, StoreMax: sm.FDStoreMax}
	m.claims, m.lookAt = true, time.Time{} // again, for a manager that has not heard the other
	m.speakLocked()
	next := m.successor
	m.mu.Unlock()
	m.cfg.Log.Info("this process is the main one of its unit now")
	if next == nil {
		return
	}
	// Replaced in turn before the part had come.
	ctx, cancel := passing()
	defer cancel()
	if part := m.pass(ctx, *next); part != nil {
		m.cfg.Tell(*part)
	}
}

// Gone is called when the predecessor has exited. If it could not name this process
// as the main one, this process does, which a manager hears with NotifyAccess=all.
func (m *Member) Gone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.role == waiting {
		m.claims = true
		m.speakLocked()
	}
}

// Ready is called when this process owns and is ready.
func (m *Member) Ready() {
	m.change(func() { m.ready, m.lookAt = true, time.Time{} })
}

// Progress is what this process says of its initialisation, and how much longer
// that will take.
func (m *Member) Progress(text string, extend time.Duration) {
	m.change(func() {
		if !m.ready {
			m.progress, m.extend = text, max(m.extend, extend)
		}
	})
}

// Reloading is called when this process is about to upgrade itself; the result,
// with how that has ended.
func (m *Member) Reloading() (ended func(error)) {
	m.change(func() {
		m.reloads++
		m.toReload = m.toReload || m.reloads == 1 && m.role == speaking // else the manager has not asked for it
		m.failure, m.lookAt = "", time.Time{}
	})
	return func(err error) {
		m.change(func() {
			m.reloads--
			m.lookAt = time.Time{}
			if err != nil {
				m.failure = err.Error()
			}
		})
	}
}

// Changed is called when Standing or Stored may have changed. It does not block.
func (m *Member) Changed() { m.change(func() {}) }

func (m *Member) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.wakeLocked()
}

// wakeLocked has somebody look at what is to be said, now or at lookAt.
func (m *Member) wakeLocked() {
	if m.role != speaking {
		return
	}
	if m.timer != nil {
		m.timer.Stop() // that it may have fired does no harm
	}
	m.timer = time.AfterFunc(time.Until(m.lookAt), m.post)
}

// post has the box look, unless it is about to.
func (m *Member) post() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.woken {
		m.woken = true
		m.box.Post(m.look)
	}
}

// look says what is to be said. It runs in the box, as what it calls.
func (m *Member) look() {
	m.mu.Lock()
	m.woken = false
	m.lookAt = time.Now().Add(spacing)
	m.mu.Unlock()
	for first := true; ; first = false {
		more, err := m.say(first)
		if err == nil && !more {
			err = m.keepStore()
		}
		switch {
		case err != nil:
			m.retry()
			return
		case !more:
			return
		}
	}
}

func (m *Member) retry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookAt = time.Now().Add(retryAfter)
	m.wakeLocked()
}

// say sends one message, and reports whether there may be another. Only the first
// one is for the status, too: one that changes all the time must not keep the box from
// anything else.
func (m *Member) say(first bool) (more bool, err error) {
	standing := m.cfg.Standing() // without the lock, which its changes are told under
	m.mu.Lock()
	if m.role != speaking {
		m.mu.Unlock()
		return false, nil
	}
	notifier := m.part.Notifier
	text := m.text
	if first {
		text = m.textLocked(standing)
	}
	states, said := m.statesLocked(text)
	m.mu.Unlock()
	if len(states) == 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), sayLimit, errSlow)
	defer cancel()
	err = notifier.Send(ctx, states...)
	m.noteSilence(err)
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	said()
	return true, nil
}

var errSlow = &handoff.TimeoutError{For: "answer of the service manager", Limit: sayLimit}

func (m *Member) noteSilence(err error) {
	if err != nil {
		err = fmt.Errorf("the service manager cannot be told how this service stands: %w", err)
	}
	m.note("silence", err)
}

// statesLocked is the next message, and what to do once it is sent.
func (m *Member) statesLocked(text string) (states []systemd.State, said func()) {
	var done []func()
	add := func(s systemd.State, then func()) {
		states, done = append(states, s), append(done, then)
	}
	if m.claims {
		id, err := scm.PidfdIDOf(os.Getpid())
		if err != nil { // an older kernel, mostly: the number has to do
			id = 0
		}
		add(systemd.MainPID(os.Getpid(), id), func() { m.claims = false })
	}
	switch {
	case m.ready && !m.saidReady: // first: a unit that stops before it has started has failed
		add(systemd.Ready(), func() { m.saidReady = true })
	case m.stopping:
		if !m.saidStopping {
			add(systemd.Stopping(), func() { m.saidStopping = true })
		}
	case m.toReload: // each one, though it may be over: a manager that has asked for it waits for both
		add(systemd.Reloading(), func() { m.toReload, m.saidReload = false, true })
	case m.saidReload && m.reloads == 0:
		add(systemd.Ready(), func() { m.saidReload = false })
	}
	if m.reloads > 0 && !time.Now().Before(m.nextGrant) {
		m.nextGrant = time.Now().Add(grantEvery)
		m.extend = max(m.extend, grant)
		time.AfterFunc(grantEvery, m.Changed) // an attempt has limits of its own, so this ends
	}
	if m.extend > 0 {
		add(systemd.ExtendTimeout(m.extend), func() { m.extend = 0 })
	}
	if text != m.text {
		add(systemd.Status(text), func() { m.text = text })
	}
	return states, func() {
		for _, f := range done {
			f()
		}
	}
}

// keepStore has the manager keep what the registry has.
func (m *Member) keepStore() error {
	// Before it is looked whether this process is out: then it lets go of all it has,
	// which the successor goes on with.
	entries, inherited := m.cfg.Stored()
	m.mu.Lock()
	keeps := m.role == speaking && m.part.Store && m.ready && !m.out
	notifier, most := m.part.Notifier, m.part.StoreMax
	m.mu.Unlock()
	if !keeps {
		return nil
	}
	wanted := make(map[string]Stored, len(entries))
	for _, e := range entries {
		wanted[e.Name] = e
	}
	m.meet(inherited)
	for name, id := range m.stored {
		e, ok := wanted[name]
		if ok && (id == e.ID || id == storedBefore && e.Inherited) {
			continue
		}
		if err := m.unstore(notifier, name); err != nil {
			return err
		}
	}
	var failed error
	for _, e := range entries {
		if m.stored[e.Name] == e.ID {
			continue
		}
		switch err := m.store(notifier, e); {
		case errors.Is(err, systemd.ErrName):
			failed = errors.Join(failed, err)
		case errors.Is(err, net.ErrClosed): // meanwhile: the next look drops it
		case err != nil:
			return err
		}
	}
	if most > 0 && len(entries) > most {
		failed = errors.Join(failed, fmt.Errorf("the service has %d descriptors, and the manager keeps %d: raise FileDescriptorStoreMax=", len(entries), most))
	}
	if failed != nil {
		failed = fmt.Errorf("not everything is in the service manager's store: %w", failed)
	}
	m.note("store", failed)
	return nil
}

// meet notes under which names somebody else may have stored something.
func (m *Member) meet(inherited []string) {
	for _, name := range inherited {
		if !m.met[name] {
			m.met[name] = true
			m.stored[name] = storedBefore
		}
	}
}

func (m *Member) store(notifier *systemd.Notifier, e Stored) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), sayLimit, errSlow)
	defer cancel()
	// Whether a descriptor belongs there is for the registry to say, and not for
	// what poll(2) happens to find.
	err := notifier.Store(ctx, e.Name, e.FD, systemd.NoPoll())
	if err == nil {
		m.stored[e.Name] = e.ID
	}
	return err
}

func (m *Member) unstore(notifier *systemd.Notifier, name string) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), sayLimit, errSlow)
	defer cancel()
	err := notifier.Remove(ctx, name)
	if errors.Is(err, systemd.ErrName) {
		err = nil // it never was there
	}
	if err == nil {
		delete(m.stored, name)
	}
	return err
}

// clearStore has the manager close its copies: a socket that nobody accepts from
// keeps its port.
func (m *Member) clearStore(notifier *systemd.Notifier) error {
	m.mu.Lock()
	keeps := m.part.Store
	m.mu.Unlock()
	if keeps {
		_, inherited := m.cfg.Stored()
		m.meet(inherited) // it may never have come to look
	}
	for _, name := range slices.Sorted(maps.Keys(m.stored)) {
		if err := m.unstore(notifier, name); err != nil {
			return fmt.Errorf("descriptors stay in the service manager's store: %w", err)
		}
	}
	return nil
}

// Out is called before a process that has retired lets go of its descriptors.
func (m *Member) Out() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.out = true
}

// Relieve is called when this process has retired, after Out. If the successor is in
// the same unit the manager hears of it, and the result is what the successor needs.
// pidfdID is what the kernel knows the successor by, 0 if it is not known. It takes
// 5 s at most.
func (m *Member) Relieve(process handoff.Process, pidfdID uint64) *handoff.ServiceManager {
	next := nextMain{process, pidfdID}
	ctx, cancel := passing()
	defer cancel()
	m.mu.Lock()
	arrived := m.arrived
	m.mu.Unlock()
	select { // of a predecessor in the same unit that has retired a moment ago
	case <-arrived:
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.successor = &next
	speaks := m.role == speaking
	m.mu.Unlock()
	if !speaks {
		return nil
	}
	return m.pass(ctx, next)
}

func passing() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), passLimit, errNoAnswer)
}

var errNoAnswer = &handoff.TimeoutError{For: "answer of the service manager", Limit: passLimit}

// pass makes the successor the main process, if it is in the same unit. Else this
// one stays the main process of its unit, and what the manager keeps of the
// service goes (I6).
func (m *Member) pass(ctx context.Context, next nextMain) *handoff.ServiceManager {
	same, err := m.cfg.SameUnit(next.PID)
	if err != nil {
		m.cfg.Log.Debug("the successor's unit is not known", "successor", next.Process, "err", err)
	}
	m.mu.Lock()
	part := m.part
	m.mu.Unlock()
	if !same {
		m.within(ctx, func() { m.note("store", m.clearStore(part.Notifier)) })
		m.Changed()
		return nil
	}
	m.within(ctx, func() { m.name(ctx, next) })
	m.mu.Lock()
	m.role = relieved // also if the box has not come to it
	m.mu.Unlock()
	return &handoff.ServiceManager{
		NotifySocket: part.Notifier.Address(), Watchdog: part.Watchdog, FDStore: part.Store, FDStoreMax: part.StoreMax,
	}
}

// name tells the manager who the main process is, as this one's last message.
func (m *Member) name(ctx context.Context, next nextMain) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, end.Add(-passSpare), errNoAnswer)
		defer cancel()
	}
	m.mu.Lock()
	m.role = relieved
	m.hush()
	states := []systemd.State{systemd.MainPID(next.PID, next.pidfdID)}
	if m.toReload || m.saidReload {
		// In the same message: after it nobody would hear this process.
		states = append(states, systemd.Ready())
	}
	notifier := m.part.Notifier
	m.mu.Unlock()
	err := notifier.Send(ctx, append(states, systemd.Status("handed over to "+describe(next.Process)))...)
	if err == nil {
		err = notifier.Barrier(ctx)
	}
	if err != nil {
		m.note("successor", fmt.Errorf("the service manager has not confirmed pid %d as the main process: "+
			"it may take the end of this one for the end of the service: %w", next.PID, err))
	}
}

// within has f run in the box, and waits for it as long as ctx lasts.
func (m *Member) within(ctx context.Context, f func()) {
	done := make(chan struct{})
	m.box.Post(func() {
		defer close(done)
		f()
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Stop is called when this process ends its part for good. It takes no longer than
// a moment, if the manager listens, and else 5 s. settled says that its predecessor
// has retired, so that the part is about to come if it has not.
func (m *Member) Stop(settled bool) {
	ctx, cancel := passing()
	defer cancel()
	m.mu.Lock()
	arrived, waits := m.arrived, m.role == waiting && settled
	m.mu.Unlock()
	if waits {
		m.cfg.Log.Debug("stopping when this process is the main one of its unit", "limit", passLimit)
		select {
		case <-arrived:
		case <-ctx.Done():
		}
	}
	m.mu.Lock()
	speaks := m.role == speaking && !m.stopping
	m.out = true
	if speaks {
		m.stopping = true
		m.fewest, m.nextGrant = -1, time.Time{} // the time that the manager gives begins now
	}
	notifier := m.part.Notifier
	m.mu.Unlock()
	if speaks {
		m.within(ctx, func() {
			m.look()
			m.note("store", m.clearStore(notifier))
		})
	}
}

// Leave is called when this process is out without having been stopped: it has
// rolled back, or its attempt has failed.
func (m *Member) Leave() {
	ctx, cancel := passing()
	defer cancel()
	m.mu.Lock()
	m.out = true
	speaks := m.role == speaking
	notifier := m.part.Notifier
	m.mu.Unlock()
	if speaks {
		m.within(ctx, func() { m.note("store", m.clearStore(notifier)) })
		m.Changed()
	}
}

// Draining is called with the number of connections that a process which is out
// still has, -1 if it is not known, and the end of its drain, the zero time if it
// has none. It reports whether anybody wants to know.
//
// Of a process that was stopped the manager expects its end within TimeoutStopSec=.
// More is asked for as long as the drain is bounded, and else as long as it gets
// on: a drain that could last for ever ends when the manager says so.
func (m *Member) Draining(connections int, deadline time.Time) (wanted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.role != speaking {
		return false
	}
	m.connections, m.drainEnds = connections, deadline
	now := time.Now()
	switch {
	case !m.stopping:
	case !deadline.IsZero():
		if left := deadline.Sub(now); left > 0 && !now.Before(m.nextGrant) {
			m.extend, m.nextGrant = min(grant, left+grantEvery), now.Add(grantEvery)
		}
	case connections > 0 && (m.fewest < 0 || connections < m.fewest):
		m.extend = grant
	}
	if connections >= 0 && (m.fewest < 0 || connections < m.fewest) {
		m.fewest = connections
	}
	m.wakeLocked()
	return true
}

// Park is called when this process stays although it is out.
func (m *Member) Park() { m.change(func() { m.parked = true }) }

// Speaks reports whether this process is the main one of its unit, or may come to
// be.
func (m *Member) Speaks() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.role == speaking
}

// Notifier returns what the program can speak to the manager with, nil if it would
// not be heard.
func (m *Member) Notifier() *systemd.Notifier {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.role != speaking {
		return nil
	}
	return m.part.Notifier
}

// Environ is what a process of the same unit is started with.
func (m *Member) Environ() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.part.Notifier == nil {
		return nil
	}
	vars := []string{"NOTIFY_SOCKET=" + m.part.Notifier.Address()}
	if m.part.Watchdog > 0 {
		vars = append(vars, "WATCHDOG_USEC="+strconv.FormatInt(m.part.Watchdog.Microseconds(), 10))
	}
	return vars
}

// Warnings is trouble that a person should know of, a sentence each.
func (m *Member) Warnings() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var warnings []string
	for _, key := range slices.Sorted(maps.Keys(m.trouble)) {
		warnings = append(warnings, m.trouble[key])
	}
	return warnings
}

// note keeps trouble for the status, and logs it once. A nil error is its end.
func (m *Member) note(key string, err error) {
	m.mu.Lock()
	before := m.trouble[key]
	if err == nil {
		delete(m.trouble, key)
	} else {
		m.trouble[key] = err.Error()
	}
	m.mu.Unlock()
	if err != nil && before == "" {
		m.cfg.Log.Warn("trouble with the service manager", "err", err)
	}
}

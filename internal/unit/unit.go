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
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/mailbox"
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

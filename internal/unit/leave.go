package unit

import (
	"context"
	"fmt"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/systemd"
)

// This file is the end of a process's part: it passes to the successor, or ends.

// nextMain is who comes after this process.
type nextMain struct {
	handoff.Process
	pidfdID uint64 // 0 if it is not known
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

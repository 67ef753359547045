package unit

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// This file says to the manager what is due, again until it is delivered.

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

// say sends one message, and reports whether there may be another. Its status is no
// older than what else it says; one that has only that is the first: a status that
// changes all the time must not keep the box from anything else.
func (m *Member) say(first bool) (more bool, err error) {
	m.mu.Lock()
	if m.role != speaking {
		m.mu.Unlock()
		return false, nil
	}
	notifier := m.part.Notifier
	states, said := m.statesLocked()
	m.mu.Unlock()
	if len(states) == 0 && !first {
		return false, nil
	}
	standing := m.cfg.Standing() // without the lock, which its changes are told under
	m.mu.Lock()
	text, before := m.textLocked(standing), m.text
	m.mu.Unlock()
	if text != before {
		states = append(states, systemd.Status(text))
	}
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
	m.text = text
	return true, nil
}

var errSlow = &handoff.TimeoutError{For: "answer of the service manager", Limit: sayLimit}

func (m *Member) noteSilence(err error) {
	if err != nil {
		err = fmt.Errorf("the service manager cannot be told how this service stands: %w", err)
	}
	m.note("silence", err)
}

// statesLocked is the next message but for its status, and what to do once it is sent.
func (m *Member) statesLocked() (states []systemd.State, said func()) {
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
	if extend := m.extend; extend > 0 {
		add(systemd.ExtendTimeout(extend), func() {
			if m.extend <= extend { // else more was asked for meanwhile
				m.extend = 0
			}
		})
	}
	return states, func() {
		for _, f := range done {
			f()
		}
	}
}

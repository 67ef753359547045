//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/systemd"
)

// This file is what supervise has to do with a service manager such as systemd. To that
// one this process is the service, whoever serves: what there is to say it says itself,
// and the generations get nothing of the manager but the sockets that it has activated.

// manager is the service manager that has started this process. One that does not listen
// is told nothing. But for tell it belongs to the goroutine of the supervisor's loop.
type manager struct {
	in     *invocation
	env    *systemd.Environment
	names  string // LISTEN_FDNAMES, as it came
	queued sync.WaitGroup
	last   chan struct{} // closed when all that was said so far is with the manager, or given up
	mute   string        // why the manager was not told last

	// What it was told.
	status    string
	ready     bool
	reloading bool
	stopping  bool
	hangUps   int      // how many of them it has been told of
	extended  *attempt // for whom it has been asked for time
}

// meetManager takes what the manager has passed out of the environment: none of it is for
// the generations.
func meetManager(in *invocation) (*manager, error) {
	m := &manager{in: in, names: os.Getenv("LISTEN_FDNAMES"), last: make(chan struct{})}
	close(m.last)
	var err error
	m.env, err = systemd.Take()
	return m, err
}

func (m *manager) listens() bool { return m.env.Notifier != nil }

// tell has the manager told something, after all that it was told before, and does not
// wait for that.
func (m *manager) tell(states ...systemd.State) {
	if !m.listens() {
		return
	}
	before, said := m.last, make(chan struct{})
	m.last = said
	m.queued.Go(func() {
		defer close(said)
		<-before
		why := ""
		if err := m.env.Notifier.Send(context.Background(), states...); err != nil {
			why = sentence(err)
		}
		if why != "" && why != m.mute {
			m.in.say("the service manager cannot be told how the service does: %s", why)
		}
		m.mute = why // one at a time is here
	})
}

// farewellLimit is how long a manager may take to act on the last words. They are lost if
// it does not know any more whose they are.
const farewellLimit = 5 * time.Second

// farewell says that the service has ended, and returns when the manager knows.
func (m *manager) farewell(why string) {
	defer m.env.Close()
	if !m.listens() {
		return
	}
	m.tell(systemd.Stopping(), systemd.Status(why))
	ctx, cancel := context.WithTimeoutCause(context.Background(), farewellLimit, &impatienceError{farewellLimit})
	defer cancel()
	select {
	case <-m.last:
		if err := m.env.Notifier.Barrier(ctx); err != nil {
			m.in.say("the service manager may not have heard how the service has ended: %s", sentence(err))
		}
	case <-ctx.Done():
		m.in.say("the service manager does not listen: %s", sentence(context.Cause(ctx)))
	}
}

// announce tells the manager how the service stands, as far as it does not know. It is
// called when the loop has acted on something.
func (s *supervisor) announce() {
	m := s.manager
	if !m.listens() {
		return
	}
	text := s.standing()
	status := systemd.Status(text)
	if s.stop != 0 {
		if !m.stopping {
			m.stopping = true
			m.tell(systemd.Stopping(), status)
			m.status = text
			s.shrank = time.Now()
			s.extendStop()
		}
	} else {
		if !m.ready && s.ready {
			m.ready = true
			m.tell(systemd.Ready(), status)
			m.status = text
		}
		// A manager that has sent the signal itself waits for both words, also if it
		// comes to nothing.
		if m.ready && m.hangUps < s.hangUps {
			m.hangUps, m.reloading = s.hangUps, true
			m.tell(systemd.Reloading(), status)
			m.status = text
		}
		if limit := s.opts.timeout.limit; m.reloading && s.attempt != nil && s.attempt != m.extended && limit > 0 {
			m.extended = s.attempt
			m.tell(systemd.ExtendTimeout(limit + cancelTimeout + endGrace)) // by then it owns, or has ended
		}
		if m.reloading && s.attempt == nil && !s.again {
			m.reloading = false
			m.tell(systemd.Ready(), status)
			m.status = text
		}
	}
	if text != m.status {
		m.status = text
		m.tell(status)
	}
}

// standing says in a line how the service stands.
func (s *supervisor) standing() string {
	older := 0
	for _, g := range s.live {
		if g != s.owner && (s.attempt == nil || s.attempt.generation != g) {
			older++
		}
	}
	var text string
	switch {
	case s.stop != 0:
		return "stopping: " + count(len(s.live), "process has not ended", "processes have not ended")
	case s.owner != nil && !s.ready:
		text = fmt.Sprintf("%v owns the service and is not ready yet", s.owner)
	case s.owner != nil:
		text = fmt.Sprintf("%v owns the service", s.owner)
	case s.last != nil:
		text = fmt.Sprintf("%v, which has owned the service, has ended", s.last)
	case s.plain:
		text = fmt.Sprintf("nobody has come to own the service within %v: does it use the library?", s.opts.timeout.limit)
	default:
		text = "nobody owns the service yet"
	}
	if s.attempt != nil {
		text += fmt.Sprintf("; %v has been started", s.attempt.generation)
	}
	if older > 0 && s.owner != nil {
		text += "; " + count(older, "older process has not ended", "older processes have not ended")
	}
	if s.trouble != "" {
		text += "; who owns the service cannot be told: " + s.trouble
	}
	if s.failure != "" {
		text += "; " + s.failure
	}
	return text
}

func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// A process that finishes what it has gets more time to stop from the manager: as long as
// its deadline has not come, and else for stopPatience whenever it has less to do than
// stopInterval ago. One that hangs does not.
const (
	stopInterval = 5 * time.Second
	stopPatience = 30 * time.Second
)

// extendStop asks for time, if there is a reason to.
func (s *supervisor) extendStop() {
	now, bounded := time.Now(), false
	for _, g := range s.live {
		if g.outside {
			continue
		}
		n, ok := sockets(g.pid)
		if ok && n < g.sockets {
			s.shrank = now
		}
		g.sockets = n
		bounded = bounded || g.deadline.After(now)
	}
	if bounded || now.Sub(s.shrank) < stopPatience {
		s.manager.tell(systemd.ExtendTimeout(stopPatience))
	}
	s.after(stopInterval, s.extendStop)
}

// sockets counts the sockets that a process has open, where there is a /proc that tells:
// what it has left to do, whatever program it is.
func sockets(pid int) (n int, ok bool) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, false
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n, true
}

// watchdog tells the manager that the service works, for as long as it does.
func (s *supervisor) watchdog() {
	m := s.manager
	m.env.Notifier.KeepAlive(s.ctx, m.env.Watchdog, s.works, func(err error) {
		s.in.say("the service manager's watchdog is told nothing: %s", sentence(err))
	})
}

// works returns why the service does not work: an owner does not answer, or this
// process does not get round to anything. Where nobody owns there is nobody to ask.
func (s *supervisor) works(ctx context.Context) error {
	owned := make(chan bool, 1) // the loop does not wait for who has given up
	select {
	case s.inbox <- func() { owned <- s.owner != nil }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !<-owned {
		return nil
	}
	if v := look(ctx, s.in.socket); v.err != nil && !errors.Is(v.err, crossfade.ErrNoOwner) && !errors.Is(v.err, crossfade.ErrMoved) {
		return v.err
	}
	return nil
}

// activate has a program get the sockets that the manager has passed, if there are any:
// as from the manager itself, see the command activate.
func (m *manager) activate(p *program) error {
	if len(m.env.Sockets) == 0 {
		return nil
	}
	if _, err := exec.LookPath(p.path); err != nil {
		return err // which nobody could tell from the end of the program later
	}
	for _, socket := range m.env.Sockets {
		if err := socket.FD.Control(func(fd uintptr) { p.files = append(p.files, fd) }); err != nil {
			return err
		}
	}
	p.env = append(p.env, "LISTEN_FDS="+strconv.Itoa(len(m.env.Sockets)))
	if m.names != "" {
		p.env = append(p.env, "LISTEN_FDNAMES="+m.names)
	}
	p.argv = append([]string{"crossfade", activateCommand.name, p.path}, p.argv...)
	p.path = "/proc/self/exe" // sockets are passed on Linux only
	return nil
}

// becomeActivated is the command activate.
func becomeActivated(args []string) result {
	env := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	err := syscall.Exec(args[0], args[1:], env)
	return result{code: codeNobody, reason: (&exec.Error{Name: args[0], Err: err}).Error()}
}

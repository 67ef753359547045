package unit_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/internal/unit"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// These tests are of what lies between two calls of a member, which no process can be
// made to do at a certain time.

// member returns a member in the one unit that there is, the test's own process as
// the main one of it.
func member(t *testing.T, m *fakemanager.Manager, cfg unit.Config) (*unit.Member, unit.Part) {
	t.Helper()
	m.SetMain(os.Getpid())
	notifier, err := systemd.Open(m.Address())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.SameUnit = func(int) (bool, error) { return true, nil }
	cfg.Tell = func(handoff.ServiceManager) {}
	if cfg.Standing == nil {
		cfg.Standing = func() *unit.Standing { return &unit.Standing{State: handoff.StateOwner, Ready: true} }
	}
	if cfg.Stored == nil {
		cfg.Stored = func() ([]unit.Stored, []string) { return nil, nil }
	}
	return unit.New(cfg), unit.Part{Notifier: notifier}
}

// other is a process that lives, which a main process has to.
func other(t *testing.T) handoff.Process {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	return handoff.Process{PID: cmd.Process.Pid}
}

// heard is a log of which nothing matters but that it got a line.
type heard chan struct{}

// Write implements io.Writer.
func (h heard) Write(p []byte) (int, error) {
	select {
	case h <- struct{}{}:
	default:
	}
	return len(p), nil
}

// A successor that reports its progress without a pause keeps nothing else from being
// said.
func TestStatusThatNeverStandsStill(t *testing.T) {
	m := fakemanager.New(t, nil)
	var n atomic.Int64
	member, part := member(t, m, unit.Config{Standing: func() *unit.Standing {
		attempt := &handoff.Attempt{Successor: handoff.Process{Instance: "b", PID: 4242}, Status: fmt.Sprint("step ", n.Add(1))}
		return &unit.Standing{State: handoff.StateOffering, Ready: true, Attempt: attempt}
	}})
	member.Begin(part, unit.NoPredecessor, false)
	member.Ready()
	m.Await("READY=1")
	next := other(t)
	member.Out()
	if member.Relieve(next, 0) == nil {
		t.Error("the successor gets nothing")
	}
	if m.Main() != next.PID {
		t.Errorf("the main process is %d, not %d", m.Main(), next.PID)
	}
}

// What becomes due while a message is under way is said with the status of then, and
// not with that of the message before.
func TestStatusOfWhatFollows(t *testing.T) {
	m := fakemanager.New(t, nil)
	var looks atomic.Int64
	var p *unit.Member
	p, part := member(t, m, unit.Config{Standing: func() *unit.Standing {
		first := looks.Add(1) == 1
		if first {
			p.Ready() // a moment later
		}
		return &unit.Standing{State: handoff.StateOwner, Ready: !first}
	}})
	p.Begin(part, unit.NoPredecessor, false)
	if msg := m.Await("READY=1"); !strings.HasPrefix(msg.Value("STATUS"), "serving") {
		t.Errorf("ready is %v", msg)
	}
}

// A process that has retired has nothing in its registry any more. The store has, for
// the successor, from then on until it is that one's.
func TestStoreBetweenTwoMainProcesses(t *testing.T) {
	m := fakemanager.New(t, &fakemanager.Config{StoreMax: 8})
	fd, held, err := scm.Alive()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	defer held.Close()
	var retires atomic.Bool
	looked := make(chan struct{}, 1) // one is enough: it is waited for once
	var p *unit.Member
	p, part := member(t, m, unit.Config{Stored: func() ([]unit.Stored, []string) {
		if retires.Load() {
			p.Out() // just before this process has let go
			select {
			case looked <- struct{}{}:
			default:
			}
			return nil, nil
		}
		return []unit.Stored{{Name: "web", ID: 1, FD: fd}}, nil
	}})
	part.Store = true
	p.Begin(part, unit.NoPredecessor, false)
	p.Ready()
	m.AwaitStore("web")
	retires.Store(true)
	p.Changed()
	<-looked
	next := other(t)
	p.Relieve(next, 0)
	if m.Main() != next.PID {
		t.Errorf("the main process is %d, not %d", m.Main(), next.PID)
	}
	if got := m.Store(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("the store has %q", got)
	}
}

// The manager has not asked a process for an upgrade that is not the main one.
func TestReloadBeforeThePart(t *testing.T) {
	m := fakemanager.New(t, nil)
	var later atomic.Bool
	member, part := member(t, m, unit.Config{Standing: func() *unit.Standing {
		s := &unit.Standing{State: handoff.StateOwner, Ready: true}
		if later.Load() {
			s.Process.BuildVersion = "later"
		}
		return s
	}})
	member.Begin(part, 4242, false)
	member.Ready()
	member.Reloading()(errors.New("it is on probation"))
	member.Given(handoff.ServiceManager{NotifySocket: m.Address()})
	m.Await("READY=1")
	later.Store(true)
	member.Changed()
	m.Await("STATUS=upgrade failed: it is on probation; serving, generation 0, later")
	for _, msg := range m.Messages() {
		if msg.Has("RELOADING=1") {
			t.Errorf("the manager was told %v", msg)
		}
	}
}

// An owner can be stopped between the retirement of its predecessor and the moment at
// which it is the main process.
func TestStopBeforeThePart(t *testing.T) {
	m := fakemanager.New(t, &fakemanager.Config{StoreMax: 8})
	waits := make(heard, 1) // the first line is the one
	p, part := member(t, m, unit.Config{
		Log:    slog.New(slog.NewTextHandler(waits, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Stored: func() ([]unit.Stored, []string) { return nil, []string{"web"} },
	})
	fd, held, err := scm.Alive()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	defer held.Close()
	if err := part.Notifier.Store(t.Context(), "web", fd, systemd.NoPoll()); err != nil { // as its predecessor has
		t.Fatal(err)
	}
	m.AwaitStore("web")
	p.Begin(part, 4242, false)
	p.Ready()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.Stop(true)
	}()
	select {
	case <-waits:
	case <-stopped:
		t.Error("it has not waited for the part")
	}
	p.Given(handoff.ServiceManager{NotifySocket: m.Address(), FDStore: true})
	<-stopped
	m.Await("STOPPING=1")
	m.AwaitStore()
}

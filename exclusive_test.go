//go:build unix

package crossfade_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
)

// exclusive is a lock file that a service process holds as long as it is the one
// that works: the stand-in for a database.
type exclusive struct {
	s    *service
	path string

	mu          sync.Mutex
	file        *os.File // locked; nil while it is not held
	failSuspend bool
	failResume  bool
	held        chan struct{} // closed when Resume may go on; nil if it need not wait
}

func (x *exclusive) take() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.failResume {
		return errors.New("the disk is gone")
	}
	file, err := os.OpenFile(x.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:forbidigo // no socket
		return errors.Join(fmt.Errorf("somebody else has it: %w", err), file.Close())
	}
	x.file = file
	return nil
}

func (x *exclusive) suspend(context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.s.emit("suspend", nil, nil)
	if x.failSuspend {
		return errors.New("a transaction is open")
	}
	if x.file == nil {
		return errors.New("it is suspended twice")
	}
	err := x.file.Close()
	x.file = nil
	return err
}

func (x *exclusive) resume(ctx context.Context) error {
	x.mu.Lock()
	held := x.held
	x.mu.Unlock()
	if held != nil {
		x.s.emit("resuming", nil, nil)
		select {
		case <-held:
		case <-ctx.Done():
			return errors.New("somebody takes long")
		}
	}
	err := x.take()
	x.s.emit("resume", err, nil)
	return err
}

func init() {
	fails := func(field func(*exclusive) *bool) func(*service, json.RawMessage) (any, error) {
		return func(s *service, value json.RawMessage) (any, error) {
			s.exclusive.mu.Lock()
			defer s.exclusive.mu.Unlock()
			return done, json.Unmarshal(value, field(s.exclusive))
		}
	}
	serviceCommands["hold resume"] = func(s *service, _ json.RawMessage) (any, error) {
		s.exclusive.mu.Lock()
		defer s.exclusive.mu.Unlock()
		s.exclusive.held = make(chan struct{})
		return done, nil
	}
	serviceCommands["let resume"] = func(s *service, _ json.RawMessage) (any, error) {
		s.exclusive.mu.Lock()
		defer s.exclusive.mu.Unlock()
		close(s.exclusive.held)
		return done, nil
	}
	serviceCommands["fail suspend"] = fails(func(x *exclusive) *bool { return &x.failSuspend })
	serviceCommands["fail resume"] = fails(func(x *exclusive) *bool { return &x.failResume })
	serviceCommands["take exclusive"] = func(s *service, _ json.RawMessage) (any, error) { return done, s.exclusive.take() }
	serviceCommands["has exclusive"] = func(s *service, _ json.RawMessage) (any, error) {
		s.exclusive.mu.Lock()
		defer s.exclusive.mu.Unlock()
		return s.exclusive.file != nil, nil
	}
}

// withExclusive is a service that locks a file while it works.
func withExclusive(t testing.TB, changes ...func(*serviceSpec)) (*desk, serviceSpec, *process, string) {
	t.Helper()
	d, spec, owner, address := onProbation(t, long, append(changes, func(s *serviceSpec) {
		s.Exclusive = strings.TrimSuffix(s.Socket, "control") + "exclusive"
	})...)
	owner.do("take exclusive")
	return d, spec, owner, address
}

// wantExclusive checks that the one process has the file, and nobody else.
func wantExclusive(t *testing.T, spec serviceSpec, has *process, hasNot ...*process) {
	t.Helper()
	if !query[bool](has, "has exclusive") {
		t.Errorf("process %d has not got it", has.pid)
	}
	for _, p := range hasNot {
		if query[bool](p, "has exclusive") {
			t.Errorf("process %d has it", p.pid)
		}
	}
	f, err := os.Open(spec.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) { //nolint:forbidigo // no socket
		t.Errorf("nobody holds it: %v", err)
	}
}

func TestAnExclusiveResourceChangesHands(t *testing.T) {
	d, spec, owner, address := withExclusive(t)
	clients := startLoad(t, "tcp", address, 2)
	next := begin(d, spec, owner)
	owner.await("suspend")
	next.do("take exclusive")
	wantExclusive(t, spec, next, owner)

	next.do("rollback")
	next.await("suspend")
	owner.expect("resume")
	wantExclusive(t, spec, owner)
	clients.more(20)
	next.do("quit")

	third := begin(d, spec, owner)
	owner.await("suspend")
	third.do("take exclusive")
	third.do("settle")
	wantExit(t, owner, crossfade.ErrRetired)
	wantExclusive(t, spec, third, owner)
	clients.servedBy(third)
	clients.stop()
	if third.happened("resume") || third.happened("suspend") {
		t.Error("a hook was called without a reason")
	}
}

func TestAnExclusiveResourceComesBackFromTheDead(t *testing.T) {
	d, spec, owner, address := withExclusive(t)
	next := begin(d, spec, owner)
	owner.await("suspend")
	next.do("take exclusive")
	next.kill()
	owner.expect("resume")
	wantExclusive(t, spec, owner)
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
}

// A candidate that gives up after Suspend has changed nothing for good (I4).
func TestAnExclusiveResourceAfterAnAbort(t *testing.T) {
	d, spec, owner, address := withExclusive(t)
	clients := startLoad(t, "tcp", address, 2)
	for _, step := range []string{"the last page", "FinalReceived", "Commit"} {
		t.Run(step, func(t *testing.T) {
			c := newCandidate(t, spec.Socket, step)
			owner.await("suspend")
			waiting := connect(t, "tcp", address) // as long as nobody has it, nobody accepts
			c.close()
			owner.expect("resume")
			owner.awaitFailure()
			if a := waiting.answer(); a.PID != owner.pid {
				t.Errorf("answered by %+v", a)
			}
			wantExclusive(t, spec, owner)
			clients.more(20)
		})
	}
	clients.stop()
	next := begin(d, spec, owner)
	next.do("take exclusive")
	wantExclusive(t, spec, next, owner)
}

// Between Suspend and Commit nobody accepts, on any socket.
func TestNobodyAcceptsWhileNobodyHasTheResource(t *testing.T) {
	_, spec, owner, address := withExclusive(t)
	pc := owner.do("listen", socketSpec{Name: "packets", Network: "udp", Address: loopback + ":0"})
	var l listening
	if err := json.Unmarshal(pc.Value, &l); err != nil {
		t.Fatal(err)
	}
	c := newCandidate(t, spec.Socket, "the last page")
	owner.await("suspend")
	waiting := connect(t, "tcp", address)
	packets, err := net.Dial("udp", l.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	if _, err := packets.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if s := owner.status(); s.State.String() != "committing" {
		t.Errorf("the state is %v", s.State)
	}
	for name, conn := range map[string]net.Conn{"connection": waiting, "packet": packets} {
		if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the %s was answered: %d bytes, %v", name, n, err)
		}
	}
	c.close()
	owner.expect("resume")
	if a := waiting.answer(); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
	if err := packets.SetReadDeadline(time.Now().Add(generous)); err != nil {
		t.Fatal(err)
	}
	if _, err := packets.Read(make([]byte, 100)); err != nil {
		t.Errorf("the packet has got no answer: %v", err)
	}
}

func TestSuspendThatFails(t *testing.T) {
	d, spec, owner, address := withExclusive(t)
	owner.do("fail suspend", true)
	next := d.launch(spec)
	e := next.await("ready")
	if !errors.Is(e.Err, crossfade.ErrAborted) || !strings.Contains(e.Err.Error(), "letting go by Config.Suspend: a transaction is open") {
		t.Errorf("Ready: %v", e.Err)
	}
	next.do("quit")
	owner.awaitFailure("a transaction is open")
	if owner.happened("resume") {
		t.Error("Resume was called although Suspend has undone what it did")
	}
	wantExclusive(t, spec, owner)
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}

	owner.do("fail suspend", false)
	next = begin(d, spec, owner)
	next.do("take exclusive")
	next.do("fail suspend", true)
	if e := next.try("rollback"); e.Err == nil || !strings.Contains(e.Err.Error(), "a transaction is open") {
		t.Errorf("Rollback: %v", e.Err)
	}
	wantExclusive(t, spec, next, owner)
	if a := ask(t, "tcp", address); a.PID != next.pid {
		t.Errorf("answered by %+v", a)
	}
	next.do("fail suspend", false)
	next.do("rollback")
	owner.expect("resume")
	wantExclusive(t, spec, owner, next)
}

func TestResumeThatFails(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := withExclusive(t)
	next := begin(d, spec, owner)
	owner.await("suspend")
	next.do("take exclusive")
	owner.do("fail resume", true)
	next.do("rollback")
	owner.awaitLog("Config.Resume fails", "the disk is gone")
	owner.awaitFailure()
	waiting := connect(t, "tcp", address)
	if w := owner.status().Warnings; len(w) != 1 || !strings.Contains(w[0], "the disk is gone") {
		t.Errorf("the warnings are %q", w)
	}
	owner.do("fail resume", false)
	owner.awaitLog("Config.Resume has succeeded")
	if a := waiting.answer(); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
	wantExclusive(t, spec, owner, next)
	if w := owner.status().Warnings; len(w) > 0 {
		t.Errorf("the warnings are %q", w)
	}

	// Somebody who can take it may take over meanwhile.
	next.do("quit")
	next = begin(d, spec, owner)
	next.do("take exclusive")
	owner.do("fail resume", true)
	next.kill()
	owner.awaitFailure()
	last := begin(d, spec, owner)
	last.do("take exclusive")
	last.do("settle")
	wantExit(t, owner, crossfade.ErrRetired)
	wantExclusive(t, spec, last, owner)
}

// An owner that takes its resource back serves its control socket meanwhile, even
// if there was no room for that at first.
func TestTheControlSocketDuringAResume(t *testing.T) {
	d, spec, owner, address := withExclusive(t, func(s *serviceSpec) { s.NoFile = 64 })
	next := begin(d, spec, owner)
	owner.await("suspend")
	owner.do("hold resume")
	owner.do("fill descriptors")
	next.kill()
	owner.awaitLog("the control socket cannot be served yet")
	owner.await("resuming")
	owner.do("free descriptors")
	awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.State == handoff.StateOwner && s.Process.PID == owner.pid })
	owner.do("let resume")
	owner.awaitFailure()
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
	last := begin(d, spec, owner)
	last.do("settle")
	wantExit(t, owner, crossfade.ErrRetired)
}

// A Resume that takes its time does not keep somebody else from taking over.
func TestAResumeIsEndedByTheNextHandoff(t *testing.T) {
	t.Parallel()
	d, spec, owner, _ := withExclusive(t, func(s *serviceSpec) { s.CommitTimeout = 3 * time.Second })
	next := begin(d, spec, owner)
	owner.await("suspend")
	owner.do("hold resume")
	next.kill()
	owner.await("resuming")
	owner.awaitFailure() // after CommitTimeout; from now on it tries again
	owner.await("resuming")
	spec.Wait = generous
	last := begin(d, spec, owner)
	last.do("take exclusive")
	last.do("settle")
	wantExit(t, owner, crossfade.ErrRetired)
	wantExclusive(t, spec, last, owner)
}

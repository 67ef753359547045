//go:build unix

package crossfade_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/leak"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// long is a probation whose end no test waits for.
const long = time.Hour

// onProbation is a service whose every generation asks for a probation.
func onProbation(t testing.TB, length time.Duration, changes ...func(*serviceSpec)) (*desk, serviceSpec, *process, string) {
	t.Helper()
	return startOwner(t, append([]func(*serviceSpec){func(s *serviceSpec) {
		s.Probation, s.MaxProbation, s.Linger = length, long, true
	}}, changes...)...)
}

// begin starts a successor, and returns when it owns and the owner stands by.
func begin(d *desk, spec serviceSpec, owner *process, options ...func(*process)) *process {
	d.t.Helper()
	next := d.launch(spec)
	next.expect("ready")
	owner.awaitLog("msg=state", "to=probation")
	for _, o := range options {
		o(next)
	}
	return next
}

// wantResumed checks that the owner owns again and hands over to a next one.
func wantResumed(t *testing.T, d *desk, spec serviceSpec, owner *process, address string, generation uint64) {
	t.Helper()
	s := awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.State == handoff.StateOwner })
	if s.Process.PID != owner.pid || s.LastFailure == nil {
		t.Errorf("the status is %+v, want that of process %d after a failure", s, owner.pid)
	}
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v, want process %d", a, owner.pid)
	}
	if owner.happened("exit") {
		t.Error("Exit of the one that resumed is closed")
	}
	spec.Probation = 0
	last := d.launch(spec, environ("CROSSFADE_PROBATION=0"))
	last.expect("ready")
	wantExit(t, owner, crossfade.ErrRetired)
	last.expect("settled")
	wantGeneration(t, last, generation)
	if a := ask(t, "tcp", address); a.PID != last.pid {
		t.Errorf("answered by %+v, want process %d", a, last.pid)
	}
}

func TestASuccessorThatDiesOnProbationIsSucceededByItsPredecessor(t *testing.T) {
	d, spec, owner, address := onProbation(t, long)
	clients := startLoad(t, "tcp", address, 2)
	for round := range 3 {
		next := begin(d, spec, owner)
		clients.servedBy(next)
		if a := ask(t, "tcp", address); a.PID != next.pid {
			t.Errorf("answered by %+v, want process %d", a, next.pid)
		}
		next.kill()
		// Those that it had accepted have died with it: no library can help them.
		clients.forgive()
		owner.awaitFailure("step=\"Settle or Rollback\"", "the other side is gone")
		clients.more(20)
		if a := ask(t, "tcp", address); a.PID != owner.pid {
			t.Errorf("round %d: answered by %+v, want process %d", round, a, owner.pid)
		}
	}
	clients.stop()
	wantResumed(t, d, spec, owner, address, 5)
}

func TestRollback(t *testing.T) {
	d, spec, owner, address := onProbation(t, long)
	local := d.path("local")
	owner.do("listen", socketSpec{Name: "local", Network: "unix", Address: local})
	spec.Sockets = append(spec.Sockets, socketSpec{Name: "local", Network: "unix", Address: local})
	clients := startLoad(t, "tcp", address, 2)
	old := connect(t, "tcp", address)
	if a := old.answer(); a.PID != owner.pid {
		t.Fatalf("answered by %+v", a)
	}
	next := begin(d, spec, owner)
	open := connect(t, "tcp", address)
	if a := open.answer(); a.PID != next.pid {
		t.Fatalf("answered by %+v", a)
	}
	if a := old.again(); a.PID != owner.pid {
		t.Errorf("the predecessor's connection is served by %+v", a)
	}
	if s := owner.status(); s.State != handoff.StateProbation || s.Attempt == nil || s.Attempt.Deadline.IsZero() {
		t.Errorf("the predecessor's status is %+v", s)
	}
	if s := next.status(); s.Probation == nil || s.Probation.Predecessor.PID != owner.pid || time.Until(s.Probation.Until) > long {
		t.Errorf("the successor's status is %+v", s)
	}
	next.do("rollback")
	wantExit(t, next, crossfade.ErrRolledBack)
	owner.awaitFailure("the successor rolled back: not good enough")
	if a := open.again(); a.PID != next.pid {
		t.Errorf("the connection that it had accepted is served by %+v", a)
	}
	clients.more(20)
	clients.stop()
	if s := next.status(); s.State != handoff.StateOut || s.Probation != nil {
		t.Errorf("its status is %+v", s)
	}
	if len(next.status().Descriptors) > 0 {
		t.Errorf("it has still got %v", next.status().Descriptors)
	}
	for _, command := range []string{"rollback", "settle"} {
		if e := next.try(command); !errors.Is(e.Err, crossfade.ErrRolledBack) {
			t.Errorf("%s after that: %v", command, e.Err)
		}
	}
	wantSocket(t, local)
	wantSocket(t, spec.Socket)
	wantResumed(t, d, spec, owner, address, 3)

	// It holds nothing that a fresh start could trip over (I6), though it goes on.
	last := awaitStatus(t, spec.Socket, func(*handoff.Status) bool { return true }).Process.PID
	for _, p := range d.processes {
		if p.pid == last || p.pid == owner.pid {
			p.kill()
		}
	}
	spec.Sockets[0].Address = address
	fresh := d.launch(spec)
	fresh.expect("ready")
	wantFirst(t, fresh, 1)
	if a := open.again(); a.PID != next.pid {
		t.Errorf("the connection that it had accepted is served by %+v", a)
	}
	open.Close()
	next.do("quit")
	if status := next.exitStatus(); status != crossfade.ExitRolledBack {
		t.Errorf("it exits with %d", status)
	}
}

func TestSettle(t *testing.T) {
	d, spec, owner, address := onProbation(t, long)
	for _, command := range []string{"settle", "rollback"} {
		e := owner.try(command)
		if first := command == "settle"; first && e.Err != nil || !first && !errors.Is(e.Err, crossfade.ErrSettled) {
			t.Errorf("%s of a first process: %v", command, e.Err)
		}
	}
	candidate := launchCandidate(d, spec)
	for _, command := range []string{"settle", "rollback"} {
		if e := candidate.try(command); !errors.Is(e.Err, crossfade.ErrNotReady) {
			t.Errorf("%s of a candidate: %v", command, e.Err)
		}
	}
	candidate.kill()
	owner.awaitFailure()
	next := begin(d, spec, owner)
	if next.happened("settled") {
		t.Error("it is settled at once")
	}
	next.do("settle")
	next.expect("settled")
	wantExit(t, owner, crossfade.ErrRetired)
	next.do("settle")
	if e := next.try("rollback"); !errors.Is(e.Err, crossfade.ErrSettled) {
		t.Errorf("rollback after that: %v", e.Err)
	}
	if a := ask(t, "tcp", address); a.PID != next.pid {
		t.Errorf("answered by %+v", a)
	}
}

func TestTheEndOfProbationBelongsToTheOwner(t *testing.T) {
	t.Run("it stays", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, _ := onProbation(t, 50*time.Millisecond)
		next := begin(d, spec, owner)
		next.expect("settled")
		wantExit(t, owner, crossfade.ErrRetired)
	})
	t.Run("it rolls back", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, address := onProbation(t, 50*time.Millisecond, func(s *serviceSpec) { s.AtProbationEnd = crossfade.RollbackAtEnd })
		next := begin(d, spec, owner)
		wantExit(t, next, crossfade.ErrRolledBack)
		owner.awaitFailure("the probation is over, and nobody has settled it")
		wantResumed(t, d, spec, owner, address, 3)
	})
	t.Run("it was settled before", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, _ := onProbation(t, long, func(s *serviceSpec) { s.AtProbationEnd = crossfade.RollbackAtEnd })
		next := begin(d, spec, owner)
		next.do("settle")
		wantExit(t, owner, crossfade.ErrRetired)
	})
	t.Run("it is frozen", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, address := onProbation(t, 50*time.Millisecond)
		spec.Probation = time.Second
		next := begin(d, spec, owner, func(p *process) { p.signal(syscall.SIGSTOP) })
		owner.awaitLog("the probation is over")
		if got := query[string](owner, "state"); got != "probation" {
			t.Errorf("the predecessor is in state %s", got)
		}
		waiting := connect(t, "tcp", address)
		next.signal(syscall.SIGCONT)
		next.expect("settled")
		wantExit(t, owner, crossfade.ErrRetired)
		if a := waiting.answer(); a.PID != next.pid {
			t.Errorf("answered by %+v", a)
		}
	})
	t.Run("it is frozen and killed", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, address := onProbation(t, time.Second)
		next := begin(d, spec, owner, func(p *process) { p.signal(syscall.SIGSTOP) })
		owner.awaitLog("the probation is over")
		waiting := connect(t, "tcp", address)
		next.kill()
		owner.awaitFailure()
		if a := waiting.answer(); a.PID != owner.pid {
			t.Errorf("answered by %+v", a)
		}
		wantResumed(t, d, spec, owner, address, 3)
	})
}

func TestWhoDecidesHowLongAProbationIs(t *testing.T) {
	for _, test := range []struct {
		name    string
		owner   time.Duration
		next    time.Duration
		environ []string
		want    time.Duration
		atEnd   crossfade.ProbationEnd
	}{
		{name: "nobody wants one"},
		{name: "the predecessor, for one that does not ask", owner: time.Minute, want: time.Minute},
		{name: "the successor", owner: time.Minute, next: 2 * time.Minute, want: 2 * time.Minute},
		{name: "the environment", owner: time.Minute, next: 2 * time.Minute, environ: []string{"CROSSFADE_PROBATION=3m"}, want: 3 * time.Minute},
		{name: "the environment, for none", owner: time.Minute, next: 2 * time.Minute, environ: []string{"CROSSFADE_PROBATION=0"}},
		{name: "the predecessor's limit", next: 2 * long, want: long},
		{name: "the environment, for the end", next: time.Minute, environ: []string{"CROSSFADE_AT_PROBATION_END=rollback"}, want: time.Minute, atEnd: crossfade.RollbackAtEnd},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d, spec, owner, _ := onProbation(t, test.owner)
			spec.Probation, spec.MaxProbation = test.next, 3*long
			before := time.Now()
			next := d.launch(spec, environ(test.environ...))
			next.expect("ready")
			if test.want == 0 {
				next.expect("settled")
				wantExit(t, owner, crossfade.ErrRetired)
				return
			}
			p := next.status().Probation
			if p == nil || p.Until.Before(before.Add(test.want)) || p.Until.After(time.Now().Add(test.want)) || p.AtEnd != test.atEnd {
				t.Fatalf("its probation is %+v, want %v from %v", p, test.want, before)
			}
			owner.awaitLog("standing by until it settles", "probation="+test.want.String())
		})
	}
}

// A chain would let two own: the first resumes when the second dies, though the
// third has the service.
func TestAnOwnerOnProbationHandsOverToNobody(t *testing.T) {
	d, spec, owner, address := onProbation(t, long)
	next := begin(d, spec, owner)
	refused := newCandidate(t, spec.Socket, "Hello").wantRefusal(pb.RefuseCode_REFUSE_CODE_PROBATION)
	if refused.GetWho().GetPid() != int64(owner.pid) || refused.GetUntil().AsDuration() <= 0 || refused.GetUntil().AsDuration() > long {
		t.Errorf("the refusal is %v", refused)
	}
	impatient := d.launch(spec)
	if e := impatient.await("new"); !errors.Is(e.Err, crossfade.ErrProbation) {
		t.Errorf("New: %v", e.Err)
	}
	if e := next.try("upgrade"); !errors.Is(e.Err, crossfade.ErrProbation) {
		t.Errorf("Upgrade: %v", e.Err)
	}
	spec.Wait = generous
	third := d.launch(spec)
	third.awaitLog("the owner asks to wait", "in probation itself")
	if a := ask(t, "tcp", address); a.PID != next.pid {
		t.Errorf("answered by %+v", a)
	}
	next.do("settle")
	third.expect("ready")
	next.awaitLog("msg=state", "to=probation")
	wantExit(t, owner, crossfade.ErrRetired)
	if a := ask(t, "tcp", address); a.PID != third.pid {
		t.Errorf("answered by %+v", a)
	}
}

func TestThePredecessorDiesDuringAProbation(t *testing.T) {
	d, spec, owner, address := onProbation(t, long)
	clients := startLoad(t, "tcp", address, 2)
	next := begin(d, spec, owner)
	ask(t, "tcp", address) // what the predecessor had accepted has been answered
	clients.servedBy(next)
	owner.kill()
	clients.forgive() // of those that it had accepted
	next.expect("settled")
	next.expect("gone")
	if e := next.try("rollback"); !errors.Is(e.Err, crossfade.ErrSettled) {
		t.Errorf("rollback: %v", e.Err)
	}
	clients.more(20)
	clients.stop()
	wantGeneration(t, next, 2)
	third := d.launch(spec)
	third.expect("ready")
}

// The predecessor is driven by hand, to die at the one moment that counts.
func TestThePredecessorDiesDuringARollback(t *testing.T) {
	for _, end := range []string{"dies", "breaks the protocol"} {
		t.Run(end, func(t *testing.T) {
			d := newDesk(t)
			o := newOwnerByHand(t, d.path("control"))
			ds, fds := manyListeners(t, 1)
			spec := serviceSpec{Socket: o.path, Sockets: []socketSpec{manySocket(0)}, Ready: true}
			next := d.launch(spec)
			o.accept()
			o.readHello()
			o.sendWelcomeFor(long, len(ds))
			o.expect("Prepared", func(m *pb.ClientMessage) bool { return m.GetPrepared() != nil })
			o.sendPages(0, ds, fds)
			o.expect("Received", func(m *pb.ClientMessage) bool { return m.GetReceived() != nil })
			o.commit()
			next.expect("ready")
			asked := next.begin("rollback")
			o.expect("Rollback", func(m *pb.ClientMessage) bool { return m.GetRollback().GetReason() == "not good enough" })
			if got := query[string](next, "state"); got != "yielding" {
				t.Errorf("its state is %s", got)
			}
			if w := next.status().Warnings; len(w) != 1 {
				t.Errorf("its warnings are %q", w)
			}
			if a := ask(t, "tcp", ds[0].GetAddress()); a.PID != next.pid {
				t.Errorf("answered by %+v: until it has read Resumed it accepts", a)
			}
			if e := next.try("settle"); !errors.Is(e.Err, crossfade.ErrRolledBack) {
				t.Errorf("Settle: %v", e.Err)
			}
			if e := next.try("rollback", 10*time.Millisecond); !errors.Is(e.Err, crossfade.ErrOutcomeUnknown) {
				t.Errorf("another Rollback, for a while: %v", e.Err)
			}
			if end != "dies" {
				// Then it may own or not, and this process must not.
				o.retire()
				if e := asked.wait(); !errors.Is(e.Err, crossfade.ErrProtocol) {
					t.Errorf("Rollback: %v", e.Err)
				}
				wantExit(t, next, crossfade.ErrRolledBack)
				o.wantEnd()
				return
			}
			o.die()
			if e := asked.wait(); !errors.Is(e.Err, crossfade.ErrLost) {
				t.Errorf("Rollback: %v", e.Err)
			}
			next.expect("settled")
			wantGeneration(t, next, 7)
			if a := ask(t, "tcp", ds[0].GetAddress()); a.PID != next.pid {
				t.Errorf("answered by %+v", a)
			}
		})
	}
}

func TestAnHTTPServerNoticesNoProbation(t *testing.T) {
	leak.Check(t)
	d, spec, owner, address := onProbation(t, long, func(s *serviceSpec) { s.Sockets[0].HTTP = true })
	url := "http://" + address + "/"
	keepAlive := new(http.Transport)
	defer keepAlive.CloseIdleConnections()
	if a := get(t, keepAlive, url); a.PID != owner.pid {
		t.Fatalf("process %d answered", a.PID)
	}
	for range 3 {
		next := begin(d, spec, owner)
		if a := get(t, &http.Transport{DisableKeepAlives: true}, url); a.PID != next.pid {
			t.Errorf("process %d answered a new connection", a.PID)
		}
		if a := get(t, keepAlive, url); a.PID != owner.pid {
			t.Errorf("process %d answered on a connection of its predecessor", a.PID)
		}
		next.do("rollback")
		owner.awaitFailure()
		if a := get(t, &http.Transport{DisableKeepAlives: true}, url); a.PID != owner.pid {
			t.Errorf("process %d answered a new connection", a.PID)
		}
		next.do("quit")
	}
	if owner.happened("http web") {
		t.Errorf("the server complains: %s", owner.await("http web").text())
	}
}

func TestStopDuringAProbation(t *testing.T) {
	t.Run("the owner gives the service back", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, address := onProbation(t, long)
		next := begin(d, spec, owner)
		next.do("stop")
		wantExit(t, next, crossfade.ErrStopped)
		wantSocket(t, spec.Socket)
		next.do("quit")
		if status := next.exitStatus(); status != 0 {
			t.Errorf("it exits with %d", status)
		}
		owner.awaitFailure("the successor rolled back: stopped")
		wantResumed(t, d, spec, owner, address, 3)
	})
	t.Run("the owner, whose predecessor is frozen", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, address := onProbation(t, long)
		spec.CommitTimeout = 100 * time.Millisecond
		next := begin(d, spec, owner)
		owner.signal(syscall.SIGSTOP)
		next.do("stop")
		wantExit(t, next, crossfade.ErrStopped)
		wantSocket(t, spec.Socket)
		owner.signal(syscall.SIGCONT)
		owner.awaitFailure()
		wantResumed(t, d, spec, owner, address, 3)
	})
	t.Run("the owner, whose predecessor has gone", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, _ := onProbation(t, long)
		next := begin(d, spec, owner)
		owner.kill()
		next.expect("settled")
		next.do("stop")
		wantExit(t, next, crossfade.ErrStopped)
		wantMissing(t, spec.Socket)
	})
	for _, test := range []struct {
		end  crossfade.ProbationEnd
		want error // of the predecessor
	}{{crossfade.SettleAtEnd, crossfade.ErrRetired}, {crossfade.RollbackAtEnd, crossfade.ErrRetired}} {
		t.Run(fmt.Sprintf("the predecessor, and the answer is %v", test.end), func(t *testing.T) {
			t.Parallel()
			d, spec, owner, address := onProbation(t, long)
			spec.AtProbationEnd = test.end
			next := begin(d, spec, owner)
			owner.do("stop")
			wantExit(t, owner, test.want)
			next.expect("settled")
			wantGeneration(t, next, 2)
			if a := ask(t, "tcp", address); a.PID != next.pid {
				t.Errorf("answered by %+v", a)
			}
		})
	}
	t.Run("the predecessor, and the owner is frozen", func(t *testing.T) {
		t.Parallel()
		d, spec, owner, address := onProbation(t, long, func(s *serviceSpec) { s.CommitTimeout = 3 * time.Second })
		next := begin(d, spec, owner)
		next.signal(syscall.SIGSTOP)
		owner.do("stop")
		wantExit(t, owner, crossfade.ErrRetired)
		wantSocket(t, spec.Socket)
		next.signal(syscall.SIGCONT)
		next.expect("settled")
		wantGeneration(t, next, 2)
		if a := ask(t, "tcp", address); a.PID != next.pid {
			t.Errorf("answered by %+v", a)
		}
	})
}

// What is promised to whoever has called Upgrade ends at CommitAck.
func TestAnUpgradedProcessOnProbation(t *testing.T) {
	d, spec, owner, address := onProbation(t, long)
	owner.do("upgrade")
	next := d.spawned()
	next.expect("ready")
	if e := owner.try("upgrade"); !errors.Is(e.Err, crossfade.ErrMoved) {
		t.Errorf("Upgrade by the one that stands by: %v", e.Err)
	}
	next.kill()
	owner.awaitFailure()
	wantResumed(t, d, spec, owner, address, 3)
}

// told is an Event of another process.
type told struct {
	State   crossfade.State
	Text    string
	Attempt *handoff.Attempt
}

func TestEventsTellWhatHappens(t *testing.T) {
	d, spec, owner, _ := onProbation(t, long, func(s *serviceSpec) { s.Events = true })
	next := begin(d, spec, owner)
	next.do("rollback")
	wantExit(t, next, crossfade.ErrRolledBack)
	owner.awaitFailure()
	last := begin(d, spec, owner)
	last.do("settle")
	wantExit(t, owner, crossfade.ErrRetired)
	for _, test := range []struct {
		name string
		p    *process
		want []string
	}{
		{"the predecessor", owner, []string{
			"owner", "offering " + next.name(), "committing " + next.name(), "standby " + next.name(), "probation " + next.name(),
			"owner " + next.name() + " rolled back", "offering " + last.name(), "committing " + last.name(), "standby " + last.name(),
			"probation " + last.name(), "draining " + last.name(),
		}},
		{"the one that rolled back", next, []string{"owner", "yielding", "out"}},
		{"the successor", last, []string{"owner", "owner settled"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, want := range test.want {
				e := test.p.await("event")
				var event told
				if err := json.Unmarshal(e.Value, &event); err != nil {
					t.Fatal(err)
				}
				got := event.State.String()
				if event.Attempt != nil {
					got += fmt.Sprint(" ", event.Attempt.Successor.PID)
				}
				switch {
				case errors.Is(e.Err, crossfade.ErrRolledBack):
					got += " rolled back"
				case e.Err != nil:
					got += " " + e.Err.Error()
				case strings.HasPrefix(event.Text, "settled"):
					got += " settled"
				}
				if got != want || event.Text == "" {
					t.Errorf("event %q (%s), want %q", got, event.Text, want)
				}
			}
		})
	}
}

// name is how the events of another process call this one.
func (p *process) name() string { return fmt.Sprint(p.pid) }

//go:build unix

package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// This file tests the commands against real services.

const (
	long  = 10 * time.Minute // a probation that no test lasts
	scant = "2s"             // a time that will be up, in which a busy machine has looked all the same
)

func TestNobody(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for _, test := range []struct {
		code int
		line []string
	}{
		{3, []string{"status"}},
		{3, []string{"check"}},
		{3, []string{"upgrade"}},
		{3, []string{"cancel", "--kill"}},
		{3, []string{"settle"}},
		{3, []string{"rollback", "--kill"}},
		{3, []string{"drain", "--now", "1", "--wait"}},
		{3, []string{"stop"}},
		{0, []string{"stop", "--if-running"}},
		{6, []string{"wait", "--timeout", scant}},
	} {
		r := s.ask(test.code, test.line[0], test.line[1:]...)
		r.wantServing(s, "")
		r.wantReason(s, "there is no owner of "+s.socket)
	}
}

// A file that a dead process has left is nobody, too.
func TestNobodyAfterACrash(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	p := s.service(told{Version: "v1"})
	waiting := s.begin("wait", "--generation", "2")
	s.signal(p, syscall.SIGKILL)
	s.want(6, "wait", "--generation", "2", "--timeout", scant)
	s.ask(3, "status").wantServing(s, "")
	s.signal(waiting.cmd.Process, syscall.SIGTERM)
	if got := waiting.end(); got.code != 6 {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	first := s.begin("wait") // for a socket that does not exist
	instance := s.begin("wait", "--version", "v2")
	settled := s.begin("wait", "--generation", "2", "--settled")
	gone := s.begin("wait", "--generation", "2", "--gone", "1")
	end := func(c *called) {
		t.Helper()
		if got := c.end(); got.code != 0 {
			t.Fatalf("%q: exit code %d: %s", c.cmd.Args, got.code, got.stderr)
		}
	}
	v1 := s.service(told{Version: "v1", Probation: long, Lingers: true})
	end(first)
	if r := s.ask(6, "wait", "--version", "v2", "--timeout", scant); r.Serving == nil {
		t.Error("nobody serves")
	} else {
		r.wantReason(s, "not within "+scant, fmt.Sprintf("generation 1 (version v1, pid %d) owns", v1.Pid))
	}
	s.service(told{Version: "v2"})
	end(instance)
	s.ask(6, "wait", "--settled", "--timeout", scant).wantReason(s, "its predecessor can come back")
	s.want(0, "settle")
	end(settled)
	s.ask(6, "wait", "--gone", "1", "--timeout", scant).wantReason(s, "is draining")
	s.want(0, "wait", "--instance", s.ask(0, "status").Serving.Instance)
	s.want(0, "drain", "--now", "1")
	end(gone)
}

// An owner that has not called Ready is not what is waited for, and Ready is an event.
func TestWaitForReady(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	v1 := s.candidate(told{Version: "v1", Initialising: "for long"})
	waiting := s.begin("status", "--watch")
	for line, ok := waiting.line(); ok; line, ok = waiting.line() {
		if state := decode(t, line); state.State == "owner" {
			break
		}
	}
	patient := s.begin("wait")
	r := s.ask(6, "wait", "--timeout", scant)
	r.wantReason(s, "owns and is not ready yet")
	r.wantServing(s, "v1")
	s.ask(4, "check").wantReason(s, "not now: the owner has not called Ready yet")
	s.signal(v1, syscall.SIGUSR1)
	if got := patient.end(); got.code != 0 {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
	s.want(0, "check")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Names: []string{"http", "admin"}, Refuse: "not today", Epoch: 7})
	s.ask(8, "check", "--epoch", "6").wantReason(s, "older")
	s.ask(8, "check", "--epoch", "7").wantReason(s, "not today")

	s = newScene(t)
	s.service(told{Version: "v1", Names: []string{"http", "admin"}, Probation: long})
	s.ask(0, "check").wantReason(s, "a handoff from generation 1", "could begin now")
	s.ask(0, "check", "--expect", "admin,http", "--probation", "1s").wantServing(s, "v1")
	r := s.ask(8, "check", "--expect", "http,metrics")
	r.wantReason(s, "expected and not there: metrics; there and not expected: admin")
	if fmt.Sprint(r.Missing, r.Unclaimed) != "[metrics] [admin]" {
		t.Errorf("missing %q, unclaimed %q", r.Missing, r.Unclaimed)
	}
	s.service(told{Version: "v2", Names: []string{"http", "admin"}})
	s.ask(4, "check").wantReason(s, "not now: the owner is in probation itself")
	s.ask(8, "check", "--expect", "http").wantReason(s, "admin") // which does not pass
}

func TestUpgrade(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	v1 := s.service(told{Version: "v1", Next: &told{Version: "v2", Probation: long}})
	r := s.ask(0, "upgrade", "--timeout", "1m")
	r.wantServing(s, "v2")
	r.wantReason(s, "generation 2 (version v2, pid", fmt.Sprintf("replaced generation 1 (version v1, pid %d) in", v1.Pid))
	if r.Replaced == nil || r.Replaced.PID != v1.Pid {
		t.Errorf("replaced %+v", r.Replaced)
	}
}

func TestUpgradeWaitsUntilSettled(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Probation: long, Next: &told{Version: "v2"}})
	upgrading := s.begin("upgrade", "--wait-settled", "--json")
	s.want(0, "wait", "--version", "v2")
	s.ask(4, "upgrade").wantReason(s, "in probation itself")
	s.want(0, "rollback", "--reason", "try again")
	got := upgrading.end()
	if got.code != 5 {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
	upgrading = s.begin("upgrade", "--wait-settled", "--json")
	s.want(0, "wait", "--version", "v2")
	s.want(0, "settle")
	if got := upgrading.end(); got.code != 0 {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
}

func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Next: &told{Version: "v2", Fails: true}})
	r := s.ask(5, "upgrade")
	r.wantServing(s, "v1")
	r.wantReason(s, "exit status 1")
	s.ask(0, "status").wantServing(s, "v1")
}

func TestUpgradeInterrupted(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Next: &told{Version: "v2", Initialising: "warming up"}})
	upgrading := s.begin("upgrade", "--json")
	s.awaitAttempt("warming up")
	s.ask(4, "upgrade").wantReason(s, "another handoff is under way", "v2")
	s.signal(upgrading.cmd.Process, syscall.SIGINT)
	got := upgrading.end()
	if got.code != 5 {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
	var r reply
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil {
		t.Fatal(err)
	}
	r.wantReason(s, "interrupted, and cancelled: generation 1 (version v1")
	r.wantServing(s, "v1")
}

// awaitAttempt returns when an attempt has told this status.
func (s *scene) awaitAttempt(status string) seen {
	s.Helper()
	watching := s.begin("status", "--watch")
	for line, ok := watching.line(); ok; line, ok = watching.line() {
		if e := decode(s.T, line); e.Attempt != nil && e.Attempt.Status == status {
			s.signal(watching.cmd.Process, syscall.SIGTERM)
			if got := watching.end(); got.code != 0 {
				s.Errorf("status --watch: exit code %d: %s", got.code, got.stderr)
			}
			return e
		}
	}
	s.Fatalf("status --watch has ended: %s", watching.stderr.String())
	return seen{}
}

// needPeers skips a test where the kernel gives no pidfd of a peer.
func (s *scene) needPeers() {
	s.Helper()
	s.service(told{Version: "v0"})
	c, err := crossfade.Dial(s.Context(), s.socket)
	if err != nil {
		s.Fatal(err)
	}
	peer, err := c.Peer(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	defer peer.Close()
	if peer.Exited() == nil {
		s.Skip("this kernel does not tell of the end of a peer (Linux 6.5 does)")
	}
	s.want(0, "stop")
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1"})
	s.ask(0, "cancel").wantReason(s, "nothing to cancel")
	for _, flags := range [][]string{nil, {"--kill"}} {
		s.candidate(told{Version: "v2", Initialising: "warming up"})
		e := s.awaitAttempt("warming up")
		s.ask(0, "cancel", "--instance", "another").wantReason(s, "nothing to cancel")
		if r := s.ask(0, "status"); r.Attempt == nil || r.Attempt.Successor.Version != "v2" {
			t.Fatalf("the attempt is %+v", r.Attempt)
		}
		r := s.ask(0, "cancel", append(flags, "--instance", e.Attempt.Successor.Instance, "--reason", "a hotfix")...)
		r.wantServing(s, "v1")
		r.wantReason(s, "cancelled")
	}
	s.service(told{Version: "v3"}) // nothing is in the way
	s.ask(0, "status").wantServing(s, "v3")
}

// A successor that is frozen must not be in the way of the next one.
func TestCancelKillsAFrozenSuccessor(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1"})
	frozen := s.candidate(told{Version: "v2", Initialising: "warming up"})
	s.awaitAttempt("warming up")
	s.signal(frozen, syscall.SIGSTOP)
	s.ask(0, "cancel", "--kill").wantReason(s, "killed")
	s.service(told{Version: "v3"})
}

func TestRollback(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Probation: long})
	s.ask(8, "rollback").wantServing(s, "v1") // from nobody
	s.service(told{Version: "v2"})
	r := s.ask(0, "rollback", "--reason", "error rate")
	r.wantServing(s, "v1")
	r.wantReason(s, "rolled back: generation 1 (version v1")
	s.service(told{Version: "v3"})
	s.want(0, "settle")
	s.ask(8, "rollback").wantServing(s, "v3")
}

func TestRollbackFails(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Probation: long})
	s.service(told{Version: "v2", Suspend: "fails"})
	r := s.ask(11, "rollback")
	r.wantServing(s, "v2")
	r.wantReason(s, "it does not let go")
}

// Who answers is not ended, whatever it does instead of rolling back.
func TestRollbackKillsNobodyWhoAnswers(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Probation: long})
	v2 := s.service(told{Version: "v2", Suspend: "hangs"})
	r := s.ask(9, "rollback", "--kill", "--timeout", scant)
	r.wantReason(s, "it is not ended", fmt.Sprint("pid ", v2.Pid))
	if r.Killed != nil {
		t.Errorf("killed %+v", r.Killed)
	}
	s.ask(0, "status").wantServing(s, "v2")
}

func TestRollbackOfAFrozenOwner(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.needPeers()
	s.service(told{Version: "v1", Probation: long})
	frozen := s.service(told{Version: "v2"})
	s.signal(frozen, syscall.SIGSTOP)
	s.ask(9, "status", "--timeout", scant).wantReason(s, "no answer within "+scant, fmt.Sprint("pid ", frozen.Pid), "wake it up or end it")
	s.ask(9, "rollback", "--timeout", scant).wantReason(s, "no answer within "+scant)

	// The predecessor resumes.
	r := s.ask(0, "rollback", "--timeout", scant, "--kill")
	r.wantServing(s, "v1")
	if r.Killed == nil || r.Killed.PID != frozen.Pid || r.Killed.UID != os.Geteuid() {
		t.Errorf("killed %+v, want pid %d", r.Killed, frozen.Pid)
	}

	// Of an owner without a predecessor it is said that nothing is known, and then nobody serves.
	frozen = s.service(told{Version: "v3"})
	s.want(0, "settle")
	s.want(0, "wait", "--gone", "1")
	s.signal(frozen, syscall.SIGSTOP)
	got := s.want(10, "rollback", "--timeout", scant, "--kill", "--json")
	var o reply
	if err := json.Unmarshal([]byte(got.stdout), &o); err != nil {
		t.Fatal(err)
	}
	o.wantServing(s, "")
	o.wantReason(s, "nobody owns the socket")
	warning := reply{Reason: got.stderr}
	warning.wantReason(s, fmt.Sprintf("the owner (pid %d, uid %d", frozen.Pid, os.Geteuid()), "whether a predecessor stands by that can take over, only it could say")
}

func TestDrain(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Lingers: true, Probation: long})
	s.service(told{Version: "v2", Lingers: true})
	s.ask(8, "drain", "--now", "1").wantReason(s, "settle first")
	s.ask(8, "drain", "--now", "2").wantReason(s, "stop it instead")
	s.ask(8, "drain", "--now", "9").wantReason(s, "generation 9 has not owned the service")
	s.want(0, "settle")
	s.service(told{Version: "v3"})
	s.want(0, "settle")
	if r := s.ask(0, "status"); len(r.Draining) != 2 {
		t.Errorf("%d processes drain", len(r.Draining))
	}
	refused := s.ask(7, "drain", "--now", "1", "--wait")
	refused.wantReason(s, "signal it yourself")
	refused.wantServing(s, "v3")
	s.ask(0, "drain", "--now", "2", "--wait").wantReason(s, "generation 2 has gone")
	s.ask(0, "drain", "--now", "2").wantReason(s, "generation 2 has gone")
}

func TestDrainThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	v1 := s.service(told{Version: "v1", Lingers: true})
	s.service(told{Version: "v2"})
	s.want(0, "wait", "--settled")
	s.signal(v1, syscall.SIGSTOP)
	r := s.ask(6, "drain", "--now", "1", "--wait", "--timeout", scant)
	r.wantReason(s, "not within "+scant, "is draining")
	r.wantServing(s, "v2")
	s.signal(v1, syscall.SIGCONT)
	s.want(0, "wait", "--gone", "1")
}

// TestSettleWithAFrozenPredecessor: the outcome is not known, but who serves is.
func TestSettleWithAFrozenPredecessor(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	v1 := s.service(told{Version: "v1", Probation: long})
	s.service(told{Version: "v2"})
	s.signal(v1, syscall.SIGSTOP)
	r := s.ask(9, "settle", "--timeout", scant)
	r.wantReason(s, "no answer within "+scant, "generation 2 (version v2", "serves now")
	r.wantServing(s, "v2")
	s.signal(v1, syscall.SIGCONT)
	s.ask(0, "settle").wantServing(s, "v2")
}

func TestStop(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1", Probation: long})
	v2 := s.service(told{Version: "v2"})
	r := s.ask(0, "stop", "--reason", "the end")
	r.wantServing(s, "")
	if r.Stopped == nil || r.Stopped.PID != v2.Pid {
		t.Errorf("stopped %+v", r.Stopped)
	}
	r.wantReason(s, "generation 2 (version v2")
	s.ask(3, "status") // the predecessor has not come back
}

func TestStopThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.needPeers()
	s.service(told{Version: "v1", Lingers: true})
	r := s.ask(9, "stop", "--timeout", scant)
	r.wantServing(s, "")
	r.wantReason(s, "not within "+scant, "nobody owns the socket", "has not exited yet")
}

// The owner that was asked has died: who serves now is what the exit code says.
func TestOwnerDiesMeanwhile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		both bool
		code int
		who  string
	}{
		{"and the successor serves", false, 9, "v2"},
		{"and nobody serves", true, 10, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			v1 := s.service(told{Version: "v1", Probation: long, Next: &told{Version: "v2", Probation: long}})
			upgrading := s.begin("upgrade", "--wait-settled", "--json")
			s.want(0, "wait", "--version", "v2")
			v2 := s.ask(0, "status").Serving.PID
			s.signal(upgrading.cmd.Process, syscall.SIGSTOP) // it is to look when all has happened
			s.signal(v1, syscall.SIGKILL)
			s.want(0, "wait", "--gone", "1")
			if test.both {
				if err := syscall.Kill(v2, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				s.want(6, "wait", "--generation", "3", "--timeout", scant)
				s.ask(3, "status")
			}
			s.signal(upgrading.cmd.Process, syscall.SIGCONT)
			got := upgrading.end()
			if got.code != test.code {
				t.Fatalf("exit code %d, want %d: %s", got.code, test.code, got.stderr)
			}
			var r reply
			if err := json.Unmarshal([]byte(got.stdout), &r); err != nil {
				t.Fatal(err)
			}
			r.wantServing(s, test.who)
		})
	}
}

// TestReaderGone: a reader of the output that is gone takes nobody's exit code away, and
// a watch without one ends.
func TestReaderGone(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for code, commands := range map[int][][]string{
		3: {{"status"}, {"status", "--json"}, {"settle"}, {"rollback", "--kill"}},
		0: {{"status"}, {"status", "--json"}, {"status", "--watch"}, {"settle"}, {"wait", "--json"}, {"upgrade"}, {"stop"}},
	} {
		if code == 0 {
			s = newScene(t)
			s.service(told{Version: "v1", Next: &told{Version: "v2"}})
		}
		for _, args := range commands {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd := reexec.Command("crossfade", append([]string{args[0], "--socket", s.socket}, args[1:]...)...)
			cmd.Stdout, cmd.Stderr = w, w
			r.Close()
			reexec.Start(t, cmd)
			w.Close()
			timer := time.AfterFunc(forAnything, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait() // the state says it all
			timer.Stop()
			if got := cmd.ProcessState.ExitCode(); got != code {
				t.Errorf("%q: %v, want exit status %d", args, cmd.ProcessState, code)
			}
		}
	}
}

// TestUnprinted: it is said that a result is nowhere, and the exit code is about the
// service all the same.
func TestUnprinted(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.service(told{Version: "v1"})
	for _, flags := range [][]string{nil, {"--json"}, {"--watch"}} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Skipf("needs a file that takes nothing: %v", err)
		}
		var stderr bytes.Buffer
		cmd := reexec.Command("crossfade", append([]string{"status", "--socket", s.socket}, flags...)...)
		cmd.Stdout, cmd.Stderr = full, &stderr
		reexec.Start(t, cmd)
		full.Close()
		timer := time.AfterFunc(forAnything, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // the state says it all
		timer.Stop()
		want := 0
		if slices.Contains(flags, "--watch") {
			want = 9
		}
		if got := cmd.ProcessState.ExitCode(); got != want || !strings.Contains(stderr.String(), "cannot be printed: ") {
			t.Errorf("%q: %v, want exit status %d: %q", flags, cmd.ProcessState, want, stderr.String())
		}
	}
}

// TestWaitForAFrozenOwner: it says who does not answer.
func TestWaitForAFrozenOwner(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.needPeers()
	p := s.service(told{Version: "v1"})
	s.signal(p, syscall.SIGSTOP)
	s.ask(6, "wait", "--timeout", scant).wantReason(s, "not within "+scant, "no answer", fmt.Sprint(p.Pid))
}

// TestPathTooLong: no service can be there, so the command line is wrong.
func TestPathTooLong(t *testing.T) {
	t.Parallel()
	path := "/" + strings.Repeat("x", 200)
	for _, args := range [][]string{{"status"}, {"wait"}, {"stop"}, {"run", "--", "true"}} {
		got := call(t, append([]string{args[0], "--socket", path}, args[1:]...)...)
		if got.code != 2 || strings.Count(got.stderr, path) != 1 {
			t.Errorf("%q: exit code %d: %s", args, got.code, got.stderr)
		}
	}
}

// event is a line of status --watch.
type event struct {
	At      time.Time
	Process *processReply
	State   *string
	Text    string
	Attempt *struct {
		Successor processReply
		Status    string
	}
	Failure *struct{ Reason string }
	Serving *processReply
}

// seen is an event whose state is not null.
type seen struct {
	event
	State string
}

func decode(t *testing.T, line string) seen {
	t.Helper()
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	if e.At.IsZero() || e.Text == "" {
		t.Errorf("the event %s has no time or no text", line)
	}
	s := seen{event: e}
	if e.State != nil {
		s.State = *e.State
	}
	return s
}

func TestWatchLines(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	watching := s.begin("status", "--watch")
	var said []string
	until := func(want string) {
		t.Helper()
		for {
			line, ok := watching.line()
			if !ok {
				t.Fatalf("it has ended: %s; it said %q", watching.stderr.String(), said)
			}
			e := decode(t, line)
			got := e.State
			if e.Serving != nil {
				got += " " + e.Serving.Version
			}
			if e.Failure != nil {
				got += " failed"
			}
			said = append(said, got)
			if got == want {
				return
			}
		}
	}
	until("") // nobody
	v1 := s.service(told{Version: "v1", Probation: long})
	until("owner v1")
	s.candidate(told{Version: "v2", Fails: true})
	until("owner v1 failed")
	s.service(told{Version: "v3"})
	until("probation v3")
	until("owner v3")
	s.want(0, "rollback")
	until("owner v1")
	s.signal(v1, syscall.SIGKILL)
	until("")
	s.signal(watching.cmd.Process, syscall.SIGINT)
	if got := watching.end(); got.code != 0 || got.stderr != "" {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
}

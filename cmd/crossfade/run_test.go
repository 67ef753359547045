//go:build unix

package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

func TestRunReplaces(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	first := s.run(0, []string{"--instance", "one"}, s.service("v1"))
	if first.Replaced != nil || first.Serving == nil || first.Serving.Instance != "one" || first.Serving.Generation != 1 {
		t.Errorf("%+v", first)
	}
	if !strings.Contains(first.Reason, "started the first generation") {
		t.Errorf("%q does not say that it is the first", first.Reason)
	}
	info, err := os.Stat(first.Log)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(first.Log) != s.dir || info.Mode().Perm() != 0o600 {
		t.Errorf("the log is %s, %v", first.Log, info.Mode())
	}

	// Another path, by a symbolic link that is switched meanwhile.
	for _, release := range []string{"v2", "v3"} {
		if err := os.Symlink(s.exe, filepath.Join(s.dir, release)); err != nil {
			t.Fatal(err)
		}
	}
	current := filepath.Join(s.dir, "current")
	before := first.Serving
	for _, release := range []string{"v2", "v3"} {
		if err := os.Symlink(release, current+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(current+".new", current); err != nil {
			t.Fatal(err)
		}
		service := s.service(release)
		service[2] = current
		o := s.run(0, []string{"--log", filepath.Join(s.dir, release+".log")}, service)
		if o.Replaced == nil || *o.Replaced != *before || o.TookMS == nil || o.ExitStatus != nil || o.Failure != nil || o.Output == nil {
			t.Errorf("%+v", o)
		}
		if *o.Serving != *o.Started || o.Serving.Version != release || o.Log != filepath.Join(s.dir, release+".log") {
			t.Errorf("%+v", o)
		}
		s.wantServing(o, o.Started)
		s.awaitGone(before.PID)
		before = o.Serving
	}
}

func TestRunSaysItToPeople(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	cmd := reexec.Command("crossfade", append([]string{"run", "--socket", s.socket, "--"}, s.service("v1")...)...)
	var stdout, stderr bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = append(cmd.Env, "TMPDIR="+s.dir), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if stdout.Len() > 0 || !strings.Contains(stderr.String(), "its output goes to "+s.dir) || !strings.Contains(stderr.String(), "started the first generation") {
		t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
	}
	for line := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(line, "crossfade: ") {
			t.Errorf("%q", line)
		}
	}
}

// TestRunFails: whatever is wrong with a new process, the old one serves, and the new
// one does not live on.
func TestRunFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	does := func(what string) func(*stage) []string {
		return func(s *stage) []string { return s.service("v2", "-do", what) }
	}
	is := func(command ...string) func(*stage) []string {
		return func(*stage) []string { return command }
	}
	tests := []struct {
		name    string
		flags   []string
		service func(s *stage) []string
		status  any // its exit status
		reason  string
		failure bool // the owner has something to say
		quoted  any  // it has left last words; nil: it may have
	}{
		{"exits 1 at once", nil, does("exit1@start"), 1., "status 1", false, true},
		{"exits 0 at once", nil, does("exit0@start"), 0., "status 0", false, true},
		{"exits 1 before Ready", nil, does("exit1@offered"), 1., "status 1", true, true},
		{"exits 0 before Ready", nil, does("exit0@offered"), 0., "status 0", true, true},
		{"crashes before Ready", nil, does("crash@offered"), "signal: killed", "killed", true, true},
		{"hangs before New", []string{"--timeout", scant}, does("hang@start"), "signal: killed", "after " + scant, false, true},
		{"hangs before Ready", []string{"--timeout", scant}, does("hang@offered"), "signal: killed", "after " + scant, true, true},
		{"freezes before Ready", []string{"--timeout", scant}, does("freeze@offered"), "signal: killed", "after " + scant, true, true},
		{"ends at SIGTERM", []string{"--timeout", scant}, is("sleep", "1000"), "signal: terminated", "after " + scant, false, false},
		{"is not executable", nil, is(text), nil, "permission denied", false, false},
		{"is no program", nil, is(garbage), nil, "exec format error", false, false},
		{"is missing", nil, is(filepath.Join(dir, "nothing")), nil, "no such file", false, false},
		{"is not in PATH", nil, is("no-such-program"), nil, "not found in $PATH", false, false},
		{"leaves without its child", nil, func(s *stage) []string {
			service := strings.Join(s.service("v2", "-do", "hang@start"), " ")
			return []string{"sh", "-c", service + " & until [ -e " + filepath.Join(s.dir, "pids") + "/$! ]; do sleep 0.01; done; exit 3"}
		}, 3., "status 3", false, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			old := s.first()
			o := s.run(5, tt.flags, tt.service(s))
			s.wantServing(o, old)
			if !equal(o.ExitStatus, tt.status) || !strings.Contains(o.Reason, tt.reason) || (o.Failure != nil) != tt.failure {
				t.Errorf("%+v", o)
			}
			if quoted := slices.ContainsFunc(o.Output, func(line string) bool { return strings.Contains(line, "doing") }); tt.quoted != nil && quoted != tt.quoted {
				t.Errorf("its last words are %q", o.Output)
			}
			if o.Failure != nil && o.Failure.Successor.Instance != o.Started.Instance {
				t.Errorf("the owner tells of another one: %+v", o.Failure)
			}
			for _, pid := range s.pids() {
				if pid != old.PID {
					s.awaitGone(pid)
				}
			}
			if left, err := filepath.Glob(filepath.Join(s.dir, "crossfade-garbage-*")); err != nil || len(left) > 0 {
				t.Errorf("a log is left of what was never started: %q, %v", left, err)
			}
			o = s.run(0, nil, s.service("v3"))
			s.wantServing(o, o.Started)
		})
	}
}

// equal compares a decoded value.
func equal(got, want any) bool { return fmt.Sprint(got) == fmt.Sprint(want) }

func TestRunFailsWithNobody(t *testing.T) {
	t.Parallel()
	for _, do := range []string{"exit1@start", "exit0@start", "hang@start", "hang@offered", "freeze@offered"} {
		t.Run(do, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			o := s.run(10, []string{"--timeout", scant}, s.service("v1", "-do", do))
			if o.Serving != nil || !strings.Contains(o.Reason, "nobody serves") {
				t.Errorf("%+v", o)
			}
			for _, pid := range s.pids() {
				s.awaitGone(pid)
			}
			// Nor does what is left of it stand in the way.
			o = s.run(0, nil, s.service("v1"))
			s.wantServing(o, o.Started)
		})
	}
	t.Run("nothing to start", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		s.run(10, nil, []string{filepath.Join(s.dir, "nothing")})
	})
}

// TestRunCrashAfterReady: the tool is stopped, so that it sees nothing before the new
// process has died.
func TestRunCrashAfterReady(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		probation string
		do        string
		exit      int
	}{
		{"on probation", "1h", "hold@offered,crash@owns", 5},
		{"without one", "0s", "hold@offered,crash@settled", 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			old := s.first()
			d := s.prepare([]string{"--probation", tt.probation}, s.service("v2", "-do", tt.do)).start()
			release := s.arrived()
			s.freeze(d.cmd.Process.Pid)
			release()
			s.until("its end", func() bool {
				pids := slices.DeleteFunc(s.pids(), func(pid int) bool { return pid == old.PID })
				return len(pids) == 1 && processState(pids[0]) == 'Z'
			})
			if tt.exit == 10 {
				s.awaitGone(old.PID)
			}
			s.signal(d.cmd.Process.Pid, syscall.SIGCONT)
			o := d.wait()
			s.wantExit(o, tt.exit)
			if o.ExitStatus != "signal: killed" {
				t.Errorf("%+v", o)
			}
			if tt.exit == 5 {
				s.wantServing(o, old)
			}
		})
	}
}

// TestRunSucceeded: when the tool looks the new process has owned, and has been
// replaced in good order.
func TestRunSucceeded(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first()
	d := s.prepare(nil, s.service("v2", "-do", "hold@offered")).start()
	release := s.arrived()
	s.awaitWatch(d.cmd.Process.Pid)
	s.freeze(d.cmd.Process.Pid)
	release()
	second := s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Process.BuildVersion == "v2" && st.Ready })
	s.awaitGone(old.PID)
	o := s.run(0, nil, s.service("v3"))
	s.awaitGone(second.Process.PID)
	s.signal(d.cmd.Process.Pid, syscall.SIGCONT)
	late := d.wait()
	s.wantExit(late, 0)
	s.wantServing(late, o.Started)
	if late.Started.Version != "v2" || !strings.Contains(late.Reason, "replaced since") {
		t.Errorf("%+v", late)
	}
}

func TestRunProbation(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first()
	o := s.run(0, []string{"--probation", "5m"}, s.service("v2"))
	if p := o.Probation; p == nil || p.Predecessor != *old || p.AtEnd != "settle" || p.Until.IsZero() {
		t.Errorf("%+v", p)
	}
	if !strings.Contains(o.Reason, "on probation until "+tool.Clock(o.Probation.Until)+", when") || !strings.Contains(o.Reason, "crossfade settle") {
		t.Errorf("%q", o.Reason)
	}
	// Meanwhile it hands over to nobody, and nothing is started.
	busy := s.run(4, nil, s.service("v3"))
	if busy.Started != nil || busy.Who == nil || *busy.Who != *old || !strings.Contains(busy.Reason, "probation") {
		t.Errorf("%+v", busy)
	}
	s.wantServing(busy, o.Started)
}

func TestRunTwoAtOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.first()
	one := s.prepare([]string{"--instance", "one"}, s.service("v2", "-do", "hold@offered")).start()
	release := s.arrived()
	began := len(s.pids())
	o := s.run(4, nil, s.service("v3"))
	if o.Who == nil || o.Who.Instance != "one" || o.Serving == nil || o.Serving.Version != "v1" || o.Started != nil {
		t.Errorf("%+v", o)
	}
	if len(s.pids()) != began {
		t.Error("something was started")
	}
	three := s.prepare([]string{"--wait", generous.String()}, s.service("v3"))
	said, err := os.Create(filepath.Join(s.dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	three.cmd.Stderr = said
	three.start()
	s.until("its patience", func() bool { return strings.Contains(s.log(said.Name()), "waiting for at most") })
	release()
	s.wantExit(one.wait(), 0)
	o = three.wait()
	s.wantExit(o, 0)
	if o.Replaced == nil || o.Replaced.Instance != "one" {
		t.Errorf("%+v", o)
	}
	s.wantServing(o, o.Started)
}

// TestRunComesSecond: another deployment slips in after the rehearsal.
func TestRunComesSecond(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		other []string // what the new process of the other one does
		comes func(*crossfade.Status) bool
	}{
		{"under way", []string{"-do", "hang@offered"}, func(st *crossfade.Status) bool { return st.Attempt != nil }},
		{"on probation", nil, func(st *crossfade.Status) bool { return st.Probation != nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.first()
			second := s.prepare(nil, s.service("v2", "-do", "hold@start")).start()
			release := s.arrived() // which has not asked for anything yet
			other := s.prepare([]string{"--probation", "1h", "--instance", "other"}, s.service("v3", tt.other...)).start()
			owner := s.awaitOwner("the other", tt.comes)
			release()
			o := second.wait()
			s.wantExit(o, 4)
			if o.Who == nil || o.Who.Instance != "other" || o.Serving == nil || o.Serving.PID != owner.Process.PID || !equal(o.ExitStatus, 1) ||
				!strings.Contains(o.Reason, "another deployment has come in between") {
				t.Errorf("%+v", o)
			}
			s.signal(other.cmd.Process.Pid, syscall.SIGTERM)
			other.wait()
		})
	}
	t.Run("and this one fails by itself", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		o := s.run(5, nil, s.service("v2", "-do", "exit1@start"))
		s.wantServing(o, old)
		if o.Who != nil {
			t.Errorf("%+v", o)
		}
	})
}

func TestRunRefused(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.run(0, []string{"--epoch", "7"}, s.service("v1")).Serving
	began := len(s.pids())
	o := s.run(8, []string{"--epoch", "6"}, s.service("v2"))
	if o.Started != nil || !strings.Contains(o.Reason, "epoch 7") || len(s.pids()) != began {
		t.Errorf("%+v", o)
	}
	s.wantServing(o, old)
	o = s.run(0, []string{"--epoch", "6", "--force"}, s.service("v2"))
	s.wantServing(o, o.Started)
}

// TestRunPolicy: a policy may want to know the version, which only the new process can
// tell.
func TestRunPolicy(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.first("-refuse", "") // the rehearsal, which knows none
	old := s.run(0, nil, s.service("v2", "-refuse", "v3")).Serving
	o := s.run(5, nil, s.service("v3")) // the new process, whose word it is
	if !strings.Contains(strings.Join(o.Output, "\n"), "is not wanted") {
		t.Errorf("%+v", o)
	}
	s.wantServing(o, old)

	old = s.run(0, nil, s.service("v4", "-refuse", "")).Serving
	if o = s.run(5, []string{"--log", filepath.Join(s.dir, "none", "log")}, s.service("v5")); strings.Contains(o.Reason, "wanted") {
		t.Errorf("the policy is blamed for what was never started: %q", o.Reason)
	}
	o = s.run(8, nil, s.service("")) // both
	if o.Failure != nil || !strings.Contains(o.Reason, "is not wanted") {
		t.Errorf("%+v", o)
	}
	s.wantServing(o, old)
}

// TestRunOwnerLeaves: what becomes of the owner while the new process initialises.
func TestRunOwnerLeaves(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"stops": false, "stops, and all is over when the tool looks": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			old := s.first()
			d := s.prepare(nil, s.service("v2", "-do", "hold@offered")).start()
			release := s.arrived()
			s.awaitWatch(d.cmd.Process.Pid)
			both := s.pids()
			if late {
				s.freeze(d.cmd.Process.Pid)
			}
			s.signal(old.PID, syscall.SIGTERM)
			s.awaitGone(old.PID)
			release()
			if late {
				for _, pid := range both {
					s.awaitGone(pid)
				}
				s.signal(d.cmd.Process.Pid, syscall.SIGCONT)
			}
			o := d.wait()
			s.wantExit(o, 10)
			if o.Failure == nil || !strings.Contains(o.Reason, "stopping") {
				t.Errorf("%+v", o)
			}
		})
	}
	t.Run("dies", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		d := s.prepare(nil, s.service("v2", "-do", "hold@offered")).start()
		release := s.arrived()
		s.signal(old.PID, syscall.SIGKILL)
		s.awaitGone(old.PID)
		release()
		o := d.wait()
		s.wantExit(o, 0)
		s.wantServing(o, o.Started)
		if o.Replaced == nil || *o.Replaced != *old {
			t.Errorf("%+v", o)
		}
	})
	t.Run("dies, and the time is up", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		d := s.prepare([]string{"--timeout", "2s"}, s.service("v2", "-do", "hold@offered")).start()
		release := s.arrived()
		s.signal(old.PID, syscall.SIGKILL)
		o := d.wait()
		s.wantExit(o, 9) // the sockets are its, and nobody else's
		if !strings.Contains(o.Reason, "left everything to it") {
			t.Errorf("%+v", o)
		}
		release()
		s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Ready && st.Process.PID == o.Started.PID })
		s.wantAnswer(o.Started.PID)
	})
	t.Run("freezes", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		s.signal(old.PID, syscall.SIGSTOP)
		o := s.run(9, nil, s.service("v2"))
		if o.Started != nil || o.Serving != nil {
			t.Errorf("%+v", o)
		}
		s.signal(old.PID, syscall.SIGCONT)
		s.run(0, nil, s.service("v2"))
	})
	t.Run("freezes meanwhile", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		d := s.prepare([]string{"--timeout", "1s"}, s.service("v2", "-do", "hold@offered")).start()
		release := s.arrived()
		s.signal(old.PID, syscall.SIGSTOP)
		o := d.wait()
		s.wantExit(o, 9)
		if o.Serving != nil || !strings.Contains(o.Reason, "who serves is not known") || !strings.Contains(o.Reason, "frozen") {
			t.Errorf("%+v", o)
		}
		s.awaitGone(o.Started.PID)
		release()
		s.signal(old.PID, syscall.SIGCONT)
		s.run(0, []string{"--wait", "1m"}, s.service("v3")) // until the owner knows that v2 has ended
	})
}

func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	t.Run("SIGTERM", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		d := s.prepare(nil, s.service("v2", "-do", "hold@offered")).start()
		release := s.arrived()
		defer release()
		s.signal(d.cmd.Process.Pid, syscall.SIGTERM)
		o := d.wait()
		s.wantExit(o, 5)
		s.wantServing(o, old)
		if !strings.Contains(o.Reason, "interrupted") || o.ExitStatus == nil {
			t.Errorf("%+v", o)
		}
		s.awaitGone(o.Started.PID)
	})
	t.Run("SIGKILL", func(t *testing.T) {
		t.Parallel()
		s := newStage(t)
		old := s.first()
		log := filepath.Join(s.dir, "v2.log")
		d := s.prepare([]string{"--log", log}, s.service("v2", "-do", "hold@offered")).start()
		release := s.arrived()
		s.signal(d.cmd.Process.Pid, syscall.SIGKILL)
		d.wait()
		s.wantAnswer(old.PID)
		release()
		s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Process.BuildVersion == "v2" })
		// Its output has somewhere to go.
		s.get("/say/hello")
		s.until("what it says", func() bool { return strings.Contains(s.log(log), "text=hello") })
	})
}

func TestRunDescriptors(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc/self/fd")
	}
	s := newStage(t)
	s.first()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d := s.prepare([]string{"--epoch", "3", "--probation", "0s", "--instance", "two"}, s.service("v2"))
	d.cmd.ExtraFiles = []*os.File{w} // as a script's exec 3>lock
	d.cmd.Env = append(d.cmd.Env, "CROSSFADE_FD=77", "CROSSFADE_INSTANCE=stale", "CROSSFADE_FORCE=1", "CROSSFADE_SOMETHING=else")
	d.start()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	o := d.wait()
	s.wantExit(o, 0)
	if err := r.SetReadDeadline(time.Now().Add(generous)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the service has kept what its starter had open: %v", err)
	}
	log := s.log(o.Log)
	for _, want := range []string{
		`descriptors="0 1 2"`,
		`environ="CROSSFADE_EPOCH=3 CROSSFADE_INSTANCE=two CROSSFADE_PROBATION=0s CROSSFADE_SOCKET=` + s.socket + `"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("%s is not in %s", want, log)
		}
	}
	session, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.Started.PID))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(session), ") ")
	if fields := strings.Fields(after); fields[3] != fmt.Sprint(o.Started.PID) { // state ppid pgrp session
		t.Errorf("its session is %s, its pid %d", fields[3], o.Started.PID)
	}
}

func TestRunDenied(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can start the tool as somebody else")
	}
	s := newStage(t)
	s.first()
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Where go test builds is for its user alone.
	exe := filepath.Join(s.dir, "crossfade")
	copyFile(t, s.exe, exe)
	d := s.prepare(nil, []string{"true"})
	d.cmd.Path = exe
	d.cmd.Dir = s.dir
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 60123, Gid: 60123}}
	o := d.start().wait()
	s.wantExit(o, 7)
	if o.Started != nil {
		t.Errorf("%+v", o)
	}
}

func TestRunUsage(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	pipe := filepath.Join(s.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := call(t, "supervise", "--socket", s.socket, "--log", pipe, "--", "true"); got.code != 2 || !strings.Contains(got.stderr, "is a pipe") {
		t.Errorf("supervise: exit code %d: %s", got.code, got.stderr)
	}
	for name, tt := range map[string]struct{ flags, service []string }{
		"no command":              {nil, nil},
		"no time":                 {[]string{"--timeout", "0"}, []string{"true"}},
		"a negative probation":    {[]string{"--probation", "-1s"}, []string{"true"}},
		"no time to be healthy":   {[]string{"--probation", "0s", "--health", "true"}, []string{"true"}},
		"a negative wait":         {[]string{"--wait", "-1s"}, []string{"true"}},
		"a long instance":         {[]string{"--instance", strings.Repeat("x", 201)}, []string{"true"}},
		"an odd instance":         {[]string{"--instance", "a\nb"}, []string{"true"}},
		"a log that is a pipe":    {[]string{"--log", pipe}, []string{"true"}},
		"a log that is a dir":     {[]string{"--log", s.dir}, []string{"true"}},
		"an inherited pipe":       {[]string{"--log", "-"}, []string{"true"}},
		"a duration without unit": {[]string{"--probation", "5"}, []string{"true"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.TB = t
			if o := s.run(2, tt.flags, tt.service); o.Started != nil {
				t.Errorf("%+v", o)
			}
		})
	}
}

// TestRunInherits: with --log - the output goes where the tool's does.
func TestRunInherits(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	path := filepath.Join(s.dir, "inherited")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, flags := range [][]string{{"run", "--json"}, {"run"}} {
		cmd := reexec.Command("crossfade", slices.Concat(flags, []string{"--socket", s.socket, "--log", "-", "--"}, s.service(fmt.Sprint("inherits", i)))...)
		cmd.Stderr = f
		if i == 1 {
			cmd.Stdout = f
		}
		var out []byte
		if i == 0 {
			out, err = cmd.Output() // the object, and nothing else
		} else {
			err = cmd.Run()
		}
		if err != nil || bytes.Contains(out, []byte("inherits0 ")) {
			t.Fatalf("%v, %s", err, out)
		}
		if log := s.log(path); !strings.Contains(log, fmt.Sprintf("msg=started version=inherits%d", i)) && !strings.Contains(log, fmt.Sprintf("started version=inherits%d", i)) {
			t.Errorf("%s", log)
		}
	}
}

// TestRunLastWords: they are bounded, and a terminal can be shown them.
func TestRunLastWords(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	log := filepath.Join(s.dir, "log")
	if err := os.WriteFile(log, []byte("what was there before\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	script := `i=0; while [ $i -lt 3000 ]; do echo "line $i of many, long enough for the limit"; i=$((i+1)); done; printf 'red \033[31m, \377 and \ttab\r\n'; printf '%01000d\n' 7; exit 9`
	o := s.run(10, []string{"--log", log}, []string{"sh", "-c", script})
	if len(o.Output) != 20 || o.Output[0] != "line 2982 of many, long enough for the limit" {
		t.Errorf("%q", o.Output)
	}
	if got := o.Output[18]; got != "red ?[31m, ? and  tab" {
		t.Errorf("%q", got)
	}
	if got := o.Output[19]; len(got) > 600 || !strings.HasPrefix(got, "000") {
		t.Errorf("%q", got)
	}
	if info, err := os.Stat(log); err != nil || info.Mode().Perm() != 0o640 || !strings.HasPrefix(s.log(log), "what was") {
		t.Errorf("%v, %v", info, err)
	}
	if o = s.run(10, []string{"--log", log}, []string{"false"}); len(o.Output) != 0 {
		t.Errorf("a run quotes the one before: %q", o.Output)
	}
}

// TestRunReaderGone: a deploy script's reader of its output that exits ends neither
// the tool nor what it has started.
func TestRunReaderGone(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.first()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d := s.prepare([]string{"--health", "true"}, s.service("v2", "-do", "hold@offered"))
	d.cmd.Stderr = w
	d.start()
	release := s.arrived()
	for _, f := range []io.Closer{w, r} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	release()
	o := d.wait()
	s.wantExit(o, 0)
	s.wantServing(o, o.Started)
}

// TestRunIsAsDocumented: whatever the exit status, the object has the fields of
// docs/tool.md.
func TestRunIsAsDocumented(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	common, fields := documented(t, "## The object")["field"], documented(t, "### crossfade run")["field"]
	for _, o := range []*outcome{
		s.run(10, nil, []string{"no-such-program"}),
		s.run(10, nil, s.service("v1", "-do", "crash@start")),
		s.run(0, []string{"--epoch", "1"}, s.service("v1")),
		s.run(8, nil, s.service("v2")),
		s.run(5, []string{"--epoch", "1"}, s.service("v2", "-do", "exit1@offered")),
		s.run(0, []string{"--epoch", "1", "--probation", "1h"}, s.service("v2")),
		s.run(4, []string{"--epoch", "1"}, s.service("v3")),
	} {
		compareFields(t, fmt.Sprintf("run with code %d", o.Code), o.object, common, fields)
		if p, ok := o.object["probation"].(map[string]any); ok {
			compareFields(t, "probation", p, documented(t, "### crossfade status")["field of probation"])
		}
		if f, ok := o.object["failure"].(map[string]any); ok {
			compareFields(t, "failure", f, documented(t, "### crossfade status")["field of last_failure"])
		}
	}
}

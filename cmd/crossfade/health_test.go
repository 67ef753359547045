//go:build unix

package main_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
)

// brief is a probation whose end a test waits for. What has to happen in it does on a busy
// machine too.
const brief = "4s"

func TestHealthPasses(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first()
	seen := filepath.Join(s.dir, "seen")
	for version, health := range map[string]string{
		"url":     "http://" + s.address() + "/health",
		"command": `echo "$CROSSFADE_SOCKET $CROSSFADE_INSTANCE $CROSSFADE_GENERATION" >` + seen + `; echo looks well`,
	} {
		o := s.run(0, []string{"--health", health, "--instance", version}, s.service(version))
		if o.Replaced == nil || *o.Replaced != *old || o.Probation != nil {
			t.Errorf("%+v", o)
		}
		s.wantServing(o, o.Started)
		s.awaitGone(old.PID) // it is settled
		old = o.Serving
		if version == "command" {
			if got := s.log(seen); got != strings.Join([]string{s.socket, "command", fmt.Sprint(old.Generation)}, " ")+"\n" {
				t.Errorf("the check sees %q", got)
			}
			if !strings.Contains(o.stderr, "looks well") {
				t.Errorf("its output is not in %q", o.stderr)
			}
		}
	}
}

// TestHealthFirst: there is nothing to roll back to.
func TestHealthFirst(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	o := s.run(11, []string{"--probation", brief, "--health", "exit 3"}, s.service("v1"))
	s.wantServing(o, o.Started)
	if !strings.Contains(o.Reason, "exit status 3") {
		t.Errorf("%q", o.Reason)
	}
	s = newStage(t)
	o = s.run(0, []string{"--health", "true"}, s.service("v1"))
	s.wantServing(o, o.Started)
}

func TestHealthFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		flags  []string
		do     []string
		health string // "" for the service's own
		status any    // exit status of the new process
		reason string
	}{
		{"by its answer", []string{"--probation", brief}, []string{"-sick"}, "", 75., "503"},
		{"by a command", []string{"--probation", brief}, nil, "exit 7", 75., "exit status 7"},
		{"by a command that hangs", []string{"--probation", brief}, nil, "sleep 1000", 75., "has not answered"},
		{"by a death", nil, []string{"-do", "crash@health"}, "", "signal: killed", "killed"},
		{"by a death at once", nil, []string{"-do", "crash@owns"}, "", "signal: killed", "killed"},
		{"by freezing", []string{"--probation", brief}, []string{"-do", "freeze@health"}, "", "signal: killed", "health"},
		{"by freezing at once", []string{"--probation", brief}, []string{"-sick", "-do", "freeze@owns"}, "", "signal: killed", "health"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			old := s.first()
			health := tt.health
			if health == "" {
				health = "http://" + s.address() + "/health"
			}
			o := s.run(5, append(tt.flags, "--health", health), s.service("v2", tt.do...))
			s.wantServing(o, old)
			if !equal(o.ExitStatus, tt.status) || !strings.Contains(o.Reason, tt.reason) {
				t.Errorf("%+v", o)
			}
			if o.Failure == nil || o.Failure.Successor.Instance != o.Started.Instance {
				t.Errorf("%+v", o.Failure)
			}
			s.awaitGone(o.Started.PID)
			// It stands in nobody's way.
			o = s.run(0, []string{"--health", "true"}, s.service("v3"))
			s.wantServing(o, o.Started)
		})
	}
}

// TestHealthFailsSlowly: the old one owns again, and takes its time to take back what it
// has lent. Only then it says why it had to.
func TestHealthFailsSlowly(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first("-do", "hold@resume")
	d := s.prepare([]string{"--health", "false"}, s.service("v2", "-do", "crash@owns")).start()
	release := s.arrived()
	<-time.After(time.Second) // in which it looks several times; nothing tells of that
	if processState(d.cmd.Process.Pid) == 'Z' {
		t.Error("the tool has not waited")
	}
	release()
	o := d.wait()
	s.wantExit(o, 5)
	s.wantServing(o, old)
	if o.Failure == nil || o.Failure.Successor.Instance != o.Started.Instance {
		t.Errorf("%+v", o.Failure)
	}
}

// TestHealthLeftovers: what a command leaves behind must not hold the tool's output
// open, for which a pipeline would wait.
func TestHealthLeftovers(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	once := filepath.Join(s.dir, "once")
	o := s.run(0, []string{"--health", "sleep 1000 & test -e " + once + " || ! : >" + once}, s.service("v1"))
	s.wantServing(o, o.Started)
}

// TestHealthPredecessorGone: the new owner is not healthy, and is all there is.
func TestHealthPredecessorGone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   string
	}{{"and it answers", ""}, {"and it is frozen", "freeze@health"}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			old := s.first()
			health := filepath.Join(s.dir, "health")
			check := "test -e " + health
			if tt.do != "" {
				check = "http://" + s.address() + "/health"
			}
			d := s.prepare([]string{"--probation", brief, "--health", check}, s.service("v2", "-do", tt.do)).start()
			s.until("v2", func() bool {
				c, err := crossfade.Dial(s.context(), s.socket)
				if err != nil {
					return false
				}
				peer, err := c.Peer(s.context())
				if err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
				return peer.PID != old.PID
			})
			s.signal(old.PID, syscall.SIGKILL)
			o := d.wait()
			s.wantExit(o, 11)
			if o.Serving == nil || o.Serving.Version != "v2" || o.ExitStatus != nil {
				t.Errorf("%+v", o)
			}
			if tt.do != "" {
				s.signal(o.Serving.PID, syscall.SIGCONT)
			}
			s.wantAnswer(o.Serving.PID)
		})
	}
}

func TestHealthInterrupted(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			old := s.first()
			d := s.prepare([]string{"--probation", "1h", "--health", "false"}, s.service("v2")).start()
			s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Process.BuildVersion == "v2" })
			s.signal(d.cmd.Process.Pid, sig)
			o := d.wait()
			s.wantExit(o, 5)
			s.wantServing(o, old)
			if !strings.Contains(o.Reason, "interrupted") || !equal(o.ExitStatus, 75) {
				t.Errorf("%+v", o)
			}
		})
	}
}

// TestHealthDeployerKilled: nobody is left to settle, so the old one has the service
// back by itself.
func TestHealthDeployerKilled(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first()
	d := s.prepare([]string{"--probation", brief, "--health", "false"}, s.service("v2")).start()
	s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Process.BuildVersion == "v2" && st.Probation != nil })
	s.signal(d.cmd.Process.Pid, syscall.SIGKILL)
	d.wait()
	st := s.awaitOwner("v1", func(st *crossfade.Status) bool { return st.Process.PID == old.PID })
	if f := st.LastFailure; f == nil || !strings.Contains(f.Reason, "nobody has settled") {
		t.Errorf("%+v", f)
	}
	s.wantAnswer(old.PID)
}

// TestHealthRolledBackByHand: somebody else decides meanwhile.
func TestHealthRolledBackByHand(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first()
	d := s.prepare([]string{"--probation", "1h", "--health", "false"}, s.service("v2")).start()
	s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Process.BuildVersion == "v2" })
	if _, err := s.controller().Rollback(s.context(), "seen by eye"); err != nil {
		t.Fatal(err)
	}
	o := d.wait()
	s.wantExit(o, 5)
	s.wantServing(o, old)
	if !strings.Contains(o.Reason, "seen by eye") {
		t.Errorf("%q", o.Reason)
	}
}

// TestHealthSettledByHand: then there is nothing to roll back to.
func TestHealthSettledByHand(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old := s.first()
	d := s.prepare([]string{"--probation", brief, "--health", "false"}, s.service("v2")).start()
	s.awaitOwner("v2", func(st *crossfade.Status) bool { return st.Process.BuildVersion == "v2" })
	if _, err := s.controller().Settle(s.context()); err != nil {
		t.Fatal(err)
	}
	o := d.wait()
	s.wantExit(o, 11)
	s.wantServing(o, o.Started)
	s.awaitGone(old.PID)
}

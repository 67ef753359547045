package runit_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/examples/internal/trial"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/overlap"
)

func TestMain(m *testing.M) {
	overlap.Tests(8)
	leak.Main(m, trial.Clean)
}

// site is a runsvdir that runs the example.
type site struct {
	*trial.Place
	t       *testing.T
	service string
	socket  string
	daemon  *exec.Cmd
}

// start installs v1, v2 and the service directory, and starts runsvdir.
func start(t *testing.T) *site {
	t.Helper()
	for _, command := range []string{"runsvdir", "runsv", "sv", "svlogd", "chpst"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skipf("it needs runit: %v", err)
		}
	}
	p := trial.NewPlace(t)
	s := &site{Place: p, t: t, service: p.Path("service/app"), socket: p.Path("run/control.sock")}
	for _, version := range []string{"v1", "v2"} {
		p.Server(version, "opt/"+version+"/app")
	}
	p.Switch("opt/current", "v1")
	for _, dir := range []string{"run", "log"} {
		must(t, os.Mkdir(p.Path(dir), 0o755))
	}
	p.Install("app/run", "service/app/run", "/opt/app", p.Path("opt"), "/run/app", p.Path("run"),
		"127.0.0.1:8080", "127.0.0.1:0", "chpst -u app ", "chpst ")
	p.Install("app/log/run", "service/app/log/run", "/var/log/app", p.Path("log"))
	p.Install("app/finish", "service/app/finish")
	p.Install("app/control/t", "service/app/control/t")

	s.daemon = s.Command("runsvdir", p.Path("service"))
	s.daemon.Stdout = t.Output()
	must(t, s.daemon.Start())
	t.Cleanup(func() {
		if s.daemon.ProcessState == nil {
			s.end()
		}
		if t.Failed() {
			text, err := os.ReadFile(p.Path("log/current"))
			t.Logf("the log: %s (%v)", text, err)
		}
	})
	return s
}

// sv is sv with a command for the service. Its status tells whether it was done in time.
func (s *site) sv(args ...string) string {
	s.t.Helper()
	return s.Run(0, "sv", append(append([]string{"-w", "60"}, args...), s.service)...)
}

// pid is that of a process of runsv's, ./run or ./log/run.
func (s *site) pid(of string) int {
	s.t.Helper()
	pid := 0
	trial.Await(s.t, "the number of a process", func() bool { // runsv empties the file first
		text, err := os.ReadFile(s.service + "/" + of + "supervise/pid")
		must(s.t, err)
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	return pid
}

// awaitDown waits until runsv has come to leave the service down. When ./finish has just
// ended it may show the service as down and be about to start it again.
func (s *site) awaitDown() {
	s.t.Helper()
	trial.Await(s.t, "the service to be down", func() bool {
		out, _ := s.Command("sv", "status", s.service).Output() // what it prints says it all
		return strings.HasPrefix(string(out), "down:") && !strings.Contains(string(out), "want up")
	})
}

// end ends runit, and with it the service. SIGHUP has runsvdir tell each runsv.
func (s *site) end() {
	s.t.Helper()
	must(s.t, s.daemon.Process.Signal(syscall.SIGHUP))
	_ = s.daemon.Wait() // its status is 111
	s.AwaitEnd()
	trial.Await(s.t, "the end of runsv", func() bool {
		// Nobody reads it any more.
		f, err := os.OpenFile(s.service+"/supervise/control", os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			f.Close()
		}
		return err != nil
	})
}

// TestReload replaces the code twice while clients ask: by `sv hup`, and by a command
// that says how it went. The process that runsv watches stays the same.
func TestReload(t *testing.T) {
	t.Parallel()
	s := start(t)
	load := trial.StartLoad(t, trial.Address(t, s.AwaitVersion(s.socket, "v1")))
	load.Await("v1")
	pid := s.pid("")

	s.Switch("opt/current", "v2")
	s.sv("hup")
	s.AwaitVersion(s.socket, "v2")
	load.Await("v2")

	s.Switch("opt/current", "v1")
	s.Run(0, "crossfade", "upgrade", "--socket", s.socket)
	if got := s.Status(s.socket).Process.BuildVersion; got != "v1" {
		t.Errorf("%s owns the service, want v1", got)
	}

	s.Write("opt/v3/app", "#!/bin/sh\nexit 1\n", 0o755)
	s.Switch("opt/current", "v3")
	s.Run(5, "crossfade", "upgrade", "--socket", s.socket)
	load.Stop()
	if got := s.pid(""); got != pid {
		t.Errorf("crossfade supervise is process %d, want still %d", got, pid)
	}
	s.end()
}

// TestLogger checks that the end of the logger does not end who logs.
func TestLogger(t *testing.T) {
	t.Parallel()
	s := start(t)
	load := trial.StartLoad(t, trial.Address(t, s.AwaitVersion(s.socket, "v1")))
	load.Await("v1")
	logger := s.pid("log/")
	must(t, syscall.Kill(logger, syscall.SIGKILL))
	s.Switch("opt/current", "v2")
	s.sv("hup")
	s.AwaitVersion(s.socket, "v2")
	load.Await("v2")
	load.Stop()
	trial.Await(t, "another logger", func() bool { return s.pid("log/") != logger })
	trial.Await(t, "what was said meanwhile", func() bool {
		text, err := os.ReadFile(s.Path("log/current"))
		return err == nil && strings.Contains(string(text), "v2")
	})
	s.end()
}

// TestCrash checks that runsv starts the service again after a crash and after `sv
// restart`, and not what was stopped on purpose.
func TestCrash(t *testing.T) {
	t.Parallel()
	s := start(t)
	crashed := s.AwaitOwner(s.socket).Process
	must(t, syscall.Kill(crashed.PID, syscall.SIGKILL))
	again := s.awaitOther(crashed.PID)
	s.sv("restart")
	s.awaitOther(again)
	s.Run(0, "crossfade", "stop", "--socket", s.socket)
	s.awaitDown()
	s.sv("start")
	s.AwaitOwner(s.socket)
	s.end()
}

func (s *site) awaitOther(pid int) int {
	s.t.Helper()
	trial.Await(s.t, "another owner", func() bool {
		return !s.NoOwner(s.socket) && s.AwaitOwner(s.socket).Process.PID != pid
	})
	return s.AwaitOwner(s.socket).Process.PID
}

// TestStop checks that `sv stop` lets the owner and an older generation finish what
// they have.
func TestStop(t *testing.T) {
	t.Parallel()
	s := start(t)
	address := trial.Address(t, s.AwaitVersion(s.socket, "v1"))
	first := trial.Hold(t, address)
	s.Switch("opt/current", "v2")
	s.Run(0, "crossfade", "upgrade", "--socket", s.socket)
	if d := s.Status(s.socket).Draining; len(d) != 1 || d[0].Process.BuildVersion != "v1" {
		t.Fatalf("draining are %v, want v1", d)
	}
	second := trial.Hold(t, address)

	stopped := s.Command("sv", "-w", "60", "stop", s.service)
	must(t, stopped.Start())
	trial.Await(t, "the owner to stop", func() bool { return s.NoOwner(s.socket) })
	if len(s.Processes()) < 3 {
		t.Errorf("%d processes run, want crossfade supervise and two that drain", len(s.Processes()))
	}
	first()
	second()
	must(t, stopped.Wait())
	s.AwaitEnd()
	s.awaitDown()
	s.end()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package supervisord_test

import (
	"os"
	"os/exec"
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

// site is a supervisord that runs the example.
type site struct {
	*trial.Place
	t      *testing.T
	conf   string
	socket string
	daemon *exec.Cmd
}

// start installs v1, v2 and the configuration, and starts supervisord.
func start(t *testing.T) *site {
	t.Helper()
	for _, command := range []string{"supervisord", "supervisorctl"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skipf("it needs supervisord: %v", err)
		}
	}
	p := trial.NewPlace(t)
	s := &site{Place: p, t: t, conf: p.Path("supervisord.conf"), socket: p.Path("run/control.sock")}
	for _, version := range []string{"v1", "v2"} {
		p.Server(version, "opt/"+version+"/app")
	}
	p.Switch("opt/current", "v1")
	for _, dir := range []string{"run", "log"} {
		must(t, os.Mkdir(p.Path(dir), 0o755))
	}
	p.Install("supervisord.conf", "supervisord.conf",
		"/opt/app", p.Path("opt"), "/run/app", p.Path("run"), "/var/log/app", p.Path("log"),
		"/usr/local/bin", p.Path("bin"), "127.0.0.1:8080", "127.0.0.1:0", "user=app\n", "")
	s.launch()
	t.Cleanup(func() {
		if t.Failed() {
			text, err := os.ReadFile(p.Path("log/supervise.log"))
			t.Logf("supervise.log: %s (%v)", text, err)
		}
	})
	return s
}

func (s *site) launch() {
	s.t.Helper()
	daemon := s.Command("supervisord", "-n", "-c", s.conf)
	daemon.Stdout = s.t.Output()
	must(s.t, daemon.Start())
	s.daemon = daemon
	s.t.Cleanup(func() {
		if daemon.ProcessState == nil {
			_ = daemon.Process.Kill()
			_ = daemon.Wait() // it was killed
		}
	})
}

// ctl is supervisorctl. Its status is not said to be of any use.
func (s *site) ctl(args ...string) string {
	s.t.Helper()
	out, _ := s.Command("supervisorctl", append([]string{"-c", s.conf}, args...)...).Output()
	return string(out)
}

func (s *site) awaitState(state string) {
	s.t.Helper()
	trial.Await(s.t, "the state "+state, func() bool { return strings.Contains(s.ctl("status", "app"), state) })
}

// pid is that of `crossfade supervise`.
func (s *site) pid() string { return strings.TrimSpace(s.ctl("pid", "app")) }

// end ends supervisord, and with it the service.
func (s *site) end() {
	s.t.Helper()
	must(s.t, s.daemon.Process.Signal(syscall.SIGTERM))
	must(s.t, s.daemon.Wait())
	s.AwaitEnd()
}

// TestReload replaces the code twice while clients ask: by a signal, and by a command
// that says how it went. The process that supervisord watches stays the same.
func TestReload(t *testing.T) {
	t.Parallel()
	s := start(t)
	load := trial.StartLoad(t, trial.Address(t, s.AwaitVersion(s.socket, "v1")))
	load.Await("v1")
	s.awaitState("RUNNING")
	pid := s.pid()

	s.Switch("opt/current", "v2")
	s.ctl("signal", "HUP", "app")
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
	if got := s.pid(); got != pid {
		t.Errorf("crossfade supervise is process %s, want still %s", got, pid)
	}
	s.end()
}

// TestCrash checks that supervisord starts the service again, and not what was
// stopped on purpose.
func TestCrash(t *testing.T) {
	t.Parallel()
	s := start(t)
	crashed := s.AwaitOwner(s.socket).Process
	s.awaitState("RUNNING")
	must(t, syscall.Kill(crashed.PID, syscall.SIGKILL))
	trial.Await(t, "another owner", func() bool {
		return !s.NoOwner(s.socket) && s.AwaitOwner(s.socket).Process.PID != crashed.PID
	})
	s.awaitState("RUNNING")
	s.Run(0, "crossfade", "stop", "--socket", s.socket)
	s.awaitState("EXITED")
	s.ctl("start", "app")
	s.AwaitOwner(s.socket)
	s.end()
}

// TestStop checks that `supervisorctl stop` lets the owner and an older generation
// finish what they have.
func TestStop(t *testing.T) {
	t.Parallel()
	s := start(t)
	address := trial.Address(t, s.AwaitVersion(s.socket, "v1"))
	s.awaitState("RUNNING")
	first := trial.Hold(t, address)
	s.Switch("opt/current", "v2")
	s.Run(0, "crossfade", "upgrade", "--socket", s.socket)
	if d := s.Status(s.socket).Draining; len(d) != 1 || d[0].Process.BuildVersion != "v1" {
		t.Fatalf("draining are %v, want v1", d)
	}
	second := trial.Hold(t, address)

	stopped := make(chan string, 1) // so that it can end when nobody waits for it
	go func() { stopped <- s.ctl("stop", "app") }()
	trial.Await(t, "the owner to stop", func() bool { return s.NoOwner(s.socket) })
	if len(s.Processes()) < 3 {
		t.Errorf("%d processes run, want crossfade supervise and two that drain", len(s.Processes()))
	}
	first()
	second()
	if out := <-stopped; !strings.Contains(out, "stopped") {
		t.Errorf("supervisorctl stop says %q", out)
	}
	s.AwaitEnd()
	s.end()
}

// TestSupervisordDies checks that its death takes nothing along, and that the next one
// takes the service over.
func TestSupervisordDies(t *testing.T) {
	t.Parallel()
	s := start(t)
	load := trial.StartLoad(t, trial.Address(t, s.AwaitVersion(s.socket, "v1")))
	load.Await("v1")
	must(t, s.daemon.Process.Kill())
	_ = s.daemon.Wait() // it was killed
	s.Switch("opt/current", "v2")
	s.Run(0, "crossfade", "upgrade", "--socket", s.socket)
	load.Await("v2")

	before := s.Status(s.socket).Process
	s.launch()
	trial.Await(t, "its service to take over", func() bool { return s.AwaitOwner(s.socket).Process != before })
	s.awaitState("RUNNING")
	load.Stop()
	s.end()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

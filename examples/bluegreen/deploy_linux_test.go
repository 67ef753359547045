package bluegreen_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/examples/internal/trial"
)

// site is where a test deploys to.
type site struct {
	*trial.Place
	t      *testing.T
	script string
	socket string
}

func newSite(t *testing.T) *site {
	t.Helper()
	for _, command := range []string{"bash", "find", "flock", "jq", "tar"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skipf("deploy.sh needs %s: %v", command, err)
		}
	}
	script, err := filepath.Abs("deploy.sh")
	must(t, err)
	p := trial.NewPlace(t)
	return &site{p, t, script, p.Path("app/run/control.sock")}
}

// release puts a release of the server where a build would leave it.
func (s *site) release(version string) string {
	s.t.Helper()
	if _, err := os.Stat(s.Path("build", version)); err != nil {
		s.Server(version, "build/"+version+"/app")
	}
	return s.Path("build", version)
}

// command is deploy.sh with options, a release, and what the server wants.
func (s *site) command(args ...string) *exec.Cmd {
	args = append([]string{s.script, "--root", s.Path("app")}, args...)
	return s.Command("bash", append(args, "--", "-listen", "127.0.0.1:0")...)
}

// deploy runs deploy.sh, which must end with a status.
func (s *site) deploy(status int, args ...string) string {
	s.t.Helper()
	cmd := s.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = io.MultiWriter(&stderr, s.t.Output())
	cmd.Stdout = cmd.Stderr
	_ = cmd.Run() // the state says it all
	if got := cmd.ProcessState.ExitCode(); got != status {
		s.t.Fatalf("deploy.sh %v: %v, want status %d", args, cmd.ProcessState, status)
	}
	return stderr.String()
}

// serves checks who serves: the owner, by the link, and by an answer.
func (s *site) serves(version string) {
	s.t.Helper()
	status := s.Status(s.socket)
	if got := status.Process.BuildVersion; got != version {
		s.t.Errorf("%s owns the service, want %s", got, version)
	}
	if link, err := os.Readlink(s.Path("app/current")); err != nil || link != "releases/"+version {
		s.t.Errorf("current is %q (%v), want releases/%s", link, err, version)
	}
	answer, err := trial.Ask(trial.Address(s.t, status))
	must(s.t, err)
	if answer.Version != version {
		s.t.Errorf("%s has answered, want %s", answer.Version, version)
	}
}

// releases returns what is in the directory of the releases.
func (s *site) releases() []string {
	s.t.Helper()
	entries, err := os.ReadDir(s.Path("app/releases"))
	must(s.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// gate is a health check that does not end before it is told to.
func (s *site) gate() (check string, passed func(status string)) {
	s.t.Helper()
	fifo, reached := s.Path("gate"), s.Path("reached")
	must(s.t, syscall.Mkfifo(fifo, 0o600))
	check = "touch " + reached + "; read -r status <" + fifo + "; exit $status"
	return check, func(status string) {
		s.t.Helper()
		trial.Await(s.t, "the health check", func() bool {
			_, err := os.Stat(reached)
			return err == nil
		})
		if status != "" {
			must(s.t, os.WriteFile(fifo, []byte(status+"\n"), 0))
		}
	}
}

// TestDeploy is the life of a service: the first release, an archive under load,
// one that is not healthy, one that does not even start, and the return to an older.
func TestDeploy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.deploy(0, s.release("v1"))
	s.serves("v1")
	load := trial.StartLoad(t, trial.Address(t, s.Status(s.socket)))
	load.Await("v1")

	// A copy: what was built is linked to by every test, and tar minds.
	s.Run(0, "cp", "-r", s.release("v2"), s.Path("v2"))
	archive := s.Path("v2.tar.gz")
	s.Run(0, "tar", "-czf", archive, "-C", s.Path(), "v2")
	s.deploy(0, "--health", "http://"+trial.Address(t, s.Status(s.socket)), "--expect", "http", archive)
	s.serves("v2")
	load.Await("v2")

	output := s.deploy(5, "--health", "false", "--probation", "3s", s.release("v3"))
	s.serves("v2")
	if want := "current names v2 again"; !strings.Contains(output, want) {
		t.Errorf("nothing says %q", want)
	}

	s.Write("build/v4/app", "#!/bin/sh\necho no such luck >&2\nexit 3\n", 0o755)
	output = s.deploy(5, s.Path("build/v4"))
	s.serves("v2")
	if want := "no such luck"; !strings.Contains(output, want) {
		t.Errorf("nothing says %q", want)
	}

	s.deploy(0, s.Path("app/releases/v1"))
	s.serves("v1")
	load.Stop()

	// Nobody has inherited the lock.
	s.Run(0, "flock", "-n", s.Path("app/deploy.lock"), "true")
	s.Stop(s.socket)
}

// TestDeployRefused is what must change nothing.
func TestDeployRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.deploy(0, s.release("v1"))
	s.Write("build/v2/README", "no program", 0o644)
	s.Write("build/v3/app", "not executable", 0o644)
	s.Write("v4.tar", "not an archive", 0o644)
	s.Write("other/v1/app", "not what is installed under that name", 0o755)
	s.release("v9")
	for _, test := range []struct {
		name   string
		status int
		args   []string
	}{
		{"no release", 2, nil},
		{"two releases", 2, []string{s.Path("build/v1"), s.Path("build/v2")}},
		{"a release that is not there", 2, []string{s.Path("build/v8")}},
		{"an option that there is not", 2, []string{"--nonsense", "x", s.Path("build/v9")}},
		{"nothing to keep", 2, []string{"--keep", "0", s.Path("build/v9")}},
		{"no program in it", 2, []string{s.Path("build/v2")}},
		{"a program that is not executable", 2, []string{s.Path("build/v3")}},
		{"another release of that name", 2, []string{s.Path("other/v1")}},
		{"a damaged archive", 5, []string{s.Path("v4.tar")}},
		{"a name that it would not take over", 8, []string{"--expect", "http,admin", s.Path("build/v9")}},
		{"a descriptor that it would not ask for", 8, []string{"--expect", "admin", s.Path("build/v9")}},
		{"a health check without a probation", 2, []string{"--health", "true", "--probation", "0", s.Path("build/v9")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := s.Status(s.socket).Process
			s.deploy(test.status, test.args...)
			s.serves("v1")
			if after := s.Status(s.socket).Process; after != before {
				t.Errorf("%v owns the service, want %v", after, before)
			}
			for _, name := range s.releases() {
				if strings.HasPrefix(name, ".") {
					t.Errorf("%s was left behind", name)
				}
			}
		})
	}
	s.Stop(s.socket)
}

// TestDeployCannotCopy checks that half a release is none.
func TestDeployCannotCopy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.deploy(0, s.release("v1"))
	s.Write("bin/cp", "#!/bin/sh\necho no space left >&2\nexit 1\n", 0o755)
	s.deploy(5, s.release("v2"))
	s.serves("v1")
	if got, want := s.releases(), []string{"v1"}; !slices.Equal(got, want) {
		t.Errorf("releases are %v, want %v", got, want)
	}
	s.Stop(s.socket)
}

// TestDeployCleans checks that old releases go, and none from which a process runs.
func TestDeployCleans(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.deploy(0, "--keep", "1", s.release("v1"))
	address := trial.Address(t, s.Status(s.socket))
	finish := trial.Hold(t, address)
	s.deploy(0, "--keep", "1", s.release("v2"))
	s.deploy(0, "--keep", "1", s.release("v3"))
	if got, want := s.releases(), []string{"v1", "v3"}; !slices.Equal(got, want) {
		t.Errorf("releases are %v, want %v: v1 drains", got, want)
	}
	finish()
	trial.Await(t, "v1 to end", func() bool { return len(s.Status(s.socket).Draining) == 0 })
	s.deploy(0, "--keep", "2", s.release("v4"))
	if got, want := s.releases(), []string{"v3", "v4"}; !slices.Equal(got, want) {
		t.Errorf("releases are %v, want %v", got, want)
	}
	s.serves("v4")
	s.Stop(s.socket)
}

// TestDeployTwoAtOnce checks that the second of two deployments is turned away.
func TestDeployTwoAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.deploy(0, s.release("v1"))
	check, passed := s.gate()
	first := s.command("--health", check, s.release("v2"))
	must(t, first.Start())
	passed("")
	output := s.deploy(4, s.release("v3"))
	if want := "installs v2"; !strings.Contains(output, want) {
		t.Errorf("nothing says %q", want)
	}
	passed("0")
	must(t, first.Wait())
	s.serves("v2")
	s.deploy(0, s.release("v3"))
	s.serves("v3")
	s.Stop(s.socket)
}

// TestDeployTerminated checks what becomes of a deployment that is told to stop.
func TestDeployTerminated(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.deploy(0, s.release("v1"))
			check, reached := s.gate()
			cmd := s.command("--health", check, s.release("v2"))
			must(t, cmd.Start())
			reached("")
			must(t, cmd.Process.Signal(sig))
			_ = cmd.Wait() // the state says it all
			if got := cmd.ProcessState.ExitCode(); got != 5 {
				t.Errorf("%v, want status 5", cmd.ProcessState)
			}
			s.serves("v1")
			s.Run(0, "flock", "-n", s.Path("app/deploy.lock"), "true")
			s.Stop(s.socket)
		})
	}
}

// TestDeployKilled checks that the next deployment finds its way after one that could
// not clean up: the service rolls back by itself, and the link follows later.
func TestDeployKilled(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		script, tool bool // is killed
	}{
		{"the script", true, false},
		{"the tool", false, true},
		{"both", true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.deploy(0, s.release("v1"))
			old := s.Status(s.socket).Process.PID
			check, reached := s.gate()
			cmd := s.command("--health", check, "--probation", "4s", s.release("v2"))
			cmd.Stderr = nil // a pipe would be kept open by what outlives the script
			must(t, cmd.Start())
			reached("")
			// The probation ends when its predecessor says so: not yet.
			must(t, syscall.Kill(old, syscall.SIGSTOP))
			status := 9
			if test.script {
				must(t, cmd.Process.Kill())
				status = -1
			}
			if test.tool {
				s.Kill("bin/crossfade")
			} else {
				s.Signal("bin/crossfade", syscall.SIGSTOP) // nor does it give up yet
			}
			_ = cmd.Wait() // the state says it all
			if got := cmd.ProcessState.ExitCode(); got != status {
				t.Errorf("%v, want status %d", cmd.ProcessState, status)
			}
			if test.tool {
				reached("1") // for the check, whom nobody ends
			}
			// The lock is the tool's as long as it goes on.
			inTheWay := "another deployment is under way"
			if test.tool {
				inTheWay = "probation"
			}
			if output := s.deploy(4, s.release("v3")); !strings.Contains(output, inTheWay) {
				t.Errorf("nothing says %q", inTheWay)
			}
			if !test.tool {
				s.Signal("bin/crossfade", syscall.SIGCONT)
			}
			must(t, syscall.Kill(old, syscall.SIGCONT))
			s.AwaitVersion(s.socket, "v1")
			trial.Await(t, "the end of the tool", func() bool {
				return s.Command("flock", "-n", s.Path("app/deploy.lock"), "true").Run() == nil
			})
			if link, err := os.Readlink(s.Path("app/current")); err != nil || link != "releases/v2" {
				t.Fatalf("current is %q (%v), want releases/v2: nobody was there to take it back", link, err)
			}
			s.Write("build/v4/app", "#!/bin/sh\nexit 1\n", 0o755)
			s.deploy(5, s.Path("build/v4"))
			s.serves("v1")
			s.Stop(s.socket)
		})
	}
}

// TestDeployUnhealthy checks the first release, which nothing can be rolled back to.
func TestDeployUnhealthy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.deploy(11, "--health", "false", "--probation", "1s", s.release("v1"))
	s.serves("v1")
	s.Stop(s.socket)
}

// TestDeployNobody checks a first release that does not start.
func TestDeployNobody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.Write("build/v1/app", "#!/bin/sh\nexit 1\n", 0o755)
	s.deploy(10, s.Path("build/v1"))
	if link, err := os.Readlink(s.Path("app/current")); err == nil {
		t.Errorf("current is %q, want none", link)
	}
	s.deploy(0, s.release("v2"))
	s.serves("v2")
	s.Stop(s.socket)
}

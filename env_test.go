//go:build unix

package crossfade_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	serviceCommands["run"] = runCommand
	serviceCommands["executable"] = func(*service, json.RawMessage) (any, error) { return os.Executable() }
}

// runCommand runs a command of the operating system and returns its output.
func runCommand(_ *service, value json.RawMessage) (any, error) {
	var args []string
	if err := json.Unmarshal(value, &args); err != nil {
		return nil, err
	}
	out, err := exec.Command(args[0], args[1:]...).Output()
	return string(out), err
}

// variables are the library's own in the output of env.
func variables(env string) []string {
	var own []string
	for line := range strings.Lines(env) {
		if strings.HasPrefix(line, "CROSSFADE_") {
			own = append(own, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(own)
	return own
}

func TestTheEnvironmentIsTakenAndNotPassedOn(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Ready: true}
	p := d.launch(spec, environ(
		"CROSSFADE_SOCKET="+d.path("control"), "CROSSFADE_INSTANCE=blue", "CROSSFADE_EPOCH=3", "CROSSFADE_FORCE=1",
		"CROSSFADE_OF_A_LATER_VERSION=x"))
	p.expect("ready")
	if left := query[[]string](p, "environ"); len(left) != 0 {
		t.Errorf("New has left %q", left)
	}
	if left := variables(query[string](p, "run", []string{"env"})); len(left) != 0 {
		t.Errorf("the program's own child has %q", left)
	}
	conn, err := scm.Dial(inTime(t), d.path("control"))
	if err != nil {
		t.Fatalf("CROSSFADE_SOCKET was not used: %v", err)
	}
	status, err := handoff.QueryStatus(inTime(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	if got := status.Process; got.Instance != "blue" || got.Epoch != 3 || got.PID != p.pid {
		t.Errorf("the owner is %+v", got)
	}
}

func TestConfigComesBeforeTheEnvironment(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	p := d.launch(serviceSpec{Socket: d.path("own"), Instance: "green", Epoch: 4, Ready: true}, environ(
		"CROSSFADE_SOCKET="+d.path("control"), "CROSSFADE_EPOCH=3"))
	p.expect("ready")
	if got := p.status().Process; got.Instance != "green" || got.Epoch != 4 {
		t.Errorf("the owner is %+v", got)
	}
	wantSocket(t, d.path("own"))
	wantMissing(t, d.path("control"))
}

// Who was started for one service must not take over another.
func TestADeploymentIsForOneSocket(t *testing.T) {
	leak.Check(t)
	dir := socketDir(t)
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, configured, told, text string }{
		{"another path", dir + "/own", dir + "/control", "was started for CROSSFADE_SOCKET=" + dir + "/control, and its Config.Socket is " + dir + "/own"},
		{"the same path", dir + "/own", dir + "/own", ""},
		{"the same by another name", dir + "/own", dir + "/link/../own", ""},
		{"the same behind a link", dir + "/own", dir + "/link/own", ""},
		{"none of its own", "", dir + "/own", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("CROSSFADE_SOCKET", test.told)
			t.Setenv("CROSSFADE_INSTANCE", "blue")
			upg, err := crossfade.New(t.Context(), &crossfade.Config{Socket: test.configured, Logger: slog.New(slog.DiscardHandler)})
			if err == nil {
				upg.Stop()
			}
			if test.text == "" && err != nil || test.text != "" && (err == nil || !strings.Contains(err.Error(), test.text)) {
				t.Errorf("New returned %v, want %q", err, test.text)
			}
		})
	}
	wantMissing(t, dir+"/own")
	wantMissing(t, dir+"/control")
}

func TestASecondUpgraderGetsNoneOfTheEnvironment(t *testing.T) {
	leak.Check(t)
	socket := filepath.Join(socketDir(t), "control")
	t.Setenv("CROSSFADE_SOCKET", socket)
	t.Setenv("CROSSFADE_INSTANCE", "blue")
	t.Setenv("CROSSFADE_EPOCH", "3")
	first := newUpgrader(t, new(crossfade.Config))
	second := newUpgrader(t, new(crossfade.Config))
	if got := first.Status().Process; got.Instance != "blue" || got.Epoch != 3 {
		t.Errorf("the first is %+v", got)
	}
	if got := second.Status().Process; got.Instance == "blue" || got.Instance == "" || got.Epoch != 0 {
		t.Errorf("the second is %+v", got)
	}
	if second.HasPredecessor() {
		t.Error("the second took over from the first")
	}
}

func TestBadEnvironment(t *testing.T) {
	for _, test := range []struct{ name, value, text string }{
		{"CROSSFADE_FD", "x", `CROSSFADE_FD="x" is not the number of an inherited descriptor`},
		{"CROSSFADE_FD", "-1", `CROSSFADE_FD="-1" is not the number of an inherited descriptor`},
		{"CROSSFADE_FD", "2", `CROSSFADE_FD="2" is not the number of an inherited descriptor`},
		{"CROSSFADE_FD", "12345", "the inherited connection CROSSFADE_FD=12345"},
		{"CROSSFADE_EPOCH", "-1", `CROSSFADE_EPOCH="-1" is not a number`},
		{"CROSSFADE_EPOCH", "99999999999999999999", "is not a number"},
		{"CROSSFADE_FORCE", "yes", `CROSSFADE_FORCE="yes" is neither 0 nor 1`},
		{"CROSSFADE_INSTANCE", "a\nb", "unprintable"},
		{"CROSSFADE_INSTANCE", strings.Repeat("x", 201), "the limit is 200"},
		{"CROSSFADE_SOCKET", "/" + strings.Repeat("x", 200), "Config.Socket"},
	} {
		t.Run(test.name+"="+test.value[:min(len(test.value), 20)], func(t *testing.T) {
			leak.Check(t)
			t.Setenv(test.name, test.value)
			_, err := crossfade.New(t.Context(), &crossfade.Config{Logger: slog.New(slog.DiscardHandler)})
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("New returned %v, want %q", err, test.text)
			}
			if v, ok := os.LookupEnv(test.name); ok {
				t.Errorf("%s=%s stays for the program's children", test.name, v)
			}
		})
	}
}

// TestAnInheritedDescriptorMustBeAConnection: whoever sets CROSSFADE_FD by
// mistake must not have a file of the program taken for it.
func TestAnInheritedDescriptorMustBeAConnection(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := d.launch(serviceSpec{Socket: d.path("control")}, environ("CROSSFADE_FD=3"), func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{r} })
	if err := p.await("new").Err; err == nil || !strings.Contains(err.Error(), "the inherited connection CROSSFADE_FD=3") {
		t.Errorf("New returned %v", err)
	}
	if status := p.exitStatus(); status != 1 {
		t.Errorf("the exit status is %d", status)
	}
	wantMissing(t, d.path("control"))
}

// TestWhatAnUpgradedProcessFinds has a shell for a successor, which writes its
// environment down and fails.
func TestWhatAnUpgradedProcessFinds(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	p := d.launch(serviceSpec{Socket: d.path("control"), Instance: "blue", Epoch: 3, Ready: true})
	p.expect("ready")
	var instances []string
	for _, pipes := range []int{0, 2} {
		out := d.path("env")
		err := p.try("upgrade", commandSpec{Path: "/bin/sh", Args: []string{"-c", "env >" + out + "; exit 7"}, Pipes: pipes}).Err
		if !errors.Is(err, crossfade.ErrLost) || !strings.Contains(err.Error(), "exit status 7") {
			t.Errorf("Upgrade returned %v", err)
		}
		env, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		got := variables(string(env))
		want := []string{
			"CROSSFADE_EPOCH=3",
			"CROSSFADE_FD=" + string(rune('3'+pipes)), // behind the command's own files
			"", // a fresh CROSSFADE_INSTANCE
			"CROSSFADE_SOCKET=" + d.path("control"),
		}
		if len(got) != len(want) {
			t.Fatalf("the successor finds %q", got)
		}
		instances = append(instances, got[2])
		want[2] = got[2]
		if !slices.Equal(got, want) || !strings.HasPrefix(got[2], "CROSSFADE_INSTANCE=") || strings.HasSuffix(got[2], "=blue") {
			t.Errorf("the successor finds %q, want %q", got, want)
		}
	}
	if instances[0] == instances[1] {
		t.Errorf("both have the instance %q", instances[0])
	}
}

// TestUpgradeStartsTheSameAgain, behind the command's own files, and the epoch
// goes on from one to the next.
func TestUpgradeStartsTheSameAgain(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := web(d).ready()
	spec.DefaultCommand = true
	owner := d.launch(spec, environ("CROSSFADE_EPOCH=5"))
	address := owner.address("web")
	owner.expect("ready")
	for generation := uint64(2); generation <= 3; generation++ {
		owner.do("upgrade")
		next := d.spawned()
		next.expect("ready")
		next.expect("settled")
		if a := ask(t, "tcp", address); a != (served{next.pid, generation}) {
			t.Errorf("%+v answered, want process %d of generation %d", a, next.pid, generation)
		}
		if got := next.status().Process.Epoch; got != 5 {
			t.Errorf("the epoch is %d", got)
		}
		if left := query[[]string](next, "environ"); len(left) != 0 {
			t.Errorf("New has left %q", left)
		}
		owner.end()
		owner = next
	}
	owner.do("stop")
	owner.end()
	wantMissing(t, d.path("control"))
}

// TestUpgradeFollowsTheLink: os.Executable names the file that a link led to when
// the program started, and would start the old version for ever.
func TestUpgradeFollowsTheLink(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	for _, version := range []string{"v1", "v2"} {
		if err := os.Mkdir(d.path(version), 0o700); err != nil {
			t.Fatal(err)
		}
		copyExecutable(t, filepath.Join(d.path(version), "app"))
	}
	point := func(version string) {
		t.Helper()
		_ = os.Remove(d.path("current"))
		if err := os.Symlink(version, d.path("current")); err != nil {
			t.Fatal(err)
		}
	}
	point("v1")
	spec := web(d).ready()
	spec.DefaultCommand = true
	program := filepath.Join(d.path("current"), "app")
	old := d.launch(spec, func(cmd *exec.Cmd) { cmd.Path, cmd.Args[0] = program, program })
	old.expect("ready")
	point("v2")
	old.do("upgrade")
	next := d.spawned()
	next.expect("ready")
	got, err := filepath.EvalSymlinks(query[string](next, "executable"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := filepath.EvalSymlinks(filepath.Join(d.path("v2"), "app"))
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("the successor runs %s, want %s", got, want)
	}
}

func copyExecutable(t testing.TB, to string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if os.Link(exe, to) == nil {
		return
	}
	in, err := os.Open(exe) // another file system
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestUpgradeToAnotherControlPath: the successor's own path is claimed before
// Ready, its predecessor's given up when that one has retired.
func TestUpgradeToAnotherControlPath(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := d.launch(web(d).ready())
	address := old.address("web")
	old.expect("ready")
	moved := web(d)
	moved.Socket = d.path("moved")
	upgrade := old.begin("upgrade", commandSpec{Spec: &moved})
	next := d.spawned()
	next.address("web")
	wantSocket(t, d.path("control"))
	wantSocket(t, d.path("moved"))
	next.do("ready")
	if err := upgrade.wait().Err; err != nil {
		t.Fatal(err)
	}
	next.expect("settled")
	wantMissing(t, d.path("control"))
	wantSocket(t, d.path("moved"))
	third := d.launch(moved.ready())
	third.expect("ready")
	third.expect("settled")
	if a := ask(t, "tcp", address); a != (served{third.pid, 3}) {
		t.Errorf("%+v answered, want process %d", a, third.pid)
	}
}

// TestAnUpgradeToAPathOfSomebodyElse fails, and harms neither.
func TestAnUpgradeToAPathOfSomebodyElse(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := d.launch(web(d).ready())
	address := old.address("web")
	old.expect("ready")
	stranger := d.launch(serviceSpec{Socket: d.path("other"), Ready: true})
	stranger.expect("ready")
	taken := web(d)
	taken.Socket = d.path("other")
	err := old.try("upgrade", commandSpec{Spec: &taken}).Err
	if !errors.Is(err, crossfade.ErrAborted) || !strings.Contains(err.Error(), "is served by another process") {
		t.Errorf("Upgrade returned %v", err)
	}
	if err := d.spawned().await("new").Err; !errors.Is(err, crossfade.ErrBusy) {
		t.Errorf("New returned %v", err)
	}
	if a := ask(t, "tcp", address); a.PID != old.pid {
		t.Errorf("process %d answered", a.PID)
	}
	wantSocket(t, d.path("control"))
	wantSocket(t, d.path("other"))
	old.do("upgrade", commandSpec{Spec: &serviceSpec{Sockets: []socketSpec{tcpSpec("web")}, Ready: true}})
}

// TestAnOwnerWithoutAPathHandsOverByUpgradeAlone.
func TestAnOwnerWithoutAPathHandsOverByUpgradeAlone(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Sockets: []socketSpec{tcpSpec("web")}, Ready: true}
	old := d.launch(spec)
	address := old.address("web")
	old.expect("ready")
	old.do("upgrade")
	next := d.spawned()
	next.expect("ready")
	next.expect("gone")
	next.do("upgrade")
	third := d.spawned()
	third.expect("ready")
	third.expect("gone")
	if a := ask(t, "tcp", address); a != (served{third.pid, 3}) {
		t.Errorf("%+v answered, want process %d", a, third.pid)
	}
}

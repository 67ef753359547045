package crossfade_test

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	tied = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// It starts the service, as the manager of another unit, and reaps what becomes its
	// child, as a service manager does.
	processes["parent"] = func() {
		cmd := reexec.Command("service", os.Args[1:]...)
		cmd.Env = append(cmd.Env, unitEnv+"=app")
		cmd.Stdout = os.Stdout
		check(cmd.Start())
		for {
			if _, err := unix.Wait4(-1, nil, 0, nil); errors.Is(err, unix.ECHILD) {
				return
			}
		}
	}
}

// startManaged starts a service whose parent is the service manager.
func startManaged(t *testing.T, options ...func(*serviceSpec)) (d *desk, m *fakemanager.Manager, spec serviceSpec, owner *process) {
	t.Helper()
	d = newDesk(t)
	m = fakemanager.New(t, &fakemanager.Config{Access: fakemanager.All})
	spec = unitSpec(d)
	for _, option := range options {
		option(&spec)
	}
	cmd := d.command(spec)
	cmd.Env = append(append(cmd.Env, m.Environ()...), reexec.Env+"=parent")
	reexec.Start(t, cmd)
	owner = d.arrival(func(p *process) bool { return p.parent == cmd.Process.Pid })
	m.SetMain(owner.pid)
	m.Await("READY=1")
	return d, m, spec, owner
}

// sibling waits for a process that has the same parent.
func (p *process) sibling() *process {
	p.desk.t.Helper()
	return p.desk.arrival(func(other *process) bool { return other.parent == p.parent })
}

// The service manager is the parent of every generation, so that it waits for each
// and misses none.
func TestManagerIsTheParentOfTheSuccessor(t *testing.T) {
	t.Parallel()
	_, m, spec, owner := startManaged(t)
	address := owner.address("web")
	second := spec
	second.BuildVersion, second.Probation = "v2", time.Hour

	owner.do("upgrade", &commandSpec{Spec: &second})
	next := owner.sibling()
	next.expect("ready")
	next.kill()
	owner.awaitFailure() // on probation: it has been seen that it is gone
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("%d answers, and not %d", a.PID, owner.pid)
	}
	wantNoChildren(t, owner)

	second.Probation = 0
	for range 2 {
		owner.do("upgrade", &commandSpec{Spec: &second})
		next := owner.sibling()
		next.expect("settled")
		wantExit(t, owner, crossfade.ErrRetired)
		if msg := m.Await(mainProcess(t, next.pid)...); msg.PID != owner.pid {
			t.Errorf("the old main process has not named the new one; %v", msg)
		}
		wantNoChildren(t, next)
		owner = next
	}
	owner.do("stop")
	m.Await("STOPPING=1")
}

var startedProcess = regexp.MustCompile(`\(the started process, pid [1-9]\d*: .*\)$`)

// What is not a child is ended and accounted for as a child is.
func TestUpgradeThatFailsBelowAManager(t *testing.T) {
	t.Parallel()
	sh := func(script string) *commandSpec { return &commandSpec{Path: "/bin/sh", Args: []string{"-c", script}} }
	_, m, spec, owner := startManaged(t, func(s *serviceSpec) { s.ReadyTimeout = 2 * time.Second })
	before := query[resources](owner, "resources")
	for _, tt := range []struct {
		name    string
		command *commandSpec
		do      func(child *process)
		want    error
		says    []string
	}{
		{name: "there is no such program", command: &commandSpec{Path: "/nowhere/service"}, want: os.ErrNotExist, says: []string{"/nowhere/service"}},
		{name: "the program may not be executed", command: &commandSpec{Path: os.DevNull}, want: os.ErrPermission},
		{name: "it exits with 0", command: sh("exit 0"), want: crossfade.ErrLost, says: []string{"exit status 0"}},
		{name: "it exits with 3", command: sh("exit 3"), want: crossfade.ErrLost, says: []string{"exit status 3"}},
		{name: "it kills itself", command: sh("kill -9 $$"), want: crossfade.ErrLost, says: []string{"signal: killed"}},
		{
			name: "it crashes before Ready", command: &commandSpec{Spec: &serviceSpec{Socket: spec.Socket}},
			do: func(child *process) { child.expect("new"); child.kill() }, want: crossfade.ErrLost, says: []string{"signal: killed"},
		},
		{name: "it hangs", command: sh("exec sleep 1000"), want: crossfade.ErrTimeout, says: []string{"no Hello within 2s", "signal: killed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			upgrade := owner.begin("upgrade", tt.command)
			if tt.do != nil {
				tt.do(owner.sibling())
			}
			err := upgrade.wait().Err
			if err == nil || !errors.Is(err, tt.want) {
				t.Fatalf("Upgrade: %v", err)
			}
			if started := !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission); started && !startedProcess.MatchString(err.Error()) {
				t.Errorf("which process was it? %v", err)
			}
			if !containsAll(err.Error(), tt.says) {
				if says := "the service manager's to know"; strings.Contains(err.Error(), says) && !tellsStatus(t) {
					t.Skipf("the kernel tells the exit status of another's child since Linux 6.15: %v", err)
				}
				t.Errorf("Upgrade: %v", err)
			}
			wantNoChildren(t, owner)
		})
	}
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the owner has %+v, and had %+v", now, before)
	}
	if main := m.Main(); main != owner.pid {
		t.Errorf("%d is the main process, and not %d", main, owner.pid)
	}
	owner.do("upgrade", &commandSpec{Spec: &spec})
	owner.sibling().expect("settled")
}

// tellsStatus reports whether this kernel tells how another's child has ended.
func tellsStatus(t *testing.T) bool {
	t.Helper()
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	num, openErr := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err := errors.Join(openErr, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	p, err := scm.NewProcess(num)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = p.ExitStatus()
	return err == nil
}

// A command that asks for its parent gets it.
func TestUpgradeWithACommandThatNeedsItsParent(t *testing.T) {
	t.Parallel()
	d, _, spec, owner := startManaged(t)
	second := spec
	second.Probation = time.Hour
	owner.do("upgrade", &commandSpec{Spec: &second, Tied: true})
	next := d.arrival(func(p *process) bool { return p.parent == owner.pid })
	next.expect("ready")
	next.do("rollback", 0)
	owner.awaitFailure()
}

func TestTheAttributesOfACommandArePreserved(t *testing.T) {
	pidfd := -1
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWUTS}
	got, ok := crossfade.AsSibling(attr, &pidfd)
	if !ok || !got.Setsid || got.Cloneflags != unix.CLONE_NEWUTS|unix.CLONE_PARENT || got.PidFD != &pidfd {
		t.Errorf("it became %+v (%t)", got, ok)
	}
	if attr.Cloneflags != unix.CLONE_NEWUTS || attr.PidFD != nil {
		t.Errorf("what the command has was changed to %+v", attr)
	}
	if got, ok := crossfade.AsSibling(nil, &pidfd); !ok || got.Cloneflags != unix.CLONE_PARENT {
		t.Errorf("of none it became %+v (%t)", got, ok)
	}
	for _, attr := range []*syscall.SysProcAttr{
		{Ptrace: true},
		{Pdeathsig: syscall.SIGTERM},
		{PidFD: new(int)},
		{UseCgroupFD: true},
		{Cloneflags: unix.CLONE_NEWPID},
		{Cloneflags: unix.CLONE_NEWUSER},
		{Cloneflags: unix.CLONE_NEWTIME},
	} {
		if got, ok := crossfade.AsSibling(attr, &pidfd); ok || got != attr {
			t.Errorf("%+v became %+v", attr, got)
		}
	}
}

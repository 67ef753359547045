package trial

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
)

// Limit bounds whatever must not hang.
const Limit = time.Minute

// Place is a directory of one test's own. The tool is in it, and the first thing in
// its PATH. By their executables those processes are found that have left their
// parents.
type Place struct {
	t   testing.TB
	dir string
}

// NewPlace makes a place. When the test ends, the processes that still run from it
// are ended and it is removed.
func NewPlace(t testing.TB) *Place {
	t.Helper()
	dir, err := os.MkdirTemp("", "x-") // the paths of sockets must be short
	must(t, err)
	dir, err = filepath.EvalSymlinks(dir) // as /proc names it
	must(t, err)
	p := &Place{t, dir}
	t.Cleanup(func() {
		left := p.processes("exe", "cwd")
		if len(left) > 0 && !t.Failed() {
			t.Errorf("processes %v were left behind", left)
		}
		for _, pid := range left {
			p.signal(pid, syscall.SIGKILL)
		}
		Await(t, "the end of all processes", func() bool { return len(p.processes("exe", "cwd")) == 0 })
		must(t, os.RemoveAll(dir))
	})
	must(t, install(build(t, toolPackage, "tool"), p.Path("bin/crossfade")))
	return p
}

// Path returns a path in the place.
func (p *Place) Path(elements ...string) string {
	return filepath.Join(append([]string{p.dir}, elements...)...)
}

// Server puts the server of examples/bluegreen, in some version, under a name.
func (p *Place) Server(version, name string) {
	p.t.Helper()
	must(p.t, install(build(p.t, serverPackage, version), p.Path(name)))
}

// Write writes a file.
func (p *Place) Write(name, text string, mode os.FileMode) {
	p.t.Helper()
	path := p.Path(name)
	must(p.t, os.MkdirAll(filepath.Dir(path), 0o755))
	// What another test starts meanwhile would have the file open for writing until its
	// exec, and as long as anybody has, nobody can execute it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	must(p.t, os.WriteFile(path, []byte(text), mode))
}

// Install copies a file of an example, with other words in place of those that a test
// cannot have, in pairs of old and new. Each old one must be in it.
func (p *Place) Install(from, to string, words ...string) {
	p.t.Helper()
	text, err := os.ReadFile(from)
	must(p.t, err)
	info, err := os.Stat(from)
	must(p.t, err)
	for i := 0; i < len(words); i += 2 {
		if !strings.Contains(string(text), words[i]) {
			p.t.Fatalf("there is no %q in %s", words[i], from)
		}
	}
	p.Write(to, strings.NewReplacer(words...).Replace(string(text)), info.Mode())
}

// Switch has a link name something else, from one moment to the next.
func (p *Place) Switch(link, to string) {
	p.t.Helper()
	must(p.t, os.Symlink(to, p.Path(link+".new")))
	must(p.t, os.Rename(p.Path(link+".new"), p.Path(link)))
}

// Command returns a command that is run in the place, as root or any user would from
// a shell: nothing of CROSSFADE_* is set. What it writes to stderr goes to the test's
// log.
func (p *Place) Command(name string, args ...string) *exec.Cmd {
	if found, err := exec.LookPath(p.Path("bin", name)); err == nil {
		name = found
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = p.dir
	cmd.Stderr = p.t.Output()
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CROSSFADE_") && !strings.HasPrefix(v, "PATH=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+p.Path("bin")+":"+os.Getenv("PATH"))
	// A pipe that a background process holds must not be waited for.
	cmd.WaitDelay = Limit
	return cmd
}

// Run runs a command that must end with some status, and returns its stdout.
func (p *Place) Run(status int, name string, args ...string) string {
	p.t.Helper()
	cmd := p.Command(name, args...)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("%s %s: %v, want status %d\n%s", name, strings.Join(args, " "), cmd.ProcessState, status, out)
	}
	return string(out)
}

// Processes returns who runs a program of the place.
func (p *Place) Processes() []int { return p.processes("exe") }

// Kill ends the processes that run one program of the place.
func (p *Place) Kill(program string) {
	p.t.Helper()
	p.Signal(program, syscall.SIGKILL)
}

// Signal sends a signal to the processes that run one program of the place.
func (p *Place) Signal(program string, sig syscall.Signal) {
	p.t.Helper()
	for _, pid := range p.Processes() {
		if link(pid, "exe") == p.Path(program) {
			p.signal(pid, sig)
		}
	}
}

// processes returns those of which one of the links in /proc leads into the place.
func (p *Place) processes(links ...string) []int {
	entries, err := os.ReadDir("/proc")
	must(p.t, err)
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && p.has(pid, links...) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (p *Place) has(pid int, links ...string) bool {
	if link(pid, "exe") == "" {
		return false // it is about to have ended: the rest goes a moment after its program
	}
	return slices.ContainsFunc(links, func(name string) bool { return strings.HasPrefix(link(pid, name)+"/", p.dir+"/") })
}

// link returns where a link of a process leads, nothing if it has ended.
func link(pid int, name string) string {
	path, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), name))
	if err != nil {
		return ""
	}
	return path
}

// signal sends a signal to a process if it still is the test's. The handle is a pidfd, so
// the number cannot come to mean another one in between.
func (p *Place) signal(pid int, sig syscall.Signal) {
	process, err := os.FindProcess(pid)
	must(p.t, err)
	defer func() { _ = process.Release() }() // it is no child
	if p.has(pid, "exe", "cwd") {
		if err := process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			p.t.Errorf("process %d: %v", pid, err)
		}
	}
}

// Status returns what the owner says, or fails the test.
func (p *Place) Status(socket string) *crossfade.Status {
	p.t.Helper()
	status, err := p.ask(socket)
	must(p.t, err)
	return status
}

// AwaitOwner waits until somebody owns a socket.
func (p *Place) AwaitOwner(socket string) *crossfade.Status {
	p.t.Helper()
	var status *crossfade.Status
	Await(p.t, "an owner of "+socket, func() bool {
		var err error
		status, err = p.ask(socket)
		return err == nil && status.State.Owns() && status.Ready
	})
	return status
}

// AwaitVersion waits until a process of some version owns a socket.
func (p *Place) AwaitVersion(socket, version string) *crossfade.Status {
	p.t.Helper()
	var status *crossfade.Status
	Await(p.t, version+" to own "+socket, func() bool {
		var err error
		status, err = p.ask(socket)
		return err == nil && status.State.Owns() && status.Ready && status.Process.BuildVersion == version
	})
	return status
}

// NoOwner reports whether nobody owns a socket.
func (p *Place) NoOwner(socket string) bool {
	_, err := p.ask(socket)
	return errors.Is(err, crossfade.ErrNoOwner)
}

// Stop has the owner stop for good, and waits until nobody runs from the place.
func (p *Place) Stop(socket string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	c, err := crossfade.Dial(ctx, socket)
	must(p.t, err)
	_, err = c.Stop(ctx, "the test is over")
	must(p.t, err)
	p.AwaitEnd()
}

// AwaitEnd waits until nobody runs from the place.
func (p *Place) AwaitEnd() {
	p.t.Helper()
	Await(p.t, "the end of all processes", func() bool { return len(p.Processes()) == 0 })
}

func (p *Place) ask(socket string) (*crossfade.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	c, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return c.Status(ctx)
}

// Await waits for what nothing tells of.
func Await(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Limit); !happened(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, Limit)
		}
		<-time.After(20 * time.Millisecond)
	}
}

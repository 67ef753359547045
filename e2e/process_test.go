//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/e2e/machine"
)

// mark is the variable by which a process is known to belong to a script, whoever
// has started it.
const mark = "E2E_SCRIPT"

var signals = map[string]syscall.Signal{
	"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1,
	"KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
}

// script is what a script has running.
type script struct {
	tb        testing.TB
	work      string // its directory
	socket    string // the control socket that it uses unless it says otherwise
	out       string // the directory of its processes' output
	tmp       string // its TMPDIR
	processes map[string]*process
	started   []*process // all, the nameless too, in the order of their starts
	load      *load
	machine   *machine.Machine // that everything happens in; nil: this one
	requests  map[string]*request
}

// process is one that the script has started itself.
type process struct {
	name           string
	cmd            *exec.Cmd
	stdout, stderr string        // files, which an orphan may go on writing
	ended          chan struct{} // closed when it has been waited for
}

// start starts a process. Its output goes to files: the reader of a pipe would have
// to outlive whatever inherits it.
func (s *script) start(ts *testscript.TestScript, name string, command []string) *process {
	if s.processes[name] != nil {
		ts.Fatalf("there is a process %q already", name)
	}
	p := &process{name: name, ended: make(chan struct{})}
	base := filepath.Join(s.out, fmt.Sprintf("%d-%s", len(s.started), name))
	p.stdout, p.stderr = base+".stdout", base+".stderr"
	stdout, err := os.OpenFile(p.stdout, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.OpenFile(p.stderr, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	ts.Check(err)
	defer stderr.Close()
	p.cmd = &exec.Cmd{
		Path: lookPath(ts, command[0]), Args: command, Dir: ts.MkAbs("."), Env: environ(ts),
		Stdout: stdout, Stderr: stderr, SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	ts.Check(p.cmd.Start())
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // the state says it all
	}()
	s.started = append(s.started, p)
	if name != "" {
		s.processes[name] = p
	}
	return p
}

// environ returns the script's variables, which package testscript tells only to
// what it executes.
func environ(ts *testscript.TestScript) []string {
	file := filepath.Join(scriptOf(ts).out, "environ")
	ts.Check(ts.Exec("sh", "-c", `env -0 >"$0"`, file))
	return strings.Split(strings.TrimSuffix(ts.ReadFile(file), "\x00"), "\x00")
}

// lookPath finds a command as the script's shell would.
func lookPath(ts *testscript.TestScript, name string) string {
	if strings.ContainsRune(name, filepath.Separator) {
		return ts.MkAbs(name)
	}
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	ts.Fatalf("there is no command %q", name)
	return ""
}

// printed is what the process has printed so far, and what its children have that
// inherited its output.
func (p *process) printed() string {
	stdout, _ := os.ReadFile(p.stdout) // they exist until the script has ended
	stderr, _ := os.ReadFile(p.stderr)
	return string(stdout) + string(stderr)
}

// expect waits until the process has ended, and makes its output the script's.
func (p *process) expect(ts *testscript.TestScript, status string) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		ts.Fatalf("%q has not ended in %v:\n%s", p.cmd.Args, limit, p.printed())
	}
	_, err := io.WriteString(ts.Stdout(), ts.ReadFile(p.stdout))
	ts.Check(err)
	_, err = io.WriteString(ts.Stderr(), ts.ReadFile(p.stderr))
	ts.Check(err)
	checkObject(ts, p.cmd.Args, ts.ReadFile(p.stdout))
	if got := p.status(); !slices.Contains(strings.Split(status, "|"), got) {
		ts.Fatalf("the exit status of %q is %s instead of %s", p.cmd.Args, got, status)
	}
}

// status is how the process has ended: a number, or the name of a signal.
func (p *process) status() string {
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		for name, sig := range signals {
			if sig == ws.Signal() {
				return name
			}
		}
	}
	return strconv.Itoa(p.cmd.ProcessState.ExitCode())
}

// pid finds a process by the name that the script gave it, or by its number.
func (s *script) pid(ts *testscript.TestScript, target string) int {
	if p := s.processes[target]; p != nil {
		return p.cmd.Process.Pid
	}
	pid, err := strconv.Atoi(target)
	if err != nil || pid < 2 {
		ts.Fatalf("%q is neither a process that this script has started nor a pid", target)
	}
	return pid
}

// owns reports whether a process lives and is this script's. A zombie has no
// environment any more.
func (s *script) owns(pid int) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(kv []byte) bool {
		return string(kv) == mark+"="+s.work
	})
}

// signal sends a signal to a process of this script, and to nobody else: the handle
// is opened before it is looked whose process that is.
func (s *script) signal(pid int, sig os.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	defer func() { _ = p.Release() }()
	if !s.owns(pid) {
		return fmt.Errorf("signal %v to %d: %w", sig, pid, errGone)
	}
	return p.Signal(sig)
}

// living are the processes of this script.
func (s *script) living() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.tb.Error(err)
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && s.owns(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// end ends everything that the script has started. If it has come to its end, there
// must be nothing else: no process but those of the service, no socket when they
// have stopped, no temporary file.
func (s *script) end() {
	defer func() {
		s.killAll()
		if s.load != nil { // its clients may wait for somebody who is frozen
			_, _ = s.load.stop(true) // the script did not ask for it
		}
	}()
	defer func() {
		if s.tb.Failed() {
			for _, p := range s.started {
				s.tb.Logf("%q has printed:\n%s", p.cmd.Args, p.printed())
			}
		}
	}()
	if s.tb.Failed() {
		return
	}
	s.checkStrays()
	// First who would start again when the owner has gone.
	s.stop(func() (pids []int) {
		for _, p := range s.started {
			if pid := p.cmd.Process.Pid; slices.Contains(p.cmd.Args, "-always") && s.owns(pid) {
				pids = append(pids, pid)
			}
		}
		return pids
	})
	s.stop(s.living)
	if !s.tb.Failed() {
		s.checkFiles()
	}
}

// stop tells processes to stop, until there are none. One signal stops an owner, and
// the next a drain.
func (s *script) stop(living func() []int) {
	resend := time.NewTicker(time.Second)
	defer resend.Stop()
	tell := func() {
		for _, pid := range living() {
			_ = s.signal(pid, syscall.SIGTERM) // it may have ended by itself
		}
	}
	tell()
	if !eventually(func() bool {
		select {
		case <-resend.C:
			tell()
		default:
		}
		return len(living()) == 0
	}) {
		s.tb.Errorf("told to stop, and still there: %s", commandLines(living()))
	}
}

// checkStrays looks for processes that nobody knows of: neither has the script
// started them itself, nor are they part of the service.
func (s *script) checkStrays() {
	var strays []int
	if !eventually(func() bool {
		known := s.known()
		strays = slices.DeleteFunc(s.living(), func(pid int) bool { return slices.Contains(known, pid) })
		return len(strays) == 0
	}) {
		s.tb.Errorf("nobody knows of these processes: %s", commandLines(strays))
	}
}

// known are the processes that the script has started, and those that the owner
// tells of.
func (s *script) known() []int {
	pids := s.contained()
	for _, p := range s.started {
		pids = append(pids, p.cmd.Process.Pid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := crossfade.Dial(ctx, s.socket)
	if err != nil {
		return pids
	}
	status, err := c.Status(ctx)
	if err != nil {
		return pids
	}
	pids = append(pids, status.Process.PID)
	for _, g := range status.Draining {
		pids = append(pids, g.Process.PID)
	}
	if status.Attempt != nil {
		pids = append(pids, status.Attempt.Successor.PID)
	}
	if status.Probation != nil {
		pids = append(pids, status.Probation.Predecessor.PID)
	}
	return pids
}

// contained are the processes in containers, which end with their process 1 at the
// latest. Their owner tells of them by numbers that are others here.
func (s *script) contained() []int {
	namespace := func(pid any) string {
		name, _ := os.Readlink(fmt.Sprintf("/proc/%v/ns/pid", pid)) // empty for one that has gone
		return name
	}
	own := namespace("self")
	return slices.DeleteFunc(s.living(), func(pid int) bool { return namespace(pid) == own })
}

// checkFiles looks for sockets and temporary files that are left. The lock stays by
// design, and so does the log of a process that was started.
func (s *script) checkFiles() {
	err := filepath.WalkDir(s.work, func(path string, entry os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.Type()&os.ModeSocket != 0, strings.HasSuffix(path, "~"):
			s.tb.Errorf("%s is left", path)
		case filepath.Dir(path) == s.tmp && !strings.HasSuffix(path, ".log"):
			s.tb.Errorf("a temporary file is left: %s", path)
		}
		return nil
	})
	if err != nil {
		s.tb.Error(err)
	}
}

// killAll leaves no process behind.
func (s *script) killAll() {
	if !eventually(func() bool {
		pids := s.living()
		for _, pid := range pids {
			_ = s.signal(pid, syscall.SIGKILL) // it may have ended
		}
		return len(pids) == 0
	}) {
		s.tb.Errorf("killed, and still there: %s", commandLines(s.living()))
	}
	for _, p := range s.started {
		<-p.ended
	}
}

// commandLines says what processes are.
func commandLines(pids []int) string {
	var lines []string
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // for people
		lines = append(lines, fmt.Sprintf("%d: %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	return strings.Join(lines, "; ")
}

// describe lists what a process has open.
func describe(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	sockets := socketNames(pid)
	var lines []string
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		if name, ok := sockets[target]; ok {
			target = name
		}
		if n, err := strconv.Atoi(entry.Name()); err == nil && n <= 2 {
			target = entry.Name() + " " + target
		}
		lines = append(lines, target)
	}
	slices.Sort(lines)
	return lines, nil
}

// socketNames are the sockets in the process's network namespace that have a name,
// by what its descriptors say they are.
func socketNames(pid int) map[string]string {
	names := make(map[string]string)
	for file, columns := range map[string]struct{ state, inode, name int }{
		"tcp": {state: 3, inode: 9, name: 1}, "unix": {state: 5, inode: 6, name: 7},
	} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			kind := "connection"
			switch {
			case len(fields) <= max(columns.inode, columns.state):
				continue
			case file == "tcp" && fields[columns.state] == "0A", file == "unix" && fields[3] == "00010000":
				kind = "listener"
			}
			name := ""
			if len(fields) > columns.name {
				name = " " + fields[columns.name]
			}
			names["socket:["+fields[columns.inode]+"]"] = file + " " + kind + name
		}
	}
	return names
}

//go:build linux

// Package machine boots a real systemd for tests: in namespaces and a control group of
// its own, with the programs of this machine, whose files it cannot change. It takes
// half a second, and nothing of it remains. It needs root and systemd.
package machine

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed boot.sh
var script string

const systemd = "/lib/systemd/systemd"

// Machine is a systemd that runs.
type Machine struct {
	init    *os.Process
	root    string // the directory that everything is mounted below, inside only
	group   string // its control group
	console *bytes.Buffer
	stop    chan struct{}
	ended   chan struct{} // closed when its process 1 has been waited for; console may be read then
	err     error         // of the start
}

// Missing says why no machine can be booted here. Nil: nothing is known to be in the
// way.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("booting systemd needs root")
	}
	if _, err := os.Stat(systemd); err != nil {
		return fmt.Errorf("there is no systemd: %w", err)
	}
	for _, program := range []string{"nsenter", "systemctl", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	parent, err := controlGroup()
	if err != nil {
		return err
	}
	if err := unix.Access(parent, unix.W_OK); err != nil {
		return fmt.Errorf("no control group can be made in %s: %w", parent, err)
	}
	return nil
}

// Boot boots a machine. shared are directories of this one that it has too, by their
// paths inside. Close ends it, and so does the end of this process.
func Boot(ctx context.Context, shared map[string]string) (*Machine, error) {
	m := &Machine{console: new(bytes.Buffer), stop: make(chan struct{}), ended: make(chan struct{})}
	if err := m.prepare(); err != nil {
		return nil, errors.Join(err, m.remove())
	}
	args := []string{"--cgroup", "sh", "-c", script, "boot.sh", m.root}
	for inside, outside := range shared {
		args = append(args, outside, strings.TrimPrefix(inside, "/"))
	}
	started := make(chan struct{})
	go m.run(args, started)
	<-started
	if m.err != nil {
		return nil, errors.Join(m.err, m.remove())
	}
	if err := m.await(ctx); err != nil {
		return nil, errors.Join(err, m.Close(), fmt.Errorf("its console:\n%s", m.console))
	}
	return m, nil
}

// prepare makes the directories. A machine that was killed together with its test has
// left its control group, which the next one removes.
func (m *Machine) prepare() error {
	parent, err := controlGroup()
	if err != nil {
		return err
	}
	removeStale(parent)
	if m.root, err = os.MkdirTemp("/tmp", "xfm"); err != nil {
		return err
	}
	m.group = filepath.Join(parent, prefix+strconv.Itoa(os.Getpid())+"-"+filepath.Base(m.root))
	return os.Mkdir(m.group, 0o755)
}

// run starts process 1 and waits for its end. The thread stays the same, because the
// kernel takes the end of the thread that has started it for that of its parent.
func (m *Machine) run(args []string, started chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(m.ended)
	cmd, err := m.start(args)
	if m.err = err; err == nil {
		m.init = cmd.Process
	}
	close(started)
	if err == nil {
		_ = cmd.Wait() // it is killed, in the end
	}
}

func (m *Machine) start(args []string) (*exec.Cmd, error) {
	group, err := unix.Open(m.group, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: m.group, Err: err}
	}
	defer unix.Close(group)
	cmd := exec.Command("unshare", args...)
	cmd.Stdout, cmd.Stderr = m.console, m.console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Of the control groups unshare makes a namespace: the kernel would take
		// the group of this process for its root.
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
		Setsid:      true,
		Pdeathsig:   syscall.SIGKILL,
		UseCgroupFD: true,
		CgroupFD:    group,
	}
	return cmd, cmd.Start()
}

// await waits until it has booted.
func (m *Machine) await(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond) // nothing tells
	defer tick.Stop()
	for {
		out, err := m.Command(ctx, "systemctl", "is-system-running", "--wait").Output()
		if state := strings.TrimSpace(string(out)); state == "running" {
			return nil
		} else if state == "degraded" {
			failed, _ := m.Command(ctx, "systemctl", "--failed", "--no-legend").Output() // for the reason
			return fmt.Errorf("the machine boots badly: %s", failed)
		}
		select {
		case <-m.ended:
			return errors.New("the machine has ended while it booted")
		case <-ctx.Done():
			return fmt.Errorf("the machine does not boot: %w; systemctl: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// Enter is the command line that others are appended to that shall run inside.
func (m *Machine) Enter() []string {
	return []string{
		"nsenter", "--target", strconv.Itoa(m.init.Pid),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
	}
}

// Command is a command that runs inside. It belongs to no unit.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	line := slices.Concat(m.Enter(), []string{name}, args)
	return exec.CommandContext(ctx, line[0], line[1:]...)
}

// WriteFile makes a file inside, and the directories on the way.
func (m *Machine) WriteFile(path string, text []byte, mode fs.FileMode) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", m.init.Pid))
	if err != nil {
		return err
	}
	defer root.Close()
	path = strings.TrimPrefix(path, "/")
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	syscall.ForkLock.RLock() // else whatever is started meanwhile has it open, and it cannot be executed
	defer syscall.ForkLock.RUnlock()
	f, err := root.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// Dial connects to something inside. The address has to be a number: a name would be
// looked up by another thread, which has stayed outside.
func (m *Machine) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	there, err := openNetwork(strconv.Itoa(m.init.Pid))
	if err != nil {
		return nil, err
	}
	defer unix.Close(there)
	runtime.LockOSThread()
	here, err := openNetwork("thread-self") // "self" is the first thread, which may be inside
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer unix.Close(here)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, os.NewSyscallError("setns", err)
	}
	defer func() {
		// A thread that cannot return stays locked, and ends with its goroutine.
		if failed := unix.Setns(here, unix.CLONE_NEWNET); failed != nil {
			err = errors.Join(err, os.NewSyscallError("setns", failed))
			return
		}
		runtime.UnlockOSThread()
	}()
	return new(net.Dialer).DialContext(ctx, network, address)
}

// openNetwork opens the network namespace of a process, or a thread.
func openNetwork(process string) (int, error) {
	path := "/proc/" + process + "/ns/net"
	num, err := unix.Open(path, unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return num, nil
}

// Journal is what its processes have logged, and systemd of them.
func (m *Machine) Journal(ctx context.Context, unit string) (string, error) {
	args := []string{"--no-pager", "--quiet", "--output", "short-monotonic"}
	if unit != "" {
		args = append(args, "--unit", unit)
	}
	out, err := m.Command(ctx, "journalctl", args...).Output()
	return string(out), err
}

// Close ends the machine with everything that runs in it, and removes what it was
// made of.
func (m *Machine) Close() error {
	err := m.init.Kill() // and the kernel ends the rest
	<-m.ended
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return errors.Join(err, m.remove())
}

func (m *Machine) remove() error {
	return errors.Join(os.RemoveAll(m.root), removeGroup(m.group))
}

// prefix is what the names of the control groups begin with, before the pid of the
// test.
const prefix = "crossfade-"

// controlGroup is the directory of the group that this process is in.
func controlGroup() (string, error) {
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	var own string
	for line := range strings.Lines(string(groups)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			own = strings.TrimSpace(path)
		}
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return filepath.Join(fields[4], own), nil
		}
	}
	return "", errors.New("no file system of type cgroup2 is mounted")
}

// removeStale removes the groups of tests that are gone.
func removeStale(parent string) {
	groups, _ := filepath.Glob(filepath.Join(parent, prefix+"*"))
	for _, group := range groups {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(group), prefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, fs.ErrNotExist) {
			_ = removeGroup(group) // another test may do the same
		}
	}
}

// removeGroup removes a group and those in it, which systemd has made.
func removeGroup(group string) error {
	var groups []string
	err := filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	for _, path := range slices.Backward(groups) {
		if failed := os.Remove(path); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

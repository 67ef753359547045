//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file is a container engine, as far as the scenarios need one: it makes the
// namespaces and the files that Kubernetes or Docker would, and nothing else. The test
// binary is all of it, under three names: container and enter are in the PATH of the
// scripts, and containerInit is what process 1 is until it becomes the program.

// programs are the names under which the test binary is something else.
var programs = map[string]func() error{
	"container":     containerMain,
	"enter":         enterMain,
	"containerinit": containerInit,
}

// runProgram runs the test binary as what its name says. It returns false if that is
// the tests.
func runProgram() bool {
	program := programs[filepath.Base(os.Args[0])]
	if program == nil {
		return false
	}
	// What process 1 gives up and execs is its thread's.
	runtime.LockOSThread()
	if err := program(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(125) // as docker run, when it is not the program that has failed
	}
	return true
}

// container is one, as its engine has made it.
type container struct {
	Image    string // the directory that is its /app
	Volume   string // the directory that it shares with others
	At       string // where that is in there
	ReadOnly bool   // there
	UID, GID int
	Groups   []int
	Users    int // the first uid and gid here of its own user namespace, 0 for none
	Proc     bool
	Umask    int
	Command  []string
	Env      []string
	PID      int // of its process 1, here
}

// logger writes as the service does.
var logger = slog.New(slog.NewTextHandler(os.Stderr, nil))

// record is the file in which other programs of the script find it.
func record(name string) string { return filepath.Join(os.Getenv(mark), ".containers", name) }

// containerMain is
//
//	container [-at DIR] [-ro] [-user UID[:GID[:GROUP...]]] [-users BASE] [-proc=false]
//		[-umask MASK] [-env NAME=VALUE] [-always] NAME IMAGE COMMAND...
//
// It runs COMMAND as process 1 of a container whose root is read-only and has the
// deploy tool in /bin, the directory IMAGE as /app, and the script's directory run at
// -at, where the control socket is, too. Signals are passed on, the exit status is
// passed back. With -always it starts a new container whenever the old one has ended,
// until it is told to stop.
func containerMain() error {
	c := &container{Env: []string{"PATH=/bin", mark + "=" + os.Getenv(mark)}}
	flags := flag.NewFlagSet("container", flag.ExitOnError)
	flags.StringVar(&c.At, "at", "/run/app", "")
	flags.BoolVar(&c.ReadOnly, "ro", false, "")
	flags.IntVar(&c.Users, "users", 0, "")
	flags.BoolVar(&c.Proc, "proc", true, "")
	flags.Func("user", "", c.setUser)
	flags.Func("umask", "", func(s string) error {
		mask, err := strconv.ParseInt(s, 8, 0)
		c.Umask = int(mask)
		return err
	})
	flags.Func("env", "", func(s string) error {
		c.Env = append(c.Env, s)
		return nil
	})
	always := flags.Bool("always", false, "")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	if flags.NArg() < 3 {
		return errors.New("not enough arguments")
	}
	name := flags.Arg(0)
	image, err := filepath.Abs(flags.Arg(1))
	if err != nil {
		return err
	}
	c.Image, c.Command = image, flags.Args()[2:]
	c.Volume = filepath.Join(os.Getenv(mark), "run")
	c.Env = append(c.Env, "CROSSFADE_SOCKET="+filepath.Join(c.At, "app.sock"))

	signals := make(chan os.Signal, 16) // none is lost while one is passed on
	signal.Notify(signals, passedOn...)
	for count := 1; ; count++ {
		state, told, err := c.run(name, signals)
		if err != nil {
			return err
		}
		if !*always || told {
			logger.Info("ended", "container", name, "status", status(state))
			os.Exit(status(state))
		}
		logger.Info("restarts", "container", name, "count", count, "status", status(state))
	}
}

func (c *container) setUser(s string) error {
	var ids []int
	for part := range strings.SplitSeq(s, ":") {
		id, err := strconv.Atoi(part)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	c.UID, c.GID, c.Groups = ids[0], ids[0], nil
	if len(ids) > 1 {
		c.GID, c.Groups = ids[1], ids[2:]
	}
	return nil
}

// run runs the container to its end, and reports whether that was asked for.
func (c *container) run(name string, signals <-chan os.Signal) (state *os.ProcessState, told bool, err error) {
	spec, err := json.Marshal(c)
	if err != nil {
		return nil, false, err
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"containerinit", string(spec)},
		Env:   []string{mark + "=" + os.Getenv(mark)},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: c.namespaces(),
	}
	if err := cmd.Start(); err != nil {
		return nil, false, err
	}
	c.PID = cmd.Process.Pid
	if err := c.register(name); err != nil {
		return nil, false, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	logger.Info("created", "container", name, "pid", c.PID)
	told = attend(cmd, signals)
	return cmd.ProcessState, told, nil
}

// passedOn are the signals that go to the program in a container.
var passedOn = []os.Signal{
	syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// attend passes signals on to a process until it has ended, and reports whether it was
// told to end.
func attend(cmd *exec.Cmd, signals <-chan os.Signal) (told bool) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // the state says it all
	}()
	for {
		select {
		case sig := <-signals:
			told = told || sig == syscall.SIGTERM || sig == syscall.SIGINT
			_ = cmd.Process.Signal(sig) // it may have ended
		case <-ended:
			return told
		}
	}
}

// status is how a process has ended, as a shell has it.
func status(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

func (c *container) namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	if c.Users != 0 {
		const size = 1 << 16
		mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: c.Users, Size: size}}
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = mapping, mapping, true
		attr.Credential = &syscall.Credential{}
	}
	return attr
}

func (c *container) register(name string) error {
	path := record(name)
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// containerInit is process 1 of a container, which becomes its program.
func containerInit() error {
	c := new(container)
	if err := json.Unmarshal([]byte(os.Args[1]), c); err != nil {
		return err
	}
	if err := c.makeRoot(); err != nil {
		return fmt.Errorf("the files: %w", err)
	}
	syscall.Umask(c.Umask)
	if err := errors.Join(syscall.Setgroups(c.Groups), syscall.Setgid(c.GID), syscall.Setuid(c.UID)); err != nil {
		return fmt.Errorf("the user: %w", err)
	}
	// One that is told to end before it has asked for the signal would end half-way
	// through taking the service over, as if it had crashed. The signal waits until then.
	held := new(unix.Sigset_t)
	held.Val[0] = 1 << (syscall.SIGTERM - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, held, nil); err != nil {
		return os.NewSyscallError("pthread_sigmask", err)
	}
	return fmt.Errorf("%s: %w", c.Command[0], syscall.Exec(c.Command[0], c.Command, c.Env))
}

// makeRoot makes a root of what an image FROM scratch has, the volume, and what every
// runtime adds, and leaves everything else behind.
func (c *container) makeRoot() error {
	const mountPoint = "/tmp" // which is only a place: it is hidden by the new root
	tools := filepath.Join(filepath.Dir(os.Getenv(mark)), "bin")
	// The sources are looked up before their paths are hidden.
	binds := []bind{{tools, "/bin", true}, {c.Image, "/app", true}, {c.Volume, c.At, c.ReadOnly}, {"/dev/null", "/dev/null", false}}
	for i := range binds {
		fd, err := unix.Open(binds[i].from, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: binds[i].from, Err: err}
		}
		binds[i].from = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("none", mountPoint, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, b := range binds {
		if err := b.mount(mountPoint); err != nil {
			return err
		}
	}
	if c.Proc {
		if err := os.Mkdir(mountPoint+"/proc", 0o555); err != nil {
			return err
		}
		if err := mount("none", mountPoint+"/proc", "proc", 0, ""); err != nil {
			return err
		}
	}
	// pivot_root(2): the old root ends up on top of the new one, and is unmounted.
	if err := os.Chdir(mountPoint); err != nil {
		return err
	}
	if err := syscall.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount2", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return mount("", "/", "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
}

// bind is a part of the file system that is seen at another place, too.
type bind struct {
	from, to string
	readOnly bool
}

func (b bind) mount(root string) error {
	to := root + b.to
	info, err := os.Stat(b.from)
	if err != nil {
		return err
	}
	dir := to
	if !info.IsDir() {
		dir = filepath.Dir(to)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if !info.IsDir() {
		if err := os.WriteFile(to, nil, 0o644); err != nil {
			return err
		}
	}
	if err := mount(b.from, to, "", syscall.MS_BIND, ""); err != nil || !b.readOnly {
		return err
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(to, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: to, Err: err}
	}
	// In a user namespace the mount's own restrictions cannot be lifted,
	// mount_namespaces(7). The numbers of nosuid, nodev, noexec and noatime are alike.
	const locked = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOATIME
	return mount("", to, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY|uintptr(st.Flags)&locked, "")
}

func mount(from, to, kind string, flags uintptr, data string) error {
	if err := syscall.Mount(from, to, kind, flags, data); err != nil {
		return &os.PathError{Op: "mount " + kind, Path: to, Err: err}
	}
	return nil
}

// enterMain is
//
//	enter NAME COMMAND...
//
// It runs a command in a container, as its user, as kubectl exec does.
func enterMain() error {
	if len(os.Args) < 3 {
		return errors.New("not enough arguments")
	}
	text, err := os.ReadFile(record(os.Args[1]))
	if err != nil {
		return err
	}
	c := new(container)
	if err := json.Unmarshal(text, c); err != nil {
		return err
	}
	// A user namespace cannot be entered by a process that has several threads, setns(2).
	if c.Users != 0 {
		return errors.New("nobody can enter a container with a user namespace")
	}
	signals := make(chan os.Signal, 16) // none is lost while one is passed on
	signal.Notify(signals, passedOn...)
	if err := c.enter(); err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: os.Args[2], Args: os.Args[2:], Env: c.Env,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID), Groups: c.groups()}},
	}
	if !strings.Contains(cmd.Path, "/") {
		cmd.Path = "/bin/" + cmd.Path
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	attend(cmd, signals)
	os.Exit(status(cmd.ProcessState))
	return nil
}

// enter has this thread, and what it starts, be in the container.
func (c *container) enter() error {
	// All are found before the first one changes what there is to find.
	kinds := []struct {
		name string
		kind int
		fd   int
	}{{"pid", unix.CLONE_NEWPID, 0}, {"mnt", unix.CLONE_NEWNS, 0}}
	for i, k := range kinds {
		path := fmt.Sprintf("/proc/%d/ns/%s", c.PID, k.name)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		kinds[i].fd = fd
	}
	// The root and the working directory are shared by all threads until then.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	for _, k := range kinds {
		if err := unix.Setns(k.fd, k.kind); err != nil {
			return os.NewSyscallError("setns "+k.name, err)
		}
	}
	return nil
}

func (c *container) groups() []uint32 {
	groups := make([]uint32, len(c.Groups))
	for i, gid := range c.Groups {
		groups[i] = uint32(gid)
	}
	return groups
}

// tryContainer says what is missing where none can be made.
func tryContainer() error {
	dir := filepath.Join(root, "trial")
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, users := range []string{"0", "100000"} {
		cmd := exec.Command(filepath.Join(root, "bin", "container"), "-users", users, "trial", dir, "/bin/crossfade", "version")
		cmd.Env = append(os.Environ(), mark+"="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

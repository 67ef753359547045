package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/reexec"
)

func init() {
	// It has no stdin that would end it with the test, and ends with process 1.
	processes["deployed"] = serveConduct
	processes["supervise as process 1"] = func() {
		check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		check(unix.Mount("proc", "/proc", "proc", 0, ""))
		check(os.Setenv(reexec.Env, "supervise"))
		check(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
}

// In a container supervise is process 1: what it does not reap nobody does, and what it
// does not handle the kernel does not deliver.
func TestSuperviseAsProcess1(t *testing.T) {
	t.Parallel()
	s := newSupervision(t)
	s.cmd.Env = append(s.cmd.Env, reexec.Env+"=supervise as process 1")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	s.start() // skips the test where this is not permitted
	_, address := s.owned(1)
	orphan, err := strconv.Atoi(tell(t, address, "forsake")) // in there
	if err != nil {
		t.Fatal(err)
	}
	if inside := childrenOf(t, s.pid); len(inside) != 2 {
		t.Errorf("process 1 has the children %v, and the orphan is %d", inside, orphan)
	}
	s.behave("-version=v2")
	s.signal(syscall.SIGHUP)
	s.owned(2)
	if answer := tell(t, address, "upgrade"); answer != "<nil>" {
		t.Fatal(answer)
	}
	third, _ := s.owned(3)
	s.signal(syscall.SIGUSR1)
	s.await(fmt.Sprintf("service %d: got user", third))
	s.await("crossfade: generation 1 ", "exit status 0")
	s.await("crossfade: generation 2 ", "exit status 0")
	if left := childrenOf(t, s.pid); len(left) != 2 {
		t.Errorf("process 1 has the children %v, not the owner and the orphan alone", left)
	}
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

// As with docker run -it: what the terminal tells reaches the service once, through the
// supervisor, and the service is not stopped if it reads from there.
func TestSuperviseAtATerminal(t *testing.T) {
	terminal := newScreen(t)
	terminal.resize(40)
	s := newSupervision(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.program("/usr/bin/env", reexec.Env+"=deployed", exe, s.conduct, "127.0.0.1:0")
	s.behave("-version=v1", "-read")
	s.stdin = terminal.line
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	s.start()
	s.await("service ", `has read "": `, "input/output error")
	first, _ := s.owned(1)
	terminal.resize(41)
	s.await(fmt.Sprintf("service %d: got window changed", first))
	terminal.press("\x03") // Ctrl-C
	s.await("SIGINT goes to ", strconv.Itoa(first))
	s.wantExit(0)
}

// What a deployer starts in the container is supervised like all others.
func TestSuperviseAdoptsWhatRunStarts(t *testing.T) {
	t.Parallel()
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		t.Skip("the deployer cannot enter the container: ", err)
	}
	s := newSupervision(t)
	s.cmd.Env = append(s.cmd.Env, reexec.Env+"=supervise as process 1")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	s.start() // skips the test where this is not permitted
	first, _ := s.owned(1)
	s.behave("-version=v2")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(s.dir, "log")
	deploy := reexec.Command("crossfade", "--target", strconv.Itoa(s.pid), "--pid", "--mount", "--", exe,
		"run", "--socket", s.socket, "--log", log, "--", "env", reexec.Env+"=deployed", exe, s.conduct, "127.0.0.1:0")
	deploy.Path, deploy.Args[0] = nsenter, nsenter
	if err := deploy.Run(); err != nil {
		t.Fatal(err)
	}
	s.await("crossfade: generation 2 (version v2", "owns the service")
	s.await(fmt.Sprintf("pid %d) has ended: exit status 0", first))
	s.signal(syscall.SIGTERM)
	s.await("crossfade: generation 2 ", "has ended: exit status 0")
	s.wantExit(0)
	s.never("does not descend")
}

// childrenOf lists the children of a process, zombies included.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, child)
		}
	}
	return found
}

package main_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	processes["supervise as process 1"] = func() {
		check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		check(unix.Mount("proc", "/proc", "proc", 0, ""))
		check(os.Setenv(processEnv, "supervise"))
		check(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
}

// In a container supervise is process 1: what it does not reap nobody does, and what it
// does not handle the kernel does not deliver.
func TestSuperviseAsProcess1(t *testing.T) {
	s := newSupervision(t)
	s.cmd.Env = append(s.cmd.Env, processEnv+"=supervise as process 1")
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

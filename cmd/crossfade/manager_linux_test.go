package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/scm"
)

// This file is what supervise tells the service manager that has started it, and what of
// that one's it passes on.

// managed is a supervision that a manager starts.
func managed(t *testing.T, cfg *fakemanager.Config, args ...string) (*supervision, *fakemanager.Manager) {
	t.Helper()
	m := fakemanager.New(t, cfg)
	s := newSupervision(t, args...)
	s.begin = func(cmd *exec.Cmd) error {
		m.Start(cmd)
		return nil
	}
	t.Cleanup(func() {
		for _, message := range m.Messages() {
			if !message.Heard || message.PID != s.pid {
				t.Errorf("supervise is %d, and this was said: %v", s.pid, message)
			}
			if t.Failed() {
				t.Log(message)
			}
		}
	})
	return s, m
}

// awaitStatus waits for a status that has all these texts. Until then nobody may say what
// begins with one of the others.
func awaitStatus(t *testing.T, m *fakemanager.Manager, texts []string, others ...string) {
	t.Helper()
	for {
		message := m.Next()
		for _, other := range others {
			if message.Has(other) {
				t.Errorf("too early: %v", message)
			}
		}
		if message.Has("STATUS=") && containsAll(message.Value("STATUS"), texts) {
			return
		}
	}
}

func wantStatus(t *testing.T, message fakemanager.Message, texts ...string) {
	t.Helper()
	if got := message.Value("STATUS"); !containsAll(got, texts) {
		t.Errorf("the status is %q, want one with %q", got, texts)
	}
}

func TestSuperviseTellsItsManager(t *testing.T) {
	t.Parallel()
	s, m := managed(t, nil)
	fifo := s.fifo()
	s.behave("-version=v1", "-hold="+fifo)
	s.start()
	s.await("service ", "of the manager []") // which speaks for itself if it knows one
	awaitStatus(t, m, []string{"generation 1 (", "is not ready yet"}, "READY=1")
	release(t, fifo)
	wantStatus(t, m.Await("READY=1"), "generation 1 (version v1", "owns the service")
	_, address := s.owned(1)

	// A signal that starts a successor.
	s.behave("-version=v2")
	s.signal(syscall.SIGHUP)
	m.Await("RELOADING=1", "MONOTONIC_USEC=")
	m.Await("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt((time.Minute+13*time.Second).Microseconds(), 10))
	wantStatus(t, m.Await("READY=1"), "generation 2 (version v2", "owns the service")
	s.await("service ", "of the manager []")
	s.owned(2)

	// One that comes to nothing.
	s.behave("-exit=7")
	s.signal(syscall.SIGHUP)
	m.Await("RELOADING=1")
	wantStatus(t, m.Await("READY=1"), "generation 2 (version v2", "owns the service", "has failed to take over", "exit status 7")

	// What others start is no reload, and is told all the same.
	if answer := tell(t, address, "upgrade"); answer == "<nil>" {
		t.Error("the upgrade has succeeded")
	}
	s.behave("-version=v4")
	if answer := tell(t, address, "upgrade"); answer != "<nil>" {
		t.Error(answer)
	}
	awaitStatus(t, m, []string{"generation 5 (version v4", "owns the service"}, "RELOADING=1", "READY=1")
	s.owned(5)

	s.signal(syscall.SIGTERM)
	wantStatus(t, m.Await("STOPPING=1"), "stopping", "not ended")
	s.wantExit(0)
	wantStatus(t, m.Await("STOPPING=1"), "nothing is left of the service", "generation 5")
	m.Await("BARRIER=1")
}

// A signal that has to wait is a reload from then on, and so is one that comes to nothing.
func TestSuperviseAnswersEverySignalOfItsManager(t *testing.T) {
	t.Parallel()
	s, m := managed(t, nil, "--probation", "1h")
	s.start()
	s.owned(1)
	m.Await("READY=1")
	s.behave("-version=v2")
	s.signal(syscall.SIGHUP)
	m.Await("RELOADING=1")
	m.Await("READY=1")
	second, _ := s.owned(2)
	s.signal(syscall.SIGHUP)
	s.await("is on probation")
	m.Await("RELOADING=1")
	s.behave("-version=v3")
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, m.Await("READY=1"), "generation 3 (version v3")
	s.owned(3)

	s.signal(syscall.SIGTERM)
	m.Await("STOPPING=1")
	s.wantExit(0)
}

// What ends by itself stops, too, and the manager learns how.
func TestSuperviseTellsItsManagerOfACrash(t *testing.T) {
	t.Parallel()
	s, m := managed(t, nil)
	s.start()
	pid, _ := s.owned(1)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wantExit(128 + 9)
	wantStatus(t, m.Await("STOPPING=1"), "nothing is left of the service", "signal: killed")
	m.Await("BARRIER=1")
}

// A program that finishes what it has is not to be killed for it.
func TestSuperviseAsksForTimeToStop(t *testing.T) {
	t.Parallel()
	s, m := managed(t, nil)
	s.start()
	_, address := s.owned(1)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if who := tell(t, address, "who"); who == "" { // that one is accepted, and so is the one before
		t.Fatal("no answer")
	}
	s.signal(syscall.SIGTERM)
	m.Await("STOPPING=1")
	m.Await("EXTEND_TIMEOUT_USEC=30000000")
	conn.Close()
	s.wantExit(0)
}

func TestSuperviseKeepsTheWatchdogQuiet(t *testing.T) {
	t.Parallel()
	s, m := managed(t, &fakemanager.Config{Watchdog: time.Second})
	s.start()
	s.await("service ", "of the manager []")
	pid, _ := s.owned(1)
	m.Await("READY=1")
	for range 3 {
		m.Await("WATCHDOG=1")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.await("watchdog is told nothing", "no longer than 500ms")
	s.await("watchdog is told nothing")
	said := pings(m)
	s.await("watchdog is told nothing")
	s.await("watchdog is told nothing")
	if now := pings(m); now != said {
		t.Errorf("nobody answers, and the manager has heard %d times more that all is well", now-said)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for range said - 3 + 1 { // it is told again
		m.Await("WATCHDOG=1")
	}
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

func pings(m *fakemanager.Manager) (n int) {
	for _, message := range m.Messages() {
		if message.Has("WATCHDOG=1") {
			n++
		}
	}
	return n
}

// The first generation gets the sockets that the manager has opened, as from itself. Later
// ones have them from their predecessors, or do not want them.
func TestSupervisePassesActivatedSocketsOn(t *testing.T) {
	t.Parallel()
	var sockets []fakemanager.Socket
	for _, name := range []string{"web", "ad%min"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		fd, err := scm.DupFD(ln.(syscall.Conn))
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		sockets = append(sockets, fakemanager.Socket{Name: name, FD: fd})
	}
	s, m := managed(t, &fakemanager.Config{Sockets: sockets})
	s.start()
	line := s.await("service ", "started as ", "inherited [0 1 2 3 4],", `"LISTEN_FDNAMES=web:ad%min" "LISTEN_FDS=2" "LISTEN_PID=self"`)
	pid, _ := s.owned(1)
	if want := fmt.Sprintf("service %d: ", pid); !strings.HasPrefix(line, want) {
		t.Errorf("the sockets are with %q, and the owner is %d", line, pid)
	}
	m.Await("READY=1")
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range open {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", s.pid, e.Name()))
		if err == nil && (target == link(t, sockets[0].FD) || target == link(t, sockets[1].FD)) {
			t.Error("supervise keeps a socket that is the service's")
		}
	}
	s.signal(syscall.SIGHUP)
	s.await("service ", "inherited [0 1 2],", "of the manager []")
	s.owned(2)
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

// link is what /proc/PID/fd has for a socket.
func link(t *testing.T, fd *scm.FD) string {
	t.Helper()
	var stat unix.Stat_t
	var statErr error
	if err := errors.Join(fd.Control(func(num uintptr) { statErr = unix.Fstat(int(num), &stat) }), statErr); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("socket:[%d]", stat.Ino)
}

func TestSuperviseCannotTellItsManager(t *testing.T) {
	t.Parallel()
	t.Run("an address that is none", func(t *testing.T) {
		t.Parallel()
		s := newSupervision(t)
		s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET=vsock:2:1234")
		s.start()
		s.await("crossfade: ", "NOTIFY_SOCKET", "AF_VSOCK")
		s.wantExit(10)
	})
	t.Run("nobody is there", func(t *testing.T) {
		t.Parallel()
		s := newSupervision(t)
		s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET="+s.socket+".notify")
		s.start()
		s.owned(1)
		s.await("the service manager cannot be told how the service does")
		s.signal(syscall.SIGTERM)
		s.await("crossfade: nothing is left of the service")
		s.wantExit(0)
	})
	t.Run("a program that is missing", func(t *testing.T) {
		t.Parallel()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		fd, err := scm.DupFD(ln.(syscall.Conn))
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		s, m := managed(t, &fakemanager.Config{Sockets: []fakemanager.Socket{{Name: "web", FD: fd}}})
		s.program(s.conduct + ".missing")
		s.start()
		s.await("crossfade: ", "missing", "no such file or directory")
		s.wantExit(10)
		wantStatus(t, m.Await("STOPPING=1"), "no such file")
	})
}

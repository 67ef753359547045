//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/leak"
)

// serverEnv makes the test binary the example. Its name must not begin with
// CROSSFADE_, which New removes.
const serverEnv = "SIGNALS_TEST_SERVER"

// limit bounds what must not hang.
const limit = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		main()
	}
	leak.Main(m)
}

// server is a running example.
type server struct {
	*exec.Cmd
	t     *testing.T
	lines *bufio.Reader
}

func start(t *testing.T, socket string, args ...string) *server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"-socket", socket}, args...)...)
	cmd.Env = append(os.Environ(), serverEnv+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() }) // so that no line is waited for without end
	t.Cleanup(func() {
		timer.Stop()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	})
	return &server{cmd, t, bufio.NewReader(out)}
}

// says waits for a line that begins like this and returns the rest.
func (s *server) says(beginning string) string {
	s.t.Helper()
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			s.t.Fatalf("process %d ends without %q: %v", s.Process.Pid, beginning, err)
		}
		if rest, ok := strings.CutPrefix(line, beginning); ok {
			return strings.TrimSpace(rest)
		}
	}
}

func (s *server) terminate() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
}

func (s *server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) ends(status int) {
	s.t.Helper()
	_ = s.Wait() // the state says it all
	if got := s.ProcessState.ExitCode(); got != status {
		s.t.Errorf("process %d ended with %v, want status %d", s.Process.Pid, s.ProcessState, status)
	}
}

// request is one that is under way.
type request struct {
	t      *testing.T
	body   *io.PipeWriter
	answer *bufio.Reader
}

// ask begins a request, which the server must answer.
func (s *server) ask(address string) *request {
	s.t.Helper()
	r := s.request(address)
	if err := r.answered(s); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// reach is ask for a server that owns since just now. Its predecessor accepts
// until it knows, and what that one answers does not count.
func (s *server) reach(address string) *request {
	s.t.Helper()
	for {
		r := s.request(address)
		line, err := r.answer.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		if line == fmt.Sprintln(s.Process.Pid) {
			return r
		}
		r.body.Close()
	}
}

func (s *server) request(address string) *request {
	s.t.Helper()
	read, write := io.Pipe()
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: limit}).DialContext}
	client := &http.Client{Transport: transport, Timeout: limit}
	response, err := client.Post("http://"+address, "text/plain", read)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		write.Close()
		response.Body.Close()
		transport.CloseIdleConnections()
	})
	return &request{s.t, write, bufio.NewReader(response.Body)}
}

func (r *request) answered(s *server) error {
	line, err := r.answer.ReadString('\n')
	if want := fmt.Sprintln(s.Process.Pid); err == nil && line != want {
		err = fmt.Errorf("answered by %q, want %q", line, want)
	}
	return err
}

// finish sends the rest of the request, which must be answered too.
func (r *request) finish(s *server) {
	r.t.Helper()
	if err := r.body.Close(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.answered(s); err != nil {
		r.t.Error(err)
	}
}

// begin starts an owner.
func begin(t *testing.T, args ...string) (s *server, socket, address string) {
	t.Helper()
	directory, err := os.MkdirTemp("", "s") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	socket = filepath.Join(directory, "control")
	s = start(t, socket, args...)
	return s, socket, s.says("owner ")
}

func TestSignalToTheOwner(t *testing.T) {
	owner, socket, address := begin(t)
	open := owner.ask(address)
	owner.terminate()
	if why := owner.says("draining: "); why != "stopped" {
		t.Errorf("it drains because %q", why)
	}
	open.finish(owner)
	owner.ends(0)
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the control socket is left behind: %v", err)
	}
}

func TestTwoSignalsToTheOwner(t *testing.T) {
	owner, _, address := begin(t)
	open := owner.ask(address)
	owner.terminate()
	owner.says("draining: ")
	owner.terminate()
	owner.ends(0)
	if err := open.answered(owner); err == nil {
		t.Error("the request was answered to its end")
	}
}

// The second signal comes while Stop waits for a predecessor that is frozen.
func TestTwoSignalsToTheOwnerOnProbation(t *testing.T) {
	t.Setenv("CROSSFADE_PROBATION", "1h")
	old, socket, address := begin(t)
	next := start(t, socket, "-listen", address)
	next.says("owner ")
	open := next.reach(address)
	old.signal(syscall.SIGSTOP)
	next.terminate()
	next.says("first signal")
	next.terminate()
	next.says("second signal")
	old.signal(syscall.SIGCONT)
	next.says("draining: ")
	next.ends(0)
	if err := open.answered(next); err == nil {
		t.Error("the request was answered to its end")
	}
	old.ask(address).finish(old)
}

func TestSignalToTheOwnerOnProbation(t *testing.T) {
	t.Setenv("CROSSFADE_PROBATION", "1h")
	old, socket, address := begin(t)
	next := start(t, socket, "-listen", address)
	next.says("owner ")
	open := next.reach(address)
	next.terminate()
	next.says("draining: ")
	old.ask(address).finish(old) // while the other one drains
	open.finish(next)
	next.ends(0)
}

func TestSignalToTheProcessThatStandsBy(t *testing.T) {
	t.Setenv("CROSSFADE_PROBATION", "1h")
	old, socket, address := begin(t)
	open := old.ask(address)
	next := start(t, socket, "-listen", address)
	next.says("owner ")
	old.terminate()
	old.says("first signal")
	if why := old.says("draining: "); !strings.HasPrefix(why, "retired") {
		t.Errorf("it drains because %q", why)
	}
	old.ends(0) // at once: nobody finishes the request
	if err := open.answered(old); err == nil {
		t.Error("the request was answered to its end")
	}
	next.says("the predecessor has gone")
	next.ask(address).finish(next)
}

func TestTheDrainTimeoutOfTheOwner(t *testing.T) {
	owner, _, address := begin(t, "-drain=1ms")
	open := owner.ask(address)
	owner.terminate()
	owner.ends(crossfade.ExitDrainTimeout)
	if err := open.answered(owner); err == nil {
		t.Error("the request was answered to its end")
	}
}

func TestOutcome(t *testing.T) {
	live := t.Context()
	ended, end := context.WithCancel(live)
	end()
	late, cancel := context.WithDeadline(live, time.Unix(0, 0))
	defer cancel()
	for _, tt := range []struct {
		name             string
		shutdown         error
		impatient, drain context.Context
		want             int
		wantErr          bool
	}{
		{"all was answered", nil, live, live, 0, false},
		{"all was answered just before the limit", nil, live, late, 0, false},
		{"all was answered just before the signal", nil, ended, ended, 0, false},
		{"the signal", context.Canceled, ended, ended, 0, false},
		{"the limit", context.DeadlineExceeded, live, late, crossfade.ExitDrainTimeout, true},
		{"the successor", context.Canceled, live, ended, 1, true},
		{"the server", io.ErrUnexpectedEOF, live, live, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := outcome(tt.impatient, tt.drain, tt.shutdown)
			if got != tt.want || (err != nil) != tt.wantErr {
				t.Errorf("status %d, error %v; want %d, an error: %v", got, err, tt.want, tt.wantErr)
			}
		})
	}
}

func TestSignalToACandidate(t *testing.T) {
	owner, socket, address := begin(t)
	candidate := start(t, socket, "-listen", address, "-init", "1h")
	candidate.says("candidate ")
	candidate.terminate()
	candidate.ends(1)
	owner.ask(address).finish(owner)
	next := start(t, socket, "-listen", address) // nothing of the attempt is in the way
	next.says("owner ")
}

func TestSignalToAProcessThatDrains(t *testing.T) {
	old, socket, address := begin(t)
	open := old.ask(address)
	next := start(t, socket, "-listen", address)
	next.says("owner ")
	if why := old.says("draining: "); !strings.HasPrefix(why, "retired") {
		t.Errorf("it drains because %q", why)
	}
	served := next.ask(address)
	old.terminate()
	old.ends(0) // at once: nobody finishes the request
	if err := open.answered(old); err == nil {
		t.Error("the request was answered to its end")
	}
	next.says("the predecessor has gone")
	served.finish(next)
	next.ask(address).finish(next)
	third := start(t, socket, "-listen", address) // the control path is where it was
	third.says("owner ")
	next.says("draining: ") // until then it may accept
	third.ask(address).finish(third)
}

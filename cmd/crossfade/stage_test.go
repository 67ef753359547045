//go:build unix

package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// This file is the stage of the tests of run: a socket, the tool as a process, and the
// services that it starts, which outlive it and end with the test.

// generous bounds every wait of a test. Nothing takes that long unless it is broken.
const generous = time.Minute

// stage is one service's place.
type stage struct {
	testing.TB
	dir    string
	socket string
	exe    string // the test binary
	gate   string // a FIFO at which a service holds
}

func newStage(t testing.TB) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "run") // short: it is a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{TB: t, dir: dir, socket: filepath.Join(dir, "s"), exe: exe, gate: filepath.Join(dir, "gate")}
	if err := os.Mkdir(filepath.Join(dir, "pids"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(s.gate, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.clear)
	return s
}

// clear ends the services that still live. Their parents have gone, so their numbers
// stay theirs until somebody else reaps them.
func (s *stage) clear() {
	for _, pid := range s.pids() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range s.pids() {
		s.awaitGone(pid)
	}
}

// pids are the services that have begun and have not left properly.
func (s *stage) pids() []int {
	s.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "pids"))
	if err != nil {
		s.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			s.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// context ends when the test has taken too long.
func (s *stage) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	s.Cleanup(cancel)
	return ctx
}

// until returns when done does, which is asked again and again.
func (s *stage) until(what string, done func() bool) {
	s.Helper()
	limit := time.After(generous)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
			for _, log := range logs {
				s.Logf("%s:\n%s", log, s.log(log))
			}
			s.Fatalf("not within %v: %s", generous, what)
		}
	}
}

// awaitGone returns when the process has ended, whoever is to reap it.
func (s *stage) awaitGone(pid int) {
	s.Helper()
	s.until(fmt.Sprintf("the end of pid %d", pid), func() bool {
		return processState(pid) == 'Z' || syscall.Kill(pid, 0) != nil
	})
}

// processState is the letter that proc(5) has for it, 0 if there is no such process or
// no such file system.
func processState(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	if err != nil || after == "" {
		return 0
	}
	return after[0]
}

// freeze stops a process, and returns when all of it stands still: the kernel tells one
// of its threads first, and that one the others.
func (s *stage) freeze(pid int) {
	s.Helper()
	if runtime.GOOS != "linux" {
		s.Skip("needs /proc to know that a process stands still")
	}
	s.signal(pid, syscall.SIGSTOP)
	s.until("its standstill", func() bool { return processState(pid) == 'T' })
}

// awaitWatch returns when a tool watches the owner: then it has the same socket for
// longer than any other request may take.
func (s *stage) awaitWatch(pid int) {
	s.Helper()
	const longer = 3 * time.Second
	since := make(map[string]time.Time)
	s.until("a watch", func() bool {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			s.Fatal(err)
		}
		seen := make(map[string]time.Time)
		for _, e := range entries {
			target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
			if err != nil || !strings.HasPrefix(target, "socket:") {
				continue
			}
			if seen[target] = since[target]; seen[target].IsZero() {
				seen[target] = time.Now()
			}
			if time.Since(seen[target]) > longer {
				return true
			}
		}
		since = seen
		return false
	})
}

// service is a command line of a service of that version.
func (s *stage) service(version string, args ...string) []string {
	return append([]string{"env", reexec.Env + "=service", s.exe, "-version", version, "-places", filepath.Join(s.dir, "pids"), "-gate", s.gate}, args...)
}

// who is a process in the tool's JSON.
type who struct {
	Generation uint64 `json:"generation"`
	Instance   string `json:"instance"`
	Version    string `json:"version"`
	PID        int    `json:"pid"`
}

// outcome is what the tool has said in the end.
type outcome struct {
	exit   int            // -1: by a signal
	object map[string]any // all of it
	stderr string

	OK         bool     `json:"ok"`
	Code       int      `json:"code"`
	Reason     string   `json:"reason"`
	Serving    *who     `json:"serving"`
	Replaced   *who     `json:"replaced"`
	Started    *who     `json:"started"`
	Who        *who     `json:"who"`
	TookMS     *int64   `json:"took_ms"`
	Log        string   `json:"log"`
	ExitStatus any      `json:"exit_status"`
	Output     []string `json:"output"`
	Probation  *struct {
		Predecessor who       `json:"predecessor"`
		Until       time.Time `json:"until"`
		AtEnd       string    `json:"at_end"`
	} `json:"probation"`
	Failure *struct {
		Successor who    `json:"successor"`
		Step      string `json:"step"`
		Reason    string `json:"reason"`
	} `json:"failure"`
}

// deploying is a tool that runs.
type deploying struct {
	s      *stage
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
}

// prepare makes a call of `crossfade run --json`. rest are flags, -- and a service.
func (s *stage) prepare(flags, service []string) *deploying {
	s.Helper()
	args := append([]string{"run", "--json", "--socket", s.socket}, flags...)
	d := &deploying{s: s, cmd: reexec.Command("crossfade", append(append(args, "--"), service...)...)}
	d.cmd.Env = append(d.cmd.Env, "TMPDIR="+s.dir)
	d.cmd.Stdout, d.cmd.Stderr = &d.stdout, &d.stderr
	return d
}

func (d *deploying) start() *deploying {
	d.s.Helper()
	reexec.Start(d.s, d.cmd)
	return d
}

// wait returns what the tool says. Whatever it has started must not keep its pipes.
func (d *deploying) wait() *outcome {
	d.s.Helper()
	waited := make(chan error, 1) // nobody may read it
	go func() { waited <- d.cmd.Wait() }()
	select {
	case err := <-waited:
		if err != nil && !errors.As(err, new(*exec.ExitError)) {
			d.s.Fatal(err)
		}
	case <-time.After(generous):
		d.s.Fatalf("the tool does not end, or somebody keeps its output: %s", d.stderr.String())
	}
	o := &outcome{exit: d.cmd.ProcessState.ExitCode(), stderr: d.stderr.String()}
	if d.stdout.Len() > 0 {
		if err := json.Unmarshal(d.stdout.Bytes(), &o.object); err != nil {
			d.s.Error(err)
		}
		decoder := json.NewDecoder(&d.stdout)
		if err := decoder.Decode(o); err != nil {
			d.s.Fatalf("%v in %q", err, d.stdout.String())
		}
		if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
			d.s.Error("there is more than one object on stdout")
		}
		if o.exit != o.Code || o.OK != (o.Code == 0) {
			d.s.Errorf("exit status %d with code %d, ok %v", o.exit, o.Code, o.OK)
		}
	}
	d.s.Logf("%q: %d: %s", d.cmd.Args[5:], o.exit, o.stderr)
	return o
}

// run calls the tool and returns what it says, which must have this exit status.
func (s *stage) run(exit int, flags, service []string) *outcome {
	s.Helper()
	o := s.prepare(flags, service).start().wait()
	s.wantExit(o, exit)
	return o
}

func (s *stage) wantExit(o *outcome, exit int) {
	s.Helper()
	if o.exit != exit {
		s.Fatalf("exit status %d, not %d: %s\n%s", o.exit, exit, o.stderr, strings.Join(o.Output, "\n"))
	}
}

// first starts the first generation.
func (s *stage) first(args ...string) *who {
	s.Helper()
	return s.run(0, nil, s.service("v1", args...)).Serving
}

func (s *stage) wantServing(o *outcome, want *who) {
	s.Helper()
	if o.Serving == nil || *o.Serving != *want {
		s.Errorf("%v serves, not %v", o.Serving, want)
	}
	s.wantAnswer(want.PID)
}

// wantAnswer asks the service itself.
func (s *stage) wantAnswer(pid int) {
	s.Helper()
	if got := s.get("/"); got != strconv.Itoa(pid) {
		s.Errorf("pid %s answers, not %d", got, pid)
	}
}

func (s *stage) get(path string) string {
	s.Helper()
	request, err := http.NewRequestWithContext(s.context(), http.MethodGet, "http://"+s.address()+path, http.NoBody)
	if err != nil {
		s.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		s.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.Fatal(err)
	}
	return string(body)
}

// address is where the service listens.
func (s *stage) address() string {
	s.Helper()
	for _, d := range s.status().Descriptors {
		if d.Name == "web" {
			return d.Address
		}
	}
	s.Fatal("the service does not listen")
	return ""
}

func (s *stage) controller() *crossfade.Controller {
	s.Helper()
	c, err := crossfade.Dial(s.context(), s.socket)
	if err != nil {
		s.Fatal(err)
	}
	return c
}

func (s *stage) status() *crossfade.Status {
	s.Helper()
	status, err := s.controller().Status(s.context())
	if err != nil {
		s.Fatal(err)
	}
	return status
}

// awaitOwner returns when the owner is as it should be.
func (s *stage) awaitOwner(what string, is func(*crossfade.Status) bool) *crossfade.Status {
	s.Helper()
	var found *crossfade.Status
	s.until(what, func() bool {
		c, err := crossfade.Dial(s.context(), s.socket)
		if err != nil {
			return false
		}
		found, err = c.Status(s.context())
		return err == nil && found.State.Owns() && is(found)
	})
	return found
}

// arrived returns when a service holds at the gate, with what lets it go on.
func (s *stage) arrived() (release func()) {
	s.Helper()
	opened := make(chan *os.File, 1) // nobody may read it
	go func() {
		f, err := os.OpenFile(s.gate, os.O_WRONLY, 0) // waits for the reader
		if err != nil {
			s.Error(err)
		}
		opened <- f
	}()
	select {
	case f := <-opened:
		return func() { _ = f.Close() }
	case <-time.After(generous):
		s.Fatal("nobody holds at the gate")
		return nil
	}
}

func (s *stage) signal(pid int, sig syscall.Signal) {
	s.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		s.Fatal(err)
	}
}

// log returns what a process has logged.
func (s *stage) log(path string) string {
	s.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

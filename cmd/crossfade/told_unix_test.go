//go:build unix

package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// This file is a service that does as it is told, and the place where a test has such
// services and calls the tool. A test waits for what it needs by `crossfade wait`.

func init() { processes["told"] = serveAsTold }

// told is what a service is told to do. It is its argument, as JSON.
type told struct {
	Socket    string
	Version   string
	Names     []string // what it listens on; default: http
	Probation time.Duration
	Refuse    string // AcceptSuccessor's error, if not empty
	Epoch     uint64

	Initialising string // it says so by Progress, and calls Ready on SIGUSR1
	Fails        bool   // it exits with status 1 before Ready
	Suspend      string // "fails" or "hangs", once it owns
	Lingers      bool   // after Exit it waits for the end of DrainContext, or for ever if it stops
	KillOverdue  bool
	Next         *told // what Upgrade starts; default: the same again
}

// lifeline is the variable with a socket of the test: when that one is closed, the
// process ends. It must not start like the library's own, which New removes.
const lifeline = "TEST_CROSSFADE_LIFELINE"

func serveAsTold() {
	var do told
	check(json.Unmarshal([]byte(os.Args[1]), &do))
	line, err := net.Dial("unix", os.Getenv(lifeline))
	check(err)
	go func() {
		_, _ = line.Read(make([]byte, 1)) // the test has ended
		os.Exit(3)
	}()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	check(do.serve(context.Background()))
}

func (do *told) serve(ctx context.Context) error {
	initialised := make(chan os.Signal, 1) // room, for it may come before somebody waits
	signal.Notify(initialised, syscall.SIGUSR1)
	upg, err := crossfade.New(ctx, do.config())
	if err != nil {
		return err
	}
	defer upg.Stop()
	if do.Names == nil {
		do.Names = []string{"http"}
	}
	for _, name := range do.Names {
		ln, err := upg.Listen(ctx, name, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer ln.Close()
	}
	if do.Fails {
		return errors.New("as it was told")
	}
	if do.Initialising != "" {
		upg.Progress(do.Initialising, 0)
		select {
		case <-upg.Exit():
			return upg.Err()
		case <-initialised:
		}
	}
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	<-upg.Exit()
	if do.Lingers {
		drain, cancel := upg.DrainContext(ctx)
		defer cancel()
		<-drain.Done()
	}
	return nil
}

func (do *told) config() *crossfade.Config {
	cfg := &crossfade.Config{
		Socket: do.Socket, BuildVersion: do.Version, Probation: do.Probation, Epoch: do.Epoch,
		CommitTimeout: forAnything, KillOverdue: do.KillOverdue, Logger: slog.Default(), Command: do.next,
	}
	if do.Refuse != "" {
		cfg.AcceptSuccessor = func(context.Context, crossfade.Successor) error { return errors.New(do.Refuse) }
	}
	if do.Suspend != "" {
		cfg.Suspend, cfg.Resume = do.suspend, func(context.Context) error { return nil }
	}
	return cfg
}

func (do *told) suspend(ctx context.Context) error {
	if do.Suspend == "hangs" {
		<-ctx.Done()
	}
	return errors.New("it does not let go")
}

func (do *told) next(context.Context) (*exec.Cmd, error) {
	next := *do
	if do.Next != nil {
		next = *do.Next
		next.Socket = do.Socket
	}
	arg, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(os.Args[0], string(arg))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// forAnything bounds every wait of these tests. Nothing takes that long unless it is
// broken.
const forAnything = time.Minute

// scene is one service's place.
type scene struct {
	*testing.T
	dir, socket string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	dir, err := os.MkdirTemp("", "tool") // short, for it is a socket's
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t, dir, filepath.Join(dir, "s")}
	ln, err := net.Listen("unix", filepath.Join(dir, "lifeline"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []net.Conn
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			line, err := ln.Accept()
			if err != nil {
				return
			}
			lines = append(lines, line)
		}
	})
	t.Cleanup(func() {
		ln.Close()
		accepting.Wait()
		for _, line := range lines {
			line.Close()
		}
		// Whoever was started by another service ends now, and nobody here can wait for
		// it. It makes no more files.
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// service starts a service and returns when it owns.
func (s *scene) service(do told) *os.Process {
	s.Helper()
	p := s.candidate(do)
	s.want(0, "wait", "--version", do.Version, "--timeout", forAnything.String())
	return p
}

// candidate starts a service.
func (s *scene) candidate(do told) *os.Process {
	s.Helper()
	do.Socket = s.socket
	arg, err := json.Marshal(do)
	if err != nil {
		s.Fatal(err)
	}
	cmd := reexec.Command("told", string(arg))
	cmd.Env = append(cmd.Env, lifeline+"="+filepath.Join(s.dir, "lifeline"))
	cmd.Stderr = nil // what it fails with is what it was told
	reexec.Start(s, cmd)
	reaped := make(chan struct{})
	go func() { // so that its end can be seen at once
		defer close(reaped)
		_ = cmd.Wait()
	}()
	s.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be frozen
		<-reaped
	})
	return cmd.Process
}

func (s *scene) signal(p *os.Process, sig syscall.Signal) {
	s.Helper()
	if err := p.Signal(sig); err != nil {
		s.Fatal(err)
	}
}

// call is a run of the tool that has not ended.
type called struct {
	s              *scene
	cmd            *exec.Cmd
	lines          *bufio.Scanner // of stdout
	stdout, stderr bytes.Buffer
}

// begin calls the tool.
func (s *scene) begin(name string, flags ...string) *called {
	s.Helper()
	c := &called{s: s, cmd: reexec.Command("crossfade", append([]string{name, "--socket", s.socket}, flags...)...)}
	c.cmd.Stderr = &c.stderr
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	c.lines = bufio.NewScanner(io.TeeReader(stdout, &c.stdout))
	reexec.Start(s, c.cmd)
	return c
}

// line returns the next line of stdout, and whether there is one.
func (c *called) line() (string, bool) {
	ok := c.lines.Scan()
	return c.lines.Text(), ok
}

// end returns how the run has ended.
func (c *called) end() printed {
	c.s.Helper()
	timer := time.AfterFunc(forAnything, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	for c.lines.Scan() {
	}
	if err := c.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		c.s.Fatal(err)
	}
	return printed{c.cmd.ProcessState.ExitCode(), c.stdout.String(), c.stderr.String()}
}

// want calls the tool, which must end with this exit code, and returns what it said.
func (s *scene) want(code int, name string, flags ...string) printed {
	s.Helper()
	got := s.begin(name, flags...).end()
	if got.code != code {
		s.Fatalf("%s %q: exit code %d, want %d: %s%s", name, flags, got.code, code, got.stderr, got.stdout)
	}
	if code != 0 && strings.Count(got.stderr, "\n") == 0 {
		s.Errorf("%s %q: exit code %d, and not a word on stderr", name, flags, code)
	}
	return got
}

// reply is what all objects have, and some of what some have.
type reply struct {
	OK        bool
	Code      int
	Reason    string
	Serving   *processReply
	Replaced  *processReply
	Stopped   *processReply
	Killed    *struct{ PID, UID int }
	Missing   []string
	Unclaimed []string
	Attempt   *struct {
		Successor processReply
		Step      string
		Status    string
	}
	Draining []struct {
		Generation  int
		State       string
		Connections *int
	}
}

type processReply struct {
	Generation int
	Instance   string
	Version    string
	PID        int
}

// ask calls the tool with --json.
func (s *scene) ask(code int, name string, flags ...string) reply {
	s.Helper()
	got := s.want(code, name, append(flags, "--json")...)
	var r reply
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil {
		s.Fatalf("%s: %v in %q", name, err, got.stdout)
	}
	if r.Code != code || r.OK != (code == 0) {
		s.Errorf("%s: exit code %d and the object %s", name, code, got.stdout)
	}
	if r.Reason != "" && !strings.Contains(got.stderr, r.Reason) {
		s.Errorf("%s: the reason %q is not on stderr: %q", name, r.Reason, got.stderr)
	}
	return r
}

// wantServing checks who serves, by the version; empty for nobody.
func (r reply) wantServing(s *scene, version string) {
	s.Helper()
	got := ""
	if r.Serving != nil {
		got = r.Serving.Version
	}
	if got != version {
		s.Errorf("%q serves, want %q: %s", got, version, r.Reason)
	}
}

func (r reply) wantReason(s *scene, parts ...any) {
	s.Helper()
	for _, part := range parts {
		if !strings.Contains(r.Reason, fmt.Sprint(part)) {
			s.Errorf("the reason %q lacks %q", r.Reason, fmt.Sprint(part))
		}
	}
}

//go:build unix

package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"

	"github.com/crossfade-go/crossfade"
)

// This file is what supervise does, across real processes: the tool, and services
// whose conduct is in a file, which each generation reads anew.

func init() {
	processes["supervise"] = func() {
		// What it starts is the service.
		check(os.Setenv(reexec.Env, "supervised"))
		tool.Main()
	}
	processes["supervised"] = func() {
		if len(os.Args) > 1 && os.Args[1] == "activate" { // the tool again, in between
			tool.Main()
		}
		supervisedMain()
	}
	processes["forsaker"] = forsaker
	processes["loiterer"] = loiterer
	processes["daemon"] = daemonMain
	processes["plain"] = plainMain
}

// patience is how long an event may take to come. None takes a noticeable part of it.
const patience = 30 * time.Second

// conduct is what a generation of the service does, in lines of its file.
type conduct struct {
	version   string
	probation time.Duration
	exit      int    // it exits with this status between New and Ready, if not -1
	crash     int    // it exits with this status right after Ready, if not -1
	settled   bool   // or once it is settled
	hang      bool   // between New and Ready, and SIGTERM does not end it
	hold      string // a file whose end it waits for between New and Ready: a FIFO
	deaf      bool   // before New, which it never calls
	drain     string // a file whose end it waits for after Exit: a FIFO
	read      bool   // a line of its standard input, before New
}

func readConduct(path string) conduct {
	text, err := os.ReadFile(path)
	check(err)
	flags := flag.NewFlagSet("conduct", flag.ContinueOnError)
	var c conduct
	flags.StringVar(&c.version, "version", "", "")
	flags.DurationVar(&c.probation, "probation", 0, "")
	flags.IntVar(&c.exit, "exit", -1, "")
	flags.IntVar(&c.crash, "crash", -1, "")
	flags.BoolVar(&c.settled, "settled", false, "")
	flags.BoolVar(&c.hang, "hang", false, "")
	flags.StringVar(&c.hold, "hold", "", "")
	flags.BoolVar(&c.deaf, "deaf", false, "")
	flags.StringVar(&c.drain, "drain", "", "")
	flags.BoolVar(&c.read, "read", false, "")
	check(flags.Parse(strings.Fields(string(text))))
	return c
}

// say is a line of a process for its test, whose name stands in front.
func say(format string, args ...any) {
	fmt.Printf("service %d: "+format+"\n", append([]any{os.Getpid()}, args...)...)
}

// endWithTest ends this process with its test, which holds the other end of stdin.
func endWithTest() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	}()
}

func supervisedMain() {
	endWithTest()
	serveConduct()
}

// serveConduct is a service: who connects says one word, and gets one line.
func serveConduct() {
	exe, err := os.Executable()
	check(err)
	say("started as %s, inherited %v, instance %q, of the manager %q", exe, inheritedFiles(), os.Getenv("CROSSFADE_INSTANCE"), ofManager())
	signals := make(chan os.Signal, 16) // none is lost while another is answered
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGQUIT)
	go func() {
		for sig := range signals {
			say("got %v", sig)
		}
	}()
	c := readConduct(os.Args[1])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if c.deaf {
		stop()
		signal.Ignore(syscall.SIGTERM)
		say("deaf")
		select {}
	}
	if c.read {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		say("has read %q: %v", line, err)
	}
	upg, err := crossfade.New(ctx, &crossfade.Config{BuildVersion: c.version, Probation: c.probation})
	check(err)
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "tcp", "tcp", os.Args[2])
	check(err)
	if c.hang {
		stop()
		signal.Ignore(syscall.SIGTERM)
		say("hangs")
		select {}
	}
	if c.hold != "" {
		say("holds")
		_, err := os.ReadFile(c.hold)
		check(err)
	}
	if c.exit >= 0 {
		os.Exit(c.exit)
	}
	check(upg.Ready(ctx))
	if c.crash >= 0 {
		if c.settled {
			<-upg.Settled()
		}
		os.Exit(c.crash)
	}
	say("owns generation %d at %s", upg.Status().Process.Generation, ln.Addr())

	var handlers sync.WaitGroup
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() { answer(conn, upg, c.version) })
		}
	}()
	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop()
		<-upg.Exit()
	}
	ln.Close()
	<-accepting
	handlers.Wait()
	if errors.Is(upg.Err(), crossfade.ErrRetired) && c.drain != "" {
		say("drains")
		_, err := os.ReadFile(c.drain)
		check(err)
	}
	if errors.Is(upg.Err(), crossfade.ErrRolledBack) {
		os.Exit(crossfade.ExitRolledBack)
	}
}

func answer(conn net.Conn, upg *crossfade.Upgrader, version string) {
	defer conn.Close()
	word, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	word, arg, _ := strings.Cut(strings.TrimSpace(word), " ")
	switch word {
	case "who":
		fmt.Fprintf(conn, "%s %d\n", version, os.Getpid())
	case "exit":
		status, err := strconv.Atoi(arg)
		check(err)
		os.Exit(status)
	case "upgrade":
		fmt.Fprintf(conn, "%v\n", upg.Upgrade(context.Background()))
	case "forsake":
		cmd := reexec.Command("forsaker")
		cmd.Stdin = os.Stdin
		out, err := cmd.Output()
		check(err)
		fmt.Fprintf(conn, "%s", out)
	}
}

// forsaker starts a process and leaves it alone. Its output is that one's number.
func forsaker() {
	cmd := reexec.Command("loiterer")
	cmd.Stdin, cmd.Stderr = os.Stdin, nil // who reads what the service says need not wait for it
	check(cmd.Start())
	fmt.Println(cmd.Process.Pid)
}

func loiterer() { _, _ = io.Copy(io.Discard, os.Stdin) }

// daemonMain puts the service into the background.
func daemonMain() {
	cmd := reexec.Command("supervised", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	check(cmd.Start())
}

// plainMain is a service that does not use the library. It exits with the number of
// SIGHUPs, at SIGTERM, or as its argument says.
func plainMain() {
	endWithTest()
	if len(os.Args) > 1 {
		status, err := strconv.Atoi(os.Args[1])
		check(err)
		os.Exit(status)
	}
	signals := make(chan os.Signal, 16) // more than the test sends
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	say("started")
	hangUps := 0
	for sig := range signals {
		if sig == syscall.SIGTERM {
			os.Exit(hangUps)
		}
		hangUps++
		say("got %v", sig)
	}
}

// ofManager are the variables that a service manager sets, with this process's number by
// another name.
func ofManager() []string {
	var found []string
	for _, kv := range os.Environ() {
		for _, name := range []string{"NOTIFY_", "LISTEN_", "WATCHDOG_", "FDSTORE"} {
			if strings.HasPrefix(kv, name) {
				found = append(found, strings.ReplaceAll(kv, strconv.Itoa(os.Getpid()), "self"))
			}
		}
	}
	slices.Sort(found)
	return found
}

// inheritedFiles are the descriptors that this process has got from who started it: those
// that it opens itself are close-on-exec.
func inheritedFiles() []int {
	var found []int
	for fd := range 256 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			found = append(found, fd)
		}
	}
	return found
}

// supervision is a running `crossfade supervise`, its output and that of its services.
type supervision struct {
	t       *testing.T
	dir     string
	conduct string
	socket  string
	stdin   *os.File // nil: a pipe whose other end the test holds
	cmd     *exec.Cmd
	begin   func(*exec.Cmd) error
	pid     int

	mu    sync.Mutex
	lines []string
	taken map[int]bool  // by await
	more  chan struct{} // closed and replaced for each line
	ended chan struct{} // closed when nobody writes any more
}

// newSupervision prepares one. The arguments are those of supervise, up to the program.
func newSupervision(t *testing.T, args ...string) *supervision {
	t.Helper()
	dir, err := os.MkdirTemp("", "supervise")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &supervision{
		t: t, dir: dir, begin: (*exec.Cmd).Start, conduct: filepath.Join(dir, "conduct"), socket: filepath.Join(dir, "control.sock"),
		taken: make(map[int]bool), more: make(chan struct{}), ended: make(chan struct{}),
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.behave("-version=v1")
	args = append(append([]string{"supervise", "--socket", s.socket}, args...), "--", exe, s.conduct, "127.0.0.1:0")
	s.cmd = reexec.Command("supervise", args...)
	return s
}

// behave says what the generations do that are started from now on.
func (s *supervision) behave(flags ...string) {
	s.t.Helper()
	if err := os.WriteFile(s.conduct, []byte(strings.Join(flags, "\n")), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// fifo is a file that a process waits for the end of, until release.
func (s *supervision) fifo() string {
	s.t.Helper()
	path := filepath.Join(s.dir, "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// program replaces the program and its arguments.
func (s *supervision) program(argv ...string) {
	i := len(s.cmd.Args) - 3
	s.cmd.Args = append(s.cmd.Args[:i:i], argv...)
}

func (s *supervision) start() *supervision {
	s.t.Helper()
	out, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	stdin, hold, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = stdin, w, w
	if s.stdin != nil {
		s.cmd.Stdin = s.stdin
	}
	err = s.begin(s.cmd)
	w.Close()
	stdin.Close()
	go s.read(out)
	s.t.Cleanup(func() {
		hold.Close() // which ends the services
		if s.cmd.Process != nil && s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill() // it may have ended
			_ = s.cmd.Wait()
		}
		<-s.ended
		out.Close()
		if s.t.Failed() {
			s.t.Logf("the output:\n%s", strings.Join(s.lines, "\n"))
		}
	})
	if err != nil {
		s.t.Skipf("the process cannot be started: %v", err)
	}
	s.pid = s.cmd.Process.Pid
	return s
}

func (s *supervision) read(from io.Reader) {
	defer close(s.ended)
	for scanner := bufio.NewScanner(from); scanner.Scan(); {
		s.mu.Lock()
		s.lines = append(s.lines, scanner.Text())
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
	}
}

// await returns the first line that has all these texts, of those that it has not returned
// before: the order in which several processes write is open.
func (s *supervision) await(texts ...string) string {
	s.t.Helper()
	limit := time.After(patience)
	for {
		s.mu.Lock()
		for i, line := range s.lines {
			if !s.taken[i] && containsAll(line, texts) {
				s.taken[i] = true
				s.mu.Unlock()
				return line
			}
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-limit:
			s.t.Fatalf("no line with %q", texts)
		}
	}
}

// never fails the test if a line has come with all these texts.
func (s *supervision) never(texts ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range s.lines {
		if containsAll(line, texts) {
			s.t.Errorf("there is a line %q", line)
		}
	}
}

func containsAll(line string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(line, text) {
			return false
		}
	}
	return true
}

// owned waits for the service to own, as the service and the supervisor say, and returns
// its number and address.
func (s *supervision) owned(generation int) (pid int, address string) {
	s.t.Helper()
	said := fmt.Sprintf("owns generation %d at ", generation)
	line := s.await("service ", said)
	if _, err := fmt.Sscanf(line, "service %d: ", &pid); err != nil {
		s.t.Fatal(err)
	}
	_, address, _ = strings.Cut(line, said)
	s.await("crossfade: ", fmt.Sprintf("generation %d (", generation), fmt.Sprintf("pid %d", pid), "owns the service")
	return pid, address
}

func (s *supervision) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// wantExit waits for the supervisor's end.
func (s *supervision) wantExit(status int) {
	s.t.Helper()
	timer := time.AfterFunc(patience, func() {
		s.t.Errorf("the supervisor has not ended within %v", patience)
		_ = s.cmd.Process.Kill()
	})
	_ = s.cmd.Wait() // the status is looked at
	timer.Stop()
	if got := s.cmd.ProcessState.ExitCode(); got != status {
		s.t.Errorf("the supervisor exits with %v, want %d", s.cmd.ProcessState, status)
	}
}

// tell gives the service a word and returns its answer, empty if it has none.
func tell(t *testing.T, address, word string) string {
	t.Helper()
	answer, err := ask(address, word)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return answer
}

func ask(address, word string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, word); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// wantGone waits until a number belongs to no process, not even to a zombie. Nothing
// tells of that.
func wantGone(t *testing.T, pid int) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(patience)
	for syscall.Kill(pid, 0) != syscall.ESRCH {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("pid %d is still there", pid)
		}
	}
}

func TestSuperviseUpgradesOnHangUp(t *testing.T) {
	t.Parallel()
	s := newSupervision(t).start()
	first, address := s.owned(1)

	// Clients come all the time; each is served by one generation or the other.
	stop := make(chan struct{})
	served := make(map[string]int)
	var failed []error
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			who, err := ask(address, "who")
			if err != nil {
				failed = append(failed, err)
				continue
			}
			served[who]++
		}
	})
	s.behave("-version=v2")
	s.signal(syscall.SIGHUP)
	second, _ := s.owned(2)
	s.await("crossfade: ", fmt.Sprintf("generation 1 (version v1, pid %d) has ended: exit status 0", first))
	if who := tell(t, address, "who"); who != fmt.Sprintf("v2 %d", second) {
		t.Errorf("served by %q", who)
	}
	close(stop)
	clients.Wait()
	if len(failed) > 0 {
		t.Errorf("%d clients were not served, the first with %v; others: %v", len(failed), failed[0], served)
	}
	if served[fmt.Sprintf("v1 %d", first)] == 0 {
		t.Errorf("nobody was served by the first generation: %v", served)
	}

	s.signal(syscall.SIGTERM)
	s.await("crossfade: nothing is left of the service", "generation 2", "exit status 0")
	s.wantExit(0)
	wantGone(t, first)
	wantGone(t, second)
	if _, err := os.Stat(s.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket: %v", err)
	}
}

func TestSuperviseFollowsUpgradeByOwner(t *testing.T) {
	t.Parallel()
	s := newSupervision(t).start()
	first, address := s.owned(1)
	// Each starts the next, so the third has a living ancestor that is not the tool.
	fifo := s.fifo()
	s.behave("-version=v2", "-drain="+fifo)
	if answer := tell(t, address, "upgrade"); answer != "<nil>" {
		t.Fatal(answer)
	}
	second, _ := s.owned(2)
	s.await("crossfade: ", fmt.Sprintf("pid %d) has ended: exit status 0", first))
	s.behave("-version=v3")
	if answer := tell(t, address, "upgrade"); answer != "<nil>" {
		t.Fatal(answer)
	}
	third, _ := s.owned(3)
	if runtime.GOOS != "linux" {
		return // where they are strangers
	}
	// Signals reach a process whose parent lives.
	s.signal(syscall.SIGUSR1)
	s.await(fmt.Sprintf("service %d: got user defined signal 1", third))
	s.never(fmt.Sprintf("service %d: got user", second))
	s.signal(syscall.SIGQUIT)
	s.await(fmt.Sprintf("service %d: got quit", third))
	s.await(fmt.Sprintf("service %d: got quit", second))
	// When the owner has stopped, the older one is waited for.
	if err := ctl(t, s.socket, (*crossfade.Controller).Stop); err != nil {
		t.Fatal(err)
	}
	s.await("crossfade: ", fmt.Sprintf("pid %d) has ended", third))
	if err := syscall.Kill(second, 0); err != nil {
		t.Errorf("the draining one: %v", err)
	}
	release(t, fifo)
	s.wantExit(0)
	for _, pid := range []int{first, second, third} {
		wantGone(t, pid)
	}
}

// release ends a drain.
func release(t *testing.T, fifo string) {
	t.Helper()
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// ctl has the owner of a socket do something.
func ctl(t *testing.T, socket string, do func(*crossfade.Controller, context.Context, string) (*crossfade.Outcome, error)) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := crossfade.Dial(ctx, socket)
	if err != nil {
		return err
	}
	_, err = do(c, ctx, "the test says so")
	return err
}

func TestSuperviseGoesOnWhenASuccessorFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		conduct string
		why     []string
	}{
		{"exits with 1", "-exit=1", []string{"exit status 1"}},
		{"exits with 0", "-exit=0", []string{"exit status 0"}},
		{"hangs", "-hang", []string{"signal: killed", "within 5s"}},
		{"never connects", "-deaf", []string{"signal: killed", "within 5s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSupervision(t, "--timeout", "5s").start()
			first, address := s.owned(1)
			s.behave(c.conduct)
			s.signal(syscall.SIGHUP)
			s.await(append(c.why, "crossfade: ", "has failed to take over", fmt.Sprintf("generation 1 (version v1, pid %d) goes on", first))...)
			if who := tell(t, address, "who"); who != fmt.Sprintf("v1 %d", first) {
				t.Errorf("served by %q", who)
			}
			s.behave("-version=v2")
			s.signal(syscall.SIGHUP)
			s.await("owns the service", "ms after its start")
			s.signal(syscall.SIGTERM)
			s.wantExit(0)
		})
	}
}

// A candidate whose predecessor dies is all that is left of the service: it gets the time
// that it needs.
func TestSuperviseLeavesTheHeirAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		start func(s *supervision, address string)
	}{
		{"started by SIGHUP", func(s *supervision, _ string) { s.signal(syscall.SIGHUP) }},
		{"started by the owner", func(_ *supervision, address string) {
			go ask(address, "upgrade") // which is never answered
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSupervision(t, "--timeout", "1s").start()
			first, address := s.owned(1)
			fifo := s.fifo()
			s.behave("-version=v2", "-hold="+fifo)
			c.start(s, address)
			s.await("service ", "holds")
			if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.await(fmt.Sprintf("pid %d) has ended: signal: killed", first))
			if c.name == "started by SIGHUP" {
				s.await("nobody owns the service any more", "may take its time")
			}
			release(t, fifo)
			s.owned(2)
			s.signal(syscall.SIGTERM)
			s.wantExit(0)
		})
	}
}

func TestSuperviseStopsACandidateToo(t *testing.T) {
	t.Parallel()
	s := newSupervision(t).start()
	first, _ := s.owned(1)
	s.behave("-version=v2", "-hold="+s.fifo())
	s.signal(syscall.SIGHUP)
	s.await("service ", "holds")
	s.signal(syscall.SIGTERM)
	s.await("SIGTERM goes to ", " and ")
	s.signal(syscall.SIGHUP)
	s.await("SIGHUP: no successor is started")
	release(t, filepath.Join(s.dir, "fifo")) // for the candidate, which then hears of it
	s.wantExit(0)
	wantGone(t, first)
	s.never("generation 2", "owns the service")
}

// What starts the service is not the service.
func TestSuperviseSeesThroughWrappers(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere what others have started are strangers")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, wrapper := range map[string][]string{
		"a shell that waits":                 {"/bin/sh", "-c", `"$@"; exit $?`, "sh", exe},
		"one that puts it in the background": {"/usr/bin/env", reexec.Env + "=daemon", exe},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSupervision(t)
			s.program(append(wrapper, s.conduct, "127.0.0.1:0")...)
			s.start()
			first, _ := s.owned(1)
			s.behave("-version=v2")
			s.signal(syscall.SIGHUP)
			second, _ := s.owned(2)
			s.signal(syscall.SIGUSR1)
			s.await(fmt.Sprintf("service %d: got user", second))
			s.signal(syscall.SIGTERM)
			s.wantExit(0)
			wantGone(t, first)
			wantGone(t, second)
		})
	}
}

func TestSuperviseRemembersOneHangUp(t *testing.T) {
	t.Parallel()
	s := newSupervision(t, "--timeout", "10s").start()
	s.owned(1)
	s.behave("-hang")
	s.signal(syscall.SIGHUP)
	line := s.await("service ", "hangs")
	for range 3 {
		s.signal(syscall.SIGHUP)
		s.await("SIGHUP: ", "another successor is started after that")
	}
	s.behave("-version=v2")
	var pid int
	if _, err := fmt.Sscanf(line, "service %d:", &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await("has failed to take over: signal: killed")
	s.owned(3)
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
	s.never("generation 4")
}

func TestSuperviseExitsAsTheOwner(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		word   string
		status int
		said   string
	}{{"exit 7", 7, "exit status 7"}, {"exit 0", 0, "exit status 0"}} {
		t.Run(c.word, func(t *testing.T) {
			t.Parallel()
			s := newSupervision(t).start()
			_, address := s.owned(1)
			tell(t, address, c.word)
			s.await("nothing is left of the service", c.said)
			s.wantExit(c.status)
		})
	}
	t.Run("killed", func(t *testing.T) {
		s := newSupervision(t).start()
		pid, _ := s.owned(1)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.await("nothing is left of the service", "signal: killed")
		s.wantExit(128 + 9)
	})
	t.Run("before anybody has seen it", func(t *testing.T) {
		s := newSupervision(t).start()
		first, _ := s.owned(1)
		s.behave("-crash=8", "-settled")
		s.signal(syscall.SIGHUP)
		s.await(fmt.Sprintf("pid %d) has ended: exit status 0", first))
		s.wantExit(8)
	})
	t.Run("the first never owns", func(t *testing.T) {
		s := newSupervision(t)
		s.behave("-exit=3")
		s.start().wantExit(3)
	})
	t.Run("killed while its parent lives", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("elsewhere it is a stranger")
		}
		s := newSupervision(t)
		fifo := s.fifo()
		s.behave("-version=v1", "-drain="+fifo)
		s.start()
		_, address := s.owned(1)
		if answer := tell(t, address, "upgrade"); answer != "<nil>" {
			t.Fatal(answer)
		}
		pid, _ := s.owned(2)
		s.await("drains")
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.await(fmt.Sprintf("pid %d) has ended", pid))
		release(t, fifo)
		s.wantExit(10) // its status is lost; that it has not stopped by itself is not
	})
}

func TestSuperviseStaysWhenThePredecessorResumes(t *testing.T) {
	t.Parallel()
	s := newSupervision(t, "--probation", "1h").start()
	first, _ := s.owned(1)
	s.behave("-version=v2")
	s.signal(syscall.SIGHUP)
	second, _ := s.owned(2)
	// Nobody can take over during the probation.
	s.signal(syscall.SIGHUP)
	s.await("SIGHUP: ", "is on probation", "after that")
	s.behave("-version=v3")
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await(fmt.Sprintf("generation 1 (version v1, pid %d) owns the service again", first))
	s.owned(3)
	if err := ctl(t, s.socket, func(c *crossfade.Controller, ctx context.Context, _ string) (*crossfade.Outcome, error) {
		return c.Settle(ctx)
	}); err != nil {
		t.Fatal(err)
	}
	s.await(fmt.Sprintf("pid %d) has ended: exit status 0", first))
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

// One that dies as soon as it owns may never have been seen to.
func TestSuperviseStaysWhenASuccessorCrashesAtOnce(t *testing.T) {
	t.Parallel()
	s := newSupervision(t, "--probation", "1h").start()
	first, address := s.owned(1)
	for range 3 {
		s.behave("-crash=8")
		s.signal(syscall.SIGHUP)
		s.await("crossfade: ", "exit status 8")
		if who := tell(t, address, "who"); who != fmt.Sprintf("v1 %d", first) {
			t.Errorf("served by %q", who)
		}
	}
	s.behave("-version=v2")
	s.signal(syscall.SIGHUP)
	s.owned(5)
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

func TestSuperviseReapsOrphans(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere orphans go to process 1")
	}
	s := newSupervision(t).start()
	_, address := s.owned(1)
	orphan, err := strconv.Atoi(tell(t, address, "forsake"))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", orphan))
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Fields(string(stat)); fields[3] != strconv.Itoa(s.pid) {
		t.Errorf("the orphan's parent is %s, not %d", fields[3], s.pid)
	}
	if err := syscall.Kill(orphan, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantGone(t, orphan)
	// One that stays does not keep the supervisor.
	tell(t, address, "forsake")
	tell(t, address, "exit 5")
	s.wantExit(5)
}

func TestSuperviseRunsWhatALinkLeadsTo(t *testing.T) {
	t.Parallel()
	s := newSupervision(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	current := filepath.Join(s.dir, "current")
	for _, version := range []string{"v1", "v2"} {
		dir := filepath.Join(s.dir, version)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		copyFile(t, exe, filepath.Join(dir, "app"))
	}
	if err := os.Symlink("v1", current); err != nil {
		t.Fatal(err)
	}
	s.program(filepath.Join(current, "app"), s.conduct, "127.0.0.1:0")
	s.start()
	s.await("service ", "started as ", "/v1/app")
	s.owned(1)
	next := filepath.Join(s.dir, "next")
	if err := errors.Join(os.Symlink("v2", next), os.Rename(next, current)); err != nil {
		t.Fatal(err)
	}
	s.signal(syscall.SIGHUP)
	s.await("service ", "started as ", "/v2/app")
	s.owned(2)
	if err := os.Remove(current); err != nil {
		t.Fatal(err)
	}
	s.signal(syscall.SIGHUP)
	s.await("crossfade: no successor was started: ", "no such file or directory", "generation 2 ", " goes on")
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
}

// copyFile leaves the writing to another process. A descriptor of this one could be
// passed to what another test starts at the same time, and who holds it open for writing
// keeps the file from being executed.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestSupervisePassesNothingOn(t *testing.T) {
	t.Parallel()
	s := newSupervision(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s.cmd.ExtraFiles = []*os.File{r, w}
	s.cmd.Env = append(s.cmd.Env, "CROSSFADE_INSTANCE=stale", "CROSSFADE_FD=3")
	s.start()
	line := s.await("service ", "inherited [0 1 2],")
	if strings.Contains(line, "stale") {
		t.Error(line)
	}
	s.owned(1)
	s.signal(syscall.SIGHUP)
	s.await("service ", "inherited [0 1 2],")
	s.owned(2)
	s.signal(syscall.SIGINT)
	s.wantExit(0)
}

func TestSuperviseForwardsSignals(t *testing.T) {
	t.Parallel()
	s := newSupervision(t, "--probation", "1h").start()
	first, _ := s.owned(1)
	s.signal(syscall.SIGHUP)
	second, _ := s.owned(2)
	for sig, name := range map[syscall.Signal]string{
		syscall.SIGUSR1: "user defined signal 1", syscall.SIGUSR2: "user defined signal 2", syscall.SIGWINCH: "window changed",
	} {
		s.signal(sig)
		s.await(fmt.Sprintf("service %d: got %s", second, name))
		s.never(fmt.Sprintf("service %d: got %s", first, name))
	}
	s.signal(syscall.SIGQUIT)
	s.await(fmt.Sprintf("service %d: got quit", first))
	s.await(fmt.Sprintf("service %d: got quit", second))
	s.signal(syscall.SIGTERM)
	s.await("SIGTERM goes to ", strconv.Itoa(first), strconv.Itoa(second))
	s.wantExit(0)
	wantGone(t, first)
	wantGone(t, second)
}

func TestSuperviseIsAPlainInit(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	plain := func(args ...string) *supervision {
		s := newSupervision(t, "--timeout", "1s")
		s.program(append([]string{"/usr/bin/env", reexec.Env + "=plain", exe}, args...)...)
		return s.start()
	}
	t.Run("status", func(t *testing.T) { plain("9").wantExit(9) })
	t.Run("signals", func(t *testing.T) {
		s := plain()
		s.await("service ", "started")
		s.signal(syscall.SIGHUP) // until the time is up it may be a slow beginner
		s.await("service ", "got hangup")
		s.signal(syscall.SIGHUP)
		s.await("service ", "got hangup")
		s.signal(syscall.SIGTERM)
		s.wantExit(2)
	})
}

func TestSuperviseTakesOverAStranger(t *testing.T) {
	t.Parallel()
	s := newSupervision(t).start()
	first, _ := s.owned(1)
	other := newSupervision(t)
	other.socket, other.cmd.Args[3] = s.socket, s.socket
	t.Run("that fails", func(t *testing.T) {
		failing := newSupervision(t)
		failing.cmd.Args[3] = s.socket
		failing.behave("-exit=0")
		failing.start()
		failing.await(fmt.Sprintf("pid %d) goes on", first))
		failing.wantExit(5)
	})
	other.start()
	second, _ := other.owned(3)
	// The one that was taken over stays as long as somebody serves.
	s.await(fmt.Sprintf("pid %d) owns the service", second), "does not descend from this process")
	s.signal(syscall.SIGUSR1)
	other.signal(syscall.SIGUSR2)
	other.await(fmt.Sprintf("service %d: got user defined signal 2", second))
	other.never("got user defined signal 1")
	other.signal(syscall.SIGTERM)
	other.wantExit(0)
	s.wantExit(0)
}

// TestSuperviseMissesItsOwner checks what becomes of a process that owned while nobody
// looked, and was replaced by a stranger: it has not failed, and is left to its drain.
func TestSuperviseMissesItsOwner(t *testing.T) {
	t.Parallel()
	s := newSupervision(t, "--timeout", "2s")
	hold, drain := filepath.Join(s.dir, "hold"), filepath.Join(s.dir, "drain")
	for _, fifo := range []string{hold, drain} {
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.behave("-version=v1", "-hold="+hold, "-drain="+drain)
	s.start()
	s.await("service ", "holds")
	s.signal(syscall.SIGSTOP)
	release(t, hold)
	s.await("service ", "owns generation 1 at ")
	other := newSupervision(t)
	other.cmd.Args[3] = s.socket
	other.behave("-version=v2")
	other.start()
	other.owned(2)
	s.await("service ", "drains")
	s.signal(syscall.SIGCONT)
	s.await("crossfade: ", "has owned the service")
	s.await("crossfade: ", "generation 2 (", "does not descend from this process")
	release(t, drain)
	s.await("crossfade: ", "has ended: exit status 0")
	s.never("is cancelled")
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
	other.signal(syscall.SIGTERM)
	other.wantExit(0)
}

func TestSuperviseMakesASocket(t *testing.T) {
	t.Parallel()
	s := newSupervision(t)
	s.cmd.Args = append(s.cmd.Args[:2:2], s.cmd.Args[4:]...)
	s.start()
	_, socket, _ := strings.Cut(s.await("crossfade: the control socket is "), " is ")
	info, err := os.Stat(filepath.Dir(socket))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v %v", info, err)
	}
	s.owned(1)
	s.signal(syscall.SIGHUP)
	s.owned(2)
	s.signal(syscall.SIGTERM)
	s.wantExit(0)
	if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

func TestSuperviseSaysHowItEnded(t *testing.T) {
	t.Parallel()
	s := newSupervision(t)
	log := filepath.Join(s.dir, "log")
	s.cmd.Args = append(s.cmd.Args[:2:2], append([]string{"--json", "--log", log}, s.cmd.Args[2:]...)...)
	s.start()
	s.await("crossfade: generation 1 ", "owns the service")
	s.signal(syscall.SIGHUP)
	s.await("crossfade: generation 2 ", "owns the service")
	if err := ctl(t, s.socket, (*crossfade.Controller).Stop); err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(s.await(`{"`)), &object); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(log); err != nil || info.Mode().Perm() != 0o600 { // as that of run
		t.Errorf("%v, %v", info, err)
	}
	compareFields(t, "supervise", object, documented(t, "## The object")["field"], documented(t, "### crossfade supervise")["field"])
	for field, want := range map[string]any{"ok": true, "code": 0.0, "serving": nil, "exit_status": 0.0} {
		if object[field] != want {
			t.Errorf("%s is %v, want %v", field, object[field], want)
		}
	}
	s.wantExit(0)
	s.never("service ")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"owns generation 1 at", "owns generation 2 at"} {
		if !strings.Contains(string(text), line) {
			t.Errorf("no %q in the log:\n%s", line, text)
		}
	}
}

func TestSuperviseCannotStart(t *testing.T) {
	t.Parallel()
	s := newSupervision(t)
	s.program(filepath.Join(s.dir, "missing"))
	s.start()
	s.await("crossfade: ", "missing", "no such file or directory")
	s.wantExit(10)
	owner := newSupervision(t).start()
	owner.owned(1)
	s = newSupervision(t)
	s.program("/") // which may not be executed
	s.cmd.Args[3] = owner.socket
	s.start().wantExit(5)
	s = newSupervision(t)
	s.cmd.Args = append(s.cmd.Args[:2:2], s.cmd.Args[4:]...)
	s.cmd.Env = append(s.cmd.Env, "TMPDIR="+filepath.Join(s.dir, "missing"))
	s.start().wantExit(10)
	s = newSupervision(t)
	s.cmd.Args = s.cmd.Args[:4]
	s.start()
	s.await("what is to be started?")
	s.wantExit(2)
}

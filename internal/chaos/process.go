//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/scm"
)

// process is a service process as the harness sees it. All methods may be called
// concurrently.
type process struct {
	name   string
	cmd    *exec.Cmd
	side   *scm.Conn
	stderr string // the file
	ended  chan struct{}

	mu       sync.Mutex
	events   []event
	from     int // where await and count begin, see forget
	news     chan struct{}
	released int64 // when it could certainly do nothing any more; 0: it can
	state    string
}

// option changes a service process before it starts.
type option func(*exec.Cmd)

// withConnection lets the process take over through theirs, which stays the
// caller's.
func withConnection(theirs *os.File) option {
	return func(cmd *exec.Cmd) {
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
		cmd.Env = append(cmd.Env, fmt.Sprintf("CROSSFADE_FD=%d", takeFD))
	}
}

// onProbation has the attempt ask for a probation. The program's configuration
// would do that too, and give the next successor one.
func onProbation(d time.Duration) option {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "CROSSFADE_PROBATION="+d.String()) }
}

// inPIDNamespace starts the process in a pid namespace of its own.
func inPIDNamespace(cmd *exec.Cmd) { cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID }

// startProcess starts a service process. dir gets the file of its standard
// error.
func startProcess(dir string, sp spec, options ...option) (*process, error) {
	encoded, err := json.Marshal(sp)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ours, theirs, err := scm.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	stderr, err := os.Create(filepath.Join(dir, sp.Name+".stderr"))
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	defer stderr.Close()
	cmd := exec.Command(exe)
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// With the race detector a process sleeps for a second before it exits.
	cmd.Env = append(os.Environ(), roleEnv+"="+string(encoded), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), "GOMAXPROCS=2")
	// A stopped process does not notice that the harness has gone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, option := range options {
		option(cmd)
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	p := &process{
		name: sp.Name, cmd: cmd, side: ours, stderr: stderr.Name(),
		ended: make(chan struct{}), news: make(chan struct{}), state: "candidate",
	}
	go p.follow()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// follow keeps what the process reports, until it ends.
func (p *process) follow() {
	for {
		var e event
		if err := receiveJSON(p.side, &e); err != nil {
			break
		}
		p.note(e)
	}
	_ = p.cmd.Wait() // the state says it all
	_ = p.side.Close()
	p.note(newEvent(eventEnd, p.cmd.ProcessState.String(), nil))
	close(p.ended)
}

func (p *process) note(e event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
	if _, to, ok := transition(e); ok {
		p.state = to
	}
	close(p.news)
	p.news = make(chan struct{})
}

// transition returns the states of an event that is a change of state.
func transition(e event) (from, to string, ok bool) {
	if e.Name != eventLog || !strings.Contains(e.Text, " msg=state ") {
		return "", "", false
	}
	for field := range strings.FieldsSeq(e.Text) {
		if v, found := strings.CutPrefix(field, "from="); found {
			from = v
		}
		if v, found := strings.CutPrefix(field, "to="); found {
			to = v
		}
	}
	return from, to, from != "" && to != ""
}

// current is the state that the process has reported last.
func (p *process) current() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// forget has await and count look at nothing that has happened by now.
func (p *process) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.from = len(p.events)
}

// await returns the first event that fits, since forget or the process's start.
func (p *process) await(ctx context.Context, what string, fits func(event) bool) (event, error) {
	p.mu.Lock()
	i := p.from
	p.mu.Unlock()
	for {
		p.mu.Lock()
		for ; i < len(p.events); i++ {
			if fits(p.events[i]) {
				defer p.mu.Unlock()
				return p.events[i], nil
			}
		}
		news := p.news
		p.mu.Unlock()
		select {
		case <-p.ended:
			if p.count(fits) == 0 {
				return event{}, fmt.Errorf("%s ended without %s", p.name, what)
			}
		case <-news:
		case <-ctx.Done():
			return event{}, fmt.Errorf("%s: no %s: %w", p.name, what, context.Cause(ctx))
		}
	}
}

// expect waits for an event by its name.
func (p *process) expect(ctx context.Context, name string) (event, error) {
	return p.await(ctx, "event "+name, func(e event) bool { return e.Name == name })
}

// expectLog waits for a line of the process's log that contains text.
func (p *process) expectLog(ctx context.Context, text string) error {
	_, err := p.await(ctx, fmt.Sprintf("log line with %q", text), logs(text))
	return err
}

func logs(text string) func(event) bool {
	return func(e event) bool { return e.Name == eventLog && strings.Contains(e.Text, text) }
}

// expectState waits until the process is in that state.
func (p *process) expectState(ctx context.Context, state string) error {
	for {
		p.mu.Lock()
		current, news := p.state, p.news
		p.mu.Unlock()
		if current == state {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended in state %s instead of %s", p.name, p.current(), state)
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("%s is in state %s instead of %s: %w", p.name, current, state, context.Cause(ctx))
		}
	}
}

// count is how many events fit, since forget or the process's start.
func (p *process) count(fits func(event) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, e := range p.events[p.from:] {
		if fits(e) {
			n++
		}
	}
	return n
}

func (p *process) happened(name string) bool {
	return p.count(func(e event) bool { return e.Name == name }) > 0
}

// alive reports whether the process has not ended.
func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// acts reports whether the process can still do anything.
func (p *process) acts() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.released == 0 && p.alive()
}

func (p *process) tell(name string) error { return sendJSON(p.side, command{Name: name}) }

// stop returns when every thread of the process stands still.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	for {
		err := unix.Waitid(unix.P_PID, p.pid(), nil, unix.WSTOPPED, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("stopping %s: %w", p.name, err)
		}
		return nil
	}
}

func (p *process) cont() error {
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("waking %s: %w", p.name, err)
	}
	return nil
}

// release notes that the process, which is stopped, never acts again.
func (p *process) release() {
	e := newEvent(eventReleased, "", nil)
	p.mu.Lock()
	if p.released == 0 {
		p.released = e.At
	}
	p.mu.Unlock()
	p.note(e)
}

// kill ends the process and waits for that.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// exitStatus waits for the end.
func (p *process) exitStatus(ctx context.Context) (int, error) {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s does not exit: %w", p.name, context.Cause(ctx))
	}
}

// complaints is what the process wrote to standard error, where a service says
// nothing: a panic, or a data race.
func (p *process) complaints() string {
	text, err := os.ReadFile(p.stderr)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// transcript returns the events of the processes since begin, in the order in
// which they happened.
func transcript(processes []*process, begin int64) string {
	type line struct {
		at   int64
		text string
	}
	var all []line
	for _, p := range processes {
		p.mu.Lock()
		for _, e := range p.events {
			if e.At < begin {
				continue
			}
			text := fmt.Sprintf("%-4s %-8s %s", p.name, e.Name, e.Text)
			if e.Error != "" {
				text += " error: " + e.Error
			}
			all = append(all, line{e.At, text})
		}
		p.mu.Unlock()
	}
	slices.SortStableFunc(all, func(a, b line) int { return int(a.at - b.at) })
	var b strings.Builder
	for _, l := range all {
		fmt.Fprintf(&b, "    %9.3f ms  %s\n", float64(l.at-begin)/1e6, l.text)
	}
	return b.String()
}

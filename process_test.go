//go:build unix

package crossfade_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// This file is the stage for tests across real processes.
//
// A [desk] is a unix socket of the test. Every service process dials it, reports
// on it what happens, and takes commands from it, also one that another process
// has started by Upgrade. So a test waits for events and never sleeps:
//
//	d := newDesk(t)
//	old := d.launch(serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web")}, Ready: true})
//	address := old.address("web")
//	old.await("ready")
//	next := d.launch(...)                   // takes over from old
//	next.await("ready")
//	old.await("exit")                       // .Err is the Upgrader's Err
//	who := ask(t, "tcp", address)           // who.PID == next.pid
//	status := old.exitStatus()
//
// Events of a process, in this order as far as it comes: "new" after New,
// "listening" for each of its Sockets, "ready" after Ready, "settled", "gone"
// after WaitForPredecessor, "exit" after Exit, and "log" for each line it logs.
// Each await takes the first event of that kind which was not taken before.
//
// Commands are in serviceCommands; a test file adds its own in init. [process.do]
// runs one and returns its answer, [process.begin] does not wait for it. Errors
// come across with their text and match the sentinels in the table of that name.
//
// A service process accepts at once and serves each stream connection with an
// answer, one when it is accepted and one for each line that it reads; a packet
// is answered with the same and the packet's own bytes. When Exit is closed it
// closes what it listens on, waits for the end of its connections and exits: 0
// after ErrRetired and ErrStopped, 75 after ErrRolledBack, else 1. It does not outlive its test.

// deskEnv leads a service process to its desk. Its name must not start like the
// library's own variables, which New removes.
const deskEnv = "TEST_CROSSFADE_DESK"

// serviceSpec is what a service process does. Fields that Config has too mean the
// same.
type serviceSpec struct {
	Socket            string
	SocketMode        os.FileMode
	SocketGroup       string
	ReadGroup         string
	Instance          string
	BuildVersion      string
	Epoch             uint64
	DialTimeout       time.Duration
	Wait              time.Duration
	ReadyTimeout      time.Duration
	MaxReadyTimeout   time.Duration
	CommitTimeout     time.Duration
	DrainTimeout      time.Duration
	Probation         time.Duration
	MaxProbation      time.Duration
	AtProbationEnd    crossfade.ProbationEnd
	Exclusive         string // the lock file that Suspend and Resume guard, if not empty
	Events            bool   // it reports each Event as "event"
	MaxDraining       int
	KillOverdue       bool
	OnDrainTimeout    bool // the hook reports "overstay"
	KeepDraining      bool // it does not leave when DrainContext ends
	RequireAllClaimed bool
	PIDFile           string
	Disabled          bool
	KeepAlive         *net.KeepAliveConfig // of the ListenConfig
	Refuse            string               // AcceptSuccessor's error, if not empty
	Command           *commandSpec         // nil: the same again
	FDStore           bool
	IgnoreManager     bool // Config.IgnoreServiceManager
	Watchdog          bool // Config.Watchdog reports "watchdog", and fails after the command "sicken"
	Park              bool // when it has drained it calls Park, until the command "quit"
	DefaultCommand    bool // Config.Command is not set at all

	Sockets []socketSpec // what it opens between New and Ready
	Ready   bool         // it calls Ready by itself; else the command "ready" does
	Linger  bool         // after Exit, or an error of Ready, it stays until the command "quit"
	StopAt  string       // it stops itself, as by SIGSTOP, for good when it logs this
	NoFile  uint64       // its RLIMIT_NOFILE, soft and hard, if not 0
	Umask   int          // set if not 0
}

// socketSpec is a listener or packet conn of a service process.
type socketSpec struct {
	Name, Network, Address string
	Idle                   bool // nobody takes from it
	HTTP                   bool // an http.Server serves it; GET / gives an answer
	ReusePort              bool // opened by ListenFunc with SO_REUSEPORT
}

// tcpSpec is a TCP listener on a free port.
func tcpSpec(name string) socketSpec {
	return socketSpec{Name: name, Network: "tcp", Address: loopback + ":0"}
}

// loopback is an address that no other run of the tests uses, so that a port on
// it that was closed is nobody else's a moment later.
var loopback = ownLoopback()

func ownLoopback() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1" // the others have no more of them
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
}

// commandSpec is what Config.Command makes.
type commandSpec struct {
	Path   string       // default: the test binary
	Spec   *serviceSpec // of the service process; nil: Args
	Args   []string
	Pipes  int  // how many files of its own the command passes on
	NoDesk bool // it does not know of the desk
	Tied   bool // it is to die with the process that starts it
	Bound  bool // it is made for the context that Config.Command gets
	Fails  string
}

// message is what travels between a process and its desk, one JSON value a line.
type message struct {
	Event   string          `json:",omitempty"` // from a process
	Command string          `json:",omitempty"` // to a process
	ID      int             `json:",omitempty"` // of a command and its answer
	PID     int             `json:",omitempty"`
	Failure *remoteError    `json:",omitempty"`
	Value   json.RawMessage `json:",omitempty"`
}

// event is a message from a process, for a test.
type event struct {
	Name  string
	Err   error // a [*remoteError], or nil
	Value json.RawMessage
	id    int
	taken bool
}

// text is the value of an event whose value is a text.
func (e event) text() string {
	var s string
	if json.Unmarshal(e.Value, &s) != nil {
		return string(e.Value)
	}
	return s
}

// remoteError is an error of another process. It matches the sentinels that the
// original matched.
type remoteError struct {
	Text    string
	Matches []string
}

func (e *remoteError) Error() string { return e.Text }

func (e *remoteError) Is(target error) bool {
	return slices.ContainsFunc(e.Matches, func(name string) bool { return sentinels[name] == target })
}

// sentinels are what errors are matched with across processes.
var sentinels = map[string]error{
	"ErrRetired":           crossfade.ErrRetired,
	"ErrRolledBack":        crossfade.ErrRolledBack,
	"ErrStopped":           crossfade.ErrStopped,
	"ErrSettled":           crossfade.ErrSettled,
	"ErrProbation":         crossfade.ErrProbation,
	"ErrProtocol":          crossfade.ErrProtocol,
	"ErrMoved":             crossfade.ErrMoved,
	"ErrNotInherited":      crossfade.ErrNotInherited,
	"ErrNameTaken":         crossfade.ErrNameTaken,
	"ErrHandoffInProgress": crossfade.ErrHandoffInProgress,
	"ErrOutcomeUnknown":    crossfade.ErrOutcomeUnknown,
	"ErrOwnerUnknown":      crossfade.ErrOwnerUnknown,
	"ErrControlLost":       crossfade.ErrControlLost,
	"ErrBusy":              crossfade.ErrBusy,
	"ErrNotReady":          crossfade.ErrNotReady,
	"ErrPolicy":            crossfade.ErrPolicy,
	"ErrDenied":            crossfade.ErrDenied,
	"ErrIncompatible":      crossfade.ErrIncompatible,
	"ErrStopping":          crossfade.ErrStopping,
	"ErrTimeout":           crossfade.ErrTimeout,
	"ErrAborted":           crossfade.ErrAborted,
	"ErrLost":              crossfade.ErrLost,
	"ErrUnclaimed":         crossfade.ErrUnclaimed,
	"ErrDraining":          crossfade.ErrDraining,
	"ErrCancelled":         crossfade.ErrCancelled,
	"ErrNoOwner":           crossfade.ErrNoOwner,
	"ErrLimit":             crossfade.ErrLimit,
	"ErrUnsafePath":        crossfade.ErrUnsafePath,
	"ErrNotTaken":          crossfade.ErrNotTaken,
	"ErrWrongState":        crossfade.ErrWrongState,
	"ErrUnimplemented":     crossfade.ErrUnimplemented,
	"net.ErrClosed":        net.ErrClosed,
	"context.Canceled":     context.Canceled,
	"context.Deadline":     context.DeadlineExceeded,
	"EADDRINUSE":           syscall.EADDRINUSE,
	"ErrNotExist":          os.ErrNotExist,
	"ErrPermission":        os.ErrPermission,
	"ErrUnsupported":       errors.ErrUnsupported,
}

func remote(err error) *remoteError {
	if err == nil {
		return nil
	}
	r := &remoteError{Text: err.Error()}
	for name, sentinel := range sentinels {
		if errors.Is(err, sentinel) {
			r.Matches = append(r.Matches, name)
		}
	}
	return r
}

// A desk is where the service processes of one test report.
type desk struct {
	t   testing.TB
	dir string
	ln  net.Listener

	mu        sync.Mutex
	processes []*process
	closed    bool
	news      chan struct{} // closed and replaced when a process has arrived
	wg        sync.WaitGroup
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	dir := socketDir(t)
	ln, err := net.Listen("unix", filepath.Join(dir, "desk"))
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, dir: dir, ln: ln, news: make(chan struct{})}
	d.wg.Add(1)
	go d.accept()
	t.Cleanup(d.close)
	return d
}

// path is a path in the test's own short directory.
func (d *desk) path(name string) string { return filepath.Join(d.dir, name) }

func (d *desk) close() {
	_ = d.ln.Close()
	d.mu.Lock()
	d.closed = true
	all := d.processes
	d.mu.Unlock()
	for _, p := range all {
		p.kill()
		_ = p.conn.Close()
	}
	d.wg.Wait()
	for _, p := range d.processes {
		if d.t.Failed() {
			d.t.Logf("process %d:\n%s", p.pid, p.transcript())
		}
		if p.handle != nil {
			_ = p.handle.Release()
		}
	}
}

func (d *desk) accept() {
	defer d.wg.Done()
	for {
		conn, err := d.ln.Accept()
		if err != nil {
			return
		}
		d.wg.Add(1)
		go d.follow(conn)
	}
}

// follow keeps what one process reports.
func (d *desk) follow(conn net.Conn) {
	defer d.wg.Done()
	in := json.NewDecoder(conn)
	var hello message
	if err := in.Decode(&hello); err != nil {
		_ = conn.Close()
		return
	}
	p := &process{desk: d, pid: hello.PID, parent: hello.ID, conn: conn, news: make(chan struct{})}
	// While it lives: the handle names it and no later process of that number.
	p.handle, _ = os.FindProcess(p.pid)
	d.mu.Lock()
	d.processes = append(d.processes, p)
	close(d.news)
	d.news = make(chan struct{})
	late := d.closed
	d.mu.Unlock()
	if late {
		_ = p.handle.Kill() // and what follows is its end
	}
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			p.note(nil)
			return
		}
		e := &event{Name: m.Event, Value: m.Value, id: m.ID}
		if m.Failure != nil {
			e.Err = m.Failure
		}
		p.note(e)
	}
}

// arrival waits for a process that wanted wants, and that nobody got before.
func (d *desk) arrival(wanted func(*process) bool) *process {
	d.t.Helper()
	timer := time.NewTimer(generous)
	defer timer.Stop()
	for {
		d.mu.Lock()
		for _, p := range d.processes {
			if !p.known && wanted(p) {
				p.known = true
				d.mu.Unlock()
				return p
			}
		}
		news := d.news
		d.mu.Unlock()
		select {
		case <-news:
		case <-timer.C:
			d.t.Fatal("a process did not report")
		}
	}
}

// launch starts a service process. Options may change the command before.
func (d *desk) launch(spec serviceSpec, options ...func(*exec.Cmd)) *process {
	d.t.Helper()
	cmd := d.command(spec)
	for _, option := range options {
		option(cmd)
	}
	return d.run(cmd)
}

// command prepares a service process.
func (d *desk) command(spec serviceSpec) *exec.Cmd {
	d.t.Helper()
	cmd := reexec.Command("service", specArg(spec))
	cmd.Env = append(cmd.Env, deskEnv+"="+d.ln.Addr().String())
	return cmd
}

// run starts what command has prepared.
func (d *desk) run(cmd *exec.Cmd) *process {
	d.t.Helper()
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	return d.adopt(cmd)
}

// adopt waits for what a started command has to say.
func (d *desk) adopt(cmd *exec.Cmd) *process {
	d.t.Helper()
	reaped := make(chan struct{})
	d.wg.Go(func() {
		_ = cmd.Wait() // the state says it all
		close(reaped)
	})
	d.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-reaped
	})
	p := d.arrival(func(p *process) bool { return p.pid == cmd.Process.Pid })
	p.cmd, p.reaped = cmd, reaped
	return p
}

// spawned waits for a process that another one has started.
func (d *desk) spawned() *process {
	d.t.Helper()
	return d.arrival(func(p *process) bool { return p.parent != os.Getpid() })
}

func specArg(spec serviceSpec) string {
	arg, err := json.Marshal(spec)
	if err != nil {
		panic(err)
	}
	return string(arg)
}

// environ is an option of launch that sets variables.
func environ(vars ...string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, vars...) }
}

// process is a service process, as its test sees it.
type process struct {
	desk   *desk
	pid    int
	parent int // the process that has started it
	conn   net.Conn
	handle *os.Process

	cmd    *exec.Cmd // nil if the test has not started it
	reaped chan struct{}
	known  bool // under desk.mu

	mu     sync.Mutex
	events []*event
	ended  bool          // it has closed its connection to the desk
	news   chan struct{} // closed and replaced whenever there is an event
	lastID int
}

// note keeps an event; nil is the end.
func (p *process) note(e *event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e == nil {
		p.ended = true
	} else {
		p.events = append(p.events, e)
	}
	close(p.news)
	p.news = make(chan struct{})
}

// find waits for the first event, not taken before, that fits.
func (p *process) find(what string, fits func(*event) bool) event {
	p.desk.t.Helper()
	timer := time.NewTimer(generous)
	defer timer.Stop()
	for {
		p.mu.Lock()
		for _, e := range p.events {
			if !e.taken && fits(e) {
				e.taken = true
				p.mu.Unlock()
				return *e
			}
		}
		news, ended := p.news, p.ended
		p.mu.Unlock()
		if ended {
			p.desk.t.Fatalf("process %d ended without %s", p.pid, what)
		}
		select {
		case <-news:
		case <-timer.C:
			p.desk.t.Fatalf("process %d: no %s", p.pid, what)
		}
	}
}

// await waits for an event, whatever its error.
func (p *process) await(name string) event {
	p.desk.t.Helper()
	return p.find(name, func(e *event) bool { return e.Name == name })
}

// expect is await for an event without an error.
func (p *process) expect(name string) event {
	p.desk.t.Helper()
	e := p.await(name)
	if e.Err != nil {
		p.desk.t.Fatalf("process %d: %s: %v", p.pid, name, e.Err)
	}
	return e
}

// awaitLog waits for a line in the process's log that has all of these parts.
func (p *process) awaitLog(parts ...string) string {
	p.desk.t.Helper()
	return p.find(fmt.Sprintf("log line with %q", parts), func(e *event) bool {
		return e.Name == "log" && containsAll(e.text(), parts)
	}).text()
}

// awaitFailure waits until the process goes on as the owner after a handoff that
// failed, and returns the line that says why, which comes first.
func (p *process) awaitFailure(parts ...string) string {
	p.desk.t.Helper()
	line := p.awaitLog(append(parts, "the handoff failed")...)
	p.find("return to the state owner", func(e *event) bool {
		return e.Name == "log" && containsAll(e.text(), []string{"msg=state", "to=owner"}) && !strings.Contains(e.text(), "from=candidate")
	})
	return line
}

// logged counts the lines so far in the process's log that have all of these
// parts.
func (p *process) logged(parts ...string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, e := range p.events {
		if e.Name == "log" && containsAll(e.text(), parts) {
			n++
		}
	}
	return n
}

// happened reports whether there was an event of that name so far.
func (p *process) happened(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.events, func(e *event) bool { return e.Name == name })
}

// address is where the socket of that name in the spec came to be.
func (p *process) address(name string) string {
	p.desk.t.Helper()
	var l listening
	e := p.find("listening "+name, func(e *event) bool {
		return e.Name == "listening" && json.Unmarshal(e.Value, &l) == nil && l.Name == name
	})
	if e.Err != nil {
		p.desk.t.Fatalf("process %d: listening %s: %v", p.pid, name, e.Err)
	}
	return l.Address
}

// answerTo is a command's answer on its way.
type answerTo struct {
	p       *process
	command string
	id      int
}

// begin has the process run a command. args is its argument, or nothing.
func (p *process) begin(command string, args ...any) answerTo {
	p.desk.t.Helper()
	var value json.RawMessage
	if len(args) > 0 {
		var err error
		if value, err = json.Marshal(args[0]); err != nil {
			p.desk.t.Fatal(err)
		}
	}
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	p.mu.Unlock()
	line, err := json.Marshal(message{Command: command, ID: id, Value: value})
	if err != nil {
		p.desk.t.Fatal(err)
	}
	if _, err := p.conn.Write(append(line, '\n')); err != nil {
		p.desk.t.Fatalf("process %d: %s: %v", p.pid, command, err)
	}
	return answerTo{p, command, id}
}

// wait returns the answer.
func (a answerTo) wait() event {
	a.p.desk.t.Helper()
	return a.p.find("answer to "+a.command, func(e *event) bool { return e.Name == "answer" && e.id == a.id })
}

// answered reports whether the answer is there.
func (a answerTo) answered() bool {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	return slices.ContainsFunc(a.p.events, func(e *event) bool { return e.Name == "answer" && e.id == a.id })
}

// try runs a command and returns its answer, which may have an error.
func (p *process) try(command string, args ...any) event {
	p.desk.t.Helper()
	return p.begin(command, args...).wait()
}

// do runs a command that must succeed.
func (p *process) do(command string, args ...any) event {
	p.desk.t.Helper()
	e := p.try(command, args...)
	if e.Err != nil {
		p.desk.t.Fatalf("process %d: %s: %v", p.pid, command, e.Err)
	}
	return e
}

// query runs a command that must succeed and returns its answer's value.
func query[T any](p *process, command string, args ...any) T {
	p.desk.t.Helper()
	var v T
	if err := json.Unmarshal(p.do(command, args...).Value, &v); err != nil {
		p.desk.t.Fatalf("process %d: %s: %v", p.pid, command, err)
	}
	return v
}

func (p *process) status() *crossfade.Status {
	p.desk.t.Helper()
	return query[*crossfade.Status](p, "status")
}

func (p *process) signal(sig os.Signal) {
	p.desk.t.Helper()
	if err := p.handle.Signal(sig); err != nil {
		p.desk.t.Fatalf("process %d: %v", p.pid, err)
	}
}

// kill ends the process, if it has not ended, and waits for that.
func (p *process) kill() {
	_ = p.handle.Kill()
	p.end()
}

// end waits until the process is gone.
func (p *process) end() {
	p.desk.t.Helper()
	timer := time.NewTimer(generous)
	defer timer.Stop()
	for {
		p.mu.Lock()
		news, ended := p.news, p.ended
		p.mu.Unlock()
		if ended {
			break
		}
		select {
		case <-news:
		case <-timer.C:
			p.desk.t.Errorf("process %d does not end", p.pid)
			return
		}
	}
	if p.reaped != nil {
		<-p.reaped
	}
}

// exitStatus waits for the end of a process that the test has started.
func (p *process) exitStatus() int {
	p.desk.t.Helper()
	p.end()
	return p.cmd.ProcessState.ExitCode()
}

// transcript is all that the process has reported.
func (p *process) transcript() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, e := range p.events {
		fmt.Fprintf(&b, "\t%s %s", e.Name, e.text())
		if e.Err != nil {
			fmt.Fprintf(&b, " error: %v", e.Err)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func containsAll(s string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(s, part) })
}

// served is what a service process says to each client.
type served struct {
	PID        int
	Generation uint64 // 0 before it was ready
}

// askOn reads one answer.
func askOn(c net.Conn) (served, error) {
	var a served
	if err := c.SetReadDeadline(time.Now().Add(generous)); err != nil {
		return a, err
	}
	// Nothing follows an answer until somebody asks again.
	var line []byte
	for b := make([]byte, 100); !bytes.HasSuffix(line, []byte("\n")) && len(line) < len(b); {
		n, err := c.Read(b)
		if err != nil {
			return a, err
		}
		line = append(line, b[:n]...)
	}
	_, err := fmt.Sscanf(string(line), "%d %d\n", &a.PID, &a.Generation)
	return a, err
}

// ask dials and reads one answer.
func ask(t testing.TB, network, address string) served {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := askOn(c)
	if err != nil {
		t.Fatalf("no answer on %s: %v", address, err)
	}
	return a
}

// session is a connection that a process has accepted.
type session struct {
	net.Conn
	t testing.TB
}

// connect dials for the length of the test, without waiting for an answer.
func connect(t testing.TB, network, address string) session {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return session{c, t}
}

// answer reads the answer that comes when the connection is accepted.
func (s session) answer() served {
	s.t.Helper()
	a, err := askOn(s.Conn)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// again asks who serves the connection.
func (s session) again() served {
	s.t.Helper()
	if _, err := io.WriteString(s.Conn, "who\n"); err != nil {
		s.t.Fatal(err)
	}
	return s.answer()
}

// load is a crowd of clients that dial, read an answer and leave, again and
// again. None of them may ever fail.
type load struct {
	t       testing.TB
	network string
	address string
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	round  int // counts what was forgiven
	counts map[int]int
	failed []error
	news   chan struct{}
}

// startLoad lets n clients dial until stop, each about every millisecond: without a
// pause they would take the processors from those whom they watch.
func startLoad(t testing.TB, network, address string, n int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, network: network, address: address, cancel: cancel, counts: make(map[int]int), news: make(chan struct{})}
	for range n {
		l.wg.Go(func() {
			pause := time.NewTicker(time.Millisecond)
			defer pause.Stop()
			for ctx.Err() == nil {
				l.once()
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

func (l *load) once() {
	l.mu.Lock()
	round := l.round
	l.mu.Unlock()
	a, err := func() (served, error) {
		c, err := net.Dial(l.network, l.address)
		if err != nil {
			return served{}, err
		}
		defer c.Close()
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a port for each would be used up soon
		}
		return askOn(c)
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if round == l.round {
			l.failed = append(l.failed, err)
		}
	} else {
		l.counts[a.PID]++
	}
	close(l.news)
	l.news = make(chan struct{})
}

// forgive drops the failures so far, and those of the clients under way: somebody
// who was serving them was killed.
func (l *load) forgive() {
	l.t.Helper()
	l.mu.Lock()
	l.round++
	l.failed = nil
	l.mu.Unlock()
}

// more waits until n more clients than by now have been answered.
func (l *load) more(n int) {
	l.t.Helper()
	l.mu.Lock()
	n += total(l.counts)
	l.mu.Unlock()
	l.until(fmt.Sprintf("%d answers", n), func() bool { return total(l.counts) >= n })
}

// servedBy waits until the process has answered a client.
func (l *load) servedBy(p *process) {
	l.t.Helper()
	l.until(fmt.Sprintf("answer of process %d", p.pid), func() bool { return l.counts[p.pid] > 0 })
}

// until waits until holds, which is called under l.mu, does.
func (l *load) until(what string, holds func() bool) {
	l.t.Helper()
	timer := time.NewTimer(generous)
	defer timer.Stop()
	for {
		l.mu.Lock()
		done, failed, news := holds(), len(l.failed), l.news
		l.mu.Unlock()
		if done {
			return
		}
		if failed > 0 {
			l.stop()
			l.t.FailNow()
		}
		select {
		case <-news:
		case <-timer.C:
			l.t.Fatalf("no %s", what)
		}
	}
}

// stop ends the load, fails the test if a client failed, and returns how many
// clients each process has answered.
func (l *load) stop() map[int]int {
	l.t.Helper()
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		l.t.Errorf("%d clients failed, the first with: %v", len(l.failed), l.failed[0])
	}
	return maps.Clone(l.counts)
}

func total(counts map[int]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}

// From here on is what runs in the service process.

func init() { processes["service"] = runService }

// service is a service process, as it sees itself.
type service struct {
	spec serviceSpec
	upg  *crossfade.Upgrader

	generation atomic.Uint64
	exclusive  *exclusive      // nil without one
	ctx        context.Context // ends when the process is about to exit
	quit       chan struct{}   // closed by the command "quit"
	sick       atomic.Bool     // the watchdog's answer
	commands   sync.WaitGroup
	conns      sync.WaitGroup

	mu      sync.Mutex
	sockets map[string]io.Closer
	command *commandSpec // of the next successor

	out  sync.Mutex // held while a line is written
	desk net.Conn
}

// listening is the value of the event of that name.
type listening struct{ Name, Address string }

// serviceCommands are what a test can have a service process do. value is the
// argument. They run concurrently, each in a goroutine of its own, not before New
// has returned.
var serviceCommands = map[string]func(s *service, value json.RawMessage) (any, error){
	"listen": func(s *service, value json.RawMessage) (any, error) {
		var spec socketSpec
		if err := json.Unmarshal(value, &spec); err != nil {
			return nil, err
		}
		return s.open(spec)
	},
	"close": func(s *service, value json.RawMessage) (any, error) {
		name, err := text(value)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		socket := s.sockets[name]
		delete(s.sockets, name)
		s.mu.Unlock()
		if socket == nil {
			return nil, fmt.Errorf("nothing is called %q", name)
		}
		return nil, socket.Close()
	},
	"remove": func(s *service, value json.RawMessage) (any, error) {
		name, err := text(value)
		if err != nil {
			return nil, err
		}
		return nil, s.upg.Fds().Remove(name)
	},
	"ready": func(s *service, _ json.RawMessage) (any, error) { return nil, s.ready() },
	"progress": func(s *service, value json.RawMessage) (any, error) {
		var p progressArgs
		if err := json.Unmarshal(value, &p); err != nil {
			return nil, err
		}
		s.upg.Progress(p.Status, p.Extend)
		return done, nil
	},
	// settle and rollback take how long they may last; null: as long as it takes.
	"settle": func(s *service, value json.RawMessage) (any, error) {
		ctx, cancel, err := s.within(value)
		if err != nil {
			return nil, err
		}
		defer cancel()
		return done, s.upg.Settle(ctx)
	},
	"rollback": func(s *service, value json.RawMessage) (any, error) {
		ctx, cancel, err := s.within(value)
		if err != nil {
			return nil, err
		}
		defer cancel()
		return done, s.upg.Rollback(ctx, "not good enough")
	},
	"stop":   func(s *service, _ json.RawMessage) (any, error) { s.upg.Stop(); return done, nil },
	"status": func(s *service, _ json.RawMessage) (any, error) { return s.upg.Status(), nil },
	"state":  func(s *service, _ json.RawMessage) (any, error) { return s.upg.State().String(), nil },
	// upgrade takes the commandSpec of the successor; null: what the spec says.
	"upgrade": func(s *service, value json.RawMessage) (any, error) {
		if len(value) > 0 {
			var c *commandSpec
			if err := json.Unmarshal(value, &c); err != nil {
				return nil, err
			}
			s.mu.Lock()
			s.command = c
			s.mu.Unlock()
		}
		return nil, s.upg.Upgrade(s.ctx)
	},
	// resources counts what the process has.
	"resources": func(*service, json.RawMessage) (any, error) {
		runtime.GC() // finalizers close what was forgotten: that would be a leak too, but not a growing one
		return resources{Descriptors: openDescriptors(), Goroutines: runtime.NumGoroutine()}, nil
	},
	"environ": func(*service, json.RawMessage) (any, error) {
		return slices.DeleteFunc(os.Environ(), func(kv string) bool { return !strings.HasPrefix(kv, "CROSSFADE_") }), nil
	},
	// nofile sets the soft RLIMIT_NOFILE.
	"nofile": func(_ *service, value json.RawMessage) (any, error) {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(value, &limit.Cur); err != nil {
			return nil, err
		}
		return done, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	},
	"sicken": func(s *service, _ json.RawMessage) (any, error) {
		s.sick.Store(true)
		return done, nil
	},
	"quit": func(s *service, _ json.RawMessage) (any, error) {
		close(s.quit)
		return done, nil
	},
}

// within is a context that ends after the duration in value, if there is one.
func (s *service) within(value json.RawMessage) (context.Context, context.CancelFunc, error) {
	var limit time.Duration
	if len(value) > 0 {
		if err := json.Unmarshal(value, &limit); err != nil {
			return nil, nil, err
		}
	}
	if limit == 0 {
		ctx, cancel := context.WithCancel(s.ctx)
		return ctx, cancel, nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	return ctx, cancel, nil
}

// done is the answer of a command that has no other.
const done = "done"

// progressArgs is the argument of the command "progress".
type progressArgs struct {
	Status string
	Extend time.Duration
}

// resources is the answer to the command of that name.
type resources struct{ Descriptors, Goroutines int }

// openDescriptors counts by asking, which itself opens nothing.
func openDescriptors() int {
	n := 0
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	for fd := range int(min(limit.Cur, 1<<15)) {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}

func text(value json.RawMessage) (s string, err error) {
	err = json.Unmarshal(value, &s)
	return s, err
}

func runService() {
	s := &service{quit: make(chan struct{}), sockets: make(map[string]io.Closer)}
	check(json.Unmarshal([]byte(os.Args[1]), &s.spec))
	s.command = s.spec.Command
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.Background())
	var err error
	s.desk, err = net.Dial("unix", os.Getenv(deskEnv))
	check(err)
	s.write(message{PID: os.Getpid(), ID: os.Getppid()})
	s.limit()

	s.upg, err = crossfade.New(s.ctx, s.config())
	s.emit("new", err, nil)
	if err != nil {
		os.Exit(1)
	}
	s.generation.Store(s.upg.Status().Process.Generation)
	go s.obey()
	go s.report("settled", s.upg.Settled())
	go func() {
		if s.upg.HasPredecessor() && s.upg.WaitForPredecessor(s.ctx) == nil {
			s.emit("gone", nil, nil)
		}
	}()
	for _, spec := range s.spec.Sockets {
		l, err := s.open(spec)
		if err != nil {
			l = listening{Name: spec.Name}
		}
		s.emit("listening", err, l)
	}
	if s.spec.Ready {
		if err := s.ready(); err != nil && !s.spec.Linger {
			cancel()
			s.commands.Wait()
			os.Exit(1)
		}
	}
	<-s.upg.Exit()
	s.emit("exit", s.upg.Err(), nil)
	if s.spec.Linger {
		<-s.quit
	}
	s.mu.Lock()
	for _, socket := range s.sockets {
		check(socket.Close())
	}
	s.mu.Unlock()
	s.drain()
	if s.spec.Park {
		s.park()
	}
	s.upg.Stop()
	cancel()
	s.commands.Wait()
	switch err := s.upg.Err(); {
	case errors.Is(err, crossfade.ErrRolledBack):
		os.Exit(crossfade.ExitRolledBack)
	case !errors.Is(err, crossfade.ErrRetired) && !errors.Is(err, crossfade.ErrStopped):
		os.Exit(1)
	}
}

// drain returns when nothing is open any more, or when it must end.
func (s *service) drain() {
	idle := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(idle)
	}()
	ctx, cancel := s.upg.DrainContext(s.ctx)
	defer cancel()
	ended := ctx.Done()
	if s.spec.KeepDraining {
		ended = nil
	}
	select {
	case <-idle:
	case <-ended:
		s.emit("drained", context.Cause(ctx), nil)
	}
}

// park stays until the command "quit".
func (s *service) park() {
	s.emit("parking", nil, nil)
	ctx, cancel := context.WithCancel(s.ctx)
	go func() {
		<-s.quit
		cancel()
	}()
	crossfade.Park(ctx)
	s.emit("unparked", nil, nil)
}

func (s *service) limit() {
	if n := s.spec.NoFile; n != 0 {
		check(setNoFile(n))
	}
	if s.spec.Umask != 0 {
		unix.Umask(s.spec.Umask)
	}
}

func (s *service) config() *crossfade.Config {
	spec := s.spec
	cfg := &crossfade.Config{
		Socket: spec.Socket, SocketMode: spec.SocketMode, SocketGroup: spec.SocketGroup, ReadGroup: spec.ReadGroup,
		Instance: spec.Instance, BuildVersion: spec.BuildVersion, Epoch: spec.Epoch,
		DialTimeout: spec.DialTimeout, Wait: spec.Wait, ReadyTimeout: spec.ReadyTimeout,
		MaxReadyTimeout: spec.MaxReadyTimeout, CommitTimeout: spec.CommitTimeout, DrainTimeout: spec.DrainTimeout,
		Probation: spec.Probation, MaxProbation: spec.MaxProbation, AtProbationEnd: spec.AtProbationEnd,
		MaxDraining: spec.MaxDraining, KillOverdue: spec.KillOverdue,
		RequireAllClaimed: spec.RequireAllClaimed, PIDFile: spec.PIDFile, Disabled: spec.Disabled,
		FDStore: spec.FDStore, IgnoreServiceManager: spec.IgnoreManager,
		Logger: slog.New(slog.NewTextHandler(writerFunc(s.log), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if spec.KeepAlive != nil {
		cfg.ListenConfig = &net.ListenConfig{KeepAliveConfig: *spec.KeepAlive}
	}
	if spec.Watchdog {
		cfg.Watchdog = func(context.Context) error {
			s.emit("watchdog", nil, nil)
			if s.sick.Load() {
				return errors.New("this process is sick")
			}
			return nil
		}
	}
	if spec.OnDrainTimeout {
		cfg.OnDrainTimeout = func() { s.emit("overstay", nil, nil) }
	}
	if spec.Refuse != "" {
		cfg.AcceptSuccessor = func(context.Context, crossfade.Successor) error { return errors.New(spec.Refuse) }
	}
	if spec.Events {
		cfg.OnEvent = func(e crossfade.Event) {
			var err error
			if e.Failure != nil {
				err, e.Failure = e.Failure.Err, nil // an interface does not come back from JSON
			}
			s.emit("event", err, e)
		}
	}
	if spec.Exclusive != "" {
		s.exclusive = &exclusive{s: s, path: spec.Exclusive}
		cfg.Suspend, cfg.Resume = s.exclusive.suspend, s.exclusive.resume
	}
	if !spec.DefaultCommand {
		cfg.Command = s.makeCommand
	}
	return cfg
}

// tied has a command die with the process that starts it, where the system can.
var tied *syscall.SysProcAttr

// makeCommand is Config.Command.
func (s *service) makeCommand(ctx context.Context) (*exec.Cmd, error) {
	s.emit("spawn", nil, nil)
	s.mu.Lock()
	c := s.command
	s.mu.Unlock()
	if c == nil {
		c = &commandSpec{Args: os.Args[1:]}
	}
	if c.Fails != "" {
		return nil, errors.New(c.Fails)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := c.Args
	switch {
	case c.Spec != nil:
		args = []string{specArg(*c.Spec)}
	case args == nil && c.Path == "":
		args = os.Args[1:]
	}
	if !c.Bound {
		ctx = context.Background()
	}
	cmd := exec.CommandContext(ctx, cmp.Or(c.Path, exe), args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if c.NoDesk {
		cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, deskEnv+"=") })
	}
	if c.Tied {
		cmd.SysProcAttr = tied
	}
	for range c.Pipes {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		_ = w.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	}
	return cmd, nil
}

// ready calls Ready and reports it.
func (s *service) ready() error {
	err := s.upg.Ready(s.ctx)
	if err == nil {
		s.generation.Store(s.upg.Status().Process.Generation)
	}
	s.emit("ready", err, nil)
	return err
}

// open opens one socket and serves it.
func (s *service) open(spec socketSpec) (listening, error) {
	if strings.HasPrefix(spec.Network, "udp") || spec.Network == "unixgram" {
		return s.openPacket(spec)
	}
	var ln net.Listener
	var err error
	if spec.ReusePort {
		ln, err = s.upg.ListenFunc(s.ctx, spec.Name, spec.Network, spec.Address, func(ctx context.Context) (net.Listener, error) {
			return reusePort.Listen(ctx, spec.Network, spec.Address)
		})
	} else {
		ln, err = s.upg.Listen(s.ctx, spec.Name, spec.Network, spec.Address)
	}
	if err != nil {
		return listening{}, err
	}
	s.keep(spec.Name, ln)
	switch {
	case spec.Idle:
	case spec.HTTP:
		s.serveHTTP(spec.Name, ln)
	default:
		s.conns.Add(1)
		go s.serve(spec.Name, ln)
	}
	return listening{spec.Name, ln.Addr().String()}, nil
}

func (s *service) openPacket(spec socketSpec) (listening, error) {
	pc, err := s.upg.ListenPacket(s.ctx, spec.Name, spec.Network, spec.Address)
	if err != nil {
		return listening{}, err
	}
	server := &packetServer{PacketConn: pc, done: make(chan struct{})}
	s.keep(spec.Name, server)
	if spec.Idle {
		close(server.done)
	} else {
		go s.servePackets(server)
	}
	return listening{spec.Name, pc.LocalAddr().String()}, nil
}

func (s *service) keep(name string, socket io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets[name] = socket
}

// serve answers every connection, and reports how Accept ended.
func (s *service) serve(name string, ln net.Listener) {
	defer s.conns.Done() // of the caller: no Wait may come between accept(2) and the Add below
	for {
		c, err := ln.Accept()
		if err != nil {
			s.emit("accept "+name, err, nil)
			return
		}
		s.conns.Go(func() {
			defer c.Close()
			lines := bufio.NewScanner(c)
			for {
				if _, err := fmt.Fprintf(c, "%d %d\n", os.Getpid(), s.generation.Load()); err != nil || !lines.Scan() {
					return
				}
			}
		})
	}
}

// serveHTTP has an http.Server serve ln, and reports whatever it complains of as
// "http <name>": a line that it logs, or the end of Serve before Shutdown.
func (s *service) serveHTTP(name string, ln net.Listener) {
	complain := func(text string) { s.emit("http "+name, nil, text) }
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "%d %d\n", os.Getpid(), s.generation.Load())
		}),
		ErrorLog: slog.NewLogLogger(slog.NewTextHandler(writerFunc(complain), nil), slog.LevelError),
	}
	s.keep(name, httpCloser{srv})
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			complain(err.Error())
		}
	}()
}

// httpCloser shuts a server down.
type httpCloser struct{ srv *http.Server }

func (c httpCloser) Close() error { return c.srv.Shutdown(context.Background()) }

// writerFunc gets each line.
type writerFunc func(line string)

func (f writerFunc) Write(line []byte) (int, error) {
	f(strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

// packetServer is a packet conn that is closed when every packet which was read
// has its answer.
type packetServer struct {
	net.PacketConn
	done chan struct{}
}

func (p *packetServer) Close() error {
	_ = p.SetReadDeadline(time.Unix(1, 0)) // after Exit it has ended already
	<-p.done
	return p.PacketConn.Close()
}

// servePackets answers every packet with an answer and the packet.
func (s *service) servePackets(pc *packetServer) {
	defer close(pc.done)
	buf := make([]byte, 1<<16)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		// A client that has left is no reason to stop.
		_, _ = pc.WriteTo(fmt.Appendf(nil, "%d %d\n%s", os.Getpid(), s.generation.Load(), buf[:n]), from)
	}
}

// obey runs the desk's commands. The process ends with its desk.
func (s *service) obey() {
	in := json.NewDecoder(s.desk)
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			os.Exit(3)
		}
		s.commands.Go(func() {
			run, ok := serviceCommands[m.Command]
			if !ok {
				check(fmt.Errorf("no command is called %q", m.Command))
			}
			value, err := run(s, m.Value)
			s.write(message{Event: "answer", ID: m.ID, Failure: remote(err), Value: encode(value)})
		})
	}
}

// report tells of the close of a channel.
func (s *service) report(name string, closed <-chan struct{}) {
	select {
	case <-closed:
		s.emit(name, nil, nil)
	case <-s.ctx.Done():
	}
}

// log reports a line. Who logs it is the library's machine, which goes no further
// where the process is to stop.
func (s *service) log(line string) {
	s.emit("log", nil, line)
	if s.spec.StopAt != "" && strings.Contains(line, s.spec.StopAt) {
		check(syscall.Kill(os.Getpid(), syscall.SIGSTOP))
		select {} // it may go on for an instant
	}
}

func (s *service) emit(name string, err error, value any) {
	s.write(message{Event: name, Failure: remote(err), Value: encode(value)})
}

func (s *service) write(m message) {
	line, err := json.Marshal(m)
	check(err)
	s.out.Lock()
	defer s.out.Unlock()
	if _, err := s.desk.Write(append(line, '\n')); err != nil {
		os.Exit(3) // the test has ended
	}
}

func encode(value any) json.RawMessage {
	if value == nil {
		return nil
	}
	raw, err := json.Marshal(value)
	check(err)
	return raw
}

// reusePort opens sockets that others may share.
var reusePort = net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, failed)
}}

func setNoFile(n uint64) error {
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	setLimit(&limit.Cur, n)
	setLimit(&limit.Max, n)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

// setLimit sets a limit, whose type differs between systems.
func setLimit[T int64 | uint64](field *T, n uint64) { *field = T(n) }

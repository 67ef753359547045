package fakemanager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// Access is NotifyAccess= of the unit, systemd.service(5).
type Access int

const (
	// Main is a manager that hears the main process only, and drops what others say.
	Main Access = iota
	// All is one that hears everybody; they all count as processes of the unit.
	All
)

// Config is what the unit file says. The zero value is a plain Type=notify unit.
type Config struct {
	Access   Access
	StoreMax int           // FileDescriptorStoreMax=
	Watchdog time.Duration // WatchdogSec=
	Sockets  []Socket      // of its socket units, passed to every process that is started; they remain the caller's

	// Address is an abstract name that begins with @; by default the socket is a
	// file in a directory of its own.
	Address string

	// HoldBarriers has no barrier answered before [Manager.ReleaseBarriers].
	HoldBarriers bool
}

// Socket is a descriptor with the name that the manager knows it by.
type Socket struct {
	Name string
	FD   *scm.FD
}

// Message is one datagram.
type Message struct {
	PID, UID    int      // of the sender, by the kernel's account
	Lines       []string // READY=1, STATUS=serving, ...
	Descriptors int      // how many came with it
	Heard       bool     // false: dropped, because of [Config].Access
	Main        int      // the main process when the manager has acted on it
}

// Has reports whether the message has a line; one that ends in an equals sign
// stands for any value.
func (m Message) Has(line string) bool {
	return slices.ContainsFunc(m.Lines, func(have string) bool {
		return have == line || strings.HasSuffix(line, "=") && strings.HasPrefix(have, line)
	})
}

// Value returns the value of a field, "" if it is not there.
func (m Message) Value(field string) string {
	for _, line := range m.Lines {
		if v, ok := strings.CutPrefix(line, field+"="); ok {
			return v
		}
	}
	return ""
}

// String is the message on one line.
func (m Message) String() string {
	s := fmt.Sprintf("pid %d: %s", m.PID, strings.Join(m.Lines, " "))
	if m.Descriptors > 0 {
		s += fmt.Sprintf(" (%d descriptors)", m.Descriptors)
	}
	if !m.Heard {
		s += fmt.Sprintf(" (dropped, the main process is %d)", m.Main)
	}
	return s
}

// limit is how long an expected message may take. Nothing waits for it to pass
// but a test that fails.
const limit = time.Minute

// Manager is a service manager with one unit. Its methods that may fail the test
// are for the test's goroutine.
type Manager struct {
	t       testing.TB
	cfg     Config
	address string
	done    sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change of what follows
	conn     *net.UnixConn // nil between Down and Up
	reading  bool          // the reader may be in the middle of a message
	paused   bool
	main     int
	messages []Message
	given    int // how many of them Next and Await have gone through
	store    []stored
	barriers []*scm.FD // held back
}

type stored struct {
	name string
	fd   *scm.FD
	id   scm.Identity
	poll bool
}

// New starts a manager, which ends with the test. cfg may be nil.
func New(t testing.TB, cfg *Config) *Manager {
	t.Helper()
	m := &Manager{t: t, changed: make(chan struct{})}
	if cfg != nil {
		m.cfg = *cfg
	}
	m.address = m.cfg.Address
	if m.address == "" {
		// The paths of t.TempDir are too long for a socket.
		dir, err := os.MkdirTemp("", "manager")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		m.address = filepath.Join(dir, "notify")
	}
	t.Cleanup(m.end)
	m.Up()
	return m
}

func (m *Manager) end() {
	m.Resume()
	m.Down()
	m.ReleaseBarriers()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.store {
		s.fd.Close()
	}
}

// Address is what NOTIFY_SOCKET has.
func (m *Manager) Address() string { return m.address }

// Up binds the notification socket, after Down: a manager that is there again.
func (m *Manager) Up() {
	m.t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var optErr error
		err := c.Control(func(fd uintptr) {
			optErr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1)
		})
		return errors.Join(err, optErr)
	}}
	pc, err := lc.ListenPacket(context.Background(), "unixgram", m.address)
	if err != nil {
		m.t.Fatal(err)
	}
	conn := pc.(*net.UnixConn)
	m.mu.Lock()
	m.conn = conn
	m.mu.Unlock()
	m.done.Go(func() { m.read(conn) })
}

// Down closes the notification socket and removes its file: a manager that is
// not there. What it has not read is lost.
func (m *Manager) Down() {
	m.mu.Lock()
	conn := m.conn
	m.conn = nil
	m.change()
	m.mu.Unlock()
	if conn == nil {
		return
	}
	conn.Close()
	m.done.Wait()
	m.mu.Lock()
	m.reading = false
	m.mu.Unlock()
	if !strings.HasPrefix(m.address, "@") {
		os.Remove(m.address)
	}
}

// Pause has the manager hang: it reads nothing more until Resume, and its queue
// fills up.
func (m *Manager) Pause() {
	m.t.Helper()
	m.mu.Lock()
	m.paused = true
	if m.conn != nil {
		m.conn.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // it shows at the next line
	}
	m.mu.Unlock()
	m.until("the manager to stand still", func() bool { return !m.reading })
}

// Resume ends Pause.
func (m *Manager) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = false
	if m.conn != nil {
		m.conn.SetReadDeadline(time.Time{}) //nolint:errcheck // a socket that is closed is not read
	}
	m.change()
}

// ReleaseBarriers answers what [Config].HoldBarriers has held back, and answers at
// once from now on.
func (m *Manager) ReleaseBarriers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cfg.HoldBarriers = false
	for _, fd := range m.barriers {
		fd.Close()
	}
	m.barriers = nil
}

// SetMain says which process is the main one, as if the manager had started it.
func (m *Manager) SetMain(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.main = pid
	m.change()
}

// Main is the pid of the main process.
func (m *Manager) Main() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.main
}

// Store is the names of what is stored, in the order in which it came.
func (m *Manager) Store() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prune()
	var names []string
	for _, s := range m.store {
		names = append(names, s.name)
	}
	return names
}

// AwaitStore waits until exactly these names are stored, in any order.
func (m *Manager) AwaitStore(names ...string) {
	m.t.Helper()
	slices.Sort(names)
	m.until(fmt.Sprintf("%q to be stored", names), func() bool {
		var have []string
		for _, s := range m.store {
			have = append(have, s.name)
		}
		slices.Sort(have)
		return slices.Equal(have, names)
	})
}

// Messages is everything that has come so far, barriers and what was dropped
// included.
func (m *Manager) Messages() []Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.messages)
}

// Next waits for the next message that neither Next nor Await has gone through.
func (m *Manager) Next() Message {
	m.t.Helper()
	return m.next("a message", func(Message) bool { return true })
}

// Await goes through the messages up to the first that was heard and has all
// these lines, see [Message.Has].
func (m *Manager) Await(lines ...string) Message {
	m.t.Helper()
	return m.next(strings.Join(lines, " "), func(msg Message) bool {
		return msg.Heard && !slices.ContainsFunc(lines, func(line string) bool { return !msg.Has(line) })
	})
}

func (m *Manager) next(what string, match func(Message) bool) (found Message) {
	m.t.Helper()
	m.until(what, func() bool {
		for m.given < len(m.messages) {
			found = m.messages[m.given]
			m.given++
			if match(found) {
				return true
			}
		}
		return false
	})
	return found
}

// until waits for something, which is looked at under m.mu.
func (m *Manager) until(what string, done func() bool) {
	m.t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		m.mu.Lock()
		ok, changed := done(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			var log strings.Builder
			for _, msg := range m.Messages() {
				fmt.Fprintf(&log, "\n\t%v", msg)
			}
			m.t.Fatalf("waited for %s; the manager has got%s", what, log.String())
		}
	}
}

// change wakes up those who wait. m.mu is held.
func (m *Manager) change() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Environ is the part of a process's environment that the manager would set, less
// what names the process or its descriptors: [Manager.Start] adds that.
func (m *Manager) Environ() []string {
	env := []string{"NOTIFY_SOCKET=" + m.address}
	if m.cfg.Watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(m.cfg.Watchdog.Microseconds(), 10))
	}
	if m.cfg.StoreMax > 0 {
		env = append(env, "FDSTORE="+strconv.Itoa(m.cfg.StoreMax))
	}
	return env
}

// variables are those that a manager sets.
var variables = []string{
	"NOTIFY_SOCKET=", "LISTEN_PID=", "LISTEN_PIDFDID=", "LISTEN_FDS=", "LISTEN_FDNAMES=",
	"WATCHDOG_USEC=", "WATCHDOG_PID=", "FDSTORE=",
}

// Start starts cmd as the unit's main process, with the sockets of [Config] and
// with what is stored. Its ExtraFiles must be empty. The caller waits for it.
//
// Only the process itself knows the pid that LISTEN_PID must have, so a shell sets
// it and then becomes the command.
func (m *Manager) Start(cmd *exec.Cmd) {
	m.t.Helper()
	if cmd.Err != nil {
		m.t.Fatal(cmd.Err)
	}
	// What the process says is looked at when it is known to be the main one.
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prune()
	var names []string
	for _, s := range m.passed() {
		file, err := s.FD.File(s.Name)
		if err != nil {
			m.t.Fatal(err)
		}
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
		names = append(names, s.Name)
	}
	env := slices.DeleteFunc(cmd.Environ(), func(kv string) bool {
		return slices.ContainsFunc(variables, func(name string) bool { return strings.HasPrefix(kv, name) })
	})
	env = append(env, m.Environ()...)
	var script string
	if len(names) > 0 {
		env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		script += "export LISTEN_PID=$$; "
	}
	if m.cfg.Watchdog > 0 {
		script += "export WATCHDOG_PID=$$; "
	}
	cmd.Env = env
	cmd.Args = append([]string{"sh", "-c", script + `exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.main = cmd.Process.Pid
	m.change()
}

// passed is what a process gets: sockets first, then what is stored.
func (m *Manager) passed() []Socket {
	all := slices.Clone(m.cfg.Sockets)
	for _, s := range m.store {
		if !slices.ContainsFunc(all, func(have Socket) bool {
			id, err := have.FD.Identify()
			return err == nil && id == s.id
		}) {
			all = append(all, Socket{s.name, s.fd})
		}
	}
	return all
}

// prune drops what has hung up.
func (m *Manager) prune() {
	m.store = slices.DeleteFunc(m.store, func(s stored) bool {
		if !s.poll || !s.fd.HungUp() {
			return false
		}
		s.fd.Close()
		return true
	})
}

package crossfade_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// These tests have service processes meet a service manager. It is a fake, which
// hears the main process only, as systemd does unless the unit says otherwise;
// those against a real one are below e2e.

// unitEnv is the unit of a process that is in another one than its test. A control
// group of its own would take a machine of its own.
const unitEnv = "TEST_CROSSFADE_UNIT"

func init() {
	own := os.Getenv(unitEnv)
	if own != "" {
		crossfade.SetSameUnit(func(pid int) (bool, error) {
			environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
			return slices.Contains(strings.Split(string(environ), "\x00"), unitEnv+"="+own), err
		})
	}
	serviceCommands["manager variables"] = func(*service, json.RawMessage) (any, error) {
		var found []string
		for _, kv := range os.Environ() {
			for _, prefix := range []string{"NOTIFY_", "LISTEN_", "WATCHDOG_", "FDSTORE="} {
				if strings.HasPrefix(kv, prefix) {
					found = append(found, kv)
				}
			}
		}
		return found, nil
	}
	// speaks sends the program's own word to the manager.
	serviceCommands["speak"] = func(s *service, value json.RawMessage) (any, error) {
		line, err := text(value)
		if err != nil {
			return nil, err
		}
		name, word, _ := strings.Cut(line, "=")
		return s.upg.Notifier() != nil, s.upg.Notifier().Send(s.ctx, newField(name, word))
	}
}

// startedBy starts a service process as the main one of the manager's unit.
func (d *desk) startedBy(m *fakemanager.Manager, spec serviceSpec, options ...func(*exec.Cmd)) *process {
	d.t.Helper()
	cmd := d.command(spec)
	for _, option := range options {
		option(cmd)
	}
	m.Start(cmd)
	return d.adopt(cmd)
}

// unitSpec is a service that the rows begin with.
func unitSpec(d *desk) serviceSpec {
	return serviceSpec{Socket: d.path("control"), BuildVersion: "v1", Sockets: []socketSpec{tcpSpec("web")}, Ready: true}
}

// sayings are the messages that are not only a status, in their order.
func sayings(m *fakemanager.Manager) (said []string) {
	for _, msg := range m.Messages() {
		lines := slices.DeleteFunc(slices.Clone(msg.Lines), func(line string) bool {
			return strings.HasPrefix(line, "STATUS=") || strings.HasPrefix(line, "MONOTONIC_USEC=") ||
				strings.HasPrefix(line, "EXTEND_TIMEOUT_USEC=") || line == "WATCHDOG=1"
		})
		if len(lines) > 0 {
			said = append(said, fmt.Sprintf("%d %s", msg.PID, strings.Join(lines, " ")))
		}
	}
	return said
}

func wantSayings(t *testing.T, m *fakemanager.Manager, want ...string) {
	t.Helper()
	if got := sayings(m); !slices.Equal(got, want) {
		t.Errorf("the manager was told\n\t%s\nand not\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// awaitMessage waits for the message that the manager has heard with all of these
// lines, and returns its status.
func awaitUnitStatus(m *fakemanager.Manager, parts ...string) string {
	for {
		if status := m.Await("STATUS=").Value("STATUS"); containsAll(status, parts) {
			return status
		}
	}
}

// awaitAll waits until the manager has heard each of these lines from the process,
// in whatever order.
func awaitAll(m *fakemanager.Manager, p *process, lines ...string) {
	for len(lines) > 0 {
		msg := m.Next()
		if msg.Heard && msg.PID == p.pid {
			lines = slices.DeleteFunc(lines, msg.Has)
		}
	}
}

func TestManagerIsToldOfTheFirstProcess(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	spec := unitSpec(d)
	spec.Ready = false
	p := d.startedBy(m, spec)
	p.address("web")
	awaitUnitStatus(m, "starting")
	p.do("progress", progressArgs{Status: "loading\ncaches", Extend: 7 * time.Second})
	if msg := m.Await("EXTEND_TIMEOUT_USEC=7000000"); msg.Value("STATUS") != "starting: loading caches" {
		t.Errorf("progress is %v", msg)
	}
	if vars := query[[]string](p, "manager variables"); len(vars) > 0 {
		t.Errorf("the environment still has %q", vars)
	}
	wantSayings(t, m)
	p.do("ready")
	if msg := m.Await("READY=1"); msg.Value("STATUS") != "serving, generation 1, v1" {
		t.Errorf("ready is %v", msg)
	}
	if !query[bool](p, "speak", "X_MOOD=fine") {
		t.Error("the main process has no notifier")
	}
	m.Await("X_MOOD=fine")
	p.do("stop")
	if msg := m.Await("STOPPING=1"); msg.Value("STATUS") != "stopping" {
		t.Errorf("stopping is %v", msg)
	}
	wantExit(t, p, crossfade.ErrStopped)
	pid := strconv.Itoa(p.pid)
	wantSayings(t, m, pid+" READY=1", pid+" X_MOOD=fine", pid+" STOPPING=1")
}

// A successor in the same unit is the main process from Retired on, and not before:
// what it says before nobody would hear, and if it died the unit would.
func TestManagerIsToldOfASuccessorAtRetired(t *testing.T) {
	for name, begin := range map[string]func(*desk, *process, serviceSpec) *process{
		"by Upgrade": func(d *desk, old *process, spec serviceSpec) *process {
			old.do("upgrade", &commandSpec{Spec: &spec})
			return d.spawned()
		},
		// As crossfade run starts it, in a control process that has no NOTIFY_SOCKET.
		"by another": func(d *desk, _ *process, spec serviceSpec) *process { return d.launch(spec) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			m := fakemanager.New(t, &fakemanager.Config{Watchdog: time.Hour})
			spec := unitSpec(d)
			spec.Linger = true
			old := d.startedBy(m, spec)
			awaitAll(m, old, "READY=1", "WATCHDOG=1")
			second := spec
			second.BuildVersion, second.Probation = "v2", time.Hour
			next := begin(d, old, second)
			next.expect("ready")
			awaitUnitStatus(m, "v2 (pid "+strconv.Itoa(next.pid)+")", "serves on probation until", "standing by")
			if main := m.Main(); main != old.pid {
				t.Fatalf("on probation %d is the main process, and not %d", main, old.pid)
			}
			next.do("settle")
			old.await("exit")
			if main := m.Main(); main != next.pid {
				t.Errorf("when the old process may exit %d is the main one", main)
			}
			m.Await("MAINPID=" + strconv.Itoa(next.pid))
			m.Await("BARRIER=1")
			awaitAll(m, next, "WATCHDOG=1", "READY=1", "STATUS=serving, generation 2, v2")
			if query[bool](old, "speak", "X_MOOD=replaced") {
				t.Error("a process that is the main one no longer has a notifier")
			}
			old.do("quit")
			if status := old.exitStatus(); status != 0 {
				t.Errorf("the old process exits with %d", status)
			}
			if vars := query[[]string](next, "manager variables"); len(vars) > 0 {
				t.Errorf("the environment still has %q", vars)
			}
			// And the next handoff begins with the new one.
			third := spec
			third.BuildVersion, third.Linger = "v3", false
			next.do("upgrade", &commandSpec{Spec: &third})
			last := d.spawned()
			last.expect("ready")
			last.do("settle")
			m.Await("MAINPID=" + strconv.Itoa(last.pid))
			m.Await("MAINPID=" + strconv.Itoa(last.pid)) // by itself, to say that it goes on
			last.do("stop")
			if msg := m.Await("STOPPING=1"); msg.PID != last.pid {
				t.Errorf("%v", msg)
			}
			for _, msg := range m.Messages() {
				if !msg.Heard {
					t.Errorf("nobody heard %v", msg)
				}
			}
		})
	}
}

// The order is what the end of the old process depends on.
func TestManagerConfirmsBeforeExit(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, &fakemanager.Config{HoldBarriers: true})
	spec := unitSpec(d)
	old := d.startedBy(m, spec)
	m.Await("READY=1")
	next := d.launch(spec)
	next.expect("settled") // it has read Retired
	m.Await("MAINPID=" + strconv.Itoa(next.pid))
	m.Await("BARRIER=1")
	if old.happened("exit") {
		t.Error("the old process may exit before the manager has confirmed its successor")
	}
	m.ReleaseBarriers()
	wantExit(t, old, crossfade.ErrRetired)
	awaitUnitStatus(m, "serving, generation 2")
}

func newField(name, value string) systemd.State { return systemd.Field(name, value) }

var _ = []any{bytes.MinRead, io.EOF, net.ErrClosed, syscall.EINVAL, scm.MaxPath}

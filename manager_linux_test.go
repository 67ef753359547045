package crossfade_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/internal/reexec"
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
			return strings.HasPrefix(line, "STATUS=") || strings.HasPrefix(line, "MONOTONIC_USEC=") || strings.HasPrefix(line, "MAINPIDFDID=") ||
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

// awaitUnitStatus waits for a status that has all of these parts, and returns it.
func awaitUnitStatus(m *fakemanager.Manager, parts ...string) string {
	for {
		if status := m.Await("STATUS=").Value("STATUS"); containsAll(status, parts) {
			return status
		}
	}
}

// awaitAll waits until the manager has heard each of these lines from the process,
// in whatever order. One that begins with ~ is a part of a status.
func awaitAll(m *fakemanager.Manager, p *process, lines ...string) {
	for len(lines) > 0 {
		msg := m.Next()
		if msg.Heard && msg.PID == p.pid {
			lines = slices.DeleteFunc(lines, func(line string) bool {
				part, ok := strings.CutPrefix(line, "~")
				return msg.Has(line) || ok && strings.Contains(msg.Value("STATUS"), part)
			})
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
			m.Await(mainProcess(t, next.pid)...)
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
			m.Await(mainProcess(t, last.pid)...)
			m.Await(mainProcess(t, last.pid)...) // by itself, to say that it goes on
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

// mainProcess is what names a process as the main one: its number and, where the
// kernel has one, what no other process ever has.
func mainProcess(t *testing.T, pid int) []string {
	t.Helper()
	lines := []string{"MAINPID=" + strconv.Itoa(pid)}
	id, err := scm.PidfdIDOf(pid)
	if err != nil {
		t.Logf("only the number can be compared: %v", err)
		return lines
	}
	return append(lines, "MAINPIDFDID="+strconv.FormatUint(id, 10))
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
	m.Await(mainProcess(t, next.pid)...)
	m.Await("BARRIER=1")
	if old.happened("exit") {
		t.Error("the old process may exit before the manager has confirmed its successor")
	}
	m.ReleaseBarriers()
	wantExit(t, old, crossfade.ErrRetired)
	awaitUnitStatus(m, "serving, generation 2")
}

// A process that is replaced before its own predecessor has named it passes the
// part on when it comes.
func TestManagerFollowsAChain(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, &fakemanager.Config{HoldBarriers: true})
	spec := unitSpec(d)
	first := d.startedBy(m, spec)
	m.Await("READY=1")
	first.do("upgrade")
	second := d.spawned()
	second.expect("settled")
	m.Await("BARRIER=1")
	second.do("upgrade")
	third := d.spawned()
	third.expect("settled")
	third.do("status") // time enough for one that does not wait
	if second.happened("exit") {
		t.Error("a process that has to pass the part on may exit without it")
	}
	m.ReleaseBarriers()
	wantExit(t, first, crossfade.ErrRetired)
	wantExit(t, second, crossfade.ErrRetired)
	awaitAll(m, third, "READY=1", "STATUS=serving, generation 3, v1")
	if main := m.Main(); main != third.pid {
		t.Errorf("%d is the main process, not %d", main, third.pid)
	}
}

// What becomes of the attempt is told, and who the main process is does not change.
func TestManagerAndAFailedUpgrade(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(*serviceSpec)
		fail    func(t *testing.T, old, next *process)
		status  string
	}{
		"killed before it is ready": {
			prepare: func(s *serviceSpec) { s.Ready = false },
			fail:    func(_ *testing.T, _, next *process) { next.kill() },
			status:  "upgrade failed: ",
		},
		"gives up": {
			prepare: func(s *serviceSpec) { s.Ready = false },
			fail:    func(_ *testing.T, _, next *process) { next.do("stop") },
			status:  "upgrade failed: ",
		},
		"killed on probation": {
			fail: func(t *testing.T, old, next *process) {
				next.expect("ready")
				next.kill()
				old.awaitFailure()
			},
			status: "handoff to v2",
		},
		"rolls back": {
			fail: func(t *testing.T, old, next *process) {
				next.expect("ready")
				next.do("rollback", 0)
			},
			status: "v2 (pid %d) rolled back: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			m := fakemanager.New(t, nil)
			spec := unitSpec(d)
			old := d.startedBy(m, spec)
			address := old.address("web")
			m.Await("READY=1")
			second := spec
			second.BuildVersion, second.Probation = "v2", time.Hour
			if tt.prepare != nil {
				tt.prepare(&second)
			}
			upgrade := old.begin("upgrade", &commandSpec{Spec: &second})
			next := d.spawned()
			next.address("web")
			tt.fail(t, old, next)
			upgrade.wait()
			status := tt.status
			if strings.Contains(status, "%d") {
				status = fmt.Sprintf(status, next.pid)
			}
			awaitAll(m, old, "RELOADING=1", "READY=1", "~"+status, "~; serving, generation 1, v1")
			if a := ask(t, "tcp", address); a.PID != old.pid || m.Main() != old.pid {
				t.Errorf("%d serves and %d is the main process, not %d", a.PID, m.Main(), old.pid)
			}
			pid := strconv.Itoa(old.pid)
			wantSayings(t, m, pid+" READY=1", pid+" RELOADING=1", pid+" READY=1")
		})
	}
}

// The end of a probation is that of its own, and not of what was waited for before.
func TestManagerIsToldTheEndOfAProbation(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	p := d.startedBy(m, unitSpec(d))
	m.Await("READY=1")
	second := unitSpec(d)
	second.BuildVersion, second.Probation = "v2", 10*time.Minute
	p.do("upgrade", &commandSpec{Spec: &second})
	next := d.spawned()
	for {
		_, text, _ := strings.Cut(m.Await("STATUS=").Value("STATUS"), "serves on probation until ")
		if len(text) < len(time.TimeOnly) {
			continue
		}
		end, err := time.Parse(time.TimeOnly, text[:len(time.TimeOnly)])
		if err != nil {
			t.Fatal(err)
		}
		// What was waited for before, CommitTimeout, is ten seconds.
		now, err := time.Parse(time.TimeOnly, time.Now().Format(time.TimeOnly))
		if left := (end.Sub(now) + 24*time.Hour) % (24 * time.Hour); err == nil && left > 5*time.Minute && left < time.Hour {
			break
		}
	}
	next.do("settle")
	wantExit(t, p, crossfade.ErrRetired)
}

// A manager that reloads by itself waits for both words, however short it was.
func TestManagerIsToldOfEachReload(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	p := d.startedBy(m, unitSpec(d))
	m.Await("READY=1")
	if err := p.try("upgrade", &commandSpec{Fails: "there is no such program\nSTOPPING=1"}).Err; err == nil {
		t.Error("the upgrade has not failed")
	}
	awaitAll(m, p, "RELOADING=1", "MONOTONIC_USEC=", "READY=1", "STATUS=upgrade failed: there is no such program STOPPING=1; serving, generation 1, v1")
	pid := strconv.Itoa(p.pid)
	wantSayings(t, m, pid+" READY=1", pid+" RELOADING=1", pid+" READY=1")
}

// Two template units: each has its own main process, and what one says of itself
// is nothing to the other.
func TestManagersOfTwoUnits(t *testing.T) {
	d := newDesk(t)
	blue, green := fakemanager.New(t, &fakemanager.Config{StoreMax: 8}), fakemanager.New(t, &fakemanager.Config{StoreMax: 8})
	spec := unitSpec(d)
	spec.Linger = true
	old := d.startedBy(blue, spec, environ(unitEnv+"=blue"))
	blue.Await("READY=1")
	blue.AwaitStore("web")
	address := old.address("web")
	held := connect(t, "tcp", address)
	held.answer()

	second := spec
	second.Ready, second.BuildVersion, second.Probation = false, "v2", time.Hour
	next := d.startedBy(green, second, environ(unitEnv+"=green"))
	next.address("web")
	awaitUnitStatus(green, "taking over from v1 (pid "+strconv.Itoa(old.pid)+")")
	if got := sayings(green); len(got) > 0 {
		t.Errorf("before it is ready the new one says %q", got)
	}
	next.do("ready")
	green.Await("READY=1")
	green.AwaitStore("web")
	awaitUnitStatus(blue, "v2 (pid "+strconv.Itoa(next.pid)+") serves on probation until")
	if got := blue.Store(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("on probation the old one has %q in store", got)
	}
	next.do("settle")
	wantExit(t, old, crossfade.ErrRetired)
	blue.AwaitStore() // a process that is out keeps nothing
	old.do("quit")
	awaitUnitStatus(blue, "replaced by v2 (pid "+strconv.Itoa(next.pid)+"): draining, 1 connection left")
	held.Close()
	if status := old.exitStatus(); status != 0 {
		t.Errorf("it exits with %d", status)
	}
	// Not before: from STOPPING=1 on the manager would count the time, send no
	// signal when the unit is stopped, and take the end of its patience for a failure.
	before, after := strconv.Itoa(old.pid)+" READY=1", strconv.Itoa(old.pid)+" STOPPING=1"
	if got := withoutStore(sayings(blue)); !slices.Equal(got, []string{before, after}) {
		t.Errorf("the old unit was told %q", got)
	}
	if got := withoutStore(sayings(green)); !slices.Equal(got, []string{strconv.Itoa(next.pid) + " READY=1"}) {
		t.Errorf("the new unit was told %q", got)
	}
	next.do("stop")
	green.Await("STOPPING=1")
	green.AwaitStore()
}

func withoutStore(said []string) []string {
	return slices.DeleteFunc(said, func(s string) bool { return strings.Contains(s, " FDSTORE") })
}

// The main process dies on probation. A manager that goes by the control group
// hears the successor, which has been given nothing yet.
func TestManagerWhenThePredecessorIsKilled(t *testing.T) {
	t.Run("on probation", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		m := fakemanager.New(t, &fakemanager.Config{Access: fakemanager.All})
		spec := unitSpec(d)
		old := d.startedBy(m, spec)
		m.Await("READY=1")
		second := spec
		second.Probation = time.Hour
		old.do("upgrade", &commandSpec{Spec: &second})
		next := d.spawned()
		next.expect("ready")
		for _, msg := range m.Messages() {
			if msg.PID == next.pid {
				t.Errorf("on probation the successor says %v", msg)
			}
		}
		old.kill()
		awaitAll(m, next, "MAINPID="+strconv.Itoa(next.pid), "READY=1", "STATUS=serving, generation 2, v1")
	})
	t.Run("before Commit", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		m := fakemanager.New(t, &fakemanager.Config{Access: fakemanager.All})
		spec := unitSpec(d)
		old := d.startedBy(m, spec)
		m.Await("READY=1")
		second := spec
		second.Ready = false
		old.begin("upgrade", &commandSpec{Spec: &second})
		heir := d.spawned()
		heir.address("web")
		old.kill()
		awaitAll(m, heir, "MAINPID="+strconv.Itoa(heir.pid), "STATUS=the predecessor has died: taking its place")
		heir.do("ready")
		awaitAll(m, heir, "READY=1", "STATUS=serving, generation 2, v1")
	})
}

// Whatever the manager does, the service goes on, and the handoff too.
func TestManagerThatDoesNotListen(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg    fakemanager.Config
		breaks func(*fakemanager.Manager)
	}{
		"gone":               {breaks: (*fakemanager.Manager).Down},
		"hangs":              {breaks: (*fakemanager.Manager).Pause},
		"answers no barrier": {cfg: fakemanager.Config{HoldBarriers: true}, breaks: func(*fakemanager.Manager) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			m := fakemanager.New(t, &tt.cfg)
			spec := unitSpec(d)
			spec.FDStore = true
			old := d.startedBy(m, spec)
			address := old.address("web")
			m.Await("READY=1")
			tt.breaks(m)
			clients := startLoad(t, "tcp", address, 2)
			next := d.launch(spec)
			next.expect("ready")
			clients.servedBy(next)
			wantExit(t, old, crossfade.ErrRetired)
			old.awaitLog("trouble with the service manager", "has not confirmed pid "+strconv.Itoa(next.pid))
			clients.stop()
			next.do("stop")
		})
	}
}

// What the manager cannot be told in time it is told when it is back.
func TestManagerThatComesBack(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	spec := unitSpec(d)
	spec.Ready = false
	p := d.startedBy(m, spec)
	awaitUnitStatus(m, "starting")
	m.Down()
	p.do("ready")
	p.awaitLog("trouble with the service manager", "cannot be told")
	if w := p.status().Warnings; len(w) != 1 || !strings.Contains(w[0], "cannot be told how this service stands") {
		t.Errorf("the warnings are %q", w)
	}
	m.Up()
	m.Await("READY=1", "STATUS=serving, generation 1, v1")
}

// A drain that is bounded gets the time that it may take, and one that is not as
// long as it gets on.
func TestManagerGrantsADrainItsTime(t *testing.T) {
	for name, tt := range map[string]struct {
		limit  time.Duration
		status string
	}{
		"with a limit":    {time.Hour, "stopping: draining, 2 connections left, at most until"},
		"without a limit": {0, "stopping: draining, 2 connections left"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			m := fakemanager.New(t, nil)
			spec := unitSpec(d)
			spec.DrainTimeout = tt.limit
			p := d.startedBy(m, spec)
			address := p.address("web")
			m.Await("READY=1")
			first, second := connect(t, "tcp", address), connect(t, "tcp", address)
			first.answer()
			second.answer()
			p.do("stop")
			awaitAll(m, p, "STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000", "~"+tt.status)
			first.Close()
			if tt.limit == 0 {
				m.Await("EXTEND_TIMEOUT_USEC=30000000")
			} else {
				awaitUnitStatus(m, "1 connection left")
			}
			second.Close()
			wantExit(t, p, crossfade.ErrStopped)
		})
	}
}

// A process whose unit is stopped while it drains says so, and asks for time.
func TestManagerStopsAProcessThatDrains(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	spec := unitSpec(d)
	old := d.startedBy(m, spec, environ(unitEnv+"=blue"))
	held := connect(t, "tcp", old.address("web"))
	held.answer()
	next := d.launch(spec)
	next.expect("ready")
	awaitAll(m, old, "READY=1", "~draining, 1 connection left")
	old.do("stop")
	awaitAll(m, old, "STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000")
}

func TestManagerAndDisabled(t *testing.T) {
	d := newDesk(t)
	ln, address := listenTCP(t)
	m := fakemanager.New(t, &fakemanager.Config{Sockets: []fakemanager.Socket{{Name: "app.socket", FD: ln}}})
	p := d.startedBy(m, serviceSpec{Disabled: true, Ready: true, Sockets: []socketSpec{{Name: "web", Network: "tcp", Address: address}}})
	m.Await("READY=1")
	if a := ask(t, "tcp", address); a.PID != p.pid {
		t.Errorf("answered by %+v", a)
	}
	p.do("stop")
	m.Await("STOPPING=1")
	wantExit(t, p, crossfade.ErrStopped)
}

func TestManagerIsIgnored(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	spec := unitSpec(d)
	spec.IgnoreManager = true
	p := d.startedBy(m, spec)
	p.expect("ready")
	if vars := query[[]string](p, "manager variables"); !slices.Equal(vars, []string{"NOTIFY_SOCKET=" + m.Address()}) {
		t.Errorf("the environment has %q", vars)
	}
	if query[bool](p, "speak", "X_A=b") {
		t.Error("it has a notifier")
	}
	p.do("stop")
	wantExit(t, p, crossfade.ErrStopped)
	wantSayings(t, m)
}

// The predecessor does not know that its successor ignores the manager.
func TestManagerIsIgnoredByASuccessor(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	spec := unitSpec(d)
	p := d.startedBy(m, spec)
	m.Await("READY=1")
	spec.IgnoreManager = true
	p.do("upgrade", &commandSpec{Spec: &spec})
	next := d.spawned()
	wantExit(t, p, crossfade.ErrRetired)
	next.expect("gone") // and so has all that the predecessor had to say
	if query[bool](next, "speak", "X_A=b") {
		t.Error("it has a notifier")
	}
	next.do("stop")
	wantExit(t, next, crossfade.ErrStopped)
	for _, msg := range m.Messages() {
		if msg.PID == next.pid {
			t.Errorf("it says %v", msg)
		}
	}
}

// What the environment says wrongly is no reason not to serve.
func TestManagerThatMakesNoSense(t *testing.T) {
	for name, tt := range map[string]struct{ environ, warning string }{
		"a virtual machine's host": {"NOTIFY_SOCKET=vsock:2:1234", "AF_VSOCK"},
		"no address":               {"NOTIFY_SOCKET=x", `"x"`},
		"no time":                  {"WATCHDOG_USEC=soon", `WATCHDOG_USEC="soon"`},
		"no pid":                   {"LISTEN_PID=me", `LISTEN_PID="me"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			cmd := d.command(unitSpec(d))
			cmd.Env = append(cmd.Env, tt.environ)
			p := d.run(cmd)
			if a := ask(t, "tcp", p.address("web")); a.PID != p.pid {
				t.Errorf("answered by %+v", a)
			}
			p.expect("ready")
			if got := p.status().Warnings; len(got) != 1 || !containsAll(got[0], []string{"service manager", tt.warning}) {
				t.Errorf("the warnings are %q", got)
			}
		})
	}
}

func TestManagerHearsOneOfTwoUpgraders(t *testing.T) {
	m := fakemanager.New(t, nil)
	cmd := reexec.Command("two upgraders")
	m.Start(cmd)
	defer cmd.Wait()
	m.Await("READY=1")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	m.Await("STOPPING=1")
	pid := strconv.Itoa(cmd.Process.Pid)
	wantSayings(t, m, pid+" READY=1", pid+" STOPPING=1")
}

func init() {
	processes["two upgraders"] = func() {
		first, err := crossfade.New(t0, nil)
		check(err)
		second, err := crossfade.New(t0, nil)
		check(err)
		check(second.Ready(t0))
		check(first.Ready(t0))
		if second.Notifier() != nil || first.Notifier() == nil {
			check(fmt.Errorf("the notifiers are %v and %v", first.Notifier(), second.Notifier()))
		}
		second.Stop()
		first.Stop()
	}
}

var t0 = context.Background()

// The watchdog asks the program until Exit.
func TestManagerWatchdog(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, &fakemanager.Config{Watchdog: 200 * time.Millisecond})
	spec := unitSpec(d)
	spec.Watchdog, spec.Linger = true, true
	p := d.startedBy(m, spec)
	p.await("watchdog")
	m.Await("WATCHDOG=1")
	p.do("sicken")
	p.awaitLog("trouble with the service manager", "hears no sign of life: this process is sick")
	if w := p.status().Warnings; len(w) != 1 || !strings.Contains(w[0], "sick") {
		t.Errorf("the warnings are %q", w)
	}
	p.do("stop")
	p.await("exit")
	awaitAll(m, p, "STOPPING=1")
	m.Await("WATCHDOG=1") // it is not asked any more
}

// listenTCP opens a listener as a socket unit does.
func listenTCP(t *testing.T) (*scm.FD, string) {
	t.Helper()
	ln, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fd, err := scm.DupFD(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd, ln.Addr().String()
}

// The only process is killed. What was in the store comes back with the clients
// that have come meanwhile.
func TestManagerKeepsTheSocketsOfAKilledProcess(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, &fakemanager.Config{StoreMax: 8})
	spec := unitSpec(d)
	spec.Sockets = append(spec.Sockets,
		socketSpec{Name: "admin: ä", Network: "unix", Address: d.path("admin")},
		socketSpec{Name: "packets", Network: "udp", Address: loopback + ":0"},
		socketSpec{Name: "datagrams", Network: "unixgram", Address: d.path("datagrams")},
		socketSpec{Name: "old", Network: "tcp", Address: loopback + ":0"})
	p := d.startedBy(m, spec)
	addresses := make(map[string]string)
	for _, s := range spec.Sockets {
		addresses[s.Name] = p.address(s.Name)
	}
	m.AwaitStore("web", "admin%3A %C3%A4", "packets", "datagrams", "old")
	for range 3 {
		p.kill()
		var waiting []session
		for _, s := range spec.Sockets {
			if s.Network == "tcp" || s.Network == "unix" {
				waiting = append(waiting, connect(t, s.Network, addresses[s.Name]))
			}
		}
		again := spec
		for i := range again.Sockets {
			again.Sockets[i].Address = addresses[again.Sockets[i].Name]
		}
		p = d.startedBy(m, again)
		p.expect("ready")
		for _, c := range waiting {
			if a := c.answer(); a.PID != p.pid {
				t.Errorf("answered by %+v", a)
			}
		}
		if got := p.status().Descriptors; len(got) != len(spec.Sockets) {
			t.Errorf("the registry has %+v", got)
		} else {
			for _, d := range got {
				if d.Origin != handoff.OriginInherited {
					t.Errorf("%q is %v", d.Name, d.Origin)
				}
			}
		}
		m.AwaitStore("web", "admin%3A %C3%A4", "packets", "datagrams", "old")
	}
	// What a later version does not ask for ends, in the store as well.
	p.kill()
	last := spec
	last.Sockets = spec.Sockets[:len(spec.Sockets)-1]
	p = d.startedBy(m, last)
	p.expect("ready")
	m.AwaitStore("web", "admin%3A %C3%A4", "packets", "datagrams")
	if c, err := net.Dial("tcp", addresses["old"]); err == nil {
		c.Close()
		t.Error("what nobody asked for still listens")
	}
	p.do("close", "web")
	p.do("listen", tcpSpec("web"))
	p.do("listen", tcpSpec("extra"))
	m.AwaitStore("admin%3A %C3%A4", "packets", "datagrams", "web", "extra")
	// A successor keeps it up to date.
	successor := last
	successor.Sockets = successor.Sockets[1:]
	p.do("upgrade", &commandSpec{Spec: &successor})
	next := d.spawned()
	next.expect("settled")
	m.AwaitStore("admin%3A %C3%A4", "packets", "datagrams")
	// The owner that stops for good takes everything out, and its paths with it.
	next.do("stop")
	m.AwaitStore()
	if _, err := os.Stat(d.path("admin")); !os.IsNotExist(err) {
		t.Errorf("the path of a unix listener is still there: %v", err)
	}
}

// A unix socket whose path has gone is of no use to anybody. If it stayed in the store
// it would come back beside the one that was opened in its place, and be taken for it.
func TestManagerKeepsNoSocketWithoutItsPath(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, &fakemanager.Config{StoreMax: 8})
	path := d.path("admin")
	spec := unitSpec(d)
	spec.Sockets = []socketSpec{{Name: "admin", Network: "unix", Address: path}}
	p := d.startedBy(m, spec)
	p.expect("ready")
	m.AwaitStore("admin")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.kill()
	// One that dies before it may change the store leaves the old socket in there, and
	// the file of a dead one at the path.
	unready := spec
	unready.Ready = false
	p = d.startedBy(m, unready)
	p.address("admin")
	p.kill()
	for range 2 {
		p = d.startedBy(m, spec)
		p.expect("ready")
		if a := ask(t, "unix", path); a.PID != p.pid {
			t.Errorf("answered by %+v", a)
		}
		// In this order: with it the manager has heard all that was said before.
		p.do("close", "admin")
		m.AwaitStore()
		p.do("listen", spec.Sockets[0])
		m.AwaitStore("admin")
		p.kill()
	}
}

// Sockets of socket units are inherited by their address, whatever their names.
func TestManagerActivatesByAddress(t *testing.T) {
	d := newDesk(t)
	web, webAddress := listenTCP(t)
	admin, adminAddress := listenTCP(t)
	unused, unusedAddress := listenTCP(t)
	local, err := net.Listen("unix", d.path("local"))
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	localFD, err := scm.DupFD(local.(*net.UnixListener))
	if err != nil {
		t.Fatal(err)
	}
	defer localFD.Close()
	m := fakemanager.New(t, &fakemanager.Config{StoreMax: 8, Sockets: []fakemanager.Socket{
		{Name: "app.socket", FD: web}, {Name: "app.socket", FD: admin}, {Name: "unused", FD: unused}, {Name: "crossfade.socket", FD: localFD},
	}})
	spec := unitSpec(d)
	spec.Sockets = []socketSpec{
		{Name: "app.socket", Network: "tcp", Address: adminAddress},
		{Name: "web", Network: "tcp", Address: webAddress},
		{Name: "local", Network: "unix", Address: d.path("local")},
	}
	waiting := connect(t, "tcp", webAddress)
	p := d.startedBy(m, spec)
	p.expect("ready")
	if a := waiting.answer(); a.PID != p.pid {
		t.Errorf("answered by %+v", a)
	}
	waiting.Close() // it would keep the process
	for _, at := range [][2]string{{"tcp", adminAddress}, {"unix", d.path("local")}} {
		if a := ask(t, at[0], at[1]); a.PID != p.pid {
			t.Errorf("on %s answered by %+v", at[1], a)
		}
	}
	p.awaitLog("closing what nobody asked for", "name=unused", unusedAddress)
	// In a unit of its own, with the same socket units: what the predecessor hands
	// over is the same.
	before := query[resources](p, "resources")
	next := d.startedBy(m, spec, environ(unitEnv+"=green"))
	next.expect("ready")
	next.expect("gone")
	for _, d := range next.status().Descriptors {
		if d.Origin != handoff.OriginInherited {
			t.Errorf("%q is %v", d.Name, d.Origin)
		}
	}
	if a := ask(t, "unix", d.path("local")); a.PID != next.pid {
		t.Errorf("answered by %+v", a)
	}
	if after := query[resources](next, "resources"); after.Descriptors > before.Descriptors+2 { // the poller of the connection to a predecessor
		t.Errorf("the first process has %d descriptors open, its successor %d", before.Descriptors, after.Descriptors)
	}
	next.do("stop")
	if _, err := os.Stat(d.path("local")); err != nil {
		t.Errorf("the path of the manager's own socket: %v", err)
	}
}

// A parked process has gone, as far as others can tell, and is not ended.
func TestPark(t *testing.T) {
	d := newDesk(t)
	m := fakemanager.New(t, nil)
	spec := unitSpec(d)
	spec.Park, spec.DrainTimeout = true, time.Second
	old := d.startedBy(m, spec, environ(unitEnv+"=blue"))
	old.expect("ready")
	second := spec
	second.MaxDraining, second.KillOverdue = 1, true
	next := d.launch(second)
	next.expect("ready")
	old.await("parking")
	next.expect("gone")
	awaitUnitStatus(m, "replaced by v1 (pid "+strconv.Itoa(next.pid)+"); parked until it is stopped")
	if got := next.status().Draining; len(got) > 0 {
		t.Errorf("still there are %v", got)
	}
	last := d.launch(spec) // which MaxDraining would not let in
	last.expect("ready")
	before := old.happened("unparked")
	old.do("quit")
	old.await("unparked")
	if status := old.exitStatus(); status != 0 || before {
		t.Errorf("it exits with %d, before it was asked: %v", status, before)
	}
	awaitAll(m, old, "STOPPING=1")
}

func newField(name, value string) systemd.State { return systemd.Field(name, value) }

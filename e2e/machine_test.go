//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/crossfade-go/crossfade/e2e/machine"
	"github.com/crossfade-go/crossfade/internal/fakemanager"
)

// units is where the units are that people copy.
const units = "../examples/systemd"

// TestMachines runs the scenarios below systemd. Each has a machine of its own, so
// that the units are tested as they are documented, paths, ports and names included.
// The script's directory is the machine's /opt/app, and what its commands execute is
// executed inside.
func TestMachines(t *testing.T) {
	if err := machine.Missing(); err != nil {
		t.Skip(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/systemd",
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUpMachine,
		Cmds:                machineCommands(),
		Condition:           condition,
	})
}

// machineCommands are those that scripts below systemd have besides.
func machineCommands() map[string]func(*testscript.TestScript, bool, []string) {
	all := maps.Clone(commands)
	maps.Copy(all, map[string]func(*testscript.TestScript, bool, []string){
		// install FILE...
		//	copies units of examples/systemd, or of the script, to
		//	/etc/systemd/system, and scripts to /usr/local/sbin
		"install": cmdInstall,
		// drop-in UNIT LINE...
		//	changes settings of a service
		"drop-in": cmdDropIn,
		// unit UNIT PROPERTY=VALUE...
		//	checks what systemd says of a unit. A value in slashes is a regular expression
		"unit": cmdUnit,
		// until UNIT PROPERTY=VALUE...
		//	waits until systemd says so
		"until": cmdUntil,
		// unitenv NAME UNIT PROPERTY
		//	puts what systemd says into a variable
		"unitenv": cmdUnitEnv,
		// journal UNIT PATTERN
		//	waits until the journal of a unit has a line; PID is the pid in that line from
		//	then on
		"journal": cmdJournal,
		// ask NAME PATH
		//	sends a request, and goes on as soon as it is with the service
		"ask": cmdAsk,
		// answered NAME
		//	waits for the answer to a request, which is a good one; with ! it was cut off
		"answered": cmdAnswered,
	})
	return all
}

// inside are the programs that a script calls by their names, and that are executed
// in the machine.
var inside = []string{"crossfade", "systemctl", "kill"}

// setUpMachine boots the machine of a script.
func setUpMachine(env *testscript.Env) error {
	if err := setUp(env); err != nil {
		return err
	}
	s, ok := env.Values[scriptKey{}].(*script)
	if !ok {
		return errors.New("the script was not set up")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := os.Chmod(s.work, 0o755); err != nil { // another user enters it, too
		return err
	}
	m, err := machine.Boot(ctx, map[string]string{"/opt/app": s.work, "/usr/local/bin": filepath.Join(root, "bin")})
	if err != nil {
		return err
	}
	s.machine = m
	s.requests = make(map[string]*request)
	env.Defer(s.endMachine)
	wrappers := filepath.Join(s.out, "bin")
	if err := os.Mkdir(wrappers, 0o755); err != nil {
		return err
	}
	// What another script starts meanwhile would have a file open for writing until its
	// exec, and as long as anybody has, nobody can execute it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for _, name := range append(inside, "inside") { // inside COMMAND... is for all others
		text := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", strings.Join(m.Enter(), " "), strings.TrimPrefix(name, "inside"))
		if err := os.WriteFile(filepath.Join(wrappers, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	env.Setenv("PATH", wrappers+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("CROSSFADE_SOCKET", "/run/app/control.sock")
	env.Setenv("HTTP", "127.0.0.1:8080")
	return nil
}

// endMachine ends the machine. If the script has failed the journal tells why.
func (s *script) endMachine() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if s.tb.Failed() {
		journal, err := s.machine.Journal(ctx, "")
		s.tb.Logf("the journal (%v):\n%s", err, journal)
	}
	if err := s.machine.Close(); err != nil {
		s.tb.Error(err)
	}
	for _, r := range s.requests {
		<-r.done
	}
}

// dial connects to the service, wherever it is.
func (s *script) dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if s.machine == nil {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return s.machine.Dial(ctx, network, address)
}

// dropIn is a directory of drop-ins in the path that a file says is its own.
var dropIn = regexp.MustCompile(`[^/\s]+\.d`)

func cmdInstall(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "install FILE...")
	for _, name := range args {
		file := ts.MkAbs(name)
		if _, err := os.Stat(file); err != nil {
			file = filepath.Join(units, name)
		}
		text, err := os.ReadFile(file)
		ts.Check(err)
		where, mode := "/etc/systemd/system", os.FileMode(0o644)
		switch filepath.Ext(name) {
		case ".conf": // it says in its first line for which unit it is
			where = path.Join(where, dropIn.FindString(string(text)))
		case ".sh":
			where, mode = "/usr/local/sbin", 0o755
		}
		ts.Check(scriptOf(ts).machine.WriteFile(path.Join(where, name), text, mode))
	}
	ts.Check(ts.Exec("systemctl", "daemon-reload"))
}

// startLimit are the settings of the section [Unit] that scripts change.
var startLimit = regexp.MustCompile(`(?m)^StartLimit.*$`)

func cmdDropIn(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "drop-in UNIT LINE...")
	text := "[Service]\n" + strings.Join(args[1:], "\n") + "\n"
	text = startLimit.ReplaceAllString(text, "[Unit]\n$0\n[Service]")
	ts.Check(scriptOf(ts).machine.WriteFile(path.Join("/etc/systemd/system", args[0]+".d", "test.conf"), []byte(text), 0o644))
	ts.Check(ts.Exec("systemctl", "daemon-reload"))
}

func cmdUnit(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "unit UNIT PROPERTY=VALUE...")
	if wrong := differences(ts, args); len(wrong) > 0 {
		ts.Fatalf("%s has %q", args[0], wrong)
	}
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "until UNIT PROPERTY=VALUE...")
	var wrong []string
	if !eventually(func() bool { wrong = differences(ts, args); return len(wrong) == 0 }) {
		ts.Fatalf("%s still has %q after %v", args[0], wrong, limit)
	}
}

func cmdUnitEnv(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 3, "unitenv NAME UNIT PROPERTY")
	ts.Setenv(args[0], properties(ts, args[1])[args[2]])
}

// differences are the properties of a unit that are not as they should be.
func differences(ts *testscript.TestScript, args []string) (wrong []string) {
	have := properties(ts, args[0])
	for _, arg := range args[1:] {
		name, want, ok := strings.Cut(arg, "=")
		usage(ts, ok, "unit|until UNIT PROPERTY=VALUE...")
		got, ok := have[name]
		if !ok {
			ts.Fatalf("%s has no property %s", args[0], name)
		}
		same := got == want
		if len(want) > 2 && want[0] == '/' && strings.HasSuffix(want, "/") {
			pattern, err := regexp.Compile(want[1 : len(want)-1])
			ts.Check(err)
			same = pattern.MatchString(got)
		}
		if !same {
			wrong = append(wrong, name+"="+got)
		}
	}
	return wrong
}

// properties are all that systemd says of a unit.
func properties(ts *testscript.TestScript, unit string) map[string]string {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := scriptOf(ts).machine.Command(ctx, "systemctl", "show", "--all", unit).Output()
	ts.Check(err)
	all := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		all[name] = value
	}
	return all
}

func cmdJournal(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "journal UNIT PATTERN")
	pattern, err := regexp.Compile("(?m)(" + args[1] + ").*$")
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var text, line string
	if !eventually(func() bool {
		text, err = scriptOf(ts).machine.Journal(ctx, args[0])
		line = pattern.FindString(text)
		return err == nil && line != ""
	}) {
		ts.Fatalf("the journal of %s has nothing that matches %s (%v):\n%s", args[0], pattern, err, text)
	}
	setPID(ts, line)
}

// request is one that takes its time.
type request struct {
	done   chan struct{} // closed when it was answered, or could not be
	status string
	err    error
}

func cmdAsk(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "ask NAME PATH")
	s := scriptOf(ts)
	conn, err := s.dial("tcp", ts.Getenv("HTTP"))
	ts.Check(err)
	req, err := http.NewRequest(http.MethodGet, "http://"+ts.Getenv("HTTP")+args[1], nil)
	ts.Check(err)
	req.Close = true
	c := &client{conn: conn}
	ts.Check(c.send(req))
	r := &request{done: make(chan struct{})}
	s.requests[args[0]] = r
	go func() {
		defer close(r.done)
		defer c.hangUp()
		resp, err := c.receive(req)
		if r.err = err; err != nil {
			return
		}
		r.status = resp.Status
		_, err = io.Copy(io.Discard, resp.Body)
		r.err = errors.Join(err, resp.Body.Close())
	}()
}

func cmdAnswered(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 1, "answered NAME")
	r := scriptOf(ts).requests[args[0]]
	if r == nil {
		ts.Fatalf("there is no request %q", args[0])
	}
	<-r.done // within limit
	if neg {
		if r.err == nil {
			ts.Fatalf("the request %q was answered with %s", args[0], r.status)
		}
		return
	}
	ts.Check(r.err)
	if r.status != "200 OK" {
		ts.Fatalf("the request %q was answered with %s", args[0], r.status)
	}
}

// systemdVersion is the version of this machine's systemd, such as 252.
func systemdVersion() (int, error) {
	out, err := exec.Command("systemctl", "--version").Output()
	if err != nil {
		return 0, err
	}
	var version int
	_, err = fmt.Sscanf(string(out), "systemd %d", &version)
	return version, err
}

// TestNotifyReload checks what a process with Type=notify-reload says, which systemd
// knows from version 253 on. The manager is a fake one: with a new systemd the script
// notify-reload tests the real one as well.
func TestNotifyReload(t *testing.T) {
	version, err := systemdVersion()
	t.Logf("against a fake notification socket; systemd here is %d (%v)", version, err)
	dir, err := os.MkdirTemp(root, "reload")
	if err != nil {
		t.Fatal(err)
	}
	release := func(args string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "app.conf"), []byte(args), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	release("-version v1")
	if err := os.Link(filepath.Join(root, "bin", "app"), filepath.Join(dir, "app")); err != nil {
		t.Fatal(err)
	}
	manager := fakemanager.New(t, nil)
	cmd := exec.Command(filepath.Join(dir, "app"), "-socket", filepath.Join(dir, "s"), "-upgrade-on-hup")
	cmd.Stderr = t.Output()
	manager.Start(cmd)
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(manager.Main(), syscall.SIGKILL)
		}
	})
	manager.Await("READY=1")
	first := manager.Main()
	hup := func() {
		t.Helper()
		if err := syscall.Kill(manager.Main(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		manager.Await("RELOADING=1", "MONOTONIC_USEC=")
	}

	release("-version broken\n-do exit1@offered")
	hup()
	if m := manager.Await("READY=1"); m.PID != first || manager.Main() != first {
		t.Errorf("after an upgrade that has failed %v came, and the main process is %d instead of %d", m, manager.Main(), first)
	}

	release("-version v2")
	hup()
	manager.Await("READY=1")
	if manager.Await("STATUS=serving, generation 3, v2"); manager.Main() == first {
		t.Error("the main process is still the old one")
	}
	if err := syscall.Kill(manager.Main(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	manager.Await("STOPPING=1")
	_ = cmd.Wait()               // it has retired
	if !eventually(func() bool { // nobody may reap it here, and a zombie has none
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", manager.Main()))
		return err != nil || len(environ) == 0
	}) {
		t.Error("the last process has not exited")
	}
}

// TestUnitsAreTested checks that each file that people copy is in a script.
func TestUnitsAreTested(t *testing.T) {
	scripts, err := filepath.Glob("testdata/systemd/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var installed []string
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "install" {
				installed = append(installed, fields[1:]...)
			}
		}
	}
	files, err := os.ReadDir(units)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		switch filepath.Ext(file.Name()) {
		case ".service", ".socket", ".conf", ".sh":
			found++
			if !slices.Contains(installed, file.Name()) {
				t.Errorf("no script installs %s", file.Name())
			}
		}
	}
	if found == 0 {
		t.Errorf("there are no units in %s", units)
	}
}

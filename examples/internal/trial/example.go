package trial

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// exampleEnv makes a test binary the example that it tests. Its name must not begin with
// CROSSFADE_, which New removes.
const exampleEnv = "TRIAL_EXAMPLE"

// IsExample reports whether this process is one that StartExample has started. TestMain
// then calls main instead of running tests.
func IsExample() bool { return os.Getenv(exampleEnv) != "" }

// Example is a process of the example whose tests run, which is their own binary. It logs
// to stderr.
type Example struct {
	*exec.Cmd
	t     testing.TB
	lines *bufio.Scanner
}

// StartExample starts the example as the successor of whoever owns socket. It ends with
// the test, if not before.
func StartExample(t testing.TB, socket, address string) *Example {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, "-socket", socket, "-listen", address)
	cmd.Env = append(os.Environ(), exampleEnv+"=1", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	timer := time.AfterFunc(Limit, func() { _ = cmd.Process.Kill() }) // so that no line is waited for without end
	t.Cleanup(func() {
		timer.Stop()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	})
	return &Example{cmd, t, bufio.NewScanner(out)}
}

// FirstExample starts a service of its own, and returns where it is.
func FirstExample(t testing.TB) (e *Example, socket, address string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "x-") // the paths of sockets must be short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	e = StartExample(t, socket, "127.0.0.1:0")
	return e, socket, Field(e.Logs("INFO serving"), "address")
}

// Logs waits for a line with this text and returns it.
func (e *Example) Logs(text string) string {
	e.t.Helper()
	for e.lines.Scan() {
		if strings.Contains(e.lines.Text(), text) {
			return e.lines.Text()
		}
		e.t.Log(e.lines.Text())
	}
	e.t.Fatalf("process %d ends without %q: %v", e.Process.Pid, text, e.lines.Err())
	return ""
}

// Exits waits for the end of a process that has finished its work.
func (e *Example) Exits() {
	e.t.Helper()
	for e.lines.Scan() {
		e.t.Log(e.lines.Text())
	}
	if err := e.Wait(); err != nil {
		e.t.Errorf("process %d ends: %v", e.Process.Pid, err)
	}
}

// Field returns the value of key=value in a line of a log.
func Field(line, key string) string {
	_, rest, _ := strings.Cut(line, key+"=")
	value, _, _ := strings.Cut(rest, " ")
	return value
}

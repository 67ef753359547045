package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/overlap"
)

// processEnv names what a re-executed test binary runs instead of tests. It must
// not start like the library's own variables, which the tool removes.
const processEnv = "TEST_CROSSFADE_PROCESS"

// processes are what runs as a process of its own: the tool itself, and services,
// which each test file registers in init. Arguments are in os.Args[1:]. Returning is
// exit status 0; see check for failing.
var processes = map[string]func(){"crossfade": tool.Main}

func TestMain(m *testing.M) {
	name := os.Getenv(processEnv)
	if name == "" {
		overlap.Tests(8)
		leak.Main(m)
	}
	run, ok := processes[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no process is named %q\n", name)
		os.Exit(2)
	}
	run()
	os.Exit(0)
}

// check ends a process with status 1 if err is not nil. It is for processes, not
// for tests.
func check(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "process %q: %v\n", os.Getenv(processEnv), err)
		os.Exit(1)
	}
}

// command prepares the process called name. What it writes to standard error
// appears in the test's output.
func command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	// The race detector sleeps for a second at exit, in case of a late report.
	cmd.Env = append(os.Environ(), processEnv+"="+name, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Stderr = os.Stderr
	return cmd
}

// start starts cmd, which is killed when the test ends if it has not ended by
// then.
func start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // the test may have waited
	})
}

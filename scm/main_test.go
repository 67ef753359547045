package scm_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
)

// processEnv names the function that a re-executed test binary runs instead of
// tests.
const processEnv = "CROSSFADE_SCM_TEST_PROCESS"

// processes are the functions that run as a process of their own. An error is
// printed and gives exit status 1.
var processes = map[string]func() error{}

func TestMain(m *testing.M) {
	name := os.Getenv(processEnv)
	if name == "" {
		leak.Main(m)
	}
	run, ok := processes[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no process is named %q\n", name)
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// command prepares the process called name. What it writes appears in the
// test's output.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), processEnv+"="+name)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}

// run runs the process called name and fails the test if it fails.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if err := command(t, name, args...).Run(); err != nil {
		t.Fatalf("process %q: %v", name, err)
	}
}

// start starts cmd, which the test ends at the latest.
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
}

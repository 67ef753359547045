package systemd_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
)

// processEnv names the function that a re-executed test binary runs instead of
// tests.
const processEnv = "CROSSFADE_SYSTEMD_TEST_PROCESS"

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

// command prepares the process called name. What it writes appears in the test's
// output.
func command(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), processEnv+"="+name, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd
}

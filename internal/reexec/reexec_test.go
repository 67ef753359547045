package reexec_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

var processes = map[string]func(){
	"say":  func() { fmt.Print(os.Getenv(reexec.Env), os.Args[1:], os.Getenv("GORACE")) },
	"fail": reexec.Checked(func() error { return errors.New("no way") }),
	"pass": reexec.Checked(func() error { return nil }),
	"stay": func() { _, _ = io.Copy(io.Discard, os.Stdin) },
}

func TestMain(m *testing.M) {
	reexec.Main(processes)
	leak.Main(m)
}

func TestCommand(t *testing.T) {
	t.Setenv("GORACE", "halt_on_error=1")
	for _, tt := range []struct {
		name, stdout, stderr string
		status               int
	}{
		{name: "say", stdout: "say[a b]atexit_sleep_ms=0 halt_on_error=1"},
		{name: "fail", stderr: "process \"fail\": no way\n", status: 1},
		{name: "pass"},
		{name: "none", stderr: "no process is named \"none\"\n", status: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := reexec.Command(tt.name, "a", "b")
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			var exit *exec.ExitError
			if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if stdout.String() != tt.stdout || stderr.String() != tt.stderr || cmd.ProcessState.ExitCode() != tt.status {
				t.Errorf("it said %q and %q, and ended with %v", &stdout, &stderr, cmd.ProcessState)
			}
		})
	}
}

func TestProcessEndsWithItsTest(t *testing.T) {
	cmd := reexec.Command("stay")
	t.Run("test", func(t *testing.T) {
		stdin, err := cmd.StdinPipe() // nothing comes, and no end
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stdin.Close() })
		reexec.Start(t, cmd)
	})
	if cmd.ProcessState == nil || cmd.ProcessState.Success() {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

func TestCopy(t *testing.T) {
	cmd := reexec.Command("pass")
	cmd.Path = reexec.Copy(t)
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

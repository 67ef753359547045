// Package reexec has a test binary run again, as a process that is no test. A package
// whose tests need processes has a table of them:
//
//	var processes = map[string]func(){}
//
//	func TestMain(m *testing.M) {
//		reexec.Main(processes)
//		leak.Main(m)
//	}
//
// Each test file enters its own there in init. A process is a function main: its
// arguments are in os.Args[1:], and when it returns, the exit status is 0.
package reexec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Env is the variable with the name of the process that a test binary is to be. What
// such a process starts inherits it: an upgrade is the same process again. That is why
// it does not begin like the library's own variables, which the library removes.
const Env = "TEST_CROSSFADE_PROCESS"

// Main runs the process that [Env] names and exits, with status 2 if there is none of
// that name. It returns if Env names nothing, which is when the tests are to run.
func Main(processes map[string]func()) {
	name := os.Getenv(Env)
	if name == "" {
		return
	}
	run, ok := processes[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no process is named %q\n", name)
		os.Exit(2)
	}
	run()
	os.Exit(0)
}

// Check ends a process with status 1 if err is not nil, which it prints to standard
// error. It is not for tests.
func Check(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "process %q: %v\n", os.Getenv(Env), err)
		os.Exit(1)
	}
}

// Checked returns the process that [Check] ends with what run returns.
func Checked(run func() error) func() { return func() { Check(run()) } }

// Command prepares the process called name, for a test or for another process. What it
// writes to standard error appears where that of the caller does. If the test binary
// cannot be found, Start of the command says so.
func Command(name string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	cmd := exec.Command(exe, args...)
	if err != nil {
		cmd.Err = err
	}
	// The race detector sleeps for a second at exit, in case of a late report.
	cmd.Env = append(os.Environ(), Env+"="+name, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Stderr = os.Stderr
	return cmd
}

// Start starts cmd, which is killed when the test ends if it has not ended by then. The
// test may wait for it.
func Start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // the test may have waited
	})
}

// Copy copies the test binary to where every user may execute it, which where it lies
// need not be. It returns the path, for the field Path of a command.
func Copy(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dir, err := os.MkdirTemp("", "reexec") // the directories above those of t.TempDir are closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	// A process that is forked while dst is open keeps it open for an instant, and
	// exec would say ETXTBSY.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	dst, err := os.OpenFile(filepath.Join(dir, "test"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(dst, src)
	// Whatever the umask is.
	if err := errors.Join(err, dst.Chmod(0o755), dst.Close(), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dst.Name()
}

//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/crossfade-go/crossfade/internal/overlap"
)

// limit is more than anything here takes. Nothing is asserted about time.
const limit = time.Minute

// root has the programs and the scripts' directories. Paths of sockets have to be
// short, and those that package testing makes are not.
var root string

func TestMain(m *testing.M) {
	if runProgram() {
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) (status int) {
	overlap.Tests(8)
	for fd := 3; fd < 1<<10; fd++ {
		syscall.CloseOnExec(fd) // what whoever runs the tests has left open is not theirs
	}
	dir, err := os.MkdirTemp("/tmp", "xf")
	if err == nil {
		root = dir
		defer os.RemoveAll(dir)
		err = errors.Join(os.Chmod(dir, 0o755), build()) // another user enters it, too
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds the real programs. They are the ones that ship: the race detector is
// for the tests of the packages, and they need nothing of the system, so that they run
// in a container that has nothing. The engine that makes it is this very program.
func build() error {
	bin := filepath.Join(root, "bin")
	cmd := exec.Command("go", "build", "-o", bin+string(filepath.Separator),
		"github.com/crossfade-go/crossfade/cmd/crossfade", "./app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return errors.Join(os.Symlink(self, filepath.Join(bin, "container")), os.Symlink(self, filepath.Join(bin, "enter")))
}

// TestScripts runs the scenarios. Each is a script of package testscript, with the
// commands of [commands] besides.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUp,
		Cmds:                commands,
		Condition:           condition,
	})
}

// setUp prepares what a script finds: the programs in PATH, and in the environment
// the control socket that the tool and the service use unless they are told another.
func setUp(env *testscript.Env) error {
	tb, ok := env.T().(testing.TB)
	if !ok {
		return errors.New("testscript gives no testing.TB")
	}
	s := &script{
		tb: tb, work: env.WorkDir, socket: filepath.Join(env.WorkDir, "run", "app.sock"),
		out: filepath.Join(env.WorkDir, ".out"), tmp: filepath.Join(env.WorkDir, ".tmp"),
		processes: make(map[string]*process),
	}
	env.Values[scriptKey{}] = s
	for _, dir := range []string{filepath.Dir(s.socket), s.out} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	env.Setenv("PATH", filepath.Join(root, "bin")+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("CROSSFADE_SOCKET", s.socket)
	env.Setenv(mark, env.WorkDir)
	tb.Cleanup(func() {
		if err := os.RemoveAll(env.WorkDir); err != nil {
			tb.Error(err)
		}
	})
	env.Defer(s.end)
	return nil
}

// condition knows what package testscript does not.
func condition(cond string) (bool, error) {
	switch cond {
	case "root":
		return os.Geteuid() == 0, nil
	case "notify-reload":
		version, err := systemdVersion()
		return version >= 253, err
	case "containers":
		return canContain(), nil
	default:
		return false, fmt.Errorf("unknown condition %q", cond)
	}
}

// canContain reports whether containers can be made here, and says why if not.
var canContain = sync.OnceValue(func() bool {
	err := tryContainer()
	if err != nil {
		fmt.Fprintln(os.Stderr, "no containers can be made here:", err)
	}
	return err == nil
})

// scriptOf returns the script that a command belongs to.
func scriptOf(ts *testscript.TestScript) *script {
	s, ok := ts.Value(scriptKey{}).(*script)
	if !ok {
		ts.Fatalf("the script was not set up")
	}
	return s
}

type scriptKey struct{}

// usage ends a script that uses a command wrongly.
func usage(ts *testscript.TestScript, ok bool, synopsis string) {
	if !ok {
		ts.Fatalf("usage: %s", strings.TrimSpace(synopsis))
	}
}

//go:build unix

package tableflip_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/tableflip"
)

// patience bounds every wait for what should come at once.
const patience = time.Minute

// A service is a program in several generations. Each is a process: the test
// starts the first and Upgrade the others. A nil function does nothing.
type service struct {
	options     tableflip.Options
	generations []generation
}

type generation struct {
	prepare func(u *tableflip.Upgrader) // between New and Ready
	serve   func(u *tableflip.Upgrader) // after Ready; the predecessor may still be there
	alone   func(u *tableflip.Upgrader) // after WaitForParent, before Upgrade
	leave   func(u *tableflip.Upgrader) // after Exit, in all but the last
}

// register makes a process of the service, with the name of the test that runs
// it.
func register(name string, s service) { processes[name] = func() { s.run() } }

const generationEnv = "TEST_TABLEFLIP_GENERATION"

// run is main. The last generation prints that all is done.
func (s service) run() {
	endWithTest()
	n, _ := strconv.Atoi(os.Getenv(generationEnv)) // the first has none
	check(os.Setenv(generationEnv, strconv.Itoa(n+1)))
	g := s.generations[n]
	u, err := tableflip.New(s.options)
	check(err)
	defer u.Stop()
	expect(u.HasParent() == (n > 0), "generation %d: HasParent is %t", n, u.HasParent())
	call(g.prepare, u)
	check(u.Ready())
	call(g.serve, u)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	check(u.WaitForParent(ctx))
	call(g.alone, u)
	if n == len(s.generations)-1 {
		fmt.Println("done")
		return
	}
	check(u.Upgrade())
	<-u.Exit()
	call(g.leave, u)
}

func call(f func(*tableflip.Upgrader), u *tableflip.Upgrader) {
	if f != nil {
		f(u)
	}
}

// endWithTest ends this process when its test has ended, whatever it is doing:
// its standard input is a pipe that the test holds open.
func endWithTest() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
}

// check ends a process with status 1 if err is not nil. It is for processes, not
// for tests.
func check(err error) {
	expect(err == nil, "%v", err)
}

// expect ends a process with status 1 if what it expects is not so.
func expect(ok bool, format string, args ...any) {
	if !ok {
		fmt.Fprintf(os.Stderr, "process %q, generation %s: %s\n", os.Getenv(reexec.Env), os.Getenv(generationEnv), fmt.Sprintf(format, args...))
		os.Exit(1)
	}
}

// running is a process, with all that come from it by Upgrade.
type running struct {
	cmd    *exec.Cmd
	stdout io.Reader // of all of them
}

// start starts the process of that name in a directory of its own.
func start(t *testing.T, name string, env ...string) *running {
	t.Helper()
	cmd := reexec.Command(name)
	cmd.Dir = t.TempDir()
	cmd.Env = append(cmd.Env, env...)
	stdin, theirs, err := os.Pipe() // swapped: what the process reads is stdin
	if err != nil {
		t.Fatal(err)
	}
	stdout, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = stdin, theirOut
	err = cmd.Start()
	_, _ = stdin.Close(), theirOut.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = theirs.Close() // see endWithTest
		_, _ = io.Copy(io.Discard, stdout)
		_ = stdout.Close()
		_ = cmd.Wait() // the test may have waited
	})
	return &running{cmd, stdout}
}

// finish waits until the process, and all that came from it, have ended, and
// fails unless the first one's status is 0 and the last one has come to its end.
func (r *running) finish(t *testing.T) {
	t.Helper()
	out, err := io.ReadAll(r.stdout)
	if err := errors.Join(err, r.cmd.Wait()); err != nil {
		t.Error(err)
	}
	if got := string(out); !strings.HasSuffix(got, "done\n") {
		t.Errorf("the last generation did not come to its end; the output was %q", got)
	}
}

package scm_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	// It exits with the status that its argument says, when its input ends, or sends
	// itself the signal.
	processes["end"] = reexec.Checked(func() error {
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
		var how string
		var number int
		if _, err := fmt.Sscan(os.Args[1], &how, &number); err != nil {
			return err
		}
		if how == "status" {
			os.Exit(number)
		}
		if err := syscall.Kill(os.Getpid(), syscall.Signal(number)); err != nil {
			return err
		}
		select {}
	})
}

// ending starts a process that ends so when end is called. The test reaps it.
func ending(t *testing.T, how string) (p *scm.Process, cmd *exec.Cmd, end func()) {
	t.Helper()
	cmd = reexec.Command("end", how)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reexec.Start(t, cmd)
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0) // not the one that Wait uses, which would have it not wait
	if errors.Is(err, unix.ENOSYS) {
		t.Skipf("pidfds came with Linux 5.3: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if p, err = scm.NewProcess(pidfd); err != nil {
		t.Fatal(err)
	}
	return p, cmd, func() { stdin.Close() }
}

// The status is there for one who is not the parent, once the parent has it.
func TestProcessExitStatus(t *testing.T) {
	leak.Check(t)
	for name, tt := range map[string]struct {
		how  string
		want func(syscall.WaitStatus) bool
	}{
		"success": {"status 0", func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 0 }},
		"failure": {"status 3", func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == 3 }},
		"signal":  {"signal 15", func(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == syscall.SIGTERM }},
	} {
		t.Run(name, func(t *testing.T) {
			p, cmd, end := ending(t, tt.how)
			defer p.Close()
			exited := make(chan error, 1) // nobody may look
			go func() { exited <- p.AwaitExit() }()
			select {
			case err := <-exited:
				t.Fatalf("it has exited before it did: %v", err)
			default:
			}
			end()
			if err := <-exited; err != nil { // nobody has waited for it
				t.Fatal(err)
			}
			type answer struct {
				status syscall.WaitStatus
				err    error
			}
			answered := make(chan answer, 1) // of the status, which need not come
			go func() {
				status, err := p.ExitStatus()
				answered <- answer{status, err}
			}()
			_ = cmd.Wait() // the status says it all
			got := <-answered
			if errors.Is(got.err, errors.ErrUnsupported) && !kernelFrom(t, 6, 15) {
				t.Skipf("the kernel tells since Linux 6.15: %v", got.err)
			}
			if got.err != nil || !tt.want(got.status) {
				t.Errorf("it ended with %#x (%v), want %s", int(got.status), got.err, tt.how)
			}
			if err := p.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("a signal to what has ended: %v", err)
			}
		})
	}
}

func TestProcessCloseEndsTheWaits(t *testing.T) {
	leak.Check(t)
	p, cmd, end := ending(t, "status 0")
	waits := make(chan error, 2) // one of each
	go func() { waits <- p.AwaitExit() }()
	go func() {
		_, err := p.ExitStatus()
		waits <- err
	}()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-waits; err == nil {
			t.Error("a wait ends with what has not happened")
		}
	}
	if err := p.Signal(syscall.SIGKILL); err == nil {
		t.Error("a signal was sent after Close")
	}
	end()
	if err := cmd.Wait(); err != nil {
		t.Errorf("Close has not let it be: %v", err)
	}
}

func TestProcessSignal(t *testing.T) {
	leak.Check(t)
	p, cmd, _ := ending(t, "status 0")
	defer p.Close()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.AwaitExit(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the state says it all
	if w, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || w.Signal() != unix.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

func TestProcessOfSomethingElse(t *testing.T) {
	leak.Check(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	if _, err := scm.NewProcess(pipe[0]); !errors.Is(err, scm.ErrNotProcess) {
		t.Errorf("a pipe: %v", err)
	}
	if _, err := unix.FcntlInt(uintptr(pipe[0]), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("a pipe that was given away is open (%v)", err)
	}
}

// kernelFrom reports whether the kernel is this version or a later one.
func kernelFrom(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var x, y int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y); err != nil {
		t.Fatal(err)
	}
	return x > major || x == major && y >= minor
}

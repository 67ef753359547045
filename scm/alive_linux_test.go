package scm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	processes["hand over a pidfd of oneself"] = reexec.Checked(func() error {
		c, err := scm.OpenConn(scm.NewFD(3))
		if err != nil {
			return err
		}
		own, err := scm.OwnPidfd()
		if err != nil {
			return err
		}
		if err := c.Send(context.Background(), nil, own); err != nil {
			return err
		}
		_, _, err = c.Receive(context.Background(), 0) // the end of the test, if not of this process
		return fmt.Errorf("it has not been ended: %w", err)
	})

	processes["kill what is handed over"] = reexec.Checked(func() error {
		c, err := scm.OpenConn(scm.NewFD(3))
		if err != nil {
			return err
		}
		_, fds, err := c.Receive(context.Background(), 1)
		if err != nil {
			return err
		}
		if err := fds[0].CheckPidfd(); err != nil {
			return err
		}
		if err := fds[0].Signal(unix.SIGKILL); !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("Kill: %w, want EINVAL", err)
		}
		return nil
	})
}

// A pidfd names the process that has opened it, whatever number that has where it
// is used.
func TestPidfdOfAnotherNamespace(t *testing.T) {
	leak.Check(t)
	ours, theirs, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	cmd := reexec.Command("hand over a pidfd of oneself")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Skipf("no pid namespace can be made here: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // or have been waited for
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, fds, err := ours.Receive(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := fds[0]
	defer pidfd.Close()
	if err := pidfd.CheckPidfd(); err != nil {
		t.Errorf("CheckPidfd: %v", err)
	}

	// From a namespace beside it, which cannot signal it.
	beside, end, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	other := reexec.Command("kill what is handed over")
	other.ExtraFiles = []*os.File{end}
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	end.Close()
	if err := beside.Send(ctx, nil, pidfd); err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err != nil {
		t.Errorf("a process in another namespace: %v", err)
	}

	// From the one above it.
	if err := pidfd.Signal(syscall.SIGKILL); err != nil {
		t.Fatalf("Kill: %v", err)
	}
	if _, _, err := ours.Receive(ctx, 0); !errors.Is(err, io.EOF) {
		t.Errorf("its connection ends with %v", err)
	}
	_ = cmd.Wait() // the state says it all
	if w, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || w.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	if err := pidfd.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Kill of what has ended: %v", err)
	}
}

package scm_test

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

// However a process is reached, its pidfd has one number, and another process
// another one.
func TestPidfdID(t *testing.T) {
	leak.Check(t)
	id := func(fd *scm.FD, err error) uint64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		id, err := fd.PidfdID()
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skipf("this kernel has no pidfs, which came with Linux 6.9: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	own := id(scm.OwnPidfd())
	if again := id(scm.OpenPidfd(os.Getpid())); again != own || own == 0 {
		t.Errorf("this process has the numbers %d and %d", own, again)
	}

	path, _, ln := listener(t)
	c, err := scm.Dial(patient(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	p, err := accepted.Peer()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.PidfdID(); err != nil || got != own {
		t.Errorf("as a peer it has %d (%v), want %d", got, err, own)
	}
	p.Close()
	if _, err := p.PidfdID(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("after Close: %v", err)
	}

	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reexec.Start(t, cmd)
	if other := id(scm.OpenPidfd(cmd.Process.Pid)); other == own {
		t.Errorf("two processes have the number %d", own)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := scm.OpenPidfd(cmd.Process.Pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("of a process that is gone: %v", err)
	}
}

func TestPidfdIDOfSomethingElse(t *testing.T) {
	fd := newCanary(t).fds(1)[0]
	defer fd.Close()
	if id, err := fd.PidfdID(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a pipe has the number %d (%v)", id, err)
	}
}

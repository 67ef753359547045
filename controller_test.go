//go:build unix

package crossfade_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade"
)

// dialService starts a service in this process and returns its controller.
func dialService(t *testing.T, cfg *crossfade.Config) *crossfade.Controller {
	t.Helper()
	upg, err := crossfade.New(inTime(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(upg.Stop)
	if err := upg.Ready(inTime(t)); err != nil {
		t.Fatal(err)
	}
	c, err := crossfade.Dial(inTime(t), cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPolicySeesWhoRehearses: a policy that looks at the credentials does so in a
// rehearsal too, where there is no other peer than the one that asks.
func TestPolicySeesWhoRehearses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not every system tells the pid of a peer")
	}
	pids := make(chan int, 1) // one call
	c := dialService(t, &crossfade.Config{
		Socket: newDesk(t).path("control"),
		AcceptSuccessor: func(_ context.Context, s crossfade.Successor) error {
			pids <- s.Peer.PID
			return errors.New("not on a Friday")
		},
	})
	rehearsal, err := c.Check(inTime(t), &crossfade.Successor{Process: crossfade.Process{Instance: "next"}})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(rehearsal.Refusal, crossfade.ErrPolicy) {
		t.Errorf("refused because of %v", rehearsal.Refusal)
	}
	if pid := <-pids; pid != os.Getpid() {
		t.Errorf("the policy was asked about pid %d, and this process is %d", pid, os.Getpid())
	}
}

// TestCancelOfTheOwner: that an instance was cancelled says that it certainly never
// owns, so nobody may hear it of the one that does.
func TestCancelOfTheOwner(t *testing.T) {
	c := dialService(t, &crossfade.Config{Socket: newDesk(t).path("control"), Instance: "this"})
	if out, err := c.Cancel(inTime(t), &crossfade.CancelOptions{Instance: "this"}); !errors.Is(err, crossfade.ErrCommitted) {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := c.Cancel(inTime(t), &crossfade.CancelOptions{Instance: "another"}); err != nil {
		t.Error(err)
	}
}

// TestCancelEndsAFrozenCandidate: a candidate that is frozen has been told in vain, and
// its process is what is left of it.
func TestCancelEndsAFrozenCandidate(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux says for certain which process a candidate is")
	}
	d, spec, owner, _ := startWithUnix(t)
	spec.Ready = false
	next := d.launch(spec)
	next.address("local")
	if err := syscall.Kill(next.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c, err := crossfade.Dial(inTime(t), spec.Socket)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Cancel(inTime(t), &crossfade.CancelOptions{Kill: true})
	if err != nil {
		t.Fatal(err)
	}
	if out.Serving == nil || out.Serving.PID != owner.pid || out.Who == nil || out.Who.PID != next.pid {
		t.Errorf("%+v", out)
	}
	if status := next.exitStatus(); status != -1 { // by a signal
		t.Errorf("the candidate exits with %d", status)
	}
	wantSuccession(t, d, spec, owner)
}

//go:build unix

package crossfade_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

func init() {
	processes["status"] = func() {
		c, err := crossfade.Dial(context.Background(), os.Args[1])
		if err == nil {
			_, err = c.Status(context.Background())
		}
		fmt.Printf("%v; permission %t, denied %t, nobody %t\n", err,
			errors.Is(err, os.ErrPermission), errors.Is(err, crossfade.ErrDenied), errors.Is(err, crossfade.ErrNoOwner))
	}
}

// controller returns a controller of the service.
func controller(t *testing.T, spec serviceSpec) *crossfade.Controller {
	t.Helper()
	c, err := crossfade.Dial(inTime(t), spec.Socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// asked is what a controller's call returns, when it does.
type asked struct {
	out *crossfade.Outcome
	err error
}

// later runs a controller's call.
func later(call func() (*crossfade.Outcome, error)) chan asked {
	result := make(chan asked, 1)
	go func() {
		out, err := call()
		result <- asked{out, err}
	}()
	return result
}

// wantOutcome checks that a call has succeeded, and whom it says to serve.
func wantOutcome(t *testing.T, a asked, serving *process, says string) {
	t.Helper()
	if a.err != nil || a.out.Serving == nil || a.out.Serving.PID != serving.pid || !strings.Contains(a.out.Text, says) {
		t.Errorf("the outcome is %+v, %v, want %q, and that process %d serves", a.out, a.err, says, serving.pid)
	}
}

// wantNot checks why a call has failed, and whom it says to serve: nil for nobody.
func wantNot(t *testing.T, a asked, target error, serving *process, says string) {
	t.Helper()
	var out *crossfade.OutcomeError
	if !errors.Is(a.err, target) || !strings.Contains(a.err.Error(), says) || !errors.As(a.err, &out) {
		t.Errorf("the outcome is %+v, %v, want %v %q", a.out, a.err, target, says)
		return
	}
	if (serving == nil) != (out.Serving == nil) || serving != nil && out.Serving.PID != serving.pid {
		t.Errorf("it says that %v serves", out.Serving)
	}
}

func TestDial(t *testing.T) {
	listen := func(t *testing.T, path string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, path string)
		want    error
	}{
		"nothing":        {func(*testing.T, string) {}, crossfade.ErrNoOwner},
		"a stale socket": {listen, crossfade.ErrNoOwner},
		"a plain file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, crossfade.ErrOwnerUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			path := newDesk(t).path("control")
			tt.prepare(t, path)
			c, err := crossfade.Dial(inTime(t), path)
			if c != nil || !errors.Is(err, tt.want) || !strings.HasPrefix(err.Error(), "crossfade: ") {
				t.Errorf("%v, %v, want %v", c, err, tt.want)
			}
		})
	}
	t.Run("one that was killed", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t)
		c := controller(t, spec)
		owner.kill()
		if s, err := c.Status(inTime(t)); !errors.Is(err, crossfade.ErrNoOwner) {
			t.Errorf("%v, %v", s, err)
		}
	})
	t.Run("one whose path was taken away", func(t *testing.T) {
		_, spec, _, _ := startOwner(t)
		if err := os.Remove(spec.Socket); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := crossfade.Dial(ctx, spec.Socket); !errors.Is(err, crossfade.ErrOwnerUnknown) || errors.Is(err, crossfade.ErrNoOwner) {
			t.Errorf("%v, although its lock is held", err)
		}
	})
	for name, tt := range map[string]struct {
		mode os.FileMode
		want string
	}{
		"without the right to connect": {0o600, "permission true, denied false, nobody false"},
		"without the right to ask":     {0o666, "permission false, denied true, nobody false"},
	} {
		t.Run(name, func(t *testing.T) {
			const stranger = 65533
			if os.Geteuid() != 0 {
				t.Skip("only root can start a process as another user")
			}
			d, spec, _, _ := startOwner(t, func(s *serviceSpec) { s.SocketMode = tt.mode })
			if err := os.Chmod(d.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := reexec.Command("status", spec.Socket)
			cmd.Path, cmd.Dir = reexec.Copy(t), "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
			out, err := cmd.Output()
			if err != nil || !strings.HasSuffix(string(out), tt.want+"\n") {
				t.Errorf("it says %q, %v, want %s", out, err, tt.want)
			}
		})
	}
}

func TestStatusOfAController(t *testing.T) {
	_, spec, owner, address := startOwner(t)
	s, err := controller(t, spec).Status(inTime(t))
	if err != nil {
		t.Fatal(err)
	}
	if s.Process.PID != owner.pid || s.State != handoff.StateOwner || !s.Ready || !s.Settled || len(s.Descriptors) != 1 || s.Descriptors[0].Address != address {
		t.Errorf("the status is %+v", s)
	}
}

// A process that has accepted a connection and leaves closes it unread: the next may
// be another's.
func TestAControllerThatIsNotAnswered(t *testing.T) {
	path := newDesk(t).path("control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := crossfade.Dial(inTime(t), path)
	if err != nil {
		t.Fatal(err)
	}
	leaving := make(chan error, 1)
	go func() {
		for range 4 { // the first is Dial's
			conn, err := l.Accept()
			if err == nil {
				err = conn.Close()
			}
			if err != nil {
				leaving <- err
				return
			}
		}
		leaving <- l.Close() // which unlinks the path
	}()
	if s, err := c.Status(inTime(t)); !errors.Is(err, crossfade.ErrNoOwner) {
		t.Errorf("%v, %v", s, err)
	}
	if err := <-leaving; err != nil {
		t.Error(err)
	}
}

func TestAFrozenOwner(t *testing.T) {
	_, spec, owner, _ := startOwner(t)
	c := controller(t, spec)
	owner.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if s, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, crossfade.ErrOutcomeUnknown) {
		t.Errorf("%v, %v", s, err)
	}
	for name, call := range map[string]func(context.Context) (*crossfade.Outcome, error){
		"upgrade":  func(ctx context.Context) (*crossfade.Outcome, error) { return c.Upgrade(ctx, nil) },
		"cancel":   func(ctx context.Context) (*crossfade.Outcome, error) { return c.Cancel(ctx, nil) },
		"settle":   c.Settle,
		"rollback": func(ctx context.Context) (*crossfade.Outcome, error) { return c.Rollback(ctx, "") },
		"drain":    func(ctx context.Context) (*crossfade.Outcome, error) { return c.EndDrain(ctx, 1) },
		"stop":     func(ctx context.Context) (*crossfade.Outcome, error) { return c.Stop(ctx, "") },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if out, err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, crossfade.ErrOutcomeUnknown) {
			t.Errorf("%s: %v, %v", name, out, err)
		}
	}
	peer, err := c.Peer(inTime(t))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if runtime.GOOS != "linux" || peer.Exited() == nil {
		t.Skip("this system gives no pidfd of a peer")
	}
	if peer.PID != owner.pid {
		t.Errorf("it listens as %v, and is %d", peer, owner.pid)
	}
	if err := peer.Kill(); err != nil {
		t.Fatal(err)
	}
	owner.end()
	if _, err := c.Status(inTime(t)); !errors.Is(err, crossfade.ErrNoOwner) {
		t.Errorf("after its end: %v", err)
	}
}

func TestControllerUpgrade(t *testing.T) {
	t.Parallel()
	t.Run("again and again, each process leaving at once", func(t *testing.T) {
		d, spec, owner, address := startOwner(t)
		c := controller(t, spec)
		for generation := uint64(2); generation < 7; generation++ {
			a := <-later(func() (*crossfade.Outcome, error) {
				return c.Upgrade(inTime(t), &crossfade.UpgradeOptions{WaitSettled: generation%2 == 0})
			})
			next := d.spawned()
			wantOutcome(t, a, next, "upgraded")
			next.expect("settled") // before that it hands over to nobody
			if a := ask(t, "tcp", address); a.PID != next.pid || a.Generation != generation {
				t.Errorf("answered by %+v", a)
			}
			wantExit(t, owner, crossfade.ErrRetired)
			owner = next
		}
	})
	t.Run("to one that fails", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t, func(s *serviceSpec) {
			s.Command = &commandSpec{Path: "/bin/sh", Args: []string{"-c", "exit 7"}}
		})
		c := controller(t, spec)
		a := <-later(func() (*crossfade.Outcome, error) { return c.Upgrade(inTime(t), nil) })
		wantNot(t, a, crossfade.ErrFailed, owner, "exit status 7")
		wantNoChildren(t, owner)
		wantGeneration(t, owner, 1)
	})
	t.Run("to one that takes too long", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Command = &commandSpec{Spec: &serviceSpec{}} })
		c := controller(t, spec)
		a := <-later(func() (*crossfade.Outcome, error) {
			return c.Upgrade(inTime(t), &crossfade.UpgradeOptions{Timeout: 50 * time.Millisecond})
		})
		wantNot(t, a, crossfade.ErrTimeout, owner, "no end of the upgrade within 50ms")
		wantGeneration(t, owner, 1)
	})
	t.Run("to one that the policy refuses", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Refuse = "not on a Friday" })
		c := controller(t, spec)
		wantNot(t, <-later(func() (*crossfade.Outcome, error) { return c.Upgrade(inTime(t), nil) }), crossfade.ErrPolicy, owner, "not on a Friday")
	})
	t.Run("while another is under way", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t)
		newCandidate(t, spec.Socket, "Received")
		c := controller(t, spec)
		a := <-later(func() (*crossfade.Outcome, error) { return c.Upgrade(inTime(t), nil) })
		wantNot(t, a, crossfade.ErrBusy, owner, "another handoff is under way")
		var out *crossfade.OutcomeError
		if !errors.As(a.err, &out) || out.Who == nil || out.Who.Instance != "by hand" {
			t.Errorf("in the way is %+v", out)
		}
	})
	t.Run("whose controller leaves before Commit", func(t *testing.T) {
		d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.Command = &commandSpec{Spec: &serviceSpec{}} })
		c := controller(t, spec)
		ctx, leave := context.WithCancel(inTime(t))
		result := later(func() (*crossfade.Outcome, error) { return c.Upgrade(ctx, nil) })
		child := d.spawned()
		child.expect("new")
		leave()
		if a := <-result; !errors.Is(a.err, crossfade.ErrOutcomeUnknown) || !errors.Is(a.err, context.Canceled) {
			t.Errorf("%+v, %v", a.out, a.err)
		}
		if e := child.await("exit"); !errors.Is(e.Err, crossfade.ErrAborted) || !errors.Is(e.Err, crossfade.ErrCancelled) {
			t.Errorf("the child hears %v", e.Err)
		}
		owner.awaitFailure("the controller has left")
		if a := ask(t, "tcp", address); a.PID != owner.pid {
			t.Errorf("answered by %+v", a)
		}
		wantSuccession(t, d, spec, owner)
	})
	t.Run("whose controller leaves after Commit", func(t *testing.T) {
		d, spec, owner, address := onProbation(t, long)
		c := controller(t, spec)
		ctx, leave := context.WithCancel(inTime(t))
		result := later(func() (*crossfade.Outcome, error) {
			return c.Upgrade(ctx, &crossfade.UpgradeOptions{WaitSettled: true})
		})
		next := d.spawned()
		next.expect("ready")
		owner.awaitLog("msg=state", "to=probation")
		leave()
		if a := <-result; !errors.Is(a.err, crossfade.ErrOutcomeUnknown) {
			t.Errorf("%+v, %v", a.out, a.err)
		}
		wantOutcome(t, <-later(func() (*crossfade.Outcome, error) { return c.Settle(inTime(t)) }), next, "settled")
		wantExit(t, owner, crossfade.ErrRetired)
		if a := ask(t, "tcp", address); a.PID != next.pid {
			t.Errorf("answered by %+v", a)
		}
	})
	t.Run("that is rolled back", func(t *testing.T) {
		d, spec, owner, address := onProbation(t, long)
		c := controller(t, spec)
		result := later(func() (*crossfade.Outcome, error) {
			return c.Upgrade(inTime(t), &crossfade.UpgradeOptions{WaitSettled: true})
		})
		next := d.spawned()
		next.expect("ready")
		owner.awaitLog("msg=state", "to=probation")
		wantOutcome(t, <-later(func() (*crossfade.Outcome, error) { return c.Rollback(inTime(t), "too slow") }), owner, "rolled back")
		wantNot(t, <-result, crossfade.ErrRolledBack, owner, "too slow")
		wantExit(t, next, crossfade.ErrRolledBack)
		wantResumed(t, d, spec, owner, address, 3)
	})
	t.Run("whose successor is killed on probation", func(t *testing.T) {
		d, spec, owner, _ := onProbation(t, long)
		c := controller(t, spec)
		result := later(func() (*crossfade.Outcome, error) {
			return c.Upgrade(inTime(t), &crossfade.UpgradeOptions{WaitSettled: true})
		})
		next := d.spawned()
		next.expect("ready")
		owner.awaitLog("msg=state", "to=probation")
		next.kill()
		wantNot(t, <-result, crossfade.ErrRolledBack, owner, "the other side is gone")
	})
}

// What Config.Command gets may be used for the command itself: who has asked for the
// upgrade leaves, and that does not end the successor.
func TestTheContextOfACommandIsForMakingIt(t *testing.T) {
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.Command = &commandSpec{Bound: true} })
	wantOutcome := func(out *crossfade.Outcome, err error) *process {
		next := d.spawned()
		if err != nil || out.Serving.PID != next.pid {
			t.Fatalf("%+v, %v", out, err)
		}
		return next
	}
	next := wantOutcome(controller(t, spec).Upgrade(inTime(t), nil))
	wantExit(t, owner, crossfade.ErrRetired)
	owner.end()
	next.expect("settled")
	if a := ask(t, "tcp", address); a.PID != next.pid {
		t.Errorf("answered by %+v", a)
	}
	wantGeneration(t, next, 2)
}

func TestControllerCancel(t *testing.T) {
	t.Run("a candidate that initialises", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		c := controller(t, spec)
		spec.Ready = false
		next := d.launch(spec)
		next.expect("new")
		wantOutcome(t, <-later(func() (*crossfade.Outcome, error) {
			return c.Cancel(inTime(t), &crossfade.CancelOptions{Reason: "not today"})
		}), owner, "cancelled")
		if e := next.await("exit"); !errors.Is(e.Err, crossfade.ErrCancelled) || !strings.Contains(e.Err.Error(), "not today") {
			t.Errorf("it hears %v", e.Err)
		}
		wantSuccession(t, d, spec, owner)
	})
	t.Run("one that comes later", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		wantOutcome(t, <-later(func() (*crossfade.Outcome, error) {
			return controller(t, spec).Cancel(inTime(t), &crossfade.CancelOptions{Instance: "late", Kill: true})
		}), owner, "nothing to cancel")
		next := spec
		next.Instance = "late"
		if e := d.launch(next).await("new"); !errors.Is(e.Err, crossfade.ErrCancelled) {
			t.Errorf("New: %v", e.Err)
		}
		wantSuccession(t, d, spec, owner)
	})
	t.Run("one that has owned since", func(t *testing.T) {
		d, spec, first, address := startOwner(t, func(s *serviceSpec) { s.Instance = "first" })
		connect(t, "tcp", address).answer()
		spec.Instance = "second"
		second := replace(t, d, spec, first)
		c := controller(t, spec)
		for _, instance := range []string{"first", "second"} {
			wantNot(t, <-later(func() (*crossfade.Outcome, error) {
				return c.Cancel(inTime(t), &crossfade.CancelOptions{Instance: instance, Kill: true})
			}), crossfade.ErrCommitted, second, strconv.Quote(instance))
		}
	})
	frozen := func(t *testing.T, stopAt string) (*desk, serviceSpec, *process, *process, string) {
		t.Helper()
		if runtime.GOOS != "linux" {
			t.Skip("this system gives no pidfd of a peer")
		}
		d, spec, owner, address := startOwner(t)
		next := spec
		next.Ready, next.StopAt = stopAt != "", stopAt
		p := d.launch(next)
		p.address("web")
		if stopAt == "" {
			p.freeze()
		} else {
			p.awaitLog(stopAt)
			p.awaitStopped() // until then it accepts on the control socket
			owner.awaitLog("msg=state", "to=standby")
		}
		return d, spec, owner, p, address
	}
	for _, stage := range []struct{ name, stopAt string }{
		{"before it is ready", ""},
		{"when it has read Commit", "this process owns the service"},
	} {
		t.Run("one that was stopped "+stage.name, func(t *testing.T) {
			t.Parallel()
			d, spec, owner, next, address := frozen(t, stage.stopAt)
			c := controller(t, spec)
			wantOutcome(t, <-later(func() (*crossfade.Outcome, error) {
				return c.Cancel(inTime(t), &crossfade.CancelOptions{Kill: true})
			}), owner, "cancelled, and its process was killed")
			next.end()
			if w, ok := next.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || w.Signal() != syscall.SIGKILL {
				t.Errorf("it ended with %v", next.cmd.ProcessState)
			}
			if a := ask(t, "tcp", address); a.PID != owner.pid {
				t.Errorf("answered by %+v", a)
			}
			wantSuccession(t, d, spec, owner)
		})
	}
	t.Run("one that has read Commit, without being told to kill it", func(t *testing.T) {
		_, spec, owner, next, address := frozen(t, "this process owns the service")
		c := controller(t, spec)
		wantNot(t, <-later(func() (*crossfade.Outcome, error) { return c.Cancel(inTime(t), nil) }), crossfade.ErrCommitted, nil, "has not answered")
		// Whoever commands meanwhile asks again until it is known who owns.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := c.Settle(ctx); !errors.Is(err, crossfade.ErrMoved) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Settle: %v", err)
		}
		result := later(func() (*crossfade.Outcome, error) { return c.Settle(inTime(t)) })
		next.kill()
		wantOutcome(t, <-result, owner, "settled")
		if a := ask(t, "tcp", address); a.PID != owner.pid {
			t.Errorf("answered by %+v", a)
		}
	})
}

func TestControllerOfAProbation(t *testing.T) {
	t.Parallel()
	t.Run("rolls back, with whoever else wants it", func(t *testing.T) {
		d, spec, owner, address := onProbation(t, long)
		next := begin(d, spec, owner)
		c := controller(t, spec)
		if s, err := c.Status(inTime(t)); err != nil || s.Settled || s.Probation == nil || s.Process.PID != next.pid {
			t.Errorf("the status is %+v, %v", s, err)
		}
		var results []chan asked
		owner.freeze()
		for range 3 {
			results = append(results, later(func() (*crossfade.Outcome, error) { return c.Rollback(inTime(t), "too slow") }))
		}
		next.awaitLog("rolling back", "too slow")
		owner.signal(syscall.SIGCONT)
		for _, result := range results {
			// One that comes when the predecessor has resumed finds it settled.
			a := <-result
			if errors.Is(a.err, crossfade.ErrSettled) {
				wantNot(t, a, crossfade.ErrSettled, owner, "cannot come back")
				continue
			}
			wantOutcome(t, a, owner, "rolled back")
		}
		wantExit(t, next, crossfade.ErrRolledBack)
		wantNot(t, <-later(func() (*crossfade.Outcome, error) { return c.Rollback(inTime(t), "") }), crossfade.ErrSettled, owner, "cannot come back")
		wantResumed(t, d, spec, owner, address, 3)
	})
	t.Run("settles, and again", func(t *testing.T) {
		d, spec, owner, _ := onProbation(t, long)
		next := begin(d, spec, owner)
		c := controller(t, spec)
		for name, command := range map[string]func(*crossfade.Controller) (*crossfade.Outcome, error){
			"upgrade":  func(c *crossfade.Controller) (*crossfade.Outcome, error) { return c.Upgrade(inTime(t), nil) },
			"settle":   func(c *crossfade.Controller) (*crossfade.Outcome, error) { return c.Settle(inTime(t)) },
			"rollback": func(c *crossfade.Controller) (*crossfade.Outcome, error) { return c.Rollback(inTime(t), "") },
			"drain":    func(c *crossfade.Controller) (*crossfade.Outcome, error) { return c.EndDrain(inTime(t), 1) },
			"stop":     func(c *crossfade.Controller) (*crossfade.Outcome, error) { return c.Stop(inTime(t), "") },
		} {
			if out, err := command(c.For("somebody else")); !errors.Is(err, crossfade.ErrWrongState) {
				t.Errorf("%s for another instance: %v, %v", name, out, err)
			}
		}
		for range 2 {
			wantOutcome(t, <-later(func() (*crossfade.Outcome, error) { return c.Settle(inTime(t)) }), next, "settled")
		}
		wantExit(t, owner, crossfade.ErrRetired)
		if s, err := c.Status(inTime(t)); err != nil || !s.Settled || s.Probation != nil {
			t.Errorf("the status is %+v, %v", s, err)
		}
		wantNot(t, <-later(func() (*crossfade.Outcome, error) { return c.Rollback(inTime(t), "") }), crossfade.ErrSettled, next, "cannot come back")
	})
	t.Run("stops: it settles first", func(t *testing.T) {
		d, spec, owner, _ := onProbation(t, long)
		next := begin(d, spec, owner)
		c := controller(t, spec)
		out, err := c.Stop(inTime(t), "for good")
		if err != nil || out.Text != "stopping" || out.Who == nil || out.Who.PID != next.pid {
			t.Errorf("the outcome is %+v, %v", out, err)
		}
		wantExit(t, owner, crossfade.ErrRetired)
		wantExit(t, next, crossfade.ErrStopped)
		next.awaitLog("because a controller wishes so", "for good")
		if _, err := os.Lstat(spec.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the control path: %v", err)
		}
		if _, err := c.Status(inTime(t)); !errors.Is(err, crossfade.ErrNoOwner) {
			t.Errorf("Status: %v", err)
		}
	})
	t.Run("settles one whose program stops", func(t *testing.T) {
		d, spec, owner, _ := onProbation(t, long, func(s *serviceSpec) { s.CommitTimeout = 3 * time.Second })
		next := begin(d, spec, owner)
		owner.freeze()
		c := controller(t, spec)
		result := later(func() (*crossfade.Outcome, error) { return c.Settle(inTime(t)) })
		next.awaitStatus("a decision to stay", func(s *crossfade.Status) bool { return s.Probation == nil })
		next.do("stop") // which does not wait for the controller
		if a := <-result; a.err == nil {
			t.Errorf("the outcome is %+v", a.out)
		}
	})
}

// awaitStatus waits until the process stands as wanted. There is no event for all
// of it.
func (p *process) awaitStatus(what string, holds func(*crossfade.Status) bool) {
	p.desk.t.Helper()
	for begin := time.Now(); !holds(p.status()); {
		if time.Since(begin) > generous {
			p.desk.t.Fatalf("process %d: no %s", p.pid, what)
		}
	}
}

func TestControllerEndDrain(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, kill bool) (d *desk, spec serviceSpec, first, second *process, c *crossfade.Controller) {
		d, spec, first, address := startOwner(t, func(s *serviceSpec) { s.KillOverdue = kill })
		connect(t, "tcp", address).answer()
		second = replace(t, d, spec, first)
		connect(t, "tcp", address).answer()
		return d, spec, first, second, controller(t, spec)
	}
	end := func(t *testing.T, c *crossfade.Controller, generation uint64) asked {
		return <-later(func() (*crossfade.Outcome, error) { return c.EndDrain(inTime(t), generation) })
	}
	t.Run("of the predecessor", func(t *testing.T) {
		_, _, first, second, c := start(t, false)
		wantOutcome(t, end(t, c, 1), second, "generation 1 was asked to end its drain")
		if e := first.await("drained"); e.Err == nil || !strings.Contains(e.Err.Error(), "the successor asked for the end of the drain") {
			t.Errorf("its drain ends with %v", e.Err)
		}
		second.wantGone(first)
		wantOutcome(t, end(t, c, 1), second, "generation 1 has gone")
	})
	t.Run("of the owner, and of nobody", func(t *testing.T) {
		_, _, first, _, c := start(t, false)
		for generation, says := range map[uint64]string{2: "stop it instead", 0: "has not owned", 3: "has not owned"} {
			if a := end(t, c, generation); !errors.Is(a.err, crossfade.ErrWrongState) || !strings.Contains(a.err.Error(), says) {
				t.Errorf("generation %d: %+v, %v", generation, a.out, a.err)
			}
		}
		if first.happened("drained") {
			t.Error("another drain was ended")
		}
	})
	t.Run("of one that stands by", func(t *testing.T) {
		d, spec, owner, _ := onProbation(t, long)
		begin(d, spec, owner)
		if a := end(t, controller(t, spec), 1); !errors.Is(a.err, crossfade.ErrWrongState) || !strings.Contains(a.err.Error(), "settle first") {
			t.Errorf("%+v, %v", a.out, a.err)
		}
	})
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("of an older one, KillOverdue %t", kill), func(t *testing.T) {
			if runtime.GOOS != "linux" {
				t.Skip("there are no pidfds on this system")
			}
			d, spec, first, second, _ := start(t, kill)
			third := replace(t, d, spec, second)
			c := controller(t, spec)
			a := end(t, c, 1)
			if !kill {
				if !errors.Is(a.err, crossfade.ErrNotAllowed) || !strings.Contains(a.err.Error(), "KillOverdue is not set") {
					t.Errorf("%+v, %v", a.out, a.err)
				}
				return
			}
			wantOutcome(t, a, third, "generation 1 was sent SIGTERM")
			first.end()
			if w, ok := first.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || w.Signal() != syscall.SIGTERM {
				t.Errorf("it ended with %v", first.cmd.ProcessState)
			}
			third.wantGone(first)
			if second.happened("drained") {
				t.Error("another drain was ended")
			}
		})
	}
}

func TestControllerWatch(t *testing.T) {
	d, spec, owner, address := startOwner(t)
	connect(t, "tcp", address).answer()
	c := controller(t, spec)
	var states []handoff.State
	watching := make(chan struct{})
	ended := make(chan error, 1)
	watch := func(each func(crossfade.Event) error) { ended <- c.Watch(inTime(t), each) }
	go watch(func(e crossfade.Event) error {
		if states = append(states, e.State); len(states) == 1 {
			close(watching)
		}
		return nil
	})
	<-watching
	next := replace(t, d, spec, owner)
	if err := <-ended; err != nil {
		t.Errorf("Watch: %v", err)
	}
	want := []handoff.State{handoff.StateOwner, handoff.StateOffering, handoff.StateCommitting, handoff.StateStandby, handoff.StateProbation}
	if !slices.Equal(states, want) {
		t.Errorf("the states were %v, want %v", states, want)
	}

	// Its successor tells when it has gone.
	watching = make(chan struct{})
	enough := errors.New("enough")
	var texts []string
	go watch(func(e crossfade.Event) error {
		if texts = append(texts, e.Text); len(texts) == 1 {
			close(watching)
		}
		if strings.Contains(e.Text, "an older generation has gone") {
			return enough
		}
		return nil
	})
	<-watching
	owner.kill()
	if err := <-ended; !errors.Is(err, enough) || !strings.Contains(texts[len(texts)-1], fmt.Sprintf("generation 1, pid %d", owner.pid)) {
		t.Errorf("Watch: %v, after %q", err, texts)
	}
	next.do("state")

	ctx, cancel := context.WithCancel(inTime(t))
	err := c.Watch(ctx, func(crossfade.Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Watch until its context ends: %v", err)
	}
}

func TestControllerCheck(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) {
		s.ReadyTimeout, s.MaxReadyTimeout, s.CommitTimeout, s.MaxProbation = 11*time.Second, 12*time.Second, 13*time.Second, 14*time.Second
	})
	owner.do("listen", socketSpec{Name: "local", Network: "unix", Address: d.path("local")})
	c := controller(t, spec)
	r, err := c.Check(inTime(t), &crossfade.Successor{Probation: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if r.Refusal != nil || r.Ready != 11*time.Second || r.MaxReady != 12*time.Second || r.Commit != 13*time.Second || r.Probation != 14*time.Second {
		t.Errorf("it says %+v", r)
	}
	wantGeneration(t, owner, 1)
	total := newCandidate(t, spec.Socket, "Received").welcome.GetTotal()
	if r.Descriptors != int(total) {
		t.Errorf("it announces %d descriptors, the offer has %d", r.Descriptors, total)
	}
	if r, err := c.Check(inTime(t), new(crossfade.Successor)); err != nil || !errors.Is(r.Refusal, crossfade.ErrBusy) {
		t.Errorf("during an attempt: %+v, %v", r, err)
	}
}

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

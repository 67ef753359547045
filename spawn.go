package crossfade

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// reapGrace is how long a successor that has failed may take to exit by itself:
// it has been told, and its own last words are worth having.
const reapGrace = 3 * time.Second

// Upgrade starts Config.Command as the successor and returns nil as soon as it
// owns. Without a probation Exit is closed then, or about to be; with one, this
// process stands by, and owns again if the successor rolls back or dies. It gets one end of a socket
// pair, so that the result belongs to exactly that process. On an error this
// process goes on as the owner, and what was started has ended: it gets a
// moment to exit by itself, then it is killed.
//
// When ctx ends before Commit the attempt is aborted. Afterwards it no longer
// can be: the error then matches ErrOutcomeUnknown, and State tells later.
//
// Errors: ErrBusy if another attempt is under way, also from a second Upgrade;
// ErrDraining if too many older processes have not gone yet;
// ErrNotReady before Ready; ErrControlLost; ErrTimeout; ErrAborted with the successor's reason;
// ErrLost if it exited, with its exit status in the text;
// [errors.ErrUnsupported] if Config.Disabled is set.
func (u *Upgrader) Upgrade(ctx context.Context) error {
	if u.cfg.Disabled {
		return fmt.Errorf("crossfade: upgrade: handoffs are disabled: %w", errors.ErrUnsupported)
	}
	if err := u.upgrade(ctx, false); err != nil {
		return fmt.Errorf("crossfade: upgrade: %w", err)
	}
	return nil
}

// upgrade returns when the successor owns; with settled, when this process has
// decided to retire. The service manager takes it for a reload.
func (u *Upgrader) upgrade(ctx context.Context, settled bool) error {
	ended := u.unit.Reloading()
	err := u.replace(ctx, settled)
	ended(err)
	return err
}

// replace is upgrade without the service manager.
func (u *Upgrader) replace(ctx context.Context, settled bool) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// As before every offer: a path that has vanished is bound again now.
	if err := (service{u}).CheckControl(ctx); err != nil {
		return &controlError{err}
	}
	ours, theirs, err := scm.Pair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	attempt, err := u.server.Spawn(ours)
	if err != nil {
		return err
	}
	child, err := u.start(ctx, theirs)
	if err != nil {
		attempt.Abandon(err)
		return err
	}
	_ = theirs.Close() // now, so that the end of the process is the end of the connection
	err = attempt.Run(ctx, child.pid(), child)
	switch {
	case err == nil && settled:
		return attempt.Settled(ctx)
	case err == nil:
		return nil
	case errors.As(err, new(*handoff.Error)), errors.As(err, new(*handoff.RefusedError)):
		child.end()
		return fmt.Errorf("%w (the started process, pid %d: %s)", err, child.pid(), child.cmd.ProcessState)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// controlError is trouble with the control path, with the sentinel that a
// refused successor sees.
type controlError struct{ err error }

func (e *controlError) Error() string        { return e.err.Error() }
func (e *controlError) Is(target error) bool { return target == ErrControlLost }
func (e *controlError) Unwrap() error        { return e.err }

// child is a process that Upgrade has started.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has been reaped
}

// start starts Config.Command with theirs behind the command's own files.
func (u *Upgrader) start(ctx context.Context, theirs *os.File) (*child, error) {
	cmd, err := u.command(ctx)
	if err != nil {
		return nil, err
	}
	environ := cmd.Env
	if environ == nil {
		environ = os.Environ()
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	cmd.Env = append(childEnviron(environ, u.cfg, rand.Text(), 2+len(cmd.ExtraFiles)), u.unit.Environ()...)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, exited: make(chan struct{})}
	go func() { // ends with the process, which may be after this one's drain
		defer close(c.exited)
		_ = cmd.Wait() // the state says it all
	}()
	return c, nil
}

// command calls Config.Command. What it gets ends with ctx, but not once the command
// is made: one of exec.CommandContext would be killed when whoever has asked for the
// upgrade, a controller perhaps, has its answer.
func (u *Upgrader) command(ctx context.Context) (*exec.Cmd, error) {
	making, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	made := context.AfterFunc(ctx, func() { giveUp(context.Cause(ctx)) })
	cmd, err := u.cfg.Command(making)
	if made() || err != nil {
		return cmd, err
	}
	return nil, context.Cause(ctx)
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// Exited and Kill make it a [handoff.CandidateProcess].
func (c *child) Exited() <-chan struct{} { return c.exited }

func (c *child) Kill() error {
	if err := c.cmd.Process.Kill(); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// end returns when the process has ended.
func (c *child) end() {
	timer := time.NewTimer(reapGrace)
	defer timer.Stop()
	select {
	case <-c.exited:
		return
	case <-timer.C:
	}
	_ = c.Kill()
	<-c.exited
}

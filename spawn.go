package crossfade

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

const (
	// reapGrace is how long a successor that has failed may take to exit by itself:
	// it has been told, and its own last words are worth having.
	reapGrace = 3 * time.Second
	// statusGrace is how long the service manager may take to wait for a successor
	// that has exited, before the error does without its status.
	statusGrace = 2 * time.Second
)

// Upgrade starts Config.Command as the successor and returns nil as soon as it
// owns. Without a probation Exit is closed then, or about to be; with one, this
// process stands by, and owns again if the successor rolls back or dies. It gets one end of a socket
// pair, so that the result belongs to exactly that process. On an error this
// process goes on as the owner, and what was started has ended: it gets a
// moment to exit by itself, then it is killed.
//
// Where a service manager has started this process, and hears of its handoffs, the
// successor becomes the manager's child as this one is (CLONE_PARENT, Linux): it will
// be the main process of the unit, whose end the manager has to see. The command's
// ProcessState remains nil then. A command whose SysProcAttr needs this process as its
// parent, as Pdeathsig does, gets it all the same.
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
	err = attempt.Run(ctx, child.pid, child)
	switch {
	case err == nil && settled:
		return attempt.Settled(ctx)
	case err == nil:
		return nil
	case errors.As(err, new(*handoff.Error)), errors.As(err, new(*handoff.RefusedError)):
		child.end()
		return fmt.Errorf("%w (the started process, pid %d: %s)", err, child.pid, child.status)
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
	pid    int
	beside *scm.Process  // if it is the manager's child and not this process's, else nil
	exited chan struct{} // closed when it has exited
	known  chan struct{} // closed when status says how
	status string
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
	return startChild(cmd, u.managed())
}

// startChild starts cmd; beside this process, as another child of its parent, if that
// should be and can be.
func startChild(cmd *exec.Cmd, beside bool) (*child, error) {
	c := &child{cmd: cmd, exited: make(chan struct{}), known: make(chan struct{})}
	pidfd := -1
	if beside {
		cmd.SysProcAttr, beside = asSibling(cmd.SysProcAttr, &pidfd)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.pid = cmd.Process.Pid // which Release will overwrite
	if !beside {
		go c.wait() // ends with the process, which may be after this one's drain
		return c, nil
	}
	var err error
	if c.beside, err = scm.NewProcess(pidfd); err != nil {
		_ = cmd.Process.Kill()
		c.release()
		return nil, fmt.Errorf("what was started cannot be watched: %w", err)
	}
	go c.watch() // as above
	return c, nil
}

// wait waits for a child.
func (c *child) wait() {
	_ = c.cmd.Wait() // the state says it all
	c.status = c.cmd.ProcessState.String()
	close(c.exited)
	close(c.known)
}

// watch waits for a process that the manager waits for.
func (c *child) watch() {
	defer c.release()
	defer c.beside.Close()
	c.status = "its exit status is the service manager's to know"
	defer close(c.known)
	if err := c.beside.AwaitExit(); err != nil {
		return // never, as long as it is not closed; and what may live has not exited
	}
	close(c.exited)
	timer := time.AfterFunc(statusGrace, func() { _ = c.beside.Close() })
	defer timer.Stop()
	if status, err := c.beside.ExitStatus(); err == nil {
		c.status = exitText(status)
	}
}

// release ends what the command has in this process, if that is not its parent.
func (c *child) release() {
	_ = c.cmd.Wait() // there is nothing to wait for but the command's own goroutines
	_ = c.cmd.Process.Release()
}

// exitText is what [os.ProcessState.String] says of the same.
func exitText(status syscall.WaitStatus) string {
	if !status.Signaled() {
		return fmt.Sprintf("exit status %d", status.ExitStatus())
	}
	text := "signal: " + status.Signal().String()
	if status.CoreDump() {
		text += " (core dumped)"
	}
	return text
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

// Exited, Kill and PidfdID make it a [handoff.CandidateProcess].
func (c *child) Exited() <-chan struct{} { return c.exited }

func (c *child) Kill() error {
	var err error
	if c.beside != nil {
		err = c.beside.Signal(syscall.SIGKILL)
	} else {
		err = c.cmd.Process.Kill()
	}
	select {
	case <-c.exited:
		return nil
	default:
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// PidfdID asks by the number only where there is no pidfd: the process, of which whoever
// asks has just heard, is this one's child there, which has to be waited for.
func (c *child) PidfdID() (uint64, error) {
	if c.beside != nil {
		return c.beside.PidfdID()
	}
	return scm.PidfdIDOf(c.pid)
}

// end returns when the process has ended, and status says how.
func (c *child) end() {
	timer := time.NewTimer(reapGrace)
	defer timer.Stop()
	select {
	case <-c.known:
		return
	case <-timer.C:
	}
	_ = c.Kill()
	<-c.known
}

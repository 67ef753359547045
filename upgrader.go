package crossfade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/exclusive"
	"github.com/crossfade-go/crossfade/internal/generations"
	"github.com/crossfade-go/crossfade/internal/mailbox"
	"github.com/crossfade-go/crossfade/internal/pidfile"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/internal/unit"
	"github.com/crossfade-go/crossfade/scm"
)

// State is where a process stands in the life of a service.
type State = handoff.State

// The states of a process. An owner is in one of the three that [State.Owns] names.
const (
	StateCandidate  = handoff.StateCandidate  // takes over and has not been given the service yet
	StateHeir       = handoff.StateHeir       // its predecessor has died; owns at Ready
	StateOwner      = handoff.StateOwner      // owns
	StateOffering   = handoff.StateOffering   // owns, an attempt is under way
	StateCommitting = handoff.StateCommitting // owns, between Ready and Commit
	StateStandby    = handoff.StateStandby    // has committed and not been answered
	StateProbation  = handoff.StateProbation  // its successor owns, and it can resume
	StateYielding   = handoff.StateYielding   // has rolled back, and waits for its predecessor to resume
	StateDraining   = handoff.StateDraining   // has retired and finishes what it has
	StateOut        = handoff.StateOut        // takes no part any more
)

// Status is how a process stands.
type Status = handoff.Status

// Upgrader is a process's part in the life of a service: first process,
// successor, owner, predecessor, in this order as far as it comes. All its
// methods may be called concurrently.
type Upgrader struct {
	cfg       *Config
	log       *slog.Logger
	env       environment
	fds       *Fds
	handed    handedOver
	handing   chan struct{} // has an element for each connection that is being handed over
	older     *generations.List
	server    *handoff.Server
	exclusive *exclusive.Resource
	unit      *unit.Member
	taking    *handoff.Taking // nil in a first process; set by New

	dialled bool // the owner was reached by Config.Socket; set by New
	peer    int  // the predecessor's pid, as the kernel says, 0 if it does not; set by New

	mu        sync.Mutex
	claim     *rendezvous.Claim // of the control path, nil without one
	inherited *rendezvous.Claim // of the predecessor's path, where this process has its own
	err       error             // valid once exit is closed
	exitAt    time.Time
	lostWhy   string // the last thing that was logged about the control path

	readyOnce sync.Once
	readyErr  error
	stopOnce  sync.Once
	watchOnce sync.Once

	exit     chan struct{} // closed when this process should drain and exit
	settled  chan struct{} // closed when no predecessor can come back
	gone     chan struct{} // closed when the predecessor has exited
	endDrain chan struct{} // closed when the successor wants the drain to end
	failed   chan struct{} // closed when this process was a successor and no longer is
	stopping chan struct{} // closed when Stop has begun
	parked   chan struct{} // closed when this process stays although it is out

	exitOnce, settledOnce, goneOnce, endDrainOnce, parkOnce sync.Once
}

// New reaches the owner of the control path and receives what it offers, or
// becomes the first process. ctx bounds New only. cfg may be nil.
//
// It takes the variables CROSSFADE_* out of the environment, and those of systemd
// unless Config.IgnoreServiceManager says otherwise. An inherited connection
// (CROSSFADE_FD, see Upgrade) comes before Config.Socket, that before
// CROSSFADE_SOCKET.
//
// Errors: ErrOwnerUnknown and those of the owner's refusal (ErrBusy, ErrDraining,
// ErrPolicy, ErrDenied, ErrIncompatible, ErrStopping), ErrTimeout if it is
// silent, ErrLimit if this process cannot hold what is offered, ErrAborted.
// Nothing is bound or unlinked then, and everything received is closed.
func New(ctx context.Context, cfg *Config) (*Upgrader, error) {
	u, err := newUpgrader(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("crossfade: %w", err)
	}
	return u, nil
}

func newUpgrader(ctx context.Context, cfg *Config) (*Upgrader, error) {
	env, err := takeEnvironment()
	if err != nil {
		return nil, env.abandon(err)
	}
	manager, trouble := takeManager(cfg)   // no reason not to serve
	defer func() { _ = manager.Close() }() // what the registry has not taken, with trouble too
	explicit := cfg != nil && cfg.Socket != ""
	c, err := cfg.populate(env)
	if err != nil {
		return nil, env.abandon(err)
	}
	u := &Upgrader{
		cfg: c, log: c.Logger, env: env,
		fds:      newFds(c, keepAlive(c.ListenConfig)),
		handing:  make(chan struct{}, maxHanding),
		exit:     make(chan struct{}),
		settled:  make(chan struct{}),
		gone:     make(chan struct{}),
		endDrain: make(chan struct{}),
		failed:   make(chan struct{}),
		stopping: make(chan struct{}),
		parked:   make(chan struct{}),
	}
	u.unit = u.newMember()
	u.fds.changed = u.unit.Changed
	u.exclusive = exclusive.New(c.Suspend, c.Resume, c.CommitTimeout, c.Logger, u.exit)
	u.server = handoff.NewServer(&handoff.ServerConfig{
		Process:  c.process(),
		Service:  service{u},
		Commands: commands{u},
		Limits: handoff.Limits{
			Hello: helloTimeout, Ready: c.ReadyTimeout, MaxReady: c.MaxReadyTimeout, Commit: c.CommitTimeout,
			Probation: c.Probation, MaxProbation: c.MaxProbation,
			MaxDraining: c.MaxDraining,
		},
		Authorize: c.Authorize,
		Accept:    c.AcceptSuccessor,
		OnEvent:   mailbox.New(c.OnEvent).Post,
		OnChange:  u.unit.Changed,
		Log:       c.Logger,
	})
	u.older = generations.New(generations.Config{
		Log: c.Logger, Kill: c.KillOverdue, Gone: u.server.GenerationGone, Check: checkIdentity,
		Owns: func() bool { return u.server.State().Owns() && isClosed(u.settled) },
	})
	if !c.Disabled {
		if err := u.older.Open(); err != nil {
			return nil, env.abandon(err)
		}
	}
	switch {
	case c.Disabled:
		u.server.Own(1, true, true)
		u.markSettled()
		u.markGone()
	case env.fd >= 0:
		err = u.joinInherited(ctx, env.fd, explicit)
	case c.Socket != "":
		err = u.join(ctx, 1)
	default:
		err = u.first(nil, 1)
	}
	if err != nil {
		u.older.Close()
		return nil, err
	}
	u.joinUnit(manager, trouble)
	return u, nil
}

// first makes this process the owner of a service that nobody owns.
func (u *Upgrader) first(claim *rendezvous.Claim, generation uint64) error {
	u.setClaim(claim)
	u.accept()
	u.server.Own(generation, false, true)
	u.markSettled()
	u.markGone()
	if claim != nil {
		if err := u.openControl(); err != nil {
			return errors.Join(err, claim.Unlink())
		}
		u.watchOnce.Do(func() { go u.watchControl() })
	}
	u.log.Info("this process owns the service", "generation", generation)
	return nil
}

// Fds returns the registry of named descriptors.
func (u *Upgrader) Fds() *Fds { return u.fds }

// HasPredecessor reports whether this process has taken over from another, or
// is about to. It is fixed when New returns.
func (u *Upgrader) HasPredecessor() bool { return u.taking != nil }

// Progress tells the owner, and whoever asks it for its status, that this
// process is still initialising: status is one line of at most 1000 bytes,
// extend is how much longer it needs from now on, capped by the owner's
// MaxReadyTimeout; zero leaves the deadline alone. The service manager gets both
// too, if this is the main process of its unit. After Ready it does nothing.
func (u *Upgrader) Progress(status string, extend time.Duration) {
	u.unit.Progress(status, extend)
	if u.taking != nil {
		u.taking.Progress(status, extend)
	}
}

// Ready says that this process can serve. On nil it is the owner: it accepts,
// and Exit will say when to leave. An error means that it certainly is not, and
// that everything received is closed: exit with a status other than 0, and
// never start afresh. When ctx ends before the owner has committed, the attempt
// is aborted.
//
// Further calls return the first one's result. Errors: ErrTimeout, ErrAborted
// with the owner's reason, ErrUnclaimed, ErrStopped, those of ctx.
func (u *Upgrader) Ready(ctx context.Context) error {
	u.readyOnce.Do(func() {
		if err := u.ready(ctx); err != nil {
			u.readyErr = fmt.Errorf("crossfade: %w", err)
		}
	})
	return u.readyErr
}

func (u *Upgrader) ready(ctx context.Context) error {
	if u.cfg.Disabled {
		u.unit.Ready()
		return nil
	}
	if u.taking == nil {
		select {
		case <-u.exit:
			return u.Err()
		default:
		}
		u.closeUnclaimed()
		u.writePIDFile()
		u.server.SetReady()
		u.unit.Ready()
		return nil
	}
	unclaimed, err := u.checkReady()
	if err != nil {
		u.taking.Abort(err)
		return err
	}
	return u.taking.Ready(ctx, unclaimed)
}

// checkReady finds what would otherwise fail after Commit, when it is too late.
func (u *Upgrader) checkReady() ([]handoff.Descriptor, error) {
	if u.cfg.PIDFile != "" {
		if err := pidfile.Check(u.cfg.PIDFile); err != nil {
			return nil, err
		}
	}
	unclaimed := u.fds.unclaimed()
	if len(unclaimed) == 0 || !u.cfg.RequireAllClaimed {
		return unclaimed, u.checkLimit(len(unclaimed))
	}
	var names []string
	for _, d := range unclaimed[:min(len(unclaimed), 10)] {
		names = append(names, fmt.Sprintf("%q (%s %s)", d.Name, d.Network, d.Address))
	}
	return nil, fmt.Errorf("%w: %d of them: %s", ErrUnclaimed, len(unclaimed), strings.Join(names, ", "))
}

// checkLimit checks RLIMIT_NOFILE for the second descriptor that each listener
// needs to accept. Those of what is unclaimed are free by then.
func (u *Upgrader) checkLimit(unclaimed int) error {
	err := scm.Reserve(u.fds.listeners() - unclaimed)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return fmt.Errorf("%w to accept: %w", ErrLimit, err)
}

// Settled is closed when no predecessor can come back: at once in a first
// process, and else when the predecessor has retired or died after this process
// has come to own. It is the signal to start what must run only once.
func (u *Upgrader) Settled() <-chan struct{} { return u.settled }

// Settle decides that this process stays: it ends its probation, and returns nil
// once the predecessor cannot come back. Without a probation, or after its end,
// it waits for the same, and returns at once if it has happened.
//
// Errors: ErrNotReady before Ready has returned nil; ErrRolledBack if the
// service was given back, or is about to be; if ctx ends first, ErrOutcomeUnknown:
// the predecessor has been told, and Settled says when it has retired.
func (u *Upgrader) Settle(ctx context.Context) error {
	if err := u.settle(ctx); err != nil {
		return fmt.Errorf("crossfade: settle: %w", err)
	}
	return nil
}

func (u *Upgrader) settle(ctx context.Context) error {
	if u.taking == nil || isClosed(u.settled) {
		return nil
	}
	return outcome(ctx, u.taking.Settle(ctx))
}

// Rollback gives the service back to the predecessor, and returns nil once that
// one owns again. This process accepts until then, so no client is turned away.
// Then Exit is closed and Err matches ErrRolledBack: finish what is open and
// exit with status [ExitRolledBack]. Data do not go back: only the sockets do,
// and what Suspend lets go of. reason reaches the predecessor's log and status.
//
// Errors: ErrNotReady before Ready has returned nil; ErrSettled if the
// predecessor cannot come back, as in a first process and without a probation;
// ErrLost if it has died meanwhile, and what Suspend returned: then this process
// goes on as the owner. If ctx ends first, ErrOutcomeUnknown: the rollback goes
// on, and State tells what has become of it.
func (u *Upgrader) Rollback(ctx context.Context, reason string) error {
	if err := u.rollback(ctx, reason); err != nil {
		return fmt.Errorf("crossfade: rollback: %w", err)
	}
	<-u.exit // which follows at once
	return nil
}

func (u *Upgrader) rollback(ctx context.Context, reason string) error {
	if u.taking == nil || isClosed(u.settled) {
		return ErrSettled
	}
	return outcome(ctx, u.taking.Rollback(ctx, reason))
}

// commands is the Upgrader as controllers see it.
type commands struct{ u *Upgrader }

func (c commands) Upgrade(ctx context.Context, settled bool) error {
	if c.u.cfg.Disabled {
		return errors.ErrUnsupported
	}
	return c.u.upgrade(ctx, settled)
}

func (c commands) Settle(ctx context.Context) error { return c.u.settle(ctx) }

func (c commands) Rollback(ctx context.Context, reason string) error {
	return c.u.rollback(ctx, reason)
}

func (c commands) EndDrain(ctx context.Context, generation uint64) (string, error) {
	return c.u.endDrainOf(ctx, generation)
}

func (c commands) Stop(reason string) {
	c.u.log.Info("stopping, because a controller wishes so", "reason", reason)
	go c.u.Stop() // it waits for the answer to the controller
}

// outcome gives the end of the caller's patience its name.
func outcome(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// Exit is closed when this process should finish what is open and exit: its
// successor has taken over, it has rolled back, its own attempt has failed, or
// Stop was called. Err says which. Any number of goroutines may wait for it.
func (u *Upgrader) Exit() <-chan struct{} { return u.exit }

// Err returns nil before Exit is closed, then an error that matches ErrRetired,
// ErrRolledBack or ErrStopped, or says why the attempt to take over has failed.
func (u *Upgrader) Err() error {
	select {
	case <-u.exit:
	default:
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// WaitForPredecessor returns nil when the predecessor has exited, at once if
// there is none, or the cause of ctx. A process that gave up control in another
// way than by exiting counts too. Once this process is out because its attempt
// has failed or was rolled back it returns what Err does: the predecessor goes on.
func (u *Upgrader) WaitForPredecessor(ctx context.Context) error {
	select {
	case <-u.gone:
	case <-u.failed:
	case <-ctx.Done():
	}
	err := context.Cause(ctx)
	switch { // several may have happened: what is known counts
	case isClosed(u.gone):
		return nil
	case isClosed(u.failed):
		err = u.Err()
	}
	return fmt.Errorf("crossfade: waiting for the predecessor's end: %w", err)
}

// State returns where this process stands.
func (u *Upgrader) State() State { return u.server.State() }

// Status returns how this process stands, with a look at the control path.
func (u *Upgrader) Status() *Status {
	ctx, cancel := context.WithTimeout(context.Background(), u.cfg.DialTimeout)
	defer cancel()
	return u.server.Status(ctx)
}

// Stop ends this process's part; what that means depends on its state:
//
//   - a candidate gives its attempt up;
//   - an owner stops for good: an attempt under way is aborted, the control path
//     and the paths of unix listeners are unlinked;
//   - an owner on probation gives the service back, as by Rollback, at the latest
//     when this process exits; one that has settled waits at most CommitTimeout
//     for its predecessor's retirement, and stops for good then;
//   - a predecessor whose successor has not settled asks for it, waits at most
//     CommitTimeout, and leaves;
//   - a process that drains, or is out, stays so.
//
// Exit is closed when Stop returns, and Err says ErrStopped if nothing else had
// ended this process's part before. Listeners work on until the program closes
// them. Stop may be called any number of times: defer it right after New.
func (u *Upgrader) Stop() {
	u.stopOnce.Do(u.stop)
}

func (u *Upgrader) stop() {
	close(u.stopping)
	defer u.finish(ErrStopped)
	if u.cfg.Disabled {
		u.server.Stop()
		u.unit.Stop(true)
		return
	}
	if u.taking != nil {
		u.taking.Abort(stoppedError{}) // does nothing once this process has owned
		u.giveBack()
	}
	owned := u.server.Stop()
	u.unit.Stop(u.server.Settled()) // not before: a successor in the same unit may have got the part
	u.end(owned && u.server.Settled(), ErrStopped)
	u.server.Finish()
	if u.taking != nil && u.server.State() != handoff.StateDraining {
		u.taking.Leave()
	}
}

// end lets go of everything, because of err. owned says that this process was
// the owner, so that nobody comes after it.
func (u *Upgrader) end(owned bool, err error) {
	u.server.Close()
	if u.server.State() != handoff.StateDraining { // nobody waits for the end of this process
		u.older.Close()
	}
	if !owned {
		u.suspend()
		u.letGo(err, false)
		return
	}
	if u.cfg.PIDFile != "" {
		if err := pidfile.Remove(u.cfg.PIDFile); err != nil {
			u.log.Warn("the PID file stays", "err", err)
		}
	}
	u.fds.release(err)
	claim, inherited := u.takeClaims()
	for _, c := range []*rendezvous.Claim{inherited, claim} {
		if c == nil {
			continue
		}
		if err := c.Unlink(); err != nil {
			u.log.Warn("the control path stays", "err", err)
		}
	}
}

// suspend lets go of exclusive resources in a process that is out, if it has them:
// somebody else may own from now on.
func (u *Upgrader) suspend() {
	ctx, cancel := context.WithTimeout(context.Background(), u.cfg.CommitTimeout)
	defer cancel()
	if err := u.exclusive.LetGo(ctx, func() {}); err != nil {
		u.log.Error("this process is out and keeps what only one may use", "err", err)
	}
}

// giveBack rolls back, in an owner on probation, or waits for the retirement of
// its predecessor if the decision was taken. An owner that is not settled when it
// returns unlinks nothing: the predecessor, which meets the end of this one's
// connection, needs it.
func (u *Upgrader) giveBack() {
	state := u.server.State()
	if !state.Owns() && state != handoff.StateYielding {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), u.cfg.CommitTimeout,
		&handoff.TimeoutError{For: "answer of the predecessor", Limit: u.cfg.CommitTimeout})
	defer cancel()
	err := u.rollback(ctx, "stopped")
	if errors.Is(err, ErrSettled) {
		err = u.settle(ctx)
	}
	if err != nil && !u.server.Settled() {
		u.log.Warn("stopping although the predecessor has not answered: it gets the service back",
			"err", &handoff.Error{Side: handoff.Successor, Step: "stopping", Err: err})
	}
}

// letGo closes every copy of what was handed over or received (I6). drains says
// that this process has owned and still owes answers.
func (u *Upgrader) letGo(err error, drains bool) {
	u.fds.retire(err, drains)
	u.older.LetGo()
	claim, inherited := u.takeClaims()
	for _, c := range []*rendezvous.Claim{inherited, claim} {
		if c == nil {
			continue
		}
		if err := c.Release(); err != nil {
			u.log.Warn("a copy of the control socket could not be closed", "err", err)
		}
	}
}

// finish closes Exit. The first reason is the one that Err tells.
func (u *Upgrader) finish(err error) {
	u.exitOnce.Do(func() {
		u.mu.Lock()
		u.err, u.exitAt = err, time.Now()
		u.mu.Unlock()
		close(u.exit)
		u.unit.Changed()
		enforced := mustDrain(err)
		if enforced {
			whenParked(u.park)
		}
		if enforced || u.unit.Speaks() {
			go u.watchDrain(enforced) // as long as the process lasts
		}
	})
}

func (u *Upgrader) markSettled() { u.settledOnce.Do(func() { close(u.settled) }) }
func (u *Upgrader) markGone()    { u.goneOnce.Do(func() { close(u.gone) }) }

// writePIDFile belongs to every change of owner.
func (u *Upgrader) writePIDFile() {
	if u.cfg.PIDFile == "" {
		return
	}
	if err := pidfile.Write(u.cfg.PIDFile); err != nil {
		u.log.Error("the PID file could not be written", "err", err)
	}
}

func (u *Upgrader) setClaim(c *rendezvous.Claim) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.claim = c
}

func (u *Upgrader) currentClaim() *rendezvous.Claim {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.claim
}

func (u *Upgrader) takeClaims() (claim, inherited *rendezvous.Claim) {
	u.mu.Lock()
	defer u.mu.Unlock()
	claim, inherited = u.claim, u.inherited
	u.claim, u.inherited = nil, nil
	return claim, inherited
}

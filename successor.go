package crossfade

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

// join reaches the owner of the control path or becomes the first. An owner
// that goes away is looked for again, as long as DialTimeout. A first process
// gets the generation given, or that of its failed attempt.
func (u *Upgrader) join(ctx context.Context, generation uint64) error {
	waitUntil := time.Time{}
	if u.cfg.Wait > 0 {
		waitUntil = time.Now().Add(u.cfg.Wait)
	}
	var searchUntil time.Time
	var pause time.Duration
	for {
		if searchUntil.IsZero() {
			searchUntil = time.Now().Add(u.cfg.DialTimeout)
		}
		conn, claim, err := u.search(ctx, searchUntil)
		if err != nil {
			return err
		}
		if claim != nil {
			return u.first(claim, generation)
		}
		u.dialled = true
		if err := u.checkOwner(conn); err != nil {
			return errors.Join(err, conn.Close())
		}
		err = u.takeOver(ctx, conn, waitUntil)
		var lost *handoff.LostError
		switch {
		case err == nil:
			return nil
		case errors.Is(err, handoff.ErrAskAgain):
			searchUntil, pause = time.Time{}, 0 // it was there to answer
		case errors.As(err, &lost):
			generation = max(generation, lost.Generation)
		case !errors.Is(err, handoff.ErrMoved):
			return explainDenied(fmt.Errorf("taking over %s: %w", u.cfg.Socket, err), u.cfg.Socket)
		}
		u.log.Info("looking again who owns the control socket", "path", u.cfg.Socket, "err", err)
		if !searchUntil.IsZero() && !time.Now().Before(searchUntil) {
			return fmt.Errorf("%w: %s was answered by a process that left, for %v: %w", ErrOwnerUnknown, u.cfg.Socket, u.cfg.DialTimeout, err)
		}
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
		pause = min(max(2*pause, time.Millisecond), maxJoinPause)
	}
}

// maxJoinPause is the longest time between two looks for an owner that goes
// away each time: nothing tells when another will do better.
const maxJoinPause = 100 * time.Millisecond

// sleep reports false if ctx has ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (u *Upgrader) search(ctx context.Context, until time.Time) (*scm.Conn, *rendezvous.Claim, error) {
	ctx, cancel := context.WithDeadlineCause(ctx, until,
		&handoff.TimeoutError{For: "answer on " + u.cfg.Socket, Limit: u.cfg.DialTimeout})
	defer cancel()
	conn, claim, err := rendezvous.Find(ctx, u.cfg.place())
	if errors.Is(err, handoff.ErrTimeout) {
		err = &handoff.Error{Side: handoff.Successor, Step: "connecting", Err: err}
	}
	return conn, claim, err
}

// joinInherited takes over through the connection that the predecessor's
// Upgrade has left in the environment. explicit says that the program has
// configured a control path itself.
func (u *Upgrader) joinInherited(ctx context.Context, fd int, explicit bool) error {
	conn, err := scm.OpenConn(scm.NewFD(fd))
	if err != nil {
		return fmt.Errorf("the inherited connection %s=%d: %w", envFD, fd, err)
	}
	err = u.takeOver(ctx, conn, time.Time{})
	var lost *handoff.LostError
	if errors.As(err, &lost) && u.cfg.Socket != "" {
		u.log.Info("the predecessor has died: looking who owns the control socket", "path", u.cfg.Socket, "err", err)
		return u.join(ctx, max(1, lost.Generation))
	}
	if err != nil {
		return err
	}
	if !explicit {
		return nil
	}
	if err := u.acquireOwnPath(ctx); err != nil {
		u.taking.Abort(err)
		return err
	}
	return nil
}

// acquireOwnPath claims the configured control path if it is another than the
// predecessor's, which is given up when that one has retired.
func (u *Upgrader) acquireOwnPath(ctx context.Context) error {
	if claim := u.currentClaim(); claim != nil && sameFile(u.cfg.Socket, claim) {
		return nil
	}
	conn, claim, err := u.search(ctx, time.Now().Add(u.cfg.DialTimeout))
	if err != nil {
		return err
	}
	if conn != nil {
		return errors.Join(fmt.Errorf("%w: %s is served by another process than the one that started this one", ErrBusy, u.cfg.Socket), conn.Close())
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inherited, u.claim = u.claim, claim
	return nil
}

// sameFile reports whether path leads to the claim's socket.
func sameFile(path string, claim *rendezvous.Claim) bool {
	id, err := rendezvous.Identify(path)
	have := claim.Identity()
	return err == nil && id.Dev == have.Dev && id.Ino == have.Ino
}

// takeOver receives the owner's offer. On an error nothing that came remains.
func (u *Upgrader) takeOver(ctx context.Context, conn *scm.Conn, waitUntil time.Time) error {
	u.older.Trust(conn)
	u.peer = peerPID(conn)
	taking, err := handoff.Connect(ctx, conn, &handoff.SuccessorConfig{
		Process: u.cfg.process(), Force: u.env.force, Receiver: receiver{u},
		Probation: u.wantedProbation(), AtProbationEnd: u.cfg.AtProbationEnd,
		Patience: u.cfg.DialTimeout, WaitUntil: waitUntil, Log: u.log,
	})
	if err != nil {
		u.fds.forget()
		u.older.Forget()
		if claim, _ := u.takeClaims(); claim != nil {
			err = errors.Join(err, claim.Release())
		}
		return err
	}
	u.taking = taking
	u.older.Follow(taking.Predecessor())
	u.server.SetGeneration(taking.Generation())
	return nil
}

// wantedProbation is what to ask for, nil for what the predecessor gives.
func (u *Upgrader) wantedProbation() *time.Duration {
	switch {
	case u.env.probation != nil:
		return u.env.probation
	case u.cfg.Probation > 0:
		return &u.cfg.Probation
	default:
		return nil
	}
}

// receiver is the Upgrader as the successor's machine sees it.
type receiver struct{ u *Upgrader }

func (r receiver) Receive(control *handoff.Control, ds []handoff.Descriptor) error {
	if control != nil {
		if len(ds) < 2 || ds[0].Kind != handoff.KindControl || ds[1].Kind != handoff.KindLock {
			closeDescriptors(ds)
			return errors.New("the page that describes the control socket does not begin with it and its lock")
		}
		for i, name := range []string{controlName, lockName} {
			err := checkIdentity(ds[i])
			if err == nil && ds[i].Name != name {
				err = fmt.Errorf("its name is %q", ds[i].Name)
			}
			if err != nil {
				closeDescriptors(ds)
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		listener, lock := ds[0].FD, ds[1].FD
		ds = ds[2:]
		claim, err := rendezvous.Adopt(r.u.adoptedPlace(), rendezvous.Identity{
			Path: control.Path, Bound: control.Bound, Dev: control.Dev, Ino: control.Ino, Backlog: control.Backlog,
		}, listener, lock)
		if err != nil {
			closeDescriptors(ds)
			return err
		}
		r.u.setClaim(claim)
	}
	return r.receive(ds, false)
}

// adoptedPlace is the predecessor's control path as this process sees it: the
// one that was dialled, which in another container may have another name.
func (u *Upgrader) adoptedPlace() rendezvous.Place {
	place := u.cfg.place()
	if !u.dialled {
		place.Path = ""
	}
	return place
}

func (r receiver) Apply(changes handoff.Changes) error {
	r.u.fds.remove(changes.Removed)
	return r.receive(changes.Added, true)
}

func (r receiver) receive(ds []handoff.Descriptor, late bool) error {
	ds, err := r.u.older.Receive(ds)
	if err != nil {
		return err
	}
	return r.u.fds.receive(ds, late)
}

func (r receiver) Inherit(generation uint64) {
	r.u.fds.forgetLateStates()
	r.u.server.Inherit(generation)
	r.u.serveControl()
}

func (r receiver) Own(generation uint64, probation *handoff.Probation) {
	if r.u.server.State() == handoff.StateOut {
		return // it was told to stop while it was to give the service back
	}
	r.u.server.Own(generation, true, false) // first: what is served next may ask for it
	r.u.server.SetProbation(probation)
	r.u.fds.thaw()
	r.u.older.Succeeded()
	r.u.fds.own()
	r.u.serveControl()
	r.u.writePIDFile()
	r.u.accept()
	r.u.unit.Ready()
	r.u.log.Info("this process owns the service", "generation", generation)
}

func (r receiver) Settling() { r.u.server.SetSettling() }

func (r receiver) Yield(ctx context.Context) error {
	if _, err := r.u.standStill(ctx); err != nil {
		r.u.fds.thaw()
		r.u.accept()
		return err
	}
	r.u.server.Yield()
	return nil
}

func (r receiver) Settled() {
	orphans := r.u.fds.settle()
	r.u.older.Retired() // first: whoever is told of the other looks at the list
	r.u.server.SetSettled()
	r.u.fds.unlinkUnused(orphans) // may wait for locks: a Stop meanwhile goes by the server
	r.u.giveUpInheritedPath()
	r.u.markSettled()
}

func (r receiver) Draining(connections int, deadline time.Time) {
	r.u.older.Told(connections, deadline)
}

func (r receiver) ServiceManager(m handoff.ServiceManager) {
	if r.u.cfg.IgnoreServiceManager {
		return // what there is to say the program says
	}
	r.u.unit.Given(m)
}

func (r receiver) Connection(c *handoff.Connection) (answered func(taken bool), err error) {
	if state := r.u.server.State(); state == handoff.StateDraining || state == handoff.StateOut {
		_ = c.FD.Close()
		return nil, fmt.Errorf("this process is out itself: %v", state)
	}
	return r.u.handed.receive(c)
}

func (r receiver) Gone() {
	r.u.older.Left()
	r.u.unit.Gone()
	r.u.markGone()
}

func (r receiver) Fail(err error) {
	if errors.Is(err, ErrRolledBack) && isClosed(r.u.stopping) {
		err = fmt.Errorf("%w: the predecessor has the service again", ErrStopped)
	}
	owned := r.u.server.Stop() // an heir that gives up leaves nobody behind
	r.u.unit.Leave()
	r.u.end(owned, err)
	r.u.finish(err)
	close(r.u.failed)
}

// serveControl serves the control socket from here on, without which this
// process could serve but never be replaced by another than Upgrade's.
func (u *Upgrader) serveControl() {
	if err := u.openControl(); err != nil {
		u.log.Error("the control socket cannot be served yet: trying again", "err", err)
		go u.openControlLater()
	}
	u.watchOnce.Do(func() { go u.watchControl() })
}

// openControlLater serves the control socket as soon as there is room for the
// descriptor that it takes, for whose coming there is no event.
func (u *Upgrader) openControlLater() {
	ticker := time.NewTicker(resumeInterval)
	defer ticker.Stop()
	for {
		select {
		case <-u.exit:
			return
		case <-ticker.C:
		}
		if state := u.server.State(); !state.Owns() && state != handoff.StateHeir {
			continue // until this process owns again
		}
		if u.openControl() == nil {
			return
		}
	}
}

// giveUpInheritedPath unlinks the predecessor's control path, where this
// process has one of its own.
func (u *Upgrader) giveUpInheritedPath() {
	u.mu.Lock()
	claim := u.inherited
	u.inherited = nil
	u.mu.Unlock()
	if claim == nil {
		return
	}
	if err := claim.Unlink(); err != nil {
		u.log.Warn("the predecessor's control path stays", "err", err)
	}
}

func closeDescriptors(ds []handoff.Descriptor) {
	for _, d := range ds {
		_ = d.FD.Close()
	}
}

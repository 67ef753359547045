package pausable

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// state is where a gate stands. It moves between paused and running, and from
// either to retired and then to closed, or to closed directly.
type state int

const (
	paused state = iota
	running
	retired
	closed
)

// longAgo is a deadline that has passed. net treats every time before now alike.
var longAgo = time.Unix(1, 0)

// gate lets the taking calls on one socket through while it is running, and
// holds them back otherwise. It also keeps the program's deadline, because a
// deadline must count while no call is in the kernel, and because the deadline
// of the plain connection below is needed for something else: a past one is how
// calls in flight are interrupted.
//
// That interruption never outlives the calls that it is meant for, so whoever
// uses the plain connection directly sees as little of it as possible.
//
// All methods may be called concurrently.
type gate struct {
	// transition is held from the beginning of a change of state until the calls
	// in flight have ended and what belongs to the change is done. No taking call
	// ever waits for it.
	transition sync.Mutex

	// Fixed before the gate is shared.
	local       net.Addr
	failure     net.OpError             // what a refused call returns, but for Op and Err
	retiredErr  error                   // a retired gate's answer; nil: calls block until Close
	setDeadline func(t time.Time) error // the plain connection's; called with mu held, only while calls are in flight

	mu          sync.Mutex
	changed     sync.Cond // on mu; state, expired or the end of the last call in flight
	state       state
	deadline    time.Time // the program's, with a monotonic reading; zero: none
	expired     bool      // deadline has passed
	timer       *time.Timer
	inFlight    int
	interrupted bool   // the plain connection has a past deadline
	interrupts  uint64 // how often interrupted was set
}

// init prepares a paused gate for a plain connection. local and remote are what
// the plain connection's own errors name: see net.OpError.
func (g *gate) init(failure net.OpError, local net.Addr, setDeadline func(time.Time) error) {
	g.failure = failure
	g.local = local
	g.setDeadline = setDeadline
	g.changed.L = &g.mu
}

// do performs call, which takes from the socket, once the gate lets it through,
// and again after it was interrupted. A refusal is a *net.OpError with op.
func (g *gate) do(op string, call func() error) error {
	for {
		again, err := g.once(op, call)
		if !again {
			return err
		}
	}
}

// once performs call at most once. It reports true if the call took nothing
// because the gate interrupted it. The runtime treats a deadline that is reset
// before the waiting goroutine has run as one that never passed; so does again.
func (g *gate) once(op string, call func() error) (again bool, err error) {
	before, err := g.enter(op)
	if err != nil {
		return false, err
	}
	// Deferred, because the function that a program passes to RawConn.Read may
	// panic: a count that never falls would block Pause for ever.
	defer func() {
		interrupted := g.leave(before)
		again = interrupted && errors.Is(err, os.ErrDeadlineExceeded)
	}()
	return false, call()
}

// enter waits until the gate is running and counts a call in flight.
func (g *gate) enter(op string) (interrupts uint64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case g.state == closed:
			return 0, g.refuse(op, net.ErrClosed)
		case g.state == retired && g.retiredErr != nil:
			return 0, g.refuse(op, g.retiredErr)
		case g.expired:
			return 0, g.refuse(op, os.ErrDeadlineExceeded)
		case g.state == running:
			g.inFlight++
			return g.interrupts, nil
		}
		g.changed.Wait()
	}
}

// leave ends a call in flight and reports whether the gate has interrupted it.
func (g *gate) leave(interruptsBefore uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	interrupted := g.interrupts != interruptsBefore
	g.inFlight--
	if g.inFlight == 0 {
		g.update()
	}
	return interrupted
}

// stop moves the gate to a state in which no call takes anything, and returns
// when none is in flight. It reports false, having done nothing, if the gate is
// in that state already or in one that it cannot leave for it. The caller holds
// transition.
func (g *gate) stop(to state) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state >= to && (to != paused || g.state != running) {
		return false
	}
	g.state = to
	g.update()
	for g.inFlight > 0 {
		g.changed.Wait()
	}
	if to == closed && g.timer != nil {
		g.timer.Stop()
	}
	return true
}

// run lets calls through. prepare is called first, with mu held. The caller
// holds transition and has found the gate paused.
func (g *gate) run(prepare func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	prepare()
	g.state = running
	g.update()
}

// now returns the current state. Under transition it stays true.
func (g *gate) now() state {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}

// setProgramDeadline sets the deadline of all present and future calls, paused
// or not; the zero time removes it.
func (g *gate) setProgramDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == closed {
		return &net.OpError{Op: "set", Net: g.failure.Net, Addr: g.local, Err: net.ErrClosed}
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	g.deadline, g.expired = time.Time{}, false
	if !t.IsZero() {
		g.arm(time.Until(t))
	}
	g.update()
	return nil
}

// arm makes the deadline pass after d. mu is held.
func (g *gate) arm(d time.Duration) {
	if d <= 0 {
		g.expired = true
		return
	}
	// The program's time may carry no monotonic reading; this one always does, so
	// that a step of the wall clock cannot divide the timer from the comparison.
	g.deadline = time.Now().Add(d)
	if g.timer == nil {
		g.timer = time.AfterFunc(d, g.expire)
		return
	}
	g.timer.Reset(d)
}

// expire is the timer's function. Stop does not wait for one that has begun, so
// it may find a deadline that was moved or removed since.
func (g *gate) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deadline.IsZero() || time.Now().Before(g.deadline) {
		return
	}
	g.expired = true
	g.update()
}

// update tells the waiting, and the calls in flight, what has changed. mu is
// held, so that the plain connection's deadline and interrupted agree.
func (g *gate) update() {
	if want := g.inFlight > 0 && (g.state != running || g.expired); want != g.interrupted {
		var t time.Time
		if want {
			g.interrupts++
			t = longAgo
		}
		// It fails only on a connection that was closed below the gate; then the
		// calls in flight end by that.
		_ = g.setDeadline(t)
		g.interrupted = want
	}
	g.changed.Broadcast()
}

// refuse makes the error that the plain connection would have returned.
func (g *gate) refuse(op string, err error) error {
	e := g.failure
	e.Op, e.Err = op, err
	return &e
}

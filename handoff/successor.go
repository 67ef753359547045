package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// The steps of the successor, named after the message that it waits for.
const (
	stepWelcome      = "Welcome"
	stepManifestPage = "ManifestPage"
	stepInit         = "the call of Ready"
	stepCommit       = "Commit"
	stepRetired      = "Retired"
	stepYield        = "giving the service back"
	stepResumed      = "Resumed"
)

// Receiver is what the successor's machine needs of the process that takes
// over. Receive is called by [Connect]'s goroutine; everything else by the
// machine's, one at a time.
type Receiver interface {
	// Receive checks one page of the offer and keeps it. It takes ownership of
	// the descriptors, also on an error, which aborts the attempt.
	Receive(control *Control, ds []Descriptor) error
	// Apply checks and keeps what has changed since the offer, like Receive.
	Apply(changes Changes) error
	// Inherit is called when the predecessor has died after Received and before
	// Commit: this process is the heir and serves the control socket. What came
	// with the last pages may be old: if Abort could not be written to this
	// process, the predecessor has gone on before it died.
	Inherit(generation uint64)
	// Own is called when this process owns: from here on it accepts. It is
	// called again if the predecessor dies while it was to take the service
	// back. probation is nil if there is none, or no more.
	Own(generation uint64, probation *Probation)
	// Settling is called when this process has decided to stay, and the
	// predecessor is asked to retire.
	Settling()
	// Yield is called when this process rolls back: it lets go of exclusive
	// resources, pauses what two processes must not read at once, and owns no
	// longer when it returns. What may be accepted by both it goes on
	// accepting. An error has undone all of it: then it owns still.
	Yield(ctx context.Context) error
	// Settled is called when the predecessor cannot come back.
	Settled()
	// Draining is called when the retired predecessor tells how many connections
	// it still has, -1 if it does not say, and by when it will be gone: the zero
	// time if it does not say.
	Draining(connections int, deadline time.Time)
	// ServiceManager is called when the retired predecessor, which is in the same
	// unit, says that this process is its main process now.
	ServiceManager(m ServiceManager)
	// Connection is called when the retired predecessor passes a connection. It
	// takes ownership of the descriptor, also on an error, which refuses the
	// connection. Nothing may be read from it before answered is called, which
	// must not block: with true the connection is the program's, with false, as
	// the answer could not be written, it must be closed.
	Connection(c *Connection) (answered func(taken bool), err error)
	// Gone is called when the predecessor has closed its end: it has exited.
	Gone()
	// Fail is called when the attempt has ended without ownership. Everything
	// received must be closed when it returns (I6).
	Fail(err error)
}

// SuccessorConfig is what [Connect] needs.
type SuccessorConfig struct {
	Process  Process // who wants to take over; without a generation
	Force    bool    // from an owner of a higher epoch, too
	Receiver Receiver
	// Probation is what this process asks for; nil: what the predecessor gives
	// to one that does not ask. AtProbationEnd is what it answers when it is
	// over.
	Probation      *time.Duration
	AtProbationEnd ProbationEnd
	// Patience is how long a silent owner is waited for, at each step up to
	// Received.
	Patience time.Duration
	// WaitUntil is how long to wait while the owner refuses for a reason that
	// passes. The zero time: not at all. NOT_READY is always waited out.
	WaitUntil time.Time
	Log       *slog.Logger
}

// Taking is one attempt to take a service over, from the successor's side. Its
// methods may be called concurrently.
type Taking struct {
	link        *link
	receiver    Receiver
	log         *slog.Logger
	predecessor Process
	generation  uint64
	commitLimit time.Duration
	granted     time.Duration // the probation
	passes      bool          // the predecessor may pass connections
	passed      ids           // of the connections that have come; of the machine's goroutine
	atEnd       ProbationEnd
	nextPage    uint32
	offered     int  // descriptors that have come so far
	removed     int  // of those
	gone        bool // Gone was called

	// Of the machine's goroutine.
	call     *readyCall
	owns     bool
	owned    bool        // it has owned: there is nothing left to abort
	answered bool        // it has decided to stay or to give the service back
	yielding *rollback   // the one that goes on, or nil
	broken   bool        // nothing can be told to the predecessor any more
	overdue  *time.Timer // logs that the predecessor takes long to retire

	settled chan struct{} // closed when the predecessor cannot come back
	failed  chan struct{} // closed before Fail of the receiver is called, which waits for who waits for this
	done    chan struct{} // closed when the machine has ended
	err     error         // valid when failed or done is closed
}

// readyCall is one call of Ready on its way through the machine.
type readyCall struct {
	ctx       context.Context
	unclaimed []Descriptor
	result    chan error // has room for the one result
}

var (
	// errReady is the command of Ready.
	errReady = errors.New("the program has called Ready")
	// errRollback is the command of Rollback.
	errRollback = errors.New("the program has called Rollback")
)

// Connect takes ownership of conn, says Hello on it and takes the offer in. It
// returns after Received; the attempt then waits for [Taking.Ready].
//
// Errors: a [*RefusedError]; one that matches ErrAskAgain if the refusal has
// passed; a [*LostError] if the owner died before Received; [*TimeoutError],
// [*AbortedError], or what Receive returned; ErrCancelled and the cause of ctx.
// Descriptors that Receive has got by then are the receiver's to close.
func Connect(ctx context.Context, conn *scm.Conn, cfg *SuccessorConfig) (*Taking, error) {
	return connect(ctx, conn, cfg)
}

func connect(ctx context.Context, conn frames, cfg *SuccessorConfig) (*Taking, error) {
	t := &Taking{
		link: newLink(conn, scm.MaxDescriptors), receiver: cfg.Receiver, log: cfg.Log,
		atEnd:   cfg.AtProbationEnd,
		settled: make(chan struct{}), failed: make(chan struct{}), done: make(chan struct{}),
	}
	step, err := t.begin(ctx, cfg)
	if err == nil {
		go t.run()
		return t, nil
	}
	if !errors.As(err, new(*RefusedError)) {
		t.abort(step, err)
	}
	if lost(err) {
		err = &LostError{Generation: t.generation, Err: errors.Unwrap(err)}
	}
	t.link.close()
	return nil, &Error{Side: Successor, Step: step, Err: err}
}

// begin is everything from Hello to Received. It returns the step that failed.
func (t *Taking) begin(ctx context.Context, cfg *SuccessorConfig) (string, error) {
	hello := &pb.Hello{
		Versions: []uint32{Version}, Features: []string{FeatureConnections}, Role: pb.Role_ROLE_SUCCESSOR,
		Process: processToWire(cfg.Process), Force: cfg.Force,
		AtProbationEnd: probationEndToWire(cfg.AtProbationEnd),
	}
	if cfg.Probation != nil {
		hello.Probation = durationpb.New(*cfg.Probation)
	}
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: hello}})
	m, fds, err := t.patiently(ctx, stepWelcome, cfg.Patience)
	switch {
	case err != nil:
		return stepWelcome, err
	case m.GetRefuse() != nil:
		return stepWelcome, t.refused(ctx, m.GetRefuse(), cfg.WaitUntil)
	case m.GetWelcome() == nil:
		closeAll(fds)
		return stepWelcome, unexpected(m, stepWelcome)
	}
	if err := t.welcome(m.GetWelcome()); err != nil {
		return stepWelcome, err
	}
	total := int(m.GetWelcome().GetTotal())
	if err := prepare(total); err != nil {
		return stepPrepared, err
	}
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Prepared{Prepared: &pb.Prepared{}}})
	patience := cfg.Patience
	if m.GetWelcome().GetPending() > 0 { // what they wait for, the owner bounds
		patience += max(durationFromWire(m.GetWelcome().GetReadyTimeout()), 0)
	}
	if err := t.pages(ctx, total, patience); err != nil {
		return stepManifestPage, err
	}
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Received{Received: &pb.Received{}}})
	return "", nil
}

// welcome checks what the owner grants.
func (t *Taking) welcome(w *pb.Welcome) error {
	switch {
	case w.GetVersion() != Version:
		return protocolError("the owner chose protocol version %d, which was not offered", w.GetVersion())
	case w.GetGeneration() == 0:
		return protocolError("Welcome gives no generation")
	case w.GetGeneration() == math.MaxUint64:
		return protocolError("Welcome gives generation %d: none could follow it", w.GetGeneration())
	case w.GetTotal() > MaxDescriptors:
		return protocolError("Welcome announces %d descriptors, the limit is %d", w.GetTotal(), MaxDescriptors)
	case w.GetPending() > w.GetTotal():
		return protocolError("Welcome announces %d descriptors, and %d of them pending", w.GetTotal(), w.GetPending())
	case durationFromWire(w.GetCommitTimeout()) <= 0:
		return protocolError("Welcome gives no commit timeout")
	case durationFromWire(w.GetProbation()) < 0:
		return protocolError("Welcome grants a probation of %v", durationFromWire(w.GetProbation()))
	}
	t.predecessor = processFromWire(w.GetPredecessor())
	t.generation = w.GetGeneration()
	t.commitLimit = durationFromWire(w.GetCommitTimeout())
	t.granted = durationFromWire(w.GetProbation())
	t.passes = slices.Contains(w.GetFeatures(), FeatureConnections)
	return nil
}

// prepare makes room for the offer before it is sent: a transfer that cannot
// end well does not begin, and the table does not grow step by step under it.
func prepare(total int) error {
	err := scm.Reserve(total)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	return nil
}

// pages takes the offer in.
func (t *Taking) pages(ctx context.Context, total int, patience time.Duration) error {
	for {
		m, fds, err := t.patiently(ctx, stepManifestPage, patience)
		if err != nil {
			return err
		}
		p := m.GetManifestPage()
		if p == nil {
			closeAll(fds)
			return unexpected(m, stepManifestPage)
		}
		ds, err := t.page(p, fds, total)
		if err != nil {
			return err
		}
		if p.GetLast() && t.offered < total {
			closeAll(fds)
			return protocolError("the offer announced %d descriptors and ends after %d", total, t.offered)
		}
		if err := t.receiver.Receive(controlFromWire(p.GetControl()), ds); err != nil {
			return fmt.Errorf("%w: %w", ErrDescriptor, err)
		}
		t.ackPage()
		if p.GetLast() {
			return nil
		}
	}
}

// page checks the next page of the manifest, which brings the descriptors to
// at most limit, and takes it apart. On an error every descriptor is closed.
func (t *Taking) page(p *pb.ManifestPage, fds []*scm.FD, limit int) ([]Descriptor, error) {
	ds, err := pageFromWire(p, fds)
	if err != nil {
		return nil, err
	}
	offered, removed := t.offered+len(ds), t.removed+len(p.GetRemoved())
	switch {
	case p.GetPage() != t.nextPage:
		err = protocolError("page %d came instead of page %d", p.GetPage(), t.nextPage)
	case p.GetControl() != nil && t.nextPage > 0:
		err = protocolError("page %d describes the control socket, which only page 0 may", p.GetPage())
	case len(ds) == 0 && len(p.GetRemoved()) == 0 && p.GetControl() == nil && !p.GetLast():
		err = protocolError("page %d is empty and not the last", p.GetPage())
	case offered > limit:
		err = protocolError("page %d makes %d descriptors, the limit is %d", p.GetPage(), offered, limit)
	case removed > 0 && t.call == nil:
		err = protocolError("page %d removes descriptors from an offer that is not complete", p.GetPage())
	case removed > offered:
		err = protocolError("page %d makes %d removed descriptors of %d offered ones", p.GetPage(), removed, offered)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	t.nextPage++
	t.offered, t.removed = offered, removed
	return ds, nil
}

// ackPage acknowledges the page that page has taken in last.
func (t *Taking) ackPage() {
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_PageAck{PageAck: &pb.PageAck{Next: t.nextPage}}})
}

// refused waits a passing refusal out, where that is wanted.
func (t *Taking) refused(ctx context.Context, w *pb.Refuse, until time.Time) error {
	refused := refusedFromWire(w)
	if !refused.Passing() {
		return refused
	}
	t.log.Info("the owner asks to wait", "reason", refused.Reason)
	if !errors.Is(refused, ErrNotReady) {
		if !time.Now().Before(until) {
			return refused
		}
		var cancel context.CancelFunc
		limit := time.Until(until).Round(time.Millisecond)
		ctx, cancel = context.WithDeadlineCause(ctx, until, &TimeoutError{For: "change", Limit: limit})
		defer cancel()
	}
	if err := t.link.conn.Discard(ctx); err != nil {
		return fmt.Errorf("%w, and it stayed so: %w", refused, err)
	}
	return fmt.Errorf("%w: %w", ErrAskAgain, refused)
}

func refusedFromWire(w *pb.Refuse) *RefusedError {
	e := &RefusedError{Reason: printable(w.GetReason()), code: w.GetCode(), versions: w.GetVersions()}
	if w.GetCode() == pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE {
		e.Reason = fmt.Sprintf("%s (the owner speaks versions %v, this process %d)", e.Reason, e.versions, Version)
	}
	if w.GetWho() != nil {
		who := processFromWire(w.GetWho())
		e.Who, e.Since = &who, before(w.GetSince())
	}
	if w.GetUntil() != nil {
		e.Until = after(w.GetUntil())
	}
	return e
}

// EndDrain asks the predecessor, which has retired, to end its drain now. It reports
// false if it has not retired, or has gone.
func (t *Taking) EndDrain(ctx context.Context) bool {
	asked := make(chan bool, 1) // room, for nobody may read it
	queued := t.link.post(func() error {
		able := isClosed(t.settled) && !t.broken && !t.gone
		if able {
			t.send(&pb.ClientMessage{Message: &pb.ClientMessage_EndDrain{EndDrain: &pb.EndDrain{}}})
		}
		asked <- able
		return nil
	})
	if !queued {
		return false
	}
	select {
	case able := <-asked:
		return able
	case <-t.done:
	case <-ctx.Done():
	}
	select {
	case able := <-asked: // both were there
		return able
	default:
		return false
	}
}

// Generation returns the generation of this attempt.
func (t *Taking) Generation() uint64 { return t.generation }

// Predecessor returns who is being replaced.
func (t *Taking) Predecessor() Process { return t.predecessor }

// Progress tells the owner that this process is still initialising, and how
// much longer that will take from now on. It is meant for people and never
// fails; after Ready it does nothing.
func (t *Taking) Progress(status string, extend time.Duration) {
	if len(status) > MaxStatus {
		status = status[:MaxStatus]
	}
	m := &pb.Progress{Status: printable(status), Extend: durationpb.New(max(extend, 0))}
	t.link.post(func() error {
		if t.call == nil {
			t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Progress{Progress: m}})
		}
		return nil
	})
}

// Ready says that this process can serve, naming the descriptors of the offer
// that nobody asked for, and returns nil once this process owns. On an error it
// certainly does not, and Fail of the receiver has been called. It must be
// called once. When ctx ends before Commit the attempt is aborted.
func (t *Taking) Ready(ctx context.Context, unclaimed []Descriptor) error {
	call := &readyCall{ctx: ctx, unclaimed: unclaimed, result: make(chan error, 1)}
	t.link.post(func() error {
		t.call = call
		return errReady
	})
	select {
	case err := <-call.result:
		return err
	case <-t.done:
	}
	select {
	case err := <-call.result: // both were there
		return err
	default:
		return t.err
	}
}

// Abort gives a candidate's attempt up because of err, and returns when Fail of
// the receiver has been called. Once this process has owned it does nothing.
func (t *Taking) Abort(err error) {
	ignored := make(chan struct{})
	t.link.post(func() error {
		if t.owned {
			close(ignored)
			return nil
		}
		return err
	})
	select {
	case <-ignored:
	case <-t.done:
	}
}

// Leave ends this side's part: a candidate aborts, an heir forgets, an owner
// closes its end, which tells a predecessor that has not retired to resume. It
// returns when the machine has ended.
func (t *Taking) Leave() {
	t.link.post(func() error { return errStop })
	<-t.done
}

// run is the machine, from Received on.
func (t *Taking) run() {
	defer close(t.done)
	defer t.link.close()
	step, err := t.candidacy()
	if err != nil {
		t.abort(step, err)
		t.link.close()
		t.fail(&Error{Side: Successor, Step: step, Err: err})
		return
	}
	t.ownership()
}

// fail ends this process's part.
func (t *Taking) fail(err error) {
	t.err = err
	close(t.failed)
	t.receiver.Fail(err)
}

// candidacy lasts until this process owns or certainly does not.
func (t *Taking) candidacy() (string, error) {
	m, fds, err := t.next(context.Background())
	closeAll(fds) // a page has no place here
	switch {
	case errors.Is(err, errReady):
		return t.takeOver()
	case lost(err):
		return t.inherit()
	case err != nil:
		return stepInit, err
	default:
		return stepInit, unexpected(m, "Ready or Abort")
	}
}

// inherit is the life of an heir. There is nobody left to talk to.
func (t *Taking) inherit() (string, error) {
	t.log.Warn("the predecessor has died: this process will own the service once it is ready", "predecessor", t.predecessor)
	t.receiver.Inherit(t.generation)
	t.tellGone()
	if err := t.link.idle(); !errors.Is(err, errReady) {
		return stepInit, err
	}
	t.own()
	return "", nil
}

// takeOver is everything from Ready to CommitAck.
func (t *Taking) takeOver() (string, error) {
	ctx, cancel := context.WithTimeoutCause(t.call.ctx, t.commitLimit, &TimeoutError{For: stepCommit, Limit: t.commitLimit})
	defer cancel()
	if t.call.ctx.Err() != nil { // before anything has begun that could still succeed
		return stepInit, cancelled(t.call.ctx, context.Cause(t.call.ctx))
	}
	t.send(t.readyMessage())
	final := false
	for {
		m, fds, err := t.next(ctx)
		switch {
		case lost(err):
			t.log.Warn("the predecessor has died: this process owns the service now", "predecessor", t.predecessor)
			t.receiver.Inherit(t.generation) // without Commit it is the heir, if only for a moment
			t.own()
			return "", nil
		case err != nil && !final && errors.Is(err, context.Cause(ctx)) && t.call.ctx.Err() == nil:
			return stepManifestPage, &TimeoutError{For: stepManifestPage, Limit: t.commitLimit}
		case err != nil:
			return stepCommit, cancelled(t.call.ctx, err)
		case m.GetManifestPage() != nil && !final:
			final = m.GetManifestPage().GetLast()
			if err := t.finalPage(m.GetManifestPage(), fds); err != nil {
				return stepManifestPage, err
			}
		case m.GetCommit() != nil && final:
			t.acknowledge()
			return "", nil
		default:
			closeAll(fds)
			return stepCommit, unexpected(m, stepCommit)
		}
	}
}

// acknowledge is the answer to Commit. Without a probation it is at the same time
// the decision to stay.
func (t *Taking) acknowledge() {
	t.owns, t.owned = true, true
	t.answered = t.granted == 0
	var probation *Probation
	if !t.answered {
		probation = &Probation{Predecessor: t.predecessor, Until: time.Now().Add(t.granted), AtEnd: t.atEnd}
	}
	t.receiver.Own(t.generation, probation)
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_CommitAck{CommitAck: &pb.CommitAck{Settle: t.answered}}})
	t.call.result <- nil
}

// own is the adoption: nobody else can own.
func (t *Taking) own() {
	t.owns, t.owned = true, true
	t.receiver.Own(t.generation, nil)
	t.call.result <- nil
}

func (t *Taking) readyMessage() *pb.ClientMessage {
	m := &pb.Ready{Unclaimed: uint32(len(t.call.unclaimed))}
	for _, d := range t.call.unclaimed {
		m.UnclaimedIds = append(m.UnclaimedIds, d.ID)
		if len(m.GetUnclaimedNames()) < maxUnclaimedNames {
			m.UnclaimedNames = append(m.UnclaimedNames, d.Name)
		}
	}
	return &pb.ClientMessage{Message: &pb.ClientMessage_Ready{Ready: m}}
}

func (t *Taking) finalPage(p *pb.ManifestPage, fds []*scm.FD) error {
	ds, err := t.page(p, fds, MaxDescriptors)
	if err != nil {
		return err
	}
	if err := t.receiver.Apply(Changes{Added: ds, Removed: p.GetRemoved()}); err != nil {
		return fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	t.ackPage()
	if p.GetLast() {
		t.send(&pb.ClientMessage{Message: &pb.ClientMessage_FinalReceived{FinalReceived: &pb.FinalReceived{}}})
	}
	return nil
}

// abort tells the predecessor why this side gives up, unless it knows.
func (t *Taking) abort(step string, err error) {
	if told(err) {
		return
	}
	reason := &pb.Abort{Code: abortCode(err), Reason: sentence(&Error{Side: Successor, Step: step, Err: err})}
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_Abort{Abort: reason}})
}

// patiently is next with a limit for a silent owner.
func (t *Taking) patiently(ctx context.Context, step string, patience time.Duration) (*pb.ServerMessage, []*scm.FD, error) {
	limited, cancel := context.WithTimeoutCause(ctx, patience, &TimeoutError{For: step, Limit: patience})
	defer cancel()
	m, fds, err := t.next(limited)
	return m, fds, cancelled(ctx, err)
}

// cancelled gives the end of the caller's ctx its name. Other errors, also a
// limit of this package's own, stay what they are.
func cancelled(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || !errors.Is(err, context.Cause(ctx)) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCancelled, err)
}

// next returns the next message, in which only a manifest page may carry
// descriptors. An Abort is returned as an error.
func (t *Taking) next(ctx context.Context) (*pb.ServerMessage, []*scm.FD, error) {
	m := new(pb.ServerMessage)
	fds, err := t.link.next(ctx, m)
	if err != nil {
		return nil, nil, err
	}
	if len(fds) > 0 && m.GetManifestPage() == nil && (m.GetConnection() == nil || !t.passes) {
		closeAll(fds)
		return nil, nil, protocolError("%s carries %d descriptors", messageName(m), len(fds))
	}
	if a := m.GetAbort(); a != nil {
		return nil, nil, &AbortedError{Reason: printable(a.GetReason()), code: a.GetCode()}
	}
	return m, fds, nil
}

// send writes a message. A failure is no news by itself: what the predecessor
// had written before it left, a Refuse or an Abort perhaps, is still to be
// read, and the next read says what has become of it.
func (t *Taking) send(m *pb.ClientMessage) {
	if err := t.link.send(m); err != nil {
		t.log.Debug("a message could not be written", "message", messageName(m), "err", err)
	}
}

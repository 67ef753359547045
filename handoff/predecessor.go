package handoff

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// The steps of the predecessor, named after the message that it waits for.
const (
	stepHello         = "Hello"
	stepOffer         = "the offer"
	stepPrepared      = "Prepared"
	stepPageAck       = "PageAck"
	stepReceived      = "Received"
	stepReady         = "Ready"
	stepFreeze        = "the last page"
	stepFinalReceived = "FinalReceived"
	stepCommitAck     = "CommitAck"
	stepSettle        = "Settle or Rollback"
	stepDrain         = "the drain"
	stepDeaf          = "the end of a broken connection"
)

// Service is what the predecessor's machine needs of the process that owns.
// Its methods are called one at a time, in the order of one of these lines:
//
//	Offer, Thaw                                     the attempt failed
//	Offer, Freeze, Thaw                             it failed after Ready
//	Offer, Freeze, Pause, Resume                    the successor owned, and is gone
//	Offer, Freeze, Resume                           the successor was lost before CommitAck
//	Offer, Freeze, Pause, Pause(nil), Retire        the successor stays
type Service interface {
	// Offer lists everything to be handed over. What it lists, and what its
	// Complete makes, stays open until Thaw, Resume or Retire.
	Offer(ctx context.Context) (*Offer, error)
	// Freeze makes the registry wait, pauses what two processes must not read
	// at once, lets go of exclusive resources, and returns what has changed
	// since the offer. Thaw follows an error.
	Freeze(ctx context.Context) (*Changes, error)
	// Thaw undoes Offer and Freeze: nothing has happened (I4).
	Thaw()
	// Pause stops accepting, but for the descriptors with these ids, and
	// returns once no accept is in flight.
	Pause(except []uint64)
	// Resume undoes Offer, Freeze and Pause, after having not owned, and opens
	// the server's control listener again.
	Resume()
	// Relieve is called as soon as Retired is written, before anybody else hears
	// of it. It closes every copy of what was handed over (I6). successor has its
	// pid as the kernel says, 0 if it does not, and pidfdID is what the kernel knows
	// that process by and no other, see [scm.FD.PidfdID], 0 if it is not known. The
	// result is what is the successor's from now on to tell the service manager, nil
	// for nothing.
	Relieve(successor Process, pidfdID uint64) *ServiceManager
	// Retire follows when everybody who waited for it has been told: this process
	// never comes back, and its program hears of it.
	Retire()
	// EndDrain asks the program to end its drain now.
	EndDrain()
	// CheckControl compares the control path and its lock with what this
	// process holds (I9) and mends what may be mended.
	CheckControl(ctx context.Context) error
	// Warnings is trouble that a person should know of, a sentence each.
	Warnings() []string
	// Total is how many descriptors an offer would have now, with those that
	// are pending.
	Total() int
	// Descriptors lists the registry for a status.
	Descriptors() []DescriptorStatus
	// Generations lists the older generations that have not gone yet, the oldest
	// first. It looks whether they have. Like Descriptors and Total it may be
	// called at any time, by several goroutines.
	Generations() []Generation
}

var (
	// errStop is the command to leave, whatever that means in the current state.
	errStop = fmt.Errorf("%w (this process)", ErrStopping)
	// errPart is the command to end the connection of a process that drains.
	errPart = errors.New("this process is to pass for gone")
	// errHookOver ends the listening during a hook.
	errHookOver = errors.New("the hook has returned")
	// errNothingCame ends a look for what has arrived.
	errNothingCame = errors.New("nothing has arrived")
)

// predecessor drives one attempt from the owner's side.
type predecessor struct {
	server     *Server
	link       *link
	who        Candidate
	process    CandidateProcess // nil if it is not certain which it is
	generation uint64
	began      time.Time
	offeredAt  time.Time // when the offer was begun: Progress is counted from here
	deadline   time.Time // of everything up to Ready
	offered    bool      // a manifest page was sent: Abort before close (I2)
	pages      uint32    // sent
	acked      uint32    // acknowledged
	unclaimed  []uint64
	committed  bool // from before Commit is written; of the machine's goroutine, as is ended
	ended      bool // it has failed before Commit, and nothing can change that
	passes     bool // the successor takes connections
	transfers  *transfers
	brokeAt    string // the step at which the connection broke after Commit
	chatter    allowance

	users sync.WaitGroup // who needs process although the machine may have ended; counted under server.mu

	fate     chan error    // receives the fate once: nil at CommitAck; room for it, so that nobody need read
	owned    chan struct{} // closed when the successor has come to own
	decided  chan struct{} // closed when the successor has settled, or the attempt has failed
	verdict  error         // which of them; valid once decided is closed
	aborted  chan struct{} // closed when the attempt has failed and is still in the way
	released chan struct{} // closed when the attempt is no longer in anybody's way

	// For status, under server.mu.
	step     string
	status   string
	stepEnds time.Time
}

// run drives the attempt to its end, which may be the end of the process: the
// connection of a successful one stays open for as long as this process lives.
func (p *predecessor) run() {
	defer p.link.close()
	if err := p.untilCommit(); err != nil {
		p.fail(err)
		return
	}
	p.standby()
}

func (p *predecessor) untilCommit() error {
	if err := p.offer(); err != nil {
		return err
	}
	if err := p.awaitReady(); err != nil {
		return err
	}
	return p.commit()
}

// offer is everything from Welcome to Received.
func (p *predecessor) offer() error {
	limits := p.server.limits
	p.offeredAt = time.Now()
	p.deadline = p.offeredAt.Add(limits.Ready)
	p.enter(stepOffer, p.deadline)
	ctx, cancel := p.until(p.deadline, stepOffer, limits.Ready)
	offer, err := p.server.service.Offer(ctx)
	defer cancel()
	if err != nil {
		return hookError(ctx, err)
	}
	total := len(offer.Descriptors) + offer.Pending
	if total > MaxDescriptors {
		return fmt.Errorf("%w: %d descriptors are to be handed over, the protocol carries %d", ErrLimit, total, MaxDescriptors)
	}
	features := agreed(p.who.Features)
	p.passes = len(features) > 0
	err = p.write(&pb.ServerMessage{Message: &pb.ServerMessage_Welcome{Welcome: &pb.Welcome{
		Version: Version, Features: features, Predecessor: processToWire(p.server.process()), Generation: p.generation,
		Total:           uint32(total),
		Pending:         uint32(offer.Pending),
		ReadyTimeout:    durationpb.New(limits.Ready),
		MaxReadyTimeout: durationpb.New(limits.MaxReady),
		CommitTimeout:   durationpb.New(limits.Commit),
		Probation:       durationpb.New(p.who.Probation),
	}}})
	if err != nil {
		return err
	}
	m, err := p.await(p.deadline, stepPrepared, limits.Ready)
	if err != nil {
		return err
	}
	if m.GetPrepared() == nil {
		return unexpected(m, stepPrepared)
	}
	if err := p.complete(offer); err != nil {
		return err
	}
	if err := p.sendPages(paginate(0, offer.Control, offer.Descriptors, nil), p.deadline, limits.Ready); err != nil {
		return err
	}
	m, err = p.await(p.deadline, stepReceived, limits.Ready)
	if err != nil {
		return err
	}
	if m.GetReceived() == nil {
		return unexpected(m, stepReceived)
	}
	return nil
}

// complete has the program make what is pending of the offer.
func (p *predecessor) complete(offer *Offer) error {
	if offer.Complete == nil {
		return nil
	}
	return p.during(stepOffer, p.deadline, p.server.limits.Ready, func(ctx context.Context) error {
		made, err := offer.Complete(ctx)
		offer.Descriptors = append(offer.Descriptors, made...)
		return err
	})
}

// during has the program do what may take its time. The successor has nothing to
// say meanwhile, but it may die or give up, and this process may be told to stop:
// that ends the hook's context, and is the result once the hook has returned.
func (p *predecessor) during(step string, deadline time.Time, limit time.Duration, hook func(context.Context) error) error {
	p.enter(step, deadline)
	ctx, cancel := p.until(deadline, step, limit)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	listening, hush := context.WithCancelCause(context.Background())
	var running sync.WaitGroup
	var failed error
	running.Go(func() {
		failed = fmt.Errorf("%w: it has ended its goroutine", ErrHook) // unless it returns
		defer func() { hush(errHookOver) }()
		if err := hook(ctx); err != nil {
			failed = hookError(ctx, err) // before the end of listening ends ctx
		} else {
			failed = nil
		}
	})
	m, err := p.next(listening)
	if err == nil {
		err = unexpected(m, step)
	}
	giveUp(err)
	running.Wait()
	if !errors.Is(err, errHookOver) {
		return err
	}
	return failed
}

// sendPages sends pages with a window, and returns when all are acknowledged.
func (p *predecessor) sendPages(pages []page, deadline time.Time, limit time.Duration) error {
	for _, page := range pages {
		if err := p.awaitAcks(pageWindow-1, deadline, limit); err != nil {
			return err
		}
		p.offered = true // from before the write: a failed one may have arrived
		if err := p.write(&pb.ServerMessage{Message: &pb.ServerMessage_ManifestPage{ManifestPage: page.message}}, page.fds...); err != nil {
			return err
		}
		p.pages++
	}
	return p.awaitAcks(0, deadline, limit)
}

// awaitAcks returns when at most pending pages are unacknowledged.
func (p *predecessor) awaitAcks(pending uint32, deadline time.Time, limit time.Duration) error {
	for p.pages-p.acked > pending {
		m, err := p.await(deadline, stepPageAck, limit)
		if err != nil {
			return err
		}
		ack := m.GetPageAck()
		if ack == nil {
			return unexpected(m, stepPageAck)
		}
		if next := ack.GetNext(); next <= p.acked || next > p.pages {
			return protocolError("PageAck expects page %d; pages %d to %d are unacknowledged", next, p.acked, p.pages-1)
		}
		p.acked = ack.GetNext()
	}
	return nil
}

// awaitReady waits while the successor initialises.
func (p *predecessor) awaitReady() error {
	limits := p.server.limits
	limit := limits.Ready
	for {
		m, err := p.await(p.deadline, stepReady, limit)
		switch {
		case err != nil:
			return err
		case m.GetProgress() != nil:
			limit = p.progress(m.GetProgress())
			if time.Now().After(p.deadline) {
				// A message comes before the timer, but a stream of these
				// must not put it off for ever.
				return &TimeoutError{For: stepReady, Limit: limit}
			}
		case m.GetReady() != nil:
			return p.ready(m.GetReady())
		default:
			return unexpected(m, stepReady)
		}
	}
}

// progress moves the deadline, within MaxReady of the offer, and returns the
// limit that it now stands for.
func (p *predecessor) progress(m *pb.Progress) time.Duration {
	latest := p.offeredAt.Add(p.server.limits.MaxReady)
	wanted := time.Now().Add(m.GetExtend().AsDuration())
	if wanted.After(latest) {
		wanted = latest
	}
	if wanted.After(p.deadline) {
		p.deadline = wanted
	}
	status := m.GetStatus()
	status = printable(status[:min(len(status), MaxStatus)])
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	news := status != p.status
	p.status, p.stepEnds = status, p.deadline
	p.server.changedLocked()
	if news && p.chatter.take() {
		p.server.tellWatchersLocked("the successor says: "+status, p)
	}
	return p.deadline.Sub(p.offeredAt)
}

// allowance bounds how often a successor can have everybody told of its progress,
// so that no watcher is cut off for it: so many times at once, and then so many a
// second. The status always has the last.
type allowance struct {
	used float64
	at   time.Time // of used
}

const (
	allowedAtOnce  = 64
	allowedASecond = 10
)

// take reports whether there is something left.
func (a *allowance) take() bool {
	now := time.Now()
	a.used = max(0, a.used-allowedASecond*now.Sub(a.at).Seconds())
	a.at = now
	if a.used > allowedAtOnce-1 {
		return false
	}
	a.used++
	return true
}

func (p *predecessor) ready(m *pb.Ready) error {
	if int(m.GetUnclaimed()) != len(m.GetUnclaimedIds()) {
		return protocolError("Ready counts %d unclaimed descriptors and lists %d", m.GetUnclaimed(), len(m.GetUnclaimedIds()))
	}
	p.unclaimed = m.GetUnclaimedIds()
	if len(p.unclaimed) > 0 {
		names := make([]string, 0, maxUnclaimedNames)
		for _, name := range m.GetUnclaimedNames()[:min(len(m.GetUnclaimedNames()), maxUnclaimedNames)] {
			names = append(names, printable(name[:min(len(name), MaxName)]))
		}
		p.server.log.Warn("the successor did not ask for everything", "successor", p.who.Process, "count", len(p.unclaimed), "names", names)
	}
	return nil
}

// commit is everything from Ready to the writing of Commit.
func (p *predecessor) commit() error {
	limit := p.server.limits.Commit
	deadline := time.Now().Add(limit)
	p.server.setState(StateCommitting)
	var changes *Changes
	// The successor counts the same limit, from a moment earlier. Its program is to
	// learn what took so long, and not only that it did.
	hooks := limit - limit/5
	err := p.during(stepFreeze, deadline.Add(hooks-limit), hooks, func(ctx context.Context) (err error) {
		changes, err = p.server.service.Freeze(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := p.sendPages(paginate(p.pages, nil, changes.Added, changes.Removed), deadline, limit); err != nil {
		return err
	}
	m, err := p.await(deadline, stepFinalReceived, limit)
	if err != nil {
		return err
	}
	if m.GetFinalReceived() == nil {
		return unexpected(m, stepFinalReceived)
	}
	// From before the write: a failed one may have arrived (I1).
	p.committed = true
	p.server.setState(StateStandby)
	if err := p.send(&pb.ServerMessage{Message: &pb.ServerMessage_Commit{Commit: &pb.Commit{}}}); err != nil {
		p.server.log.Warn("writing Commit failed: waiting for the successor's end", "successor", p.who.Process, "err", err)
	}
	return nil
}

// fail ends an attempt that has not reached Commit. The next one may begin
// once the successor cannot adopt the service any more.
func (p *predecessor) fail(err error) {
	step := p.step
	failure := &Error{Side: Predecessor, Step: step, Err: err}
	p.ended = true
	unwritten := p.abort(err)
	if unwritten == nil || !errors.Is(err, errStop) {
		p.server.service.Thaw() // at once, for a candidate that is frozen can be so for long (I4)
	}
	if unwritten != nil {
		p.server.log.Warn("Abort could not be written: no handoff before the candidate has gone", "successor", p.who.Process, "err", unwritten)
		p.enter(stepDeaf, time.Time{})
		p.tell(failure)  // who has started the candidate may have to end it
		close(p.aborted) // as may who has cancelled it
		if errors.Is(err, errStop) || p.link.deaf() != nil {
			// This process is told to stop, and does not wait for it. The end of
			// the connection, of which run takes care, may make the candidate own:
			// by then everything must be let go.
			p.server.left(p)
			<-p.server.finished
			return
		}
	}
	p.link.close()
	p.server.failed(p, step, failure)
}

// abort tells the successor, unless it knows. It returns an error if the
// successor may hold an offer and was not told (I2).
func (p *predecessor) abort(err error) error {
	if told(err) {
		return nil
	}
	reason := &pb.Abort{Code: abortCode(err), Reason: sentence(&Error{Side: Predecessor, Step: p.step, Err: err})}
	err = p.send(&pb.ServerMessage{Message: &pb.ServerMessage_Abort{Abort: reason}})
	if !p.offered {
		return nil
	}
	return err
}

// await returns the next message, or a TimeoutError that names the step. An
// Abort is returned as an error.
func (p *predecessor) await(deadline time.Time, step string, limit time.Duration) (*pb.ClientMessage, error) {
	p.enter(step, deadline)
	ctx, cancel := p.until(deadline, step, limit)
	defer cancel()
	return p.next(ctx)
}

func (p *predecessor) until(deadline time.Time, step string, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(context.Background(), deadline, &TimeoutError{For: strings.TrimPrefix(step, "the "), Limit: limit})
}

func (p *predecessor) next(ctx context.Context) (*pb.ClientMessage, error) {
	m := new(pb.ClientMessage)
	if _, err := p.link.next(ctx, m); err != nil { // a server takes no descriptors
		return nil, err
	}
	if a := m.GetAbort(); a != nil {
		return nil, &AbortedError{Reason: printable(a.GetReason()), code: a.GetCode()}
	}
	return m, nil
}

// write sends a message and, if that fails, looks for the reason: the other
// side may have said why it left. A command that ends the wait is returned too.
func (p *predecessor) write(m *pb.ServerMessage, fds ...*scm.FD) error {
	err := p.send(m, fds...)
	if err == nil {
		return nil
	}
	now, cancel := context.WithCancelCause(context.Background())
	cancel(errNothingCame)
	for range pageWindow + 1 { // the acknowledgements that may come first
		if _, last := p.next(now); last != nil && !errors.Is(last, errNothingCame) {
			return last
		}
	}
	return err
}

func (p *predecessor) send(m *pb.ServerMessage, fds ...*scm.FD) error { return p.link.send(m, fds...) }

// enter notes what is waited for, for errors and status.
func (p *predecessor) enter(step string, deadline time.Time) {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	p.step, p.stepEnds = step, deadline
	p.server.changedLocked()
}

// attemptLocked is this attempt as status and events show it, nil for none.
func (p *predecessor) attemptLocked() *Attempt {
	if p == nil {
		return nil
	}
	a := &Attempt{Successor: p.who.Process, Step: p.step, Status: p.status, Began: p.began, Deadline: p.stepEnds}
	a.Successor.Generation = p.generation
	return a
}

// tell gives the fate to whoever triggered the attempt.
func (p *predecessor) tell(err error) {
	select {
	case p.fate <- err:
	default: // it was told before: what follows CommitAck is no longer its affair
	}
}

// decide says what has become of the attempt for good.
func (p *predecessor) decide(err error) {
	if !isClosed(p.decided) {
		p.verdict = err
		close(p.decided)
	}
}

// unexpected names a message that came at the wrong time.
func unexpected(m proto.Message, step string) error {
	return protocolError("%s instead of %s", messageName(m), step)
}

// messageName is the name of the member of the message's one oneof.
func messageName(m proto.Message) string {
	r := m.ProtoReflect()
	field := r.WhichOneof(r.Descriptor().Oneofs().Get(0))
	if field == nil {
		return "an unknown message"
	}
	return string(field.Message().Name())
}

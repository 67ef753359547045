package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// Limits are the limits of a [Server]. All deadlines but Probation and
// MaxProbation must be positive.
type Limits struct {
	Hello    time.Duration // from connecting to a complete Hello or request
	Ready    time.Duration // from the offer to Ready
	MaxReady time.Duration // how far Progress may extend Ready, from the offer
	Commit   time.Duration // from Ready to Commit

	Probation    time.Duration // of a successor that asks for none in particular
	MaxProbation time.Duration // the most that one may ask for

	// MaxDraining is how many generations may drain at the same time, the one
	// included that a handoff would make drain; 0 for any number.
	MaxDraining int
}

// ServerConfig is what [NewServer] needs. All fields but Commands, Accept and
// OnEvent are required.
type ServerConfig struct {
	// Process is this process; its Generation is set by Own and Inherit.
	Process Process
	// Service is what is handed over.
	Service Service
	// Commands is what controllers may have this process do. Nil: nothing but to
	// cancel an attempt.
	Commands Commands
	// Limits are the deadlines.
	Limits Limits
	// Authorize decides by the kernel's credentials what a client may do: whether it
	// may speak, AccessRead, before a byte is read, and whether it may change
	// something, AccessChange, when that is what it asks for. peer is nil on systems
	// that do not tell credentials. Its error is for the log of this process alone.
	Authorize func(peer *scm.Peer, access Access) error
	// Accept is the owner's policy: an error refuses the candidate with its text.
	Accept func(context.Context, Candidate) error
	// OnEvent gets every change, in order, at once: it must not block, nor call
	// the server. May be nil.
	OnEvent func(Event)
	// OnChange is called whenever Standing may have changed, under the same terms.
	// May be nil.
	OnChange func()
	// Log gets what the owner should know of.
	Log *slog.Logger
}

// Server is a process's side of the control socket, and its state: it answers
// controllers, and drives one attempt at a time to take the service over. All
// its methods may be called concurrently.
type Server struct {
	self     Process
	service  Service
	limits   Limits
	auth     func(*scm.Peer, Access) error
	policy   func(context.Context, Candidate) error
	commands Commands
	onEvent  func(Event)
	onChange func()
	log      *slog.Logger
	noise    noise // about clients that were turned away

	mu          sync.Mutex
	state       State
	since       time.Time
	ready       bool       // this process has called Ready
	settled     bool       // its own predecessor cannot come back
	probation   *Probation // its own, until it is settled or about to be
	stopping    bool
	stopped     chan struct{} // made by the first Stop, closed when it has ended
	last        uint64        // the highest generation that was given out
	attempt     *predecessor  // in whose way every other attempt is
	successor   *Process      // who owns while this process does not, nil if that is not known
	cancelled   []string      // instances that must not own, the oldest first
	owed        int           // answers that controllers wait for
	paid        chan struct{} // closed when there are none, nil if nobody waits for that
	retirement  *predecessor  // whose successor is told how the drain goes, nil for nobody
	passing     *predecessor  // whose successor gets connections, nil before this process has retired
	lastFailure *Failure
	changed     chan struct{}  // closed and replaced whenever a refusal may have passed
	fd          *scm.FD        // the control listener, nil without one
	control     *scm.Listener  // what is accepted from, nil while closed
	guests      crowd          // the connections without an attempt
	watchers    watchers       // who is told of every change
	wg          sync.WaitGroup // the accept loop and the connections without an attempt

	vacant chan struct{} // has an element when guests have left; one says all

	hearing    context.Context // in which a Hello is waited for
	endHearing context.CancelCauseFunc
	asking     context.Context // in which the request is waited for of one that was welcomed
	endAsking  context.CancelCauseFunc

	finishOnce sync.Once
	finished   chan struct{} // closed by Finish
}

// NewServer returns the server of a process that does not own yet.
func NewServer(cfg *ServerConfig) *Server {
	s := &Server{
		self: cfg.Process, service: cfg.Service, limits: cfg.Limits,
		auth: cfg.Authorize, policy: cfg.Accept, commands: cfg.Commands, onEvent: cfg.OnEvent, onChange: cfg.OnChange, log: cfg.Log,
		state: StateCandidate, since: time.Now(),
		changed: make(chan struct{}), guests: make(crowd), vacant: make(chan struct{}, 1), watchers: make(watchers), finished: make(chan struct{}),
	}
	s.hearing, s.endHearing = context.WithCancelCause(context.Background())
	s.asking, s.endAsking = context.WithCancelCause(s.hearing)
	return s
}

// SetGeneration gives a candidate the number that its attempt has got, which it
// keeps.
func (s *Server) SetGeneration(generation uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self.Generation = generation
	s.last = max(s.last, generation)
}

// Own makes this process the owner, with its generation. settled says that no
// predecessor can take the service back; ready, that it has called Ready.
func (s *Server) Own(generation uint64, ready, settled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self.Generation = generation
	s.last = max(s.last, generation)
	s.ready, s.settled = ready, settled
	s.setStateLocked(StateOwner)
}

// SetProbation says, right after Own, that the owner is on probation: until
// SetSettling or SetSettled it hands over to nobody, whose predecessor could
// resume while that one owns.
func (s *Server) SetProbation(p *Probation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probation = p
	s.notifyLocked()
}

// SetSettling says that the owner has decided to stay, and that its predecessor
// is about to retire.
func (s *Server) SetSettling() { s.SetProbation(nil) }

// Yield says that the owner gives the service back: it owns no longer.
func (s *Server) Yield() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probation != nil {
		s.successor = &s.probation.Predecessor // once it has resumed
	}
	s.probation = nil
	s.setStateLocked(StateYielding)
}

// Inherit makes this process the heir: its predecessor is gone, and it will own
// once it is ready.
func (s *Server) Inherit(generation uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self.Generation = generation
	s.last = max(s.last, generation)
	s.settled = true
	s.setStateLocked(StateHeir)
}

// SetReady says that the owner has called Ready: from now on it hands over.
func (s *Server) SetReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := !s.ready
	s.ready = true
	s.notifyLocked()
	if news {
		s.tellWatchersLocked("ready: this process hands over from now on", nil)
	}
}

// SetSettled says that the predecessor cannot come back: from now on the owner
// hands over.
func (s *Server) SetSettled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = true
	s.probation = nil
	s.notifyLocked()
	s.tellLocked("settled: the predecessor cannot come back", nil, nil)
}

// GenerationGone says that one of the older generations that [Service] lists has
// gone: a refusal may have passed.
func (s *Server) GenerationGone(who Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notifyLocked()
	s.tellWatchersLocked(fmt.Sprintf("an older generation has gone: %v", who), s.attempt)
}

// Draining tells the successor of a process that drains how many connections are
// still open, -1 if that is not known, and by when they will be gone: the zero
// time if that is not known. It returns at once, and reports false if there is nobody to tell.
func (s *Server) Draining(connections int, deadline time.Time) bool {
	s.mu.Lock()
	p := s.retirement
	s.mu.Unlock()
	if p == nil {
		return false
	}
	return p.link.post(func() error {
		m := new(pb.Draining)
		if connections >= 0 {
			m.Connections = proto.Uint64(uint64(connections))
		}
		if !deadline.IsZero() {
			m.Remaining = durationpb.New(time.Until(deadline))
		}
		if err := p.send(&pb.ServerMessage{Message: &pb.ServerMessage_Draining{Draining: m}}); err != nil {
			s.forget(p) // it does not read, or has gone: nothing depends on it
		}
		return nil
	})
}

// Relieved tells the successor of a process that drains that it is the main process
// of their unit. It is for one that came to be that itself only when it drained; else
// the result of Relieve says it.
func (s *Server) Relieved(m ServiceManager) {
	s.mu.Lock()
	p := s.retirement
	s.mu.Unlock()
	if p == nil {
		return
	}
	p.link.post(func() error {
		// As with Draining: nothing depends on it.
		_ = p.send(&pb.ServerMessage{Message: &pb.ServerMessage_Draining{Draining: &pb.Draining{ServiceManager: serviceManagerToWire(&m)}}})
		return nil
	})
}

// Part ends the connection to the successor of a process that drains: it is to pass
// for gone.
func (s *Server) Part() {
	s.mu.Lock()
	p := s.passing
	s.mu.Unlock()
	if p != nil {
		p.link.post(func() error { return errPart })
	}
}

// forget ends what [Server.Draining] does for p.
func (s *Server) forget(p *predecessor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retirement == p {
		s.retirement = nil
	}
}

// Settled reports whether no predecessor can come back.
func (s *Server) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled
}

// Open serves the control listener fd, which remains the caller's and must stay
// open until Retire of [Service] or Stop. It calls listen(2) on it, so that
// clients see this process's credentials from here on. Every change of owner
// calls for it, Resume of [Service] included. What was served before no longer
// is, unless it is the same, which goes on. Once this process is stopping it
// does nothing.
func (s *Server) Open(fd *scm.FD, backlog int) error {
	s.mu.Lock()
	same := s.fd == fd
	s.mu.Unlock()
	if !same {
		s.closeControl()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || !s.state.Owns() && s.state != StateHeir {
		return nil // nobody's wish any more: a change of owner has come before
	}
	s.fd = fd
	// Nobody who connects has a descriptor to give.
	if err := errors.Join(fd.RefuseDescriptors(), fd.Listen(backlog)); err != nil {
		return err
	}
	if s.control != nil {
		return nil
	}
	l, err := scm.NewListener(fd)
	if err != nil {
		return err
	}
	l.Spare(spareConnections)
	s.control = l
	s.wg.Go(func() { s.accept(l) })
	return nil
}

// closeControl stops accepting on the control listener: what waits in its
// queue is the next owner's.
func (s *Server) closeControl() {
	s.mu.Lock()
	l := s.control
	s.control = nil
	s.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
}

// State returns this process's state.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Generation returns this process's generation, 0 before it has one.
func (s *Server) Generation() uint64 { return s.process().Generation }

// Status returns how this process stands, after comparing the control path
// with what this process holds.
func (s *Server) Status(ctx context.Context) *Status {
	warnings := s.service.Warnings()
	if s.State().Owns() {
		if err := s.service.CheckControl(ctx); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	descriptors, generations := s.service.Descriptors(), s.service.Generations()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Status{
		Process: s.self, State: s.state, Since: s.since, Ready: s.ready, Settled: s.settled,
		LastFailure: s.lastFailure, Probation: s.probation, Warnings: warnings, Descriptors: descriptors,
		Draining: generations,
	}
	if s.state == StateYielding {
		st.Warnings = append(st.Warnings, "rolled back, and waiting for the predecessor to own again")
	}
	if p := s.attempt; p != nil && p.step == stepDeaf {
		st.Warnings = append(st.Warnings, "broken connection, ends when "+p.who.String()+" ends")
	}
	st.Attempt = s.attempt.attemptLocked()
	if a := st.Attempt; a != nil && !a.Deadline.IsZero() && time.Since(a.Deadline) >= overdueGrace {
		// The machine acts on its deadlines, unless the program keeps it from that.
		st.Warnings = append(st.Warnings, fmt.Sprintf(
			"the handoff is overdue at %s for %v: a function of this program does not return, such as Config.Suspend or the writer of a state; until it does, what stands still for the handoff is not served",
			a.Step, time.Since(a.Deadline).Round(time.Second)))
	}
	return st
}

// Standing is what of Status is known at once: nothing of the control path, the
// registry and the older generations.
func (s *Server) Standing() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Status{
		Process: s.self, State: s.state, Since: s.since, Ready: s.ready, Settled: s.settled,
		Attempt: s.attempt.attemptLocked(), Probation: s.probation, LastFailure: s.lastFailure,
	}
}

// overdueGrace is how long after its deadline an attempt is not called overdue.
const overdueGrace = time.Second

// Stop takes this process out, whatever its state; see the table "Stop" in
// docs/protocol.md. It reports whether this process was the owner, or about to
// be, so that the control path is its to unlink. Further calls wait for the
// first and report false.
func (s *Server) Stop() (owned bool) {
	s.mu.Lock()
	first := s.stopped == nil
	if first {
		s.stopped = make(chan struct{})
	}
	s.stopping = true
	stopped, p := s.stopped, s.attempt
	s.notifyLocked()
	s.mu.Unlock()
	if !first {
		<-stopped
		return false
	}
	defer close(stopped)
	if p != nil {
		p.link.post(func() error { return errStop })
		<-p.released
	}
	s.mu.Lock()
	state := s.state
	owned = state.Owns() || state == StateHeir
	if state != StateDraining {
		s.setStateLocked(StateOut)
	}
	s.mu.Unlock()
	return owned
}

// Finish says, after Stop, that this process has closed every copy of what it was
// about to hand over. What only then may be closed is closed now.
func (s *Server) Finish() { s.finishOnce.Do(func() { close(s.finished) }) }

// Close stops serving the control listener and ends every connection that is
// no attempt's: who has not asked yet is not heard, and told so once it was welcomed;
// who has gets an answer, unless that takes longer than a moment. It returns when their
// goroutines have.
func (s *Server) Close() {
	s.closeControl()
	s.endHearing(errLeaving)
	s.payDebts()
	s.mu.Lock()
	s.stopping = true
	s.fd = nil
	s.notifyLocked()
	s.mu.Unlock()
	timer := time.AfterFunc(debtLimit, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for g := range s.guests {
			if !g.leaving {
				s.dismissLocked(g)
			}
		}
	})
	defer timer.Stop()
	s.wg.Wait()
}

func (s *Server) process() Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.self
}

func (s *Server) setState(state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setStateLocked(state)
}

func (s *Server) setStateLocked(state State) {
	if s.enterLocked(state) {
		s.tellLocked(sentences[state], s.attempt, nil)
	}
}

// enterLocked reports whether the state is another than before.
func (s *Server) enterLocked(state State) bool {
	changed := s.state != state && s.state != StateOut // which is for good
	if changed {
		s.log.Debug("state", "from", s.state.String(), "to", state.String(), "generation", s.self.Generation)
		s.state, s.since = state, time.Now()
	}
	s.notifyLocked()
	return changed
}

// tellLocked tells of a change, for an attempt if it belongs to one.
func (s *Server) tellLocked(text string, p *predecessor, failure *Failure) {
	event := s.eventLocked(text, p, failure)
	if s.onEvent != nil {
		s.onEvent(event)
	}
	s.watchers.tell(s, event)
}

// tellWatchersLocked tells of something that is no change of this process's part, and
// no news to its program: it called for it, or can ask. Nor may a candidate fill the
// program's queue of events, which has no bound.
func (s *Server) tellWatchersLocked(text string, p *predecessor) {
	s.watchers.tell(s, s.eventLocked(text, p, nil))
}

func (s *Server) eventLocked(text string, p *predecessor, failure *Failure) Event {
	return Event{At: time.Now(), Process: s.self, State: s.state, Text: text, Attempt: p.attemptLocked(), Failure: failure}
}

func (s *Server) notifyLocked() {
	s.changedLocked()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) changedLocked() {
	if s.onChange != nil {
		s.onChange()
	}
}

// begin makes p's candidate the one whose attempt is under way, or says why it
// cannot be.
func (s *Server) begin(l *link, who Candidate) (*predecessor, *pb.Refuse) {
	older := s.service.Generations()
	s.mu.Lock()
	defer s.mu.Unlock()
	if refusal := s.cancelledLocked(who); refusal != nil {
		return nil, refusal
	}
	if refusal := s.refusalLocked(older); refusal != nil {
		return nil, refusal
	}
	s.last++
	now := time.Now()
	p := &predecessor{
		server: s, link: l, who: who, generation: s.last, began: now, step: stepHello,
		transfers: newTransfers(),
		fate:      make(chan error, 1),
		owned:     make(chan struct{}),
		decided:   make(chan struct{}),
		aborted:   make(chan struct{}),
		released:  make(chan struct{}),
	}
	p.who.Generation = s.last
	s.attempt = p
	s.setStateLocked(StateOffering)
	return p, nil
}

// cancelledLocked is the refusal of a candidate that was cancelled before it came.
func (s *Server) cancelledLocked(who Candidate) *pb.Refuse {
	if !slices.Contains(s.cancelled, who.Instance) {
		return nil
	}
	return &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_CANCELLED, Reason: "this attempt was cancelled before it began"}
}

// refusal says why no attempt can begin now, nil if one can, and returns what
// is closed when that may have changed.
func (s *Server) refusal() (*pb.Refuse, <-chan struct{}) {
	s.mu.Lock()
	changed := s.changed
	s.mu.Unlock()
	older := s.service.Generations()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusalLocked(older), changed
}

// refusalLocked is refusal, given the older generations that have not gone.
func (s *Server) refusalLocked(older []Generation) *pb.Refuse {
	switch {
	case s.state == StateProbation, s.state == StateYielding, s.state == StateDraining:
		return &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_MOVED, Reason: "this process is no longer the owner: " + s.state.String()}
	case s.stopping, s.state == StateOut:
		return &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_STOPPING, Reason: "the owner is stopping for good"}
	case s.attempt != nil:
		who := s.attempt.who.Process
		return &pb.Refuse{
			Code: pb.RefuseCode_REFUSE_CODE_BUSY,
			Reason: fmt.Sprintf("another handoff is under way: %v, for %v, now at %s",
				who, time.Since(s.attempt.began).Round(time.Millisecond), s.attempt.step),
			Who: processToWire(who), Since: ago(s.attempt.began),
		}
	case s.state == StateHeir, s.state == StateOwner && !s.ready, s.state == StateCandidate:
		return &pb.Refuse{
			Code: pb.RefuseCode_REFUSE_CODE_NOT_READY, Reason: "the owner has not called Ready yet",
			Who: processToWire(s.self), Since: ago(s.since),
		}
	case s.probation != nil:
		who := s.probation.Predecessor
		return &pb.Refuse{
			Code: pb.RefuseCode_REFUSE_CODE_PROBATION,
			Reason: fmt.Sprintf("the owner is in probation itself, for another %v unless it settles before; then its predecessor retires: %v",
				max(time.Until(s.probation.Until), 0).Round(time.Millisecond), who),
			Who: processToWire(who), Since: ago(s.since), Until: durationpb.New(max(time.Until(s.probation.Until), 0)),
		}
	case !s.settled:
		return &pb.Refuse{
			Code: pb.RefuseCode_REFUSE_CODE_NOT_READY, Reason: "the owner's own predecessor is just retiring",
			Who: processToWire(s.self), Since: ago(s.since),
		}
	case s.limits.MaxDraining > 0 && len(older) >= s.limits.MaxDraining: // this process would be one more
		return s.crowded(older)
	default:
		return nil
	}
}

// crowded is the refusal because of the older generations.
func (s *Server) crowded(older []Generation) *pb.Refuse {
	oldest := older[0]
	number := "1 generation is"
	if len(older) != 1 {
		number = fmt.Sprintf("%d generations are", len(older))
	}
	refusal := &pb.Refuse{
		Code: pb.RefuseCode_REFUSE_CODE_DRAINING,
		Reason: fmt.Sprintf("%s draining and one more would be above the limit of %d; the oldest is %v",
			number, s.limits.MaxDraining, oldest),
		Who: processToWire(oldest.Process), Since: ago(oldest.Since),
	}
	if !oldest.Deadline.IsZero() {
		refusal.Until = durationpb.New(max(0, time.Until(oldest.Deadline)))
	}
	return refusal
}

// cleared lets the attempt that is in the way look at what its candidate has
// sent, and reports whether it has ended: a candidate that has died or given
// up is in nobody's way, even if its attempt has not noticed.
func (s *Server) cleared() bool {
	s.mu.Lock()
	p := s.attempt
	s.mu.Unlock()
	if p == nil {
		return true
	}
	seen := make(chan struct{})
	p.link.post(func() error { close(seen); return nil })
	timer := time.NewTimer(time.Second) // a hook of the program may be running
	defer timer.Stop()
	select {
	case <-p.released:
		return true
	case <-seen:
	case <-timer.C:
	}
	return isClosed(p.released)
}

// failed ends an attempt after which this process owns. Who waits for that, or
// reads it in the log, finds that it does.
func (s *Server) failed(p *predecessor, step string, err error) {
	s.mu.Lock()
	s.lastFailure = &Failure{Successor: p.who.Process, Step: step, Reason: sentence(err), At: time.Now(), Err: err}
	s.attempt, s.successor = nil, nil
	s.enterLocked(StateOwner)
	s.tellLocked("the handoff failed, this process goes on as the owner", p, s.lastFailure)
	s.mu.Unlock()
	s.log.Warn("the handoff failed, this process goes on as the owner", "successor", p.who.Process, "step", step, "err", err)
	close(p.released)
	p.tell(err)
	p.decide(err)
}

// resuming makes this process the owner again, while it takes back what it needs
// for that: who comes meanwhile finds an owner that is busy.
func (s *Server) resuming() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(StateOwner)
}

// left ends an attempt of a process that is told to stop and could not tell its
// candidate. That one may come to own: this process has ceased to before it closes
// the connection, and unlinks nothing.
func (s *Server) left(p *predecessor) {
	s.mu.Lock()
	s.attempt = nil
	s.setStateLocked(StateOut)
	s.mu.Unlock()
	s.log.Warn("stopping although the candidate could not be told: it may come to own the service", "successor", p.who.Process)
	close(p.released)
}

// succeeded makes this process one that stands by its successor.
func (s *Server) succeeded(p *predecessor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := p.attemptLocked().Successor
	s.successor = &who
	s.setStateLocked(StateProbation)
	if !isClosed(p.owned) { // a successor may say so twice
		close(p.owned)
	}
}

// drains makes this process one that drains and tells its successor how that
// goes.
func (s *Server) drains(p *predecessor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retirement, s.passing = p, p
	s.setStateLocked(StateDraining)
}

// retired ends an attempt after which this process drains.
func (s *Server) retired(p *predecessor) {
	s.mu.Lock()
	s.attempt = nil
	s.setStateLocked(StateDraining)
	s.mu.Unlock()
	s.log.Info("retired: the successor has taken over", "successor", p.who.Process)
	close(p.released)
}

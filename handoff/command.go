package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// This file answers controllers: what they ask, and what they have the process do.

// Commands is what a controller may have the owner do. The methods are called
// concurrently. ctx ends when the controller has left.
type Commands interface {
	// Upgrade starts a successor and returns nil when that one owns; with settled,
	// when this process has decided to retire, or an error once it owns again. The
	// end of ctx before Commit cancels the attempt.
	Upgrade(ctx context.Context, settled bool) error
	// Settle ends this process's probation, and returns nil when the predecessor
	// cannot come back.
	Settle(ctx context.Context) error
	// Rollback gives the service back, and returns nil when the predecessor has it.
	Rollback(ctx context.Context, reason string) error
	// EndDrain asks an older generation to end its drain, and returns what it has
	// done, one sentence.
	EndDrain(ctx context.Context, generation uint64) (string, error)
	// Stop takes this process out. It does not wait for that.
	Stop(reason string)
}

const (
	// maxCancelled is how many instances are remembered that must not own: each for
	// a deployment that has given up, and ends its candidate next.
	maxCancelled = 256
	// cancelGrace is how long a candidate that is cancelled has to exit before it
	// is ended, where that is asked for.
	cancelGrace = 3 * time.Second
)

// changes reports whether a request is one that only some may make. One that is not
// known may be anything.
func changes(r *pb.ControlRequest) bool {
	return r.GetStatus() == nil && r.GetWatch() == nil && r.GetCheck() == nil
}

// answer serves one request of peer, which may make it, and is no watch. ctx bounds
// what a request may not take long for.
func (s *Server) answer(ctx context.Context, l *link, peer *scm.Peer, r *pb.ControlRequest) error {
	switch {
	case r.GetStatus() != nil:
		return s.serveStatus(ctx, l)
	case r.GetCheck() != nil:
		return s.serveCheck(ctx, l, peer, r.GetCheck())
	}
	name := messageName(r)
	do := s.commandFor(r)
	if do == nil {
		return respondError(l, pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED, "this version does not implement "+name)
	}
	ctx, cancel := attended(l)
	defer cancel()
	text, who, err := "", (*Process)(nil), s.checkMeant(r)
	if err == nil {
		text, who, err = do(ctx)
	}
	if log := s.log.With("request", name, "peer", peerName(peer)); err != nil {
		log.Info("a controller's request was not fulfilled", "err", err)
	} else {
		log.Info("a controller's request was fulfilled", "outcome", text)
	}
	switch {
	case errors.Is(err, ErrMoved):
		return respondError(l, pb.ErrorCode_ERROR_CODE_MOVED, sentence(err))
	case errors.Is(err, ErrNotAllowed):
		return respondError(l, pb.ErrorCode_ERROR_CODE_NOT_ALLOWED, sentence(err))
	case errors.Is(err, ErrWrongState), errors.Is(err, ErrNotReady) && !errors.As(err, new(*RefusedError)):
		return respondError(l, pb.ErrorCode_ERROR_CODE_WRONG_STATE, sentence(err))
	}
	return respond(l, &pb.ControlResponse{Response: &pb.ControlResponse_Outcome{Outcome: s.outcome(text, who, err)}})
}

// commandFor returns what a request has this process do, nil if it is not known.
// It returns one sentence on what was done, and to whom.
func (s *Server) commandFor(r *pb.ControlRequest) func(context.Context) (string, *Process, error) {
	if r.GetCancel() != nil {
		return func(ctx context.Context) (string, *Process, error) { return s.cancel(ctx, r.GetCancel()) }
	}
	if s.commands == nil {
		return nil
	}
	switch {
	case r.GetUpgrade() != nil:
		return func(ctx context.Context) (string, *Process, error) { return s.upgrade(ctx, r.GetUpgrade()) }
	case r.GetSettle() != nil:
		return s.asOwner(func(ctx context.Context) (string, error) {
			return "settled: the predecessor cannot come back", s.commands.Settle(ctx)
		})
	case r.GetRollback() != nil:
		return func(ctx context.Context) (string, *Process, error) { return s.rollback(ctx, r.GetRollback()) }
	case r.GetEndDrain() != nil:
		return s.asOwner(func(ctx context.Context) (string, error) { return s.endDrain(ctx, r.GetEndDrain().GetGeneration()) })
	case r.GetStop() != nil:
		return func(ctx context.Context) (string, *Process, error) { return s.stop(ctx, r.GetStop()) }
	default:
		return nil
	}
}

// asOwner is a command to whoever owns.
func (s *Server) asOwner(do func(context.Context) (string, error)) func(context.Context) (string, *Process, error) {
	return func(ctx context.Context) (string, *Process, error) {
		if err := s.checkOwner(); err != nil {
			return "", nil, err
		}
		text, err := do(ctx)
		return text, nil, err
	}
}

// checkMeant returns ErrWrongState if the request is for another owner, and ErrMoved if
// that cannot be said here.
func (s *Server) checkMeant(r *pb.ControlRequest) error {
	self := s.process()
	if r.GetInstance() == "" || r.GetInstance() == self.Instance || r.GetCancel() != nil {
		return nil
	}
	if err := s.checkOwner(); err != nil {
		return err
	}
	return fmt.Errorf("%w: the owner is %v, and not instance %q", ErrWrongState, self, printable(r.GetInstance()))
}

// checkOwner returns ErrMoved in a process that does not own, nor is about to.
func (s *Server) checkOwner() error {
	if state := s.State(); !state.Owns() && state != StateHeir {
		return fmt.Errorf("%w: this process is %v", ErrMoved, state)
	}
	return nil
}

func (s *Server) upgrade(ctx context.Context, r *pb.UpgradeRequest) (string, *Process, error) {
	if err := s.checkOwner(); err != nil {
		return "", nil, err
	}
	if r.GetTimeout() != nil {
		limit := max(durationFromWire(r.GetTimeout()), 0)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, &TimeoutError{For: "end of the upgrade", Limit: limit})
		defer cancel()
	}
	err := s.commands.Upgrade(ctx, r.GetWaitSettled())
	if r.GetWaitSettled() {
		return "upgraded, and settled: this process cannot come back", nil, err
	}
	return "upgraded: the successor owns", nil, err
}

// rollback also joins the rollback that is under way.
func (s *Server) rollback(ctx context.Context, r *pb.RollbackRequest) (string, *Process, error) {
	if err := s.checkOwner(); err != nil && s.State() != StateYielding {
		return "", nil, err
	}
	err := s.commands.Rollback(ctx, printable(r.GetReason()))
	if errors.Is(err, ErrRolledBack) && !errors.Is(err, ErrProtocol) {
		err = nil // whoever else has wished it
	}
	return "rolled back: the predecessor owns again", nil, err
}

// stop names this process in its answer: by then it may have stopped serving.
func (s *Server) stop(ctx context.Context, r *pb.StopRequest) (string, *Process, error) {
	if err := s.checkOwner(); err != nil {
		return "", nil, err
	}
	if err := s.commands.Settle(ctx); err != nil {
		return "", nil, err
	}
	self := s.process()
	s.commands.Stop(printable(r.GetReason()))
	return "stopping", &self, nil
}

func (s *Server) endDrain(ctx context.Context, generation uint64) (string, error) {
	if own := s.Generation(); generation == 0 || generation > own {
		return "", fmt.Errorf("%w: generation %d has not owned the service, generation %d does", ErrWrongState, generation, own)
	}
	return s.commands.EndDrain(ctx, generation)
}

// cancel gives the attempt under way up, or that of an instance.
func (s *Server) cancel(ctx context.Context, r *pb.CancelRequest) (string, *Process, error) {
	p, err := s.doom(r.GetInstance())
	if err != nil {
		return "", nil, err
	}
	if p == nil {
		return "nothing to cancel: no such attempt is under way", nil, nil
	}
	defer p.users.Done()
	reason := printable(r.GetReason())
	if reason == "" {
		reason = "by a controller"
	}
	who := s.candidateOf(p)
	standing := make(chan struct{})
	p.link.post(func() error {
		switch {
		case p.committed:
			close(standing)
			return nil
		case p.ended:
			return nil
		}
		return fmt.Errorf("%w: %s", ErrCancelled, reason)
	})
	select {
	case <-p.released:
	case <-p.aborted:
	case <-p.owned:
	case <-standing:
	case <-ctx.Done():
		return "", &who, context.Cause(ctx)
	}
	text := "cancelled"
	if r.GetKill() {
		if text, err = s.endCandidate(ctx, p, reason); err != nil {
			return "", &who, err
		}
	}
	switch {
	case isClosed(p.owned):
		return "", &who, fmt.Errorf("%w: %v has come to own", ErrCommitted, who)
	case isClosed(p.released) && s.State() == StateOut:
		return "", &who, fmt.Errorf("%w: this process has stopped, and %v could not be told", ErrOutcomeUnknown, who)
	case isClosed(p.released):
		return text, &who, nil
	case isClosed(standing):
		return "", &who, fmt.Errorf("%w to %v, which has not answered", ErrCommitted, who)
	default:
		return "", &who, fmt.Errorf("%w: %v cannot be told, and nobody else can take over before it has ended", ErrOutcomeUnknown, who)
	}
}

// endCandidate ends the process of an attempt that was cancelled, or could not be,
// unless it exits by itself or comes to own. It returns when this process has noticed.
func (s *Server) endCandidate(ctx context.Context, p *predecessor, reason string) (text string, err error) {
	if p.process == nil {
		if isClosed(p.released) {
			return "cancelled; whether its process ends is not known here", nil
		}
		return "", fmt.Errorf("%w: the candidate's process cannot be ended: it is not certain which it is", ErrNotAllowed)
	}
	timer := time.NewTimer(cancelGrace)
	defer timer.Stop()
	text = "cancelled: its process has ended"
	select {
	case <-p.process.Exited():
	case <-p.owned:
		return "", nil
	case <-timer.C:
		if err := s.kill(ctx, p, reason); err != nil || isClosed(p.owned) {
			return "", err
		}
		s.log.Warn("a candidate was killed because a controller wished so", "who", s.candidateOf(p), "reason", reason)
		text = "cancelled, and its process was killed"
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	select {
	case <-p.released: // this process owns again, if it did not
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	select {
	case <-p.process.Exited():
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	return text, nil
}

// kill ends the candidate's process, as long as that is not the owner's.
func (s *Server) kill(ctx context.Context, p *predecessor, reason string) error {
	result := make(chan error, 1) // room, for nobody may read it
	p.link.post(func() error {
		done, err := s.killCommitted(p)
		if !done {
			return nil
		}
		result <- err
		if err != nil || p.brokeAt != "" {
			return nil // in which case its end is waited for already
		}
		return fmt.Errorf("%w: %s, and its process was killed", ErrCancelled, reason)
	})
	select {
	case err := <-result:
		return err
	case <-p.owned:
		return nil
	case <-p.aborted: // it is certain that it was never committed to
	case <-p.released:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-result: // both were there
		return err
	default:
	}
	if isClosed(p.owned) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pid := p.who.PID // 0 before the Hello of one that this process has started
	again := s.attempt != nil && s.attempt != p && s.attempt.who.PID == pid
	if pid != 0 && (again || s.successor != nil && s.successor.PID == pid) {
		return fmt.Errorf("%w: the process of %v has made another attempt since", ErrWrongState, p.who.Process)
	}
	return notKilled(p.process.Kill())
}

// killCommitted ends the process of a candidate that was committed to and has not
// answered. It is called by the machine, for which the next thing to hear is that
// one's end: nothing that is still on its way can make it the owner. It reports
// false for a candidate that was not committed to, or owns.
func (s *Server) killCommitted(p *predecessor) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !p.committed, s.state != StateStandby:
		return false, nil
	case s.stopping:
		return true, errStop
	}
	return true, notKilled(p.process.Kill())
}

// notKilled is why a process could not be ended. That it has ended already is none.
func notKilled(err error) error {
	if err == nil || errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return fmt.Errorf("%w: the candidate's process cannot be ended: %w", ErrNotAllowed, err)
}

// doom returns the attempt that is to be cancelled, whose process stays known until
// its users are done, nil for none, and refuses the instance from now on, if one is
// given.
func (s *Server) doom(instance string) (*predecessor, error) {
	if instance != "" {
		if err := CheckName(instance); err != nil { // nor could it say Hello
			return nil, fmt.Errorf("the instance: %w", err)
		}
	}
	older := s.service.Generations()
	s.mu.Lock()
	defer s.mu.Unlock()
	if instance != "" {
		if err := s.hasOwnedLocked(instance, older); err != nil {
			return nil, err
		}
	}
	if s.state != StateStandby && !s.state.Owns() && s.state != StateHeir {
		return nil, fmt.Errorf("%w: this process is %v", ErrMoved, s.state)
	}
	if instance != "" && !slices.Contains(s.cancelled, instance) {
		s.cancelled = append(s.cancelled, instance)
		s.cancelled = s.cancelled[max(0, len(s.cancelled)-maxCancelled):]
	}
	if s.attempt == nil || instance != "" && s.attempt.who.Instance != instance {
		return nil, nil //nolint:nilnil // nothing to cancel is no error
	}
	s.attempt.users.Add(1)
	return s.attempt, nil
}

// hasOwnedLocked returns ErrCommitted if the instance owns or has owned the service:
// it is too late to cancel it.
func (s *Server) hasOwnedLocked(instance string, older []Generation) error {
	switch {
	case s.self.Instance == instance && (s.state.Owns() || s.state == StateHeir):
		return fmt.Errorf("%w: %v owns, or is about to", ErrCommitted, s.self)
	case s.successor != nil && s.successor.Instance == instance && s.state != StateYielding:
		return fmt.Errorf("%w: %v owns", ErrCommitted, *s.successor)
	}
	for _, g := range older {
		if g.Process.Instance == instance {
			return fmt.Errorf("%w: %v has owned the service, and is %v", ErrCommitted, g.Process, g.State)
		}
	}
	return nil
}

func (s *Server) candidateOf(p *predecessor) Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.attemptLocked().Successor
}

func (s *Server) serveCheck(ctx context.Context, l *link, peer *scm.Peer, r *pb.CheckRequest) error {
	reply := s.rehearse(ctx, peer, r)
	if refusal := reply.GetRefuse(); refusal.GetCode() == pb.RefuseCode_REFUSE_CODE_MOVED {
		return respondError(l, pb.ErrorCode_ERROR_CODE_MOVED, refusal.GetReason())
	}
	return respond(l, &pb.ControlResponse{Response: &pb.ControlResponse_Check{Check: reply}})
}

// rehearse says what a candidate would meet that peer were. A policy may rely on
// there being a peer.
func (s *Server) rehearse(ctx context.Context, peer *scm.Peer, r *pb.CheckRequest) *pb.CheckReply {
	who := s.candidate(&pb.Hello{
		Process: r.GetSuccessor(), Force: r.GetForce(), Probation: r.GetProbation(), AtProbationEnd: r.GetAtProbationEnd(),
	}, peer)
	refusal, _ := s.refusal()
	denied := s.allow(peer, AccessChange)
	switch {
	case refusal.GetCode() == pb.RefuseCode_REFUSE_CODE_MOVED:
	case denied != nil:
		refusal = denied.refusal()
	case refusal == nil || passing(refusal.GetCode()):
		if final := s.judge(ctx, who); final != nil {
			refusal = final
		}
	}
	return &pb.CheckReply{
		Refuse: refusal, Total: uint32(s.service.Total()),
		ReadyTimeout: durationpb.New(s.limits.Ready), MaxReadyTimeout: durationpb.New(s.limits.MaxReady),
		CommitTimeout: durationpb.New(s.limits.Commit), Probation: durationpb.New(who.Probation),
	}
}

func (s *Server) serveStatus(ctx context.Context, l *link) error {
	for page := range statusPages(s.Status(ctx)) {
		if err := respond(l, &pb.ControlResponse{Response: &pb.ControlResponse_Status{Status: page}}); err != nil {
			return err
		}
	}
	return nil
}

// outcome is how a command ended, and who serves now.
func (s *Server) outcome(text string, who *Process, err error) *pb.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &pb.Outcome{Ok: err == nil, Reason: oneLine(text), State: pb.State(s.state)}
	switch serving := s.servingLocked(); {
	case serving == nil:
	default:
		out.Serving = processToWire(*serving)
	}
	if err != nil {
		out.Reason, out.Code = sentence(err), outcomeCode(err)
		if refused := new(RefusedError); errors.As(err, &refused) && refused.Who != nil {
			who = refused.Who
		}
	}
	if who != nil {
		out.Who = processToWire(*who)
	}
	return out
}

// servingLocked is who owns, nil if that cannot be said here.
func (s *Server) servingLocked() *Process {
	switch {
	case s.state.Owns():
		return &s.self
	case s.state == StateStandby:
		return nil
	default:
		return s.successor
	}
}

// outcomeCode finds the code that tells a controller why err ended its request.
func outcomeCode(err error) pb.OutcomeCode {
	if refused := new(RefusedError); errors.As(err, &refused) && refused.Passing() {
		return pb.OutcomeCode_OUTCOME_CODE_BUSY
	}
	for _, c := range []struct {
		sentinel error
		code     pb.OutcomeCode
	}{
		{ErrOutcomeUnknown, pb.OutcomeCode_OUTCOME_CODE_UNKNOWN},
		{ErrPolicy, pb.OutcomeCode_OUTCOME_CODE_REFUSED},
		{ErrIncompatible, pb.OutcomeCode_OUTCOME_CODE_REFUSED},
		{ErrControlLost, pb.OutcomeCode_OUTCOME_CODE_REFUSED},
		{ErrCommitted, pb.OutcomeCode_OUTCOME_CODE_COMMITTED},
		{ErrSettled, pb.OutcomeCode_OUTCOME_CODE_SETTLED},
		{ErrRolledBack, pb.OutcomeCode_OUTCOME_CODE_ROLLED_BACK},
		{ErrTimeout, pb.OutcomeCode_OUTCOME_CODE_TIMEOUT},
		{ErrCancelled, pb.OutcomeCode_OUTCOME_CODE_CANCELLED},
	} {
		if errors.Is(err, c.sentinel) {
			return c.code
		}
	}
	return pb.OutcomeCode_OUTCOME_CODE_FAILED
}

// owe counts an answer that a controller waits for, until the function that it
// returns is called. A process that is about to leave gives them a moment.
func (s *Server) owe() (paid func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.paidLocked()
	}
}

// paidLocked counts one debt less.
func (s *Server) paidLocked() {
	if s.owed--; s.owed == 0 && s.paid != nil {
		close(s.paid)
		s.paid = nil
	}
}

// payDebts returns when every controller that waits for an answer has it, or after a
// moment: what they wait for has been decided, and is about to close this process's
// part. Who was welcomed and has not asked yet is told, and not waited for.
func (s *Server) payDebts() {
	s.mu.Lock()
	s.endAsking(errLeaving)
	s.asking, s.endAsking = context.WithCancelCause(s.hearing)
	if s.owed == 0 {
		s.mu.Unlock()
		return
	}
	if s.paid == nil {
		s.paid = make(chan struct{})
	}
	paid := s.paid
	s.mu.Unlock()
	timer := time.NewTimer(debtLimit)
	defer timer.Stop()
	select {
	case <-paid:
	case <-timer.C:
		s.log.Warn("a controller is left without an answer")
	}
}

// debtLimit is how long payDebts waits: an answer that is known is written at once,
// unless its controller is frozen and its socket full.
const debtLimit = 1 * time.Second

// attended returns a context that ends when the controller has left.
func attended(l *link) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() { // ends with the connection, which is closed after the answer
		_ = l.conn.Discard(context.Background())
		cancel(errControllerGone)
	}()
	return ctx, func() { cancel(nil) }
}

// errControllerGone ends what a controller has waited for.
var errControllerGone = errors.New("the controller has left")

func respond(l *link, r *pb.ControlResponse) error {
	return l.send(&pb.ServerMessage{Message: &pb.ServerMessage_Control{Control: r}})
}

func respondError(l *link, code pb.ErrorCode, reason string) error {
	return respond(l, &pb.ControlResponse{Response: &pb.ControlResponse_Error{Error: &pb.Error{Code: code, Reason: oneLine(reason)}}})
}

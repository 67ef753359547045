package handoff

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// This file is the controller's side: one function for each request. Each takes
// ownership of conn, a fresh connection to a control socket, asks once, and closes
// it. The wait is bounded by ctx alone. Errors of all of them: [*RefusedError],
// ErrUnanswered if the server has closed before it has read the request, ErrLost if
// it has closed later, the cause of ctx, ErrProtocol, ErrUnimplemented, ErrMoved,
// ErrWrongState, ErrNotAllowed, or one that has the server's reason alone.

// Outcome is what became of a request that was fulfilled.
type Outcome struct {
	Text    string   // what was done, one sentence
	Serving *Process // who serves now; nil for nobody, or if the one who answers cannot know
	State   State    // of the one who answers
	Who     *Process // whom the request was about, if that was not Serving, or will not be: it stops
}

// OutcomeError says why a request was not fulfilled, and who serves now. It matches
// the sentinel of the reason: ErrBusy, ErrFailed, ErrTimeout, ErrRolledBack,
// ErrCancelled, ErrPolicy, ErrOutcomeUnknown, ErrSettled or ErrCommitted.
type OutcomeError struct {
	Outcome // Text is the reason

	code pb.OutcomeCode
}

// Error implements error.
func (e *OutcomeError) Error() string {
	if e.Text == "" {
		return "not done"
	}
	return e.Text
}

// Is reports whether target is the sentinel of the reason.
func (e *OutcomeError) Is(target error) bool {
	sentinel, ok := outcomeSentinels[e.code]
	return ok && target == sentinel
}

var outcomeSentinels = map[pb.OutcomeCode]error{
	pb.OutcomeCode_OUTCOME_CODE_BUSY:        ErrBusy,
	pb.OutcomeCode_OUTCOME_CODE_FAILED:      ErrFailed,
	pb.OutcomeCode_OUTCOME_CODE_TIMEOUT:     ErrTimeout,
	pb.OutcomeCode_OUTCOME_CODE_ROLLED_BACK: ErrRolledBack,
	pb.OutcomeCode_OUTCOME_CODE_CANCELLED:   ErrCancelled,
	pb.OutcomeCode_OUTCOME_CODE_REFUSED:     ErrPolicy,
	pb.OutcomeCode_OUTCOME_CODE_UNKNOWN:     ErrOutcomeUnknown,
	pb.OutcomeCode_OUTCOME_CODE_SETTLED:     ErrSettled,
	pb.OutcomeCode_OUTCOME_CODE_COMMITTED:   ErrCommitted,
}

// Rehearsal is what a successor would meet if it came now.
type Rehearsal struct {
	// Refusal is why it would be turned away, nil if it would not.
	Refusal *RefusedError
	// Descriptors is how many the offer would have now, with those of the library
	// and the states that are written for it.
	Descriptors int
	// The limits that it would get, as in [Limits].
	Ready, MaxReady, Commit time.Duration
	// Probation is what it would be granted.
	Probation time.Duration
}

// QueryStatus asks the process that serves conn how it stands.
func QueryStatus(ctx context.Context, conn *scm.Conn) (*Status, error) {
	return queryStatus(ctx, conn)
}

func queryStatus(ctx context.Context, conn frames) (*Status, error) {
	status := new(Status)
	first := true
	err := request(ctx, conn, &pb.ControlRequest{Request: &pb.ControlRequest_Status{Status: &pb.StatusRequest{}}}, func(r *pb.ControlResponse) (bool, error) {
		page := r.GetStatus()
		switch {
		case page == nil:
			return false, unexpected(r, "StatusReply")
		case first == (page.GetProcess() == nil):
			return false, protocolError("the first page of a status says whose it is, and no other")
		case !first && len(page.GetDescriptors()) == 0:
			return false, protocolError("a page of a status is empty")
		}
		first = false
		status.addPage(page)
		if len(status.Descriptors) > MaxDescriptors {
			return false, protocolError("the status lists more than %d descriptors", MaxDescriptors)
		}
		return !page.GetLast(), nil
	})
	if err != nil {
		return nil, err
	}
	return status, nil
}

// Watch calls each for every change in the part of the process that serves conn,
// at first for the state that it is in, until that process has nothing to do with
// the control socket any more, which the last event tells, or is gone, or cuts off a
// watcher that is too far behind: then the result is nil. An error of each ends it,
// and is returned.
func Watch(ctx context.Context, conn *scm.Conn, each func(Event) error) error {
	return watch(ctx, conn, each)
}

func watch(ctx context.Context, conn frames, each func(Event) error) error {
	var begun bool
	var failed error // of each
	err := request(ctx, conn, &pb.ControlRequest{Request: &pb.ControlRequest_Watch{Watch: &pb.WatchRequest{}}}, func(r *pb.ControlResponse) (bool, error) {
		if r.GetEvent() == nil {
			return false, unexpected(r, "Event")
		}
		begun = true
		failed = each(eventFromWire(r.GetEvent()))
		return true, failed
	})
	if begun && failed == nil && lost(err) {
		return nil
	}
	return err
}

// RequestUpgrade has the owner start its own successor, and returns when that one
// owns; with settled, when the predecessor has retired. timeout bounds the attempt,
// 0 for the owner's own limits. The end of ctx before Commit cancels the attempt;
// how it ends then is not known here. Like all that follow but RequestCancel it is for
// the owner of that instance alone: the error matches ErrWrongState if another owns.
// An empty instance stands for whoever does.
func RequestUpgrade(ctx context.Context, conn *scm.Conn, instance string, timeout time.Duration, settled bool) (*Outcome, error) {
	r := &pb.UpgradeRequest{WaitSettled: settled}
	if timeout > 0 {
		r.Timeout = durationpb.New(timeout)
	}
	return command(ctx, conn, &pb.ControlRequest{Instance: instance, Request: &pb.ControlRequest_Upgrade{Upgrade: r}})
}

// RequestCancel has the owner give up the attempt under way, with reason for the
// candidate's error. With an instance, only one of that instance, which is refused
// from now on. kill ends a candidate that is frozen. The error matches ErrCommitted
// if it is too late. That there is nothing to cancel is none.
func RequestCancel(ctx context.Context, conn *scm.Conn, instance, reason string, kill bool) (*Outcome, error) {
	r := &pb.CancelRequest{Instance: instance, Reason: oneLine(reason), Kill: kill}
	return command(ctx, conn, &pb.ControlRequest{Request: &pb.ControlRequest_Cancel{Cancel: r}})
}

// RequestSettle has the owner settle its probation, and returns when the predecessor
// has retired.
func RequestSettle(ctx context.Context, conn *scm.Conn, instance string) (*Outcome, error) {
	return command(ctx, conn, &pb.ControlRequest{Instance: instance, Request: &pb.ControlRequest_Settle{Settle: &pb.SettleRequest{}}})
}

// RequestRollback has the owner give the service back, and returns when the
// predecessor owns. The error matches ErrSettled if it is too late.
func RequestRollback(ctx context.Context, conn *scm.Conn, instance, reason string) (*Outcome, error) {
	r := &pb.RollbackRequest{Reason: oneLine(reason)}
	return command(ctx, conn, &pb.ControlRequest{Instance: instance, Request: &pb.ControlRequest_Rollback{Rollback: r}})
}

// RequestEndDrain has the owner ask an older generation to end its drain now. It
// returns when that one has been asked, or has gone.
func RequestEndDrain(ctx context.Context, conn *scm.Conn, instance string, generation uint64) (*Outcome, error) {
	r := &pb.EndDrainRequest{Generation: generation}
	return command(ctx, conn, &pb.ControlRequest{Instance: instance, Request: &pb.ControlRequest_EndDrain{EndDrain: r}})
}

// RequestStop has the owner settle, if it is on probation, and then stop for good.
// It returns when it has settled and is about to stop.
func RequestStop(ctx context.Context, conn *scm.Conn, instance, reason string) (*Outcome, error) {
	r := &pb.StopRequest{Reason: oneLine(reason)}
	return command(ctx, conn, &pb.ControlRequest{Instance: instance, Request: &pb.ControlRequest_Stop{Stop: r}})
}

// RequestCheck asks the owner what who would meet as a successor. Nothing begins.
func RequestCheck(ctx context.Context, conn *scm.Conn, who *Candidate) (*Rehearsal, error) {
	return check(ctx, conn, who)
}

func check(ctx context.Context, conn frames, who *Candidate) (*Rehearsal, error) {
	r := &pb.CheckRequest{Successor: processToWire(who.Process), Force: who.Force, AtProbationEnd: probationEndToWire(who.AtProbationEnd)}
	if who.Probation > 0 {
		r.Probation = durationpb.New(who.Probation)
	}
	var rehearsal *Rehearsal
	err := request(ctx, conn, &pb.ControlRequest{Request: &pb.ControlRequest_Check{Check: r}}, func(r *pb.ControlResponse) (bool, error) {
		if r.GetCheck() == nil {
			return false, unexpected(r, "CheckReply")
		}
		if total := r.GetCheck().GetTotal(); total > MaxDescriptors {
			return false, protocolError("the offer would have %d descriptors, the limit is %d", total, MaxDescriptors)
		}
		rehearsal = rehearsalFromWire(r.GetCheck())
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	return rehearsal, nil
}

// command is a request that ends with an Outcome.
func command(ctx context.Context, conn frames, r *pb.ControlRequest) (*Outcome, error) {
	var outcome *pb.Outcome
	err := request(ctx, conn, r, func(r *pb.ControlResponse) (bool, error) {
		if outcome = r.GetOutcome(); outcome == nil {
			return false, unexpected(r, "Outcome")
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	got := outcomeFromWire(outcome)
	if !outcome.GetOk() {
		return nil, &OutcomeError{Outcome: *got, code: outcome.GetCode()}
	}
	return got, nil
}

// request asks, and hands each response to take, which says whether more are to
// come. An Error among them is the result.
func request(ctx context.Context, conn frames, r *pb.ControlRequest, take func(*pb.ControlResponse) (more bool, err error)) error {
	l := newLink(conn, 0)
	defer l.close()
	hello := &pb.Hello{Versions: []uint32{Version}, Role: pb.Role_ROLE_CONTROLLER}
	// Failed writes are not the news: a refusal may be waiting to be read.
	_ = l.send(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: hello}})
	_ = l.send(&pb.ClientMessage{Message: &pb.ClientMessage_Control{Control: r}})
	m, err := controllerNext(ctx, l)
	if lost(err) {
		return fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	if err != nil {
		return err
	}
	if m.GetWelcome() == nil {
		return unexpected(m, stepWelcome)
	}
	for more := true; more; {
		m, err := controllerNext(ctx, l)
		switch {
		case err != nil:
			return err
		case m.GetControl() == nil:
			return unexpected(m, "ControlResponse")
		case m.GetControl().GetError() != nil:
			return requestError(m.GetControl().GetError())
		}
		if more, err = take(m.GetControl()); err != nil {
			return err
		}
	}
	return nil
}

// requestError is why the server could not serve a request. A code that is not
// known leaves it to the reason.
func requestError(e *pb.Error) error {
	reason := printable(e.GetReason())
	if sentinel, ok := errorSentinels[e.GetCode()]; ok {
		// The reason of this package begins with the sentinel's own words.
		return fmt.Errorf("%w: %s", sentinel, strings.TrimPrefix(reason, sentinel.Error()+": "))
	}
	return errors.New("the server did not serve the request: " + reason)
}

var errorSentinels = map[pb.ErrorCode]error{
	pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED: ErrUnimplemented,
	pb.ErrorCode_ERROR_CODE_MOVED:         ErrMoved,
	pb.ErrorCode_ERROR_CODE_WRONG_STATE:   ErrWrongState,
	pb.ErrorCode_ERROR_CODE_NOT_ALLOWED:   ErrNotAllowed,
}

func controllerNext(ctx context.Context, l *link) (*pb.ServerMessage, error) {
	m := new(pb.ServerMessage)
	if _, err := l.next(ctx, m); err != nil {
		return nil, err
	}
	if r := m.GetRefuse(); r != nil {
		return nil, refusedFromWire(r)
	}
	return m, nil
}

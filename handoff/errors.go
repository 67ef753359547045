package handoff

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// A sentinel for each decision that a caller can take. The errors of this
// package wrap them; match with [errors.Is].
var (
	// ErrBusy: another attempt is under way.
	ErrBusy = errors.New("another handoff is under way")
	// ErrNotReady: the owner has not called Ready yet.
	ErrNotReady = errors.New("the owner is not ready yet")
	// ErrProbation: the owner is still in its own probation.
	ErrProbation = errors.New("the owner is in probation")
	// ErrDraining: too many older generations are still draining.
	ErrDraining = errors.New("too many generations are draining")
	// ErrPolicy: the owner's policy does not want this successor.
	ErrPolicy = errors.New("refused by policy")
	// ErrDenied: the credentials are not authorised on the control socket.
	ErrDenied = errors.New("not permitted")
	// ErrIncompatible: no protocol version in common.
	ErrIncompatible = errors.New("incompatible protocol versions")
	// ErrStopping: the owner is stopping for good.
	ErrStopping = errors.New("stopping")
	// ErrMoved: the process that answered is no longer the owner.
	ErrMoved = errors.New("the owner has changed")
	// ErrControlLost: the control path no longer leads to its owner.
	ErrControlLost = errors.New("control path lost")
	// ErrProtocol: the other side broke the protocol.
	ErrProtocol = errors.New("protocol error")
	// ErrTimeout: a step took longer than its limit.
	ErrTimeout = errors.New("timed out")
	// ErrAborted: the other side gave the attempt up.
	ErrAborted = errors.New("aborted by the other side")
	// ErrCancelled: the attempt was cancelled on this side.
	ErrCancelled = errors.New("cancelled")
	// ErrLost: the other side closed the connection or died.
	ErrLost = errors.New("the other side is gone")
	// ErrUnclaimed: an offered descriptor was not asked for.
	ErrUnclaimed = errors.New("descriptors were not asked for")
	// ErrDescriptor: a descriptor is not what the manifest says.
	ErrDescriptor = errors.New("descriptor does not match the manifest")
	// ErrLimit: a limit of this system is too low for the offer.
	ErrLimit = errors.New("limit too low")
	// ErrHook: a function that the program supplied has failed.
	ErrHook = errors.New("hook failed")
	// ErrUnimplemented: the server does not know the request.
	ErrUnimplemented = errors.New("not implemented by the server")
	// ErrRolledBack: the successor has given the service back.
	ErrRolledBack = errors.New("rolled back")
	// ErrSettled: the decision to stay has been taken, and cannot be undone.
	ErrSettled = errors.New("settled: the predecessor cannot come back")
	// ErrFailed: the attempt that was asked for has failed.
	ErrFailed = errors.New("the handoff failed")
	// ErrCommitted: the attempt has been committed and cannot be cancelled.
	ErrCommitted = errors.New("the handoff has been committed")
	// ErrOutcomeUnknown: the caller stopped waiting for something that was
	// already told to the other side and may still happen.
	ErrOutcomeUnknown = errors.New("the outcome is not known yet")
	// ErrNotTaken: the successor has no use for a connection, which is this
	// process's as before.
	ErrNotTaken = errors.New("the successor has not taken the connection")
	// ErrWrongState: the state of the process does not allow the request.
	ErrWrongState = errors.New("not possible now")
	// ErrNotAllowed: the owner's configuration or its system does not allow the
	// request.
	ErrNotAllowed = errors.New("not allowed")
	// ErrUnanswered: the server has closed before it has read a controller's
	// request, as one that is just leaving does, or has too much to do: dial again.
	ErrUnanswered = errors.New("no answer")
	// ErrAskAgain: what the attempt was refused for has passed: dial again.
	ErrAskAgain = errors.New("the reason for the refusal has passed")
)

// Side names one side of a handoff in an [Error].
type Side string

// The sides.
const (
	Predecessor Side = "predecessor"
	Successor   Side = "successor"
)

// Error is how an attempt failed, on the side that reports it. It unwraps to
// the sentinel of the failure and to its cause.
type Error struct {
	Side Side   // who reports
	Step string // what it waited for or did
	Err  error  // why
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("%s, at %s: %v", e.Side, e.Step, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// RefusedError is an owner's refusal. It matches the sentinel of its code.
type RefusedError struct {
	Reason string    // the owner's sentence
	Who    *Process  // who is in the way, if somebody is
	Since  time.Time // since when, if Who is set
	Until  time.Time // when that one should be out of the way; zero if it is not known

	code     pb.RefuseCode
	versions []uint32
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Reason == "" {
		return "refused: " + e.sentinel().Error()
	}
	return "refused: " + e.Reason
}

// Is reports whether target is the sentinel of the refusal.
func (e *RefusedError) Is(target error) bool { return target == e.sentinel() }

// Passing reports whether the reason passes by itself, so that it may be
// waited for.
func (e *RefusedError) Passing() bool { return passing(e.code) }

func (e *RefusedError) sentinel() error {
	switch e.code {
	case pb.RefuseCode_REFUSE_CODE_BUSY:
		return ErrBusy
	case pb.RefuseCode_REFUSE_CODE_NOT_READY:
		return ErrNotReady
	case pb.RefuseCode_REFUSE_CODE_PROBATION:
		return ErrProbation
	case pb.RefuseCode_REFUSE_CODE_DRAINING:
		return ErrDraining
	case pb.RefuseCode_REFUSE_CODE_POLICY:
		return ErrPolicy
	case pb.RefuseCode_REFUSE_CODE_DENIED:
		return ErrDenied
	case pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE:
		return ErrIncompatible
	case pb.RefuseCode_REFUSE_CODE_STOPPING:
		return ErrStopping
	case pb.RefuseCode_REFUSE_CODE_MOVED:
		return ErrMoved
	case pb.RefuseCode_REFUSE_CODE_CONTROL_LOST:
		return ErrControlLost
	case pb.RefuseCode_REFUSE_CODE_CANCELLED:
		return ErrCancelled
	default:
		return ErrProtocol
	}
}

// passing reports whether a refusal with this code is worth waiting out.
func passing(code pb.RefuseCode) bool {
	switch code {
	case pb.RefuseCode_REFUSE_CODE_BUSY, pb.RefuseCode_REFUSE_CODE_NOT_READY,
		pb.RefuseCode_REFUSE_CODE_PROBATION, pb.RefuseCode_REFUSE_CODE_DRAINING:
		return true
	default:
		return false
	}
}

// AbortedError is the other side's Abort.
type AbortedError struct {
	Reason string // its sentence

	code pb.AbortCode
}

// Error implements error.
func (e *AbortedError) Error() string { return "aborted by the other side: " + e.Reason }

// Is reports whether target is ErrAborted or the sentinel of the reason.
func (e *AbortedError) Is(target error) bool {
	return target == ErrAborted || target == abortSentinels[e.code]
}

var abortSentinels = map[pb.AbortCode]error{
	pb.AbortCode_ABORT_CODE_PROTOCOL:   ErrProtocol,
	pb.AbortCode_ABORT_CODE_TIMEOUT:    ErrTimeout,
	pb.AbortCode_ABORT_CODE_STOPPING:   ErrStopping,
	pb.AbortCode_ABORT_CODE_CANCELLED:  ErrCancelled,
	pb.AbortCode_ABORT_CODE_LIMIT:      ErrLimit,
	pb.AbortCode_ABORT_CODE_DESCRIPTOR: ErrDescriptor,
	pb.AbortCode_ABORT_CODE_UNCLAIMED:  ErrUnclaimed,
	pb.AbortCode_ABORT_CODE_HOOK:       ErrHook,
}

// LostError says that the owner went away before this process had received
// everything, so that nothing came of the attempt. It matches [ErrLost].
type LostError struct {
	Generation uint64 // that the attempt had got, 0 if none: a fresh start keeps it
	Err        error
}

// Error implements error.
func (e *LostError) Error() string { return ErrLost.Error() + ": " + e.Err.Error() }

// Is reports whether target is ErrLost.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// Unwrap returns how the loss was noticed.
func (e *LostError) Unwrap() error { return e.Err }

// TimeoutError says which wait was too long. It matches [ErrTimeout].
type TimeoutError struct {
	For   string        // what was waited for
	Limit time.Duration // how long
}

// Error implements error.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("no %s within %v", e.For, e.Limit)
}

// Is reports whether target is ErrTimeout.
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }

// Timeout implements the interface that net.Error callers look for.
func (e *TimeoutError) Timeout() bool { return true }

// protocolError says what the other side did wrong.
func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrProtocol, fmt.Errorf(format, args...))
}

// goneError says that the peer has closed its end for good. Only [link.next]
// makes one. It matches [ErrLost].
type goneError struct{ cause error }

// Error implements error.
func (e *goneError) Error() string { return ErrLost.Error() + ": " + e.cause.Error() }

// Is reports whether target is ErrLost.
func (e *goneError) Is(target error) bool { return target == ErrLost }

// Unwrap returns what has shown it.
func (e *goneError) Unwrap() error { return e.cause }

// lost reports whether err says that the peer has closed its end for good. It
// is the one sign that the peer does not own (I2), so nothing else may count:
// what a hook or the cause of a context wraps, io.EOF for one, must not look
// like it.
func lost(err error) bool {
	_, ok := err.(*goneError) //nolint:errorlint // see above
	return ok
}

// told reports whether err is the peer's own last word, so that it needs no
// Abort. Like lost it does not look into wrapped errors.
func told(err error) bool {
	_, aborted := err.(*AbortedError) //nolint:errorlint // see above
	return aborted || lost(err)
}

// abortCode finds the code that tells the other side why err ended the attempt.
func abortCode(err error) pb.AbortCode {
	for _, code := range []pb.AbortCode{
		pb.AbortCode_ABORT_CODE_STOPPING, pb.AbortCode_ABORT_CODE_CANCELLED,
		pb.AbortCode_ABORT_CODE_UNCLAIMED, pb.AbortCode_ABORT_CODE_DESCRIPTOR,
		pb.AbortCode_ABORT_CODE_LIMIT, pb.AbortCode_ABORT_CODE_HOOK,
		pb.AbortCode_ABORT_CODE_TIMEOUT, pb.AbortCode_ABORT_CODE_PROTOCOL,
	} {
		if errors.Is(err, abortSentinels[code]) {
			return code
		}
	}
	return pb.AbortCode_ABORT_CODE_FAILED
}

// hookError is why a function of the program has failed that had until the end
// of ctx: its own error is not the news if it took too long.
func hookError(ctx context.Context, err error) error {
	if late := context.Cause(ctx); late != nil && !errors.Is(err, late) {
		return fmt.Errorf("%w: %w: %w", ErrHook, late, err)
	}
	return fmt.Errorf("%w: %w", ErrHook, err)
}

// sentence is err as the reason field of a message: one line, bounded.
func sentence(err error) string { return oneLine(err.Error()) }

// oneLine makes any text one that fits into a message.
func oneLine(s string) string { return bounded(s, maxReason) }

// bounded makes any text one line of about that many bytes.
func bounded(s string, limit int) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.ReplaceAll(s, "\n", "; ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}

// maxReason bounds a reason, so that the last word always finds room.
const maxReason = 4000

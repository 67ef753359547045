package crossfade

import (
	"errors"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// How a process's part ended: what [Upgrader.Err] returns after Exit.
var (
	// ErrRetired: the successor has taken over. Finish what is open and exit
	// with status 0.
	ErrRetired = errors.New("retired: the successor has taken over")
	// ErrRolledBack: this process has given the service back to its predecessor.
	// Finish what is open and exit with status [ExitRolledBack].
	ErrRolledBack = handoff.ErrRolledBack
	// ErrStopped: Stop was called.
	ErrStopped = errors.New("stopped")
)

// ExitRolledBack is the status with which a program should exit that has rolled
// back, so that whoever started it knows it from a failure (EX_TEMPFAIL of
// sysexits.h). After ErrRetired and ErrStopped it is 0, after everything else 1.
const ExitRolledBack = 75

// ExitDrainTimeout is the status with which the library itself ends a process
// that was replaced and has not exited within Config.DrainTimeout: that of
// timeout(1), and none that sysexits.h gives another name. A program that was
// stopped may use it for the same reason: the library ends only the context then.
const ExitDrainTimeout = 124

// stoppedError is why a candidate that is told to stop gives up.
type stoppedError struct{}

func (stoppedError) Error() string { return "stopped before it owned the service" }

func (stoppedError) Is(target error) bool { return target == ErrStopped || target == ErrStopping }

// What a caller can act on. Match with [errors.Is].
var (
	// ErrNotInherited: the predecessor handed nothing of that name over.
	ErrNotInherited = errors.New("not inherited")
	// ErrNameTaken: the name is in use; Close or Remove what has it first.
	ErrNameTaken = errors.New("the name is in use")
	// ErrHandoffInProgress: the registry cannot change between Ready and
	// Commit of a successor, and this has lasted longer than CommitTimeout.
	ErrHandoffInProgress = errors.New("a handoff is being committed")
	// ErrOutcomeUnknown: the caller stopped waiting for something that was
	// already told to the other side and may still happen.
	ErrOutcomeUnknown = handoff.ErrOutcomeUnknown
	// ErrPath: no socket can have that path, whoever owns it; the text says why.
	ErrPath = rendezvous.ErrPath
	// ErrOwnerUnknown: whether somebody owns the control path cannot be said,
	// so nothing was bound. Never start afresh on it.
	ErrOwnerUnknown = rendezvous.ErrOwnerUnknown
	// ErrNoOwner: nobody owns the control path, which is certain.
	ErrNoOwner = rendezvous.ErrNoOwner

	// ErrBusy: another handoff is under way.
	ErrBusy = handoff.ErrBusy
	// ErrNotReady: the owner has not called Ready yet.
	ErrNotReady = handoff.ErrNotReady
	// ErrProbation: the owner is in probation itself, and hands over to nobody
	// before it has settled.
	ErrProbation = handoff.ErrProbation
	// ErrSettled: the decision to stay has been taken, and cannot be undone.
	ErrSettled = handoff.ErrSettled
	// ErrDraining: as many older processes as Config.MaxDraining allows have not
	// gone yet; the text names the oldest.
	ErrDraining = handoff.ErrDraining
	// ErrPolicy: the owner's AcceptSuccessor or Epoch refused.
	ErrPolicy = handoff.ErrPolicy
	// ErrUnsafePath: others could put a socket of their own at the control path; the
	// text says who, where, and what to do. See [Config.TrustDirectory].
	ErrUnsafePath = rendezvous.ErrUnsafe
	// ErrDenied: Authorize, or its default, refused: the owner's or, of an owner that
	// was found, this process's own.
	ErrDenied = handoff.ErrDenied
	// ErrIncompatible: the two sides speak no common protocol version.
	ErrIncompatible = handoff.ErrIncompatible
	// ErrMoved: this process is not the owner any more.
	ErrMoved = handoff.ErrMoved
	// ErrControlLost: the control path does not lead to its owner any more,
	// which therefore hands over to nobody.
	ErrControlLost = handoff.ErrControlLost
	// ErrStopping: the owner is stopping for good.
	ErrStopping = handoff.ErrStopping
	// ErrTimeout: a step of the handoff took longer than its limit. The text,
	// and [handoff.TimeoutError], name the step and the limit.
	ErrTimeout = handoff.ErrTimeout
	// ErrAborted: the other side gave the handoff up; the text has its reason.
	ErrAborted = handoff.ErrAborted
	// ErrLost: the other side died or left.
	ErrLost = handoff.ErrLost
	// ErrUnclaimed: an offered descriptor was not asked for, and
	// RequireAllClaimed is set.
	ErrUnclaimed = handoff.ErrUnclaimed
	// ErrDescriptor: a descriptor is not what the manifest says, or was lost
	// on the way.
	ErrDescriptor = handoff.ErrDescriptor
	// ErrProtocol: the other side broke the protocol.
	ErrProtocol = handoff.ErrProtocol
	// ErrFailed: the attempt that a [Controller] asked for has failed.
	ErrFailed = handoff.ErrFailed
	// ErrCancelled: the attempt was cancelled.
	ErrCancelled = handoff.ErrCancelled
	// ErrCommitted: the attempt has been committed and cannot be cancelled.
	ErrCommitted = handoff.ErrCommitted
	// ErrNotTaken: the successor has no use for a connection, which stays the
	// caller's.
	ErrNotTaken = handoff.ErrNotTaken
	// ErrWrongState: the owner's state does not allow the request.
	ErrWrongState = handoff.ErrWrongState
	// ErrNotAllowed: the owner's configuration or its system does not allow the
	// request.
	ErrNotAllowed = handoff.ErrNotAllowed
	// ErrUnimplemented: the owner's version does not know the request.
	ErrUnimplemented = handoff.ErrUnimplemented
	// ErrLimit: a limit of the system is too low for what is handed over.
	ErrLimit = handoff.ErrLimit
)

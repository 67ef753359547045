package handoff

import (
	"fmt"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// Access is what somebody at the other end of a connection needs to be allowed.
type Access int

// The kinds of access, each of which includes no other: whoever decides is asked for
// each that is needed.
const (
	// AccessRead is for each client of the control socket, before a byte of it is
	// read: to ask for the status, to watch, to rehearse a handoff.
	AccessRead Access = iota + 1
	// AccessChange is for whoever wants to take over, and for a controller's every
	// request that changes something.
	AccessChange
	// AccessOwner is for the other direction: for the owner that this process has
	// dialled, before anything is told to it or taken from it.
	AccessOwner
)

// String returns what the access is for, to be put behind "may" or "may not".
func (a Access) String() string {
	switch a {
	case AccessRead:
		return "speak here"
	case AccessChange:
		return "change anything or take over"
	case AccessOwner:
		return "be the owner"
	default:
		return fmt.Sprintf("do what access %d is for", int(a))
	}
}

// deniedError is why a client is turned away. Only this side may know the cause: it
// can tell users, groups and paths, also of those who are let in.
type deniedError struct {
	peer   *scm.Peer
	access Access
	cause  error
}

func (e *deniedError) Error() string {
	return fmt.Sprintf("it may not %v: %v", e.access, e.cause)
}

func (e *deniedError) Is(target error) bool { return target == ErrDenied }

func (e *deniedError) Unwrap() error { return e.cause }

// refusal tells the client what it knows anyway, and who can tell it more.
func (e *deniedError) refusal() *pb.Refuse {
	who := "this client"
	if e.peer != nil && !e.peer.Unmapped() {
		who = fmt.Sprintf("uid %d", e.peer.UID)
	}
	return &pb.Refuse{
		Code:   pb.RefuseCode_REFUSE_CODE_DENIED,
		Reason: fmt.Sprintf("%s may not %v: the log of the process that serves has the reason", who, e.access),
	}
}

// allow asks whether a client may do something. The credentials are those of its
// connect(2): what the process has become since changes nothing.
func (s *Server) allow(peer *scm.Peer, access Access) *deniedError {
	if err := s.auth(peer, access); err != nil {
		return &deniedError{peer: peer, access: access, cause: err}
	}
	return nil
}

package handoff

import (
	"context"
	"fmt"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// QueryStatus asks the process that serves conn how it stands. It takes
// ownership of conn and closes it. The wait is bounded by ctx alone. Errors:
// [*RefusedError], ErrLost, context errors, ErrProtocol, ErrUnimplemented,
// ErrMoved, or one that has the server's reason alone.
func QueryStatus(ctx context.Context, conn *scm.Conn) (*Status, error) {
	return queryStatus(ctx, conn)
}

func queryStatus(ctx context.Context, conn frames) (*Status, error) {
	l := newLink(conn, 0)
	defer l.close()
	hello := &pb.Hello{Versions: []uint32{Version}, Role: pb.Role_ROLE_CONTROLLER}
	request := &pb.ControlRequest{Request: &pb.ControlRequest_Status{Status: &pb.StatusRequest{}}}
	// Failed writes are not the news: a refusal may be waiting to be read.
	_ = l.send(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: hello}})
	_ = l.send(&pb.ClientMessage{Message: &pb.ClientMessage_Control{Control: request}})
	m, err := controllerNext(ctx, l)
	if err != nil {
		return nil, err
	}
	if m.GetWelcome() == nil {
		return nil, unexpected(m, stepWelcome)
	}
	status := new(Status)
	for first := true; ; first = false {
		m, err := controllerNext(ctx, l)
		if err != nil {
			return nil, err
		}
		switch r := m.GetControl(); {
		case r.GetStatus() != nil:
			if first == (r.GetStatus().GetProcess() == nil) {
				return nil, protocolError("the first page of a status says whose it is, and no other")
			}
			if !first && len(r.GetStatus().GetDescriptors()) == 0 {
				return nil, protocolError("a page of a status is empty")
			}
			status.addPage(r.GetStatus())
			if len(status.Descriptors) > MaxDescriptors {
				return nil, protocolError("the status lists more than %d descriptors", MaxDescriptors)
			}
			if r.GetStatus().GetLast() {
				return status, nil
			}
		case r.GetError() != nil:
			return nil, requestError(r.GetError())
		default:
			return nil, unexpected(m, "ControlResponse")
		}
	}
}

// requestError is why the server could not serve a request. A code that is not
// known leaves it to the reason.
func requestError(e *pb.Error) error {
	reason := printable(e.GetReason())
	switch e.GetCode() {
	case pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED:
		return fmt.Errorf("%w: %s", ErrUnimplemented, reason)
	case pb.ErrorCode_ERROR_CODE_MOVED:
		return fmt.Errorf("%w: %s", ErrMoved, reason)
	default:
		return fmt.Errorf("the server did not serve the request: %s", reason)
	}
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

package handoff

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// This file moves established connections from a predecessor that has retired to
// its successor. From sending one on, the predecessor neither reads nor writes it;
// it takes it back only on a negative answer, or at the successor's full close
// without any. docs/model/drain.pml shows why.

// FeatureConnections is the feature under which Connection and ConnectionAck may be
// sent.
const FeatureConnections = "connections"

const (
	// MaxPassedBytes is how many bytes may travel with one connection: what was read
	// of it and what the program wants known, together.
	MaxPassedBytes = 512 << 10
	// connectionWindow is how many connections may be unanswered. Their descriptors
	// count as in flight until the successor has read them, against a limit that all
	// processes of a user share.
	connectionWindow = 64
)

// Connection is an established connection of the service that moves.
type Connection struct {
	Listener string // the name of the listener that it was accepted from
	Unread   []byte // what was read of it and not used
	State    []byte // what the program wants its successor to know
	Identity scm.Identity
	FD       *scm.FD
}

// ErrNotTaken: the successor has no use for the connection, which is this process's
// as before.
var ErrNotTaken = errors.New("the successor has not taken the connection")

// transfers are the connections on their way to a successor.
type transfers struct {
	room chan struct{} // has an element for each that is unanswered

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan error // each has room for its one answer
	over    error                 // why nothing can be sent any more, nil while it can
}

func newTransfers() *transfers {
	return &transfers{room: make(chan struct{}, connectionWindow), pending: make(map[uint64]chan error)}
}

// HandOver passes a connection to the successor of this process, which has retired,
// and returns nil when that one has taken it: then it is served there, and the
// caller closes its own copy. c.FD remains the caller's.
//
// An error says that nobody but the caller has it, as before: it matches
// ErrWrongState before this process has retired; ErrUnimplemented if the successor
// is too old; ErrLimit if too much is to travel along; ErrNotTaken; ErrLost if the
// successor is gone; the cause of ctx if it ended before the connection was sent.
// But if it ends afterwards the error matches ErrOutcomeUnknown, and done is called
// once the outcome is there: until then nobody may use the connection.
func (s *Server) HandOver(ctx context.Context, c *Connection, done func(error)) error {
	s.mu.Lock()
	p := s.retirement
	s.mu.Unlock()
	switch {
	case p == nil:
		return fmt.Errorf("%w: there is no successor that could take a connection", ErrWrongState)
	case !p.passes:
		return fmt.Errorf("%w: the successor takes no connections", ErrUnimplemented)
	case len(c.Unread)+len(c.State) > MaxPassedBytes:
		return fmt.Errorf("%w: %d bytes are to travel with the connection, the protocol carries %d", ErrLimit, len(c.Unread)+len(c.State), MaxPassedBytes)
	}
	return p.transfers.pass(ctx, p.link, c, done)
}

func (ts *transfers) pass(ctx context.Context, l *link, c *Connection, done func(error)) error {
	select {
	case ts.room <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	id, answer, err := ts.begin()
	if err != nil {
		<-ts.room
		return err
	}
	m := &pb.Connection{Id: id, Listener: c.Listener, Unread: c.Unread, State: c.State, Identity: identityToWire(c.Identity)}
	if err := l.send(&pb.ServerMessage{Message: &pb.ServerMessage_Connection{Connection: m}}, c.FD); err != nil {
		// What has not been written to its end is no message, and none can follow.
		ts.end(fmt.Errorf("%w: %w", ErrLost, err))
		ts.answer(id, err)
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-answer: // both were there
		return err
	default:
	}
	go func() { done(<-answer) }()
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
}

func (ts *transfers) begin() (uint64, <-chan error, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.over != nil {
		return 0, nil, ts.over
	}
	ts.last++
	answer := make(chan error, 1)
	ts.pending[ts.last] = answer
	return ts.last, answer, nil
}

// answer ends the transfer of a connection, and reports whether it was under way.
func (ts *transfers) answer(id uint64, err error) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	answer := ts.pending[id]
	if answer == nil {
		return false
	}
	delete(ts.pending, id)
	answer <- err
	<-ts.room
	return true
}

// end keeps further connections from being sent, because of err.
func (ts *transfers) end(err error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.over == nil {
		ts.over = err
	}
}

// gone is the successor's full close: what it has not answered it does not have.
func (ts *transfers) gone() {
	err := fmt.Errorf("%w before it has answered", ErrLost)
	ts.end(err)
	ts.mu.Lock()
	var ids []uint64
	for id := range ts.pending {
		ids = append(ids, id)
	}
	ts.mu.Unlock()
	for _, id := range ids {
		ts.answer(id, err)
	}
}

// acknowledged takes an answer of the successor in.
func (ts *transfers) acknowledged(ack *pb.ConnectionAck) error {
	var err error
	if !ack.GetTaken() {
		err = fmt.Errorf("%w: %s", ErrNotTaken, printable(ack.GetReason()))
	}
	if !ts.answer(ack.GetId(), err) {
		return protocolError("ConnectionAck answers connection %d, which is not under way", ack.GetId())
	}
	return nil
}

// connection takes a connection of the predecessor in. It takes ownership of fds.
func (t *Taking) connection(m *pb.Connection, fds []*scm.FD) error {
	if len(fds) != 1 {
		closeAll(fds)
		return protocolError("Connection carries %d descriptors", len(fds))
	}
	c := &Connection{
		Listener: m.GetListener(), Unread: m.GetUnread(), State: m.GetState(),
		Identity: identityFromWire(m.GetIdentity()), FD: fds[0],
	}
	ack := &pb.ConnectionAck{Id: m.GetId(), Taken: true}
	deliver, err := t.receiver.Connection(c)
	if err != nil {
		ack.Taken, ack.Reason = false, sentence(err)
	}
	// Written before anybody reads from it. If the predecessor is gone nobody else
	// has it; and one that cannot read this takes nothing back before this
	// process's end.
	t.send(&pb.ClientMessage{Message: &pb.ClientMessage_ConnectionAck{ConnectionAck: ack}})
	if err == nil {
		deliver()
	}
	return nil
}

// agreed are the features of the two sides that both have.
func agreed(offered []string) []string {
	if slices.Contains(offered, FeatureConnections) {
		return []string{FeatureConnections}
	}
	return nil
}

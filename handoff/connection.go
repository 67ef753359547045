package handoff

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	// ConnectionWindow is how many connections may be unanswered. Their descriptors
	// count as in flight until the successor has read them, against a limit that all
	// processes of a user share.
	ConnectionWindow = 64
	// maxAckReason bounds the reason of a refusal, so that the answers to a full
	// window find room though the predecessor reads none of them.
	maxAckReason = 500
)

// Connection is an established connection of the service that moves.
type Connection struct {
	Listener string // the name of the listener that it was accepted from
	Unread   []byte // what was read of it and not used
	State    []byte // what the program wants its successor to know
	Identity scm.Identity
	FD       *scm.FD
}

// transfers are the connections on their way to a successor.
type transfers struct {
	room chan struct{} // has an element for each that is unanswered

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan error // each has room for its one answer
	over    error                 // why nothing can be sent any more, nil while it can
}

func newTransfers() *transfers {
	return &transfers{room: make(chan struct{}, ConnectionWindow), pending: make(map[uint64]chan error)}
}

// HandOver passes a connection to the successor of this process, which has retired,
// and returns nil when that one has taken it: then it is served there, and the
// caller closes its own copy. c.FD remains the caller's.
//
// An error says that nobody but the caller has it, as before: it matches
// ErrWrongState before this process has retired; ErrUnimplemented if the successor
// is too old; ErrLimit if too much is to travel along; ErrNotTaken; ErrLost if the
// successor has closed its end; ErrProtocol if it has broken the protocol before;
// ErrTimeout if it could not be written; the cause of ctx if it ended before the
// connection was sent.
//
// Only an error that matches ErrOutcomeUnknown says that the successor may have it:
// ctx has ended before the answer has come, or the answer cannot be understood. Then
// done is called, as soon as it is known what to do with this copy, and nobody may
// use the connection before or after: the caller closes it in done.
func (s *Server) HandOver(ctx context.Context, c *Connection, done func(error)) error {
	s.mu.Lock()
	p := s.passing
	s.mu.Unlock()
	size := len(c.Unread) + len(c.State)
	switch {
	case p == nil:
		return fmt.Errorf("%w: there is no successor that could take a connection", ErrWrongState)
	case !p.passes:
		return fmt.Errorf("%w: the successor takes no connections", ErrUnimplemented)
	case size > MaxPassedBytes:
		return fmt.Errorf("%w: %d bytes are to travel with the connection, the protocol carries %d", ErrLimit, size, MaxPassedBytes)
	}
	return p.transfers.pass(ctx, p.link, c, done)
}

func (ts *transfers) pass(ctx context.Context, l *link, c *Connection, done func(error)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx) // a select would choose at random
	}
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
		ts.answer(id, unsent(err))
	}
	select {
	case err := <-answer:
		return outcome(err, done)
	case <-ctx.Done():
	}
	select {
	case err := <-answer: // both were there
		return outcome(err, done)
	default:
	}
	go func() { done(<-answer) }()
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
}

// outcome calls done if there will be no answer but err that could be understood.
func outcome(err error, done func(error)) error {
	if errors.Is(err, ErrOutcomeUnknown) {
		done(err)
	}
	return err
}

// unsent is the error of a connection that was not written, or not to its end: that is
// no message, so nobody can take it.
func unsent(err error) error {
	if scm.IsClosed(err) {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return fmt.Errorf("the connection could not be sent: %w", err)
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

// end keeps further connections from being sent, because of err, and gives those
// that are unanswered the answer that follows from it. Who waits for room is let in by
// that, and told.
func (ts *transfers) end(err, answer error) {
	ts.mu.Lock()
	if ts.over == nil {
		ts.over = err
	}
	ids := slices.Collect(maps.Keys(ts.pending))
	ts.mu.Unlock()
	for _, id := range ids {
		ts.answer(id, answer)
	}
}

// gone is the successor's full close: what it has not answered it does not have.
func (ts *transfers) gone() {
	err := fmt.Errorf("%w: the successor has closed its end", ErrLost)
	ts.end(err, err)
}

// broke is a successor that cannot be understood. Its yes may be among what it has
// said since, so what is unanswered never comes back: not even at its end, before
// which it may have served it.
func (ts *transfers) broke(err error) {
	ts.end(err, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
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
	err := checkConnection(m, len(fds))
	if err == nil && !t.passed.add(m.GetId()) {
		err = protocolError("connection %d comes a second time", m.GetId())
	}
	if err != nil {
		closeAll(fds)
		return err
	}
	ack := &pb.ConnectionAck{Id: m.GetId(), Taken: true}
	answered, err := t.receiver.Connection(&Connection{
		Listener: m.GetListener(), Unread: m.GetUnread(), State: m.GetState(),
		Identity: identityFromWire(m.GetIdentity()), FD: fds[0],
	})
	if err != nil {
		answered = func(bool) {}
		ack.Taken, ack.Reason = false, bounded(err.Error(), maxAckReason-len("..."))
	}
	// Written before anybody reads from it.
	err = t.link.send(&pb.ClientMessage{Message: &pb.ClientMessage_ConnectionAck{ConnectionAck: ack}})
	if errors.Is(err, ErrTimeout) {
		// The predecessor is there and does not know: it would take back what was
		// served here. So it gets it now, by the end of the handoff connection.
		answered(false)
		return fmt.Errorf("a connection cannot be acknowledged: %w", err)
	}
	// Any other error is the predecessor's end, and nobody else has the connection.
	answered(true)
	return nil
}

// ids are those that were used. Most are small and come in about their order, so that
// nearly all of them are in one number.
type ids struct {
	below uint64 // all up to this one were used
	above map[uint64]struct{}
}

// add reports false if id was used before.
func (s *ids) add(id uint64) bool {
	if _, used := s.above[id]; used || id != 0 && id <= s.below {
		return false
	}
	if s.above == nil {
		s.above = make(map[uint64]struct{})
	}
	s.above[id] = struct{}{}
	for {
		if _, used := s.above[s.below+1]; !used {
			return true
		}
		s.below++
		delete(s.above, s.below)
	}
}

// checkConnection checks the form of a Connection.
func checkConnection(m *pb.Connection, fds int) error {
	size := len(m.GetUnread()) + len(m.GetState())
	switch {
	case fds != 1:
		return protocolError("Connection carries %d descriptors", fds)
	case size > MaxPassedBytes:
		return protocolError("%d bytes come with a connection, the limit is %d", size, MaxPassedBytes)
	default:
		return CheckName(m.GetListener())
	}
}

// agreed are the features of the two sides that both have.
func agreed(offered []string) []string {
	if slices.Contains(offered, FeatureConnections) {
		return []string{FeatureConnections}
	}
	return nil
}

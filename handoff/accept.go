package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// This file is the door of the control socket: everything from accept(2) to
// the point where a client is a controller with a request or a candidate whose
// attempt begins.

// accept hands each connection to a goroutine of its own, so that nobody is
// delayed by another.
func (s *Server) accept(l *scm.Listener) {
	for s.awaitRoom(l) {
		l.Refill()
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			s.noise.warn(s.log, nobody, "accepting on the control socket failed: trying again", "err", err)
			if !s.pauseAccept(l) {
				return
			}
		default:
			s.receive(conn)
		}
	}
}

// receive takes ownership of conn.
func (s *Server) receive(conn *scm.Conn) {
	peer, err := conn.Peer()
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	g := &guest{link: newLink(conn, 0), peer: peer, since: time.Now()}
	s.enter(g)
	go func() {
		defer s.wg.Done()
		if err != nil {
			s.noise.warn(s.log, g.uid(), "a client of the control socket has no credentials", "err", err)
			g.close() // nobody has been told anything
			s.leave(g)
			return
		}
		s.serve(g)
	}()
}

// pauseAccept waits a moment after an error such as EMFILE, for which there is
// no event, and reports whether l is still the one to accept from.
func (s *Server) pauseAccept(l *scm.Listener) bool {
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	for {
		s.mu.Lock()
		changed, current := s.changed, s.control == l
		s.mu.Unlock()
		if !current {
			return false
		}
		select {
		case <-timer.C:
			return true
		case <-changed:
		}
	}
}

// serve serves one guest to the end, or up to the point where an attempt takes it. It
// takes ownership of its peer.
func (s *Server) serve(g *guest) {
	defer s.leave(g)
	g.limit(maxRequest)
	p, err := s.greet(g)
	if err != nil {
		if !errors.Is(err, errServed) && !s.dismissed(g) {
			s.noise.warn(s.log, g.uid(), "a client of the control socket was turned away", "peer", peerName(g.peer), "err", err)
		}
		g.close()
		closePeer(g.peer)
		return
	}
	if p.process != nil {
		g.watch(p.process.Exited())
	}
	g.limit(scm.MaxPayload) // an answer to a large offer is large
	s.leave(g)
	go func() { // outlives Close: the connection is this process's lease (I2)
		p.run()
		p.users.Wait()
		closePeer(g.peer)
	}()
}

// errServed says that there is nothing more to do for a client, nor to report.
var errServed = errors.New("served")

// greet finds out who the client is and what it wants. It returns the attempt
// of a successor, errServed for a client that got what it came for, and another
// error for one that was turned away.
func (s *Server) greet(g *guest) (*predecessor, error) {
	if denied := s.allow(g.peer, AccessRead); denied != nil {
		s.refuse(g.link, denied.refusal())
		return nil, denied
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.limits.Hello,
		&TimeoutError{For: stepHello, Limit: s.limits.Hello})
	defer cancel()
	hearing, done := s.hearUntil(ctx, &s.hearing, stepHello)
	defer done()
	hello, err := readHello(hearing, g.link)
	if lost(err) || errors.Is(err, errLeaving) {
		return nil, errServed // a probe that connects and leaves is no news
	}
	if err != nil {
		err = &Error{Side: Predecessor, Step: stepHello, Err: err}
		s.refuse(g.link, refusalOf(err))
		return nil, err
	}
	if hello.GetRole() == pb.Role_ROLE_CONTROLLER {
		if err := s.serveController(ctx, g); err != nil {
			return nil, err
		}
		return nil, errServed
	}
	if denied := s.allow(g.peer, AccessChange); denied != nil {
		s.refuse(g.link, denied.refusal())
		return nil, denied
	}
	return s.admit(ctx, g, s.candidate(hello, g.peer))
}

// hearUntil returns the context in which a message is waited for: until ctx's deadline,
// or, with errLeaving, the end of s.hearing or s.asking.
func (s *Server) hearUntil(ctx context.Context, end *context.Context, step string) (context.Context, context.CancelFunc) {
	s.mu.Lock()
	hearing := *end
	s.mu.Unlock()
	deadline, _ := ctx.Deadline()
	return context.WithDeadlineCause(hearing, deadline, &TimeoutError{For: step, Limit: s.limits.Hello})
}

// errLeaving is why somebody who has asked nothing yet is not heard any more.
var errLeaving = errors.New("this process leaves, and has not read the request")

// readHello reads and checks the first message.
func readHello(ctx context.Context, l *link) (*pb.Hello, error) {
	m := new(pb.ClientMessage)
	if _, err := l.next(ctx, m); err != nil {
		return nil, err
	}
	hello := m.GetHello()
	switch {
	case hello == nil:
		return nil, unexpected(m, stepHello)
	case len(hello.GetVersions()) > maxListed || len(hello.GetFeatures()) > maxListed:
		return nil, protocolError("Hello lists %d versions and %d features, the limit is %d", len(hello.GetVersions()), len(hello.GetFeatures()), maxListed)
	case !slices.Contains(hello.GetVersions(), Version):
		return nil, &incompatibleError{theirs: hello.GetVersions()}
	case hello.GetRole() != pb.Role_ROLE_SUCCESSOR && hello.GetRole() != pb.Role_ROLE_CONTROLLER:
		return nil, protocolError("Hello has the unknown role %d", hello.GetRole())
	case hello.GetRole() == pb.Role_ROLE_SUCCESSOR:
		if err := CheckName(hello.GetProcess().GetInstance()); err != nil {
			return nil, fmt.Errorf("the instance: %w", err)
		}
	}
	return hello, nil
}

// candidate is who says hello, with the probation that it gets if nobody refuses.
func (s *Server) candidate(hello *pb.Hello, peer *scm.Peer) Candidate {
	wanted := s.limits.Probation
	if hello.GetProbation() != nil {
		wanted = durationFromWire(hello.GetProbation())
	}
	features := slices.DeleteFunc(hello.GetFeatures(), func(name string) bool { return CheckName(name) != nil })
	return Candidate{
		Process: processFromWire(hello.GetProcess()), Force: hello.GetForce(),
		Probation: min(max(wanted, 0), s.limits.MaxProbation), AtProbationEnd: probationEndFromWire(hello.GetAtProbationEnd()),
		Features: features, Peer: peer,
	}
}

// admit begins the candidate's attempt, or refuses it, in which case it keeps
// the connection open until asking again is worthwhile.
func (s *Server) admit(ctx context.Context, g *guest, who Candidate) (*predecessor, error) {
	refusal, _ := s.refusal()
	if refusal == nil || passing(refusal.GetCode()) { // a policy is the owner's alone
		refusal = s.judge(ctx, who)
	}
	for refusal == nil {
		var p *predecessor
		if p, refusal = s.begin(g.link, who); p != nil {
			p.process = certain(who)
			return p, nil
		}
		if refusal.GetCode() == pb.RefuseCode_REFUSE_CODE_BUSY && s.cleared() {
			refusal = nil
		}
	}
	s.refuse(g.link, refusal)
	if passing(refusal.GetCode()) {
		s.does(g, waiting)
		s.hold(g.link)
		return nil, errServed
	}
	return nil, refusedFromWire(refusal)
}

// certain returns the process of a candidate if it certainly is the candidate itself,
// not one that works for it.
func certain(who Candidate) CandidateProcess {
	if who.Peer != nil && who.Peer.PID != 0 && who.Peer.PID == who.PID && who.Peer.Exited() != nil {
		return who.Peer
	}
	return nil
}

// judge applies what does not pass by waiting: epoch, policy, the state of the
// control path.
func (s *Server) judge(ctx context.Context, who Candidate) *pb.Refuse {
	if own := s.process().Epoch; own > who.Epoch && !who.Force {
		return &pb.Refuse{
			Code:   pb.RefuseCode_REFUSE_CODE_POLICY,
			Reason: fmt.Sprintf("the owner is of epoch %d and the candidate of epoch %d, which is older; crossfade run --force, or CROSSFADE_FORCE=1, takes over all the same", own, who.Epoch),
		}
	}
	if s.policy != nil {
		if err := s.policy(ctx, who); err != nil {
			if late := new(TimeoutError); errors.As(context.Cause(ctx), &late) {
				late = &TimeoutError{For: "decision of the policy", Limit: late.Limit}
				err = &Error{Side: Predecessor, Step: stepHello, Err: fmt.Errorf("%w: %w", late, err)}
			}
			return &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_POLICY, Reason: sentence(err)}
		}
	}
	if s.State().Owns() {
		if err := s.service.CheckControl(ctx); err != nil {
			return &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_CONTROL_LOST, Reason: sentence(err)}
		}
	}
	return nil
}

// hold keeps a refused client's connection open until nothing speaks against
// its attempt any more, or it leaves.
func (s *Server) hold(l *link) {
	for {
		refusal, changed := s.refusal()
		if refusal == nil || !passing(refusal.GetCode()) {
			return
		}
		if s.discardUntil(changed, l) {
			return
		}
	}
}

// discardUntil reports whether the client has left before changed was closed.
func (s *Server) discardUntil(changed <-chan struct{}, l *link) (left bool) {
	ctx, cancel := context.WithCancel(context.Background())
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := l.conn.Discard(ctx)
	left = err == nil || ctx.Err() == nil // an error of reading will not pass
	cancel()
	<-watching
	return left
}

// serveController answers the one request of a controller. One that has left before it
// was answered, as a tool does that has seen enough, is no news.
func (s *Server) serveController(ctx context.Context, g *guest) error {
	const step = "ControlRequest"
	l, peer := g.link, g.peer
	hearing, done := s.hearUntil(ctx, &s.asking, step) // the time of Hello is this one's too
	defer done()
	paid := sync.OnceFunc(s.owe()) // after that: whoever is waited for is told
	defer paid()
	welcome := &pb.Welcome{Version: Version, Predecessor: processToWire(s.process())}
	if err := l.send(&pb.ServerMessage{Message: &pb.ServerMessage_Welcome{Welcome: welcome}}); err != nil {
		s.log.Debug("a controller could not be welcomed", "peer", peerName(peer), "err", err)
		return nil
	}
	m := new(pb.ClientMessage)
	_, err := l.next(hearing, m)
	if lost(err) {
		return nil
	}
	if errors.Is(err, errLeaving) {
		// Silence would leave open whether it was asked for and done.
		_ = respondError(l, pb.ErrorCode_ERROR_CODE_MOVED, sentence(err)) // it may have left
		return nil
	}
	request := m.GetControl()
	if err == nil && request == nil {
		err = unexpected(m, step)
	}
	if err != nil {
		err = &Error{Side: Predecessor, Step: step, Err: err}
		s.refuse(l, refusalOf(err))
		return err
	}
	if changes(request) {
		if denied := s.allow(peer, AccessChange); denied != nil {
			s.refuse(l, denied.refusal())
			return denied
		}
		s.does(g, served)
	} else {
		s.does(g, informed)
	}
	if request.GetWatch() != nil {
		err = s.serveWatch(l, paid)
	} else {
		err = s.answer(ctx, l, peer, request)
	}
	if err != nil {
		s.log.Debug("an answer to a controller could not be written", "peer", peerName(peer), "err", err)
	}
	return nil
}

// refuse answers a client that is turned away, if it can be answered.
func (s *Server) refuse(l *link, refusal *pb.Refuse) {
	if err := l.send(&pb.ServerMessage{Message: &pb.ServerMessage_Refuse{Refuse: refusal}}); err != nil {
		s.log.Debug("a refusal could not be written", "err", err)
	}
}

// refusalOf is the answer to a Hello that was not understood.
func refusalOf(err error) *pb.Refuse {
	refusal := &pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_PROTOCOL, Reason: sentence(err)}
	switch {
	case errors.Is(err, ErrIncompatible):
		refusal.Code = pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE
		refusal.Versions = []uint32{Version}
	case errors.Is(err, ErrStopping):
		refusal.Code = pb.RefuseCode_REFUSE_CODE_STOPPING
	case errors.Is(err, ErrCancelled):
		refusal.Code = pb.RefuseCode_REFUSE_CODE_CANCELLED
	}
	return refusal
}

// incompatibleError is a Hello without a version that this package speaks.
type incompatibleError struct{ theirs []uint32 }

func (e *incompatibleError) Error() string {
	return fmt.Sprintf("the owner speaks protocol version %d, the client %v", Version, e.theirs)
}

func (e *incompatibleError) Is(target error) bool { return target == ErrIncompatible }

func peerName(p *scm.Peer) string {
	if p == nil {
		return "unknown"
	}
	return p.String()
}

func closePeer(p *scm.Peer) {
	if p != nil {
		_ = p.Close()
	}
}

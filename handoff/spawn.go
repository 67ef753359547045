package handoff

import (
	"context"
	"errors"
	"fmt"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// CandidateProcess is the process of a candidate.
type CandidateProcess interface {
	// Exited is closed when it has exited.
	Exited() <-chan struct{}
	// Kill ends it at once, and no other.
	Kill() error
	// PidfdID is what the kernel knows it by, see [scm.FD.PidfdID].
	PidfdID() (uint64, error)
}

// Spawned is the attempt of a process that the owner has started itself.
type Spawned struct {
	p *predecessor
}

// Spawn reserves the one attempt for a process that is about to be started
// with the other end of conn. It takes ownership of conn, also on an error,
// which is a [*RefusedError].
func (s *Server) Spawn(conn *scm.Conn) (*Spawned, error) { return s.spawn(conn) }

func (s *Server) spawn(conn frames) (*Spawned, error) {
	l := newLink(conn, 0)
	for {
		p, refusal := s.begin(l, Candidate{})
		switch {
		case p != nil:
			return &Spawned{p}, nil
		case refusal.GetCode() == pb.RefuseCode_REFUSE_CODE_BUSY && s.cleared():
			continue
		}
		l.close()
		return nil, refusedFromWire(refusal)
	}
}

// Abandon ends the attempt because the process could not be started.
func (sp *Spawned) Abandon(err error) {
	sp.p.link.close()
	sp.p.server.failed(sp.p, "start", &Error{Side: Predecessor, Step: "start", Err: err})
}

// Run drives the attempt and returns its fate: nil as soon as the successor
// owns, after which the rest goes on by itself. pid is the one of the process that
// was started. When ctx ends before Commit the attempt is aborted; after it, Run
// returns ctx's cause, and what became of the attempt is not known.
func (sp *Spawned) Run(ctx context.Context, pid int, process CandidateProcess) error {
	p := sp.p
	p.process = process
	go p.spawned(pid)
	select {
	case err := <-p.fate:
		return err
	case <-ctx.Done():
	}
	tooLate := make(chan struct{})
	p.link.post(func() error {
		if p.committed || p.ended {
			close(tooLate)
			return nil
		}
		return fmt.Errorf("%w: %w", ErrCancelled, context.Cause(ctx))
	})
	select {
	case err := <-p.fate:
		return err
	case <-tooLate:
	}
	select {
	case err := <-p.fate: // both were there
		return err
	default:
		return context.Cause(ctx)
	}
}

// Settled returns nil when this process has decided to retire, after Run has
// returned nil: its program has not heard of it yet. ErrRolledBack says that it owns
// again, because the successor wished so or has ended; ErrOutcomeUnknown, that ctx
// has ended or this process was stopped before it knew.
func (sp *Spawned) Settled(ctx context.Context) error {
	select {
	case <-sp.p.decided:
	case <-ctx.Done():
		if !isClosed(sp.p.decided) { // else both are there, and what is known counts
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
		}
	}
	switch err := sp.p.verdict; {
	case err == nil, errors.Is(err, ErrRolledBack):
		return err
	case errors.Is(err, errStop):
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	default:
		return fmt.Errorf("%w: %w", ErrRolledBack, err)
	}
}

// spawned reads the Hello of a process that this one has started, and goes on
// as with any other.
func (p *predecessor) spawned(pid int) {
	defer p.link.close()
	s := p.server
	limit := s.limits.Ready
	p.deadline = p.began.Add(limit)
	p.enter(stepHello, p.deadline)
	ctx, cancel := p.until(p.deadline, stepHello, limit)
	defer cancel()
	hello, err := readHello(ctx, p.link)
	if err == nil && hello.GetRole() != pb.Role_ROLE_SUCCESSOR {
		err = protocolError("the started process says Hello as %v", hello.GetRole())
	}
	if err == nil {
		who := s.candidate(hello, nil)
		who.Generation = p.generation
		s.mu.Lock()
		p.who = who
		refusal := s.cancelledLocked(who)
		s.mu.Unlock()
		if who.PID == pid {
			p.link.watch(p.process.Exited())
		} else {
			p.process = nil // whoever that is, it is not the candidate itself
		}
		if refusal == nil {
			refusal = s.judge(ctx, who)
		}
		if refusal != nil {
			s.refuse(p.link, refusal)
			p.link.close()
			s.failed(p, stepHello, refusedFromWire(refusal))
			return
		}
		p.run()
		return
	}
	err = &Error{Side: Predecessor, Step: stepHello, Err: err}
	s.refuse(p.link, refusalOf(err))
	p.link.close()
	s.failed(p, stepHello, err)
}

package httphandoff

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/crossfade-go/crossfade"
)

// Shutdown ends the serving, in the place of [http.Server.Shutdown], once the
// Upgrader's Exit is closed. It closes the listeners, deals with each connection, and
// returns nil when none is left but those that were hijacked, or else the error of
// ctx. What a connection comes to depends on who serves from now on.
//
// A successor, because this process has retired: each connection moves as soon as
// nothing that was read of it is with this server, that is, at once while it is
// idle or nothing has come on it, and else when its request, and what the client
// has sent behind it in one piece, was answered. One that cannot move, or that the
// successor does not take, is told in its next response to close. Nothing else closes
// it but the end of ctx.
//
// The predecessor, because this process has rolled back: no connection can move,
// and all are told in their next response to close.
//
// Nobody: requests are finished, also those on connections that were accepted and
// have not sent any yet, for 5 s, and whoever is idle then is closed, as by
// [http.Server.Shutdown].
//
// HTTP/2 connections are told to go (GOAWAY) with their next response, and by the
// server's own Shutdown, which follows when all others are gone, and 2 s before the
// deadline of ctx at the latest. The functions of [http.Server.RegisterOnShutdown] are
// called by that too: what a request waits for belongs into
// [Server.RegisterOnShutdown].
//
// When ctx ends, connections that are in a request stay open: [http.Server.Close] or
// the end of the process closes them. Further calls return [http.ErrServerClosed].
func (s *Server) Shutdown(ctx context.Context) error {
	first, listeners, err := s.begin(ctx)
	if !first {
		return http.ErrServerClosed
	}
	for _, f := range s.onShutdown { // which nobody changes any more
		go f()
	}
	for _, ln := range listeners {
		err = errors.Join(err, ignoreClosed(ln.Close()))
	}
	_ = s.handed.Close() // refuses from now on; what has come is served, and moves
	s.serving.Wait()     // now it is certain who has come
	s.passUnserved()
	s.end(ctx)
	if shutdownErr := s.srv.Shutdown(ctx); shutdownErr != nil {
		return shutdownErr
	}
	return err
}

// RegisterOnShutdown has f called when Shutdown begins, in a goroutine of its own, to
// end requests that would not end by themselves, such as streams of events, and what
// was hijacked. It takes the place of [http.Server.RegisterOnShutdown], whose functions
// come when the connections are gone: the server calls them only when it closes those
// that are idle.
func (s *Server) RegisterOnShutdown(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.planned() == stay {
		s.onShutdown = append(s.onShutdown, f)
	}
}

// begin decides on the plan.
func (s *Server) begin(ctx context.Context) (first bool, listeners []*listener, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.planned() != stay {
		return false, nil, nil
	}
	s.drain = ctx
	s.plan.Store(int32(s.choose()))
	return true, slices.Collect(maps.Keys(s.listeners)), nil
}

func (s *Server) choose() plan {
	err := s.upg.Err()
	switch {
	case errors.Is(err, crossfade.ErrRetired):
		return move
	case errors.Is(err, crossfade.ErrRolledBack):
		return farewell
	}
	select {
	case <-s.upg.Settled():
		return finish
	default:
		return farewell // stopped on probation: the predecessor has it again
	}
}

// passUnserved is for what was handed over to a Server that has not served yet, or has
// failed to: it goes on to the next process, as it came.
func (s *Server) passUnserved() {
	for {
		c, err := s.handed.Accept()
		if err != nil {
			return
		}
		came, _ := crossfade.HandOverOf(c)
		if s.planned() != move || !s.handOver(c, nil, string(came.State), false) {
			_ = c.Close()
		}
	}
}

// end deals with the connections, and returns when only those are left that the
// server's own Shutdown deals with.
func (s *Server) end(ctx context.Context) {
	plan := s.planned()
	if plan == finish {
		silent, cancel := context.WithTimeout(ctx, maxSilence)
		s.await(silent, &s.count.inRequest)
		cancel()
		s.await(ctx, &s.count.active)
		return
	}
	if plan == move {
		go s.moveAll(ctx) // it ends with the last connection or ctx
	}
	enough, cancel := s.untilGoodbye(ctx)
	defer cancel()
	s.await(enough, &s.count.http1)
	if s.count.http2.Load() == 0 {
		s.await(ctx, &s.count.http1)
	}
}

// moveAll lets the connections move, each that is idle when its turn has come: until
// then it is served here, however many there are, and however slow the successor is.
func (s *Server) moveAll(ctx context.Context) {
	s.conns.Range(func(c, _ any) bool {
		own, ok := c.(*Conn)
		if !ok {
			return true
		}
		if !s.takeSlot(ctx) {
			return false
		}
		if !own.wake() {
			s.freeSlot()
		}
		return true
	})
}

// untilGoodbye ends before ctx, by the time that HTTP/2 needs.
func (s *Server) untilGoodbye(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(goodbye, time.Until(deadline)/2)))
}

// await returns when a count has become zero, or ctx has ended.
func (s *Server) await(ctx context.Context, count *atomic.Int64) {
	for count.Load() > 0 {
		select {
		case <-s.changed: // this one or another
		case <-ctx.Done():
			return
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

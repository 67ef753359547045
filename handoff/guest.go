package handoff

import (
	"cmp"
	"slices"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// This file decides who has to leave the control socket when too many are there.

const (
	// maxConnections bounds the connections that are served at the same time. Every
	// one of them may connect, by the rights of the socket's file.
	maxConnections = 128
	// maxLeaving bounds those whose connection has been closed and whose goroutine has
	// not ended yet, such as one in the program's Authorize. While there are so many
	// nobody new is accepted: the queue of the socket keeps them.
	maxLeaving = maxConnections
	// maxShare is how many of them a process may have that is not taken for a flood.
	maxShare = maxConnections / 8
	// maxUserShare is how many a user may have who is not taken for a flood of many
	// processes.
	maxUserShare = maxConnections / 2
	// spareConnections are places of the descriptor table that the clients of the
	// service cannot use up: the process can still be asked, and replaced by one with a
	// higher limit.
	spareConnections = 4
	// stallGrace is how long somebody who is told something may leave it unread and
	// not be in the way of others.
	stallGrace = time.Second
)

// guest is a connection to the control socket on which no attempt runs.
type guest struct {
	*link

	peer  *scm.Peer // nil where the system does not tell
	since time.Time

	// Under the server's mu.
	part    part
	leaving bool // it has been told to go, by closing its connection
}

// part is what somebody does on the control socket. Of those that take up most of the
// room the lowest leaves first.
type part uint8

const (
	silent   part = iota // has not said what it wants
	waiting              // was refused for what passes
	informed             // gets an answer that changes nothing; leaves if it does not read, or its process or user floods
	served               // has something done: never has to leave
)

// mayLeave reports whether nothing is lost with the guest, whose process or user floods
// the socket or does not.
func (g *guest) mayLeave(floods bool) bool {
	switch g.part {
	case served:
		return false
	case informed:
		return floods || g.stalled() >= stallGrace
	default:
		return true
	}
}

// nobody is the user of whom none is known.
const nobody int64 = -1

// uid is the user, or nobody.
func (g *guest) uid() int64 {
	if g.peer == nil {
		return nobody
	}
	return int64(g.peer.UID)
}

// pid is the process, 0 for an unknown one.
func (g *guest) pid() int {
	if g.peer == nil {
		return 0
	}
	return g.peer.PID
}

// crowd is the guests of a server.
type crowd map[*guest]struct{}

// leaving counts those that have been told to go.
func (c crowd) leaving() int {
	n := 0
	for g := range c {
		if g.leaving {
			n++
		}
	}
	return n
}

// first returns who is to leave, the newcomer included, nil if all are needed. It is
// one of the user that has the most connections; of those one of the process that has
// the most, if that is more than its share; of those who does the least; of those the
// oldest. So a flood replaces itself and leaves room for everybody else, and one
// process's flood for other tools of the same user.
func (c crowd) first() *guest {
	uids, pids := make(map[int64]int), make(map[int]int)
	for g := range c {
		if !g.leaving {
			uids[g.uid()]++
			pids[g.pid()]++
		}
	}
	excess := func(g *guest) int { return max(0, pids[g.pid()]-maxShare) }
	var list []*guest
	for g := range c {
		if !g.leaving && g.mayLeave(excess(g) > 0 || uids[g.uid()] > maxUserShare) {
			list = append(list, g)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return slices.MinFunc(list, func(a, b *guest) int {
		return cmp.Or(
			cmp.Compare(uids[b.uid()], uids[a.uid()]),
			cmp.Compare(excess(b), excess(a)),
			cmp.Compare(a.part, b.part),
			cmp.Compare(pids[b.pid()], pids[a.pid()]),
			a.since.Compare(b.since),
		)
	})
}

// enter makes somebody who has connected a guest. If there are too many it has one
// leave, which may be this one: it is a guest until its goroutine ends all the same.
func (s *Server) enter(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wg.Add(1)
	s.guests[g] = struct{}{}
	number := len(s.guests) - s.guests.leaving()
	switch {
	case s.fd == nil:
		s.dismissLocked(g)
	case number > maxConnections:
		leaver := s.guests.first()
		if leaver == nil {
			leaver = g // all the others are needed
		}
		s.noise.warn(s.log, leaver.uid(), "too many connections to the control socket: one was closed unread",
			"peer", peerName(leaver.peer), "for", time.Since(leaver.since), "served", number, "limit", maxConnections)
		s.dismissLocked(leaver)
	}
}

// dismissLocked closes a guest's connection. That may take a while: descriptors that
// the guest has sent, and that nobody has received, are closed with it.
func (s *Server) dismissLocked(g *guest) {
	g.leaving = true
	s.wg.Go(func() { _ = g.conn.Close() }) // its goroutine ends by that
}

// leave is the end of a guest, or of its time as one.
func (s *Server) leave(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.guests[g]; !ok {
		return
	}
	delete(s.guests, g)
	if s.control != nil {
		s.control.Refill()
	}
	select {
	case s.vacant <- struct{}{}:
	default: // somebody is told already
	}
}

// does notes what a guest does now.
func (s *Server) does(g *guest, p part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.part = p
}

// dismissed reports whether a guest's connection was closed here.
func (s *Server) dismissed(g *guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.leaving
}

// awaitRoom returns when there is room for one more, and reports whether l is then still
// the one to accept from.
func (s *Server) awaitRoom(l *scm.Listener) bool {
	for {
		s.mu.Lock()
		changed, current, full := s.changed, s.control == l, len(s.guests) >= maxConnections+maxLeaving
		s.mu.Unlock()
		if !current || !full {
			return current
		}
		select {
		case <-s.vacant:
		case <-changed:
		}
	}
}

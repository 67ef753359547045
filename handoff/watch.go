package handoff

import (
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

const (
	// maxWatchers bounds the watches of one process, so that controllers that only
	// listen leave room for those that ask.
	maxWatchers = maxConnections / 2
	// watchQueue is how many events a watcher may be behind. One that is further
	// behind is cut off: it can ask again, and a status says what it has missed.
	watchQueue = 256
)

// watchers are who is told of every change. The server's mu guards them.
type watchers map[*watcher]struct{}

type watcher struct {
	events chan *pb.Event // closed when there will be no more
	owed   bool           // the last of them is a debt, see [Server.payDebts]
}

// tell gives an event to all.
func (ws watchers) tell(s *Server, e Event) {
	if len(ws) == 0 {
		return
	}
	event := eventToWire(e)
	for w := range ws {
		s.tellWatcherLocked(w, event, e.State)
	}
}

// tellWatcherLocked gives a watcher one event. Of a process that has nothing to do
// with the control socket any more it is the last, and that one may be about to
// exit.
func (s *Server) tellWatcherLocked(w *watcher, event *pb.Event, state State) {
	select {
	case w.events <- event:
		if state.serves() {
			return
		}
		s.owed++
		w.owed = true
	default:
	}
	delete(s.watchers, w)
	close(w.events)
}

// serves reports whether a process in this state has to do with the control socket:
// the one that it serves, or can come to serve again without being asked.
func (s State) serves() bool {
	return s != StateProbation && s != StateDraining && s != StateOut
}

// serveWatch tells a controller of every change, until there will be no more or it
// leaves. begun is called when its last event is a debt of its own.
func (s *Server) serveWatch(l *link, begun func()) error {
	w := &watcher{events: make(chan *pb.Event, watchQueue)}
	if !s.watch(w) {
		return respondError(l, pb.ErrorCode_ERROR_CODE_NOT_ALLOWED, "too many watch this process already")
	}
	defer s.unwatch(w)
	begun()
	ctx, cancel := attended(l)
	defer cancel()
	for {
		select {
		case event, ok := <-w.events:
			if !ok {
				return nil
			}
			if err := respond(l, &pb.ControlResponse{Response: &pb.ControlResponse_Event{Event: event}}); err != nil {
				return nil //nolint:nilerr // it has left, which is no news
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// watch begins with the present state, so that nothing is missed between it and the
// first change.
func (s *Server) watch(w *watcher) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watchers) >= maxWatchers {
		return false
	}
	s.watchers[w] = struct{}{}
	s.tellWatcherLocked(w, eventToWire(s.eventLocked(sentences[s.state], s.attempt, nil)), s.state)
	return true
}

func (s *Server) unwatch(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, w)
	if w.owed {
		s.paidLocked()
	}
}

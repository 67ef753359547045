package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/crossfade-go/crossfade"
)

// server is an http.Server that can leave without losing a request.
type server struct {
	http     http.Server
	arriving arrivals
	served   chan error // the result of Serve
}

func newServer(address net.Addr, db *store) *server {
	s := &server{
		http: http.Server{
			Handler:           newHandler(db, address),
			ReadHeaderTimeout: headerTimeout,
			ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
		},
		served: make(chan error, 1), // room, for it may come before anybody waits
	}
	s.arriving.register(&s.http)
	return s
}

// serve answers requests until this process should leave, or cannot go on.
func (s *server) serve(ctx context.Context, upg *crossfade.Upgrader, ln net.Listener) {
	go func() { s.served <- s.http.Serve(ln) }()
	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop()
	case err := <-s.served:
		s.served <- err // for drain
	}
}

// drain answers the requests that have come, and returns why this process leaves
// if that is not what it should do.
func (s *server) drain(upg *crossfade.Upgrader, ln net.Listener) error {
	defer s.http.Close()
	slog.Info("draining", "pid", os.Getpid(), "why", upg.Err())
	_ = ln.Close() // it may have failed before
	if err := <-s.served; !errors.Is(err, net.ErrClosed) {
		return err
	}
	// From now on it is certain who has come.
	s.arriving.wait()
	ctx, cancel := upg.DrainContext(context.Background())
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		return fmt.Errorf("requests were cut off: %w", err)
	}
	if err := upg.Err(); !errors.Is(err, crossfade.ErrRetired) && !errors.Is(err, crossfade.ErrStopped) {
		return err
	}
	return nil
}

// arrivals are the connections that no handler has seen yet. Once Shutdown has
// begun, net/http answers no request on them any more, so it has to wait.
type arrivals struct {
	conns   sync.Map // of net.Conn
	pending sync.WaitGroup
}

type connKey struct{}

// register makes srv report its connections. It wraps the handler.
func (a *arrivals) register(srv *http.Server) {
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		a.pending.Add(1)
		a.conns.Store(c, nil)
		return context.WithValue(ctx, connKey{}, c)
	}
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			a.seen(c)
		}
	}
	next := srv.Handler
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.seen(r.Context().Value(connKey{}))
		next.ServeHTTP(w, r)
	})
}

func (a *arrivals) seen(c any) {
	if _, ok := a.conns.LoadAndDelete(c); ok {
		a.pending.Done()
	}
}

// wait returns when each connection has had a handler or is closed, which takes
// at most headerTimeout. Serve must have returned, so that no more can come.
func (a *arrivals) wait() { a.pending.Wait() }

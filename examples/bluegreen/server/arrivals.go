package main

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// arrivals are the connections that no handler has seen yet. Shutdown answers no
// request that it finds on them: once it has begun, net/http (conn.serve, Go 1.26)
// closes a connection whose request it has just read, even a client's first. So
// whoever wants none of them lost lets them come in before Shutdown.
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
		if state == http.StateClosed || state == http.StateHijacked {
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

// wait returns when each connection has had a handler or is closed. Serve must
// have returned, so that no more can come. A client that sends nothing is waited
// for as long as the server's ReadHeaderTimeout says.
func (a *arrivals) wait() { a.pending.Wait() }

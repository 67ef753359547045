package main

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/stats"
)

// greetings are the connections that were accepted and on which no transport has
// begun: the server tells of one that has by its stats.
type greetings struct {
	mu      sync.Mutex
	waiting map[string]struct{} // by the client's address
	changed chan struct{}       // closed and replaced when one leaves
}

func newGreetings() *greetings {
	return &greetings{waiting: make(map[string]struct{}), changed: make(chan struct{})}
}

// listener returns ln, whose connections are noted.
func (g *greetings) listener(ln net.Listener) net.Listener { return greetedListener{ln, g} }

type greetedListener struct {
	net.Listener
	g *greetings
}

func (l greetedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.g.mu.Lock()
	l.g.waiting[c.RemoteAddr().String()] = struct{}{}
	l.g.mu.Unlock()
	return greetedConn{c, l.g}, nil
}

// greetedConn is one of them: what is closed is not waited for.
type greetedConn struct {
	net.Conn
	g *greetings
}

func (c greetedConn) Close() error {
	c.g.done(c.RemoteAddr())
	return c.Conn.Close()
}

func (g *greetings) done(client net.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.waiting[client.String()]; ok {
		delete(g.waiting, client.String())
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

// wait returns when no connection is left that has not begun, or ctx has ended.
func (g *greetings) wait(ctx context.Context) {
	for {
		g.mu.Lock()
		left, changed := len(g.waiting), g.changed
		g.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// TagConn implements [stats.Handler]: the transport of a connection has begun.
func (g *greetings) TagConn(ctx context.Context, info *stats.ConnTagInfo) context.Context {
	g.done(info.RemoteAddr)
	return ctx
}

// HandleConn implements [stats.Handler].
func (g *greetings) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC implements [stats.Handler].
func (g *greetings) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements [stats.Handler].
func (g *greetings) HandleRPC(context.Context, stats.RPCStats) {}

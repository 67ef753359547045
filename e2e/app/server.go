//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade"
)

// server is what clients see.
type server struct {
	app       *app
	who       crossfade.Process // set before serve
	listeners []named[net.Listener]
	packets   []named[net.PacketConn]
	http      *http.Server
	arriving  sync.Map       // of net.Conn to *arrival
	pending   sync.WaitGroup // the arrivals that no handler has seen yet
	serving   sync.WaitGroup
}

type named[T any] struct {
	name string
	it   T
}

func newServer(a *app) *server {
	s := &server{app: a}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", s.identity)
	mux.HandleFunc("/health", s.health)
	mux.HandleFunc("/command", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{"args": a.command, "environ": a.environ})
	})
	mux.HandleFunc("/say/{text...}", func(w http.ResponseWriter, r *http.Request) {
		slog.Info("said", append(s.identify(), "text", r.PathValue("text"))...)
		reply(w, nil)
	})
	s.http = &http.Server{
		Handler:           s.arrived(mux),
		ReadHeaderTimeout: 5 * time.Second,
		ConnContext:       s.arrives,
		ConnState:         s.left,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
	return s
}

// listen opens what the command line names.
func (s *server) listen(ctx context.Context, upg *crossfade.Upgrader) error {
	for _, at := range s.app.listen {
		ln, err := upg.Listen(ctx, at.name, at.network, at.address)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, named[net.Listener]{at.name, ln})
	}
	for _, at := range s.app.packet {
		pc, err := upg.ListenPacket(ctx, at.name, "udp", at.address)
		if err != nil {
			return err
		}
		s.packets = append(s.packets, named[net.PacketConn]{at.name, pc})
	}
	return nil
}

// serve answers in goroutines of its own.
func (s *server) serve(ctx context.Context) {
	for _, ln := range s.listeners {
		s.serving.Go(func() {
			if err := s.http.Serve(ln.it); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
				slog.Error("serving has ended", "listener", ln.name, "err", err)
			}
		})
	}
	for _, pc := range s.packets {
		s.serving.Go(func() { s.answer(ctx, pc.it) })
	}
}

// drain answers what has come and closes the rest. Only when Serve has returned is
// it certain who has come, and http.Server.Shutdown answers nobody whose first
// request it has not begun to read.
func (s *server) drain(ctx context.Context) error {
	s.close()
	s.serving.Wait()
	s.pending.Wait()
	return s.http.Shutdown(ctx)
}

// close closes the listeners.
func (s *server) close() {
	for _, ln := range s.listeners {
		ln.it.Close()
	}
	for _, pc := range s.packets {
		pc.it.Close()
	}
}

// identify is who this process is, for a log line.
func (s *server) identify() []any {
	return []any{"generation", s.who.Generation, "instance", s.who.Instance, "version", s.who.BuildVersion, "pid", s.who.PID}
}

// describe adds the addresses.
func (s *server) describe() []any {
	attrs := s.identify()
	for _, ln := range s.listeners {
		attrs = append(attrs, ln.name, ln.it.Addr().String())
	}
	for _, pc := range s.packets {
		attrs = append(attrs, pc.name, pc.it.LocalAddr().String())
	}
	return attrs
}

// answer returns every datagram, with the version before it.
func (s *server) answer(ctx context.Context, pc net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
				slog.Error("reading datagrams has ended", "err", err)
			}
			return
		}
		if _, err := pc.WriteTo(append([]byte(s.who.BuildVersion+" "), buf[:n]...), from); err != nil {
			slog.Warn("a datagram was not answered", "err", err)
		}
	}
}

func (s *server) identity(w http.ResponseWriter, _ *http.Request) {
	reply(w, map[string]any{
		"generation": s.who.Generation, "instance": s.who.Instance, "version": s.who.BuildVersion, "pid": s.who.PID,
	})
}

func (s *server) health(w http.ResponseWriter, r *http.Request) {
	if err := s.app.faults.at(r.Context(), pointHealth); err != nil || !s.app.healthy {
		http.Error(w, "not healthy", http.StatusServiceUnavailable)
		return
	}
	reply(w, nil)
}

func reply(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object) // the client may have left
}

// arrival is one connection that no handler has seen yet.
type arrival struct{ seen func() }

type arrivalKey struct{}

func (s *server) arrives(ctx context.Context, c net.Conn) context.Context {
	s.pending.Add(1)
	a := &arrival{seen: sync.OnceFunc(s.pending.Done)}
	s.arriving.Store(c, a)
	return context.WithValue(ctx, arrivalKey{}, a)
}

func (s *server) left(c net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	if a, ok := s.arriving.LoadAndDelete(c); ok {
		a.(*arrival).seen()
	}
}

func (s *server) arrived(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(arrivalKey{}).(*arrival).seen()
		next.ServeHTTP(w, r)
	})
}

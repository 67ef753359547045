package httphandoff_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/httphandoff"
)

// A server whose keep-alive clients notice nothing of an upgrade.
func Example() {
	run := func(ctx context.Context) error {
		upg, err := crossfade.New(ctx, &crossfade.Config{Socket: "/run/app/control.sock", DrainTimeout: time.Minute})
		if err != nil {
			return err
		}
		defer upg.Stop()
		ln, err := upg.Listen(ctx, "http", "tcp", ":8080")
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: http.FileServer(http.Dir("/srv/www")), IdleTimeout: time.Hour}
		web := httphandoff.New(upg, srv, "http")
		served := make(chan error, 1) // so that Serve can return when nobody waits for it
		go func() { served <- web.Serve(ln) }()
		if err := upg.Ready(ctx); err != nil {
			return err
		}
		select {
		case <-upg.Exit():
		case err := <-served:
			return err
		}
		drain, cancel := upg.DrainContext(context.Background())
		defer cancel()
		return errors.Join(web.Shutdown(drain), srv.Close())
	}
	_ = run
}

// session is a connection that a handler has hijacked, to speak another protocol.
type session struct {
	conn  net.Conn
	in    *bufio.Reader
	state []byte         // what the successor has to know to go on
	reads sync.WaitGroup // the goroutine that reads from it
}

// A program with hijacked connections hands them over by itself, under a name that no
// Server has.
func Example_hijacked() {
	// In every version, before Ready. resume speaks the protocol, in a goroutine of
	// its own.
	takeOver := func(upg *crossfade.Upgrader, resume func(*session)) {
		handed := upg.HandedOver("websocket")
		for {
			conn, err := handed.Accept()
			if err != nil {
				return
			}
			came, _ := crossfade.HandOverOf(conn)
			resume(&session{conn: conn, in: bufio.NewReader(conn), state: came.State})
		}
	}
	// After Exit, if Err matches ErrRetired.
	handOver := func(drain context.Context, upg *crossfade.Upgrader, s *session) {
		_ = s.conn.SetReadDeadline(time.Unix(1, 0)) // ends its reading, between two messages
		s.reads.Wait()
		err := upg.HandOverConn(drain, "websocket", s.conn, &crossfade.HandOver{
			Unread: httphandoff.Unread(s.conn, s.in),
			State:  s.state,
		})
		if err != nil && !errors.Is(err, crossfade.ErrOutcomeUnknown) {
			_ = s.conn.Close() // with the protocol's farewell
		}
	}
	_, _ = takeOver, handOver
}

// Command exclusive is an HTTP service that counts in a bbolt database, which
// only one process may have open. Start another one with the same -socket and
// -data: the database, its lock and the port change hands, and no request fails.
//
// POST /counters/NAME adds one and answers with the new value. A request with an
// Idempotency-Key that was counted before gets the same answer again. GET
// /counters/NAME answers with the value.
//
// Exit status 0: a successor has taken over, or a signal asked to stop. 75: it
// has given the service back to its predecessor. Anything else is an error.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade"
)

const (
	// drainTimeout is how long requests may take once a successor serves.
	drainTimeout = 20 * time.Second
	// headerTimeout is how long a client may take for the head of a request.
	headerTimeout = 5 * time.Second
)

type options struct {
	socket    string
	listen    string
	data      string
	probation time.Duration
}

func main() {
	var opts options
	flag.StringVar(&opts.socket, "socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	flag.StringVar(&opts.listen, "listen", "127.0.0.1:8080", "`address` to serve on")
	flag.StringVar(&opts.data, "data", ".", "`directory` of the database and its guard")
	flag.DurationVar(&opts.probation, "probation", 10*time.Second, "how long the predecessor stands by")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(status(run(ctx, opts)))
}

// status logs how the program has ended.
func status(err error) int {
	switch {
	case errors.Is(err, crossfade.ErrRolledBack):
		slog.Warn("rolled back", "pid", os.Getpid(), "err", err)
		return crossfade.ExitRolledBack
	case err != nil:
		slog.Error("failed", "pid", os.Getpid(), "err", err)
		return 1
	default:
		return 0
	}
}

// run takes the service over, or begins it, and serves until a successor has
// taken over or ctx ends.
func run(ctx context.Context, opts options) error {
	db := newStore(filepath.Join(opts.data, "counters.db"))
	upg, err := crossfade.New(ctx, &crossfade.Config{
		Socket:       opts.socket,
		Probation:    opts.probation,
		DrainTimeout: drainTimeout,
		Suspend:      db.suspend,
		Resume:       db.resume,
	})
	if err != nil {
		return err
	}
	defer upg.Stop()
	guard, err := takeGuard(upg.Fds(), filepath.Join(opts.data, "guard"))
	if err != nil {
		return err
	}
	defer guard.Close()
	ln, err := upg.Listen(ctx, "http", "tcp", opts.listen)
	if err != nil {
		return err
	}
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	// This process owns, and its predecessor has closed the database. Clients
	// queue up at the listener, from which nobody accepts before it is open again.
	// A successor may come at once: then open does nothing.
	if err := db.open(); err != nil {
		return errors.Join(err, upg.Rollback(ctx, err.Error()), upg.Err())
	}
	slog.Info("serving", "pid", os.Getpid(), "generation", upg.Status().Process.Generation, "address", ln.Addr().String())
	srv := newServer(ln.Addr(), db)
	srv.serve(ctx, upg, ln)
	if db.get() == nil {
		// Another process has it. A copy of the guard that is open here while this
		// one drains would stand in the way of a fresh start after that one.
		_ = guard.Close()
	}
	return errors.Join(srv.drain(upg, ln), db.close())
}

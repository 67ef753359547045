// Command server is an HTTP server that can be replaced while it serves. Start
// another one, of whatever version, with the same -socket: it takes the port
// over, and this one finishes its requests and exits.
//
// Exit status 0: a successor has taken over, or a signal asked to stop. 75: it
// was on probation and has rolled back. Anything else is an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/httphandoff"
)

// version is stamped by the linker: go build -ldflags "-X main.version=v2".
var version = "dev"

// drainTimeout is how long requests may take once a successor serves.
const drainTimeout = time.Minute

type options struct {
	socket  string
	listen  string
	journal string
	ready   string
	cold    bool
}

func main() {
	var opts options
	flag.StringVar(&opts.socket, "socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	flag.StringVar(&opts.listen, "listen", "127.0.0.1:0", "`address` to serve on")
	flag.StringVar(&opts.journal, "journal", "", "`file` to append the requests to")
	flag.StringVar(&opts.ready, "ready", "", "`file` or FIFO that gets a line with the address once this process owns it")
	flag.BoolVar(&opts.cold, "cold", false, "hand nothing over: what a restart is like without the library")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	switch err := run(ctx, opts); {
	case errors.Is(err, crossfade.ErrRolledBack):
		slog.Warn("server rolled back", "version", version, "pid", os.Getpid(), "err", err)
		os.Exit(crossfade.ExitRolledBack)
	case err != nil:
		slog.Error("server failed", "version", version, "pid", os.Getpid(), "err", err)
		os.Exit(1)
	}
}

// run takes the service over, or begins it, and serves until a successor has
// taken over or ctx ends.
func run(ctx context.Context, opts options) error {
	journal, err := openJournal(opts.journal)
	if err != nil {
		return err
	}
	defer journal.Close()

	began := time.Now()
	upg, err := crossfade.New(ctx, &crossfade.Config{
		Socket:       opts.socket,
		BuildVersion: version,
		DrainTimeout: drainTimeout,
		Disabled:     opts.cold,
	})
	if err != nil {
		return err
	}
	defer upg.Stop()

	ln, err := upg.Listen(ctx, "http", "tcp", opts.listen)
	if err != nil {
		return err
	}
	svc := new(service)
	srv := &http.Server{
		Handler:           svc.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
	defer srv.Close()
	web := httphandoff.New(upg, srv, "http")
	// Until Ready returns the predecessor serves, and in this process no client
	// comes in. Serve may be called earlier; here it needs the generation, which
	// is certain from now on. What connects in between waits in the queue.
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	handover := time.Since(began)
	svc.begin(upg.Status().Process.Generation, journal)
	svc.journal.Info("owns", "inherited", upg.HasPredecessor(), "handover", handover)
	if err := announce(opts.ready, ln.Addr().String()); err != nil {
		return err
	}
	served := make(chan error, 1) // so that Serve can return when nobody waits for it
	go func() { served <- web.Serve(ln) }()

	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop()
	case err := <-served:
		return err
	}
	exit := time.Now()
	slog.Info("draining", "version", version, "pid", os.Getpid(), "why", upg.Err())
	drain, cancel := upg.DrainContext(context.Background())
	defer cancel()
	if err := web.Shutdown(drain); err != nil {
		return fmt.Errorf("requests were cut off: %w", err)
	}
	svc.journal.Info("leaves", "drain", time.Since(exit), "moved", web.Stats().Moved)
	return ignore(upg.Err(), crossfade.ErrRetired, crossfade.ErrStopped)
}

// ignore returns err unless it is one of those that are no failure.
func ignore(err error, fine ...error) error {
	for _, target := range fine {
		if errors.Is(err, target) {
			return nil
		}
	}
	return err
}

// openJournal opens a file that several servers append to.
func openJournal(path string) (io.WriteCloser, error) {
	if path == "" {
		return discard{io.Discard}, nil
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

// announce writes a line to path, if there is a path.
func announce(path, line string) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}

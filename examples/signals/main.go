// Command signals is an HTTP server that does the right thing with SIGTERM and
// SIGINT in each part of its life:
//
//   - A candidate gives up. Its predecessor has never stopped serving.
//   - The owner stops the service for good: it finishes the requests that it has,
//     for DrainTimeout at most, and exits with 0. A second signal cuts them off.
//   - A process that drains exits at once, with 0: whoever sends it a signal has
//     lost patience with the old requests. Its successor is not disturbed, because
//     what the two shared was its successor's already.
//
// Start it twice with the same -socket, the second time with -init to have time
// for a signal. It prints what it is, so that one can watch.
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
)

// drainTimeout is how long requests may take when nobody sends a signal.
const drainTimeout = time.Minute

// signals are the requests to end.
var signals = []os.Signal{os.Interrupt, syscall.SIGTERM}

type options struct {
	socket string
	listen string
	init   time.Duration
}

func main() {
	var opts options
	flag.StringVar(&opts.socket, "socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	flag.StringVar(&opts.listen, "listen", "127.0.0.1:0", "`address` to serve on")
	flag.DurationVar(&opts.init, "init", 0, "how long the initialisation takes")
	flag.Parse()

	// From here to the end a signal ends ctx: nothing is lost between two calls of
	// signal.Notify.
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	status, err := run(ctx, opts)
	stop()
	if err != nil {
		slog.Error("server failed", "pid", os.Getpid(), "err", err)
	}
	os.Exit(status)
}

// run takes the service over, or begins it, serves, and drains. It returns the
// exit status.
func run(ctx context.Context, opts options) (status int, err error) {
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: opts.socket, DrainTimeout: drainTimeout})
	if err != nil {
		return 1, err
	}
	defer upg.Stop() // a candidate's attempt ends here, if not before
	ln, err := upg.Listen(ctx, "http", "tcp", opts.listen)
	if err != nil {
		return 1, err
	}
	srv := &http.Server{Handler: http.HandlerFunc(serve), ReadHeaderTimeout: 5 * time.Second}
	defer srv.Close()
	served := make(chan error, 1) // so that Serve can return when nobody waits for it
	go func() { served <- srv.Serve(ln) }()

	fmt.Println("candidate", ln.Addr())
	if err := initialise(ctx, opts.init); err != nil {
		return 1, err
	}
	if err := upg.Ready(ctx); err != nil { // a signal aborts the attempt
		return 1, err
	}
	fmt.Println("owner", ln.Addr())
	if upg.HasPredecessor() {
		go func() {
			if upg.WaitForPredecessor(context.Background()) == nil {
				fmt.Println("the predecessor has gone")
			}
		}()
	}

	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop() // Err says why this process leaves, which may be another reason
	case err := <-served:
		return 1, err
	}
	return drain(ctx, upg, srv)
}

// drain finishes the requests that are open.
func drain(ctx context.Context, upg *crossfade.Upgrader, srv *http.Server) (status int, err error) {
	// In a process that was replaced ctx lives on, and the next signal, or one
	// that has just come, ends the drain. The owner has had that signal: another
	// one has to come.
	if errors.Is(upg.Err(), crossfade.ErrStopped) {
		again, stop := signal.NotifyContext(context.WithoutCancel(ctx), signals...)
		defer stop()
		ctx = again
	}
	fmt.Println("draining:", upg.Err())
	drain, cancel := upg.DrainContext(ctx)
	defer cancel()
	err = srv.Shutdown(drain)
	cause := context.Cause(drain)
	switch {
	case err != nil && ctx.Err() != nil:
		slog.Info("a signal has ended the drain: requests were cut off", "pid", os.Getpid())
	case errors.Is(cause, context.DeadlineExceeded):
		return crossfade.ExitDrainTimeout, fmt.Errorf("requests were cut off: %w", cause)
	case err != nil:
		return 1, fmt.Errorf("requests were cut off: %w", err)
	}
	if errors.Is(upg.Err(), crossfade.ErrRolledBack) {
		return crossfade.ExitRolledBack, nil
	}
	return 0, nil
}

// initialise is what a real program needs time for.
func initialise(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("initialising: %w", context.Cause(ctx))
	}
}

// serve answers with its process id at once, and once more when it has read the
// body: a request lasts as long as its client likes.
func serve(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // HTTP/1 reads the whole body first otherwise
	fmt.Fprintln(w, os.Getpid())
	if err := control.Flush(); err != nil {
		return // the client has left
	}
	if _, err := io.Copy(io.Discard, r.Body); err == nil {
		fmt.Fprintln(w, os.Getpid())
	}
}

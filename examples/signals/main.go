// Command signals is an HTTP server that does the right thing with SIGTERM and
// SIGINT in each part of its life:
//
//   - A candidate gives up. Its predecessor has never stopped serving.
//   - The owner stops the service for good. It finishes the requests that it has
//     and exits with 0; after DrainTimeout it cuts them off and exits with 124.
//   - The owner on probation gives the service back to its predecessor, for whose
//     answer it waits CommitTimeout at most. Then it does the same.
//   - The predecessor that stands by asks its successor to decide, waits for the
//     same time, and leaves: at once if it is let go, like a process that drains;
//     like the owner if there is no answer.
//   - A process that drains exits at once, with 0: whoever sends it a signal has
//     lost patience with the old requests. Its successor is not disturbed, because
//     what the two shared was its successor's already.
//
// A second signal cuts the requests off that the first has left. If it comes while
// the process waits for an answer, they are cut off after that.
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

type options struct {
	socket string
	listen string
	init   time.Duration
	drain  time.Duration
}

// signals are the requests to end that have come.
type signals struct {
	first, second context.Context // end with the first one, and the second
}

// listen counts signals for the rest of the process's life. One channel takes all
// of them, so that none is lost, whatever the program is doing.
func listen() signals {
	received := make(chan os.Signal, 2) // signal.Notify does not wait, and two count
	signal.Notify(received, os.Interrupt, syscall.SIGTERM)
	first, end := context.WithCancel(context.Background())
	second, endAgain := context.WithCancel(context.Background())
	go func() {
		<-received
		end()
		fmt.Println("first signal")
		<-received
		endAgain()
		fmt.Println("second signal")
	}()
	return signals{first, second}
}

func main() {
	var opts options
	flag.StringVar(&opts.socket, "socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	flag.StringVar(&opts.listen, "listen", "127.0.0.1:0", "`address` to serve on")
	flag.DurationVar(&opts.init, "init", 0, "how long the initialisation takes")
	flag.DurationVar(&opts.drain, "drain", time.Minute, "how long requests may take when nobody sends a signal")
	flag.Parse()

	status, err := run(listen(), opts)
	if err != nil {
		slog.Error("server failed", "pid", os.Getpid(), "err", err)
	}
	os.Exit(status)
}

// run takes the service over, or begins it, serves, and drains. It returns the
// exit status.
func run(sig signals, opts options) (status int, err error) {
	ctx := sig.first
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: opts.socket, DrainTimeout: opts.drain})
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
	return drain(sig, upg, srv)
}

// drain finishes the requests that are open.
func drain(sig signals, upg *crossfade.Upgrader, srv *http.Server) (status int, err error) {
	// In a process that was replaced the next signal, or one that has just come,
	// ends the drain. The owner has had that signal: another one has to come.
	impatient := sig.first
	if errors.Is(upg.Err(), crossfade.ErrStopped) {
		impatient = sig.second
	}
	fmt.Println("draining:", upg.Err())
	ctx, cancel := upg.DrainContext(impatient)
	defer cancel()
	status, err = outcome(impatient, ctx, srv.Shutdown(ctx))
	if status == 0 && errors.Is(upg.Err(), crossfade.ErrRolledBack) {
		return crossfade.ExitRolledBack, nil
	}
	return status, err
}

// outcome is the exit status of a process by what Shutdown has returned. Its
// contexts count only if that is an error: they may have ended just afterwards.
func outcome(impatient, drain context.Context, shutdown error) (status int, err error) {
	switch cause := context.Cause(drain); {
	case shutdown == nil:
		return 0, nil
	case impatient.Err() != nil:
		slog.Info("a signal has ended the drain: requests were cut off", "pid", os.Getpid())
		return 0, nil
	case errors.Is(cause, context.DeadlineExceeded):
		return crossfade.ExitDrainTimeout, fmt.Errorf("requests were cut off: %w", cause)
	default:
		return 1, fmt.Errorf("requests were cut off: %w", shutdown)
	}
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

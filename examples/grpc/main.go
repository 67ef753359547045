// Command grpc is a gRPC server that another process replaces while clients call it:
// its own calls and streams are finished, new ones go to the successor.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	socket := flag.String("socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to serve on")
	flag.Parse()
	if err := run(*socket, *listen); err != nil {
		slog.Error("the server ends", "err", err)
		status := 1
		if errors.Is(err, crossfade.ErrRolledBack) {
			status = crossfade.ExitRolledBack
		}
		os.Exit(status)
	}
}

func run(socket, listen string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: socket, DrainTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "grpc", "tcp", listen)
	if err != nil {
		return err
	}

	greeted := newGreetings()
	srv := grpc.NewServer(grpc.StatsHandler(greeted))
	healthy := health.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, healthy)
	registerCounter(srv, counter{pid: int64(os.Getpid())})
	served := make(chan error, 1) // room, for nobody may wait any more
	arrived := greeted.listener(ln)
	go func() { served <- srv.Serve(arrived) }()
	if err := upg.Ready(ctx); err != nil {
		srv.Stop()
		return err
	}
	slog.Info("serving", "address", ln.Addr().String(), "pid", os.Getpid())

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		upg.Stop()
	case <-upg.Exit():
	}
	drain, cancel := upg.DrainContext(context.Background())
	defer cancel()
	healthy.Shutdown() // NOT_SERVING, for those who watch this process by its health
	finish(drain, srv, greeted)
	slog.Info("finished", "pid", os.Getpid())
	if err := upg.Err(); !errors.Is(err, crossfade.ErrRetired) && !errors.Is(err, crossfade.ErrStopped) {
		return err
	}
	return nil
}

// finish lets every call and stream end, until drain does.
func finish(drain context.Context, srv *grpc.Server, greeted *greetings) {
	// GracefulStop closes a connection that has been accepted and has not said
	// anything yet: its client would see UNAVAILABLE. Nothing more is accepted here,
	// so those that are left are few, and soon done.
	greeted.wait(drain)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.GracefulStop()
	}()
	select {
	case <-done:
	case <-drain.Done():
		slog.Warn("cutting off what has not ended", "err", context.Cause(drain))
		srv.Stop()
		<-done
	}
}

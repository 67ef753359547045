//go:build unix

// Command sidecar is an HTTP server for a container that is started again whenever its
// process ends, as the kubelet does with every container of a sidecar, a Deployment or a
// DaemonSet. Two such containers that share the directory of $CROSSFADE_SOCKET, and the
// network, replace each other: the one that was replaced does not exit, since it would be
// started again and take the service back. It waits until it is told to stop.
//
// Exit status 0: it was told to stop, or a controller has stopped it. 1: it could not
// take over, or begin; the kubelet tries again, later and later.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
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

func main() {
	var cfg crossfade.Config
	listen := flag.String("listen", ":8080", "`address` to serve on")
	flag.StringVar(&cfg.SocketGroup, "group", "", "`group` whose members may take over, by name or number")
	flag.DurationVar(&cfg.DrainTimeout, "drain", 30*time.Second, "how long requests may take once another container serves")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg.BuildVersion = version
	if cfg.SocketGroup != "" {
		cfg.SocketMode = 0o660
	}
	if err := run(ctx, &cfg, *listen); err != nil {
		slog.Error("failed", "version", version, "err", err)
		os.Exit(1)
	}
}

// run serves until a successor has taken over and ctx has ended.
func run(ctx context.Context, cfg *crossfade.Config, listen string) error {
	upg, err := crossfade.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "http", "tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: http.HandlerFunc(identify), ReadHeaderTimeout: 10 * time.Second}
	web := httphandoff.New(upg, srv, "http")
	serving := make(chan error, 1) // room, for nobody looks while it is Ready that fails
	go func() { serving <- web.Serve(ln) }()
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	slog.Info("serves", "version", version, "address", ln.Addr().String())

	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop()
	case err := <-serving:
		return err
	}
	drain, cancel := upg.DrainContext(context.Background())
	defer cancel()
	if err := web.Shutdown(drain); err != nil {
		slog.Warn("requests were cut off", "version", version, "err", err)
	}
	if err := <-serving; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	if errors.Is(upg.Err(), crossfade.ErrStopped) {
		return nil
	}
	slog.Info("parked: another container serves", "version", version, "why", upg.Err())
	crossfade.Park(ctx)
	return nil
}

// identify says who answers.
func identify(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"version": version, "pid": os.Getpid()}) // the client may have left
}

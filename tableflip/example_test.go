package tableflip_test

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/crossfade-go/crossfade/tableflip"
)

// A server that finishes its requests before it leaves. What asks for an upgrade
// is up to the program, here a channel.
func Example() {
	var upgrades <-chan struct{}

	upg, err := tableflip.New(tableflip.Options{PIDFile: "/run/app/pid"})
	if err != nil {
		slog.Error("no Upgrader", "err", err)
		os.Exit(1)
	}
	defer upg.Stop()
	go func() {
		for range upgrades {
			if err := upg.Upgrade(); err != nil {
				slog.Error("the old version serves on", "err", err)
			}
		}
	}()

	ln, err := upg.Listen("tcp", "localhost:8080")
	if err != nil {
		slog.Error("not listening", "err", err)
		return
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(ln)
	if err := upg.Ready(); err != nil {
		slog.Error("not ready", "err", err)
		return
	}
	<-upg.Exit()

	drain, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		slog.Warn("connections were cut off", "err", err)
	}
}

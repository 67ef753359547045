// Command chat is a line-based chat server whose clients stay connected while it is
// replaced by another process: each connection moves to the successor, with what the
// server knows of its client.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade"
)

func main() {
	socket := flag.String("socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	listen := flag.String("listen", "127.0.0.1:0", "`address` to serve on")
	flag.Parse()
	if err := run(*socket, *listen); err != nil {
		slog.Error("chat ends", "err", err)
		status := 1
		if errors.Is(err, crossfade.ErrRolledBack) {
			status = crossfade.ExitRolledBack
		}
		os.Exit(status)
	}
}

// listenerName is what the listener is called in every version of this program.
const listenerName = "chat"

func run(socket, listen string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: socket, DrainTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, listenerName, "tcp", listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	handedOver := upg.HandedOver(listenerName) // before Ready, so that none is refused
	defer handedOver.Close()

	h := newHall()
	var accepting sync.WaitGroup
	accepting.Go(func() { acceptAll(ln, h) })
	accepting.Go(func() { acceptAll(handedOver, h) })
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	slog.Info("serving", "address", ln.Addr().String(), "pid", os.Getpid())

	// Nobody is listened to before everybody is here: what is said would not reach
	// those who are still with the predecessor, which exits once it has handed all
	// of its clients over.
	go func() {
		gathered, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := upg.WaitForPredecessor(gathered); err != nil {
			slog.Warn("opening although the predecessor may still have clients", "err", err)
		}
		h.open()
	}()

	select {
	case <-ctx.Done():
		upg.Stop()
	case <-upg.Exit():
	}
	if !errors.Is(upg.Err(), crossfade.ErrRetired) {
		h.close("the server stops\n")
		return ended(upg.Err())
	}
	drain, cancel := upg.DrainContext(context.Background())
	defer cancel()
	// Whoever was accepted here is in the hall when the loops have ended, and moves
	// with the others.
	_ = ln.Close()
	_ = handedOver.Close()
	accepting.Wait()
	moved, left := 0, 0
	for _, p := range h.close("") {
		if err := move(drain, upg, p); err != nil {
			slog.Error("a client cannot move", "name", p.name, "err", err)
			p.leave("the server was replaced, please come again\n")
			left++
			continue
		}
		moved++
	}
	slog.Info("the clients have moved", "moved", moved, "left", left, "pid", os.Getpid())
	return nil
}

// ended is the error of a process that ends because of why.
func ended(why error) error {
	if errors.Is(why, crossfade.ErrStopped) {
		return nil
	}
	return why
}

// move hands one client over. Nobody reads from it any more.
func move(ctx context.Context, upg *crossfade.Upgrader, p *person) error {
	state, unread, err := p.pack()
	if err != nil {
		return fmt.Errorf("what is known of it cannot be written: %w", err)
	}
	return upg.HandOverConn(ctx, listenerName, p.conn, &crossfade.HandOver{Unread: unread, State: state})
}

// acceptAll lets everybody in whom ln accepts. It ends when ln is closed and has
// nobody more.
func acceptAll(ln net.Listener, h *hall) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			slog.Warn("accept", "err", err)
			continue
		}
		var known []byte
		if came, ok := crossfade.HandOverOf(c); ok {
			known = came.State
		}
		if p := h.enter(c, known); p != nil {
			go h.serve(p)
		}
	}
}

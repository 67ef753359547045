package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
)

// answer is what a client gets.
type answer struct {
	Value uint64 `json:"value"`
	PID   int    `json:"pid"` // of the process that has counted
}

// handler answers requests by the database. Those that come on connections of a
// process which has let go of it are passed on to the service's own address,
// where they wait in the queue for whoever accepts next: the successor, or this
// process, if it gets the service back.
type handler struct {
	db      *store
	forward http.Handler
}

func newHandler(db *store, address net.Addr) http.Handler {
	h := &handler{db: db, forward: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", address.String(), r.In.Host
		},
		Transport: &http.Transport{
			// A connection that was kept could belong to the one before.
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, address.Network(), address.String())
			},
		},
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /counters/{name}", h.increment)
	mux.HandleFunc("GET /counters/{name}", h.value)
	return mux
}

func (h *handler) increment(w http.ResponseWriter, r *http.Request) {
	value, err := h.db.increment(r.PathValue("name"), r.Header.Get("Idempotency-Key"))
	h.answer(w, r, value, err)
}

func (h *handler) value(w http.ResponseWriter, r *http.Request) {
	value, err := h.db.value(r.PathValue("name"))
	h.answer(w, r, value, err)
}

func (h *handler) answer(w http.ResponseWriter, r *http.Request, value uint64, err error) {
	switch {
	case errors.Is(err, errAway):
		h.forward.ServeHTTP(w, r)
	case err != nil:
		slog.Warn("request failed", "pid", os.Getpid(), "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer{value, os.Getpid()}) // a client that has left can ask again
	}
}

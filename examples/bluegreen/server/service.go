package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"
)

const (
	maxBody = 1 << 20          // bytes of a request's body
	maxSlow = 10 * time.Second // that /slow may be asked to take
)

// service answers every request with who answered it.
type service struct {
	self    reply
	journal *slog.Logger
}

// reply is the answer to a request.
type reply struct {
	PID        int    `json:"pid"`
	Generation uint64 `json:"generation"`
	Version    string `json:"version"`
	ID         string `json:"id"`
	Bytes      int64  `json:"bytes"`
}

// begin comes before the first request.
func (s *service) begin(generation uint64, journal io.Writer) {
	s.self = reply{PID: os.Getpid(), Generation: generation, Version: version}
	// Each entry is one write, so those of several processes do not mix.
	s.journal = slog.New(slog.NewJSONHandler(journal, nil)).With(
		"pid", s.self.PID, "generation", s.self.Generation, "version", s.self.Version)
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", s.answer)
	mux.HandleFunc("/slow", s.slow)
	return s.recorded(mux)
}

// recorded writes down each request before and after it is handled. A client that
// has its answer thus finds both in the journal.
func (s *service) recorded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		s.journal.Info("request began", "id", id)
		defer s.journal.Info("request ended", "id", id)
		next.ServeHTTP(w, r)
	})
}

// slow answers after the time that the request asks for.
func (s *service) slow(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("for"))
	if err != nil || d < 0 || d > maxSlow {
		http.Error(w, "for is not a duration of at most "+maxSlow.String(), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(d):
		s.answer(w, r)
	case <-r.Context().Done(): // the client has gone
	}
}

func (s *service) answer(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "the body: "+err.Error(), http.StatusBadRequest)
		return
	}
	answer := s.self
	answer.ID, answer.Bytes = r.Header.Get("X-Request-Id"), n
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		slog.Warn("answer not sent", "id", answer.ID, "err", err)
	}
}

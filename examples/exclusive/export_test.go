package main

import (
	"context"
	"errors"
	"time"
)

// Main is the service, for test processes.
var Main = main

// Store is the database as the program and the library use it.
type Store struct{ s *store }

// NewStore returns one that waits for the file's lock as long as given.
func NewStore(path string, wait time.Duration) *Store {
	s := newStore(path)
	s.wait = wait
	return &Store{s}
}

func (s *Store) Open() error                       { return s.s.open() }
func (s *Store) Suspend(ctx context.Context) error { return s.s.suspend(ctx) }
func (s *Store) Resume(ctx context.Context) error  { return s.s.resume(ctx) }
func (s *Store) Close() error                      { return s.s.close() }

// Away reports whether requests are to be passed on.
func (s *Store) Away() bool {
	_, err := s.s.value("hits")
	return errors.Is(err, errAway)
}

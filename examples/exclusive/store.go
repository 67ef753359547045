package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long open waits for the lock of the database file. Nobody
// has it then as a rule: bbolt asks again every 50 ms, so a predecessor's death is
// the one thing that is worth waiting for.
const lockTimeout = 5 * time.Second

// errAway: another process has the database, or is about to.
var errAway = errors.New("the database is in use by another process")

// store is the database, for as long as this process has it. Its methods may be
// called concurrently.
//
// The library may call suspend as soon as this process owns, which is before the
// program has opened the database. Whoever opens or closes therefore does all of
// it in its turn, and after suspend nothing but resume opens: a process that does
// not serve would lock out the one that does.
type store struct {
	path string
	wait time.Duration // for the lock of the file

	turn chan struct{} // a mutex, for which suspend waits no longer than it may
	away bool          // from suspend to resume; guarded by turn

	mu sync.Mutex
	db *bbolt.DB // nil while it is not open; set by whoever has the turn
}

func newStore(path string) *store {
	return &store{path: path, wait: lockTimeout, turn: make(chan struct{}, 1)} // room for the one whose turn it is
}

// take waits for the turn, which done ends.
func (s *store) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the database is being opened or closed: %w", context.Cause(ctx))
	}
}

func (s *store) done() { <-s.turn }

// open opens the database, unless another process is to have it.
func (s *store) open() error {
	s.turn <- struct{}{}
	defer s.done()
	return s.openInTurn()
}

// suspend is Config.Suspend. It waits for an open that is under way. Close waits
// for the transactions that have begun, each of which takes as long as a write to
// the disk, so that ctx need not be looked at then.
func (s *store) suspend(ctx context.Context) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.done()
	if err := s.closeInTurn(); err != nil {
		return errors.Join(err, s.openInTurn()) // an error must have changed nothing
	}
	s.away = true
	return nil
}

// resume is Config.Resume, which is called until it succeeds.
func (s *store) resume(ctx context.Context) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.done()
	s.away = false
	err := s.openInTurn()
	s.away = err != nil // after a failure the library does not suspend once more
	return err
}

// close closes the database at the end of this process.
func (s *store) close() error {
	s.turn <- struct{}{}
	defer s.done()
	return s.closeInTurn()
}

// openInTurn does nothing if the database is open, or is not to be opened. bbolt
// locks its file by flock(2), on a descriptor of its own, so that the unlocking by
// Close concerns no other process; but this one too would lock itself out.
func (s *store) openInTurn() error {
	if s.away || s.get() != nil {
		return nil
	}
	db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{Timeout: s.wait})
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{counters, requests} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	s.set(db)
	slog.Info("database open", "pid", os.Getpid())
	return nil
}

func (s *store) closeInTurn() error {
	db := s.set(nil)
	if db == nil {
		return nil
	}
	slog.Info("database closed", "pid", os.Getpid())
	return db.Close()
}

func (s *store) set(db *bbolt.DB) (old *bbolt.DB) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, s.db = s.db, db
	return old
}

func (s *store) get() *bbolt.DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db
}

// use calls f with the database, or returns errAway.
func (s *store) use(f func(db *bbolt.DB) error) error {
	for {
		db := s.get()
		if db == nil {
			return errAway
		}
		// It may have been closed since, before f could begin a transaction.
		if err := f(db); !errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
			return err
		}
	}
}

// The buckets: values of counters by name, and what was answered to requests by
// their idempotency keys. A service that runs for long would forget old keys.
var (
	counters = []byte("counters")
	requests = []byte("requests")
)

// increment adds one to a counter, unless the request with that key has done so
// before, and returns the value that it has led to. An empty key is never the
// same. Value and key are in one transaction: whoever asks again, this process or
// another, learns whether it was committed.
func (s *store) increment(name, key string) (value uint64, err error) {
	err = s.use(func(db *bbolt.DB) error {
		return db.Update(func(tx *bbolt.Tx) error {
			if answer := tx.Bucket(requests).Get([]byte(key)); key != "" && answer != nil {
				value = binary.BigEndian.Uint64(answer)
				return nil
			}
			b := tx.Bucket(counters)
			value = number(b.Get([]byte(name))) + 1
			raw := binary.BigEndian.AppendUint64(nil, value)
			if err := b.Put([]byte(name), raw); err != nil || key == "" {
				return err
			}
			return tx.Bucket(requests).Put([]byte(key), raw)
		})
	})
	return value, err
}

// value returns a counter's value.
func (s *store) value(name string) (value uint64, err error) {
	err = s.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			value = number(tx.Bucket(counters).Get([]byte(name)))
			return nil
		})
	})
	return value, err
}

// number is 0 for what is not there.
func number(raw []byte) uint64 {
	if len(raw) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(raw)
}

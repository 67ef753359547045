package systemd_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// The manager hears from a service that works, and of nothing else.
func TestKeepAlive(t *testing.T) {
	m, n := open(t, nil)
	broken := errors.New("broken")
	// What the check is to say, in turn; then it works for good.
	results := []func(context.Context) error{
		func(context.Context) error { return nil },
		func(context.Context) error { return broken },
		func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
		func(context.Context) error { return nil },
	}
	var (
		mu      sync.Mutex
		asked   int
		reports []error
	)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		n.KeepAlive(ctx, 10*time.Millisecond, func(ctx context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if asked > len(results) {
				return nil
			}
			return results[asked-1](ctx)
		}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			// On a machine that is slow the manager may be late as well.
			if !strings.Contains(err.Error(), "manager") {
				reports = append(reports, err)
			}
		})
	})
	for range 5 {
		m.Await("WATCHDOG=1")
	}
	cancel()
	running.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(reports) != 2 || !errors.Is(reports[0], broken) || !strings.Contains(reports[1].Error(), "the watchdog waits no longer than 5ms") {
		t.Errorf("reported are %v", reports)
	}
	if err := n.Barrier(patient(t)); err != nil {
		t.Fatal(err)
	}
	said := 0
	for _, msg := range m.Messages() {
		if msg.Has("WATCHDOG=1") {
			said++
		}
	}
	if said > asked-2 {
		t.Errorf("the service was alive %d times, of %d that it was asked and 2 that it was not", said, asked)
	}
}

// A unit without a watchdog is none to keep quiet, and a nil check works.
func TestKeepAliveWithout(t *testing.T) {
	m, n := open(t, nil)
	n.KeepAlive(t.Context(), 0, func(context.Context) error {
		t.Error("it was asked")
		return nil
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { n.KeepAlive(ctx, time.Hour, nil, nil) })
	if got := m.Next(); !got.Has("WATCHDOG=1") {
		t.Errorf("the manager has got %v", got)
	}
	cancel()
	running.Wait()
	if got := m.Messages(); len(got) != 1 {
		t.Errorf("the manager has got %v", got)
	}
}

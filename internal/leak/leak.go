// Package leak fails a test that leaves descriptors or goroutines behind, or
// that closes a descriptor which was not its own.
package leak

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// grace is how long what a test has started may take to end. Finding nothing
// takes no time at all.
var grace = 10 * time.Second

// Main runs the tests and exits. It is for TestMain:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
//
// When the tests have passed and descriptors or goroutines of theirs are still
// there after a grace period, it prints them to standard error and the status is
// 1. On Windows it looks at goroutines only. In any case it calls each of after
// before it exits, which no deferred call outlives.
func Main(m *testing.M, after ...func()) {
	status := run(m, os.Stderr)
	for _, f := range after {
		f()
	}
	os.Exit(status)
}

func run(m *testing.M, w io.Writer) int {
	before := take()
	code := m.Run()
	if code != 0 {
		// A test that fails stops half-way: what it left says nothing new.
		return code
	}
	if left := before.await(grace); left != "" {
		fmt.Fprintf(w, "the tests passed but did not leave things as they were\n%s", left)
		return 1
	}
	return 0
}

// Check has t fail if descriptors or goroutines that it began with are not those
// that it ends with. The comparison runs after the clean-ups that t registers
// later. Tests that run in parallel would see each other's.
func Check(t testing.TB) {
	t.Helper()
	before := take()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if left := before.await(grace); left != "" {
			t.Errorf("the test did not leave things as they were\n%s", left)
		}
	})
}

// state is what a process has open and running.
type state struct {
	descriptors map[int]descriptor
	goroutines  map[string]string
}

// descriptor is what a number stands for. The identity tells one open file from
// another under the same number; the name is for people.
type descriptor struct{ identity, name string }

func take() *state {
	startPoller()
	return &state{descriptors: descriptors(), goroutines: goroutines()}
}

// startPoller has the runtime open the descriptors of its network poller, which
// it keeps.
func startPoller() {
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	r.Close()
	w.Close()
}

// await waits until nothing differs from s. It returns what still does, as
// lines. There is no event for a goroutine's end or a descriptor's close, so it
// looks again in growing intervals.
func (s *state) await(limit time.Duration) string {
	deadline := time.Now().Add(limit)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 50*time.Millisecond) {
		diff := s.diff(&state{descriptors: descriptors(), goroutines: goroutines()})
		if diff == "" || time.Now().After(deadline) {
			return diff
		}
		<-time.After(pause)
	}
}

func (s *state) diff(now *state) string {
	var lines []string
	for num, d := range now.descriptors {
		if old, ok := s.descriptors[num]; !ok || old.identity != d.identity {
			lines = append(lines, fmt.Sprintf("descriptor %4d is still open: %s\n", num, d.name))
		}
	}
	for num, d := range s.descriptors {
		if _, ok := now.descriptors[num]; !ok {
			lines = append(lines, fmt.Sprintf("descriptor %4d was closed by somebody whom it did not belong to: %s\n", num, d.name))
		}
	}
	slices.Sort(lines)
	var stacks []string
	for id, stack := range now.goroutines {
		if _, ok := s.goroutines[id]; !ok {
			stacks = append(stacks, "still running: "+stack+"\n")
		}
	}
	slices.Sort(stacks)
	return strings.Join(lines, "") + strings.Join(stacks, "")
}

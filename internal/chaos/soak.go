//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// soakTime is the limit of every process of a soak: a process keeps its limits,
// and which of them a cell will need of it is not known when it starts. It must
// pass in the cells in which something stands still, so it cannot be long.
const soakTime = 4 * time.Second

// shares say how often a fault of each kind is chosen, in a thousand. The rest is
// handoffs in which nothing happens.
var shares = []struct {
	fault fault
	share int
}{
	{faultKill, 300},
	{faultClose, 60},
	{faultStop, 30},
	{faultGarbage, 40},
	{faultRepeated, 40},
	{faultMisplaced, 40},
	{faultDelayed, 40},
}

// soak is one service that is handed over again and again, under load, while at
// random something goes wrong. Whoever owns after one handoff is the predecessor
// of the next; everything is checked after each as in the matrix.
type soak struct {
	*stage
	cells   map[fault][]cell
	rng     *rand.Rand
	results map[outcome]int
}

// runSoak runs n handoffs, chosen by the seed, and reports. The same seed repeats
// the choices, not the times.
func runSoak(ctx context.Context, dir string, cells []cell, o options, w io.Writer) (wrong int, err error) {
	st, err := newStage(ctx, dir)
	if err != nil {
		return 0, err
	}
	s := &soak{
		stage: st, cells: make(map[fault][]cell),
		rng: rand.New(rand.NewPCG(o.seed, 1)), results: make(map[outcome]int),
	}
	for _, c := range cells {
		// A process that stands still at a moment, or that has more files than the
		// rest, has to be started for that.
		if c.moment != at && c.scenario != "pages" {
			s.cells[c.fault] = append(s.cells[c.fault], c)
		}
	}
	fmt.Fprintf(w, "soak: %d handoffs, seed %d\n", o.soak, o.seed)
	began := time.Now()
	done, failed := s.handOver(o.soak, o, w)
	st.close()
	s.report(w, done, time.Since(began))
	for _, text := range st.wrong {
		fmt.Fprintf(w, "WRONG %s\n", text)
	}
	if len(st.wrong) > 0 {
		fmt.Fprintf(w, "soak: wrong at handoff %d, %v; what was seen of it:\n%s", done+1, failed, st.transcript())
	}
	fmt.Fprintf(w, "soak: seed %d, %d handoffs, %d wrong\n", o.seed, done, len(st.wrong))
	return len(st.wrong), context.Cause(ctx)
}

// handOver returns how many handoffs were right, and the cell that was not.
func (s *soak) handOver(n int, o options, w io.Writer) (done int, failed cell) {
	parent := s.ctx
	owner, err := s.open(s.soakSpec("P0"))
	if s.fail(err) {
		return 0, cell{}
	}
	for i := range n {
		if parent.Err() != nil {
			return i, cell{}
		}
		ctx, cancel := context.WithTimeoutCause(parent, generous, errors.New("the patience of the harness is at its end"))
		s.ctx, s.begin = ctx, now()
		c := s.choose()
		if o.verbose {
			fmt.Fprintf(w, "%5d  %v\n", i+1, c)
		}
		next := s.attempt(c, owner, s.soakSpec(fmt.Sprintf("P%d", i+1)))
		cancel()
		if next == nil || s.faults() > 0 {
			return i, c
		}
		s.results[c.want]++
		owner = next
		s.bury(owner)
	}
	s.ctx = parent
	s.stopForGood(owner)
	return n, cell{}
}

// bury ends what stands still for good: with its copies of the control socket and
// the lock it would be in the way of a fresh start, and rightly so (I5).
func (s *soak) bury(owner *process) {
	s.mu.Lock()
	all := slices.Clone(s.processes)
	s.mu.Unlock()
	for _, p := range all {
		if p != owner && p.alive() {
			p.kill()
		}
	}
}

func (s *soak) soakSpec(name string) spec {
	sp := s.spec(name)
	sp.ReadyTimeout, sp.CommitTimeout, sp.DialTimeout = soakTime, soakTime, soakTime
	return sp
}

// choose takes a kind of fault by its share, then a cell of that kind. A handoff
// without a fault is one that is delayed by nothing: the message does not matter.
func (s *soak) choose() cell {
	n := s.rng.IntN(1000)
	for _, x := range shares {
		if n < x.share {
			return s.cells[x.fault][s.rng.IntN(len(s.cells[x.fault]))]
		}
		n -= x.share
	}
	c := s.cells[faultDelayed][s.rng.IntN(len(s.cells[faultDelayed]))]
	c.fault = faultNone
	return c
}

// report prints what was done.
func (s *soak) report(w io.Writer, done int, took time.Duration) {
	fmt.Fprintf(w, "soak: %d handoffs in %.0f s\n", done, took.Seconds())
	fmt.Fprint(w, "soak: who owned afterwards:")
	for _, want := range outcomes {
		if n := s.results[want]; n > 0 {
			fmt.Fprintf(w, " %s %d", want, n)
		}
	}
	fmt.Fprint(w, "\nsoak: faults:")
	requests := s.counts["requests"]
	failures := s.counts["failed requests"]
	for _, what := range slices.Sorted(maps.Keys(s.counts)) {
		if what != "requests" && what != "failed requests" {
			fmt.Fprintf(w, " %s %d", what, s.counts[what])
		}
	}
	fmt.Fprintf(w, "\nsoak: %d requests, %d failed that should not have\n", requests, failures)
	fmt.Fprintf(w, "soak: an owner's descriptors: %d at the start, %d at the end\n", s.rest.total(), s.left.total())
}

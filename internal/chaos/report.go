//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// matrix is the cells that were chosen and how each has ended.
type matrix struct {
	options options
	rows    []cell // all of the table, for the shape of the report
	tests   []test

	mu      sync.Mutex
	results map[string]*result
}

// test is a cell, or another scenario, by its name.
type test struct {
	name string
	why  string // what is expected, and by which rule
	run  func(ctx context.Context, dir string) *result
}

// result is how a test has ended.
type result struct {
	wrong      []string
	skipped    string // why, if it could not be run here
	transcript string
	took       time.Duration
}

// newMatrix chooses what is to be run.
func newMatrix(cells []cell, rules map[string]string, o options) *matrix {
	m := &matrix{options: o, rows: cells, results: make(map[string]*result)}
	chosen := cells
	if o.short {
		chosen = choose(cells, o.seed)
	}
	for _, c := range chosen {
		m.tests = append(m.tests, cellTest(c, rules))
	}
	for _, sc := range scenarios {
		m.tests = append(m.tests, test{"scenario/" + strings.ReplaceAll(strings.ReplaceAll(sc.name, ",", ""), " ", "-"), sc.rule, func(ctx context.Context, dir string) *result {
			return runScenario(ctx, dir, sc)
		}})
	}
	m.tests = slices.DeleteFunc(m.tests, func(t test) bool { return !o.only.MatchString(t.name) })
	return m
}

func cellTest(c cell, rules map[string]string) test {
	why := fmt.Sprintf("%s, by %s: %s", c.want, c.rule, rules[c.rule])
	return test{c.String(), why, func(ctx context.Context, dir string) *result {
		wrong, transcript := runCell(ctx, dir, c)
		return &result{wrong: wrong, transcript: transcript}
	}}
}

// choose takes a part of the cells that has each message once, and each column
// once in each phase. The seed says which.
func choose(cells []cell, seed uint64) []cell {
	rng := rand.New(rand.NewPCG(seed, 0))
	order := rng.Perm(len(cells))
	covered := make(map[string]bool)
	var chosen []cell
	for _, i := range order {
		c := cells[i]
		message := c.scenario + " " + c.message
		phase := c.scenario + " " + c.phase() + " " + c.column.String()
		if covered[message] && covered[phase] {
			continue
		}
		covered[message], covered[phase] = true, true
		chosen = append(chosen, c)
	}
	return chosen
}

// phase is the part of an attempt that the message belongs to.
func (c cell) phase() string {
	switch c.message {
	case "Hello", "Welcome", "Prepared", "ManifestPage.0", "PageAck.0":
		return "offer"
	case "Received", "Progress", "Ready", "Abort":
		return "initialisation"
	case "ManifestPage.1", "ManifestPage.2", "PageAck.1", "FinalReceived", "Commit":
		return "commit"
	default:
		return "standby"
	}
}

func (m *matrix) list(w io.Writer) {
	for _, t := range m.tests {
		fmt.Fprintln(w, t.name)
	}
}

// run runs the tests, some at a time.
func (m *matrix) run(ctx context.Context, dir string) {
	queue := make(chan test)
	var wg sync.WaitGroup
	for range m.options.parallel {
		wg.Go(func() {
			for t := range queue {
				m.one(ctx, dir, t)
			}
		})
	}
	for _, t := range m.tests {
		select {
		case queue <- t:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(queue)
	wg.Wait()
}

func (m *matrix) one(ctx context.Context, dir string, t test) {
	began := time.Now()
	r := t.run(ctx, dir)
	r.took = time.Since(began)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.results[t.name] = r
	if m.options.verbose && ctx.Err() == nil {
		fmt.Fprintf(os.Stdout, "%-6s %6.2f s  %s\n", r.verdict(), r.took.Seconds(), t.name)
	}
}

func (r *result) verdict() string {
	switch {
	case r == nil:
		return "."
	case r.skipped != "":
		return "skip"
	case len(r.wrong) > 0:
		return "WRONG"
	default:
		return "ok"
	}
}

// report prints the matrix, and what was wrong. It returns the number of wrong
// tests.
func (m *matrix) report(w io.Writer, took time.Duration) int {
	m.tables(w)
	wrong := 0
	for _, t := range m.tests {
		r := m.results[t.name]
		if r == nil || len(r.wrong) == 0 {
			continue
		}
		wrong++
		fmt.Fprintf(w, "\nWRONG %s\n  expected: %s\n", t.name, t.why)
		for _, text := range r.wrong {
			fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(text, "\n", "\n  "))
		}
		fmt.Fprintf(w, "  what was seen:\n%s", r.transcript)
	}
	fmt.Fprintf(w, "\nchaos: seed %d, %.0f s\n", m.options.seed, took.Seconds())
	fmt.Fprintf(w, "chaos: %d cells, %d wrong\n", len(m.results), wrong)
	return wrong
}

// tables prints who owns at the end of each cell: the letters of expect.txt, a
// dot for a cell that was not run, and a letter in brackets where it was wrong.
func (m *matrix) tables(w io.Writer) {
	defer m.others(w)
	scenario := ""
	var kind moment
	for i := 0; i < len(m.rows); {
		c := m.rows[i]
		columns := c.moment.columns()
		row := m.rows[i:]
		if end := slices.IndexFunc(row, func(d cell) bool {
			return d.scenario != c.scenario || d.message != c.message || d.moment != c.moment
		}); end >= 0 {
			row = row[:end]
		}
		i += len(row)
		if !slices.ContainsFunc(row, func(c cell) bool { return m.results[c.String()] != nil }) {
			continue
		}
		if c.scenario != scenario || (c.moment == onWire) != (kind == onWire) {
			fmt.Fprintf(w, "\n%-24s", c.scenario)
			for _, column := range columns {
				fmt.Fprintf(w, "%-11s", column)
			}
			fmt.Fprintln(w)
			scenario, kind = c.scenario, c.moment
		}
		when := string(c.moment)
		if c.moment == onWire {
			when = ""
		}
		fmt.Fprintf(w, "%-16s%-8s", c.message, when)
		for _, c := range row {
			text := string(c.want)
			switch m.results[c.String()].verdict() {
			case ".":
				text = "."
			case "WRONG":
				text = "(" + text + ")"
			}
			fmt.Fprintf(w, "%-11s", text)
		}
		fmt.Fprintln(w)
	}
}

// others prints how each scenario has ended that has no row.
func (m *matrix) others(w io.Writer) {
	fmt.Fprintln(w)
	for _, t := range m.tests {
		r := m.results[t.name]
		if !strings.HasPrefix(t.name, "scenario/") || r == nil {
			continue
		}
		fmt.Fprintf(w, "%-6s %-66s %s", r.verdict(), t.name, t.why)
		if r.skipped != "" {
			fmt.Fprintf(w, ": %s", r.skipped)
		}
		fmt.Fprintln(w)
	}
}

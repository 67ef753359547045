// Command model checks the Promela model of the handoff protocol with spin: each
// claim must hold, each mutation of the rules must break the claim that it is
// meant for, and what the model says can happen must be possible. README.md in
// its directory says what is modelled.
//
// It needs spin and a C compiler, prints a table, and exits with status 1 if
// anything is not as it must be. A claim that fails is printed with the run that
// breaks it.
package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:embed *.pml
var sources embed.FS

// models are those that have claims; the other files are included by them.
var models = []string{"handoff", "chain", "drain"}

// expectation is what a check must find.
type expectation string

const (
	holds     expectation = "holds"     // a claim
	reachable expectation = "reachable" // the denial of something that can happen
	caught    expectation = "caught"    // a claim under the mutation meant for it
)

// none is the mutation that changes nothing.
const none = "NONE"

// check is one search.
type check struct {
	model, claim string
	mutation     string // or none
	want         expectation
}

// result is what a search has found.
type result struct {
	states, depth int
	violated      bool
	run           []string // that violates the claim
	err           error
}

func main() {
	pattern := flag.String("run", "", "check only what matches this `regexp` of model/claim/mutation")
	parallel := flag.Int("parallel", runtime.GOMAXPROCS(0), "how many searches run at once, of up to 500 MB each")
	list := flag.Bool("list", false, "list what would be checked")
	trail := flag.Bool("trail", false, "print the run that shows it, for mutations and what can happen, too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ok, err := run(ctx, *pattern, max(*parallel, 1), *list, *trail)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "model:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context, pattern string, parallel int, list, trail bool) (bool, error) {
	matching, err := regexp.Compile(pattern)
	if err != nil {
		return false, err
	}
	checks, err := readChecks()
	if err != nil {
		return false, err
	}
	checks = slices.DeleteFunc(checks, func(c check) bool { return !matching.MatchString(c.model + "/" + c.claim + "/" + c.mutation) })
	if list {
		for _, c := range checks {
			fmt.Printf("%s/%s/%s must be: %s\n", c.model, c.claim, c.mutation, c.want)
		}
		return true, nil
	}
	if len(checks) == 0 {
		return false, fmt.Errorf("nothing matches %q", pattern)
	}
	dir, err := os.MkdirTemp("", "crossfade-model-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	fmt.Printf(row, "model", "claim", "mutation", "states", "depth", "result")
	s := &summary{trail: trail}
	search(ctx, dir, checks, parallel, trail, s.add)
	fmt.Println(s.last())
	return s.wrong == 0, nil
}

var (
	claimLine    = regexp.MustCompile(`(?m)^ltl (\w+) \{.*\n`)
	mutationLine = regexp.MustCompile(`(?m)^#define ([A-Z_]+) +[1-9][0-9]* /\* (\w+) (\w+): `)
)

// readChecks takes the claims and the mutations from the model's files.
func readChecks() ([]check, error) {
	var checks []check
	for _, model := range models {
		text, err := sources.ReadFile(model + ".pml")
		if err != nil {
			return nil, err
		}
		for _, m := range claimLine.FindAllStringSubmatch(string(text), -1) {
			want := holds
			if strings.HasPrefix(m[1], "reach_") {
				want = reachable
			}
			checks = append(checks, check{model: model, claim: m[1], mutation: none, want: want})
		}
	}
	text, err := sources.ReadFile("mutations.pml")
	if err != nil {
		return nil, err
	}
	for _, m := range mutationLine.FindAllStringSubmatch(string(text), -1) {
		checks = append(checks, check{model: m[2], claim: m[3], mutation: m[1], want: caught})
	}
	return checks, nil
}

// search runs the checks, calls report with each result in the order of the
// checks, and returns when all have ended.
func search(ctx context.Context, dir string, checks []check, parallel int, trail bool, report func(check, result)) {
	results := make([]chan result, len(checks))
	for i := range results {
		results[i] = make(chan result, 1) // so that no search waits for the report of one before it
	}
	// The checks of one model and mutation share a verifier, which whoever
	// comes first builds.
	builds := make(map[string]func() error)
	for _, c := range checks {
		where := c.directory(dir)
		if builds[where] == nil {
			builds[where] = sync.OnceValue(func() error { return build(ctx, where, c) })
		}
	}
	next := make(chan int)
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for i := range next {
				where := checks[i].directory(dir)
				if err := builds[where](); err != nil {
					results[i] <- result{err: err}
					continue
				}
				results[i] <- verify(ctx, where, checks[i], trail)
			}
		})
	}
	wg.Go(func() {
		for i := range checks {
			next <- i
		}
		close(next)
	})
	for i, c := range checks {
		report(c, <-results[i])
	}
	wg.Wait()
}

func (c check) directory(dir string) string { return filepath.Join(dir, c.model+"-"+c.mutation) }

// build makes the verifier of one model under one mutation.
func build(ctx context.Context, dir string, c check) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files, err := fs.Glob(sources, "*.pml")
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := sources.ReadFile(file)
		if err != nil {
			return err
		}
		if c.want == caught && file == c.model+".pml" {
			text = onlyClaim(text, c.claim)
		}
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			return err
		}
	}
	if _, err := command(ctx, dir, "spin", "-a", "-DMUTATION="+c.mutation, c.model+".pml"); err != nil {
		return err
	}
	// Compiling takes longer than searching. What -O1 would do for the claims is
	// paid for three times by what it costs; a mutation is searched once and found
	// early. Partial order reduction is not sound together with provided clauses.
	optimize := "-Og"
	if c.want == caught {
		optimize = "-O0"
	}
	_, err = command(ctx, dir, cmp.Or(os.Getenv("CC"), "gcc"), "-w", optimize, "-DNOREDUCE", "-o", "pan", "pan.c")
	return err
}

// onlyClaim leaves out the other claims, for each of which the verifier would have a
// part. They have a line each.
func onlyClaim(text []byte, claim string) []byte {
	return claimLine.ReplaceAllFunc(text, func(line []byte) []byte {
		if string(claimLine.FindSubmatch(line)[1]) == claim {
			return line
		}
		return nil
	})
}

var (
	errorsLine = regexp.MustCompile(`depth reached (\d+), errors: (\d+)`)
	statesLine = regexp.MustCompile(`(?m)^ *([0-9.e+]+) states, stored`)
)

// verify searches the states of one model for a run that violates one claim.
// It describes the run if it must not be, or with trail.
func verify(ctx context.Context, dir string, c check, trail bool) result {
	// The trail, and what spin writes, have fixed names.
	where := filepath.Join(dir, c.claim)
	if err := os.Mkdir(where, 0o700); err != nil {
		return result{err: err}
	}
	out, err := command(ctx, where, filepath.Join(dir, "pan"), "-a", "-n", "-m1000000", "-w22", "-N", c.claim)
	m, states := errorsLine.FindStringSubmatch(out), statesLine.FindStringSubmatch(out)
	switch {
	case m == nil || states == nil:
		return result{err: errors.Join(err, fmt.Errorf("the verifier of %s says:\n%s", c.model, out))}
	case !strings.Contains(out, "("+c.claim+")"):
		return result{err: fmt.Errorf("the verifier of %s has not searched for %s:\n%s", c.model, c.claim, out)}
	case strings.Contains(out, "max search depth too small"), strings.Contains(out, "out of memory"):
		return result{err: fmt.Errorf("the search for %s was cut short:\n%s", c.claim, out)}
	}
	r := result{violated: m[2] != "0"}
	r.depth, _ = strconv.Atoi(m[1])
	count, _ := strconv.ParseFloat(states[1], 64)
	r.states = int(count)
	if r.violated && (trail || c.want == holds) {
		r.run, r.err = replay(ctx, where, c)
	}
	return r
}

func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: install it, on Debian with apt-get install spin gcc libc6-dev", err)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out), err
}

var (
	stepLine = regexp.MustCompile(`proc +(\d+) \((\w+):\d+\) (\S+):(\d+) \(state \d+\)\t\[(.*)\]$`)
	noise    = regexp.MustCompile(`^(\.\(goto\)|goto .*|else|\(1\)|break|\(empty\(.*|\(?\(?!?\(?ok\)?\)?|ok = .*)$`)
	typed    = regexp.MustCompile(`(to\w+(?:\[\w+\])?[!?]|state\[\w+\] = |[lL]ife(?:\[\w+\])? = )(\d+)`)
)

// replay returns the steps of the run that the verifier has found, by the names
// of the model.
func replay(ctx context.Context, where string, c check) ([]string, error) {
	file := c.model + ".pml"
	out, err := command(ctx, where, "spin", "-t", "-p", "-k", file+".trail", "-DMUTATION="+c.mutation, filepath.Join("..", file))
	if err != nil {
		return nil, err
	}
	values := make(map[byte][]string)
	for _, text := range []string{"names.pml", "rules.pml"} {
		source, err := sources.ReadFile(text)
		if err != nil {
			return nil, err
		}
		for kind, names := range mtypes(string(source)) {
			values[kind[0]] = names
		}
	}
	var steps []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "START OF CYCLE") {
			steps = append(steps, "... and so it stays")
		}
		m := stepLine.FindStringSubmatch(line)
		if m == nil || noise.MatchString(m[5]) {
			continue
		}
		step := typed.ReplaceAllStringFunc(m[5], func(assignment string) string {
			parts := typed.FindStringSubmatch(assignment)
			kind := strings.ToLower(parts[1])[0]
			if kind == 't' { // toServer, toClient
				kind = 'm'
			}
			// spin numbers the members of an mtype from the last, which is 1.
			n, _ := strconv.Atoi(parts[2])
			names := values[kind]
			if n < 1 || n > len(names) {
				return assignment
			}
			return parts[1] + names[len(names)-n]
		})
		steps = append(steps, fmt.Sprintf("%-14s %-18s %s", m[2]+" "+m[1], filepath.Base(m[3])+":"+m[4], step))
	}
	return steps, nil
}

var (
	mtypeBlock = regexp.MustCompile(`(?s)mtype:(\w+) = \{(.*?)\}`)
	comment    = regexp.MustCompile(`(?s)/\*.*?\*/`)
)

// mtypes returns the members of each enumeration in the text of a model.
func mtypes(text string) map[string][]string {
	found := make(map[string][]string)
	for _, m := range mtypeBlock.FindAllStringSubmatch(text, -1) {
		for name := range strings.SplitSeq(comment.ReplaceAllString(m[2], ""), ",") {
			found[m[1]] = append(found[m[1]], strings.TrimSpace(name))
		}
	}
	return found
}

// summary prints the table and counts.
type summary struct {
	trail                                    bool
	checks, wrong, claims, states, mutations int
}

func (s *summary) add(c check, r result) {
	good := r.err == nil && r.violated == (c.want != holds)
	outcome := string(c.want)
	switch {
	case r.err != nil:
		outcome = "ERROR"
	case !good && c.want == reachable:
		outcome = "NEVER REACHED"
	case !good && c.want == caught:
		outcome = "NOT CAUGHT"
	case !good:
		outcome = "VIOLATED"
	}
	mutation := c.mutation
	if mutation == none {
		mutation = "-"
	}
	fmt.Printf(row, c.model, c.claim, mutation, strconv.Itoa(r.states), strconv.Itoa(r.depth), outcome)
	if r.err != nil {
		fmt.Println(r.err)
	}
	if r.violated && (!good || s.trail) {
		fmt.Println("  " + strings.Join(r.run, "\n  "))
	}
	s.checks++
	switch {
	case !good:
		s.wrong++
	case c.want == holds:
		s.claims++
		s.states += r.states
	case c.want == caught:
		s.mutations++
	}
}

// row is one line of the table.
const row = "%-8s %-26s %-26s %9s %6s  %s\n"

// last is the line under the table.
func (s *summary) last() string {
	if s.wrong > 0 {
		return fmt.Sprintf("model: %d of %d checks are wrong", s.wrong, s.checks)
	}
	return fmt.Sprintf("model: %d claims hold in %d states, %d mutations caught, no error", s.claims, s.states, s.mutations)
}

//go:build linux

// Chaos is the fault matrix: real processes hand a service over, and at every
// message of the protocol something goes wrong. Afterwards it asks who owns,
// whether a client has noticed, whether the next handoff works and whether a
// descriptor has leaked, and compares the answers with expect.txt.
//
//	go run -race ./internal/chaos               the whole matrix
//	go run -race ./internal/chaos -short        each message and each fault of each phase once
//	go run -race ./internal/chaos -run Commit/  some cells, by their names
//	go run -race ./internal/chaos -soak 1000    one service, a thousand handoffs
//
// It exits with 1 if a cell is wrong, having printed everything that the
// processes of that cell have said.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

func main() {
	if encoded, ok := os.LookupEnv(roleEnv); ok {
		os.Exit(serve(encoded))
	}
	os.Exit(run())
}

// options are the command line.
type options struct {
	only     *regexp.Regexp
	verbose  bool
	short    bool
	list     bool
	seed     uint64
	parallel int
	soak     int
}

func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	only := flags.String("run", "", "run the cells and scenarios whose names match this `regexp`")
	flags.BoolVar(&o.verbose, "v", false, "name each cell as it ends")
	flags.BoolVar(&o.short, "short", false, "run a part: each message once, and each fault once in each phase")
	flags.BoolVar(&o.list, "list", false, "print the names of the cells and scenarios, and run nothing")
	flags.Uint64Var(&o.seed, "seed", 1, "choose by this `number`: the part of -short, and everything in a soak")
	// Most of the time of a cell is waiting.
	flags.IntVar(&o.parallel, "parallel", 4*runtime.NumCPU(), "run `n` cells at the same time")
	flags.IntVar(&o.soak, "soak", 0, "run `n` handoffs of one service, with faults at random, instead of the matrix")
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		return o, err
	}
	o.only, err = regexp.Compile(*only)
	return o, err
}

// run is the harness. It returns its exit status.
func run() int {
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Short: the paths of unix sockets begin with it.
	dir, err := os.MkdirTemp("", "chaos")
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 2
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	wrong, err := play(ctx, dir, o, began)
	switch {
	case err != nil:
		fmt.Fprintf(os.Stderr, "chaos: %v\n", err)
		return 2
	case wrong > 0:
		return 1
	default:
		return 0
	}
}

func play(ctx context.Context, dir string, o options, began time.Time) (wrong int, err error) {
	cells, rules, err := parseTable(expectations)
	if err != nil {
		return 0, fmt.Errorf("expect.txt: %w", err)
	}
	if o.soak > 0 {
		return runSoak(ctx, dir, cells, o, os.Stdout)
	}
	m := newMatrix(cells, rules, o)
	if o.list {
		m.list(os.Stdout)
		return 0, nil
	}
	m.run(ctx, dir)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return m.report(os.Stdout, time.Since(began)), nil
}

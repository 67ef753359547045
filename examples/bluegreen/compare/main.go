// Command compare measures what the clients of an HTTP server notice when it is
// replaced: the same server, under the same load, once with [http.Server.Shutdown] and
// once with [httphandoff.Server.Shutdown].
//
//	go run ./examples/bluegreen/compare              10 upgrades of each
//	go run ./examples/bluegreen/compare -soak 300    300 of httphandoff, one after another
//
// It exits with 1 if a request has failed with httphandoff.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	clients  int
	upgrades int
	soak     int
}

func main() {
	if mode, ok := os.LookupEnv(modeEnv); ok {
		if err := serve(mode, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "compare: server:", err)
			os.Exit(1)
		}
		return
	}
	var opts options
	flag.IntVar(&opts.clients, "clients", 64, "clients that keep their connection; each second one sends two requests at once")
	flag.IntVar(&opts.upgrades, "upgrades", 10, "how often to replace each server")
	flag.IntVar(&opts.soak, "soak", 0, "replace one server with httphandoff `n` times, as fast as it goes, and compare nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	dir, err := os.MkdirTemp("", "compare")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	modes := []string{modePlain, modeHandoff}
	pause := 2 * window
	if opts.soak > 0 {
		modes, opts.upgrades, pause = modes[1:], opts.soak, window/20
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "\tupgrades\trequests\tfailed\tper upgrade\tsent again\tdrain, median\tdrain, longest\t")
	var latencies []string
	failed := 0
	for _, mode := range modes {
		r, err := measure(ctx, mode, filepath.Join(dir, mode), opts, pause)
		if err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
		slices.Sort(r.drains)
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%.1f\t%d\t%v\t%v\t\n", mode, opts.upgrades, r.answered, len(r.failures),
			float64(len(r.failures))/float64(opts.upgrades), r.repeated, short(at(r.drains, 0.5)), short(at(r.drains, 1)))
		latencies = append(latencies,
			row(mode, "the second before", r.between(-3*window/2, -window/2)),
			row(mode, "the second around", r.between(-window/2, window/2)))
		for i, f := range r.failures {
			if mode == modeHandoff && i < 5 {
				fmt.Fprintln(os.Stderr, "compare:", f)
			}
		}
		if mode == modeHandoff {
			failed = len(r.failures)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if opts.soak == 0 {
		fmt.Println()
		fmt.Fprintln(table, "latency\t\trequests\tp50\tp99\tp99.9\tmax\t")
		for _, row := range latencies {
			fmt.Fprintln(table, row)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if failed > 0 {
		return errors.New("requests have failed with httphandoff")
	}
	return nil
}

// window is the second before and around an upgrade.
const window = time.Second

// result is what was measured in one mode.
type result struct {
	answered int
	repeated int
	answers  []answer
	failures []string
	upgrades []time.Time // when the successor said that it serves
	drains   []time.Duration
}

// measure replaces a server under load.
func measure(ctx context.Context, mode, socket string, opts options, pause time.Duration) (*result, error) {
	serving, err := start(mode, socket, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { serving.end() }()
	address := serving.address
	l := startLoad(address, opts.clients, opts.soak == 0)
	defer l.stop()
	r := new(result)
	for range opts.upgrades {
		if err := wait(ctx, pause); err != nil {
			return nil, err
		}
		next, err := start(mode, socket, address)
		if err != nil {
			return nil, err
		}
		r.upgrades = append(r.upgrades, time.Now())
		old := serving
		serving = next
		drain, err := old.drained()
		if err != nil {
			return nil, err
		}
		r.drains = append(r.drains, drain)
	}
	if err := wait(ctx, pause); err != nil {
		return nil, err
	}
	l.stop()
	l.sum(r)
	return r, nil
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// between returns the latencies of what was answered so long after an upgrade.
func (r *result) between(from, to time.Duration) []time.Duration {
	var found []time.Duration
	for _, a := range r.answers {
		for _, u := range r.upgrades {
			if after := a.at.Sub(u); after >= from && after < to {
				found = append(found, a.took)
				break
			}
		}
	}
	slices.Sort(found)
	return found
}

func row(mode, when string, latencies []time.Duration) string {
	return fmt.Sprintf("%s\t%s\t%d\t%v\t%v\t%v\t%v\t", mode, when, len(latencies),
		short(at(latencies, 0.5)), short(at(latencies, 0.99)), short(at(latencies, 0.999)), short(at(latencies, 1)))
}

// at returns a quantile of what is sorted.
func at(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// short rounds to about three digits.
func short(d time.Duration) time.Duration {
	unit := time.Microsecond
	for d >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit)
}

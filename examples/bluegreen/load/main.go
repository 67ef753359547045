// Command load makes a bounded number of requests to one address and reports the
// fate of each. Its clients retry nothing and hide nothing: some open a
// connection for each request, others keep theirs alive, and some of these send two
// requests at once. Only what was sent behind a request whose answer says that the
// server closes is sent again, as HTTP has it, and counted.
//
// It stops on SIGINT or SIGTERM, at -requests, or after -for, whichever comes
// first; requests under way are finished. The exit status is 0 if the report was
// written, whatever it says.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/examples/bluegreen"
)

type options struct {
	address  string
	fresh    int
	kept     int
	requests int
	last     time.Duration
	limit    time.Duration
	slow     time.Duration
	journal  string
	report   string
	tell     int
}

func main() {
	var opts options
	flag.StringVar(&opts.address, "address", "", "TCP `address` of the service")
	flag.IntVar(&opts.fresh, "new", 4, "clients that open a connection for each request")
	flag.IntVar(&opts.kept, "kept", 64, "clients that keep their connection alive, each second of which sends two requests at once")
	flag.IntVar(&opts.requests, "requests", 100_000, "stop after so many requests")
	flag.DurationVar(&opts.last, "for", time.Minute, "stop after so long")
	flag.DurationVar(&opts.limit, "limit", 10*time.Second, "how long a request may take")
	flag.DurationVar(&opts.slow, "slow", 100*time.Millisecond, "how long the slow requests ask the handler to take")
	flag.StringVar(&opts.journal, "journal", "", "the servers' journal, which tells what was in flight (a `file`)")
	flag.StringVar(&opts.report, "report", "", "`file` to write the report to")
	flag.IntVar(&opts.tell, "tell", 0, "print the pid of each server once it has answered so many requests, and when it gets new connections again after another has")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options) error {
	if opts.address == "" || opts.report == "" {
		return errors.New("-address and -report are needed")
	}
	ctx, cancel := context.WithTimeout(ctx, opts.last)
	defer cancel()
	outcomes, kept := runClients(ctx, opts)
	// The journal is read after the last request: by now it has all of them.
	journal, err := readJournal(opts.journal)
	if err != nil {
		return err
	}
	report := bluegreen.NewReport(opts.address, judge(outcomes, bluegreen.Begun(journal)))
	report.Kept = kept
	data, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return os.WriteFile(opts.report, data, 0o644)
}

// runClients runs all clients until they have stopped.
func runClients(ctx context.Context, opts options) ([]outcome, bluegreen.Kept) {
	shared := &shared{
		address: opts.address,
		limit:   opts.limit,
		slow:    opts.slow,
		left:    opts.requests,
		tell:    opts.tell,
		tally:   make(map[int]int),
	}
	clients := make([]*client, 0, opts.fresh+opts.kept)
	for n := range opts.fresh {
		clients = append(clients, &client{shared: shared, name: "new" + strconv.Itoa(n), fresh: true, atOnce: 1})
	}
	for n := range opts.kept {
		clients = append(clients, &client{shared: shared, name: "kept" + strconv.Itoa(n), atOnce: 1 + n%2})
	}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { c.run(ctx) })
	}
	wg.Wait()
	var all []outcome
	kept := bluegreen.Kept{Clients: opts.kept}
	for _, c := range clients {
		all = append(all, c.outcomes...)
		if !c.fresh {
			kept.Dialled += c.dialled
			kept.Repeated += c.repeated
		}
	}
	return all, kept
}

// judge completes the requests: only with the journal can it be said whether a
// request that failed had been in flight.
func judge(outcomes []outcome, begun map[string]bluegreen.Process) []bluegreen.Request {
	requests := make([]bluegreen.Request, len(outcomes))
	for i, o := range outcomes {
		if o.err != nil {
			server, ok := begun[o.ID]
			if ok {
				o.Server = server
			}
			o.Failure = bluegreen.Failure{Err: o.err, Used: o.used, Begun: ok}.Class()
			o.Error = o.err.Error()
		}
		requests[i] = o.Request
	}
	return requests
}

// readJournal returns an empty journal if there is none: then no handler began.
func readJournal(path string) ([]bluegreen.Entry, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return bluegreen.ReadJournal(f)
}

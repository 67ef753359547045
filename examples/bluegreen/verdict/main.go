// Command verdict says what the clients noticed while servers replaced one
// another. It prints a table from the report of the load generator and the
// journal of the servers. Its exit status is 1 if anything was noticed that must
// not be.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-go/crossfade/examples/bluegreen"
)

func main() {
	reportPath := flag.String("report", "", "the `file` that the load generator has written")
	journalPath := flag.String("journal", "", "the `file` that the servers have written")
	turns := flag.Int("servers", 0, "how many servers were meant to follow one another")
	flag.Parse()
	if err := run(os.Stdout, *reportPath, *journalPath, *turns); err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, reportPath, journalPath string, turns int) error {
	report, journal, err := read(reportPath, journalPath)
	if err != nil {
		return err
	}
	summary := bluegreen.Summarize(report, journal)
	if err := errors.Join(printTurns(w, summary), printTotals(w, summary), printErrors(w, report)); err != nil {
		return err
	}
	if problems := summary.Problems(turns); len(problems) > 0 {
		return errors.New(strings.Join(problems, "\nverdict: "))
	}
	return nil
}

func read(reportPath, journalPath string) (*bluegreen.Report, []bluegreen.Entry, error) {
	data, err := os.ReadFile(reportPath)
	if err != nil {
		return nil, nil, err
	}
	report := new(bluegreen.Report)
	if err := json.Unmarshal(data, report); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", reportPath, err)
	}
	f, err := os.Open(journalPath)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	journal, err := bluegreen.ReadJournal(f)
	return report, journal, err
}

// printTurns prints a row for each server.
func printTurns(w io.Writer, s *bluegreen.Summary) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "generation\tversion\tpid\tconnect to commit\tanswered\tfailed\tidle closed\tlongest wait\tmoved\tleft after\tserved before\tserved after\tfirst served")
	for i := range s.Turns {
		t := &s.Turns[i]
		handover, first := "-", "-"
		if t.Inherited {
			handover = short(t.Handover)
		}
		if t.After.PID != 0 {
			first = "commit" + signed(t.FirstServed)
		}
		fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%d\t%d\t%d\t%s\t%d\t%s\t%s\t%s\t%s\n",
			t.Generation, t.Version, t.PID, handover, t.Answered, t.Failed, t.Idle, short(t.LongestWait), t.Moved, short(t.Drain),
			name(t.Before), name(t.After), first)
	}
	return table.Flush()
}

// printTotals prints a line for each way in which a request can end.
func printTotals(w io.Writer, s *bluegreen.Summary) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table)
	for _, line := range []struct {
		what  string
		value any
	}{
		{"requests answered", s.Answered},
		{"connections refused", s.Failed[bluegreen.Refused]},
		{"new connections reset", s.Failed[bluegreen.Reset]},
		{"requests lost in flight", s.Failed[bluegreen.Lost]},
		{"other failures", s.Failed[bluegreen.Other]},
		{"idle connections closed under a request", s.Failed[bluegreen.Idle]},
		{"longest wait of any client", short(s.LongestWait)},
		{"clients that keep their connection", s.Kept.Clients},
		{"connections that these have opened", s.Kept.Dialled},
		{"requests sent again behind an answer that closes", s.Kept.Repeated},
	} {
		fmt.Fprintf(table, "%s\t%v\n", line.what, line.value)
	}
	return table.Flush()
}

// shownErrors is how many failures of a class are shown with their text.
const shownErrors = 3

// printErrors prints what the clients saw.
func printErrors(w io.Writer, report *bluegreen.Report) error {
	shown := make(map[bluegreen.Class]int)
	failed := slices.Clone(report.Requests)
	slices.SortStableFunc(failed, func(a, b bluegreen.Request) int { return a.Began.Compare(b.Began) })
	var b strings.Builder
	for i := range failed {
		r := &failed[i]
		if r.Failure == "" || shown[r.Failure] == shownErrors {
			continue
		}
		shown[r.Failure]++
		fmt.Fprintf(&b, "%s: request %s at %s: %s\n", r.Failure, r.ID, r.Began.Format("15:04:05.000"), r.Error)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func name(p bluegreen.Process) string {
	if p.PID == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%s)", p.Generation, p.Version)
}

// short prints a duration with about three digits.
func short(d time.Duration) string {
	unit := time.Microsecond
	for d.Abs() >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit).String()
}

func signed(d time.Duration) string {
	if d < 0 {
		return short(d)
	}
	return "+" + short(d)
}

package bluegreen_test

import (
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/examples/bluegreen"
	"github.com/crossfade-go/crossfade/examples/internal/trial"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/overlap"
)

func TestMain(m *testing.M) {
	overlap.Tests(8)
	leak.Main(m, trial.Clean)
}

func TestFailureClass(t *testing.T) {
	timeout := &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	for _, test := range []struct {
		name    string
		failure bluegreen.Failure
		want    bluegreen.Class
	}{
		{"nobody listens", bluegreen.Failure{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, bluegreen.Refused},
		{"reset during the handshake", bluegreen.Failure{Err: os.NewSyscallError("connect", syscall.ECONNRESET)}, bluegreen.Reset},
		{"new connection reset", bluegreen.Failure{Err: os.NewSyscallError("read", syscall.ECONNRESET)}, bluegreen.Reset},
		{"new connection closed", bluegreen.Failure{Err: io.ErrUnexpectedEOF}, bluegreen.Reset},
		{"new connection closed while writing", bluegreen.Failure{Err: os.NewSyscallError("write", syscall.EPIPE)}, bluegreen.Reset},
		{"used connection reset", bluegreen.Failure{Err: os.NewSyscallError("read", syscall.ECONNRESET), Used: true}, bluegreen.Idle},
		{"used connection closed", bluegreen.Failure{Err: io.ErrUnexpectedEOF, Used: true}, bluegreen.Idle},
		{"first request, in the handler", bluegreen.Failure{Err: io.ErrUnexpectedEOF, Begun: true}, bluegreen.Lost},
		{"later request, in the handler", bluegreen.Failure{Err: io.ErrUnexpectedEOF, Used: true, Begun: true}, bluegreen.Lost},
		{"no answer in time, in the handler", bluegreen.Failure{Err: timeout, Begun: true}, bluegreen.Lost},
		{"no answer in time", bluegreen.Failure{Err: timeout}, bluegreen.Other},
		{"no answer in time on a used connection", bluegreen.Failure{Err: timeout, Used: true}, bluegreen.Other},
		{"nonsense", bluegreen.Failure{Err: errors.New("status 500")}, bluegreen.Other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.failure.Class(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestReadJournal(t *testing.T) {
	for _, test := range []struct {
		name, journal string
		want          []string // events
		fails         bool
	}{
		{name: "empty"},
		{name: "whole lines", journal: `{"msg":"owns","pid":1}` + "\n" + `{"msg":"request began","id":"a","pid":1}` + "\n", want: []string{bluegreen.EventOwns, bluegreen.EventBegan}},
		{name: "last line under way", journal: `{"msg":"owns","pid":1}` + "\n" + `{"msg":"requ`, want: []string{bluegreen.EventOwns}},
		{name: "damaged", journal: `{"msg":"ow{"msg":` + "\n", fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			entries, err := bluegreen.ReadJournal(strings.NewReader(test.journal))
			if (err != nil) != test.fails {
				t.Fatalf("unexpected error %v", err)
			}
			var got []string
			for _, e := range entries {
				got = append(got, e.Event)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// history is a run in which 1 handed over to 2.
func history() (*bluegreen.Report, []bluegreen.Entry) {
	one := bluegreen.Process{PID: 11, Generation: 1, Version: "v1"}
	two := bluegreen.Process{PID: 22, Generation: 2, Version: "v2"}
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	entry := func(ms int, event string, p bluegreen.Process, id string) bluegreen.Entry {
		return bluegreen.Entry{Time: at(ms), Event: event, PID: p.PID, Generation: p.Generation, Version: p.Version, ID: id}
	}
	taken := entry(20, bluegreen.EventOwns, two, "")
	taken.Inherited, taken.Handover = true, 3*time.Millisecond
	journal := []bluegreen.Entry{
		entry(0, bluegreen.EventOwns, one, ""),
		entry(5, bluegreen.EventBegan, one, "a"),
		entry(19, bluegreen.EventBegan, one, "b"),
		taken,
		entry(21, bluegreen.EventBegan, one, "kept"),
		entry(24, bluegreen.EventBegan, two, "c"),
	}
	report := bluegreen.NewReport("127.0.0.1:80", []bluegreen.Request{
		{ID: "a", Fresh: true, Wait: time.Millisecond, Server: one},
		{ID: "b", Fresh: true, Wait: 2 * time.Millisecond, Server: one},
		{ID: "kept", Wait: 9 * time.Millisecond, Server: one},
		{ID: "idle", Server: one, Failure: bluegreen.Idle},
		{ID: "c", Fresh: true, Wait: 4 * time.Millisecond, Server: two},
	})
	return report, journal
}

func TestSummary(t *testing.T) {
	summary := bluegreen.Summarize(history())
	one := bluegreen.Process{PID: 11, Generation: 1, Version: "v1"}
	two := bluegreen.Process{PID: 22, Generation: 2, Version: "v2"}
	want := []bluegreen.Turn{
		{Process: one, Answered: 3, Idle: 1, LongestWait: 9 * time.Millisecond, After: one, FirstServed: 5 * time.Millisecond},
		{
			Process: two, Inherited: true, Handover: 3 * time.Millisecond, Answered: 1, LongestWait: 4 * time.Millisecond,
			Before: one, After: two, FirstServed: 4 * time.Millisecond,
		},
	}
	if !reflect.DeepEqual(summary.Turns, want) {
		t.Errorf("turns:\n got %+v\nwant %+v", summary.Turns, want)
	}
	if summary.LongestWait != 9*time.Millisecond || summary.Answered != 4 {
		t.Errorf("longest wait %v, %d answered; want 9ms and 4", summary.LongestWait, summary.Answered)
	}
}

func TestProblems(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*bluegreen.Report, []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry)
		want   string // part of the only problem; empty for none
	}{
		{"a connection closed under a request", nil, "1 requests were on their way"},
		{"none", answering, ""},
		{"refused", failing(bluegreen.Refused), "1 connections were refused"},
		{"reset", failing(bluegreen.Reset), "1 new connections were reset"},
		{"lost", failing(bluegreen.Lost), "1 requests were lost in flight"},
		{"other", failing(bluegreen.Other), "1 requests failed in another way"},
		{"a server that answered nothing", func(r *bluegreen.Report, j []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry) {
			return bluegreen.NewReport(r.Address, r.Requests[:3]), j
		}, "pid 22 answered nothing"},
		{"a fresh start", func(r *bluegreen.Report, j []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry) {
			j[3].Inherited = false
			return r, j
		}, "pid 22 took nothing over"},
		{"a server too many", func(r *bluegreen.Report, j []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry) {
			j = append(j, bluegreen.Entry{Event: bluegreen.EventOwns, PID: 33, Inherited: true})
			return bluegreen.NewReport(r.Address, append(r.Requests, bluegreen.Request{Server: bluegreen.Process{PID: 33}})), j
		}, "3 servers have owned the service, not 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			report, journal := history()
			if test.want != "" && test.change != nil {
				report, journal = answering(report, journal)
			}
			if test.change != nil {
				report, journal = test.change(report, journal)
			}
			problems := bluegreen.Summarize(report, journal).Problems(2)
			switch {
			case test.want == "" && len(problems) > 0:
				t.Errorf("unexpected: %q", problems)
			case test.want != "" && (len(problems) != 1 || !strings.Contains(problems[0], test.want)):
				t.Errorf("got %q, want only %q", problems, test.want)
			}
		})
	}
}

// answering leaves out the request that failed.
func answering(r *bluegreen.Report, j []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry) {
	return bluegreen.NewReport(r.Address, slices.DeleteFunc(r.Requests, func(r bluegreen.Request) bool { return r.Failure != "" })), j
}

// failing adds a request that failed.
func failing(class bluegreen.Class) func(*bluegreen.Report, []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry) {
	return func(r *bluegreen.Report, j []bluegreen.Entry) (*bluegreen.Report, []bluegreen.Entry) {
		return bluegreen.NewReport(r.Address, append(r.Requests, bluegreen.Request{ID: "x", Failure: class})), j
	}
}

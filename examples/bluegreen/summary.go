package bluegreen

import (
	"fmt"
	"slices"
	"time"
)

// Summary is what a report and a journal say together.
type Summary struct {
	Turns       []Turn // in the order in which they owned
	Answered    int
	Failed      map[Class]int
	Kept        Kept
	LongestWait time.Duration
}

// Turn is the time of one server.
type Turn struct {
	Process
	Inherited   bool          // it took over from a predecessor
	Handover    time.Duration // from connect to commit; 0 if it took nothing over
	Answered    int
	Failed      int // all failures but those of class Idle
	Idle        int
	Moved       int           // connections that its successor has taken
	Drain       time.Duration // from being told to leave to its end; 0 if it did not say
	LongestWait time.Duration

	// Before is who began the last request on a new connection before this one
	// began its first, and After is who began that. FirstServed is when it did,
	// counted from the commit as this server noticed it, so it may be negative.
	// Both are nobody, and FirstServed is 0, if it never began any.
	Before, After Process
	FirstServed   time.Duration
}

// Summarize puts a report and a journal together.
func Summarize(report *Report, journal []Entry) *Summary {
	s := &Summary{Answered: report.Answered, Failed: report.Failed, Kept: report.Kept}
	begun := freshlyBegun(report, journal)
	index := make(map[int]int) // pid to turn
	for i := range journal {
		switch e := &journal[i]; e.Event {
		case EventOwns:
			index[e.PID] = len(s.Turns)
			s.Turns = append(s.Turns, newTurn(e, begun))
		case EventLeaves:
			if n, ok := index[e.PID]; ok {
				s.Turns[n].Drain, s.Turns[n].Moved = e.Drain, e.Moved
			}
		}
	}
	for i := range report.Requests {
		r := &report.Requests[i]
		s.LongestWait = max(s.LongestWait, r.Wait)
		if n, ok := index[r.Server.PID]; ok {
			s.Turns[n].count(r)
		}
	}
	return s
}

// newTurn returns the turn that begins with the entry owns. begun are the
// requests on new connections in the order in which handlers began them.
func newTurn(owns *Entry, begun []Entry) Turn {
	t := Turn{Process: owns.Process(), Inherited: owns.Inherited, Handover: owns.Handover}
	first := slices.IndexFunc(begun, func(e Entry) bool { return e.PID == owns.PID })
	if first < 0 {
		return t
	}
	t.After = begun[first].Process()
	t.FirstServed = begun[first].Time.Sub(owns.Time)
	if first > 0 {
		t.Before = begun[first-1].Process()
	}
	return t
}

// freshlyBegun returns the entries for the begin of requests on new connections,
// by time. Only they tell who accepts: a connection that is kept alive stays with
// the server that has it until that one drains.
func freshlyBegun(report *Report, journal []Entry) []Entry {
	fresh := make(map[string]bool)
	for i := range report.Requests {
		fresh[report.Requests[i].ID] = report.Requests[i].Fresh
	}
	var begun []Entry
	for _, e := range journal {
		if e.Event == EventBegan && fresh[e.ID] {
			begun = append(begun, e)
		}
	}
	slices.SortStableFunc(begun, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	return begun
}

func (t *Turn) count(r *Request) {
	t.LongestWait = max(t.LongestWait, r.Wait)
	switch r.Failure {
	case "":
		t.Answered++
	case Idle:
		t.Idle++
	default:
		t.Failed++
	}
}

// Problems returns what is wrong with a run in which turns servers were meant to
// follow one another, one sentence each.
func (s *Summary) Problems(turns int) []string {
	var problems []string
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if len(s.Turns) != turns {
		report("%d servers have owned the service, not %d", len(s.Turns), turns)
	}
	for i := range s.Turns {
		t := &s.Turns[i]
		if i > 0 && !t.Inherited {
			report("pid %d took nothing over, it started afresh", t.PID)
		}
		if t.Answered == 0 {
			report("pid %d answered nothing", t.PID)
		}
	}
	for _, c := range []struct {
		class Class
		what  string
	}{
		{Refused, "connections were refused"},
		{Reset, "new connections were reset"},
		{Lost, "requests were lost in flight"},
		{Idle, "requests were on their way when their connection was closed"},
		{Other, "requests failed in another way"},
	} {
		if n := s.Failed[c.class]; n > 0 {
			report("%d %s", n, c.what)
		}
	}
	return problems
}

package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is how processes and their states look: as JSON, whose fields
// docs/tool.md explains, and for people.

// object is a value of the tool's JSON.
type object = map[string]any

// process is a process as JSON has it: null for nobody.
func process(p *crossfade.Process) any {
	if p == nil {
		return nil
	}
	return processObject(*p)
}

func processObject(p crossfade.Process) object {
	return object{"generation": p.Generation, "instance": p.Instance, "version": p.BuildVersion, "pid": p.PID}
}

// statusObject is what JSON has of a status. nil is nobody's: then it has the same
// fields, and says nothing in them.
func statusObject(s *crossfade.Status) object {
	if s == nil {
		s = new(crossfade.Status)
	}
	o := object{
		"owner": nil, "attempt": attemptObject(s.Attempt), "probation": probationObject(s.Probation), "last_failure": failureObject(s.LastFailure),
	}
	if s.State != 0 {
		owner := processObject(s.Process)
		owner["state"], owner["since"], owner["ready"] = s.State.String(), instant(s.Since), s.Ready
		o["owner"] = owner
	}
	descriptors := make([]object, 0, len(s.Descriptors))
	for _, d := range s.Descriptors {
		descriptors = append(descriptors, object{
			"name": d.Name, "kind": d.Kind.String(), "network": d.Network, "address": d.Address, "origin": d.Origin.String(),
		})
	}
	draining := make([]object, 0, len(s.Draining))
	for _, g := range s.Draining {
		draining = append(draining, generationObject(g))
	}
	o["descriptors"], o["draining"], o["warnings"] = descriptors, draining, append([]string{}, s.Warnings...)
	return o
}

func generationObject(g crossfade.Generation) object {
	o := processObject(g.Process)
	o["state"], o["since"], o["deadline"], o["connections"] = g.State.String(), instant(g.Since), instant(g.Deadline), nil
	if g.Connections >= 0 {
		o["connections"] = g.Connections
	}
	return o
}

func attemptObject(a *crossfade.Attempt) any {
	if a == nil {
		return nil
	}
	return object{
		"successor": processObject(a.Successor), "step": a.Step, "status": a.Status,
		"since": instant(a.Began), "deadline": instant(a.Deadline),
	}
}

func probationObject(p *crossfade.Probation) any {
	if p == nil {
		return nil
	}
	return object{"predecessor": processObject(p.Predecessor), "until": instant(p.Until), "at_end": p.AtEnd.String()}
}

func failureObject(f *crossfade.Failure) any {
	if f == nil {
		return nil
	}
	return object{"successor": processObject(f.Successor), "step": f.Step, "reason": f.Reason, "at": instant(f.At)}
}

// instant is a point in time as JSON has it: null for none.
func instant(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// name is a process in a sentence. Its instance is left out: it is long, and
// generation and pid say the same.
func name(p crossfade.Process) string {
	var words []string
	if p.BuildVersion != "" {
		words = append(words, "version "+p.BuildVersion)
	}
	if p.PID != 0 {
		words = append(words, fmt.Sprintf("pid %d", p.PID))
	}
	s := fmt.Sprintf("generation %d", p.Generation)
	if p.Generation == 0 {
		s = "a new process"
	}
	if len(words) > 0 {
		s += " (" + strings.Join(words, ", ") + ")"
	}
	return s
}

// renderStatus is a status for people, as of now.
func renderStatus(s *crossfade.Status, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }

	row("owner", name(s.Process))
	row("instance", s.Process.Instance)
	state := s.State.String()
	if !s.Ready {
		state += ", not ready yet"
	}
	row("state", fmt.Sprintf("%s, for %s, since %s", state, span(now.Sub(s.Since)), clock(s.Since)))
	if p := s.Probation; p != nil {
		end := "then it stays"
		if p.AtEnd == crossfade.RollbackAtEnd {
			end = "then it is rolled back"
		}
		row("probation", fmt.Sprintf("%s, %s; %s can take the service back", until(p.Until, now), end, name(p.Predecessor)))
	}
	if a := s.Attempt; a != nil {
		text := fmt.Sprintf("%s, for %s, at %s", name(a.Successor), span(now.Sub(a.Began)), a.Step)
		if a.Status != "" {
			text += fmt.Sprintf(" (%s)", a.Status)
		}
		if !a.Deadline.IsZero() {
			text += ", " + until(a.Deadline, now)
		}
		row("attempt", text)
	}
	if f := s.LastFailure; f != nil {
		reason := f.Reason
		if !strings.Contains(reason, f.Step) {
			reason = "at " + f.Step + ": " + reason
		}
		row("last failure", fmt.Sprintf("%s ago, at %s, %s: %s", span(now.Sub(f.At)), clock(f.At), name(f.Successor), reason))
	}
	for _, warning := range s.Warnings {
		row("warning", warning)
	}
	w.Flush()
	renderGenerations(&b, s.Draining, now)
	renderDescriptors(&b, s)
	return b.String()
}

func renderGenerations(b *strings.Builder, generations []crossfade.Generation, now time.Time) {
	if len(generations) == 0 {
		return
	}
	fmt.Fprint(b, "\n")
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "DRAINING\tVERSION\tPID\tSTATE\tFOR\tCONNECTIONS\tENDS\n")
	for _, g := range generations {
		connections, ends := "-", "no limit"
		if g.Connections >= 0 {
			connections = fmt.Sprint(g.Connections)
		}
		switch {
		case g.Limit > 0:
			ends = "at most " + span(g.Limit) + " after it has retired"
		case !g.Deadline.IsZero():
			ends = until(g.Deadline, now)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%v\t%s\t%s\t%s\n", g.Process.Generation, dash(g.Process.BuildVersion), number(g.Process.PID),
			g.State, span(now.Sub(g.Since)), connections, ends)
	}
	w.Flush()
}

func renderDescriptors(b *strings.Builder, s *crossfade.Status) {
	if len(s.Descriptors) == 0 {
		return
	}
	fmt.Fprint(b, "\n")
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "DESCRIPTOR\tKIND\tNETWORK\tADDRESS\tORIGIN\n")
	for _, d := range s.Descriptors {
		fmt.Fprintf(w, "%s\t%v\t%s\t%s\t%v\n", d.Name, d.Kind, dash(d.Network), dash(d.Address), d.Origin)
	}
	w.Flush()
}

// clock is a point in time, as people get it everywhere.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// until is what is left of a limit.
func until(t, now time.Time) string {
	left := t.Sub(now)
	if left < 0 {
		return "over for " + span(-left)
	}
	return span(left) + " left"
}

// span is a duration that people read: in seconds, or below one as it is.
func span(d time.Duration) string {
	if d = max(d, 0); d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return shortDuration(d.Round(time.Second).String())
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func number(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

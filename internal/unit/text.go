package unit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/crossfade-go/crossfade/handoff"
)

// Standing is how a process stands, as far as STATUS= tells it.
type Standing struct {
	Process     handoff.Process
	State       handoff.State
	Ready       bool
	Attempt     *handoff.Attempt
	Probation   *handoff.Probation
	LastFailure *handoff.Failure
	Predecessor *handoff.Process // nil in a first process
	Err         error            // why the process is out, nil before it is
}

// textLocked is what an operator reads in systemctl status: one sentence.
func (m *Member) textLocked(s *Standing) string {
	switch s.State {
	case handoff.StateCandidate:
		return m.initialising("taking over from " + describe(*s.Predecessor))
	case handoff.StateHeir:
		return m.initialising("the predecessor has died: taking its place")
	case handoff.StateOwner:
		if !s.Ready {
			return m.initialising("starting")
		}
		return m.failed(s) + serving(s)
	case handoff.StateOffering, handoff.StateCommitting:
		return offering(s)
	case handoff.StateStandby:
		return "waiting for " + successor(s) + " to confirm that it serves: standing by"
	case handoff.StateProbation:
		if a := s.Attempt; a != nil && !a.Deadline.IsZero() {
			return fmt.Sprintf("%s serves on probation until %s: standing by", successor(s), clock(a.Deadline))
		}
		return successor(s) + " serves: standing by until it settles"
	case handoff.StateYielding:
		return "giving the service back to the predecessor"
	default:
		return m.leaving(s)
	}
}

func (m *Member) initialising(what string) string {
	if m.progress != "" {
		return what + ": " + m.progress
	}
	return what
}

func serving(s *Standing) string {
	text := "serving, generation " + strconv.FormatUint(s.Process.Generation, 10)
	if s.Process.BuildVersion != "" {
		text += ", " + s.Process.BuildVersion
	}
	if s.Probation != nil {
		text += ", on probation until " + clock(s.Probation.Until)
	}
	return text
}

// failed begins the text of an owner whose last attempt to be replaced has failed.
func (m *Member) failed(s *Standing) string {
	switch f := s.LastFailure; {
	case m.failure != "":
		return "upgrade failed: " + short(m.failure) + "; "
	case f == nil:
		return ""
	case errors.Is(f.Err, handoff.ErrRolledBack):
		reason := f.Reason
		if _, said, ok := strings.Cut(reason, "rolled back: "); ok { // what it says of itself
			reason = said
		}
		return describe(f.Successor) + " rolled back: " + short(reason) + "; "
	default:
		return "handoff to " + describe(f.Successor) + " failed: " + short(f.Reason) + "; "
	}
}

func offering(s *Standing) string {
	switch a := s.Attempt; {
	case a == nil || a.Successor.Instance == "": // it was started, and has not said a word
		return "handing over to a new process"
	case a.Status != "":
		return "handing over to " + successor(s) + ": " + a.Status
	default:
		return "handing over to " + successor(s)
	}
}

// leaving is the text of a process that is out, or drains.
func (m *Member) leaving(s *Standing) string {
	var text string
	switch {
	case m.stopping:
		text = "stopping"
	case m.successor != nil:
		text = "replaced by " + describe(m.successor.Process)
	case errors.Is(s.Err, handoff.ErrRolledBack):
		text = "rolled back"
	case s.Err != nil:
		text = "has not taken over: " + short(s.Err.Error())
	default:
		text = "leaving"
	}
	switch {
	case m.parked:
		return text + "; parked until it is stopped"
	case m.connections > 0:
		text += fmt.Sprintf(": draining, %d connections left", m.connections)
		if m.connections == 1 {
			text = text[:len(text)-len("s left")] + " left"
		}
		if !m.drainEnds.IsZero() {
			text += ", at most until " + clock(m.drainEnds)
		}
	}
	return text
}

func successor(s *Standing) string {
	if s.Attempt == nil {
		return "the successor"
	}
	return describe(s.Attempt.Successor)
}

// describe names a process as an operator knows it.
func describe(p handoff.Process) string {
	text := clip(p.BuildVersion, 100)
	switch {
	case text != "":
	case p.Generation != 0:
		text = "generation " + strconv.FormatUint(p.Generation, 10)
	default:
		text = "a process"
	}
	if p.PID != 0 {
		text += " (pid " + strconv.Itoa(p.PID) + ")"
	}
	return text
}

// longest is how much of a reason there is room for beside the rest.
const longest = 600

func short(reason string) string { return clip(reason, longest) }

func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most] + "…"
}

func clock(t time.Time) string { return t.Format(time.TimeOnly) }

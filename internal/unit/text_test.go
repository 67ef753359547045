package unit_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/unit"
)

// An operator reads one sentence, whatever state the process is in.
func TestStatusText(t *testing.T) {
	self := handoff.Process{Instance: "a", BuildVersion: "v1.4.2", Generation: 3, PID: 41}
	other := handoff.Process{Instance: "b", BuildVersion: "v1.5.0", Generation: 4, PID: 4242}
	at := time.Date(2026, 1, 2, 12, 3, 4, 0, time.Local)
	attempt := &handoff.Attempt{Successor: other}
	for want, s := range map[string]*unit.Standing{
		"starting":                                               {State: handoff.StateOwner},
		"taking over from v1.4.2 (pid 41)":                       {State: handoff.StateCandidate, Predecessor: &self},
		"the predecessor has died: taking its place":             {State: handoff.StateHeir},
		"serving, generation 3, v1.4.2":                          {State: handoff.StateOwner, Ready: true},
		"handing over to a new process":                          {State: handoff.StateOffering, Attempt: new(handoff.Attempt)},
		"handing over to v1.5.0 (pid 4242)":                      {State: handoff.StateCommitting, Attempt: attempt},
		"giving the service back to the predecessor":             {State: handoff.StateYielding},
		"rolled back":                                            {State: handoff.StateOut, Err: fmt.Errorf("%w: it is slow", handoff.ErrRolledBack)},
		"has not taken over: the other side has gone":            {State: handoff.StateOut, Err: errors.New("the other side has gone")},
		"v1.5.0 (pid 4242) serves: standing by until it settles": {State: handoff.StateProbation, Attempt: attempt},
		"serving, generation 3, v1.4.2, on probation until 12:03:04": {
			State: handoff.StateOwner, Ready: true, Probation: &handoff.Probation{Until: at},
		},
		"handing over to v1.5.0 (pid 4242): loading caches": {
			State: handoff.StateOffering, Attempt: &handoff.Attempt{Successor: other, Status: "loading caches"},
		},
		"v1.5.0 (pid 4242) serves on probation until 12:03:04: standing by": {
			State: handoff.StateProbation, Attempt: &handoff.Attempt{Successor: other, Deadline: at},
		},
		"waiting for v1.5.0 (pid 4242) to confirm that it serves: standing by": {State: handoff.StateStandby, Attempt: attempt},
		"handoff to v1.5.0 (pid 4242) failed: no Ready within 1m0s; serving, generation 3, v1.4.2": {
			State: handoff.StateOwner, Ready: true, LastFailure: &handoff.Failure{Successor: other, Reason: "no Ready within 1m0s"},
		},
		"v1.5.0 (pid 4242) rolled back: it is slow; serving, generation 3, v1.4.2": {
			State: handoff.StateOwner, Ready: true, LastFailure: &handoff.Failure{
				Successor: other, Err: handoff.ErrRolledBack, Reason: "predecessor, at Settle: the successor rolled back: it is slow",
			},
		},
	} {
		s.Process = self
		if got := unit.Text(s); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// What a peer says does not push the rest out of sight.
func TestStatusTextIsBounded(t *testing.T) {
	long := strings.Repeat("ä", 5000)
	got := unit.Text(&unit.Standing{
		State: handoff.StateOwner, Ready: true, Process: handoff.Process{Generation: 3},
		LastFailure: &handoff.Failure{Successor: handoff.Process{BuildVersion: long}, Reason: long},
	})
	if len(got) > 1000 || !strings.HasSuffix(got, "ä…; serving, generation 3") {
		t.Errorf("%d bytes, which end in %q", len(got), got[len(got)-40:])
	}
}

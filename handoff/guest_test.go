package handoff_test

import (
	"slices"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// TestWhoHasToLeave: which connection is closed when one more comes than there is room
// for. The guests of each case come in this order, the last is the newcomer.
func TestWhoHasToLeave(t *testing.T) {
	peer := func(uid uint32, pid int) *scm.Peer { return &scm.Peer{UID: uid, PID: pid} }
	type guest = handoff.Guest
	app, other, third := peer(1, 10), peer(1, 11), peer(2, 20)
	readers := func(n int) (list []guest) { // of as many processes
		for i := range n {
			list = append(list, guest{Peer: peer(third.UID, 1000+i), Part: handoff.Informed})
		}
		return list
	}
	for _, tt := range []struct {
		name   string
		guests []guest
		want   int // -1: nobody
	}{
		{"the oldest of equals", []guest{{Peer: app}, {Peer: app}, {Peer: app}}, 0},
		{"of the user with the most", []guest{{Peer: third}, {Peer: app}, {Peer: other}, {Peer: app}}, 1},
		{"of the process with the most", []guest{{Peer: other}, {Peer: app}, {Peer: app}, {Peer: third}}, 1},
		{"who has said nothing before who waits", []guest{{Peer: app, Part: handoff.Waiting}, {Peer: app}, {Peer: app}}, 1},
		{"who has said nothing, though its process has fewer", []guest{{Peer: app, Part: handoff.Waiting}, {Peer: app, Part: handoff.Waiting}, {Peer: other}}, 2},
		{"of a process with more than its share, whatever it does", append(slices.Repeat([]guest{{Peer: app, Part: handoff.Waiting}}, handoff.MaxShare+1), guest{Peer: other}), 0},
		{"not of one that has its share", append(slices.Repeat([]guest{{Peer: app, Part: handoff.Waiting}}, handoff.MaxShare), guest{Peer: other}), handoff.MaxShare},
		{"of a process with more than its share also who reads", append([]guest{{Peer: other, Part: handoff.Informed}}, slices.Repeat([]guest{{Peer: app, Part: handoff.Informed}}, handoff.MaxShare+1)...), 1},
		{"who waits before who does not read", []guest{{Peer: app, Part: handoff.Informed, Stalled: time.Minute}, {Peer: app, Part: handoff.Waiting}}, 1},
		{"who does not read", []guest{{Peer: app, Part: handoff.Served}, {Peer: app, Part: handoff.Informed}, {Peer: app, Part: handoff.Informed, Stalled: time.Minute}}, 2},
		{"never who reads, or has something done", []guest{{Peer: app, Part: handoff.Served}, {Peer: app, Part: handoff.Informed}}, -1},
		{"the newcomer of a user who has the room already", []guest{{Peer: third}, {Peer: app, Part: handoff.Served}, {Peer: app, Part: handoff.Served}, {Peer: app}}, 3},
		{"of a user with more than half of the room also who reads, for another user", append(readers(handoff.MaxUserShare+1), guest{Peer: other}), 0},
		{"not for one of its own", append(readers(handoff.MaxUserShare+1), guest{Peer: third}), handoff.MaxUserShare + 1},
		{"not of a user with half of it", append(readers(handoff.MaxUserShare), guest{Peer: other}), handoff.MaxUserShare},
		{"not who is leaving", []guest{{Peer: app, Leaving: true}, {Peer: app}, {Peer: app}}, 1},
		{"one that nobody knows", []guest{{}, {}, {Peer: app}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := handoff.FirstToLeave(tt.guests); got != tt.want {
				t.Errorf("it is number %d, want %d", got, tt.want)
			}
		})
	}
}

// TestAFloodHidesNobody: while one user fills the log's share, a line about another is
// still written, but not one about each of many.
func TestAFloodHidesNobody(t *testing.T) {
	const flooder = 1
	var n handoff.Noise
	now := time.Now()
	lines := func(uid int64, times int) (written int) {
		for range times {
			if n.Admit(now, uid) {
				written++
			}
		}
		return written
	}
	if got := lines(flooder, 1000); got != handoff.NoiseBurst {
		t.Errorf("%d lines about a flood", got)
	}
	if got := lines(2, 10); got != 1 {
		t.Errorf("%d lines about somebody else", got)
	}
	many := 0
	for uid := range int64(1000) {
		many += lines(100+uid, 1)
	}
	if many != handoff.NoiseUsers-2 {
		t.Errorf("%d lines about 1000 users", many)
	}
	now = now.Add(handoff.NoiseInterval)
	if got := lines(2, 10); got != 1 {
		t.Errorf("%d lines about somebody else after a pause", got)
	}
}

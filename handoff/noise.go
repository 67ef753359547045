package handoff

import (
	"log/slog"
	"maps"
	"sync"
	"time"
)

// Of what anybody can bring about at any rate, by connecting, the log gets so many
// lines at once, and one more after each interval. A user of whom there was no line for
// an interval gets one all the same, so that a flood does not hide why somebody else was
// refused: only the log tells that.
const (
	noiseBurst    = 10
	noiseInterval = 10 * time.Second
	noiseUsers    = 32 // who are told apart; a user namespace gives one person thousands
)

// noise writes lines about strangers to a log that they must not be able to fill.
type noise struct {
	mu      sync.Mutex
	room    int                 // lines that may be written now
	since   time.Time           // when room was counted; zero at first
	heard   map[int64]time.Time // when a user had a line last, of noiseUsers in the last interval
	leftOut int                 // lines that were not written since the last that was
}

// warn is [slog.Logger.Warn] about somebody of a user, or nothing. The next line says
// how many were left out.
func (n *noise) warn(log *slog.Logger, uid int64, msg string, args ...any) {
	leftOut, ok := n.admit(time.Now(), uid)
	if !ok {
		return
	}
	if leftOut > 0 {
		args = append(args, "left_out", leftOut)
	}
	log.Warn(msg, args...)
}

func (n *noise) admit(now time.Time, uid int64) (leftOut int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch earned := int(now.Sub(n.since) / noiseInterval); {
	case n.since.IsZero() || n.room+earned >= noiseBurst:
		n.room, n.since = noiseBurst, now
	case earned > 0:
		n.room += earned
		n.since = n.since.Add(time.Duration(earned) * noiseInterval)
	}
	maps.DeleteFunc(n.heard, func(_ int64, at time.Time) bool { return now.Sub(at) >= noiseInterval })
	_, heard := n.heard[uid]
	if n.room == 0 && (heard || len(n.heard) >= noiseUsers) {
		n.leftOut++
		return 0, false
	}
	n.room = max(0, n.room-1)
	if len(n.heard) < noiseUsers {
		if n.heard == nil {
			n.heard = make(map[int64]time.Time)
		}
		n.heard[uid] = now
	}
	leftOut, n.leftOut = n.leftOut, 0
	return leftOut, true
}

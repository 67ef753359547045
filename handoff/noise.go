package handoff

import (
	"log/slog"
	"sync"
	"time"
)

// Of what anybody can bring about at any rate, by connecting, the log gets so many
// lines at once, and one more after each interval.
const (
	noiseBurst    = 10
	noiseInterval = 10 * time.Second
)

// noise writes lines about strangers to a log that they must not be able to fill.
type noise struct {
	mu      sync.Mutex
	room    int       // lines that may be written now
	since   time.Time // when room was counted; zero at first
	leftOut int       // lines that were not written since the last that was
}

// warn is [slog.Logger.Warn], or nothing. The next line says how many were left out.
func (n *noise) warn(log *slog.Logger, msg string, args ...any) {
	leftOut, ok := n.admit(time.Now())
	if !ok {
		return
	}
	if leftOut > 0 {
		args = append(args, "left_out", leftOut)
	}
	log.Warn(msg, args...)
}

func (n *noise) admit(now time.Time) (leftOut int, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch earned := int(now.Sub(n.since) / noiseInterval); {
	case n.since.IsZero() || n.room+earned >= noiseBurst:
		n.room, n.since = noiseBurst, now
	case earned > 0:
		n.room += earned
		n.since = n.since.Add(time.Duration(earned) * noiseInterval)
	}
	if n.room == 0 {
		n.leftOut++
		return 0, false
	}
	n.room--
	leftOut, n.leftOut = n.leftOut, 0
	return leftOut, true
}

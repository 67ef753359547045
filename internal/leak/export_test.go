package leak

import "time"

// SetGrace shortens the wait, for leaks that are meant.
func SetGrace(d time.Duration) { grace = d }

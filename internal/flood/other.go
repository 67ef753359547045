//go:build !linux

package flood

// Main is no process here.
func Main([]string) int { return 2 }

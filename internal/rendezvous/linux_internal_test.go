//go:build linux

package rendezvous

// Parsers of /proc.
var (
	FindHolder = findHolder
	ParseUmask = parseUmask
)

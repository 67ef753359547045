package tableflip

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The kinds in names. They are part of what old and new processes agree on:
// changing one makes a successor miss what its predecessor hands over.
const (
	kindListener = "listener"
	kindPacket   = "packet"
	kindConn     = "conn"
	kindFile     = "fd"
)

// maxName is the longest name that package crossfade takes, in bytes.
const maxName = 200

// nameOf is the name of a descriptor in the registry. A file's name stands in
// the place of the network and it has no address.
func nameOf(kind, network, addr string) string {
	name := kind + ":" + network + ":" + addr
	if kind != kindFile && strings.Contains(network, ":") || !plain(name) {
		// A plain name has a colon after its kind, so that the two never meet.
		return fmt.Sprintf("%s#%x", kind, sha256.Sum256(fmt.Appendf(nil, "%q %q", network, addr)))
	}
	return name
}

// isFile reports whether a name in the registry is a file's.
func isFile(name string) bool {
	return strings.HasPrefix(name, kindFile+":") || strings.HasPrefix(name, kindFile+"#")
}

// plain reports whether package crossfade takes the name.
func plain(name string) bool {
	return len(name) <= maxName && utf8.ValidString(name) &&
		strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

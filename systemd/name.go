package systemd

import (
	"errors"
	"fmt"
	"strings"
)

// maxName is the most bytes of an FDNAME, sd_notify(3).
const maxName = 255

// ErrName says that the manager can store nothing under a name: it is empty, or
// has more than 255 bytes when it is escaped.
var ErrName = errors.New("the manager can store no descriptor under this name")

const upperHex = "0123456789ABCDEF"

// plain reports whether a byte of a name is itself in its escaped form: a
// character that an FDNAME may have, but for the one that escapes begin with.
func plain(c byte) bool { return c >= ' ' && c < 0x7f && c != ':' && c != '%' }

// escapeName makes an FDNAME of a name.
func escapeName(name string) (string, error) {
	var b strings.Builder
	for _, c := range []byte(name) {
		if plain(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&15])
	}
	switch {
	case name == "":
		return "", fmt.Errorf("%w: it is empty", ErrName)
	case b.Len() > maxName:
		return "", fmt.Errorf("%w: %q takes %d bytes when escaped, the limit is %d", ErrName, name, b.Len(), maxName)
	}
	return b.String(), nil
}

// unescapeName undoes escapeName. What escapeName does not produce, because
// somebody else has chosen the name, is itself.
func unescapeName(escaped string) string {
	var b strings.Builder
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		if c != '%' {
			if !plain(c) {
				return escaped
			}
			b.WriteByte(c)
			continue
		}
		if len(escaped)-i < 3 {
			return escaped
		}
		high := strings.IndexByte(upperHex, escaped[i+1])
		low := strings.IndexByte(upperHex, escaped[i+2])
		if high < 0 || low < 0 || plain(byte(high<<4|low)) {
			return escaped
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String()
}

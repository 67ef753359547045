package httphandoff

import (
	"bufio"
	"net"
)

// Unread returns what was read from a connection that was hijacked, and not used: what
// r has buffered, and what had come along with the connection and nobody has read yet.
// It is what [crossfade.HandOver] must carry if the program hands the connection over.
// Both are as they were, for the case that the successor does not take it. Nobody may
// read meanwhile.
func Unread(c net.Conn, r *bufio.Reader) []byte {
	buffered, _ := r.Peek(r.Buffered())
	unread := append([]byte(nil), buffered...)
	if own, ok := c.(*Conn); ok {
		own.mu.Lock()
		defer own.mu.Unlock()
		unread = append(unread, own.unread...)
	}
	return unread
}

package httphandoff

import "net/http"

// Upgrader is what a test can put between a Server and its Upgrader.
type Upgrader = upgrader

// NewBehind is New with another Upgrader.
func NewBehind(upg Upgrader, srv *http.Server, name string) *Server {
	return newServer(upg, srv, name)
}

// MaxMoving is how many connections may be on their way.
const MaxMoving = maxMoving

// BufferSize is the size that the server's read buffer is taken to have.
var BufferSize = bufferSize

// HasRead reports whether the server has read something since the last state.
func HasRead(c *Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observer.delivered
}

// AllTold reports whether Shutdown has told all connections that can move to do so.
func AllTold(s *Server) bool {
	told := s.planned() != stay
	s.conns.Range(func(c, _ any) bool {
		if own, ok := c.(*Conn); ok && s.planned() == move {
			own.mu.Lock()
			told = told && own.wanted
			own.mu.Unlock()
		}
		return told
	})
	return told
}

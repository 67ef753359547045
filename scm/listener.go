package scm

import (
	"fmt"
	"net"
)

// Listener accepts connections on a listening AF_UNIX stream socket. All
// methods may be called concurrently.
type Listener struct {
	unix *net.UnixListener
}

// NewListener makes a Listener on a duplicate of fd, which stays the caller's
// and must be listening. O_NONBLOCK is set on the open file description.
func NewListener(fd *FD) (*Listener, error) {
	id, err := fd.Identify()
	if err != nil {
		return nil, err
	}
	if id.Network != "unix" {
		return nil, fmt.Errorf("descriptor is no listening unix stream socket but %s", id)
	}
	ln, err := fd.Listener()
	if err != nil {
		return nil, err
	}
	return &Listener{unix: ln.(*net.UnixListener)}, nil
}

// Accept waits for the next connection, which the caller then owns. It retries
// nothing: EMFILE and the like are returned. After Close the error matches
// [net.ErrClosed].
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.unix.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return NewConn(c)
}

// Close ends a pending Accept and closes the duplicate. Nothing is unlinked, and
// the socket goes on listening for whoever else holds it. A connection that the
// kernel has already given to a concurrent Accept is delivered.
func (l *Listener) Close() error { return l.unix.Close() }

package scm

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
)

// Listener accepts connections on a listening AF_UNIX stream socket. All
// methods may be called concurrently.
type Listener struct {
	unix *net.UnixListener

	mu     sync.Mutex
	want   int
	spares []*FD
	closed bool
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

// Spare keeps n places of the descriptor table for connections: when the table is full
// (RLIMIT_NOFILE) Accept gives one of them up for each connection that it accepts.
// [Listener.Refill] takes them back.
func (l *Listener) Spare(n int) {
	l.mu.Lock()
	l.want = n
	l.mu.Unlock()
	l.Refill()
}

// Refill takes the places back that Accept has given up, as far as there are any. It is
// to be called at once when such a connection has been closed, before others use
// the place up.
func (l *Listener) Refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed && len(l.spares) < l.want {
		num, err := newSocket(syscall.SOCK_STREAM) // anything that takes a place
		if err != nil {
			return
		}
		l.spares = append(l.spares, &FD{num: num})
	}
}

// giveUp makes room for one descriptor, and reports whether it could.
func (l *Listener) giveUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.spares) == 0 {
		return false
	}
	last := len(l.spares) - 1
	_ = l.spares[last].Close()
	l.spares = l.spares[:last]
	return true
}

// Accept waits for the next connection, which the caller then owns. It retries
// nothing but, as long as there are spare places, EMFILE: other errors are returned.
// After Close the error matches [net.ErrClosed].
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.unix.AcceptUnix()
	for errors.Is(err, syscall.EMFILE) && l.giveUp() {
		c, err = l.unix.AcceptUnix()
	}
	if err != nil {
		return nil, err
	}
	return NewConn(c)
}

// Close ends a pending Accept and closes the duplicate. Nothing is unlinked, and
// the socket goes on listening for whoever else holds it. A connection that the
// kernel has already given to a concurrent Accept is delivered.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	closeAll(l.spares)
	l.spares = nil
	return l.unix.Close()
}

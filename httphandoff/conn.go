package httphandoff

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is a connection as the server, its hooks and whoever hijacks it see it: what
// its listener has accepted, or the predecessor handed over, with all of its options.
// Its methods are those of [net.Conn] and may be called concurrently as there.
//
// Once it has moved to the successor, reading gives [io.EOF] and Close does nothing.
type Conn struct {
	server *Server
	below  net.Conn // a *net.TCPConn or *net.UnixConn

	mu       sync.Mutex // not held while reading, writing, or moving
	observer observer
	unread   []byte    // what the predecessor has read: it comes before what is below
	deadline time.Time // for reading; what below is set to, unless interrupted

	wanted  bool // it shall move as soon as it may
	stays   bool // it shall not: nobody takes it, or it is the program's
	reading bool // a Read is in progress below
	quiet   bool // that Read is quiet
	woken   bool // a past deadline was set below to end that Read, which has a slot then
	moving  bool // it is on its way, and nobody may touch it
	gone    bool // it has moved
	closing bool // Close was called on its way
	idle    idleArrival
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// Read reads for the server, and lets the connection move instead if it shall. All
// that happens in the goroutine that reads, so there is never another one that could.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return c.below.Read(p)
	}
	for {
		n, err, again := c.readOnce(p)
		if !again {
			return n, err
		}
	}
}

//nolint:revive // error-return: whether to try again is no result of the Read
func (c *Conn) readOnce(p []byte) (n int, err error, again bool) {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return 0, io.EOF, false
	}
	held, quiet := c.observer.quiet(len(p))
	if quiet && c.mayMoveLocked() {
		c.moveLocked(held, nil, false)
		return 0, nil, true
	}
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		rest := c.deliverLocked(p[:n])
		c.mu.Unlock()
		return rest, nil, rest == 0
	}
	c.idle.waits(c)
	c.reading, c.quiet = true, quiet
	c.mu.Unlock()

	n, err = c.below.Read(p)

	c.mu.Lock()
	c.reading = false
	interrupted, slot := false, c.woken
	if c.woken {
		// The past deadline is never the server's to see.
		c.woken = false
		_ = c.below.SetReadDeadline(c.deadline) // fails only if it is closed
		interrupted = n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
	}
	if quiet && c.mayMoveLocked() && (err == nil || interrupted) {
		if c.moveLocked(held, p[:n], slot) {
			return 0, io.EOF, false
		}
		c.mu.Lock()
	} else if slot {
		c.server.freeSlot()
	}
	rest := c.deliverLocked(p[:n])
	c.mu.Unlock()
	return rest, err, interrupted || rest < n && rest == 0 && err == nil
}

// mayMoveLocked is for a Read that is quiet.
func (c *Conn) mayMoveLocked() bool { return c.wanted && !c.stays }

// moveLocked hands the connection over and reports whether it is gone. held is what
// the server holds, read what a Read has just got, and slot says that it has one. mu is
// held at the call and not any more afterwards.
func (c *Conn) moveLocked(held, read []byte, slot bool) bool {
	unread := make([]byte, 0, len(held)+len(read)+len(c.unread))
	unread = append(append(append(unread, held...), read...), c.unread...)
	state := stateNew
	if c.observer.idle || c.idle.pending() {
		state = stateIdle
	}
	c.moving = true
	c.mu.Unlock()

	gone := c.server.handOver(c.below, unread, state, slot)

	c.mu.Lock()
	c.moving, c.gone, c.stays = false, gone, !gone
	closing := c.closing && !gone
	if !gone {
		_ = c.below.SetReadDeadline(c.deadline) // it may have changed on the way
	}
	c.mu.Unlock()
	if closing {
		_ = c.below.Close()
	}
	return gone
}

// deliverLocked is the end of a Read that has got p. It returns how much of p the
// server gets, from its beginning.
func (c *Conn) deliverLocked(p []byte) int {
	p = p[:c.idle.skipEmptyLines(p)]
	if len(p) > 0 {
		c.idle.ends(c)
	}
	c.observer.deliver(p)
	return len(p)
}

// want lets the connection move as soon as nothing of it is with the server.
func (c *Conn) want() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = true
}

// wake is want for a caller that has a slot, and has a Read that waits end now. It
// reports whether it does: then the slot is that Read's.
func (c *Conn) wake() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = true
	if !c.reading || !c.quiet || c.stays || c.woken {
		return false
	}
	c.woken = true
	_ = c.below.SetReadDeadline(longAgo) // fails only if it is closed
	return true
}

// canMove reports whether it can move as far as anybody knows.
func (c *Conn) canMove() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.stays && !c.observer.http2()
}

// state follows the server's ConnState.
func (c *Conn) state(s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observer.state(s)
	switch s {
	case http.StateActive:
		c.idle = idleArrival{}
	case http.StateHijacked:
		c.stays = true
	default:
	}
}

func (c *Conn) http2() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.observer.http2()
}

// Write implements [net.Conn].
func (c *Conn) Write(p []byte) (int, error) { return c.below.Write(p) }

// ReadFrom implements [io.ReaderFrom], with what the system can do for a file.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if below, ok := c.below.(io.ReaderFrom); ok {
		return below.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.below}, r)
}

// Close closes the connection. One that has moved is not this process's any more.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.gone || c.moving {
		c.closing = true
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()
	return c.below.Close()
}

// CloseWrite closes the writing side.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	untouchable := c.gone || c.moving
	c.mu.Unlock()
	below, ok := c.below.(interface{ CloseWrite() error })
	if untouchable || !ok {
		return net.ErrClosed
	}
	return below.CloseWrite()
}

// LocalAddr implements [net.Conn].
func (c *Conn) LocalAddr() net.Addr { return c.below.LocalAddr() }

// RemoteAddr implements [net.Conn].
func (c *Conn) RemoteAddr() net.Addr { return c.below.RemoteAddr() }

// SetDeadline implements [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.observer.deadlines++
	c.deadline = c.idle.shifted(t)
	if c.woken || c.moving || c.gone {
		return nil // it is set when the Read that was woken, or the way, has ended
	}
	return c.below.SetReadDeadline(c.deadline)
}

// SetWriteDeadline implements [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.below.SetWriteDeadline(t) }

// NetConn returns the *[net.TCPConn] or *[net.UnixConn] below, for its options. To
// read from it misses bytes, and what else is done to it the server does not expect.
func (c *Conn) NetConn() net.Conn { return c.below }

// SyscallConn implements [syscall.Conn], for options of the socket.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	return c.below.(syscall.Conn).SyscallConn()
}

// idleArrival makes the server treat a connection that was idle when it came over as
// an idle one, although it is new to the server. One that is new has ReadHeaderTimeout
// from the start; on an idle one IdleTimeout comes first, and the others begin with
// the first byte. It is over when the first request's header was read.
type idleArrival struct {
	came   bool
	limit  time.Duration // IdleTimeout, 0 for none
	since  time.Time     // when the first Read began
	waited time.Duration // from then to the first byte
	began  bool          // the first byte was there
	own    time.Time     // the deadline that the server has set before

	skipped int // bytes of empty lines before the first request
}

// pending reports whether the connection is as idle as it came.
func (a *idleArrival) pending() bool { return a.came && !a.began }

// maxEmptyLines is how many bytes of empty lines the server passes over behind a
// POST.
const maxEmptyLines = 4

// skipEmptyLines removes the empty lines from p that some clients send behind the body
// of a POST (RFC 9112, 2.2), and returns how much is left. The server does it on a
// connection whose last request was one, which it does not know of this one.
func (a *idleArrival) skipEmptyLines(p []byte) int {
	if !a.pending() {
		return len(p)
	}
	n := 0
	for n < len(p) && a.skipped < maxEmptyLines && (p[n] == '\r' || p[n] == '\n') {
		n++
		a.skipped++
	}
	return copy(p, p[n:])
}

// waits is the beginning of a Read for the first byte.
func (a *idleArrival) waits(c *Conn) {
	if !a.pending() || !a.since.IsZero() {
		return
	}
	a.since, a.own = time.Now(), c.deadline
	c.deadline = time.Time{}
	if a.limit > 0 {
		c.deadline = a.since.Add(a.limit)
	}
	_ = c.below.SetReadDeadline(c.deadline) // fails only if it is closed
}

// ends is the first byte: now the server's limits begin.
func (a *idleArrival) ends(c *Conn) {
	if !a.pending() {
		return
	}
	a.began = true
	if a.since.IsZero() {
		return // it came along: there was no wait
	}
	a.waited = time.Since(a.since)
	c.deadline = a.shifted(a.own)
	_ = c.below.SetReadDeadline(c.deadline) // fails only if it is closed
}

// shifted is the server's deadline without the time that the connection was idle.
func (a *idleArrival) shifted(t time.Time) time.Time {
	if !a.came || t.IsZero() {
		return t
	}
	return t.Add(a.waited)
}

package scm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn sends and receives frames over one connected AF_UNIX stream socket.
//
// One Receive or Discard runs at a time; a second waits for the first. Send,
// HungUp, Peer and Close may be called concurrently with anything.
type Conn struct {
	unix *net.UnixConn
	raw  syscall.RawConn

	reading sync.Mutex // held by Receive and Discard
	in      inbox      // under reading

	turn   chan struct{} // holds one token: whoever took it may write; a channel, so that waiting for it can end with a context
	broken error         // with the token: a frame broke off half-way

	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// NewConn takes ownership of c, also on error. c must be a stream socket, and
// nobody may have read from it through a buffer.
//
// The send buffer is raised where the default is small: half of it holds two
// messages of 64 KiB with their overhead, so that a protocol which leaves no
// more than that unacknowledged can always write a short last word without
// waiting. Where the system's limits do not allow so much it is as large as
// they do.
func NewConn(c *net.UnixConn) (*Conn, error) {
	if c == nil {
		return nil, os.ErrInvalid
	}
	conn, err := newConn(c)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return conn, nil
}

func newConn(c *net.UnixConn) (*Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var prepErr error
	if err := raw.Control(func(fd uintptr) { prepErr = prepare(int(fd)) }); err != nil {
		return nil, err
	}
	if prepErr != nil {
		return nil, prepErr
	}
	// From here on a deadline means that a context has ended.
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &Conn{
		unix:   c,
		raw:    raw,
		in:     inbox{limit: MaxPayload},
		turn:   make(chan struct{}, 1),
		closed: make(chan struct{}),
	}, nil
}

// Dial makes one attempt to connect to the socket at path. The errors of
// connect(2) are visible through [errors.Is]: ENOENT, ECONNREFUSED if nobody
// listens, EAGAIN if the backlog is full. If ctx ends first the error is its
// cause. A path longer than [MaxPath] matches ENAMETOOLONG.
func Dial(ctx context.Context, path string) (*Conn, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		if _, ok := ctx.Deadline(); ok && errors.Is(err, context.DeadlineExceeded) {
			<-ctx.Done() // the dialer looks at the clock itself, and may be ahead of ctx
		}
		if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return NewConn(c.(*net.UnixConn))
}

// OpenConn makes a Conn of an inherited descriptor: a connected AF_UNIX stream
// socket, anything else is an error. It takes ownership of fd, also on error,
// and sets O_NONBLOCK.
func OpenConn(fd *FD) (*Conn, error) {
	c, err := openUnixConn(fd)
	if closeErr := fd.Close(); err == nil && closeErr != nil {
		err = errors.Join(closeErr, c.Close())
	}
	if err != nil {
		return nil, err
	}
	return NewConn(c)
}

func openUnixConn(fd *FD) (*net.UnixConn, error) {
	id, err := fd.Identify()
	if err != nil {
		return nil, err
	}
	if id.Network != "unix" || id.Listening {
		return nil, fmt.Errorf("descriptor is no connected unix stream socket but %s", id)
	}
	var connected error
	if err := fd.Control(func(fd uintptr) { connected = requireConnected(int(fd)) }); err != nil {
		return nil, err
	}
	if connected != nil {
		return nil, fmt.Errorf("descriptor is no connected unix stream socket: %w", connected)
	}
	c, err := fd.Conn()
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// Pair makes a connected pair: one end for this process, the other for one that
// it is about to start. theirs is close-on-exec and stays in blocking mode, so
// that passing it in [os/exec.Cmd.ExtraFiles] changes nothing about it; the
// caller closes it once the process has started. Peer credentials on a pair are
// those of the process that made it, unix(7): they say nothing about who was
// started.
func Pair() (ours *Conn, theirs *os.File, err error) {
	a, b, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(b), "socketpair")
	ours, err = OpenConn(&FD{num: a})
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// Send writes one frame. The descriptors remain the caller's; they may be
// closed as soon as Send has returned. Concurrent Sends do not interleave.
//
// The limits are [MaxPayload] and [MaxDescriptors]. Success says that the
// kernel has taken the frame, not that the peer has it.
//
// While more descriptors of this user are in flight than RLIMIT_NOFILE allows,
// the kernel refuses further ones with ETOOMANYREFS, unix(7). Nothing announces
// the end of that, so Send tries again in growing intervals until ctx ends.
//
// If ctx ends before anything was written the error is its cause and the
// connection is as before. If a frame breaks off half-way, for this reason or
// another, the peer cannot find the next one: every later Send returns the same
// error.
func (c *Conn) Send(ctx context.Context, payload []byte, fds ...*FD) error {
	frame, err := encodeFrame(payload, len(fds))
	if err != nil {
		return err
	}
	if err := c.takeTurn(ctx); err != nil {
		return err
	}
	defer func() { <-c.turn }()
	if c.broken != nil {
		return c.broken
	}
	nums, release, err := acquireAll(fds)
	if err != nil {
		return err
	}
	defer release()
	sent, err := c.write(ctx, frame, rights(nums))
	if err != nil && sent > 0 {
		c.broken = fmt.Errorf("a frame broke off after %d of %d bytes: %w", sent, len(frame), err)
		return c.broken
	}
	return err
}

// IsClosed reports whether an error of Send says that one of the two sides has closed
// its end: nobody will read what was to be sent.
func IsClosed(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

func (c *Conn) takeTurn(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.closed:
		return net.ErrClosed
	}
	// A select chooses at random among what is ready.
	if ctx.Err() != nil {
		<-c.turn
		return context.Cause(ctx)
	}
	return nil
}

// write writes all of frame, with the control data on its first byte. It
// returns how many bytes went out.
func (c *Conn) write(ctx context.Context, frame, control []byte) (sent int, err error) {
	var pause backoff
	for sent < len(frame) {
		n, err := writeSome(ctx, c.unix, c.raw, frame[sent:], control)
		if errors.Is(err, syscall.ETOOMANYREFS) {
			err = c.awaitFlight(ctx, &pause, err)
		}
		if err != nil {
			return sent, explainSend(err, len(control) > 0)
		}
		if n > 0 {
			// The kernel attaches descriptors to the first part of a short write.
			control = nil
		}
		sent += n
	}
	return sent, nil
}

// writeSome writes what the socket takes, and waits only if that is nothing. A
// frame for which there is room is thus written even if ctx ends meanwhile.
func writeSome(ctx context.Context, c *net.UnixConn, raw syscall.RawConn, p, control []byte) (n int, err error) {
	ctlErr := raw.Control(func(fd uintptr) { n, err = sendmsg(int(fd), p, control) })
	if ctlErr != nil {
		return 0, ctlErr
	}
	if !errors.Is(err, syscall.EAGAIN) {
		return n, err
	}
	disarm := interrupt(ctx, c.SetWriteDeadline)
	defer disarm()
	waitErr := raw.Write(func(fd uintptr) bool {
		n, err = sendmsg(int(fd), p, control)
		return !errors.Is(err, syscall.EAGAIN)
	})
	switch {
	case errors.Is(waitErr, os.ErrDeadlineExceeded):
		return 0, context.Cause(ctx)
	case waitErr != nil:
		return 0, waitErr
	}
	return n, err
}

// awaitFlight waits a while for descriptors in flight to arrive. A nil error
// means: try again.
func (c *Conn) awaitFlight(ctx context.Context, pause *backoff, cause error) error {
	// The kernel counts before it looks whether anybody is there to receive.
	if c.HungUp() {
		return os.NewSyscallError("sendmsg", syscall.EPIPE)
	}
	return pause.wait(ctx, c.closed, cause)
}

// backoff is the length of a pause, doubling from a millisecond to a tenth of a
// second.
type backoff time.Duration

func (b *backoff) next() time.Duration {
	*b = backoff(min(max(2*time.Duration(*b), time.Millisecond), 100*time.Millisecond))
	return time.Duration(*b)
}

// wait lets a pause go by after cause, that too many descriptors are in flight.
// closed may be nil.
func (b *backoff) wait(ctx context.Context, closed <-chan struct{}, cause error) error {
	timer := time.NewTimer(b.next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-closed:
		return net.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w, while more descriptors of this user are in flight than RLIMIT_NOFILE allows: %w", context.Cause(ctx), cause)
	}
}

// explainSend adds what an operator cannot guess.
func explainSend(err error, descriptors bool) error {
	if descriptors && errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("the peer takes no descriptors (SO_PASSRIGHTS) or a security module forbids it: %w", err)
	}
	return err
}

// Receive returns the next frame: its payload and its descriptors, which the
// caller then owns, at most maxFDs of them. With an error there is neither.
//
// What the peer has sent already comes before ctx: once ctx has ended one last
// look is taken, and a complete frame that is there is returned. Otherwise the
// error is the cause of ctx. Part of a frame stays buffered, and a later
// Receive goes on with it.
//
// [io.EOF] says that the peer has closed its end fully: it has been read to the
// end and no process holds it open any more. A peer that has only shut down its
// writing side (shutdown(2), SHUT_WR) is waited for. A reset and an end inside a
// frame are io.EOF as well.
//
// Errors of framing match [ErrTruncated], [ErrDescriptorCount],
// [ErrPayloadTooLarge], [ErrTooManyDescriptors], [ErrReserved] or
// [ErrUnexpectedDescriptors]. The connection is then out of step and every later
// Receive returns the same error; [Conn.Discard] still learns when the peer
// closes.
func (c *Conn) Receive(ctx context.Context, maxFDs int) (payload []byte, fds []*FD, err error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		payload, fds, ok, err := c.in.next(maxFDs)
		if ok || err != nil {
			return payload, fds, err
		}
		// The order matters: a look that begins after ctx has ended sees all that
		// was sent before.
		ended := ctx.Err() != nil
		switch err := c.look(); {
		case err == nil:
		case !errors.Is(err, errNothing):
			return nil, nil, err
		case ended:
			return nil, nil, context.Cause(ctx)
		default:
			if err := c.await(ctx); err != nil {
				return nil, nil, err
			}
		}
	}
}

// Discard reads and throws away everything, closing descriptors as they arrive,
// until the peer has closed its end fully, which gives nil, or ctx ends, which
// gives its cause. It is for a connection that must stay open though nothing it
// says is believed any more. Receive returns an error afterwards.
func (c *Conn) Discard(ctx context.Context) error {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.in.err == nil {
		c.in.err = errDiscarded
	}
	for {
		c.in.clear()
		if c.in.eof {
			c.in.err = io.EOF
			return nil
		}
		ended := ctx.Err() != nil
		err := c.look()
		if err != nil && !errors.Is(err, errNothing) {
			return err
		}
		// A peer that keeps sending must not keep this going for ever; what one has
		// left behind that has hung up comes to an end.
		if ended && !c.in.eof && (err != nil || !c.HungUp()) {
			c.in.clear()
			return context.Cause(ctx)
		}
		if err == nil {
			continue
		}
		if err := c.await(ctx); err != nil {
			return err
		}
	}
}

// HungUp reports whether the peer has closed its end fully. What it had sent
// before may still be unread. It does not block, and is false once c is closed.
func (c *Conn) HungUp() bool {
	hungUp := false
	err := c.raw.Control(func(fd uintptr) { hungUp = peerClosed(int(fd)) })
	return err == nil && hungUp
}

// LimitPayload has Receive take no frame with more than n bytes of payload from here on:
// [ErrPayloadTooLarge], as soon as its header has come. It is for a peer that has not
// shown yet what it is, and may be undone with [MaxPayload].
func (c *Conn) LimitPayload(n int) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.in.limit = min(max(n, 0), MaxPayload)
}

// RefuseDescriptors is for a side that never takes any. Where the kernel can (Linux
// 6.16) the peer's sends of descriptors fail with EPERM from here on, socket(7),
// SO_PASSRIGHTS; what comes elsewhere, or came before, is closed as it arrives, and
// Receive returns [ErrUnexpectedDescriptors].
//
// The kernel's way is the better one. A descriptor that was sent holds whatever it is
// open in memory until somebody takes it, and closing it may take as long as its
// sender likes: a socket that lingers, a file of a file system in user space.
func (c *Conn) RefuseDescriptors() {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.in.refuse = true
	_ = c.raw.Control(func(fd uintptr) { refuseDescriptors(int(fd)) }) // closed: nothing will come
}

// Peer says who connected, by the kernel's account: for an accepted connection
// the process that called connect(2), for a dialled one the process that called
// listen(2) last. The caller closes the Peer. Where the system gives no peer
// credentials the error matches [errors.ErrUnsupported].
func (c *Conn) Peer() (*Peer, error) {
	var (
		p       *Peer
		peerErr error
	)
	if err := c.raw.Control(func(fd uintptr) { p, peerErr = peer(int(fd)) }); err != nil {
		return nil, err
	}
	return p, peerErr
}

// Close closes the connection and every descriptor that was received and not
// yet returned. A Send or Receive under way returns an error that matches
// [net.ErrClosed]. Further calls return the first one's result.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.closeErr = c.unix.Close()
		c.reading.Lock()
		defer c.reading.Unlock()
		c.in.fail(net.ErrClosed)
	})
	return c.closeErr
}

var (
	// errNothing: a look found nothing to read.
	errNothing = errors.New("nothing to read")

	errDiscarded = errors.New("what came over the connection has been thrown away")
)

// look reads once without waiting, into the inbox. Without data or an end of
// stream it returns errNothing.
func (c *Conn) look() error {
	var err error
	if ctlErr := c.raw.Control(func(fd uintptr) { err = c.read(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

// await waits until something can be read, and reads it, or until ctx ends,
// which is not an error here.
func (c *Conn) await(ctx context.Context) error {
	disarm := interrupt(ctx, c.unix.SetReadDeadline)
	defer disarm()
	var err error
	waitErr := c.raw.Read(func(fd uintptr) bool {
		err = c.read(int(fd))
		return !errors.Is(err, errNothing)
	})
	if errors.Is(waitErr, os.ErrDeadlineExceeded) {
		return nil
	}
	if waitErr != nil {
		return waitErr
	}
	return err
}

// read makes one recvmsg(2). It is the only place that reads from the socket:
// a plain read would lose the descriptors.
func (c *Conn) read(fd int) error {
	n, fds, err := recvmsg(fd, c.in.room())
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return errNothing
	case errors.Is(err, syscall.ECONNRESET):
		// The peer closed without having read everything.
		c.in.eof = true
		return nil
	case errors.Is(err, ErrTruncated):
		c.in.clear()
		if c.in.err == nil {
			c.in.err = err
		}
		return nil
	case err != nil:
		return err
	case n > 0:
		c.in.arrived(n, fds)
		return nil
	case peerClosed(fd):
		c.in.eof = true
		return nil
	}
	// The peer has shut down its writing side only. The poller wakes this up
	// again when it closes.
	return errNothing
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// interrupt has the end of ctx interrupt reads or writes. disarm undoes it:
// afterwards no deadline is set and none will be.
func interrupt(ctx context.Context, setDeadline func(time.Time) error) (disarm func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = setDeadline(longAgo) // fails only on a closed connection, which needs no interruption
	})
	return func() {
		if stop() {
			return
		}
		<-done
		_ = setDeadline(time.Time{})
	}
}

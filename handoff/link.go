package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/scm"
)

// writeTimeout bounds every write. The window leaves room for what is written
// (see maxPageSize), so only a page to a stopped peer ever waits this long.
const writeTimeout = 5 * time.Second

var (
	// errWoken interrupts a receive because a command is queued.
	errWoken = errors.New("a command is queued")
	// errPeerClosed says that nobody holds the peer's end open any more.
	errPeerClosed = errors.New("it has closed the connection")
	// errPeerExited says that the peer's process has ended, though something
	// else may still hold its end of the connection.
	errPeerExited = errors.New("its process has exited")
)

// frames moves payloads with descriptors between two sides. [*scm.Conn] is the
// one in production; its documentation is the contract.
type frames interface {
	Send(ctx context.Context, payload []byte, fds ...*scm.FD) error
	Receive(ctx context.Context, maxFDs int) ([]byte, []*scm.FD, error)
	Discard(ctx context.Context) error
	LimitPayload(n int)
	RefuseDescriptors()
	Close() error
}

// link is one end of a handoff connection: messages from the peer and commands
// from this process, in one order. One goroutine, the machine, calls next;
// post and send may be called by any.
type link struct {
	conn    frames
	maxFDs  int
	sending atomic.Int64 // when the write under way began, in nanoseconds; 0 if there is none

	mu       sync.Mutex
	wake     context.CancelCauseFunc // of the receive under way, or nil
	commands []func() error
	exited   bool // the peer's process has ended
	closed   bool
	quit     chan struct{} // closed by close
}

// newLink takes ownership of conn. maxFDs is the most descriptors that one
// message from the peer may carry.
func newLink(conn frames, maxFDs int) *link {
	if maxFDs == 0 {
		conn.RefuseDescriptors()
	}
	return &link{conn: conn, maxFDs: maxFDs, quit: make(chan struct{})}
}

// watch takes the end of exited as the peer's end. The caller is certain that
// it is the peer's process and no other (I2).
func (l *link) watch(exited <-chan struct{}) {
	if exited == nil {
		return
	}
	go func() {
		select {
		case <-exited:
			l.interrupt(func() { l.exited = true }, errPeerExited)
		case <-l.quit:
		}
	}()
}

// post queues a command for the machine and returns at once. The machine runs
// it when it has handled everything that the peer had sent by then; an error
// that it returns becomes the result of next. post reports false if the link
// is closed, so that the command will never run.
func (l *link) post(command func() error) bool {
	queued := false
	l.interrupt(func() {
		if !l.closed {
			l.commands = append(l.commands, command)
			queued = true
		}
	}, errWoken)
	return queued
}

func (l *link) interrupt(change func(), cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	if l.wake != nil {
		l.wake(cause)
	}
}

// next returns the peer's next message in m, with its descriptors, which
// become the caller's. A message that has arrived comes before a queued
// command, and a command before the end of ctx. It returns a goneError once the
// peer is gone and everything that it sent was returned, the error of a
// command, context.Cause(ctx), or a protocol error.
func (l *link) next(ctx context.Context, m proto.Message) ([]*scm.FD, error) {
	for {
		payload, fds, err := l.receive(ctx)
		switch {
		case errors.Is(err, errWoken):
			if err := l.runCommands(); err != nil {
				return nil, err
			}
			continue
		case err == nil:
		case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
			// Before the peer's end: the cause is the caller's and may be
			// any error, io.EOF too.
			return nil, err
		default:
			return nil, classify(err)
		}
		if err := proto.Unmarshal(payload, m); err != nil {
			closeAll(fds)
			return nil, protocolError("a payload of %d bytes is no message: %w", len(payload), err)
		}
		return fds, nil
	}
}

func (l *link) receive(ctx context.Context) ([]byte, []*scm.FD, error) {
	ctx, disarm := l.arm(ctx)
	defer disarm()
	return l.conn.Receive(ctx, l.maxFDs)
}

// arm returns a context that ends with ctx, when a command is queued or when
// the peer's process exits, at once if either has happened.
func (l *link) arm(ctx context.Context) (context.Context, func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exited || len(l.commands) > 0 {
		ctx = context.WithoutCancel(ctx) // its end comes after them
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l.wake = cancel
	switch {
	case l.exited:
		cancel(errPeerExited)
	case len(l.commands) > 0:
		cancel(errWoken)
	}
	return ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.wake = nil
		cancel(nil)
	}
}

// runCommands runs the queued commands up to the first that returns an error.
func (l *link) runCommands() error {
	for {
		l.mu.Lock()
		if len(l.commands) == 0 {
			l.mu.Unlock()
			return nil
		}
		command := l.commands[0]
		l.commands = l.commands[1:]
		l.mu.Unlock()
		if err := command(); err != nil {
			return err
		}
	}
}

// classify gives the frame layer's errors their meaning here.
func classify(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return &goneError{errPeerClosed}
	case errors.Is(err, errPeerExited):
		return &goneError{errPeerExited}
	}
	for _, e := range []error{
		scm.ErrDescriptorCount, scm.ErrPayloadTooLarge, scm.ErrReserved,
		scm.ErrTooManyDescriptors, scm.ErrUnexpectedDescriptors,
	} {
		if errors.Is(err, e) {
			return protocolError("%w", err)
		}
	}
	if errors.Is(err, scm.ErrTruncated) {
		return fmt.Errorf("%w: %w", ErrDescriptor, err)
	}
	return err
}

// send writes one message. The descriptors remain the caller's.
func (l *link) send(m proto.Message, fds ...*scm.FD) error {
	payload, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), writeTimeout,
		&TimeoutError{For: "room to write a message", Limit: writeTimeout})
	defer cancel()
	l.sending.Store(time.Now().UnixNano())
	defer l.sending.Store(0)
	return l.conn.Send(ctx, payload, fds...)
}

// stalled is how long the peer has kept a write waiting, 0 if there is none.
func (l *link) stalled() time.Duration {
	began := l.sending.Load()
	if began == 0 {
		return 0
	}
	return time.Since(time.Unix(0, began))
}

// limit bounds the payloads that the peer may send from here on.
func (l *link) limit(payload int) { l.conn.LimitPayload(payload) }

// deaf reads and discards until the peer is gone, so that the peer can take
// this side's open end for what it is (I2, I8). Commands are still run; the
// first that returns an error ends it.
func (l *link) deaf() error {
	for {
		ctx, disarm := l.arm(context.Background())
		err := l.conn.Discard(ctx)
		if err != nil {
			// It may be that reading fails, which says nothing about the
			// peer: then only a command or its exit ends the wait.
			select {
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-l.quit:
			}
		}
		disarm()
		if !errors.Is(err, errWoken) {
			return nil
		}
		if err := l.runCommands(); err != nil {
			return err
		}
	}
}

// idle waits for commands alone, when the peer is gone. It returns the error
// of the first command that returns one.
func (l *link) idle() error {
	for {
		l.mu.Lock()
		l.exited = false // known and acted upon; it must not end every wait
		l.mu.Unlock()
		ctx, disarm := l.arm(context.Background())
		<-ctx.Done()
		disarm()
		if err := l.runCommands(); err != nil {
			return err
		}
	}
}

// close gives this side's end up.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		close(l.quit)
		_ = l.conn.Close() // the last that this side does with it
	}
}

func closeAll(fds []*scm.FD) {
	for _, fd := range fds {
		_ = fd.Close()
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

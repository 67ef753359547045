package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// pipe is a connection in memory with the contract of [scm.Conn], for use under
// the fake clock of testing/synctest. Either end can be frozen like a stopped
// process, killed, or made to take no more writes. The descriptors that travel
// are duplicated on sending, as by the kernel, and the pipe fails the test if
// one of them is still open at its end.
type pipe struct {
	client, server *end

	// before and after are called for each message, outside the lock, and may
	// kill, freeze and fill.
	before, after func(message string)
	// tape gets everything that is written, in order, and the closing of an end
	// as a nil payload, under the lock.
	tape func(arrow string, payload []byte, fds int)

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced by every change
	wire      []string
	travelled []*scm.FD
	unread    int // messages whose after is running: nobody reads meanwhile
	unacked   int // pages
	widest    int // the most unacked pages there were
}

var _ handoff.Frames = (*end)(nil)

// end is one end of a pipe.
type end struct {
	pipe  *pipe
	peer  *end
	arrow string // in the transcript

	queue  []frame
	failed error // what Receive returns from now on
	closed bool
	dead   bool
	frozen bool
	full   bool
	limit  int // of a payload, 0 for none
	reads  int // of messages
}

type frame struct {
	payload []byte
	fds     []*scm.FD
}

func newPipe(t *testing.T) *pipe {
	t.Helper()
	p := &pipe{changed: make(chan struct{})}
	p.client = &end{pipe: p, arrow: ">"}
	p.server = &end{pipe: p, arrow: "<", peer: p.client}
	p.client.peer = p.server
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i, fd := range p.travelled {
			if err := fd.Control(func(uintptr) {}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("descriptor %d of the %d that travelled was never closed", i, len(p.travelled))
			}
		}
	})
	return p
}

// Receive implements handoff.Frames.
func (e *end) Receive(ctx context.Context, maxFDs int) ([]byte, []*scm.FD, error) {
	for {
		ended := ctx.Err() != nil // a look after the end sees all that was sent before
		f, changed, err := e.look(maxFDs)
		switch {
		case changed == nil:
			return f.payload, f.fds, err
		case ended:
			return nil, nil, context.Cause(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// look returns a channel to wait for if there is nothing to read.
func (e *end) look(maxFDs int) (f frame, changed chan struct{}, err error) {
	e.lockAwake()
	defer e.pipe.mu.Unlock()
	switch {
	case e.closed:
		return frame{}, nil, net.ErrClosed
	case e.failed != nil:
		return frame{}, nil, e.failed
	case len(e.queue) > 0:
		f = e.queue[0]
		e.queue = e.queue[1:]
		e.reads++
		if e.limit > 0 && len(f.payload) > e.limit {
			closeFDs(f.fds)
			e.failed = &scm.FrameError{Err: scm.ErrPayloadTooLarge, Got: len(f.payload), Want: e.limit}
			return frame{}, nil, e.failed
		}
		if len(f.fds) > maxFDs {
			closeFDs(f.fds)
			e.failed = &scm.FrameError{Err: scm.ErrUnexpectedDescriptors, Got: len(f.fds), Want: maxFDs}
			return frame{}, nil, e.failed
		}
		return f, nil, nil
	case e.peer.closed:
		e.failed = io.EOF
		return frame{}, nil, io.EOF
	default:
		return frame{}, e.pipe.changed, nil
	}
}

// Discard implements handoff.Frames.
func (e *end) Discard(ctx context.Context) error {
	for {
		ended := ctx.Err() != nil
		changed, done, err := e.drop()
		switch {
		case done:
			return err
		case ended:
			return context.Cause(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// drop returns a channel to wait for unless it is done.
func (e *end) drop() (changed chan struct{}, done bool, err error) {
	e.lockAwake()
	defer e.pipe.mu.Unlock()
	if e.closed {
		return nil, true, net.ErrClosed
	}
	e.clear()
	if e.peer.closed {
		e.failed = io.EOF
		return nil, true, nil
	}
	if e.failed == nil {
		e.failed = errors.New("what came over the pipe has been thrown away")
	}
	return e.pipe.changed, false, nil
}

// LimitPayload implements handoff.Frames.
func (e *end) LimitPayload(n int) { e.set(func() { e.limit = n }) }

// RefuseDescriptors implements handoff.Frames: the other end finds out when it is read.
func (e *end) RefuseDescriptors() {}

// Send implements handoff.Frames.
func (e *end) Send(ctx context.Context, payload []byte, fds ...*scm.FD) error {
	message, m := e.describe(payload, len(fds))
	name := e.arrow + " " + shortName(m)
	if e.pipe.before != nil {
		e.pipe.before(name)
	}
	for {
		changed, done, err := e.trySend(payload, fds, message, m)
		if done {
			if err == nil && e.pipe.after != nil {
				e.pipe.after(name)
				e.set(func() { e.pipe.unread-- })
				e.lockAwake() // it may have been this side's last act
				e.pipe.mu.Unlock()
			}
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// trySend returns a channel to wait for if there is no room.
func (e *end) trySend(payload []byte, fds []*scm.FD, message string, m proto.Message) (changed chan struct{}, done bool, err error) {
	e.lockAwake()
	p := e.pipe
	defer p.mu.Unlock()
	switch {
	case e.closed:
		return nil, true, net.ErrClosed
	case e.peer.closed:
		return nil, true, os.NewSyscallError("sendmsg", syscall.EPIPE)
	case e.full:
		return p.changed, false, nil
	}
	f := frame{payload: append([]byte{}, payload...)}
	for _, fd := range fds {
		d, err := fd.Dup()
		if err != nil {
			closeFDs(f.fds)
			return nil, true, err
		}
		f.fds = append(f.fds, d)
	}
	if p.after != nil {
		p.unread++
	}
	p.travelled = append(p.travelled, f.fds...)
	e.peer.queue = append(e.peer.queue, f)
	p.wire = append(p.wire, e.arrow+" "+message)
	if p.tape != nil {
		p.tape(e.arrow, f.payload, len(fds))
	}
	switch m.(type) {
	case *pb.ManifestPage:
		p.unacked++
		p.widest = max(p.widest, p.unacked)
	case *pb.PageAck:
		p.unacked--
	}
	p.notify()
	return nil, true, nil
}

// Close implements handoff.Frames.
func (e *end) Close() error {
	e.pipe.mu.Lock()
	defer e.pipe.mu.Unlock()
	if !e.closed && e.pipe.tape != nil {
		e.pipe.tape(e.arrow, nil, 0)
	}
	e.closed = true
	e.clear()
	e.pipe.notify()
	return nil
}

// kill ends the process that has this end: the kernel closes the end, and a
// goroutine that touches it never returns.
func (e *end) kill() {
	e.set(func() {
		if !e.closed && e.pipe.tape != nil {
			e.pipe.tape(e.arrow, nil, 0)
		}
		e.dead, e.closed = true, true
		e.clear()
	})
}

// freeze stops the process that has this end, and thaw continues it.
func (e *end) freeze() { e.set(func() { e.frozen = true }) }
func (e *end) thaw()   { e.set(func() { e.frozen = false }) }

// fill lets this end find no room to write, until empty.
func (e *end) fill()  { e.set(func() { e.full = true }) }
func (e *end) empty() { e.set(func() { e.full = false }) }

func (e *end) set(change func()) {
	e.pipe.mu.Lock()
	defer e.pipe.mu.Unlock()
	change()
	e.pipe.notify()
}

func (e *end) isClosed() bool {
	e.pipe.mu.Lock()
	defer e.pipe.mu.Unlock()
	return e.closed
}

// lockAwake locks the pipe for a process that lives and runs, once it may.
func (e *end) lockAwake() {
	for {
		e.pipe.mu.Lock()
		changed := e.pipe.changed
		switch {
		case e.dead:
			e.pipe.mu.Unlock()
			runtime.Goexit()
		case !e.frozen && e.pipe.unread == 0:
			return
		}
		e.pipe.mu.Unlock()
		<-changed
	}
}

func (e *end) clear() {
	for _, f := range e.queue {
		closeFDs(f.fds)
	}
	e.queue = nil
}

func (p *pipe) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// transcript is everything that was written, in order.
func (p *pipe) transcript() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.wire, "\n")
}

// sent reports whether a message with this short name was written.
func (p *pipe) sent(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.wire {
		if line == name || strings.HasPrefix(line, name+" ") || strings.HasPrefix(line, name+":") {
			return true
		}
	}
	return false
}

func closeFDs(fds []*scm.FD) {
	for _, fd := range fds {
		_ = fd.Close()
	}
}

// describe returns a line of the transcript, and the message that the payload
// carries, nil if it carries none.
func (e *end) describe(payload []byte, fds int) (string, proto.Message) {
	m := member(e.arrow == ">", payload)
	text := shortName(m)
	switch m := m.(type) {
	case *pb.Hello:
		text += fmt.Sprintf(": versions %v, %v, instance %s", m.GetVersions(), m.GetRole(), m.GetProcess().GetInstance())
	case *pb.Welcome:
		text += fmt.Sprintf(": version %d, generation %d, total %d", m.GetVersion(), m.GetGeneration(), m.GetTotal())
	case *pb.Refuse:
		text += ": " + m.GetCode().String()
	case *pb.ManifestPage:
		text += fmt.Sprintf(": descriptors %d, removed %d", len(m.GetDescriptors()), len(m.GetRemoved()))
		if m.GetLast() {
			text += ", last"
		}
	case *pb.Ready:
		text += fmt.Sprintf(": unclaimed %d %v", m.GetUnclaimed(), m.GetUnclaimedIds())
	case *pb.Progress:
		text += fmt.Sprintf(": %q, extend %v", m.GetStatus(), m.GetExtend().AsDuration())
	case *pb.CommitAck:
		text += fmt.Sprintf(": settle %v", m.GetSettle())
	case *pb.Abort:
		text += ": " + m.GetCode().String()
	case *pb.Connection:
		text += fmt.Sprintf(": id %d, listener %s", m.GetId(), m.GetListener())
	case *pb.ConnectionAck:
		text += fmt.Sprintf(": id %d, taken %v", m.GetId(), m.GetTaken())
	}
	if fds > 0 {
		text += fmt.Sprintf(" + %d fds", fds)
	}
	return text, m
}

// shortName names a message; pages and their acknowledgements with the number.
func shortName(m proto.Message) string {
	switch m := m.(type) {
	case nil:
		return "garbage"
	case *pb.ManifestPage:
		return fmt.Sprintf("ManifestPage %d", m.GetPage())
	case *pb.PageAck:
		return fmt.Sprintf("PageAck %d", m.GetNext())
	default:
		return string(m.ProtoReflect().Descriptor().Name())
	}
}

// member is the one message in a payload, nil if there is none.
func member(fromClient bool, payload []byte) proto.Message {
	var envelope proto.Message = new(pb.ServerMessage)
	if fromClient {
		envelope = new(pb.ClientMessage)
	}
	if err := proto.Unmarshal(payload, envelope); err != nil {
		return nil
	}
	r := envelope.ProtoReflect()
	field := r.WhichOneof(r.Descriptor().Oneofs().Get(0))
	if field == nil {
		return nil
	}
	return r.Get(field).Message().Interface()
}

// wrap is member's inverse: the payload that carries m.
func wrap(fromClient bool, m proto.Message) []byte {
	var envelope proto.Message = new(pb.ServerMessage)
	if fromClient {
		envelope = new(pb.ClientMessage)
	}
	r := envelope.ProtoReflect()
	fields := r.Descriptor().Oneofs().Get(0).Fields()
	for i := range fields.Len() {
		if fields.Get(i).Message() == m.ProtoReflect().Descriptor() {
			r.Set(fields.Get(i), protoValue(m))
		}
	}
	payload, err := proto.Marshal(envelope)
	if err != nil {
		panic(err)
	}
	return payload
}

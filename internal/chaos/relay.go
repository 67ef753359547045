//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// relay stands between the two sides of one handoff and passes everything on, a
// frame at a time, descriptors too. Faults are placed here: whoever handles a
// frame decides what becomes of it.
//
// The relay keeps no copy of a descriptor and no end open longer than the side
// that it stands for: a full close of one side becomes one of the other as soon
// as everything that came before it was delivered, so that I2 holds through it.
type relay struct {
	handle func(*frame) // is called in order for each side; the two sides at the same time
	note   func(format string, args ...any)
	dial   func() (*scm.Conn, error)

	mu   sync.Mutex
	ends [2]*scm.Conn // by the side that is at the other end; nil before it is there
	shut [2]bool
	cut  [2]bool // what comes from this side is thrown away
	gate [2]chan struct{}
	wg   sync.WaitGroup
}

// side is one of the two processes of a handoff.
type side int

const (
	predecessor side = iota
	successor
)

var sideNames = [...]string{"predecessor", "successor"}

func (s side) String() string { return sideNames[s] }
func (s side) other() side    { return 1 - s }

// frame is one frame on its way, with the name of its message.
type frame struct {
	from    side
	name    string
	payload []byte
	fds     []*scm.FD
}

// close closes the descriptors, which were duplicated by the kernel for this
// process.
func (f *frame) close() {
	for _, fd := range f.fds {
		_ = fd.Close()
	}
	f.fds = nil
}

// newRelay returns a relay and the successor's end, for its process to inherit.
// dial connects to the owner, when the successor has said something.
func newRelay(dial func() (*scm.Conn, error), handle func(*frame), note func(string, ...any)) (*relay, *os.File, error) {
	ours, theirs, err := scm.Pair()
	if err != nil {
		return nil, nil, err
	}
	r := &relay{handle: handle, note: note, dial: dial}
	r.ends[successor] = ours
	return r, theirs, nil
}

// run starts the relay. The successor's end must be open in its process alone by
// now.
func (r *relay) run() { r.wg.Go(func() { r.pump(successor, r.ends[successor]) }) }

// pump passes on what comes from one side, until its full close.
func (r *relay) pump(from side, conn *scm.Conn) {
	for {
		payload, fds, err := conn.Receive(context.Background(), scm.MaxDescriptors)
		if err != nil {
			if !errors.Is(err, io.EOF) && !r.isShut(from) {
				r.note("relay: reading from the %v: %v", from, err)
			}
			break
		}
		f := &frame{from: from, name: messageOf(from, payload), payload: payload, fds: fds}
		r.note("relay: %v -> %s", from, f.name)
		if from == successor && !r.connect() {
			f.close()
			break
		}
		r.handle(f)
		f.close()
	}
	r.awaitGate(from)
	r.note("relay: %v has closed", from)
	r.shutdown(from.other())
	r.shutdown(from)
}

// connect dials the owner, once.
func (r *relay) connect() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ends[predecessor] != nil {
		return true
	}
	conn, err := r.dial()
	if err != nil {
		r.note("relay: dialling the owner: %v", err)
		return false
	}
	r.ends[predecessor] = conn
	r.wg.Go(func() { r.pump(predecessor, conn) })
	return true
}

// deliver sends a frame to the other side, unless its sender is cut off, and
// reports whether it has. The descriptors stay the frame's.
func (r *relay) deliver(f *frame) bool {
	r.awaitGate(f.from)
	r.mu.Lock()
	cut, to := r.cut[f.from], r.ends[f.from.other()]
	r.mu.Unlock()
	if cut || to == nil {
		r.note("relay: %s is dropped", f.name)
		return false
	}
	r.send(f, to)
	return true
}

func (r *relay) send(f *frame, to *scm.Conn) {
	if err := to.Send(context.Background(), f.payload, f.fds...); err != nil {
		// The receiver has gone, which its own pump passes on.
		r.note("relay: delivering %s: %v", f.name, err)
	}
}

// inject sends a message of the relay's own as if it came from that side.
func (r *relay) inject(from side, payload []byte) {
	r.mu.Lock()
	to := r.ends[from.other()]
	r.mu.Unlock()
	if to != nil {
		r.send(&frame{from: from, name: "what the relay made up", payload: payload}, to)
	}
}

// cutOff throws away what comes from a side from now on.
func (r *relay) cutOff(from side) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut[from] = true
}

// holdBack delivers nothing from a side until the returned function is called.
func (r *relay) holdBack(from side) (release func()) {
	gate := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate[from] = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (r *relay) awaitGate(from side) {
	r.mu.Lock()
	gate := r.gate[from]
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

// shutdown closes the end that a side is connected to: that side sees the full
// close of the other.
func (r *relay) shutdown(at side) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ends[at] != nil && !r.shut[at] {
		r.shut[at] = true
		_ = r.ends[at].Close()
	}
}

func (r *relay) isShut(at side) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shut[at]
}

// close ends the relay and waits for that.
func (r *relay) close() {
	r.shutdown(successor)
	r.shutdown(predecessor)
	r.wg.Wait()
}

// garbage is a payload that no message has: a group that never ends.
var garbage = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// misplaced is a message of that side which is due once, early, and nowhere else.
func misplaced(from side) []byte {
	if from == successor {
		return encode(&pb.ClientMessage{Message: &pb.ClientMessage_Prepared{Prepared: &pb.Prepared{}}})
	}
	return encode(&pb.ServerMessage{Message: &pb.ServerMessage_Welcome{Welcome: &pb.Welcome{Version: 1, Generation: 99}}})
}

func encode(m proto.Message) []byte {
	payload, err := proto.Marshal(m)
	if err != nil {
		panic(err) // it was made right here
	}
	return payload
}

// messageOf names a message. Pages and their acknowledgements come twice in an
// attempt, for the offer and for what has changed since: the number tells which.
func messageOf(from side, payload []byte) string {
	var m proto.Message = &pb.ServerMessage{}
	if from == successor {
		m = &pb.ClientMessage{}
	}
	if err := proto.Unmarshal(payload, m); err != nil {
		return "no message"
	}
	member := m.ProtoReflect().WhichOneof(m.ProtoReflect().Descriptor().Oneofs().Get(0))
	if member == nil {
		return "an unknown message"
	}
	name := string(member.Message().Name())
	number := -1
	switch m := m.(type) {
	case *pb.ServerMessage:
		if m.GetManifestPage() != nil {
			number = int(m.GetManifestPage().GetPage())
		}
	case *pb.ClientMessage:
		if m.GetPageAck() != nil {
			number = int(m.GetPageAck().GetNext()) - 1
		}
	}
	if number >= 0 {
		return fmt.Sprintf("%s.%d", name, number)
	}
	return name
}

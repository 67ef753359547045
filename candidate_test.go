//go:build unix

package crossfade_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// candidate is a successor that goes exactly as far as a test wants. It speaks
// the protocol by hand, so that it can stop, lie and die between any two
// messages. To its owner its Close looks as the death of a process does.
type candidate struct {
	t       testing.TB
	unix    *net.UnixConn // below conn
	conn    *scm.Conn
	done    int    // how many of candidateSteps
	last    string // the name of the last of them
	welcome *pb.Welcome
	page    uint32
	fds     []*scm.FD // what it was given
	listed  []*pb.Descriptor
}

// candidateStep ends when its message was sent, or was read.
type candidateStep struct {
	name string
	do   func(*candidate)
}

// candidateSteps are the steps in their order.
var candidateSteps = []candidateStep{
	{"connecting", func(*candidate) {}},
	{"Hello", func(c *candidate) { c.sendHello(1, pb.Role_ROLE_SUCCESSOR) }},
	{"Welcome", (*candidate).readWelcome},
	{"Prepared", func(c *candidate) {
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Prepared{Prepared: &pb.Prepared{}}})
	}},
	{"ManifestPage", (*candidate).readPages},
	{"Received", func(c *candidate) {
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Received{Received: &pb.Received{}}})
	}},
	{"Ready", func(c *candidate) {
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Ready{Ready: &pb.Ready{}}})
	}},
	{"the last page", (*candidate).readPages},
	{"FinalReceived", func(c *candidate) {
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_FinalReceived{FinalReceived: &pb.FinalReceived{}}})
	}},
	{"Commit", func(c *candidate) {
		if m := c.next(); m.GetCommit() == nil {
			c.t.Fatalf("candidate: %v instead of Commit", m)
		}
	}},
	{"CommitAck", func(c *candidate) {
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_CommitAck{CommitAck: &pb.CommitAck{Settle: true}}})
	}},
	{"Retired", func(c *candidate) {
		if m := c.next(); m.GetRetired() == nil {
			c.t.Fatalf("candidate: %v instead of Retired", m)
		}
	}},
}

// dialControl connects to a control socket. The end of the test closes what is
// still open.
func dialControl(t testing.TB, socket string) *candidate {
	t.Helper()
	unix, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := scm.NewConn(unix)
	if err != nil {
		t.Fatal(err)
	}
	c := &candidate{t: t, unix: unix, conn: conn, done: 1, last: candidateSteps[0].name}
	t.Cleanup(c.close)
	return c
}

// newCandidate connects and does every step up to the named one.
func newCandidate(t testing.TB, socket, step string) *candidate {
	t.Helper()
	c := dialControl(t, socket)
	c.reach(step)
	return c
}

// insist is newCandidate for a socket whose owner is just changing, or may be
// busy: as a successor does, it asks again after a refusal that passes.
func insist(t testing.TB, socket, step string) *candidate {
	t.Helper()
	for {
		c := newCandidate(t, socket, "Hello")
		m := c.next()
		if c.welcome = m.GetWelcome(); c.welcome != nil {
			c.done++
			c.reach(step)
			return c
		}
		switch m.GetRefuse().GetCode() {
		case pb.RefuseCode_REFUSE_CODE_MOVED, pb.RefuseCode_REFUSE_CODE_NOT_READY, pb.RefuseCode_REFUSE_CODE_BUSY:
			c.wantEnd() // held open until asking again is worthwhile
		default:
			t.Fatalf("candidate: %v instead of Welcome", m)
		}
	}
}

// reach does every step that is left up to the named one.
func (c *candidate) reach(step string) {
	c.t.Helper()
	end := slices.IndexFunc(candidateSteps, func(s candidateStep) bool { return s.name == step })
	if end < 0 {
		c.t.Fatalf("no step is named %q", step)
	}
	for ; c.done <= end; c.done++ {
		candidateSteps[c.done].do(c)
		c.last = candidateSteps[c.done].name
	}
}

// close is what the kernel does to a process that dies, but for the moment: a
// process that the tests are just starting holds the socket until its exec.
func (c *candidate) close() {
	_ = c.conn.Close() // a second time is no news
	for _, fd := range c.fds {
		_ = fd.Close()
	}
}

func (c *candidate) send(m *pb.ClientMessage) {
	c.t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.conn.Send(inTime(c.t), payload); err != nil {
		c.t.Fatalf("candidate: sending %v: %v", m, err)
	}
}

// write sends bytes as they are.
func (c *candidate) write(b []byte) {
	c.t.Helper()
	if _, err := c.unix.Write(b); err != nil {
		c.t.Fatalf("candidate: %v", err)
	}
}

// sendDescriptors sends a frame that carries n descriptors. Where the kernel lets none
// through to an owner the frame says that it has them.
func (c *candidate) sendDescriptors(n int) {
	c.t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		c.t.Fatal(err)
	}
	defer null.Close()
	fd, err := scm.DupFD(null)
	if err != nil {
		c.t.Fatal(err)
	}
	defer fd.Close()
	err = c.conn.Send(inTime(c.t), []byte("x"), slices.Repeat([]*scm.FD{fd}, n)...)
	if errors.Is(err, syscall.EPERM) {
		c.write(binary.BigEndian.AppendUint16([]byte{0, 0, 0, 1}, uint16(n)))
		c.write([]byte{0, 0, 'x'})
		return
	}
	if err != nil {
		c.t.Fatalf("candidate: %v", err)
	}
}

// read returns the next message, or how the connection ended.
func (c *candidate) read() (*pb.ServerMessage, error) {
	payload, fds, err := c.conn.Receive(inTime(c.t), scm.MaxDescriptors)
	if err != nil {
		return nil, err
	}
	c.fds = append(c.fds, fds...)
	m := new(pb.ServerMessage)
	return m, proto.Unmarshal(payload, m)
}

func (c *candidate) next() *pb.ServerMessage {
	c.t.Helper()
	m, err := c.read()
	if err != nil {
		c.t.Fatalf("candidate, after %s: %v", c.last, err)
	}
	return m
}

// wantEnd fails unless the owner closes without another message than how its
// drain goes.
func (c *candidate) wantEnd() {
	c.t.Helper()
	m, err := c.read()
	for err == nil && m.GetDraining() != nil {
		m, err = c.read()
	}
	if !errors.Is(err, io.EOF) {
		c.t.Errorf("candidate: got %v, %v instead of the end of the connection", m, err)
	}
}

// wantAbort returns the owner's reason for giving the attempt up.
func (c *candidate) wantAbort() string {
	c.t.Helper()
	m := c.next()
	if m.GetAbort() == nil {
		c.t.Fatalf("candidate: %v instead of Abort", m)
	}
	c.wantEnd()
	return m.GetAbort().GetReason()
}

// wantRefusal returns the owner's refusal.
func (c *candidate) wantRefusal(code pb.RefuseCode) *pb.Refuse {
	c.t.Helper()
	m := c.next()
	if m.GetRefuse().GetCode() != code {
		c.t.Fatalf("candidate: %v instead of a refusal with %v", m, code)
	}
	return m.GetRefuse()
}

func (c *candidate) sendHello(version uint32, role pb.Role) {
	c.t.Helper()
	c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: &pb.Hello{
		Versions: []uint32{version}, Role: role, Process: &pb.Process{Instance: "by hand"},
	}}})
}

func (c *candidate) readWelcome() {
	c.t.Helper()
	m := c.next()
	if c.welcome = m.GetWelcome(); c.welcome == nil {
		c.t.Fatalf("candidate: %v instead of Welcome", m)
	}
}

// readPages takes pages in up to one that is the last.
func (c *candidate) readPages() {
	c.t.Helper()
	for {
		m := c.next()
		p := m.GetManifestPage()
		if p == nil {
			c.t.Fatalf("candidate: %v instead of ManifestPage", m)
		}
		c.listed = append(c.listed, p.GetDescriptors()...)
		c.page = p.GetPage() + 1
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_PageAck{PageAck: &pb.PageAck{Next: c.page}}})
		if p.GetLast() {
			return
		}
	}
}

// ownerByHand is the counterpart of a candidate: an owner that goes exactly as
// far as a test wants.
type ownerByHand struct {
	t    testing.TB
	path string
	ln   *net.UnixListener
	conn *scm.Conn
	page uint32 // the next one's number
}

// newOwnerByHand serves the control path, without a lock. The end of the test
// closes what is still open.
func newOwnerByHand(t testing.TB, path string) *ownerByHand {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	o := &ownerByHand{t: t, path: path, ln: ln}
	t.Cleanup(o.die)
	return o
}

// die is what the kernel does to a process that dies.
func (o *ownerByHand) die() {
	_ = o.ln.Close() // a second time is no news
	if o.conn != nil {
		_ = o.conn.Close()
	}
}

func (o *ownerByHand) accept() {
	o.t.Helper()
	if err := o.ln.SetDeadline(time.Now().Add(generous)); err != nil {
		o.t.Fatal(err)
	}
	c, err := o.ln.AcceptUnix()
	if err != nil {
		o.t.Fatal(err)
	}
	if o.conn, err = scm.NewConn(c); err != nil {
		o.t.Fatal(err)
	}
}

func (o *ownerByHand) next() (*pb.ClientMessage, error) {
	payload, _, err := o.conn.Receive(inTime(o.t), 0)
	if err != nil {
		return nil, err
	}
	m := new(pb.ClientMessage)
	return m, proto.Unmarshal(payload, m)
}

// expect reads a message of which is returns true.
func (o *ownerByHand) expect(name string, is func(*pb.ClientMessage) bool) {
	o.t.Helper()
	if m, err := o.next(); err != nil || !is(m) {
		o.t.Fatalf("owner: got %v, %v instead of %s", m, err, name)
	}
}

func (o *ownerByHand) send(m *pb.ServerMessage, fds ...*scm.FD) {
	o.t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.conn.Send(inTime(o.t), payload, fds...); err != nil {
		o.t.Fatalf("owner: sending %v: %v", m, err)
	}
}

func (o *ownerByHand) readHello() {
	o.t.Helper()
	o.expect("Hello", func(m *pb.ClientMessage) bool { return m.GetHello() != nil })
}

func (o *ownerByHand) sendWelcome(generation uint64, total int) {
	o.t.Helper()
	o.welcome(generation, total, 0)
}

// sendWelcomeFor grants a probation, to generation 7.
func (o *ownerByHand) sendWelcomeFor(probation time.Duration, total int) {
	o.t.Helper()
	o.welcome(7, total, probation)
}

func (o *ownerByHand) welcome(generation uint64, total int, probation time.Duration) {
	o.t.Helper()
	o.send(&pb.ServerMessage{Message: &pb.ServerMessage_Welcome{Welcome: &pb.Welcome{
		Version: 1, Predecessor: &pb.Process{Instance: "by hand"}, Generation: generation, Total: uint32(total),
		ReadyTimeout: durationpb.New(generous), MaxReadyTimeout: durationpb.New(generous), CommitTimeout: durationpb.New(generous),
		Probation: durationpb.New(probation),
	}}})
}

func (o *ownerByHand) sendPage(p *pb.ManifestPage, fds []*scm.FD) {
	o.t.Helper()
	o.send(&pb.ServerMessage{Message: &pb.ServerMessage_ManifestPage{ManifestPage: p}}, fds...)
}

// sendPages sends pages, the last of them marked, numbered from first on.
func (o *ownerByHand) sendPages(first uint32, ds []*pb.Descriptor, fds []*scm.FD) {
	o.t.Helper()
	for {
		n := min(len(ds), scm.MaxDescriptors)
		o.sendPage(&pb.ManifestPage{Page: first, Descriptors: ds[:n], Last: n == len(ds)}, fds[:n])
		first++
		o.expect("PageAck", func(m *pb.ClientMessage) bool { return m.GetPageAck().GetNext() == first })
		if ds, fds = ds[n:], fds[n:]; len(ds) == 0 {
			o.page = first
			return
		}
	}
}

// offer does everything from Hello to Received, with generation 7.
func (o *ownerByHand) offer(ds []*pb.Descriptor, fds []*scm.FD) {
	o.t.Helper()
	o.readHello()
	o.sendWelcome(7, len(ds))
	o.expect("Prepared", func(m *pb.ClientMessage) bool { return m.GetPrepared() != nil })
	o.sendPages(0, ds, fds)
	o.expect("Received", func(m *pb.ClientMessage) bool { return m.GetReceived() != nil })
}

// commit does everything from Ready to CommitAck.
func (o *ownerByHand) commit() {
	o.t.Helper()
	o.expect("Ready", func(m *pb.ClientMessage) bool { return m.GetReady() != nil })
	o.sendPages(o.page, nil, nil)
	o.expect("FinalReceived", func(m *pb.ClientMessage) bool { return m.GetFinalReceived() != nil })
	o.send(&pb.ServerMessage{Message: &pb.ServerMessage_Commit{Commit: &pb.Commit{}}})
	o.expect("CommitAck", func(m *pb.ClientMessage) bool { return m.GetCommitAck() != nil })
}

func (o *ownerByHand) retire() {
	o.t.Helper()
	o.send(&pb.ServerMessage{Message: &pb.ServerMessage_Retired{Retired: &pb.Retired{}}})
}

// wantEnd fails unless the successor closes without another message.
func (o *ownerByHand) wantEnd() {
	o.t.Helper()
	if m, err := o.next(); !errors.Is(err, io.EOF) {
		o.t.Errorf("owner: got %v, %v instead of the end of the connection", m, err)
	}
}

// manyListeners opens n TCP listeners and describes them by the names that the
// command "listen many" uses. The end of the test closes them.
func manyListeners(t testing.TB, n int) ([]*pb.Descriptor, []*scm.FD) {
	t.Helper()
	var ds []*pb.Descriptor
	var fds []*scm.FD
	t.Cleanup(func() {
		for _, fd := range fds {
			_ = fd.Close()
		}
	})
	for i := range n {
		spec := manySocket(i)
		ln, err := net.Listen(spec.Network, spec.Address)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := scm.DupFD(ln.(*net.TCPListener))
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		d := describe(t, fd)
		d.Id, d.Name = uint64(i+1), spec.Name
		d.Kind, d.Network, d.Address = pb.Kind_KIND_LISTENER, "tcp", ln.Addr().String()
		ds = append(ds, d)
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return ds, fds
}

// describe says what the kernel says of a descriptor.
func describe(t testing.TB, fd *scm.FD) *pb.Descriptor {
	t.Helper()
	id, err := fd.Identify()
	if err != nil {
		t.Fatal(err)
	}
	return &pb.Descriptor{Identity: &pb.Identity{
		Type: pb.FileType(id.Type), Domain: int32(id.Domain), SocketType: int32(id.SockType), Protocol: int32(id.Protocol),
		Listening: id.Listening, Cookie: id.Cookie, Dev: id.Dev, Ino: id.Ino, Network: id.Network, Address: id.Address,
	}}
}

// generous is how long a test waits for what must happen at all.
const generous = time.Minute

// inTime is a context for what must happen at all.
func inTime(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), generous)
	t.Cleanup(cancel)
	return ctx
}

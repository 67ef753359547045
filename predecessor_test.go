//go:build unix

package crossfade_test

import (
	"net"
	"os"
	"syscall"
	"testing"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// offered is a descriptor, and what a manifest says of it.
type offered struct {
	fd      *scm.FD
	entry   *pb.Descriptor
	address string
}

// offerListener opens a listener for a manifest.
func offerListener(t testing.TB, name string) offered {
	t.Helper()
	ln, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return describeAs(t, name, pb.Kind_KIND_LISTENER, ln.(syscall.Conn), ln.Addr())
}

// offerPacketConn opens a packet conn for a manifest.
func offerPacketConn(t testing.TB, name string) offered {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return describeAs(t, name, pb.Kind_KIND_PACKET_CONN, pc.(syscall.Conn), pc.LocalAddr())
}

// offerPipe opens a pipe for a manifest.
func offerPipe(t testing.TB, name string) offered {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	return describeAs(t, name, pb.Kind_KIND_FILE, r, nil)
}

// describeAs duplicates a descriptor and describes it as it is. The end of the test
// closes the duplicate.
func describeAs(t testing.TB, name string, kind pb.Kind, opened syscall.Conn, addr net.Addr) offered {
	t.Helper()
	fd, err := scm.DupFD(opened)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	id, err := fd.Identify()
	if err != nil {
		t.Fatal(err)
	}
	o := offered{fd: fd, entry: &pb.Descriptor{
		Id: uint64(id.Ino), Name: name, Kind: kind,
		Identity: &pb.Identity{
			Type: pb.FileType(id.Type), Domain: int32(id.Domain), SocketType: int32(id.SockType), Protocol: int32(id.Protocol),
			Listening: id.Listening, Cookie: id.Cookie, Dev: id.Dev, Ino: id.Ino, Network: id.Network, Address: id.Address,
		},
	}}
	if addr != nil {
		o.entry.Network, o.entry.Address, o.address = addr.Network(), addr.String(), addr.String()
	}
	return o
}

// tender accepts a candidate and offers it these descriptors. It returns the
// reason of its Abort, or an empty text once it has received them.
func (o *ownerByHand) tender(ds ...offered) string {
	o.t.Helper()
	o.accept()
	o.readHello()
	o.sendWelcome(7, len(ds))
	o.expect("Prepared", func(m *pb.ClientMessage) bool { return m.GetPrepared() != nil })
	page, fds := manifestPage(0, ds)
	o.send(page, fds...)
	for {
		m, err := o.next()
		switch {
		case err != nil:
			o.t.Fatalf("owner: %v", err)
		case m.GetAbort() != nil:
			return m.GetAbort().GetReason()
		case m.GetReceived() != nil:
			return ""
		case m.GetPageAck() == nil:
			o.t.Fatalf("owner: %v instead of Received", m)
		}
	}
}

// manifestPage makes a page, the last one, of these descriptors.
func manifestPage(number uint32, ds []offered) (*pb.ServerMessage, []*scm.FD) {
	page := &pb.ManifestPage{Page: number, Last: true}
	var fds []*scm.FD
	for _, d := range ds {
		page.Descriptors = append(page.Descriptors, d.entry)
		fds = append(fds, d.fd)
	}
	return &pb.ServerMessage{Message: &pb.ServerMessage_ManifestPage{ManifestPage: page}}, fds
}

// commitWith waits for Ready and does everything up to CommitAck. The last page adds
// these descriptors.
func (o *ownerByHand) commitWith(late ...offered) {
	o.t.Helper()
	o.expect("Ready", func(m *pb.ClientMessage) bool { return m.GetReady() != nil })
	page, fds := manifestPage(1, late)
	o.send(page, fds...)
	o.expect("PageAck", func(m *pb.ClientMessage) bool { return m.GetPageAck().GetNext() == 2 })
	o.expect("FinalReceived", func(m *pb.ClientMessage) bool { return m.GetFinalReceived() != nil })
	o.send(&pb.ServerMessage{Message: &pb.ServerMessage_Commit{Commit: &pb.Commit{}}})
	o.expect("CommitAck", func(m *pb.ClientMessage) bool { return m.GetCommitAck().GetSettle() })
}

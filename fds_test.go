//go:build unix

package crossfade_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	serviceCommands["add file"] = addFile
	serviceCommands["read file"] = readFile
	serviceCommands["add conn"] = addConn
	serviceCommands["conn"] = inheritConn
	serviceCommands["identify"] = identifySocket
	serviceCommands["raw"] = rawType
	serviceCommands["nonblocking"] = isNonblocking
}

// fileArgs is the argument of "add file": a regular file at Path, or a pipe that
// holds Content.
type fileArgs struct{ Name, Path, Content string }

func addFile(s *service, value json.RawMessage) (any, error) {
	var args fileArgs
	if err := json.Unmarshal(value, &args); err != nil {
		return nil, err
	}
	file, err := openFile(args)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return nil, s.upg.Fds().AddFile(args.Name, file)
}

func openFile(args fileArgs) (*os.File, error) {
	if args.Path != "" {
		return os.Open(args.Path)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	_, err = io.WriteString(w, args.Content)
	return r, err
}

// readArgs is the argument of "read file". N is how many bytes it reads at most.
type readArgs struct {
	Name string
	N    int
}

func readFile(s *service, value json.RawMessage) (any, error) {
	var args readArgs
	if err := json.Unmarshal(value, &args); err != nil {
		return nil, err
	}
	file, err := s.upg.Fds().File(args.Name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	buf := make([]byte, args.N)
	n, err := io.ReadFull(file, buf)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return string(buf[:n]), err
}

// addConn dials the address that is its argument and registers the connection
// under the name "conn".
func addConn(s *service, value json.RawMessage) (any, error) {
	address, err := text(value)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return nil, s.upg.Fds().AddConn("conn", c)
}

// inheritConn takes that connection and says a word on it.
func inheritConn(s *service, _ json.RawMessage) (any, error) {
	c, err := s.upg.Fds().Conn("conn")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "%d 0\n", os.Getpid())
	return nil, err
}

// socket finds what the process has opened under the name that is in value.
func (s *service) socket(value json.RawMessage) (io.Closer, error) {
	name, err := text(value)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	socket := s.sockets[name]
	if p, ok := socket.(*packetServer); ok {
		return p.PacketConn, nil
	}
	if socket == nil {
		return nil, fmt.Errorf("nothing is called %q", name)
	}
	return socket, nil
}

// identifySocket returns the scm.Identity of a socket.
func identifySocket(s *service, value json.RawMessage) (any, error) {
	socket, err := s.socket(value)
	if err != nil {
		return nil, err
	}
	fd, err := scm.DupFD(socket.(syscall.Conn))
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	return fd.Identify()
}

// rawType returns the type of what is below a socket.
func rawType(s *service, value json.RawMessage) (any, error) {
	socket, err := s.socket(value)
	if err != nil {
		return nil, err
	}
	return fmt.Sprintf("%T", crossfade.Raw(socket)), nil
}

// isNonblocking reports whether a socket's description is in non-blocking mode.
func isNonblocking(s *service, value json.RawMessage) (any, error) {
	socket, err := s.socket(value)
	if err != nil {
		return nil, err
	}
	rc, err := socket.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var flags int
	var failed error
	err = rc.Control(func(fd uintptr) { flags, failed = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	return flags&unix.O_NONBLOCK != 0, errors.Join(err, failed)
}

// everyStream is a listener of each network.
func everyStream(d *desk) []socketSpec {
	return []socketSpec{
		{Name: "tcp", Network: "tcp", Address: "localhost:0"},
		{Name: "all", Network: "tcp", Address: ":0"},
		{Name: "tcp4", Network: "tcp4", Address: "127.0.0.1:0"},
		{Name: "tcp6", Network: "tcp6", Address: "[::1]:0"},
		{Name: "unix", Network: "unix", Address: d.path("u")},
		{Name: "unixpacket", Network: "unixpacket", Address: d.path("p")},
	}
}

func TestEveryKindOfListenerPasses(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: everyStream(d), Ready: true}
	owner := d.launch(spec)
	addresses := make(map[string]string)
	first := make(map[string]scm.Identity)
	for _, s := range spec.Sockets {
		addresses[s.Name] = owner.address(s.Name)
		first[s.Name] = query[scm.Identity](owner, "identify", s.Name)
	}
	owner.expect("ready")
	for range 2 {
		next := d.launch(spec)
		next.expect("ready")
		next.expect("gone")
		for _, s := range spec.Sockets {
			if address := next.address(s.Name); address != addresses[s.Name] {
				t.Errorf("%s: %s became %s", s.Name, addresses[s.Name], address)
			}
			if a := ask(t, s.Network, addresses[s.Name]); a.PID != next.pid {
				t.Errorf("%s: process %d answered", s.Name, a.PID)
			}
			// MPTCP stays MPTCP: the socket is the same one.
			if id := query[scm.Identity](next, "identify", s.Name); id != first[s.Name] {
				t.Errorf("%s: the socket was %+v and is %+v", s.Name, first[s.Name], id)
			}
		}
		for _, s := range next.status().Descriptors {
			if s.Origin != handoff.OriginInherited {
				t.Errorf("%s is %v", s.Name, s.Origin)
			}
		}
	}
}

// TestEachPacketIsAnsweredOnce: two processes that read one socket would split
// its packets, and one that stopped reading would leave some unanswered.
func TestEachPacketIsAnsweredOnce(t *testing.T) {
	for _, network := range []string{"udp", "udp4", "udp6", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{packetSpec(d, network)}, Ready: true}
			owner := d.launch(spec)
			stream := newPacketStream(t, d, network, owner.address("dns"))
			owner.expect("ready")
			stream.flow()
			for range 3 {
				stream.answeredBy(owner)
				next := d.launch(spec)
				next.expect("ready")
				stream.answeredBy(next)
				if status := owner.exitStatus(); status != 0 {
					t.Errorf("the predecessor's exit status is %d", status)
				}
				owner = next
			}
			// A candidate reads nothing, and its end is no loss.
			candidate := spec
			candidate.Ready = false
			failed := d.launch(candidate)
			failed.address("dns")
			stream.more(100)
			failed.kill()
			stream.more(100)
			counts := stream.stop()
			if counts[failed.pid] != 0 {
				t.Errorf("the candidate has answered %d packets", counts[failed.pid])
			}
		})
	}
}

func packetSpec(d *desk, network string) socketSpec {
	spec := socketSpec{Name: "dns", Network: network, Address: "127.0.0.1:0"}
	switch network {
	case "udp6":
		spec.Address = "[::1]:0"
	case "unixgram":
		spec.Address = d.path("dns")
	}
	return spec
}

// packetStream sends numbered packets and counts the answers to each.
type packetStream struct {
	*load
	conn    net.Conn
	answers []int         // per packet, under mu
	spans   map[int]*span // per process, under mu
}

// span is the first and the last packet that a process has read.
type span struct{ pid, first, last int }

// windowSize bounds the packets that are unanswered, so that the socket's buffer
// holds all of them while nobody reads.
const windowSize = 16

func newPacketStream(t *testing.T, d *desk, network, address string) *packetStream {
	t.Helper()
	s := &packetStream{load: &load{t: t, counts: make(map[int]int), news: make(chan struct{})}, spans: make(map[int]*span)}
	var err error
	if network == "unixgram" { // without an address of its own it would get no answer
		s.conn, err = net.DialUnix(network, &net.UnixAddr{Name: d.path("client"), Net: network}, &net.UnixAddr{Name: address, Net: network})
	} else {
		s.conn, err = net.Dial(network, address)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// flow starts sending.
func (s *packetStream) flow() {
	stop := make(chan struct{})
	s.cancel = func() { close(stop) }
	window := make(chan struct{}, windowSize)
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		defer close(window)
		for n := 0; ; n++ {
			select {
			case window <- struct{}{}:
			case <-stop:
				return
			}
			s.mu.Lock()
			s.answers = append(s.answers, 0)
			s.mu.Unlock()
			if _, err := fmt.Fprintf(s.conn, "%d", n); err != nil {
				s.note(fmt.Errorf("sending packet %d: %w", n, err), 0, 0)
				return
			}
		}
	}()
	go func() {
		defer s.wg.Done()
		buf := make([]byte, 1000)
		for range window { // as many answers as packets
			_ = s.conn.SetReadDeadline(time.Now().Add(generous))
			k, err := s.conn.Read(buf)
			var pid, n int
			var generation uint64
			if err == nil {
				_, err = fmt.Fscanf(bytes.NewReader(buf[:k]), "%d %d\n%d", &pid, &generation, &n)
			}
			s.note(err, pid, n)
			if err != nil {
				for range window { // so that the sender ends
				}
				return
			}
		}
	}()
	s.t.Cleanup(func() { s.conn.Close() })
}

func (s *packetStream) note(err error, pid, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.failed = append(s.failed, err)
	case n >= len(s.answers):
		s.failed = append(s.failed, fmt.Errorf("packet %d was answered and never sent", n))
	default:
		s.answers[n]++
		s.counts[pid]++
		if s.spans[pid] == nil {
			s.spans[pid] = &span{pid, n, n}
		}
		s.spans[pid].first, s.spans[pid].last = min(s.spans[pid].first, n), max(s.spans[pid].last, n)
	}
	close(s.news)
	s.news = make(chan struct{})
}

// answeredBy waits until the process has answered some packets.
func (s *packetStream) answeredBy(p *process) {
	s.t.Helper()
	s.until(fmt.Sprintf("answers of process %d", p.pid), func() bool { return s.counts[p.pid] > 50 })
}

// stop fails the test unless each packet had one answer, and no process read one
// after another had begun to: a queue is read in order.
func (s *packetStream) stop() map[int]int {
	s.t.Helper()
	counts := s.load.stop()
	for n, answers := range s.answers {
		if answers != 1 {
			s.t.Errorf("packet %d of %d had %d answers", n, len(s.answers), answers)
		}
	}
	spans := slices.SortedFunc(maps.Values(s.spans), func(a, b *span) int { return a.first - b.first })
	for i, now := range spans[1:] {
		if before := spans[i]; before.last >= now.first {
			s.t.Errorf("process %d read packet %d though process %d had read packet %d", before.pid, before.last, now.pid, now.first)
		}
	}
	return counts
}

func TestFilesPass(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	regular := d.path("regular")
	if err := os.WriteFile(regular, []byte("one two three "), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := serviceSpec{Socket: d.path("control")}
	owner := d.launch(spec.ready())
	owner.expect("ready")
	files := []fileArgs{{Name: "pipe", Content: "one two three "}, {Name: "regular", Path: regular}}
	for _, args := range files {
		owner.do("add file", args)
	}
	// What one process reads the next does not see: the offset is shared.
	for _, want := range []string{"one ", "two ", "three "} {
		next := d.launch(spec)
		next.expect("new")
		for _, args := range files {
			if got := query[string](next, "read file", readArgs{args.Name, len(want)}); got != want {
				t.Errorf("%s: read %q, want %q", args.Name, got, want)
			}
			if err := next.try("read file", readArgs{args.Name, 1}).Err; !errors.Is(err, crossfade.ErrNameTaken) {
				t.Errorf("%s, asked for twice: %v", args.Name, err)
			}
			if err := next.try("add file", args).Err; !errors.Is(err, crossfade.ErrNameTaken) {
				t.Errorf("%s, added though inherited: %v", args.Name, err)
			}
		}
		if err := next.try("read file", readArgs{"nothing", 1}).Err; !errors.Is(err, crossfade.ErrNotInherited) {
			t.Errorf("a name that nobody has: %v", err)
		}
		next.do("ready")
		wantNames(t, next, "pipe inherited", "regular inherited")
	}
}

func TestRawIsWhatIsBelow(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	sockets := append(everyStream(d),
		socketSpec{Name: "udp", Network: "udp", Address: "127.0.0.1:0"},
		socketSpec{Name: "unixgram", Network: "unixgram", Address: d.path("g")})
	for i := range sockets {
		sockets[i].Idle = true
	}
	spec := serviceSpec{Socket: d.path("control"), Sockets: sockets}
	old := d.launch(spec.ready())
	old.expect("ready")
	candidate := d.launch(spec)
	for _, s := range sockets {
		candidate.address(s.Name)
		want := map[string]string{"udp": "*net.UDPConn", "unixgram": "*net.UnixConn", "unix": "*net.UnixListener", "unixpacket": "*net.UnixListener"}[s.Network]
		packets := strings.HasSuffix(want, "Conn")
		if want == "" {
			want = "*net.TCPListener"
		}
		if got := query[string](old, "raw", s.Name); got != want {
			t.Errorf("%s in the owner: %s, want %s", s.Name, got, want)
		}
		if !packets {
			want = "<nil>"
		}
		if got := query[string](candidate, "raw", s.Name); got != want {
			t.Errorf("%s in a candidate: %s, want %s", s.Name, got, want)
		}
	}
	if x := new(bytes.Buffer); crossfade.Raw(x) != any(x) {
		t.Error("what is no wrapper does not stay what it is")
	}
}

// TestAConnLeavesTheRegistry: an established connection is one process's alone.
func TestAConnLeavesTheRegistry(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	spec := serviceSpec{Socket: d.path("control")}
	old := d.launch(spec.ready())
	old.expect("ready")
	dialled := old.begin("add conn", ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := dialled.wait().Err; err != nil {
		t.Fatal(err)
	}
	next := d.launch(spec)
	next.expect("new")
	next.do("conn")
	if a, err := askOn(c); err != nil || a.PID != next.pid {
		t.Errorf("%+v, %v arrived, want the successor's word", a, err)
	}
	if err := next.try("conn").Err; !errors.Is(err, crossfade.ErrNotInherited) {
		t.Errorf("asking twice: %v", err)
	}
	next.do("ready")
	if ds := next.status().Descriptors; len(ds) != 0 {
		t.Errorf("the registry has %v", ds)
	}
	// The predecessor's copy went with its registry, the successor's was closed.
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a copy of the connection is still open: %v", err)
	}
}

// TestTheOtherProcessStaysNonblocking (I12).
func TestTheOtherProcessStaysNonblocking(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	sockets := append(everyStream(d), packetSpec(d, "udp"))
	spec := serviceSpec{Socket: d.path("control"), Sockets: sockets}
	old := d.launch(spec.ready())
	old.expect("ready")
	check := func(when string, p *process) {
		t.Helper()
		for _, s := range sockets {
			if !query[bool](p, "nonblocking", s.Name) {
				t.Errorf("%s: %s blocks in process %d", when, s.Name, p.pid)
			}
		}
	}
	candidate := d.launch(spec)
	candidate.address("dns")
	check("candidate", old)
	candidate.do("stop")
	candidate.await("exit")
	check("candidate gone", old)
	next := d.launch(spec.ready())
	next.expect("ready")
	next.expect("gone")
	check("handed over", next)
}

// names lists the registry of a process as "name origin".
func names(p *process) []string {
	p.desk.t.Helper()
	var list []string
	for _, d := range p.status().Descriptors {
		list = append(list, d.Name+" "+d.Origin.String())
	}
	return list
}

func wantNames(t *testing.T, p *process, want ...string) {
	t.Helper()
	if got := names(p); !slices.Equal(got, want) {
		t.Errorf("process %d has %q, want %q", p.pid, got, want)
	}
}

// TestChangesDuringAnOfferReachTheSuccessor: they travel on its last page.
func TestChangesDuringAnOfferReachTheSuccessor(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := d.launch(serviceSpec{
		Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("kept"), tcpSpec("removed"), tcpSpec("claimed and closed")}, Ready: true,
	})
	removed, closed := old.address("removed"), old.address("claimed and closed")
	old.expect("ready")
	next := d.launch(serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("kept"), tcpSpec("claimed and closed")}})
	next.address("claimed and closed")

	late := query[listening](old, "listen", tcpSpec("late")).Address
	old.do("add file", fileArgs{Name: "late file", Content: "late"})
	old.do("close", "removed")
	old.do("close", "claimed and closed")
	old.do("listen", socketSpec{Name: "came and went", Network: "tcp", Address: "127.0.0.1:0"})
	old.do("close", "came and went")
	wantNames(t, next, "claimed and closed inherited", "kept inherited", "removed unclaimed")

	next.do("ready")
	next.awaitLog("its predecessor has closed", `name="claimed and closed"`)
	if a := ask(t, "tcp", closed); a.PID != next.pid {
		t.Errorf("process %d answered on what the predecessor had closed", a.PID)
	}
	// Late additions can be asked for until Settled, and are closed then.
	next.expect("settled")
	wantNames(t, next, "claimed and closed inherited", "kept inherited")
	next.awaitLog("closing what nobody asked for", "name=late ", late)
	next.awaitLog("closing what nobody asked for", `name="late file"`)
	old.end()
	for _, address := range []string{late, removed} {
		if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialling a listener that nobody asked for: %v", err)
		}
	}
}

// TestLateAdditionsCanBeClaimedUntilSettled has a predecessor that does not
// retire. What was offered and not asked for is closed before.
func TestLateAdditionsCanBeClaimedUntilSettled(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := newOwnerByHand(t, d.path("control"))
	next := d.launch(web(d))
	admin, late := offerListener(t, "admin"), offerListener(t, "late")
	old.tender(admin)
	next.address("web")
	wantNames(t, next, "admin unclaimed", "web added")
	ready := next.begin("ready")
	old.commitWith(late)
	if err := ready.wait().Err; err != nil {
		t.Fatal(err)
	}
	wantNames(t, next, "late unclaimed", "web added")
	if a := query[listening](next, "listen", socketSpec{Name: "late", Network: "tcp", Address: late.address}); a.Address != late.address {
		t.Errorf("asking for the late listener gave one on %s, want %s", a.Address, late.address)
	}
	old.retire()
	old.die()
	next.expect("settled")
	wantNames(t, next, "late inherited", "web added")
	if a := ask(t, "tcp", late.address); a.PID != next.pid {
		t.Errorf("process %d answered", a.PID)
	}
}

// TestLateAdditionsNeedNotBeClaimed: the program could not know of them.
func TestLateAdditionsNeedNotBeClaimed(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := newOwnerByHand(t, d.path("control"))
	spec := web(d)
	spec.RequireAllClaimed = true
	next := d.launch(spec.ready())
	old.tender()
	old.commitWith(offerListener(t, "late"))
	next.expect("ready")
	old.retire()
	next.expect("settled")
	wantNames(t, next, "web added")
}

// TestUnclaimedDescriptorsAreNamedAndClosed: a listener that nobody accepts from
// swallows clients.
func TestUnclaimedDescriptorsAreNamedAndClosed(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web"), tcpSpec("admin")}, Ready: true}
	old := d.launch(spec)
	admin := old.address("admin")
	old.expect("ready")
	next := d.launch(web(d))
	next.address("web")
	if a := ask(t, "tcp", admin); a.PID != old.pid {
		t.Errorf("process %d answered before the handoff", a.PID)
	}
	next.do("ready")
	old.awaitLog("did not ask for everything", "count=1", "[admin]")
	next.awaitLog("closing what nobody asked for", "name=admin", admin)
	old.await("exit")
	if _, err := net.Dial("tcp", admin); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling what nobody asked for: %v", err)
	}
	again, err := net.Listen("tcp", admin)
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	again.Close()
}

// TestAnUnclaimedPathIsUnlinkedAtSettled: before, the predecessor may come back to
// it, and afterwards nobody else would.
func TestAnUnclaimedPathIsUnlinkedAtSettled(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{{Name: "local", Network: "unix", Address: d.path("local")}}}
	old := d.launch(spec.ready())
	old.expect("ready")
	forgetful := serviceSpec{Socket: d.path("control")}
	failed := d.launch(forgetful)
	failed.expect("new")
	failed.kill()
	old.awaitFailure()
	wantSocket(t, d.path("local"))
	if a := ask(t, "unix", d.path("local")); a.PID != old.pid {
		t.Errorf("process %d answered", a.PID)
	}
	next := d.launch(forgetful.ready())
	next.expect("settled")
	wantMissing(t, d.path("local"))
}

func TestRequireAllClaimed(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web"), tcpSpec("admin")}, Ready: true}
	old := d.launch(spec)
	admin := old.address("admin")
	old.expect("ready")
	forgetful := web(d)
	forgetful.RequireAllClaimed = true
	next := d.launch(forgetful.ready())
	err := next.await("ready").Err
	if !errors.Is(err, crossfade.ErrUnclaimed) || !strings.Contains(err.Error(), `"admin" (tcp `+admin+")") {
		t.Errorf("Ready returned %v", err)
	}
	if status := next.exitStatus(); status != 1 {
		t.Errorf("the exit status is %d", status)
	}
	old.awaitFailure(`\"admin\"`)
	if f := old.status().LastFailure; f == nil || !strings.Contains(f.Reason, `"admin"`) {
		t.Errorf("the last failure is %+v", f)
	}
	spec.RequireAllClaimed = true
	d.launch(spec).expect("ready")
}

// TestARegistryWaitsForCommit drives an owner to the point between Ready and
// Commit, where its registry stands still.
func TestARegistryWaitsForCommit(t *testing.T) {
	tests := []struct {
		name    string
		command string
		args    any
	}{
		{"Listen", "listen", tcpSpec("new")},
		{"ListenPacket", "listen", socketSpec{Name: "new", Network: "udp", Address: "127.0.0.1:0"}},
		{"AddFile", "add file", fileArgs{Name: "new", Content: "x"}},
		{"Remove", "remove", "web"},
	}
	for _, test := range tests {
		t.Run(test.name+" succeeds after an abort", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(web(d).ready())
			old.expect("ready")
			c := newCandidate(t, d.path("control"), "the last page")
			change := old.begin(test.command, test.args)
			for range 10 {
				old.do("state") // time enough to come through
			}
			if change.answered() {
				t.Fatal("the registry has changed")
			}
			c.close()
			if err := change.wait().Err; err != nil {
				t.Errorf("after the abort: %v", err)
			}
		})
		t.Run(test.name+" fails after CommitTimeout", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			spec := web(d)
			spec.CommitTimeout = time.Second
			old := d.launch(spec.ready())
			old.expect("ready")
			// On standby the registry still stands still, and has no limit.
			c := newCandidate(t, d.path("control"), "Commit")
			err := old.try(test.command, test.args).Err
			if !errors.Is(err, crossfade.ErrHandoffInProgress) || !strings.Contains(err.Error(), "1s") {
				t.Errorf("got %v", err)
			}
			c.close()
			old.awaitFailure()
			if err := old.try(test.command, test.args).Err; err != nil {
				t.Errorf("after the successor's end: %v", err)
			}
		})
	}
	t.Run("a Listen that fails leaves no path", func(t *testing.T) {
		leak.Check(t)
		d := newDesk(t)
		spec := web(d)
		spec.CommitTimeout = time.Second
		old := d.launch(spec.ready())
		old.expect("ready")
		newCandidate(t, d.path("control"), "Commit")
		for _, network := range []string{"unix", "unixgram"} {
			err := old.try("listen", socketSpec{Name: network, Network: network, Address: d.path("local")}).Err
			if !errors.Is(err, crossfade.ErrHandoffInProgress) {
				t.Errorf("%s: got %v", network, err)
			}
			wantMissing(t, d.path("local"))
		}
	})
	t.Run("a path is unlinked though Close could not wait", func(t *testing.T) {
		leak.Check(t)
		d := newDesk(t)
		spec := serviceSpec{
			Socket: d.path("control"), CommitTimeout: time.Second,
			Sockets: []socketSpec{{Name: "local", Network: "unix", Address: d.path("local")}},
		}
		old := d.launch(spec.ready())
		old.expect("ready")
		c := newCandidate(t, d.path("control"), "Commit")
		old.do("close", "local")
		wantSocket(t, d.path("local")) // it may be the successor's by now
		c.close()
		old.awaitFailure()
		wantMissing(t, d.path("local"))
		wantNames(t, old)
	})
	t.Run("Close does not wait for ever", func(t *testing.T) {
		leak.Check(t)
		d := newDesk(t)
		spec := web(d)
		spec.CommitTimeout = time.Second
		old := d.launch(spec.ready())
		old.expect("ready")
		c := newCandidate(t, d.path("control"), "Commit")
		old.do("close", "web")
		c.close()
		old.awaitFailure()
		wantNames(t, old)
	})
}

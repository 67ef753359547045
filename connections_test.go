//go:build unix

package crossfade_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
)

// connSpec is the argument of the commands about connections.
type connSpec struct {
	Key    string // of the connection
	From   string // the listener's name
	Text   string
	Size   int
	State  string
	Limit  time.Duration // 0: none
	Linger int           // seconds
}

// cameAs is the answer to "accept".
type cameAs struct {
	Type   string
	Remote string
	Handed bool
	State  string
	Unread int
}

// held are the connections of a service process that commands are about.
var held struct {
	sync.Mutex

	conns   map[string]net.Conn
	accepts map[string]net.Listener
}

func heldConn(key string) (net.Conn, error) {
	held.Lock()
	defer held.Unlock()
	if c := held.conns[key]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no connection %q", key)
}

// aboutConn makes a command of f.
func aboutConn(f func(s *service, spec connSpec) (any, error)) func(*service, json.RawMessage) (any, error) {
	return func(s *service, value json.RawMessage) (any, error) {
		var spec connSpec
		if err := json.Unmarshal(value, &spec); err != nil {
			return nil, err
		}
		return f(s, spec)
	}
}

func init() {
	held.conns, held.accepts = make(map[string]net.Conn), make(map[string]net.Listener)
	serviceCommands["handed over"] = aboutConn(func(s *service, spec connSpec) (any, error) {
		held.Lock()
		defer held.Unlock()
		held.accepts["handed "+spec.From] = s.upg.HandedOver(spec.From)
		return done, nil
	})
	serviceCommands["close handed"] = aboutConn(func(_ *service, spec connSpec) (any, error) {
		held.Lock()
		defer held.Unlock()
		return done, held.accepts["handed "+spec.From].Close()
	})
	serviceCommands["accept"] = aboutConn(func(s *service, spec connSpec) (any, error) {
		held.Lock()
		ln := held.accepts[spec.From]
		held.Unlock()
		if ln == nil {
			s.mu.Lock()
			ln = s.sockets[spec.From].(net.Listener)
			s.mu.Unlock()
		}
		c, err := ln.Accept()
		if err != nil {
			return nil, err
		}
		held.Lock()
		held.conns[spec.Key] = c
		held.Unlock()
		came := cameAs{Type: fmt.Sprintf("%T", c), Remote: c.RemoteAddr().String()}
		var h *crossfade.HandOver
		if h, came.Handed = crossfade.HandOverOf(c); came.Handed {
			came.State, came.Unread = string(h.State), len(h.Unread)
		}
		return came, nil
	})
	serviceCommands["read"] = aboutConn(func(_ *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		buf := make([]byte, spec.Size)
		_, err = io.ReadFull(c, buf)
		return string(buf), err
	})
	serviceCommands["read all"] = aboutConn(func(_ *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		var all strings.Builder
		_, err = io.Copy(&all, c) // by WriteTo, where there is one
		return all.String(), err
	})
	serviceCommands["write"] = aboutConn(func(_ *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		_, err = io.WriteString(c, spec.Text)
		return done, err
	})
	serviceCommands["hand over"] = aboutConn(func(s *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(s.ctx)
		if spec.Limit > 0 {
			ctx, cancel = context.WithTimeout(s.ctx, spec.Limit)
		}
		defer cancel()
		h := &crossfade.HandOver{Unread: []byte(spec.Text), State: []byte(spec.State)}
		h.Unread = append(h.Unread, make([]byte, spec.Size)...)
		return done, s.upg.HandOverConn(ctx, spec.From, c, h)
	})
	serviceCommands["hand it on"] = aboutConn(func(s *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		h, ok := crossfade.HandOverOf(c)
		if !ok {
			return nil, errors.New("it was not handed over")
		}
		return done, s.upg.HandOverConn(s.ctx, spec.From, c, h)
	})
	serviceCommands["set options"] = aboutConn(func(_ *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		t, ok := c.(*net.TCPConn)
		if !ok {
			return done, nil // a unix socket has none of these
		}
		return done, errors.Join(t.SetNoDelay(false), t.SetLinger(spec.Linger),
			t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 77 * time.Second, Interval: 11 * time.Second, Count: 5}))
	})
	serviceCommands["options"] = aboutConn(func(_ *service, spec connSpec) (any, error) {
		c, err := heldConn(spec.Key)
		if err != nil {
			return nil, err
		}
		return optionsOf(c)
	})
}

// sockOption is a socket option of type int.
type sockOption struct {
	name         string
	level, which int
}

// sockOptions are those that every system has; others are added where there are any.
var sockOptions = []sockOption{
	{"nodelay", unix.IPPROTO_TCP, unix.TCP_NODELAY},
	{"keepalive", unix.SOL_SOCKET, unix.SO_KEEPALIVE},
}

// optionsOf are the socket options of a connection that somebody may have set.
func optionsOf(c net.Conn) (string, error) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return "", err
	}
	var text []byte
	err = raw.Control(func(fd uintptr) {
		for _, o := range sockOptions {
			v, err := unix.GetsockoptInt(int(fd), o.level, o.which)
			text = fmt.Appendf(text, "%s %d %v; ", o.name, v, err)
		}
		linger, err := unix.GetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER)
		text = fmt.Appendf(text, "linger %v %v", linger, err)
	})
	return string(text), err
}

// movers are an owner of a listener that nobody takes from, with a client, and what
// starts its successors.
type movers struct {
	d       *desk
	spec    serviceSpec
	network string
	address string
	owner   *process
	peer    string // how the client that came last is called on the other side
}

func newMovers(t *testing.T, network string) *movers {
	t.Helper()
	d := newDesk(t)
	m := &movers{d: d, network: network}
	socket := tcpSpec("web")
	if network == "unix" {
		socket = socketSpec{Name: "web", Network: "unix", Address: d.path("web")}
	}
	socket.Idle = true
	m.spec = serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{socket}, Ready: true, Linger: true}
	m.owner = d.launch(m.spec)
	m.address = m.owner.address("web")
	m.owner.expect("ready")
	return m
}

// client dials, and the owner accepts it under that key.
func (m *movers) client(key string) net.Conn {
	m.d.t.Helper()
	c, err := net.Dial(m.network, m.address)
	if err != nil {
		m.d.t.Fatal(err)
	}
	m.d.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(generous)); err != nil {
		m.d.t.Fatal(err)
	}
	m.peer = query[cameAs](m.owner, "accept", connSpec{Key: key, From: "web"}).Remote
	return c
}

// succeed starts a successor that takes the connections of these listeners, and
// returns it when the owner has retired. It is the owner from then on.
func (m *movers) succeed(listeners ...string) (old, next *process) {
	m.d.t.Helper()
	spec := m.spec
	spec.Ready = false
	old, next = m.owner, m.d.launch(spec)
	next.address("web")
	for _, name := range listeners {
		next.do("handed over", connSpec{From: name})
	}
	next.do("ready")
	next.expect("ready")
	old.await("exit")
	m.owner = next
	return old, next
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hears(t *testing.T, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != want {
		t.Fatalf("the client reads %q, %v; want %q", buf, err, want)
	}
}

// wantServed has the client talk to the process that holds it under that key.
func wantServed(t *testing.T, p *process, key string, c net.Conn) {
	t.Helper()
	say(t, c, "ping")
	if got := query[string](p, "read", connSpec{Key: key, Size: 4}); got != "ping" {
		t.Errorf("process %d reads %q", p.pid, got)
	}
	p.do("write", connSpec{Key: key, Text: "pong"})
	hears(t, c, "pong")
}

func TestAConnectionMoves(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			m := newMovers(t, network)
			c := m.client("a")
			say(t, c, "hello world")
			if got := query[string](m.owner, "read", connSpec{Key: "a", Size: 8}); got != "hello wo" {
				t.Fatalf("the predecessor reads %q", got)
			}
			m.owner.do("set options", connSpec{Key: "a", Linger: 3})
			options := query[string](m.owner, "options", connSpec{Key: "a"})
			old, next := m.succeed("web")
			// It has used the first two bytes.
			old.do("hand over", connSpec{Key: "a", From: "web", Text: "llo wo", State: "the state"})
			came := query[cameAs](next, "accept", connSpec{Key: "a", From: "handed web"})
			want := cameAs{Type: "*crossfade.HandedTCPConn", Remote: m.peer, Handed: true, State: "the state"}
			if network == "unix" {
				want.Type = "*crossfade.HandedUnixConn"
			}
			if came != want {
				t.Errorf("what comes is %+v, want %+v", came, want)
			}
			if got := query[string](next, "options", connSpec{Key: "a"}); got != options {
				t.Errorf("the options are\n\t%s\nand were\n\t%s", got, options)
			}
			if e := old.try("read", connSpec{Key: "a", Size: 1}); !errors.Is(e.Err, net.ErrClosed) {
				t.Errorf("the predecessor reads: %v", e.Err)
			}
			if got := query[string](next, "read", connSpec{Key: "a", Size: 3}); got != "llo" {
				t.Errorf("the successor reads %q", got)
			}

			// What it has not read goes on with it, and nothing else of what came.
			old, next = m.succeed("web")
			old.do("hand it on", connSpec{Key: "a", From: "web"})
			if came := query[cameAs](next, "accept", connSpec{Key: "a", From: "handed web"}); came != want {
				t.Errorf("what comes is %+v, want %+v", came, want)
			}
			if got := query[string](next, "options", connSpec{Key: "a"}); got != options {
				t.Errorf("the options are\n\t%s\nand were\n\t%s", got, options)
			}
			next.do("write", connSpec{Key: "a", Text: "bye"})
			hears(t, c, "bye")
			say(t, c, "!")
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got := query[string](next, "read all", connSpec{Key: "a"}); got != " world!" {
				t.Errorf("the successor of the successor reads %q", got)
			}
		})
	}
}

// Each refusal leaves the connection with the process that had it, as it was.
func TestAConnectionThatCannotMoveStays(t *testing.T) {
	m := newMovers(t, "tcp")
	c := m.client("a")
	stays := func(p *process, spec connSpec, target error, parts ...string) {
		t.Helper()
		spec.Key, spec.Text, spec.State = "a", "unread", "state"
		before := query[string](p, "options", connSpec{Key: "a"})
		if e := p.try("hand over", spec); !errors.Is(e.Err, target) || !containsAll(fmt.Sprint(e.Err), parts) {
			t.Errorf("HandOverConn: %v, want %v with %q", e.Err, target, parts)
		}
		if after := query[string](p, "options", connSpec{Key: "a"}); after != before {
			t.Errorf("the options are\n\t%s\nand were\n\t%s", after, before)
		}
		wantServed(t, p, "a", c)
	}
	m.owner.do("set options", connSpec{Key: "a", Linger: 0})
	stays(m.owner, connSpec{From: "web"}, crossfade.ErrWrongState)
	old, next := m.succeed("web", "closed")
	next.do("close handed", connSpec{From: "closed"})
	before := query[resources](old, "resources")
	stays(old, connSpec{From: "closed"}, crossfade.ErrNotTaken, `nobody takes connections for "closed"`)
	stays(old, connSpec{From: "nobody"}, crossfade.ErrNotTaken, `nobody takes connections for "nobody"`)
	stays(old, connSpec{From: "web", Size: 512 << 10}, crossfade.ErrLimit, "524288")
	for _, name := range []string{"", "crossfade.control", "a\nb"} {
		if e := old.try("hand over", connSpec{Key: "a", From: name}); e.Err == nil {
			t.Errorf("a listener may be called %q", name)
		}
	}
	// A successor that has retired itself takes none: only the direct one gets any.
	_, last := m.succeed("web")
	stays(old, connSpec{From: "web"}, crossfade.ErrNotTaken, "this process is out itself: draining")
	if after := old.awaitResources(before); after.exceeds(before) {
		t.Errorf("the predecessor has %+v after refusals, and had %+v", after, before)
	}
	next.kill()
	stays(old, connSpec{From: "web"}, crossfade.ErrLost)
	last.do("stop")
	wantServed(t, old, "a", c)
}

func TestACandidateThatCannotHoldMoreTakesNone(t *testing.T) {
	m := newMovers(t, "tcp")
	c := m.client("a")
	old, next := m.succeed("web")
	limit := query[resources](next, "resources").Descriptors + 100
	next.do("nofile", limit)
	e := old.try("hand over", connSpec{Key: "a", From: "web"})
	if !errors.Is(e.Err, crossfade.ErrNotTaken) || !strings.Contains(e.Err.Error(), fmt.Sprint(limit)) {
		t.Errorf("HandOverConn: %v", e.Err)
	}
	wantServed(t, old, "a", c)
	next.do("nofile", limit+100)
	old.do("hand over", connSpec{Key: "a", From: "web"})
	next.do("accept", connSpec{Key: "a", From: "handed web"})
	wantServed(t, next, "a", c)
}

// The client has sent its last words and has gone: they are for who has the
// connection, and no program gets one that has nobody at its other end.
func TestAConnectionWhoseClientHasGoneStays(t *testing.T) {
	m := newMovers(t, "tcp")
	c := m.client("a")
	old, next := m.succeed("web")
	say(t, c, "last words")
	if err := errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close()); err != nil {
		t.Fatal(err)
	}
	e := old.try("hand over", connSpec{Key: "a", From: "web"})
	if !errors.Is(e.Err, crossfade.ErrNotTaken) || !strings.Contains(e.Err.Error(), "the client has gone") {
		t.Errorf("HandOverConn: %v", e.Err)
	}
	next.do("close handed", connSpec{From: "web"})
	if e := next.try("accept", connSpec{Key: "a", From: "handed web"}); !errors.Is(e.Err, net.ErrClosed) {
		t.Errorf("Accept: %v", e.Err)
	}
}

func TestAFrozenSuccessor(t *testing.T) {
	for _, end := range []string{"wakes up", "is killed"} {
		t.Run("that "+end, func(t *testing.T) {
			m := newMovers(t, "tcp")
			a, b := m.client("a"), m.client("b")
			old, next := m.succeed("web")
			next.freeze()
			patient := old.begin("hand over", connSpec{Key: "a", From: "web"})
			e := old.try("hand over", connSpec{Key: "b", From: "web", Limit: 100 * time.Millisecond})
			if !errors.Is(e.Err, crossfade.ErrOutcomeUnknown) || !errors.Is(e.Err, context.DeadlineExceeded) {
				t.Errorf("HandOverConn: %v", e.Err)
			}
			if patient.answered() {
				t.Error("a frozen process has taken a connection")
			}
			if end == "is killed" {
				next.kill()
				if e := patient.wait(); !errors.Is(e.Err, crossfade.ErrLost) {
					t.Errorf("HandOverConn: %v", e.Err)
				}
				wantServed(t, old, "a", a)
				if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("a client that its process has given up reads: %v", err)
				}
				return
			}
			next.signal(syscall.SIGCONT)
			if e := patient.wait(); e.Err != nil {
				t.Errorf("HandOverConn: %v", e.Err)
			}
			for key := range 2 {
				next.do("accept", connSpec{Key: fmt.Sprint(key), From: "handed web"})
				next.do("write", connSpec{Key: fmt.Sprint(key), Text: "hi"})
			}
			hears(t, a, "hi")
			hears(t, b, "hi")
		})
	}
}

// A predecessor that dies has handed over what it has sent, answered or not.
func TestAPredecessorThatDiesBeforeTheAnswer(t *testing.T) {
	m := newMovers(t, "unix")
	c := m.client("a")
	old, next := m.succeed("web")
	say(t, c, "later")
	next.freeze()
	// Only what is written and unanswered makes a second one time out like this.
	e := old.try("hand over", connSpec{Key: "a", From: "web", Text: "sooner and ", Limit: 100 * time.Millisecond})
	if !errors.Is(e.Err, crossfade.ErrOutcomeUnknown) {
		t.Fatalf("HandOverConn: %v", e.Err)
	}
	old.kill()
	next.signal(syscall.SIGCONT)
	next.do("accept", connSpec{Key: "a", From: "handed web"})
	if got := query[string](next, "read", connSpec{Key: "a", Size: 16}); got != "sooner and later" {
		t.Errorf("the successor reads %q", got)
	}
	next.expect("gone")
}

func TestOnlyStreamsMove(t *testing.T) {
	upg, err := crossfade.New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer upg.Stop()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ln, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	packets, err := net.Dial("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	stream, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for _, tt := range []struct {
		c    net.Conn
		want error
	}{
		{nil, errors.ErrUnsupported},
		{near, errors.ErrUnsupported},
		{tls.Client(stream, new(tls.Config)), errors.ErrUnsupported},
		{packets, errors.ErrUnsupported},
		{stream, crossfade.ErrWrongState}, // it could, but this process has not retired
	} {
		if err := upg.HandOverConn(t.Context(), "web", tt.c, nil); !errors.Is(err, tt.want) {
			t.Errorf("HandOverConn of a %T: %v", tt.c, err)
		}
	}
	disabled, err := crossfade.New(t.Context(), &crossfade.Config{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	defer disabled.Stop()
	if err := disabled.HandOverConn(t.Context(), "web", stream, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("HandOverConn where nothing is handed over: %v", err)
	}
	if _, ok := crossfade.HandOverOf(stream); ok {
		t.Error("something came with a connection that was dialled")
	}
}

// handedListener is HandedOver of a process that nothing is sent to.
func handedListener(t *testing.T) (*crossfade.Upgrader, net.Listener) {
	t.Helper()
	upg, err := crossfade.New(t.Context(), &crossfade.Config{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(upg.Stop)
	return upg, upg.HandedOver("web")
}

// nothing is a connection to pass around.
type nothing struct {
	net.Conn

	closed *int
}

func (n nothing) Close() error { *n.closed++; return nil }

func TestHandedOverGivesOutAllThatWasTaken(t *testing.T) {
	upg, ln := handedListener(t)
	if upg.HandedOver("web") != ln || upg.HandedOver("other") == ln {
		t.Error("HandedOver is not one listener for each name")
	}
	closed := 0
	for _, taken := range []bool{true, false, true} {
		if err := crossfade.Expect(ln); err != nil {
			t.Fatal(err)
		}
		crossfade.Deliver(ln, nothing{closed: &closed}, taken)
	}
	if closed != 1 {
		t.Errorf("%d connections were closed that could not be acknowledged, want 1", closed)
	}
	if err := crossfade.Expect(ln); err != nil { // its acknowledgement is being written
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close again: %v", err)
	}
	if err := crossfade.Expect(ln); err == nil {
		t.Error("a closed listener takes another one")
	}
	if upg.HandedOver("web") == ln {
		t.Error("HandedOver is the closed one")
	}
	for range 2 {
		if _, err := ln.Accept(); err != nil {
			t.Errorf("Accept: %v", err)
		}
	}
	accepted := make(chan error, 2)
	go func() {
		for range 2 {
			_, err := ln.Accept()
			accepted <- err
		}
	}()
	select {
	case err := <-accepted:
		t.Errorf("Accept has not waited for the one that is on its way: %v", err)
	default:
	}
	crossfade.Deliver(ln, nothing{closed: &closed}, true)
	if err := <-accepted; err != nil {
		t.Errorf("Accept: %v", err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if closed != 1 {
		t.Errorf("%d connections were closed", closed)
	}
}

func TestHandedOverIsBounded(t *testing.T) {
	_, ln := handedListener(t)
	closed := 0
	for range crossfade.MaxHanded {
		if err := crossfade.Expect(ln); err != nil {
			t.Fatal(err)
		}
		crossfade.Deliver(ln, nothing{closed: &closed}, true)
	}
	if err := crossfade.Expect(ln); err == nil || !strings.Contains(err.Error(), "wait already") {
		t.Errorf("one more: %v", err)
	}
	if _, err := ln.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := crossfade.Expect(ln); err != nil {
		t.Errorf("one more, when there is room: %v", err)
	}
}

func TestMergeHandedOver(t *testing.T) {
	upg, handed := handedListener(t)
	inner, err := upg.Listen(t.Context(), "web", "tcp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	ln := upg.MergeHandedOver(inner, "web")
	if ln.Addr().String() != inner.Addr().String() {
		t.Errorf("its address is %v", ln.Addr())
	}
	closed := 0
	var clients []net.Conn
	arrive := func() {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		if err := crossfade.Expect(handed); err != nil {
			t.Fatal(err)
		}
		crossfade.Deliver(handed, nothing{closed: &closed}, true)
	}
	count := func(n int) (fresh, came int) {
		for range n {
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := c.(nothing); ok {
				came++
				continue
			}
			fresh++
			_ = c.Close()
		}
		return fresh, came
	}
	arrive()
	if fresh, came := count(2); fresh != 1 || came != 1 {
		t.Errorf("%d fresh ones and %d that were handed over", fresh, came)
	}
	for range 3 {
		arrive()
	}
	count(1)
	if err := ln.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	came := 0
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := c.(nothing); ok {
			came++
		} else {
			_ = c.Close()
		}
	}
	if came < 2 || closed != 0 {
		t.Errorf("after Close %d of those come out that were taken, and %d were closed", came, closed)
	}
	for _, c := range clients {
		_ = c.Close()
	}
}

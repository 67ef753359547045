package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// passing is a Hello or a Welcome of a side that knows how connections are passed.
func passing[M interface{ *pb.Hello | *pb.Welcome }](m M) M {
	features := []string{handoff.FeatureConnections}
	switch m := any(m).(type) {
	case *pb.Hello:
		m.Features = features
	case *pb.Welcome:
		m.Features = features
	}
	return m
}

// draining returns an owner that has retired, and its successor, played by hand.
func draining(t *testing.T, hello *pb.Hello) (*owner, *player) {
	t.Helper()
	o := newOwner(t)
	p := o.client()
	p.say(hello, prepared, pageAck(1), received, ready, pageAck(2), finalReceived, commitAck(true))
	p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1", "Commit", "Retired")
	return o, p
}

// moving is draining with a successor that takes connections.
func moving(t *testing.T) (*owner, *player) {
	t.Helper()
	return draining(t, passing(hello()))
}

// settled returns an owner whose predecessor, played by hand, has retired.
func settled(t *testing.T, welcome *pb.Welcome) (*candidate, *player) {
	t.Helper()
	c := newCandidate(t)
	p := c.server()
	p.say(welcome, manifestPage(0))
	c.ready(t.Context())
	p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{})
	p.mustHear("Hello", "Prepared", "PageAck 1", "Received", "Ready", "PageAck 2", "FinalReceived", "CommitAck")
	c.mustOwn()
	return c, p
}

// aConnection is a connection to hand over.
func aConnection(t *testing.T) *handoff.Connection {
	t.Helper()
	return &handoff.Connection{
		Listener: "web", Unread: []byte("GET"), State: []byte("known"),
		Identity: scm.Identity{
			Type: scm.TypeSocket, Domain: 2, SockType: 1, Protocol: 6, Cookie: 7, Dev: 8, Ino: 9, Network: "tcp", Address: "127.0.0.1:80",
		},
		FD: descriptors(t, 1)[0].FD,
	}
}

// transfer is one call of HandOver.
type transfer struct {
	t      *testing.T
	result chan error // has room for the one result
	done   chan error // gets what done is called with
}

// pass begins to hand a connection over, and returns when nothing moves any more.
func (o *owner) pass(ctx context.Context, c *handoff.Connection) *transfer {
	tr := &transfer{o.t, make(chan error, 1), make(chan error, 2)} // one more than is right
	go func() { tr.result <- o.server.HandOver(ctx, c, func(err error) { tr.done <- err }) }()
	synctest.Wait()
	return tr
}

// outcome is what HandOver has returned; it fails the test if it has not.
func (tr *transfer) outcome() error {
	tr.t.Helper()
	select {
	case err := <-tr.result:
		if len(tr.done) != 0 && !errors.Is(err, handoff.ErrOutcomeUnknown) {
			tr.t.Errorf("HandOver: %v, and done was called too", err)
		}
		return err
	default:
		tr.t.Fatal("HandOver has not returned")
		return nil
	}
}

func (tr *transfer) mustWait() {
	tr.t.Helper()
	select {
	case err := <-tr.result:
		tr.t.Fatalf("HandOver has returned: %v", err)
	default:
	}
}

func (tr *transfer) mustBeTaken() {
	tr.t.Helper()
	if err := tr.outcome(); err != nil {
		tr.t.Errorf("HandOver: %v", err)
	}
}

// closes is what done was called with.
func (tr *transfer) closes() error {
	tr.t.Helper()
	synctest.Wait()
	if len(tr.done) != 1 {
		tr.t.Fatalf("done was called %d times", len(tr.done))
	}
	return <-tr.done
}

func (tr *transfer) mustNotClose() {
	tr.t.Helper()
	if len(tr.done) != 0 {
		tr.t.Fatalf("done was called with %v", <-tr.done)
	}
}

// hearConnections returns the ids of n connections that have come.
func (p *player) hearConnections(n int) []uint64 {
	p.t.Helper()
	var ids []uint64
	for range n {
		m, _ := p.hear()
		c, ok := m.(*pb.Connection)
		if !ok {
			p.t.Fatalf("heard %v instead of Connection", m)
		}
		ids = append(ids, c.GetId())
	}
	p.mustHear()
	return ids
}

func taken(id uint64) *pb.ConnectionAck { return &pb.ConnectionAck{Id: id, Taken: true} }

func notTaken(id uint64, reason string) *pb.ConnectionAck {
	return &pb.ConnectionAck{Id: id, Reason: reason}
}

func TestHandOver(t *testing.T) {
	bubble(t, "is nil when the successor has taken it", func(t *testing.T) {
		o, p := moving(t)
		c := aConnection(t)
		tr := o.pass(t.Context(), c)
		tr.mustWait()
		m, _ := p.hear()
		want := &pb.Connection{
			Id: 1, Listener: c.Listener, Unread: c.Unread, State: c.State,
			Identity: &pb.Identity{
				Type: pb.FileType_FILE_TYPE_SOCKET, Domain: 2, SocketType: 1, Protocol: 6, Cookie: 7, Dev: 8, Ino: 9, Network: "tcp", Address: "127.0.0.1:80",
			},
		}
		if !proto.Equal(m, want) {
			t.Errorf("on the wire is\n\t%v\nwant\n\t%v", m, want)
		}
		if !p.end.pipe.sent("< Connection: id 1, listener web + 1 fds") {
			t.Errorf("on the wire is:\n%s", p.end.pipe.transcript())
		}
		p.say(taken(1))
		tr.mustBeTaken()
		if err := c.FD.Control(func(uintptr) {}); err != nil {
			t.Errorf("the caller's descriptor: %v", err)
		}
	})
	bubble(t, "gives it back with the reason of a successor that has no use for it", func(t *testing.T) {
		o, p := moving(t)
		tr := o.pass(t.Context(), aConnection(t))
		p.say(notTaken(p.hearConnections(1)[0], "no such\nlistener"))
		mustMatch(t, tr.outcome(), is(handoff.ErrNotTaken), "no such?listener")
	})
	bubble(t, "is possible only when this process has retired", func(t *testing.T) {
		o := newOwner(t, func(c *handoff.ServerConfig) { c.Limits.MaxProbation = time.Hour })
		mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrWrongState))
		p := o.client()
		h := passing(hello())
		h.Probation = durationOf(time.Minute)
		for _, m := range []proto.Message{h, prepared, pageAck(1), received, ready, pageAck(2), finalReceived, commitAck(false)} {
			p.say(m)
			mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrWrongState))
		}
		o.mustBe(handoff.StateProbation)
		p.say(settle)
		p.mustHear("Welcome", "ManifestPage 0", "ManifestPage 1", "Commit", "Retired")
		tr := o.pass(t.Context(), aConnection(t))
		p.say(taken(p.hearConnections(1)[0]))
		tr.mustBeTaken()
	})
	bubble(t, "is not possible in an owner whose predecessor resumed", func(t *testing.T) {
		o := newOwner(t)
		p := o.client()
		p.say(passing(hello()), prepared, pageAck(1), received, ready, pageAck(2), finalReceived)
		p.close()
		o.mustBe(handoff.StateOwner)
		mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrWrongState))
	})
	bubble(t, "sends nothing to a successor that does not know how", func(t *testing.T) {
		for _, features := range [][]string{nil, {"another"}} {
			h := hello()
			h.Features = features
			o, p := draining(t, h)
			mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrUnimplemented))
			p.mustHear()
			p.close()
			mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrUnimplemented))
		}
	})
	bubble(t, "carries so many bytes and no more", func(t *testing.T) {
		o, p := moving(t)
		c := aConnection(t)
		c.Unread, c.State = make([]byte, handoff.MaxPassedBytes/2), make([]byte, handoff.MaxPassedBytes/2)
		tr := o.pass(t.Context(), c)
		p.say(taken(p.hearConnections(1)[0]))
		tr.mustBeTaken()
		c.Unread = append(c.Unread, 0)
		mustMatch(t, o.pass(t.Context(), c).outcome(), is(handoff.ErrLimit), fmt.Sprint(handoff.MaxPassedBytes+1), fmt.Sprint(handoff.MaxPassedBytes))
		p.mustHear()
	})
	bubble(t, "sends nothing once its context has ended", func(t *testing.T) {
		o, p := moving(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errBoom)
		for range 32 { // a select would choose at random
			mustMatch(t, o.pass(ctx, aConnection(t)).outcome(), is(errBoom))
		}
		p.mustHear()
	})
	bubble(t, "is not heard of in the status", func(t *testing.T) {
		o, p := moving(t)
		tr := o.pass(t.Context(), aConnection(t))
		p.hearConnections(1)
		o.mustBe(handoff.StateDraining)
		p.say(endDrain) // it is read all the while
		if o.service.count("EndDrain") != 1 {
			t.Errorf("calls are %v", &o.service.calls)
		}
		p.say(taken(1))
		tr.mustBeTaken()
	})
}

func TestHandOverWindow(t *testing.T) {
	// fill passes as many connections as may be unanswered.
	fill := func(t *testing.T, o *owner, p *player) ([]*transfer, []uint64) {
		t.Helper()
		var all []*transfer
		for range handoff.ConnectionWindow {
			all = append(all, o.pass(t.Context(), aConnection(t)))
		}
		return all, p.hearConnections(handoff.ConnectionWindow)
	}
	bubble(t, "bounds what is unanswered", func(t *testing.T) {
		o, p := moving(t)
		all, ids := fill(t, o, p)
		next := o.pass(t.Context(), aConnection(t))
		ctx, cancel := context.WithCancelCause(t.Context())
		impatient := o.pass(ctx, aConnection(t))
		p.mustHear()
		next.mustWait()
		cancel(errBoom)
		synctest.Wait()
		mustMatch(t, impatient.outcome(), is(errBoom)) // it is the caller's: nothing was sent
		p.say(taken(ids[3]))
		all[3].mustBeTaken()
		p.say(taken(p.hearConnections(1)[0]))
		next.mustBeTaken()
	})
	bubble(t, "is given back by whatever ends a transfer", func(t *testing.T) {
		o, p := moving(t)
		for range 2 {
			all, ids := fill(t, o, p)
			for i, id := range ids {
				if i%2 == 0 {
					p.say(notTaken(id, "no"))
					mustMatch(t, all[i].outcome(), is(handoff.ErrNotTaken))
				} else {
					p.say(taken(id))
					all[i].mustBeTaken()
				}
			}
		}
		p.end.peer.fill()
		for range handoff.ConnectionWindow + 1 {
			unsent := o.pass(t.Context(), aConnection(t))
			elapse(handoff.WriteTimeout)
			synctest.Wait()
			mustMatch(t, unsent.outcome(), is(handoff.ErrTimeout))
		}
		p.end.peer.empty()
		for range handoff.ConnectionWindow + 1 {
			ctx, cancel := context.WithCancel(t.Context())
			late := o.pass(ctx, aConnection(t))
			cancel()
			synctest.Wait()
			mustMatch(t, late.outcome(), is(handoff.ErrOutcomeUnknown))
			p.say(taken(p.hearConnections(1)[0]))
			if err := late.closes(); err != nil {
				t.Errorf("done was called with %v", err)
			}
		}
		fill(t, o, p)
	})
	bubble(t, "holds nobody up when the successor has gone", func(t *testing.T) {
		o, p := moving(t)
		all, _ := fill(t, o, p)
		all = append(all, o.pass(t.Context(), aConnection(t)))
		p.close()
		for _, tr := range all {
			mustMatch(t, tr.outcome(), is(handoff.ErrLost))
		}
	})
	bubble(t, "holds nobody up when the successor has broken the protocol", func(t *testing.T) {
		o, p := moving(t)
		fill(t, o, p)
		next := o.pass(t.Context(), aConnection(t))
		p.say(settle)
		mustMatch(t, next.outcome(), is(handoff.ErrProtocol))
		next.mustNotClose()
	})
}

func TestHandOverAndTheSuccessorsEnd(t *testing.T) {
	bubble(t, "gives back what it has not answered", func(t *testing.T) {
		o, p := moving(t)
		first, second := o.pass(t.Context(), aConnection(t)), o.pass(t.Context(), aConnection(t))
		ids := p.hearConnections(2)
		// The answer is still unread when the end comes.
		p.end.peer.freeze()
		if err := p.end.Send(t.Context(), wrap(true, taken(ids[0]))); err != nil {
			t.Fatal(err)
		}
		_ = p.end.Close()
		p.end.peer.thaw()
		synctest.Wait()
		first.mustBeTaken()
		mustMatch(t, second.outcome(), is(handoff.ErrLost))
		mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrLost))
	})
	bubble(t, "is waited for while it is frozen", func(t *testing.T) {
		o, p := moving(t)
		tr := o.pass(t.Context(), aConnection(t))
		elapse(24 * time.Hour)
		tr.mustWait()
		p.close()
		mustMatch(t, tr.outcome(), is(handoff.ErrLost))
	})
	for _, tt := range []struct {
		name string
		end  func(p *player)
		want error
	}{
		{"a yes", func(p *player) { p.say(taken(1)) }, nil},
		{"a no", func(p *player) { p.say(notTaken(1, "")) }, handoff.ErrNotTaken},
		{"its end", func(p *player) { p.close() }, handoff.ErrLost},
		{"nonsense", func(p *player) { p.write(unknownMember) }, handoff.ErrProtocol},
	} {
		bubble(t, "is waited for no longer than the context: then comes "+tt.name, func(t *testing.T) {
			o, p := moving(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			tr := o.pass(ctx, aConnection(t))
			p.hearConnections(1)
			cancel(errBoom)
			synctest.Wait()
			mustMatch(t, tr.outcome(), is(handoff.ErrOutcomeUnknown, errBoom))
			tr.mustNotClose()
			tt.end(p)
			if err := tr.closes(); !errors.Is(err, tt.want) {
				t.Errorf("done was called with %v, want %v", err, tt.want)
			}
		})
	}
	bubble(t, "does not give back what it may have served before it was misunderstood", func(t *testing.T) {
		for _, nonsense := range [][]byte{unknownMember, wrap(true, taken(3)), wrap(true, settle), {0xff}} {
			o, p := moving(t)
			tr := o.pass(t.Context(), aConnection(t))
			ids := p.hearConnections(1)
			p.write(nonsense)
			mustMatch(t, tr.outcome(), is(handoff.ErrOutcomeUnknown, handoff.ErrProtocol))
			mustMatch(t, tr.closes(), is(handoff.ErrProtocol))
			p.say(taken(ids[0])) // to deaf ears
			mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrProtocol))
			p.close()
			mustMatch(t, o.pass(t.Context(), aConnection(t)).outcome(), is(handoff.ErrProtocol))
		}
	})
	bubble(t, "is misunderstood when it answers twice", func(t *testing.T) {
		o, p := moving(t)
		first, second := o.pass(t.Context(), aConnection(t)), o.pass(t.Context(), aConnection(t))
		ids := p.hearConnections(2)
		p.say(taken(ids[0]), notTaken(ids[0], ""))
		first.mustBeTaken()
		mustMatch(t, second.outcome(), is(handoff.ErrOutcomeUnknown, handoff.ErrProtocol), "not under way")
	})
	bubble(t, "is not the same as a socket without room", func(t *testing.T) {
		o, p := moving(t)
		tr := o.pass(t.Context(), aConnection(t))
		ids := p.hearConnections(1)
		p.end.peer.fill()
		o.server.Draining(3, time.Time{})
		unsent := o.pass(t.Context(), aConnection(t))
		elapse(2 * handoff.WriteTimeout)
		synctest.Wait()
		mustMatch(t, unsent.outcome(), is(handoff.ErrTimeout))
		p.end.peer.empty()
		p.say(taken(ids[0]))
		tr.mustBeTaken()
		again := o.pass(t.Context(), aConnection(t))
		p.say(taken(p.hearConnections(1)[0]))
		again.mustBeTaken()
	})
	bubble(t, "says that one without the feature cannot have answered", func(t *testing.T) {
		o, p := draining(t, hello())
		p.say(taken(1))
		if o.server.Draining(1, time.Time{}) {
			t.Error("there is somebody to tell")
		}
		p.mustHear()
	})
}

func durationOf(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// connectionTo is a Connection of a predecessor played by hand.
func connectionTo(listener string) *pb.Connection {
	return &pb.Connection{Id: 5, Listener: listener, Unread: []byte("GET"), State: []byte("known"), Identity: &pb.Identity{Network: "tcp"}}
}

func TestTakingConnections(t *testing.T) {
	pass := func(p *player, m *pb.Connection) { p.write(wrap(false, m), fdsOf(p.t, 1)...) }
	bubble(t, "a yes is written before anybody has it", func(t *testing.T) {
		c, p := settled(t, passing(welcome(0)))
		var got *handoff.Connection
		c.receiver.onConnection = func(came *handoff.Connection) error {
			got = came
			if c.pipe.sent("> ConnectionAck") {
				t.Error("the answer is written before the program has looked")
			}
			return nil
		}
		c.receiver.onAnswered = func() {
			if !c.pipe.sent("> ConnectionAck") {
				t.Error("the program has the connection before the answer is written")
			}
		}
		pass(p, connectionTo("web"))
		m, _ := p.hear()
		if !proto.Equal(m, taken(5)) {
			t.Errorf("the answer is %v", m)
		}
		if got.Listener != "web" || string(got.Unread) != "GET" || string(got.State) != "known" || got.Identity.Network != "tcp" {
			t.Errorf("the receiver has got %+v", got)
		}
		if !strings.HasSuffix(c.receiver.String(), "Settled, Connection web, Taken true") {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	})
	bubble(t, "a no has a reason of bounded length", func(t *testing.T) {
		c, p := settled(t, passing(welcome(0)))
		c.receiver.onConnection = func(*handoff.Connection) error {
			return errors.New("no:\n" + strings.Repeat("x", 2*handoff.MaxAckReason))
		}
		pass(p, connectionTo("web"))
		m, _ := p.hear()
		ack, ok := m.(*pb.ConnectionAck)
		if !ok || ack.GetId() != 5 || ack.GetTaken() || !strings.HasPrefix(ack.GetReason(), "no:; xxx") || len(ack.GetReason()) > handoff.MaxAckReason || len(ack.GetReason()) < handoff.MaxAckReason-3 {
			t.Errorf("the answer is %v", m)
		}
		c.receiver.onConnection = nil
		next := connectionTo("web") // about which that says nothing
		next.Id++
		pass(p, next)
		p.mustHear("ConnectionAck")
	})
	for _, tt := range []struct {
		name string
		m    *pb.Connection
		fds  int
		want string
	}{
		{"without a descriptor", connectionTo("web"), 0, "0 descriptors"},
		{"with two descriptors", connectionTo("web"), 2, "2 descriptors"},
		{"of no listener", connectionTo(""), 1, "a name is empty"},
		{"of what cannot be a name", connectionTo("a\nb"), 1, "unprintable"},
		{"of a name that is too long", connectionTo(strings.Repeat("x", handoff.MaxName+1)), 1, "201 bytes"},
		{"with too much", &pb.Connection{Listener: "web", Unread: make([]byte, handoff.MaxPassedBytes), State: []byte{1}}, 1, "524289 bytes"},
	} {
		bubble(t, "one "+tt.name+" breaks the protocol", func(t *testing.T) {
			var log strings.Builder
			c := newCandidate(t)
			c.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			p := c.server()
			p.say(passing(welcome(0)), manifestPage(0))
			c.ready(t.Context())
			p.say(manifestPage(1), &pb.Commit{}, &pb.Retired{})
			p.hearAll()
			p.write(wrap(false, tt.m), fdsOf(t, tt.fds)...)
			p.mustHear("EOF") // which gives the predecessor back what it has passed
			if !strings.Contains(log.String(), tt.want) {
				t.Errorf("the log does not say %q:\n%s", tt.want, log.String())
			}
			if !strings.HasSuffix(c.receiver.String(), "Settled, Gone") {
				t.Errorf("calls are %v", &c.receiver.calls)
			}
		})
	}
	bubble(t, "what cannot be understood after Retired gives everything back", func(t *testing.T) {
		for _, nonsense := range [][]byte{unknownMember, {0xff}, wrap(false, &pb.Commit{})} {
			c, p := settled(t, passing(welcome(0)))
			p.write(nonsense)
			p.mustHear("EOF")
			if c.taking.EndDrain(t.Context()) {
				t.Error("the predecessor was asked over a closed connection")
			}
		}
	})
	bubble(t, "one that comes twice is taken once", func(t *testing.T) {
		c, p := settled(t, passing(welcome(0)))
		for _, id := range []uint64{2, 1, 0, 1 << 63, 5, 3, 4} {
			m := connectionTo("web")
			m.Id = id
			pass(p, m)
			p.mustHear("ConnectionAck")
		}
		before := c.receiver.count("Taken")
		again := connectionTo("web")
		again.Id = 4
		pass(p, again)
		p.mustHear("EOF")
		if n := c.receiver.count("Taken"); n != before || n != 7 {
			t.Errorf("%d were taken, and then %d", before, n)
		}
	})
	for _, tt := range []struct {
		name    string
		welcome *pb.Welcome
		retired bool
	}{
		{"before the predecessor has retired", passing(welcome(0)), false},
		{"without the feature", welcome(0), true},
	} {
		bubble(t, "none is taken "+tt.name, func(t *testing.T) {
			c := newCandidate(t)
			p := c.server()
			tt.welcome.Probation = durationOf(time.Minute)
			p.say(tt.welcome, manifestPage(0))
			c.ready(t.Context())
			p.say(manifestPage(1), &pb.Commit{})
			if tt.retired {
				go func() { _ = c.taking.Settle(t.Context()) }()
				synctest.Wait()
				p.say(&pb.Retired{})
			}
			p.hearAll()
			pass(p, connectionTo("web"))
			pass(p, connectionTo("web"))
			p.mustHear() // it is deaf, because it may own by the other's end alone
			if c.receiver.count("Connection") != 0 {
				t.Errorf("calls are %v", &c.receiver.calls)
			}
		})
	}
	bubble(t, "one is taken from a predecessor that has died", func(t *testing.T) {
		c, p := settled(t, passing(welcome(0)))
		c.pipe.client.freeze()
		pass(p, connectionTo("web"))
		_ = p.end.Close()
		c.pipe.client.thaw()
		synctest.Wait()
		if !strings.HasSuffix(c.receiver.String(), "Connection web, Taken true, Gone") {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	})
	bubble(t, "one that cannot be acknowledged is given back", func(t *testing.T) {
		c, p := settled(t, passing(welcome(0)))
		c.pipe.client.fill()
		pass(p, connectionTo("web"))
		elapse(handoff.WriteTimeout)
		p.mustHear("EOF")
		if !strings.HasSuffix(c.receiver.String(), "Connection web, Taken false, Gone") {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	})
	bubble(t, "one that comes when the program leaves is taken or given back", func(t *testing.T) {
		c, p := settled(t, passing(welcome(0)))
		c.pipe.client.freeze()
		pass(p, connectionTo("web"))
		go c.taking.Leave()
		c.pipe.client.thaw()
		p.mustHear("ConnectionAck", "EOF") // what has arrived comes first
		if !strings.HasSuffix(c.receiver.String(), "Connection web, Taken true") {
			t.Errorf("calls are %v", &c.receiver.calls)
		}
	})
}

// TestConnectionsBetweenBoth has both machines, and ends either of them at each
// message of a transfer: the connection belongs to exactly one side.
func TestConnectionsBetweenBoth(t *testing.T) {
	both := func(t *testing.T) (*owner, *candidate) {
		o := newOwner(t)
		c := o.connected()
		c.ready(t.Context())
		c.mustOwn()
		o.mustBe(handoff.StateDraining)
		return o, c
	}
	bubble(t, "many at a time", func(t *testing.T) {
		o, c := both(t)
		refused := errors.New("no such listener")
		c.receiver.onConnection = func(came *handoff.Connection) error {
			if came.Listener == "nobody" {
				return refused
			}
			return nil
		}
		var yes, no []*transfer
		for range 3 * handoff.ConnectionWindow {
			yes = append(yes, o.pass(t.Context(), aConnection(t)))
			other := aConnection(t)
			other.Listener = "nobody"
			no = append(no, o.pass(t.Context(), other))
		}
		for i := range yes {
			yes[i].mustBeTaken()
			mustMatch(t, no[i].outcome(), is(handoff.ErrNotTaken), "no such listener")
		}
		if n := c.receiver.count("Taken"); n != len(yes) {
			t.Errorf("%d of %d were taken", n, len(yes))
		}
	})
	for _, message := range []string{"< Connection", "> ConnectionAck"} {
		for _, moment := range []string{"before", "after"} {
			for _, victim := range []string{"predecessor", "successor"} {
				bubble(t, fmt.Sprintf("the %s is killed %s %s", victim, moment, message), func(t *testing.T) {
					o, c := both(t)
					end := c.pipe.server
					if victim == "successor" {
						end = c.pipe.client
					}
					kill := func(m string) {
						if m == message {
							end.kill()
						}
					}
					if moment == "before" {
						c.pipe.before = kill
					} else {
						c.pipe.after = kill
					}
					tr := o.pass(t.Context(), aConnection(t))
					synctest.Wait()
					served := c.receiver.count("Taken") == 1 && victim != "successor"
					var back error
					select {
					case back = <-tr.result:
					default: // its goroutine has gone with the predecessor
					}
					kept := back != nil && victim != "predecessor"
					// Whoever lives has it, unless the one that had it was killed:
					// the predecessor before it was sent, the successor after its yes.
					died := victim == "predecessor" && message == "< Connection" && moment == "before" ||
						victim == "successor" && message == "> ConnectionAck" && moment == "after"
					if served == kept && !died || died && (served || kept) {
						t.Errorf("served there: %v, kept here: %v (%v)\n%s", served, kept, back, c.pipe.transcript())
					}
					if kept {
						mustMatch(t, back, is(handoff.ErrLost))
					}
				})
			}
		}
	}
}

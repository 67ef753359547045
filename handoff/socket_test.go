package handoff_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// These tests run the machines over real sockets.

// pair returns a connected pair.
func pair(t *testing.T) (server, client *scm.Conn) {
	t.Helper()
	server, theirs, err := scm.Pair()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("descriptors cannot be passed on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	fd, err := scm.DupFD(theirs)
	if err != nil {
		t.Fatal(err)
	}
	client, err = scm.OpenConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

// rawPair returns a connection and the plain other end.
func rawPair(t *testing.T) (*scm.Conn, *net.UnixConn) {
	t.Helper()
	ours, theirs, err := scm.Pair()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("descriptors cannot be passed on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	plain, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close(); _ = plain.Close() })
	if err := plain.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return ours, plain.(*net.UnixConn)
}

// inTime is a context for what must happen at all.
func inTime(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// mustConn reads frames from the plain end.
func mustConn(t *testing.T, c *net.UnixConn) *scm.Conn {
	t.Helper()
	conn, err := scm.NewConn(c)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// successorOn returns the configuration of a successor with its receiver.
func successorOn(t *testing.T) (*receiver, *handoff.SuccessorConfig) {
	r := new(receiver)
	t.Cleanup(r.close)
	return r, &handoff.SuccessorConfig{
		Process: handoff.Process{Instance: "v2", PID: os.Getpid()}, Receiver: r, Patience: time.Minute,
		WaitUntil: time.Now().Add(time.Minute), Log: quiet,
	}
}

func TestOverASocketpair(t *testing.T) {
	for _, n := range []int{3, 10_000} {
		o := newOwner(t)
		o.service.offer.Descriptors = descriptors(t, n)
		o.service.changes.Added = descriptors(t, n+2)[n:]
		if err := scm.Reserve(n + 100); err != nil {
			t.Skipf("this test needs more descriptors than the system allows: %v", err)
		}
		server, client := pair(t)
		go o.server.Serve(server, nil)
		r, cfg := successorOn(t)
		taking, err := handoff.Connect(t.Context(), client, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := taking.Ready(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if len(r.got) != n+2 {
			t.Errorf("%d descriptors arrived, want %d", len(r.got), n+2)
		}
		want, err := o.service.offer.Descriptors[0].FD.Identify()
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range r.got {
			got, err := d.FD.Identify()
			if err != nil || got != want {
				t.Fatalf("descriptor %d is %v, %v; want %v", i, got, err, want)
			}
		}
		taking.Leave()
		r.close()
	}
}

// process is a process with a control socket.
type process struct {
	*owner
	path string
	fd   *scm.FD
}

// serve gives o a control socket.
func (o *owner) serve() *process {
	o.t.Helper()
	dir, err := os.MkdirTemp("", "handoff") // short: a socket's path has little room
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &process{owner: o, path: filepath.Join(dir, "s")}
	p.fd, err = scm.Bind("unix", p.path)
	if errors.Is(err, errors.ErrUnsupported) {
		o.t.Skip("there are no control sockets on this system")
	}
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = p.fd.Close() })
	open := func() {
		if err := o.server.Open(p.fd, 200); err != nil {
			o.t.Error(err)
		}
	}
	o.service.onResume = open
	open()
	o.t.Cleanup(o.server.Close)
	return p
}

// dial connects, and tries again while the queue of the socket is full.
func (p *process) dial() *scm.Conn {
	p.t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := scm.Dial(p.t.Context(), p.path)
		if err == nil {
			return conn
		}
		if !errors.Is(err, syscall.EAGAIN) {
			p.t.Fatal(err)
		}
		<-ticker.C
	}
}

// mustServe asks whoever serves the control socket for its generation.
func (p *process) mustServe(generation uint64) {
	p.t.Helper()
	st, err := handoff.QueryStatus(p.t.Context(), p.dial())
	if err != nil {
		p.t.Fatal(err)
	}
	if st.Process.Generation != generation {
		p.t.Errorf("generation %d answers, want %d", st.Process.Generation, generation)
	}
}

// connect connects a successor, and waits while others are in the way.
func (p *process) connect(cfg *handoff.SuccessorConfig) *handoff.Taking {
	p.t.Helper()
	for {
		taking, err := handoff.Connect(p.t.Context(), p.dial(), cfg)
		if err == nil {
			return taking
		}
		if !errors.Is(err, handoff.ErrAskAgain) {
			p.t.Fatal(err)
		}
	}
}

func TestControlSocket(t *testing.T) {
	t.Run("is served by the successor behind a handoff", func(t *testing.T) {
		p := newOwner(t).serve()
		p.mustServe(1)
		r, cfg := successorOn(t)
		next := &owner{t: t, service: new(service), cfg: p.cfg}
		next.server = handoff.NewServer(&handoff.ServerConfig{
			Process: cfg.Process, Service: next.service, Limits: limits, Authorize: p.cfg.Authorize, Accept: p.cfg.Accept, Log: quiet,
		})
		settled := make(chan struct{})
		r.onOwn = func() {
			next.server.Own(2, true, false)
			if err := next.server.Open(p.fd, 200); err != nil {
				t.Error(err)
			}
		}
		r.onSettled = func() { next.server.SetSettled(); close(settled) }
		t.Cleanup(next.server.Close)
		taking := p.connect(cfg)
		if err := taking.Ready(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		<-settled
		p.mustServe(2)
		p.server.Stop() // waits until it has retired
		p.mustBe(handoff.StateDraining)
		taking.Leave()
	})
	t.Run("is served again when the successor is lost behind Commit", func(t *testing.T) {
		p := newOwner(t).serve()
		for generation := uint64(2); generation < 5; generation++ {
			conn := p.dial()
			say(t, conn, hello(), prepared, pageAck(1), received, ready)
			hearUntil(t, conn, "ManifestPage 1")
			say(t, conn, pageAck(2), finalReceived)
			hearUntil(t, conn, "Commit")
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			p.mustServe(1)
		}
		_, cfg := successorOn(t)
		taking := p.connect(cfg)
		if got := taking.Generation(); got != 5 {
			t.Errorf("the attempt got generation %d, want 5", got)
		}
		taking.Leave()
	})
	t.Run("is served again when the successor is lost in probation", func(t *testing.T) {
		p := newOwner(t).serve()
		conn := p.dial()
		say(t, conn, hello(), prepared, pageAck(1), received, ready)
		hearUntil(t, conn, "ManifestPage 1")
		say(t, conn, pageAck(2), finalReceived, commitAck(false))
		hearUntil(t, conn, "ProbationOver")
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		p.mustServe(1) // it was queued until the owner accepted again
		_, cfg := successorOn(t)
		p.connect(cfg).Leave()
	})
	t.Run("is not held up by those who say nothing", func(t *testing.T) {
		p := newOwner(t).serve()
		for range 100 {
			conn := p.dial()
			defer conn.Close()
		}
		p.mustServe(1)
		_, cfg := successorOn(t)
		p.connect(cfg).Leave()
	})
	t.Run("Close ends what waits", func(t *testing.T) {
		p := newOwner(t).serve()
		p.server.Own(1, false, true)
		result := make(chan error)
		for range 3 {
			_, cfg := successorOn(t)
			conn := p.dial()
			go func() {
				_, err := handoff.Connect(t.Context(), conn, cfg)
				result <- err
			}()
		}
		silent := p.dial()
		defer silent.Close()
		p.mustServe(1) // the queue is in order: the others are accepted
		p.server.Close()
		for range 3 {
			mustMatchAny(t, <-result, handoff.ErrAskAgain, handoff.ErrLost, handoff.ErrStopping)
		}
		if _, _, err := silent.Receive(t.Context(), 0); !errors.Is(err, io.EOF) {
			t.Errorf("the silent client reads %v, want EOF", err)
		}
	})
}

// say writes messages of a client without waiting for answers.
func say(t *testing.T, conn *scm.Conn, ms ...proto.Message) {
	t.Helper()
	for _, m := range ms {
		if err := conn.Send(t.Context(), wrap(true, m)); err != nil {
			t.Fatal(err)
		}
	}
}

// hearUntil reads up to a message with this short name.
func hearUntil(t *testing.T, conn *scm.Conn, name string) {
	t.Helper()
	for {
		payload, fds, err := conn.Receive(t.Context(), scm.MaxDescriptors)
		closeFDs(fds)
		if err != nil {
			t.Fatal(err)
		}
		if shortName(member(false, payload)) == name {
			return
		}
	}
}

func mustMatchAny(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if errors.Is(err, target) {
			return
		}
	}
	t.Errorf("%v matches none of %v", err, targets)
}

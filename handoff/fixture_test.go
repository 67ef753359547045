package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

func protoValue(m proto.Message) protoreflect.Value {
	return protoreflect.ValueOfMessage(m.ProtoReflect())
}

// bubble runs a subtest under the fake clock.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// elapse moves the fake clock, which happens when everything else has come to
// rest. What the moment brings may not have happened yet when it returns.
func elapse(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // of a bubble's clock
}

// limits are those of an owner in these tests. No two are the same, so that an
// error which names one names the right one.
var limits = handoff.Limits{
	Hello:    3 * time.Second,
	Ready:    time.Minute,
	MaxReady: 10 * time.Minute,
	Commit:   11 * time.Second,
}

const patience = 7 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// calls is what a fake was asked to do, in order.
type calls struct {
	mu   sync.Mutex
	list []string
}

func (c *calls) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

func (c *calls) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.list, ", ")
}

// count is how many of the calls are name, whatever their arguments.
func (c *calls) count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, call := range c.list {
		if word, _, _ := strings.Cut(call, " "); word == name {
			n++
		}
	}
	return n
}

// service is a [handoff.Service] that records its calls.
type service struct {
	calls

	offer      handoff.Offer
	changes    handoff.Changes
	offerErr   error
	freezeErr  error
	controlErr error
	listed     []handoff.DescriptorStatus
	older      []handoff.Generation
	onOffer    func(context.Context) // nil for nothing
	onFreeze   func(context.Context)
	onPause    func()
	onResume   func()
	onRelieve  func()
	onRetire   func()
	unit       *handoff.ServiceManager // what Relieve returns
	relieved   handoff.Process         // by whom
	onWarnings func()                  // whenever a status is made
}

func (s *service) Offer(ctx context.Context) (*handoff.Offer, error) {
	s.add("Offer")
	if s.onOffer != nil {
		s.onOffer(ctx)
	}
	return &s.offer, s.offerErr
}

func (s *service) Freeze(ctx context.Context) (*handoff.Changes, error) {
	s.add("Freeze")
	if s.onFreeze != nil {
		s.onFreeze(ctx)
	}
	return &s.changes, s.freezeErr
}

func (s *service) Thaw() { s.add("Thaw") }

func (s *service) Pause(except []uint64) {
	s.add("Pause %v", except)
	if s.onPause != nil {
		s.onPause()
	}
}

func (s *service) Resume() {
	s.add("Resume")
	if s.onResume != nil {
		s.onResume()
	}
}

func (s *service) Relieve(successor handoff.Process, _ uint64) *handoff.ServiceManager {
	s.relieved = successor
	if s.onRelieve != nil {
		s.onRelieve()
	}
	return s.unit
}

func (s *service) Retire() {
	s.add("Retire")
	if s.onRetire != nil {
		s.onRetire()
	}
}

func (s *service) Warnings() []string {
	if s.onWarnings != nil {
		s.onWarnings()
	}
	return nil
}

func (s *service) EndDrain()                               { s.add("EndDrain") }
func (s *service) CheckControl(context.Context) error      { return s.controlErr }
func (s *service) Total() int                              { return len(s.offer.Descriptors) + s.offer.Pending }
func (s *service) Descriptors() []handoff.DescriptorStatus { return s.listed }
func (s *service) Generations() []handoff.Generation       { return s.older }

// receiver is a [handoff.Receiver] that records its calls and owns what it gets.
type receiver struct {
	calls

	receiveErr error
	applyErr   error
	yieldErr   error
	onYield    func(context.Context)
	onOwn      func()
	onSettled  func()
	onFail     func()

	onConnection func(*handoff.Connection) error
	onAnswered   func()

	held    sync.Mutex
	control *handoff.Control
	got     []handoff.Descriptor
	failure error

	deadline time.Time // of the last Draining
	unit     handoff.ServiceManager
}

func (r *receiver) Receive(control *handoff.Control, ds []handoff.Descriptor) error {
	r.add("Receive %d", len(ds))
	r.keep(ds)
	if control != nil {
		r.control = control
	}
	return r.receiveErr
}

func (r *receiver) Apply(c handoff.Changes) error {
	r.add("Apply +%d -%d", len(c.Added), len(c.Removed))
	r.keep(c.Added)
	return r.applyErr
}

func (r *receiver) keep(ds []handoff.Descriptor) {
	r.held.Lock()
	defer r.held.Unlock()
	r.got = append(r.got, ds...)
}

func (r *receiver) Own(generation uint64, probation *handoff.Probation) {
	if probation != nil {
		r.add("Own %d until %v, then %v", generation, time.Until(probation.Until), probation.AtEnd)
	} else {
		r.add("Own %d", generation)
	}
	if r.onOwn != nil {
		r.onOwn()
	}
}

func (r *receiver) Settling() { r.add("Settling") }

func (r *receiver) Yield(ctx context.Context) error {
	r.add("Yield")
	if r.onYield != nil {
		r.onYield(ctx)
	}
	r.held.Lock()
	defer r.held.Unlock()
	return r.yieldErr
}

// failYield has Yield return err from now on.
func (r *receiver) failYield(err error) {
	r.held.Lock()
	defer r.held.Unlock()
	r.yieldErr = err
}

func (r *receiver) Inherit(generation uint64) { r.add("Inherit %d", generation) }

func (r *receiver) Settled() {
	r.add("Settled")
	if r.onSettled != nil {
		r.onSettled()
	}
}

func (r *receiver) Gone() { r.add("Gone") }

func (r *receiver) Draining(connections int, deadline time.Time) {
	r.add("Draining %d", connections)
	r.deadline = deadline
}

func (r *receiver) ServiceManager(m handoff.ServiceManager) {
	r.add("ServiceManager")
	r.unit = m
}

// Connection keeps what came under a descriptor's name, for close.
func (r *receiver) Connection(c *handoff.Connection) (answered func(taken bool), err error) {
	r.add("Connection %s", c.Listener)
	if r.onConnection != nil {
		if err := r.onConnection(c); err != nil {
			_ = c.FD.Close()
			return nil, err
		}
	}
	r.keep([]handoff.Descriptor{{Name: c.Listener, FD: c.FD}}) // at once: the process may be killed before it answers
	return func(taken bool) {
		if r.onAnswered != nil {
			r.onAnswered()
		}
		r.add("Taken %v", taken)
		if !taken {
			_ = c.FD.Close()
		}
	}, nil
}

func (r *receiver) Fail(err error) {
	r.add("Fail")
	r.failure = err
	if r.onFail != nil {
		r.onFail()
	}
	r.close()
}

func (r *receiver) close() {
	r.held.Lock()
	defer r.held.Unlock()
	for _, d := range r.got {
		_ = d.FD.Close()
	}
}

// owner is a process that owns a service.
type owner struct {
	t       *testing.T
	server  *handoff.Server
	service *service
	cfg     *handoff.ServerConfig
	refuse  func(context.Context) error // for a test's own policy
}

// newOwner returns an owner at rest of generation 1, which has three
// descriptors.
func newOwner(t *testing.T, configure ...func(*handoff.ServerConfig)) *owner {
	t.Helper()
	o := &owner{t: t, service: new(service)}
	o.service.offer = handoff.Offer{
		Control:     &handoff.Control{Path: "/run/app.sock", Bound: "/run/.app.1", Dev: 1, Ino: 2, Backlog: 3},
		Descriptors: descriptors(t, 3),
	}
	o.cfg = &handoff.ServerConfig{
		Process:   handoff.Process{Instance: "v1", PID: 11},
		Service:   o.service,
		Limits:    limits,
		Authorize: func(*scm.Peer, handoff.Access) error { return nil },
		Accept:    func(context.Context, handoff.Candidate) error { return nil },
		Log:       quiet,
	}
	for _, f := range configure {
		f(o.cfg)
	}
	o.server = handoff.NewServer(o.cfg)
	o.server.Own(1, true, true)
	return o
}

// descriptors returns n descriptors with ids from 1 on, all of the null device.
func descriptors(t *testing.T, n int) []handoff.Descriptor {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := scm.DupFD(f)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("descriptors cannot be passed on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fd.Close() })
	ds := make([]handoff.Descriptor, n)
	for i := range ds {
		ds[i] = handoff.Descriptor{
			ID: uint64(i + 1), Name: fmt.Sprintf("file-%d", i+1), Kind: handoff.KindFile, Address: os.DevNull, FD: fd,
		}
	}
	return ds
}

// candidate is a process that takes over from an owner.
type candidate struct {
	t        *testing.T
	pipe     *pipe
	receiver *receiver
	cfg      *handoff.SuccessorConfig

	connected chan struct{} // closed when Connect has returned
	taking    *handoff.Taking
	err       error

	result chan error // of Ready
}

// candidate returns one that has not connected yet.
func newCandidate(t *testing.T) *candidate {
	t.Helper()
	c := &candidate{
		t: t, pipe: newPipe(t), receiver: new(receiver), connected: make(chan struct{}), result: make(chan error, 1),
	}
	c.cfg = &handoff.SuccessorConfig{
		Process: handoff.Process{Instance: "v2", PID: 22}, Receiver: c.receiver, Patience: patience, Log: quiet,
	}
	t.Cleanup(c.end)
	return c
}

// connect begins c's attempt on o and returns when nothing moves any more.
func (c *candidate) connect(ctx context.Context, o *owner) *candidate {
	c.t.Helper()
	go o.server.Serve(c.pipe.server, nil)
	c.dial(ctx)
	return c
}

// dial begins c's attempt with whoever has the other end.
func (c *candidate) dial(ctx context.Context) {
	go func() {
		defer close(c.connected)
		c.taking, c.err = handoff.ConnectOn(ctx, c.pipe.client, c.cfg)
	}()
	synctest.Wait()
}

// connected returns a candidate that has received the offer.
func (o *owner) connected() *candidate {
	o.t.Helper()
	c := newCandidate(o.t).connect(o.t.Context(), o)
	c.mustHaveReceived()
	return c
}

func (c *candidate) mustHaveReceived() {
	c.t.Helper()
	select {
	case <-c.connected:
	default:
		c.t.Fatalf("Connect has not returned; on the wire:\n%s", c.pipe.transcript())
	}
	if c.err != nil {
		c.t.Fatalf("Connect: %v; on the wire:\n%s", c.err, c.pipe.transcript())
	}
}

// ready calls Ready and returns when nothing moves any more.
func (c *candidate) ready(ctx context.Context, unclaimed ...handoff.Descriptor) {
	go func() { c.result <- c.taking.Ready(ctx, unclaimed) }()
	synctest.Wait()
}

// outcome is what Ready has returned; it fails the test if it has not.
func (c *candidate) outcome() error {
	c.t.Helper()
	select {
	case err := <-c.result:
		return err
	default:
		c.t.Fatalf("Ready has not returned; on the wire:\n%s", c.pipe.transcript())
		return nil
	}
}

func (c *candidate) mustOwn() {
	c.t.Helper()
	if err := c.outcome(); err != nil {
		c.t.Fatalf("Ready: %v; on the wire:\n%s", err, c.pipe.transcript())
	}
	if c.receiver.count("Own") != 1 {
		c.t.Errorf("Ready gave nil, and the calls are: %v", &c.receiver.calls)
	}
}

// end ends what is left of both sides.
func (c *candidate) end() {
	c.pipe.client.thaw()
	c.pipe.server.thaw()
	select {
	case <-c.connected:
		if c.taking != nil {
			c.taking.Leave()
		}
	default:
	}
	_ = c.pipe.client.Close()
	synctest.Wait()
	c.receiver.close()
}

// takeOver hands the service to a fresh candidate, as the proof that nothing of
// an earlier attempt is in the way.
func (o *owner) takeOver() {
	o.t.Helper()
	c := newCandidate(o.t)
	c.cfg.Probation = new(time.Duration)
	c.connect(o.t.Context(), o)
	c.mustHaveReceived()
	c.ready(o.t.Context())
	c.mustOwn()
	o.mustBe(handoff.StateDraining)
}

func (o *owner) mustBe(want handoff.State) {
	o.t.Helper()
	if got := o.server.State(); got != want {
		o.t.Errorf("the owner is in state %v, want %v; its calls: %v", got, want, &o.service.calls)
	}
}

// mustHaveCalled compares the calls of a fake with a list, when nothing more happens
// without more time: what one side has learnt the other may still be busy with.
func mustHaveCalled(t *testing.T, got *calls, want string) {
	t.Helper()
	synctest.Wait()
	if got.String() != want {
		t.Errorf("calls are\n\t%v\nwant\n\t%v", got, want)
	}
}

// mustMatch fails unless err matches every target and its text has every part.
func mustMatch(t *testing.T, err error, targets []error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %v %q", targets, parts)
		return
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("error %q does not match %q", err, target)
		}
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has more than one line", err)
	}
}

// is makes a list of targets for mustMatch.
func is(targets ...error) []error { return targets }

// failure returns why the last attempt failed, for the status.
func (o *owner) failure() string {
	f := o.server.Status(o.t.Context()).LastFailure
	if f == nil {
		return "none"
	}
	return f.Reason
}

// player speaks one side of the protocol by hand.
type player struct {
	t   *testing.T
	end *end
}

// client connects a player to o.
func (o *owner) client() *player {
	o.t.Helper()
	p := newPipe(o.t)
	o.t.Cleanup(func() {
		p.server.thaw()
		_ = p.client.Close()
		synctest.Wait()
	})
	go o.server.Serve(p.server, nil)
	synctest.Wait()
	return &player{t: o.t, end: p.client}
}

// say writes messages, waiting for what each leads to.
func (p *player) say(ms ...proto.Message) {
	p.t.Helper()
	for _, m := range ms {
		p.write(wrap(p.end.arrow == ">", m))
	}
}

// write writes a payload, whatever it is. The other side may have closed.
func (p *player) write(payload []byte, fds ...*scm.FD) {
	if err := p.end.Send(p.t.Context(), payload, fds...); err != nil && !p.end.peer.isClosed() {
		p.t.Fatal(err)
	}
	synctest.Wait()
}

// hear returns the next message, nil if nothing has come. The other side's end
// reads as a nil message and true.
func (p *player) hear() (m proto.Message, closed bool) {
	p.t.Helper()
	synctest.Wait()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	payload, fds, err := p.end.Receive(now, scm.MaxDescriptors)
	closeFDs(fds)
	if err != nil {
		return nil, !errors.Is(err, context.Canceled)
	}
	return member(p.end.arrow == "<", payload), false
}

// hearAll returns the short names of everything that has come.
func (p *player) hearAll() (names []string, last proto.Message, closed bool) {
	p.t.Helper()
	for {
		m, closed := p.hear()
		if m == nil {
			return names, last, closed
		}
		names, last = append(names, shortName(m)), m
	}
}

func (p *player) mustHear(want ...string) {
	p.t.Helper()
	got, _, closed := p.hearAll()
	if closed {
		got = append(got, "EOF")
	}
	if !slices.Equal(got, want) {
		p.t.Fatalf("heard %q, want %q", got, want)
	}
}

// close closes the player's end and returns when nothing moves any more.
func (p *player) close() {
	_ = p.end.Close()
	synctest.Wait()
}

func hello() *pb.Hello {
	return &pb.Hello{
		Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "by hand", Pid: 33},
	}
}

var errBoom = errors.New("boom")

// processOf is the process of a candidate that ends when exited is closed.
type processOf <-chan struct{}

func (p processOf) Exited() <-chan struct{} { return p }

func (p processOf) Kill() error { return errors.ErrUnsupported }

func (p processOf) PidfdID() (uint64, error) { return 0, errors.ErrUnsupported }

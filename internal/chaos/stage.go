//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// generous is how long the harness waits for what must happen at all.
const generous = 50 * time.Second

// stage is where one or more handoffs of one service take place: a control path,
// an address, clients that never stop, and everything that was seen. Whatever is
// wrong is noted, and makes the cell wrong.
type stage struct {
	ctx     context.Context // ends with the patience of the harness
	dir     string
	address string
	begin   int64
	files   int   // that each process hands over
	load    *load // nil while no client is about, as is watch
	watch   *watch

	mu        sync.Mutex
	processes []*process
	journal   process // the harness's own events, for the transcript
	wrong     []string
	tries     []try
	samples   []sample
	gone      []window       // when the service was nobody's by the rules
	rest      inventory      // of an owner when nothing has happened yet
	left      inventory      // of the owner that was at rest last
	counts    map[string]int // of what was done, for a summary
}

// window is a time in which clients may be turned away. It is open while to is 0.
type window struct{ from, to int64 }

// stages counts them, so that each has an address of its own.
var stages atomic.Uint32

// stageAddress is an address on the loopback network that neither the tests of
// this module nor another run of the harness use.
func stageAddress() string {
	n := stages.Add(1)
	run := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:%d", 251+run%4, n>>8&0xff, 1+n%250, 10000+run%20000)
}

// newStage makes an empty stage below dir.
func newStage(ctx context.Context, dir string) (*stage, error) {
	dir, err := os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	return &stage{
		ctx: ctx, dir: dir, address: stageAddress(), begin: now(),
		journal: process{name: "-", news: make(chan struct{})}, counts: make(map[string]int),
	}, nil
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// spec is the description of a service process on this stage, with limits that
// do not matter.
func (s *stage) spec(name string) spec {
	return spec{
		Name: name, Socket: s.path("control"), Address: s.address, Unix: s.path("local"),
		DialTimeout: longTime, ReadyTimeout: longTime, CommitTimeout: longTime,
		Files: s.files, MaxDraining: manyDraining,
	}
}

// manyDraining is more processes than ever drain at the same time on a stage.
const manyDraining = 20

// start starts a service process on this stage.
func (s *stage) start(sp spec, options ...option) (*process, error) {
	p, err := startProcess(s.dir, sp, options...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes = append(s.processes, p)
	return p, nil
}

// open starts the first process and, when it serves, the clients. What it has
// open while nobody else is there is what every owner at rest has.
func (s *stage) open(sp spec, options ...option) (*process, error) {
	p, err := s.start(sp, options...)
	if err != nil {
		return nil, err
	}
	if _, err := p.expect(s.ctx, eventReady); err != nil {
		return nil, err
	}
	if s.rest == nil {
		if s.rest, err = inventoryOf(p.pid()); err != nil {
			return nil, err
		}
	}
	s.busy()
	return p, nil
}

// busy lets clients and controllers come, until quiet.
func (s *stage) busy() {
	s.load = startLoad(s.address, s.path("local"))
	s.watch = startWatch(s.path("control"))
}

// quiet sends clients and controllers away, once each has had its answer. What
// they met is judged at the end.
func (s *stage) quiet() {
	if s.load == nil {
		return
	}
	tries, samples := s.load.stop(), s.watch.stop()
	s.load, s.watch = nil, nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries = append(s.tries, tries...)
	s.samples = append(s.samples, samples...)
}

// note writes a line of the harness's own into the transcript.
func (s *stage) note(format string, args ...any) {
	s.journal.note(newEvent("", fmt.Sprintf(format, args...), nil))
}

// fail notes what is wrong, if err is not nil, and reports whether it was.
func (s *stage) fail(err error) bool {
	if err == nil {
		return false
	}
	s.mu.Lock()
	s.wrong = append(s.wrong, err.Error())
	s.mu.Unlock()
	s.note("WRONG: %v", err)
	return true
}

// faults is how much was wrong so far.
func (s *stage) faults() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.wrong)
}

func (s *stage) failf(format string, args ...any) { s.fail(fmt.Errorf(format, args...)) }

func (s *stage) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// goneFrom says that from now on the service is nobody's, by the rules, and
// backFrom that it is somebody's again.
func (s *stage) goneFrom() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = append(s.gone, window{from: now()})
}

func (s *stage) back() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.gone {
		if s.gone[i].to == 0 {
			s.gone[i].to = now()
		}
	}
}

// end ends a process at a moment at which it stands still, with clients queued
// that only others can have accepted.
func (s *stage) end(p *process) {
	if !p.alive() || s.fail(p.stop()) {
		return
	}
	p.release()
	if s.load != nil {
		s.load.queue(queuedClients)
	}
	s.note("kill %s", p.name)
	p.kill()
}

// queuedClients is how many clients over each network queue up while a process
// stands still.
const queuedClients = 2

// close ends every process and every client, and judges what was seen.
func (s *stage) close() {
	s.quiet()
	s.mu.Lock()
	all := slices.Clone(s.processes)
	s.mu.Unlock()
	for _, p := range all {
		p.kill()
		if text := p.complaints(); text != "" {
			s.failf("%s wrote to standard error:\n%s", p.name, text)
		}
	}
	s.judgeTries()
	s.judgeOwners()
	s.judgeStatuses()
	s.fail(os.RemoveAll(s.dir))
}

// transcript is everything that was seen.
func (s *stage) transcript() string {
	s.mu.Lock()
	all := append(slices.Clone(s.processes), &s.journal)
	s.mu.Unlock()
	return transcript(all, s.begin)
}

// tenure is a time in which a process owned, by its own account.
type tenure struct {
	p        *process
	from, to int64
}

// forever is later than anything.
const forever = int64(1<<63 - 1)

// owns reports whether a process in this state owns.
func owns(state string) bool {
	return state == handoff.StateOwner.String() || state == handoff.StateOffering.String() || state == handoff.StateCommitting.String()
}

// tenures are the times in which each process owned. A process logs a change of
// state before it acts on it, and the clock is one for all: that one process
// follows from what another has done shows in the stamps.
func (s *stage) tenures() []tenure {
	s.mu.Lock()
	all := slices.Clone(s.processes)
	s.mu.Unlock()
	var found []tenure
	for _, p := range all {
		found = append(found, p.tenures()...)
	}
	slices.SortFunc(found, func(a, b tenure) int { return int(a.from - b.from) })
	return found
}

func (p *process) tenures() []tenure {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []tenure
	owning := false
	until := forever
	if p.released != 0 {
		until = p.released
	}
	for _, e := range p.events {
		_, to, ok := transition(e)
		switch {
		case ok && owns(to) && !owning:
			owning = true
			found = append(found, tenure{p, e.At, until})
		case ok && !owns(to) && owning, e.Name == eventEnd && owning:
			owning = false
			last := &found[len(found)-1]
			last.to = min(e.At, until)
		}
	}
	return found
}

// judgeOwners looks for two owners at one time (I1).
func (s *stage) judgeOwners() {
	all := s.tenures()
	for i, a := range all {
		for _, b := range all[i+1:] {
			if b.from < a.to && b.p != a.p {
				s.failf("two owners (I1): %s from %s to %s, and %s from %s on", a.p.name, s.at(a.from), s.at(a.to), b.p.name, s.at(b.from))
			}
		}
	}
}

func (s *stage) at(stamp int64) string {
	switch stamp {
	case 0:
		return "never"
	case forever:
		return "the end"
	}
	return fmt.Sprintf("%.3f ms", float64(stamp-s.begin)/1e6)
}

// judgeStatuses compares what the control socket said with what the processes
// said of themselves.
func (s *stage) judgeStatuses() {
	all := s.tenures()
	for _, x := range s.samples {
		if !x.owns {
			continue
		}
		if !slices.ContainsFunc(all, func(t tenure) bool { return t.p.name == x.who && t.from <= x.to && x.from <= t.to }) {
			s.failf("%s said on the control socket, between %s and %s, that it owns, and did not", x.who, s.at(x.from), s.at(x.to))
		}
	}
}

// judgeTries looks for clients that were refused or reset, and for processes that
// answered although they were not to accept.
func (s *stage) judgeTries() {
	s.mu.Lock()
	gone := slices.Clone(s.gone)
	all := slices.Clone(s.processes)
	s.mu.Unlock()
	byName := make(map[string]*process, len(all))
	for _, p := range all {
		byName[p.name] = p
	}
	failed := 0
	var first string
	for _, t := range s.tries {
		if t.err != nil {
			if !s.excused(t, gone, all) {
				if failed++; failed == 1 {
					first = fmt.Sprintf("%s, dialled at %s, connected at %s: %v", t.network, s.at(t.began), s.at(t.connected), t.err)
				}
			}
			continue
		}
		p := byName[t.who]
		if p == nil {
			s.failf("a client was answered by %q", t.who)
			continue
		}
		if why := p.mayHaveAccepted(t); why != "" {
			s.failf("%s answered a client that dialled at %s and had its answer at %s: %s", t.who, s.at(t.began), s.at(t.ended), why)
		}
	}
	if failed > 0 {
		s.failf("%d of %d clients failed, the first over %s (I3, I4)", failed, len(s.tries), first)
	}
	s.mu.Lock()
	s.counts["requests"] += len(s.tries)
	s.counts["failed requests"] += failed
	s.mu.Unlock()
}

// excused reports whether nobody is to blame for what a client met: the service
// was nobody's, or the process that may have accepted it was ended. Clients that
// queued while a process stood still cannot have been accepted by it.
func (s *stage) excused(t try, gone []window, all []*process) bool {
	for _, w := range gone {
		if t.ended >= w.from && (w.to == 0 || t.began <= w.to) {
			return true
		}
	}
	if t.queued || t.connected == 0 {
		return false
	}
	return slices.ContainsFunc(all, func(p *process) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.released != 0 && t.began <= p.released && p.acceptedLocked(t.began, p.released)
	})
}

// accepts reports whether a process in this state takes connections. One that
// rolls back does so until it has read Resumed, and the predecessor until it has
// read CommitAck (docs/protocol.md, "Who accepts").
func accepts(state string) bool {
	return owns(state) || state == handoff.StateStandby.String() || state == handoff.StateYielding.String()
}

// acceptsUntil is accepts for a process that changes its state. One that resumes
// accepts a moment before it says that it owns.
func acceptsUntil(state, next string) bool {
	return accepts(state) || state == handoff.StateProbation.String() && owns(next)
}

// acceptedLocked reports whether the process took connections at some moment
// between the two.
func (p *process) acceptedLocked(from, to int64) bool {
	state, since, leaving := "candidate", int64(0), false
	for _, e := range p.events {
		_, next, ok := transition(e)
		switch {
		case leaving && isOut(e):
			return since <= to && e.At >= from
		case !ok:
			continue
		case state == handoff.StateYielding.String() && next == handoff.StateOut.String():
			leaving = true // from here on it closes what it has
		case acceptsUntil(state, next) && since <= to && e.At >= from:
			return true
		}
		if !leaving {
			state, since = next, e.At
		}
	}
	// One that was ended may have been about to say that it resumes.
	return (accepts(state) || p.released != 0 && acceptsUntil(state, handoff.StateOwner.String())) && since <= to
}

// mayHaveAccepted says why the process cannot have answered that client by the
// rules, or nothing.
func (p *process) mayHaveAccepted(t try) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.acceptedLocked(t.began, t.ended) {
		return ""
	}
	return "it accepted nobody in that time by its own account, being " + p.state + " at last"
}

// watch asks the control socket who owns, again and again.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}
	taken  []sample
}

// sample is one status.
type sample struct {
	from, to int64
	who      string
	state    string
	owns     bool
}

// watchInterval is the time between two samples. Owners that change in between
// are found by their own account.
const watchInterval = 10 * time.Millisecond

func startWatch(socket string) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			// Whether somebody answers is not asked here.
			if x, err := takeSample(ctx, socket); err == nil {
				w.taken = append(w.taken, x)
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}()
	return w
}

func takeSample(ctx context.Context, socket string) (sample, error) {
	x := sample{from: now()}
	ctx, cancel := context.WithTimeout(ctx, shortTime)
	defer cancel()
	status, err := queryStatus(ctx, socket)
	if err != nil {
		return sample{}, err
	}
	x.to, x.who, x.state, x.owns = now(), status.Process.Instance, status.State.String(), status.State.Owns()
	return x, nil
}

func queryStatus(ctx context.Context, socket string) (*handoff.Status, error) {
	conn, err := scm.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return handoff.QueryStatus(ctx, conn)
}

// stop ends the watch and returns what it has seen.
func (w *watch) stop() []sample {
	w.cancel()
	<-w.done
	return w.taken
}

// verify checks that owner is the one that owns: by its own account, on the
// control socket, and by the answers of its sockets.
func (s *stage) verify(owner *process) {
	if s.fail(owner.expectState(s.ctx, handoff.StateOwner.String())) {
		return
	}
	status, err := queryStatus(s.ctx, s.path("control"))
	switch {
	case s.fail(err):
	case status.Process.Instance != owner.name || status.State != handoff.StateOwner:
		s.failf("the control socket is answered by %s as %v, not by the owner %s", status.Process.Instance, status.State, owner.name)
	case len(status.Warnings) > 0:
		s.failf("%s warns: %s", owner.name, strings.Join(status.Warnings, "; "))
	}
	client, err := newSession(s.address)
	if err == nil {
		client.close()
	}
	if !s.fail(err) && client.who != owner.name {
		s.failf("%s answers the clients, not the owner %s", client.who, owner.name)
	}
	who, err := askPackets(s.ctx, s.address)
	if !s.fail(err) && who != owner.name {
		s.failf("%s answers packets, not the owner %s", who, owner.name)
	}
}

// succeed has a fresh process take over from the owner by the control path, and
// returns it when the owner has gone.
func (s *stage) succeed(name string, owner *process) *process {
	s.note("the next handoff: %s takes over from %s", name, owner.name)
	next, err := s.start(s.spec(name))
	if s.fail(err) {
		return nil
	}
	for _, event := range []string{eventReady, eventSettled} {
		if _, err := next.expect(s.ctx, event); s.fail(err) {
			return nil
		}
	}
	if _, err := owner.expect(s.ctx, eventExit); s.fail(err) {
		return nil
	}
	s.leave(owner, "ErrRetired", 0)
	return next
}

// leave checks that a process which is out says why, that it holds nothing any
// more, and that it exits with that status when it is told to.
func (s *stage) leave(p *process, reason string, status int) {
	why, err := p.await(s.ctx, "end of its part", isOut)
	if s.fail(err) {
		return
	}
	if reason != "" && !slices.Contains(why.Is, reason) {
		s.failf("%s is out because of %q, which does not match %s", p.name, why.Error, reason)
	}
	if reason != "ErrStopped" || status != 0 { // the listeners of an owner that stops work on until the program closes them
		s.fail(p.awaitInventory(s.ctx, func(have inventory) inventory { return have.holdsNothing(reason == "ErrRetired") }))
	}
	s.fail(p.tell(commandQuit))
	got, err := p.exitStatus(s.ctx)
	if !s.fail(err) && got != status {
		s.failf("%s exits with status %d instead of %d", p.name, got, status)
	}
}

// isOut reports whether an event says that the process takes no part any more.
func isOut(e event) bool { return e.Name == eventExit || e.Name == eventFailed }

// atRest checks, with no client about, that the owner has open what an owner at
// rest has, and no more.
func (s *stage) atRest(owner *process) {
	s.quiet()
	s.fail(owner.awaitInventory(s.ctx, func(have inventory) inventory {
		s.left = have
		return have.minus(s.rest)
	}))
	s.busy()
}

// stopForGood has the owner stop, and checks that nothing is left of the service.
func (s *stage) stopForGood(owner *process) {
	s.quiet()
	s.goneFrom()
	if s.fail(owner.tell(commandStop)) {
		return
	}
	s.leave(owner, "ErrStopped", 0)
	for _, name := range []string{"control", "local"} {
		if _, err := os.Lstat(s.path(name)); !errors.Is(err, os.ErrNotExist) {
			s.failf("the path %s is left behind: %v", name, err)
		}
	}
}

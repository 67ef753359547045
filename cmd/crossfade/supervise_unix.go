//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
)

// This file is supervise: one goroutine that acts on signals, on the ends of processes and
// on what is learned of the service, until nothing is left of it. Its processes are in
// generation_unix.go, how it starts one in attempt_unix.go; who owns the service it learns
// by sighting_unix.go, about other processes by reaper_*.go, and what it tells a service
// manager is in manager_unix.go.

// supervisor has the processes of one service. Everything belongs to the goroutine of
// loop: it starts processes, waits for them and signals them, so that a child
// which it has not reaped keeps its number while a signal is sent to it. Others give it
// what they have found out through post.
type supervisor struct {
	in      *invocation
	opts    superviseOptions
	manager *manager
	path    string // of the program, not resolved; without a slash it is looked for in PATH
	ctx     context.Context
	inbox   chan func()
	wg      sync.WaitGroup // the goroutines that post; they end with ctx

	live  []*generation // those that have not ended, as far as is known
	ended []*generation // the last that have, the newest last
	first *generation   // whom this process has started first
	owner *generation   // nil for nobody, and while that is not known
	last  *generation   // who owned last; nil until one of ours has
	seen  time.Time     // when the youngest sight began

	attempt   *attempt       // of a process that this one has started; nil for none
	again     bool           // a SIGHUP waits for its turn
	trouble   string         // why it cannot be told who owns; empty if it can
	ready     bool           // the owner is, as far as is known
	hangUps   int            // how many have come
	failure   string         // what became of the last attempt; empty if it has come to own
	shrank    time.Time      // when there was less to do before the end than before
	inTheWay  string         // what a successor would be refused for now; empty for nothing
	plain     bool           // the program does not use the library, as it seems
	stop      syscall.Signal // what every generation gets, also one that turns up later; 0 for nothing
	childless bool           // when it was looked for last, there was no child at all
	checking  bool           // somebody looks whether the service is over
	idle      time.Time      // since when no generation is known to live
	told      time.Time      // when the last look began that followed the owners to the end
	hurry     chan struct{}  // has who follows the owners look now; one says as much as many
	outcome   *result        // set at the end
}

func supervise(ctx context.Context, in *invocation, opts superviseOptions) result {
	// Before anything else, so that none of them ends this process.
	signals := make(chan os.Signal, 64) // none is lost while one is being forwarded
	signal.Notify(signals, append(slices.Clone(forwarded), syscall.SIGHUP)...)
	defer signal.Stop(signals)
	// Its processes are in the background of a terminal that is this one's. Whoever reads
	// from it there would be stopped, with the service; where the signal is ignored, which
	// is inherited, reading fails instead, termios(3).
	signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
	children := make(chan os.Signal, 1) // one says as much as many
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)

	m, err := meetManager(in)
	if err != nil {
		_ = m.env.Close()
		return notStarted(in, fmt.Errorf("what the service manager has passed: %w", err))
	}
	r := superviseFor(ctx, in, opts, m, signals, children)
	m.farewell(r.reason)
	return r
}

// superviseFor is the supervision for a manager, who is still to be told how it ends.
func superviseFor(ctx context.Context, in *invocation, opts superviseOptions, m *manager, signals, children <-chan os.Signal) result {
	if err := sealDescriptors(); err != nil {
		return notStarted(in, fmt.Errorf("the descriptors that this process has inherited: %w", err))
	}
	if err := adoptOrphans(); err != nil {
		in.say("only processes started by this one are waited for: %v", err)
	}
	remove, err := ownSocket(in)
	if err != nil {
		return notStarted(in, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &supervisor{in: in, opts: opts, manager: m, path: programPath(in.args[0]), ctx: ctx, inbox: make(chan func()), hurry: make(chan struct{}, 1)}
	if err := s.start(); err != nil {
		cancel()
		remove()
		return notStarted(in, err)
	}
	s.wg.Go(s.watch)
	s.wg.Go(s.watchdog)
	s.announce()
	r := s.loop(signals, children)
	cancel()
	for _, g := range s.live {
		g.release()
	}
	s.wg.Wait()
	if s.owner == nil {
		remove()
	}
	return r
}

// notStarted is the result if the first process cannot be started because of err.
func notStarted(in *invocation, err error) result {
	r := result{code: codeFailed, reason: sentence(err), fields: map[string]any{"exit_status": nil}}
	if in.socket == "" { // there is none yet
		r.code = codeNobody
		return r
	}
	serving, lookErr := whoServes(in.socket)
	switch {
	case lookErr == nil:
		r.serving = serving
	case errors.Is(lookErr, crossfade.ErrNoOwner):
		r.code = codeNobody
	default:
		r.code = codeUnknown
	}
	return r
}

// forwarded are the signals that are passed on, besides SIGHUP. Those of the terminal's
// job control are not among them: they are about this process.
var forwarded = []os.Signal{
	syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGALRM,
}

// ownSocket makes a place for the control socket if none is given. The function that it
// returns removes it.
func ownSocket(in *invocation) (remove func(), err error) {
	if in.socket != "" {
		return func() {}, nil
	}
	dir, err := os.MkdirTemp("", "crossfade-") // mode 0700
	if err != nil {
		return nil, err
	}
	in.socket = filepath.Join(dir, "control.sock")
	in.say("the control socket is %s", in.socket)
	return func() { os.RemoveAll(dir) }, nil
}

// programPath makes a path independent of a change of the working directory's name: by
// the name under which it was entered, so that a symbolic link in it that is switched
// leads to the new code.
func programPath(path string) string {
	if strings.ContainsRune(path, filepath.Separator) {
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	return path
}

func (s *supervisor) loop(signals, children <-chan os.Signal) result {
	for s.outcome == nil {
		select {
		case <-children:
			s.reap()
		case sig := <-signals:
			s.receive(sig)
		case do := <-s.inbox:
			do()
		}
		s.announce()
	}
	return *s.outcome
}

// post has the loop do something.
func (s *supervisor) post(do func()) {
	select {
	case s.inbox <- do:
	case <-s.ctx.Done():
	}
}

// after has the loop do something later.
func (s *supervisor) after(d time.Duration, do func()) {
	s.wg.Go(func() {
		if pause(s.ctx, d) {
			s.post(do)
		}
	})
}

// receive acts on a signal to this process.
func (s *supervisor) receive(received os.Signal) {
	sig, ok := received.(syscall.Signal)
	if !ok {
		return
	}
	switch sig {
	case syscall.SIGHUP:
		s.hangUp()
	case syscall.SIGTERM, syscall.SIGINT:
		// Remembered: the switch may be in this very moment, and whoever turns up
		// would keep everything alive.
		s.stop, s.again = sig, false
		s.forward(sig, s.live)
		s.consider()
	case syscall.SIGQUIT:
		s.forward(sig, s.live)
	default:
		s.forward(sig, s.serving())
	}
}

// serving is who gets what is for the service: the owner, or those that were started if
// nobody owns.
func (s *supervisor) serving() []*generation {
	if s.owner != nil {
		return []*generation{s.owner}
	}
	return slices.DeleteFunc(slices.Clone(s.live), func(g *generation) bool { return !g.started })
}

func (s *supervisor) forward(sig syscall.Signal, to []*generation) {
	var names []string
	for _, g := range slices.Clone(to) {
		if s.tell(g, sig) {
			names = append(names, g.String())
		}
	}
	if len(names) > 0 {
		s.in.say("%s goes to %s", unix.SignalName(sig), strings.Join(names, " and "))
	}
}

// hangUp starts a successor, or remembers to.
func (s *supervisor) hangUp() {
	s.hangUps++
	switch {
	case s.stop != 0:
		s.in.say("SIGHUP: no successor is started, as the service is being stopped")
	case s.plain:
		s.forward(syscall.SIGHUP, s.serving())
	case s.attempt != nil:
		s.in.say("SIGHUP: %v has not taken over yet: another successor is started after that", s.attempt.generation)
		s.again = true
	case s.inTheWay != "":
		s.in.say("SIGHUP: %s: a successor is started after that", s.inTheWay)
		s.again = true
	case s.owner == nil:
		s.in.say("SIGHUP: nobody owns the service: a successor is started as soon as somebody does")
		s.again = true
	default:
		s.again = true
		s.next()
	}
}

// alive reports whether there is anything to stay for.
func (s *supervisor) alive() bool {
	if s.attempt != nil && slices.Contains(s.live, s.attempt.generation) {
		return true
	}
	for _, g := range s.live {
		// Whoever serves in the place of ours keeps this process, unless it is told to
		// stop: its end is not this one's business.
		if !g.outside || g == s.owner && s.last != nil && s.stop == 0 {
			return true
		}
	}
	return false
}

// consider ends the supervision if no generation lives and nobody owns.
func (s *supervisor) consider() {
	if s.alive() {
		s.idle = time.Time{}
		return
	}
	if s.idle.IsZero() {
		s.idle = time.Now()
		select {
		case s.hurry <- struct{}{}:
		default:
		}
	}
	if s.checking || s.outcome != nil || s.attempt != nil {
		return
	}
	s.checking = true
	s.wg.Go(func() {
		v := spot(s.ctx, s.in.socket)
		s.post(func() { s.conclude(v) })
	})
}

// conclude ends the supervision, by a look that began after the last known generation had
// ended, unless it shows another.
func (s *supervisor) conclude(v *sighting) {
	s.see(v) // as long as somebody checks it has nobody look once more
	s.checking = false
	if s.alive() || s.attempt != nil {
		return
	}
	patient := !s.childless && s.stop == 0 && time.Since(s.idle) < max(s.opts.timeout.limit, lookTimeout)
	switch {
	case patient && (v.nobody() && s.background() || v.owner() == nil && !v.nobody()):
		s.after(lookPause, s.consider) // somebody starts, or is about to own
	case s.told.Before(s.idle) && time.Since(s.idle) < lookTimeout:
		s.after(lookPause, s.consider) // who follows the owners may have to tell of another
	default:
		s.outcome = s.result()
	}
}

// background reports whether the program may have put itself into the background, and
// has not come up yet: it has ended well, has never owned, and has left a process behind.
func (s *supervisor) background() bool {
	return s.last == nil && s.first.status != nil && s.first.code() == codeDone
}

// result is the status of who owned last.
func (s *supervisor) result() *result {
	g := s.last
	if g == nil {
		g = s.first
	}
	r := &result{fields: map[string]any{"exit_status": nil}}
	if s.owner != nil {
		r.serving = &s.owner.process
	}
	switch {
	case s.last == nil && s.owner != nil:
		r.code, r.reason = codeFailed, fmt.Sprintf("%v goes on, and nothing is left to supervise", s.owner)
	case s.owner != nil: // outside, and this process is told to stop
		r.reason = fmt.Sprintf("%v goes on: it does not descend from this process", s.owner)
	case g.status != nil:
		r.code, r.reason = g.code(), fmt.Sprintf("nothing is left of the service; the last was %v: %s", g, g.end())
	default:
		r.code, r.reason = s.unknownEnd(g)
	}
	if g.status != nil {
		r.fields["exit_status"] = exitStatus(*g.status)
	}
	return r
}

// unknownEnd is the result if the last owner was not a child of this process. The control
// socket tells: an owner that stops for good removes it, and one that dies cannot.
func (s *supervisor) unknownEnd(g *generation) (code, string) {
	if _, err := os.Lstat(s.in.socket); errors.Is(err, fs.ErrNotExist) {
		return codeDone, fmt.Sprintf("nothing is left of the service; the last was %v, which has stopped", g)
	}
	return codeNobody, fmt.Sprintf("nothing is left of the service; the last was %v, which has not stopped by itself", g)
}

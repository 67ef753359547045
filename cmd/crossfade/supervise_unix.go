//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
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

// This file is supervise: one goroutine that starts, signals and reaps. Who owns the
// service it learns by sighting_unix.go, and about other processes by reaper_*.go.

// endGrace is how long a process that is to end may take before it is killed: it has
// been told, and its last words are worth having.
const endGrace = 3 * time.Second

// supervisor has the processes of one service. Everything belongs to the goroutine of
// loop: it starts processes, waits for them and signals them, so that a child
// which it has not reaped keeps its number while a signal is sent to it. Others give it
// what they have found out through post.
type supervisor struct {
	in    *invocation
	opts  superviseOptions
	path  string // of the program, not resolved; without a slash it is looked for in PATH
	ctx   context.Context
	inbox chan func()
	wg    sync.WaitGroup // the goroutines that post; they end with ctx

	live  []*generation // those that have not ended, as far as is known
	ended []*generation // the last that have, the newest last
	first *generation   // whom this process has started first
	owner *generation   // nil for nobody, and while that is not known
	last  *generation   // who owned last; nil until one of ours has
	seen  time.Time     // when the youngest sight began

	attempt   *attempt       // of a process that this one has started; nil for none
	again     bool           // a SIGHUP waits for its turn
	trouble   string         // why it cannot be told who owns; empty if it can
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

// generation is a process of the service: one that was started here, one that takes the
// service over, or one that has owned it.
type generation struct {
	process  crossfade.Process   // what it says of itself; zero if it has said nothing
	instance string              // that it was given; empty if it was not started here
	pid      int                 // its number here; 0 if it has none, or it is unknown
	started  bool                // by this process: an unreaped child
	handle   *handle             // of one that was not; nil where there are none
	outside  bool                // it is no descendant of this process
	owned    bool                // it has owned
	gone     time.Time           // when its end was noticed
	status   *syscall.WaitStatus // how it has ended; nil if that is unknown
}

// attempt is a start of a successor, or of the first generation, that does not own yet.
type attempt struct {
	generation *generation
	instance   string // that it was given
	began      time.Time
	reason     string // why it fails, as the owner or this process says
}

func supervise(ctx context.Context, in *invocation, opts superviseOptions) result {
	// Before anything else, so that none of them ends this process.
	signals := make(chan os.Signal, 64) // none is lost while one is being forwarded
	signal.Notify(signals, append(slices.Clone(forwarded), syscall.SIGHUP)...)
	defer signal.Stop(signals)
	children := make(chan os.Signal, 1) // one says as much as many
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)

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
	s := &supervisor{in: in, opts: opts, path: programPath(in.args[0]), ctx: ctx, inbox: make(chan func()), hurry: make(chan struct{}, 1)}
	if err := s.start(); err != nil {
		cancel()
		remove()
		return notStarted(in, err)
	}
	s.wg.Go(s.watch)
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

// start starts the program, as an attempt.
func (s *supervisor) start() error {
	a := &attempt{instance: rand.Text(), began: time.Now()}
	pid, err := s.spawn(a.instance)
	if err != nil {
		return err
	}
	a.generation = &generation{pid: pid, started: true, instance: a.instance}
	s.attempt = a
	s.add(a.generation)
	if s.first == nil {
		s.first = a.generation
		s.in.say("started %s: %v", s.in.args[0], a.generation)
	} else {
		s.in.say("started %s as the successor of %v: %v", s.in.args[0], s.owner, a.generation)
	}
	if limit := s.opts.timeout.limit; limit > 0 {
		s.after(limit, func() { s.expire(a) })
	}
	return nil
}

// spawn starts the program in a process group of its own: a terminal sends its Ctrl-C to
// this process alone, which forwards it, so that each process gets it once.
func (s *supervisor) spawn(instance string) (pid int, err error) {
	path := s.path
	if !strings.ContainsRune(path, filepath.Separator) {
		if path, err = exec.LookPath(path); err != nil {
			return 0, err
		}
	}
	stdout, stderr := uintptr(1), uintptr(2)
	if s.in.json {
		stdout = stderr // which the object has for itself
	}
	if s.opts.log != "" {
		log, err := syscall.Open(s.opts.log, syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT|syscall.O_CLOEXEC, 0o644)
		if err != nil {
			return 0, &fs.PathError{Op: "open", Path: s.opts.log, Err: err}
		}
		defer syscall.Close(log)
		stdout, stderr = uintptr(log), uintptr(log)
	}
	pid, err = syscall.ForkExec(path, s.in.args, &syscall.ProcAttr{
		Env:   s.environ(instance),
		Files: []uintptr{0, stdout, stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, &fs.PathError{Op: "start", Path: path, Err: err}
	}
	return pid, nil
}

// environ is this process's own, less what belongs to one process, and with what the
// service is to know.
func (s *supervisor) environ(instance string) []string {
	set := append([]string{"CROSSFADE_SOCKET=" + s.in.socket, "CROSSFADE_INSTANCE=" + instance}, s.opts.settings()...)
	names := []string{"CROSSFADE_FD="}
	for _, kv := range set {
		name, _, _ := strings.Cut(kv, "=")
		names = append(names, name+"=")
	}
	inherited := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(kv, name) })
	})
	return append(inherited, set...)
}

// String names the generation for a person.
func (g *generation) String() string {
	p := g.process
	if g.pid != 0 {
		p.PID = g.pid // what it says may be a number of another pid namespace
	}
	return name(p)
}

// is reports whether the attempt is that of a process.
func (a *attempt) is(p crossfade.Process) bool {
	own := a.generation.process
	return p.Instance == a.instance || p.Instance != "" && p.Instance == own.Instance || p.PID != 0 && p.PID == a.generation.pid
}

// add takes a generation in, and has its end noticed.
func (s *supervisor) add(g *generation) {
	s.live = append(s.live, g)
	if h := g.handle; h != nil {
		s.wg.Go(func() {
			if h.wait() != nil {
				return // closed
			}
			s.post(func() {
				s.reap() // for the status, if it has become a child of this process
				if slices.Contains(s.live, g) {
					s.gone(g)
				}
			})
		})
	}
	if s.stop != 0 && !g.outside {
		s.tell(g, s.stop)
	}
}

func (g *generation) release() {
	if g.handle != nil {
		g.handle.close()
	}
}

// remove takes a generation out, of which nothing more is to be learned.
func (s *supervisor) remove(g *generation) {
	g.release()
	s.live = slices.DeleteFunc(s.live, func(other *generation) bool { return other == g })
	if s.owner == g {
		s.owner = nil
	}
}

// find returns the live generation with a number or, of those that have no number here,
// that of the instance. It is nil if there is none. A process is not known by its
// instance alone: a shell that has started the program was given the same.
func (s *supervisor) find(pid int, instance string) *generation {
	for _, g := range s.live {
		if g.pid == pid && (pid != 0 || g.process.Instance == instance) {
			return g
		}
	}
	return nil
}

// reap waits for every child that has ended, whoever has started it. Nothing else in this
// program waits for a child.
func (s *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || pid == 0:
			s.childless = errors.Is(err, syscall.ECHILD)
			s.consider()
			return
		}
		s.reaped(pid, status)
	}
}

func (s *supervisor) reaped(pid int, status syscall.WaitStatus) {
	if g := s.find(pid, ""); g != nil {
		g.status = &status
		s.gone(g)
		return
	}
	// One whose end was noticed while its parent, who has ended since, had not waited
	// for it. All others are nobody's.
	for _, g := range slices.Backward(s.ended) {
		if g.pid == pid && g.status == nil {
			g.status = &status
			return
		}
	}
}

// maxEnded is how many generations are remembered that have ended: an owner may be seen
// only after its end.
const maxEnded = 64

// gone notes the end of a generation.
func (s *supervisor) gone(g *generation) {
	s.remove(g)
	g.gone = time.Now()
	s.ended = append(s.ended, g)
	s.ended = s.ended[max(0, len(s.ended)-maxEnded):]
	if a := s.attempt; a != nil && a.generation == g {
		s.judge(a)
	} else {
		s.in.say("%v has ended: %s", g, g.end())
	}
	s.consider()
}

// end says how it has ended.
func (g *generation) end() string {
	switch {
	case g.status == nil:
		return "how is known to its parent alone"
	case g.status.Signaled():
		return "signal: " + g.status.Signal().String()
	default:
		return fmt.Sprintf("exit status %d", g.status.ExitStatus())
	}
}

// code is the exit status by which a shell would tell of it.
func (g *generation) code() code {
	if g.status.Signaled() {
		return code(128 + int(g.status.Signal()))
	}
	return code(g.status.ExitStatus())
}

// see takes in who answers on the control socket.
func (s *supervisor) see(v *sighting) {
	if v.at.Before(s.seen) || v.status == nil && !v.nobody() {
		v.release()
		return
	}
	s.seen = v.at
	st := v.status
	if st != nil {
		s.noticeFormer(st)
	}
	switch {
	case st == nil:
		s.owner, s.inTheWay = nil, ""
	case st.State.Owns():
		s.owns(v)
		s.inTheWay = s.obstacle(st)
	default:
		v.release()
		s.notice(st.Process)
	}
	if st != nil {
		s.noticeOthers(st)
		s.judgeBy(v)
	}
	for _, g := range slices.Clone(s.live) {
		if g != s.owner && !g.started && (g.outside || g.handle == nil && !isChild(g.pid)) {
			s.remove(g) // its end would not be noticed, or is nobody's business
		}
	}
	s.next()
	s.consider()
}

// owns notes who owns.
func (s *supervisor) owns(v *sighting) {
	p := v.status.Process
	g := s.find(v.pid, p.Instance)
	if !v.located {
		g = s.named(p.Instance)
	}
	switch late := s.endedAs(v); {
	case g != nil:
		v.release()
	case late != nil: // it has ended sooner than anybody looked
		v.release()
		late.process, s.last = p, late
		return
	case !v.located: // the sight that had its number was overtaken by a younger one
		s.lookAgain()
		return
	default:
		g = &generation{pid: v.pid, handle: v.handle, outside: !descends(v.pid)}
		s.add(g)
	}
	g.process = p
	if !g.outside || s.last != nil {
		s.last = g
	}
	if s.owner == g {
		return
	}
	s.owner, s.plain = g, false
	text := fmt.Sprintf("%v owns the service", g)
	switch a := s.attempt; {
	case a != nil && !g.outside && a.is(p):
		s.attempt = nil
		text += fmt.Sprintf(", %d ms after its start", time.Since(a.began).Milliseconds())
	case g.owned:
		text += " again"
	}
	if g.outside {
		text += "; it does not descend from this process and gets no signals from it: `crossfade stop` ends it"
	}
	g.owned = true
	s.in.say("%s", text)
}

// named returns the live generation that says that it is this instance, nil for none.
func (s *supervisor) named(instance string) *generation {
	for _, g := range s.live {
		if g.process.Instance == instance {
			return g
		}
	}
	return nil
}

func (s *supervisor) lookAgain() {
	s.wg.Go(func() {
		v := spot(s.ctx, s.in.socket)
		s.post(func() { s.see(v) })
	})
}

// endedAs returns the generation that a sighting is of, if its end has been noticed, else
// nil. A number alone does not tell, as another process may have it by now; nor does the
// instance that a process was given, as what that one has started was given it too.
func (s *supervisor) endedAs(v *sighting) *generation {
	p := v.status.Process
	for _, g := range slices.Backward(s.ended) {
		own := g.process.Instance
		if v.pid == 0 && own != "" && own == p.Instance {
			return g
		}
		dead := v.handle == nil || v.handle.exited()
		if v.pid != 0 && v.pid == g.pid && (own == p.Instance || g.instance == p.Instance || own == "" && dead) {
			return g
		}
	}
	return nil
}

// noticeOthers takes in who else belongs to the service, by what the owner says of them:
// those that drain, and who takes over. That they descend from this process is certain.
func (s *supervisor) noticeOthers(st *crossfade.Status) {
	if s.owner == nil || s.owner.pid != st.Process.PID {
		return // the numbers are those of another pid namespace
	}
	if st.Attempt != nil {
		s.notice(st.Attempt.Successor)
	}
	if st.Probation != nil {
		s.notice(st.Probation.Predecessor)
	}
	for _, older := range st.Draining {
		s.notice(older.Process)
	}
}

// noticeFormer takes in that one of the known generations has owned, if an owner says so
// and nobody has seen it: then it has not failed to take over, however it ends.
func (s *supervisor) noticeFormer(st *crossfade.Status) {
	var former []crossfade.Process
	if st.Probation != nil {
		former = append(former, st.Probation.Predecessor)
	}
	for _, older := range st.Draining {
		former = append(former, older.Process)
	}
	for _, g := range slices.Concat(s.ended, s.live) {
		// By the instance alone: the numbers may be those of another pid namespace.
		if g.owned || g.instance == "" || !slices.ContainsFunc(former, func(p crossfade.Process) bool { return p.Instance == g.instance }) {
			continue
		}
		g.owned = true
		if s.last == nil {
			s.last = g
		}
		if s.attempt != nil && s.attempt.generation == g {
			s.attempt = nil
		}
		s.in.say("%v has owned the service", g)
	}
}

// notice takes in a process that belongs to the service. One whose number may be that of
// another pid namespace is not: somebody else has it here.
func (s *supervisor) notice(p crossfade.Process) {
	if p.PID == 0 || !wasGiven(p.PID, p.Instance) {
		return
	}
	if g := s.find(p.PID, p.Instance); g != nil {
		g.process = p
		return
	}
	if slices.ContainsFunc(s.ended, func(g *generation) bool {
		return g.pid == p.PID && (g.process.Instance == p.Instance || g.instance == p.Instance)
	}) {
		return
	}
	h, _ := openHandle(p.PID) // nil where there are none; first, so that it is of whom the next line is about
	g := &generation{process: p, pid: p.PID, handle: h}
	if !descends(p.PID) {
		g.release()
		return
	}
	s.add(g)
}

// obstacle says what is in the way of a successor, if that passes.
func (s *supervisor) obstacle(st *crossfade.Status) string {
	switch a := st.Attempt; {
	case st.Probation != nil:
		return fmt.Sprintf("%v is on probation", s.owner)
	case a != nil && (s.attempt == nil || !s.attempt.is(a.Successor)):
		return fmt.Sprintf("pid %d is taking over", a.Successor.PID)
	default:
		return ""
	}
}

// descends reports whether a process has this one among its ancestors. Where that cannot
// be told it is taken for a stranger.
func descends(pid int) bool {
	if os.Getpid() == 1 {
		return pid != 0 // whoever has a number here is below, or will be
	}
	for range 1000 { // deeper than any service, should numbers be reused in a circle
		parent, err := parentOf(pid)
		switch {
		case err != nil || parent <= 0:
			return false
		case parent == os.Getpid():
			return true
		}
		pid = parent
	}
	return false
}

func isChild(pid int) bool {
	parent, err := parentOf(pid)
	return err == nil && parent == os.Getpid()
}

// signal sends a signal to a process that certainly is the one that is meant: a child
// keeps its number until this goroutine reaps it, and a handle is of one process only.
func (g *generation) signal(sig syscall.Signal) error {
	switch {
	case g.outside:
		return errors.New("it does not descend from this process")
	case g.started:
		return syscall.Kill(g.pid, sig)
	case g.handle != nil:
		return g.handle.signal(sig)
	case isChild(g.pid):
		return syscall.Kill(g.pid, sig)
	default:
		return errors.New("its number may have been reused, and this system has no pidfds")
	}
}

// tell sends a signal, and reports whether it has been sent.
func (s *supervisor) tell(g *generation, sig syscall.Signal) bool {
	err := g.signal(sig)
	if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		s.in.say("%v gets no %s: %v", g, unix.SignalName(sig), err)
	}
	return err == nil
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

// next starts the successor that a SIGHUP has asked for, if it can come now.
func (s *supervisor) next() {
	if !s.again || s.attempt != nil || s.inTheWay != "" || s.owner == nil || s.stop != 0 {
		return
	}
	s.again = false
	if err := s.start(); err != nil {
		s.in.say("no successor was started: %s; %v goes on", sentence(err), s.owner)
	}
}

// expire ends the time that an attempt has. It has no limit if nobody else serves: its
// process may be the heir of an owner that has died.
func (s *supervisor) expire(a *attempt) {
	switch {
	case s.attempt != a:
	case s.owner != nil:
		a.reason = fmt.Sprintf("it did not own the service within %v", s.opts.timeout.limit)
		s.in.say("%v does not own the service after %v: it is cancelled", a.generation, s.opts.timeout.limit)
		s.cancel(a)
	case s.last != nil:
		s.in.say("nobody owns the service any more: %v may take its time", a.generation)
	default:
		s.plain = true
		if s.again {
			s.again = false
			s.forward(syscall.SIGHUP, s.serving())
		}
	}
}

// cancelTimeout bounds a cancellation: what the owner gives a candidate to exit, and
// some more.
const cancelTimeout = 10 * time.Second

// cancel has the owner give an attempt up, and then ends the process. The owner comes
// first: it alone knows whether the process owns already.
func (s *supervisor) cancel(a *attempt) {
	opts := &crossfade.CancelOptions{Instance: a.instance, Reason: a.reason, Kill: true}
	if own := a.generation.process.Instance; own != "" {
		opts.Instance = own
	}
	s.wg.Go(func() {
		ctx, stop := context.WithTimeout(s.ctx, cancelTimeout)
		defer stop()
		c, err := crossfade.Dial(ctx, s.in.socket)
		if err == nil {
			_, err = c.Cancel(ctx, opts)
		}
		// Whatever has come of it, who owns now decides.
		who, _ := whoServes(s.in.socket)
		s.post(func() { s.cancelled(a, who, err) })
	})
}

func (s *supervisor) cancelled(a *attempt, who *crossfade.Process, err error) {
	switch {
	case s.attempt != a:
	case who != nil && a.is(*who): // whoever follows the owner says it too
		s.in.say("%v owns the service: it was too late to cancel it", a.generation)
	case slices.Contains(s.live, a.generation):
		if s.owner == nil && err != nil { // it was not cancelled, and nobody else is there to serve
			s.in.say("nobody owns the service any more: %v may take its time", a.generation)
			return
		}
		s.end(a.generation)
	default:
		s.failed(a)
	}
}

// end ends a process that was started, with its group: it may be a shell that has started
// the program. The group has its number as long as the process is not reaped.
func (s *supervisor) end(g *generation) {
	terminateGroup(g.pid)
	s.after(endGrace, func() {
		if slices.Contains(s.live, g) && s.owner != g {
			killGroup(g.pid)
		}
	})
}

// fails notes why an attempt has failed, which the owner has said: its process should
// exit by itself.
func (s *supervisor) fails(f *crossfade.Failure) {
	a := s.attempt
	if a == nil || !a.is(f.Successor) {
		return
	}
	if a.reason == "" {
		a.reason = f.Reason
	}
	if !slices.Contains(s.live, a.generation) {
		s.failed(a)
		return
	}
	s.after(endGrace, func() {
		if s.attempt == a && slices.Contains(s.live, a.generation) {
			s.end(a.generation)
		}
	})
}

// judge finds out what the end of an attempt's process means, if nothing else tells.
func (s *supervisor) judge(a *attempt) {
	s.wg.Go(func() {
		v := spot(s.ctx, s.in.socket)
		s.post(func() {
			s.see(v)
			if s.attempt == a && v.status == nil {
				s.failed(a)
			}
		})
	})
}

// judgeBy does it by how whoever serves the socket stands. The process may have put
// itself into the background, and what it has left behind may be about to own.
func (s *supervisor) judgeBy(v *sighting) {
	a := s.attempt
	if a == nil || slices.Contains(s.live, a.generation) || v.at.Before(a.generation.gone) {
		return
	}
	if under := v.status.Attempt; under != nil && a.is(under.Successor) {
		return
	}
	if f := v.status.LastFailure; f != nil && a.is(f.Successor) && a.reason == "" {
		a.reason = f.Reason
	}
	s.failed(a)
}

// failed ends an attempt whose process has ended.
func (s *supervisor) failed(a *attempt) {
	s.attempt = nil
	text := fmt.Sprintf("%v has ended: %s", a.generation, a.generation.end())
	if s.owner != nil {
		text = fmt.Sprintf("%v has failed to take over: %s", a.generation, a.generation.end())
	}
	if a.reason != "" {
		text += "; " + a.reason
	}
	if s.owner != nil {
		text += fmt.Sprintf("; %v goes on", s.owner)
	}
	s.in.say("%s", text)
	s.next()
	s.consider()
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

// exitStatus is a status as JSON has it.
func exitStatus(status syscall.WaitStatus) any {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return status.ExitStatus()
}

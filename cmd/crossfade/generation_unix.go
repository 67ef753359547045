//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
)

// This file is the processes of a service that is supervised: who they are, which of them
// owns, how they are signalled, and how they end.

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
	deadline time.Time           // when it ends at the latest, as it says; zero if it does not
	sockets  int                 // that it had open when this was looked for last
	status   *syscall.WaitStatus // how it has ended; nil if that is unknown
}

// String names the generation for a person.
func (g *generation) String() string {
	p := g.process
	if g.pid != 0 {
		p.PID = g.pid // what it says may be a number of another pid namespace
	}
	return name(p)
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

// exitStatus is a status as JSON has it.
func exitStatus(status syscall.WaitStatus) any {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return status.ExitStatus()
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
		s.owner, s.ready, s.inTheWay = nil, false, ""
	case st.State.Owns():
		s.ready = st.Ready
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
	if !g.owned {
		s.failure = ""
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
		if g := s.find(older.Process.PID, older.Process.Instance); g != nil {
			g.deadline = older.Deadline
		}
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

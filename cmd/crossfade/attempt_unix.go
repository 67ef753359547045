//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is how supervise starts a successor, or the first generation, and what becomes
// of it until it owns the service or has failed.

// attempt is a start of a successor, or of the first generation, that does not own yet.
type attempt struct {
	generation *generation
	instance   string // that it was given
	began      time.Time
	reason     string // why it fails, as the owner or this process says
}

// is reports whether the attempt is that of a process.
func (a *attempt) is(p crossfade.Process) bool {
	own := a.generation.process
	return p.Instance == a.instance || p.Instance != "" && p.Instance == own.Instance || p.PID != 0 && p.PID == a.generation.pid
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
		log, err := syscall.Open(s.opts.log, syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return 0, &fs.PathError{Op: "open", Path: s.opts.log, Err: err}
		}
		defer syscall.Close(log)
		stdout, stderr = uintptr(log), uintptr(log)
	}
	p := &program{path: path, argv: s.in.args, env: s.environ(instance), files: []uintptr{0, stdout, stderr}}
	if s.first == nil {
		if err := s.manager.activate(p); err != nil {
			return 0, err
		}
		defer s.manager.env.Close() // it has got them, or nobody will
	}
	pid, err = syscall.ForkExec(p.path, p.argv, &syscall.ProcAttr{
		Env:   p.env,
		Files: p.files,
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, &fs.PathError{Op: "start", Path: path, Err: err}
	}
	return pid, nil
}

// program is what is to be started.
type program struct {
	path      string
	argv, env []string
	files     []uintptr
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

// next starts the successor that a SIGHUP has asked for, if it can come now.
func (s *supervisor) next() {
	if !s.again || s.attempt != nil || s.inTheWay != "" || s.owner == nil || s.stop != 0 {
		return
	}
	s.again = false
	if err := s.start(); err != nil {
		s.failure = "no successor was started: " + sentence(err)
		s.in.say("%s; %v goes on", s.failure, s.owner)
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

// endGrace is how long a process that is to end may take before it is killed: it has
// been told, and its last words are worth having.
const endGrace = 3 * time.Second

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

// hasStarted reports whether this process has started that one.
func (s *supervisor) hasStarted(p crossfade.Process) bool {
	return slices.ContainsFunc(slices.Concat(s.live, s.ended), func(g *generation) bool {
		return g.started && (g.instance == p.Instance || g.pid == p.PID)
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
	s.failure = text
	if s.owner != nil {
		text += fmt.Sprintf("; %v goes on", s.owner)
	}
	s.in.say("%s", text)
	s.next()
	s.consider()
}

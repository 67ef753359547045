//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/scm"
)

// service is one process of the service under test, as it sees itself. It opens
// a TCP listener, a unix listener and a UDP socket, and answers whoever asks
// with its pid and generation. When its part has ended, well or badly, it holds
// on to everything that the program has got, until it is told to quit: what the
// library has not closed by itself by then is a finding (I6).
type service struct {
	spec    spec
	side    *scm.Conn
	sideIno uint64
	upg     *crossfade.Upgrader

	generation atomic.Uint64
	stays      atomic.Pointer[visitor] // the client that asked for it, of whoever has it
	listeners  []io.Closer
	conns      sync.WaitGroup

	ready, proceed, quit chan struct{}
	broken               atomic.Bool // the break has been reached
	owned                atomic.Bool
}

// serve runs the service process that encoded describes and returns its exit
// status.
func serve(encoded string) int {
	s := &service{ready: make(chan struct{}), proceed: make(chan struct{}), quit: make(chan struct{})}
	if err := json.Unmarshal([]byte(encoded), &s.spec); err != nil {
		return s.die(err)
	}
	if err := os.Unsetenv(roleEnv); err != nil {
		return s.die(err)
	}
	var st unix.Stat_t
	err := unix.Fstat(sideFD, &st)
	if err != nil {
		return s.die(err)
	}
	s.sideIno = st.Ino // the number changes
	if s.side, err = scm.OpenConn(scm.NewFD(sideFD)); err != nil {
		return s.die(err)
	}
	go s.obey()
	if err := s.begin(); err != nil {
		s.report(newEvent(eventFailed, "", err))
		<-s.quit
		s.finish()
		return 1
	}
	<-s.upg.Exit()
	s.report(newEvent(eventExit, "", s.upg.Err()))
	<-s.quit
	s.finish()
	switch err := s.upg.Err(); {
	case errors.Is(err, crossfade.ErrRetired), errors.Is(err, crossfade.ErrStopped):
		return 0
	case errors.Is(err, crossfade.ErrRolledBack):
		return crossfade.ExitRolledBack
	default:
		return 1
	}
}

func (s *service) die(err error) int {
	fmt.Fprintf(os.Stderr, "service process: %v\n", err)
	return 2
}

// begin is everything up to the return of Ready.
func (s *service) begin() error {
	ctx := context.Background()
	var err error
	s.upg, err = crossfade.New(ctx, &crossfade.Config{
		Socket: s.spec.Socket, Instance: s.spec.Name,
		DialTimeout: s.spec.DialTimeout, Wait: s.spec.Wait,
		ReadyTimeout: s.spec.ReadyTimeout, CommitTimeout: s.spec.CommitTimeout,
		AtProbationEnd: s.spec.AtProbationEnd, MaxDraining: s.spec.MaxDraining,
		Logger: slog.New(slog.NewTextHandler(lines{s}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		return err
	}
	s.generation.Store(s.upg.Status().Process.Generation)
	if err := errors.Join(s.open(ctx), s.keepFiles()); err != nil {
		return err
	}
	s.report(newEvent(eventReceived, "", nil))
	if s.spec.Progress {
		s.upg.Progress("half-way", 0)
	}
	if s.spec.Gate {
		select {
		case <-s.ready:
		case <-s.upg.Exit():
		}
	}
	if err := s.upg.Ready(ctx); err != nil {
		return err
	}
	s.owned.Store(true)
	s.generation.Store(s.upg.Status().Process.Generation)
	s.report(newEvent(eventReady, fmt.Sprint(s.generation.Load()), nil))
	go func() {
		<-s.upg.Settled()
		s.report(newEvent(eventSettled, "", nil))
	}()
	go func() {
		if s.upg.HasPredecessor() && s.upg.WaitForPredecessor(ctx) == nil {
			s.report(newEvent(eventGone, "", nil))
		}
	}()
	return nil
}

// keepFiles takes over the files that the spec asks for, or makes them.
func (s *service) keepFiles() error {
	for i := range s.spec.Files {
		name := fmt.Sprint("file ", i)
		f, err := s.upg.Fds().File(name)
		if errors.Is(err, crossfade.ErrNotInherited) {
			f, err = os.Open("/dev/zero")
			if err == nil {
				err = s.upg.Fds().AddFile(name, f)
			}
		}
		if err := errors.Join(err, f.Close()); err != nil { // the registry has its own
			return err
		}
	}
	return nil
}

// open opens the sockets and serves them. A candidate's take nobody yet.
func (s *service) open(ctx context.Context) error {
	for _, l := range []struct{ name, network, address string }{
		{"web", "tcp", s.spec.Address}, {"local", "unix", s.spec.Unix},
	} {
		ln, err := s.upg.Listen(ctx, l.name, l.network, l.address)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, ln)
		go s.accept(ln)
	}
	handed := s.upg.HandedOver("web")
	s.listeners = append(s.listeners, handed)
	go s.accept(handed)
	packets, err := s.upg.ListenPacket(ctx, "packets", "udp", s.spec.Address)
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, packets)
	go func() {
		s.answerPackets(packets)
		if s.owned.Load() { // it owned: every answer is written, so nobody needs the socket any more
			_ = packets.Close()
		}
	}()
	return nil
}

func (s *service) accept(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		v := &visitor{conn: c, left: make(chan struct{})}
		_, known := crossfade.HandOverOf(c)
		s.conns.Go(func() { s.answer(v, known) })
	}
}

// visitor is a connection of the service.
type visitor struct {
	conn   net.Conn
	moving atomic.Bool
	left   chan struct{} // closed when nobody reads from one that moves
}

// answer says who serves the connection, once by itself unless the client is known,
// and then for each line.
func (s *service) answer(v *visitor, known bool) {
	in := bufio.NewScanner(v.conn)
	for {
		if !known {
			if _, err := v.conn.Write(s.who()); err != nil {
				break
			}
		}
		known = false
		if !in.Scan() {
			break
		}
		if in.Text() == staying {
			s.stays.Store(v) // before the answer, after which it may be told to move
		}
	}
	if v.moving.Load() {
		close(v.left)
		return
	}
	_ = v.conn.Close()
}

// staying is what a client says that may be told to move.
const staying = "stay"

// move hands the client that stays over, and serves it on if it cannot.
func (s *service) move() {
	v := s.stays.Load()
	v.moving.Store(true)
	err := v.conn.SetReadDeadline(time.Unix(1, 0))
	if err == nil {
		<-v.left // the client says nothing before it knows that it was told to move
		err = s.upg.HandOverConn(context.Background(), "web", v.conn, nil)
	}
	s.report(newEvent(eventMoved, "", err))
	if err == nil || errors.Is(err, crossfade.ErrOutcomeUnknown) {
		return
	}
	v.moving.Store(false)
	_ = v.conn.SetReadDeadline(time.Time{}) // a client that has gone is none of ours
	s.conns.Go(func() { s.answer(v, true) })
}

func (s *service) answerPackets(pc net.PacketConn) {
	buf := make([]byte, 64)
	for {
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		if _, err := pc.WriteTo(s.who(), from); err != nil {
			return
		}
	}
}

func (s *service) who() []byte { return fmt.Appendf(nil, "%s %d\n", s.spec.Name, s.generation.Load()) }

func (s *service) finish() {
	for _, l := range s.listeners {
		_ = l.Close() // what is left of it
	}
	s.conns.Wait()
	if s.upg != nil {
		s.upg.Stop()
	}
}

// obey does what the harness says. The process ends with the harness.
func (s *service) obey() {
	for {
		var c command
		if err := receiveJSON(s.side, &c); err != nil {
			os.Exit(3) //nolint:revive // nobody is left who could want anything
		}
		switch c.Name {
		case commandReady:
			close(s.ready)
		case commandGo:
			close(s.proceed)
		case commandQuit:
			close(s.quit)
		case commandStop:
			go s.do(func() error { s.upg.Stop(); return nil })
		case commandSettle:
			go s.do(func() error { return s.upg.Settle(context.Background()) })
		case commandMove:
			go s.move()
		case commandRollback:
			go s.do(func() error { return s.upg.Rollback(context.Background(), "as told") })
		case commandExec:
			s.report(newEvent(eventAnswer, "", unix.Exec("/bin/sleep", []string{"sleep", "600"}, nil)))
		case commandHold:
			pid, err := s.holdConnection()
			s.report(newEvent(eventHolding, fmt.Sprint(pid), err))
		}
	}
}

func (s *service) do(f func() error) { s.report(newEvent(eventAnswer, "", f())) }

func (s *service) report(e event) {
	if err := sendJSON(s.side, e); err != nil {
		os.Exit(3) //nolint:revive // as in obey
	}
}

// lines is where the log of a service process goes: to the harness, line by
// line, while the library waits. What a process logs before it acts is thus
// known before it acts, and it can be held there.
type lines struct{ s *service }

func (l lines) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	// The time is that of the stamp.
	if i := strings.Index(text, "level="); i >= 0 {
		text = text[i:]
	}
	l.s.report(newEvent(eventLog, text, nil))
	if b := l.s.spec.Break; b != "" && strings.Contains(text, b) && !l.s.broken.Swap(true) {
		l.s.report(newEvent(eventBreak, text, nil))
		<-l.s.proceed
	}
	return len(line), nil
}

// holdConnection has a child inherit the connection to the predecessor. It
// returns the child's pid.
func (s *service) holdConnection() (int, error) {
	fd, err := s.handoffFD()
	if err != nil {
		return 0, err
	}
	// Not exec.Cmd: ExtraFiles would clear O_NONBLOCK, which belongs to the
	// library's end too.
	return syscall.ForkExec("/bin/sleep", []string{"sleep", "600"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2, uintptr(fd)}})
}

// handoffFD finds the library's connection: of the connected unix sockets the
// one that is neither the side channel nor a client's.
func (s *service) handoffFD() (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var fd int
		var st unix.Stat_t
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil || unix.Fstat(fd, &st) != nil || st.Ino == s.sideIno {
			continue
		}
		own, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		// What accept(2) returned has the listener's name, what dialled has none.
		_, err = unix.Getpeername(fd)
		if u, ok := own.(*unix.SockaddrUnix); ok && strings.Trim(u.Name, "@") == "" && err == nil {
			return fd, nil
		}
	}
	return 0, errors.New("this process has no connection to a predecessor")
}

// longTime is a limit that does not matter, and shortTime one that is meant to
// pass: long enough for everything before the step that it bounds, on a machine
// that has other things to do.
const (
	longTime  = time.Minute
	shortTime = 2 * time.Second
)

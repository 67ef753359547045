package fakemanager

import (
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade/scm"
)

// maxMessage is what systemd reads of a message; a longer one it drops.
const maxMessage = 4096

// read reads messages until the socket is closed.
func (m *Manager) read(conn *net.UnixConn) {
	payload := make([]byte, maxMessage+1)
	control := make([]byte, syscall.CmsgSpace(4*254)+syscall.CmsgSpace(syscall.SizeofUcred))
	for m.awaitTurn(conn) {
		n, controlLen, flags, _, err := conn.ReadMsgUnix(payload, control)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return
		}
		fds, cred := parse(control[:controlLen])
		msg := Message{PID: int(cred.Pid), UID: int(cred.Uid), Descriptors: len(fds)}
		msg.Lines = strings.Split(strings.TrimSuffix(string(payload[:n]), "\n"), "\n")
		m.got(msg, fds, n > maxMessage || flags&syscall.MSG_CTRUNC != 0)
	}
}

// awaitTurn waits while the manager is paused. It returns false if it is down.
func (m *Manager) awaitTurn(conn *net.UnixConn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.paused && m.conn == conn {
		m.reading = false
		m.change()
		changed := m.changed
		m.mu.Unlock()
		<-changed
		m.mu.Lock()
	}
	m.reading = m.conn == conn
	return m.reading
}

// parse takes what came along with a message.
func parse(control []byte) (fds []*scm.FD, cred syscall.Ucred) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, cred
	}
	for i := range messages {
		if c, err := syscall.ParseUnixCredentials(&messages[i]); err == nil {
			cred = *c
		}
		if nums, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			for _, num := range nums {
				fds = append(fds, scm.NewFD(num))
			}
		}
	}
	return fds, cred
}

// got acts on a message as systemd does. It takes ownership of fds.
func (m *Manager) got(msg Message, fds []*scm.FD, malformed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.change()
	defer func() {
		for _, fd := range fds {
			fd.Close()
		}
		msg.Main = m.main
		m.messages = append(m.messages, msg)
	}()
	if malformed {
		return
	}
	// A barrier is answered whoever asks, before the unit is looked for.
	if msg.Has("BARRIER=1") {
		msg.Heard = len(msg.Lines) == 1 && len(fds) == 1
		if msg.Heard && m.cfg.HoldBarriers {
			m.barriers = append(m.barriers, fds...)
			fds = nil
		}
		return
	}
	msg.Heard = m.cfg.Access == All || msg.PID == m.main && m.main != 0
	if !msg.Heard {
		return
	}
	if pid := number(msg.Value("MAINPID")); pid > 0 && known(pid, msg.Value("MAINPIDFDID")) {
		m.main = pid
	}
	switch {
	case msg.Has("FDSTORE=1"):
		fds = m.keep(msg, fds)
	case msg.Has("FDSTOREREMOVE=1"):
		m.remove(msg.Value("FDNAME"))
	}
}

// known reports whether the process with this pid is the one that the kernel knows by
// id, as systemd asks from v257 on. An id that is not given fits all.
func known(pid int, id string) bool {
	if id == "" {
		return true
	}
	own, err := scm.PidfdIDOf(pid)
	return err == nil && id == strconv.FormatUint(own, 10)
}

// keep stores descriptors, and returns those that it does not.
func (m *Manager) keep(msg Message, fds []*scm.FD) (rest []*scm.FD) {
	name := msg.Value("FDNAME")
	if !msg.Has("FDNAME=") || !validName(name) {
		name = "stored"
	}
	for _, fd := range fds {
		id, err := fd.Identify()
		if err != nil || len(m.store) >= m.cfg.StoreMax ||
			slices.ContainsFunc(m.store, func(s stored) bool { return s.id == id }) {
			rest = append(rest, fd)
			continue
		}
		m.store = append(m.store, stored{name: name, fd: fd, id: id, poll: !msg.Has("FDPOLL=0")})
	}
	return rest
}

func (m *Manager) remove(name string) {
	m.store = slices.DeleteFunc(m.store, func(s stored) bool {
		if s.name == name {
			s.fd.Close()
		}
		return s.name == name
	})
}

func validName(name string) bool {
	return len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r >= 0x7f || r == ':'
	})
}

// number is 0 for what is none.
func number(s string) (n int) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 1<<30/10 {
			return 0
		}
		n = 10*n + int(c-'0')
	}
	return n
}

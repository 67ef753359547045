package main_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/reexec"
)

// screen is a terminal that a test looks at.
type screen struct {
	t       *testing.T
	control *os.File // what the terminal's user would see
	line    *os.File // what the program writes to

	mu   sync.Mutex
	text bytes.Buffer
	news chan struct{} // has one when there is more text
	done sync.WaitGroup
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals: %v", err)
	}
	s := &screen{t: t, control: control, news: make(chan struct{}, 1)}
	var number uint32
	s.ioctl(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
		number = n
		return err
	})
	s.line, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("there are no pseudo-terminals: %v", err)
	}
	s.done.Go(s.read)
	t.Cleanup(func() {
		s.line.Close()
		control.Close()
		s.done.Wait()
	})
	return s
}

func (s *screen) ioctl(do func(fd int) error) {
	s.t.Helper()
	raw, err := s.control.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil || failed != nil {
		s.t.Fatal(err, failed)
	}
}

// press types something.
func (s *screen) press(keys string) {
	s.t.Helper()
	if _, err := s.control.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screen) resize(rows uint16) {
	s.t.Helper()
	s.ioctl(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: 80})
	})
}

func (s *screen) read() {
	buf := make([]byte, 4096)
	for {
		n, err := s.control.Read(buf)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.text.Write(buf[:n])
		s.mu.Unlock()
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
}

// frame matches a complete drawing: from the top left corner to where what is below is cleared.
var frame = regexp.MustCompile(`(?s)\x1b\[H([^\x1b]|\x1b\[K)*\x1b\[J`)

// until returns the first new drawing that is as it should be.
func (s *screen) until(what string, is func(lines []string) bool) {
	s.t.Helper()
	limit := time.After(forAnything)
	for {
		s.mu.Lock()
		for {
			at := frame.FindIndex(s.text.Bytes())
			if at == nil {
				break
			}
			drawn := string(s.text.Next(at[1])[at[0]:])
			drawn = strings.NewReplacer("\x1b[H", "", "\x1b[K", "", "\x1b[J", "").Replace(drawn)
			if is(strings.Split(drawn, "\r\n")) {
				s.mu.Unlock()
				return
			}
		}
		s.mu.Unlock()
		select {
		case <-s.news:
		case <-limit:
			s.t.Fatalf("not drawn: %s; the rest is %q", what, s.text.String())
		}
	}
}

// rest returns what was written after the last drawing, until the terminal is restored.
func (s *screen) rest() string {
	s.t.Helper()
	limit := time.After(forAnything)
	for {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if _, after, ok := strings.Cut(text, "\x1b[?1049l"); ok && strings.Contains(after, "ORIGIN") {
			return text
		}
		select {
		case <-s.news:
		case <-limit:
			s.t.Fatalf("the terminal is not restored: %q", text)
		}
	}
}

func shows(parts ...string) func([]string) bool {
	return func(lines []string) bool {
		text := strings.Join(lines, "\n")
		for _, part := range parts {
			if !strings.Contains(text, part) {
				return false
			}
		}
		return true
	}
}

func TestLiveView(t *testing.T) {
	s := newScene(t)
	terminal := newScreen(t)
	terminal.resize(40)
	cmd := reexec.Command("crossfade", "status", "--watch", "--socket", s.socket)
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdout = terminal.line
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1} // its terminal, so that it hears of a new size
	reexec.Start(t, cmd)

	terminal.until("that there is nobody", shows("there is no owner of "+s.socket))
	s.service(told{Version: "v1", Probation: long})
	terminal.until("the owner", shows("owner     generation 1 (version v1", "listener  tcp"))
	s.service(told{Version: "v2"})
	terminal.until("the next one, and what led to it",
		shows("owner      generation 2 (version v2", "left, then it stays", "the successor owns: this process stands by"))
	terminal.resize(3)
	terminal.until("as much as there is room for", func(lines []string) bool { return len(lines) == 3 })

	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
		t.Errorf("%v, stderr %q", err, stderr.String())
	}
	rest := terminal.rest()
	for _, restored := range []string{"\x1b[?7h", "\x1b[?25h", "\x1b[?1049l"} {
		if !strings.Contains(rest, restored) {
			t.Errorf("%q is missing at the end: %q", restored, rest)
		}
	}
	if _, last, _ := strings.Cut(rest, "\x1b[?1049l"); !strings.Contains(last, "generation 2 (version v2") {
		t.Errorf("what stays on the terminal is %q", last)
	}
}

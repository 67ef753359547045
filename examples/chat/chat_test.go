//go:build unix

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/leak"
)

// serverEnv makes the test binary the example. Its name must not begin with
// CROSSFADE_, which New removes.
const serverEnv = "CHAT_TEST_SERVER"

// limit bounds what must not hang.
const limit = time.Minute

func TestMain(m *testing.M) {
	if os.Getenv(serverEnv) != "" {
		main()
		os.Exit(0)
	}
	leak.Main(m)
}

// server is a running example.
type server struct {
	*exec.Cmd
	t     *testing.T
	lines *bufio.Scanner
}

func start(t *testing.T, socket, address string) *server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-socket", socket, "-listen", address)
	cmd.Env = append(os.Environ(), serverEnv+"=1", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	})
	return &server{cmd, t, bufio.NewScanner(out)}
}

// logs waits for a line with this text and returns it.
func (s *server) logs(text string) string {
	s.t.Helper()
	for s.lines.Scan() {
		if strings.Contains(s.lines.Text(), text) {
			return s.lines.Text()
		}
		s.t.Log(s.lines.Text())
	}
	s.t.Fatalf("process %d ends without %q: %v", s.Process.Pid, text, s.lines.Err())
	return ""
}

// field returns the value of key=value in a line.
func field(line, key string) string {
	_, rest, _ := strings.Cut(line, key+"=")
	value, _, _ := strings.Cut(rest, " ")
	return value
}

// guest talks to itself, and checks what it hears.
type guest struct {
	conn  net.Conn
	name  string
	heard atomic.Int64 // of what it has said
}

func join(t *testing.T, address, name, room string) *guest {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "%s\n/join %s\n", name, room)
	return &guest{conn: c, name: name}
}

// talk says numbers, in pieces, until stop is closed, and waits until it has heard
// the last. The error says what was lost, doubled or out of order.
func (g *guest) talk(stop <-chan struct{}) error {
	said := make(chan int64, 1)
	go func() {
		n := int64(0)
		defer func() { said <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			line := strconv.FormatInt(n+1, 10) + "\n"
			if _, err := g.conn.Write([]byte(line[:1])); err != nil {
				return
			}
			if _, err := g.conn.Write([]byte(line[1:])); err != nil {
				return
			}
			n++
		}
	}()
	_ = g.conn.SetReadDeadline(time.Now().Add(limit))
	lines := bufio.NewScanner(g.conn)
	last := int64(-1)
	for last < 0 || g.heard.Load() < last {
		if !lines.Scan() {
			return fmt.Errorf("%s has heard %d and the connection ends: %w", g.name, g.heard.Load(), lines.Err())
		}
		text, own := strings.CutPrefix(lines.Text(), g.name+": ")
		if own {
			if want := strconv.FormatInt(g.heard.Load()+1, 10); text != want {
				return fmt.Errorf("%s hears %q, want %s", g.name, text, want)
			}
			g.heard.Add(1)
		}
		select {
		case last = <-said:
		default:
		}
	}
	return nil
}

func TestClientsStayOverTenUpgrades(t *testing.T) {
	const guests, upgrades = 6, 10
	dir, err := os.MkdirTemp("", "chat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	serving := start(t, socket, "127.0.0.1:0")
	address := field(serving.logs("INFO serving"), "address")

	stop := make(chan struct{})
	var talking sync.WaitGroup
	var all []*guest
	for i := range guests {
		g := join(t, address, fmt.Sprintf("guest%d", i), fmt.Sprintf("room%d", i%2))
		all = append(all, g)
		talking.Go(func() {
			if err := g.talk(stop); err != nil {
				t.Error(err)
			}
		})
	}
	for range upgrades {
		next := start(t, socket, address)
		next.logs("INFO serving")
		line := serving.logs("the clients have moved")
		if field(line, "moved") != strconv.Itoa(guests) || field(line, "left") != "0" {
			t.Errorf("the predecessor says: %s", line)
		}
		if err := serving.Wait(); err != nil {
			t.Errorf("the predecessor ends: %v", err)
		}
		serving = next
	}
	close(stop)
	talking.Wait()
	for _, g := range all {
		if g.heard.Load() == 0 {
			t.Errorf("%s has heard nothing", g.name)
		}
	}
}

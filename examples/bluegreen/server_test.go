package bluegreen_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/examples/bluegreen"
)

// TestServerAnswersArrivals checks that a server which leaves still answers a
// client that it has accepted and that has sent nothing yet.
func TestServerAnswersArrivals(t *testing.T) {
	server := startServer(t, build(t, "./server"))
	early, err := net.Dial("tcp", server.address)
	must(t, err)
	defer early.Close()
	// Connections are accepted in order, so after this answer the early one is in.
	must(t, get(server.address))
	must(t, server.cmd.Process.Signal(syscall.SIGTERM))
	for get(server.address) == nil {
		// It has not closed its listener yet.
	}

	_, err = io.WriteString(early, "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
	must(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(early), nil)
	if err != nil {
		t.Fatalf("a request on a connection that was accepted before: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %s", resp.Status)
	}
	if err := server.wait(t); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

// get makes a request on a connection of its own.
func get(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// server is a real server whose standard output, and with it the journal, comes
// to the test.
type server struct {
	cmd     *exec.Cmd
	output  *bufio.Reader
	address string
	waited  bool
}

// startServer starts a server that takes over from nobody.
func startServer(t *testing.T, bin string) *server {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "server"), "-cold", "-journal", "/dev/stdout", "-ready", "/dev/stdout")
	output, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = t.Output()
	must(t, cmd.Start())
	s := &server{cmd: cmd, output: bufio.NewReader(output)}
	t.Cleanup(func() {
		if !s.waited {
			s.kill(t)
		}
	})
	if owns := s.line(t); !strings.Contains(owns, bluegreen.EventOwns) {
		t.Fatalf("the journal begins with %q", owns)
	}
	s.address = strings.TrimSpace(s.line(t))
	return s
}

// line returns the next line of the server's output.
func (s *server) line(t *testing.T) string {
	t.Helper()
	line, err := s.output.ReadString('\n')
	must(t, err)
	return line
}

func (s *server) kill(t *testing.T) {
	t.Helper()
	must(t, s.cmd.Process.Kill())
	var exit *exec.ExitError
	if err := s.wait(t); !errors.As(err, &exit) {
		t.Errorf("a killed server ended with %v", err)
	}
}

// wait returns how the server ended.
func (s *server) wait(t *testing.T) error {
	t.Helper()
	s.waited = true
	_, err := io.Copy(io.Discard, s.output)
	must(t, err)
	return s.cmd.Wait()
}

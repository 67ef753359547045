package bluegreen_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/examples/bluegreen"
)

// TestLoad runs the load generator against servers that fail in a known way.
func TestLoad(t *testing.T) {
	bin := build(t, "./load", "./server")

	t.Run("refused", func(t *testing.T) {
		report := load(t, bin, unusedAddress(t), "", "-requests", "4", "-new", "1", "-kept", "1")
		expect(t, report, 0, map[bluegreen.Class]int{bluegreen.Refused: 4})
	})
	t.Run("reset", func(t *testing.T) {
		address := serveRaw(t, func(c net.Conn) {
			if err := c.(*net.TCPConn).SetLinger(0); err != nil {
				t.Error(err)
			}
		})
		report := load(t, bin, address, "", "-requests", "4", "-new", "1", "-kept", "1")
		expect(t, report, 0, map[bluegreen.Class]int{bluegreen.Reset: 4})
	})
	t.Run("closed without an answer", func(t *testing.T) {
		address := serveRaw(t, func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				t.Error(err)
			}
		})
		report := load(t, bin, address, "", "-requests", "1", "-new", "0", "-kept", "1")
		expect(t, report, 0, map[bluegreen.Class]int{bluegreen.Reset: 1})
	})
	t.Run("closed while idle", func(t *testing.T) {
		address := serveRaw(t, answerOnce(t))
		// Each second request finds its connection closed, and the next one opens
		// another.
		report := load(t, bin, address, "", "-requests", "4", "-new", "0", "-kept", "1")
		expect(t, report, 2, map[bluegreen.Class]int{bluegreen.Idle: 2})
		if got := report.Requests[1].Server.PID; got != os.Getpid() {
			t.Errorf("the closed connection is put down to pid %d, want %d", got, os.Getpid())
		}
	})
	t.Run("no answer in time", func(t *testing.T) {
		held := make(chan struct{})
		address := serveRaw(t, func(net.Conn) { <-held })
		report := load(t, bin, address, "", "-requests", "1", "-new", "1", "-kept", "0", "-limit", "50ms")
		close(held)
		expect(t, report, 0, map[bluegreen.Class]int{bluegreen.Other: 1})
	})
	t.Run("lost in flight", func(t *testing.T) {
		server := startServer(t, bin)
		journal := filepath.Join(t.TempDir(), "journal")
		done := make(chan *bluegreen.Report, 1) // the test may fail before it receives
		go func() {
			done <- load(t, bin, server.address, journal, "-requests", "1", "-new", "1", "-kept", "0", "-slow", "10s")
		}()
		began := server.line(t)
		must(t, os.WriteFile(journal, []byte(began), 0o600))
		server.kill(t)
		report := <-done
		expect(t, report, 0, map[bluegreen.Class]int{bluegreen.Lost: 1})
		if got := report.Requests[0].Server.PID; got != server.cmd.Process.Pid {
			t.Errorf("the loss is put down to pid %d, want %d", got, server.cmd.Process.Pid)
		}
	})
	t.Run("all answered", func(t *testing.T) {
		server := startServer(t, bin)
		report := load(t, bin, server.address, "", "-requests", "60", "-new", "2", "-kept", "2", "-slow", "1ms")
		expect(t, report, 60, nil)
		for _, r := range report.Requests {
			if r.Server.PID != server.cmd.Process.Pid || r.Server.Version != "v7" {
				t.Fatalf("request %s was answered by %+v, want pid %d", r.ID, r.Server, server.cmd.Process.Pid)
			}
		}
		must(t, server.cmd.Process.Signal(syscall.SIGTERM))
		if err := server.wait(t); err != nil {
			t.Errorf("a server that is asked to stop ended with %v", err)
		}
	})
}

// build compiles programs of this example into a directory of the test.
func build(t *testing.T, programs ...string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the programs are told to stop by signals, which Windows does not have")
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("the programs cannot be built: %v", err)
	}
	dir := t.TempDir()
	args := append([]string{"build", "-ldflags=-X main.version=v7", "-o", dir + string(filepath.Separator)}, programs...)
	if out, err := exec.CommandContext(t.Context(), goTool, args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return dir
}

// load runs the load generator and returns its report, or nil if the test has
// failed.
func load(t *testing.T, bin, address, journal string, args ...string) *bluegreen.Report {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report")
	args = append(args, "-address", address, "-report", file, "-journal", journal)
	if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "load"), args...).CombinedOutput(); err != nil {
		t.Errorf("load %s: %v\n%s", strings.Join(args, " "), err, out)
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
		return nil
	}
	report := new(bluegreen.Report)
	if err := json.Unmarshal(data, report); err != nil {
		t.Error(err)
		return nil
	}
	return report
}

// expect checks what a report counts: so many answers, these failures, no others.
func expect(t *testing.T, report *bluegreen.Report, answered int, failed map[bluegreen.Class]int) {
	t.Helper()
	if report == nil {
		t.FailNow()
	}
	got := make(map[bluegreen.Class]int)
	for _, r := range report.Requests {
		got[r.Failure]++
		if (r.Failure == "") != (r.Error == "") {
			t.Errorf("request %s: class %q, error %q", r.ID, r.Failure, r.Error)
		}
	}
	if got[""] != answered || report.Answered != answered {
		t.Errorf("%d answered, %d by the total, want %d", got[""], report.Answered, answered)
	}
	for class, n := range report.Failed {
		if n != failed[class] || got[class] != failed[class] {
			t.Errorf("%s: %d, %d by the total, want %d", class, got[class], n, failed[class])
		}
	}
	if t.Failed() {
		t.Logf("%+v", report)
	}
}

// unusedAddress returns an address where nobody listens for as long as the test
// runs: the port belongs to one end of a connection.
func unusedAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	other, err := ln.Accept()
	must(t, err)
	t.Cleanup(func() { other.Close() })
	return c.LocalAddr().String()
}

// serveRaw passes each connection to serve, one after another, and closes it
// afterwards.
func serveRaw(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// answerOnce answers the first request of a connection as the server would, and
// lets the client believe that there could be a second.
func answerOnce(t *testing.T) func(net.Conn) {
	return func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Error(err)
			return
		}
		body, err := json.Marshal(bluegreen.Reply{
			Process: bluegreen.Process{PID: os.Getpid()},
			ID:      req.Header.Get("X-Request-Id"),
			Bytes:   req.ContentLength,
		})
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

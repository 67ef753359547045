package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/httphandoff"
)

// modeEnv makes this program a server. Its name must not begin with CROSSFADE_, which
// New removes.
const modeEnv = "COMPARE_MODE"

// How a server ends.
const (
	modePlain   = "Shutdown"
	modeHandoff = "httphandoff"
)

// drainTimeout is long enough for what this load asks for.
const drainTimeout = 20 * time.Second

// serve is a server. It prints a line when it owns, and one when it has drained.
func serve(mode, socket, address string) error {
	ctx := context.Background()
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: socket, DrainTimeout: drainTimeout})
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "http", "tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: drainTimeout, Handler: http.HandlerFunc(answerRequest)}
	serve, shutdown := srv.Serve, srv.Shutdown
	if mode == modeHandoff {
		web := httphandoff.New(upg, srv, "http")
		serve, shutdown = web.Serve, web.Shutdown
	}
	go func() { _ = serve(ln) }() // until shutdown
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	fmt.Println("serving", ln.Addr())
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until whoever has started it lets go
		close(stop)
	}()
	select {
	case <-upg.Exit():
	case <-stop:
		upg.Stop()
	}
	began := time.Now()
	drain, cancel := upg.DrainContext(ctx)
	defer cancel()
	err = shutdown(drain)
	fmt.Println("drained", time.Since(began))
	return err
}

func answerRequest(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %d", r.URL.Path, n)
}

// server is a server's process.
type server struct {
	cmd     *exec.Cmd
	lines   *bufio.Scanner
	stdin   io.Closer
	address string
}

// start starts a server and returns when it owns the service.
func start(mode, socket, address string) (*server, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, socket, address)
	cmd.Env = append(os.Environ(), modeEnv+"="+mode)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, lines: bufio.NewScanner(out), stdin: stdin}
	if s.address, err = s.says("serving"); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// says reads a line that begins with word, and returns the rest.
func (s *server) says(word string) (string, error) {
	for s.lines.Scan() {
		if rest, ok := strings.CutPrefix(s.lines.Text(), word+" "); ok {
			return rest, nil
		}
	}
	return "", fmt.Errorf("server %d has ended without a line %q: %w", s.cmd.Process.Pid, word, io.ErrUnexpectedEOF)
}

// drained waits for the end of a server that was replaced, and returns how long its
// drain has lasted.
func (s *server) drained() (time.Duration, error) {
	text, err := s.says("drained")
	if err != nil {
		return 0, err
	}
	drain, err := time.ParseDuration(text)
	if err != nil {
		return 0, err
	}
	return drain, s.cmd.Wait()
}

// end asks a server to stop and waits for it.
func (s *server) end() {
	_ = s.stdin.Close()
	_ = s.cmd.Wait()
}

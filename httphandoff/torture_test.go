//go:build unix

package httphandoff_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/httphandoff"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// service is one as a process of its own: its arguments are the control socket and the
// address. It prints a line when it owns, and one when its drain is over.
func service() error {
	ctx, socket, address := context.Background(), os.Args[1], os.Args[2]
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: socket, DrainTimeout: limit})
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "http", "tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: limit, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%s %d", r.URL.Path, n)
	})}
	web := httphandoff.New(upg, srv, "http")
	go web.Serve(ln)
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	fmt.Println("serving", ln.Addr())
	<-upg.Exit()
	drain, cancel := upg.DrainContext(ctx)
	defer cancel()
	err = web.Shutdown(drain)
	fmt.Printf("drained %+v\n", web.Stats())
	return err
}

// process is a running service.
type process struct {
	*exec.Cmd
	t     *testing.T
	lines *bufio.Scanner
}

func startProcess(t *testing.T, socket, address string) *process {
	t.Helper()
	cmd := reexec.Command("service", socket, address)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	timer := time.AfterFunc(2*limit, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
		if t.Failed() {
			t.Logf("process %d:\n%s", cmd.Process.Pid, &log)
		}
	})
	return &process{cmd, t, bufio.NewScanner(out)}
}

// says waits for a line that begins so, and returns the rest.
func (p *process) says(word string) string {
	p.t.Helper()
	for p.lines.Scan() {
		if rest, ok := strings.CutPrefix(p.lines.Text(), word+" "); ok {
			return rest
		}
	}
	p.t.Fatalf("process %d ends without saying %q", p.Process.Pid, word)
	return ""
}

// visitor keeps its connection and makes requests until it is told to stop.
type visitor struct {
	name    string
	address string
	depth   int // how many requests it sends before it reads a response
	served  atomic.Int64
}

func (v *visitor) visit(stop <-chan struct{}) error {
	c, err := net.Dial("tcp", v.address)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			return err
		}
		var sent bytes.Buffer
		var want []string
		for i := range v.depth {
			path := fmt.Sprintf("/%s/%d/%d", v.name, n, i)
			size := []int{0, 10, 5000, 0, 40_000}[rand.N(5)]
			if size == 0 {
				fmt.Fprintf(&sent, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
			} else {
				fmt.Fprintf(&sent, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, size, bytes.Repeat([]byte("b"), size))
			}
			want = append(want, fmt.Sprintf("%s %d", path, size))
		}
		if err := sendInPieces(c, sent.Bytes()); err != nil {
			return fmt.Errorf("%s: sending the %dth: %w", v.name, n, err)
		}
		for _, want := range want {
			if err := v.receive(r, want); err != nil {
				return fmt.Errorf("%s: the answer to the %dth: %w", v.name, n, err)
			}
		}
		think(time.Duration(rand.N(5_000)) * time.Microsecond)
	}
}

func (v *visitor) receive(r *bufio.Reader, want string) error {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if string(body) != want || resp.Close {
		return fmt.Errorf("it is %q, %s, close: %v; want %q", body, resp.Status, resp.Close, want)
	}
	v.served.Add(1)
	return nil
}

// sendInPieces cuts half of what is sent at a random place, and waits there for as
// long as a packet may be late.
func sendInPieces(c net.Conn, p []byte) error {
	if rand.N(2) == 0 {
		first := min(len(p), rand.N(200))
		if _, err := c.Write(p[:first]); err != nil {
			return err
		}
		p = p[first:]
		think(time.Duration(rand.N(1_000)) * time.Microsecond)
	}
	_, err := c.Write(p)
	return err
}

func think(d time.Duration) { <-time.After(d) }

// Not one of many requests may fail while the process is replaced again and again, and
// no client may have to connect twice.
func TestTorture(t *testing.T) {
	const visitors, upgrades = 32, 20
	socket := socketPath(t)
	serving := startProcess(t, socket, "127.0.0.1:0")
	address := serving.says("serving")

	stop := make(chan struct{})
	var visiting sync.WaitGroup
	failed := make(chan error, visitors)
	var all []*visitor
	for i := range visitors {
		v := &visitor{name: fmt.Sprintf("v%d", i), address: address, depth: 1 + i%2}
		all = append(all, v)
		visiting.Go(func() { failed <- v.visit(stop) })
	}
	total := func() (n int64) {
		for _, v := range all {
			n += v.served.Load()
		}
		return n
	}
	for range upgrades {
		before := total()
		eventually(func() bool { return total() > before+10*visitors || len(failed) > 0 })
		next := startProcess(t, socket, address)
		next.says("serving")
		if drained := serving.says("drained"); drained != fmt.Sprintf("{Moved:%d Kept:0}", visitors) {
			t.Errorf("process %d has %s", serving.Process.Pid, drained)
		}
		if err := serving.Wait(); err != nil {
			t.Errorf("process %d: %v", serving.Process.Pid, err)
		}
		serving = next
	}
	close(stop)
	visiting.Wait()
	for range visitors {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d requests, %d upgrades", total(), upgrades)
}

// More idle connections than can be on their way at the same time move in one upgrade.
func TestManyIdleConnections(t *testing.T) {
	const idle = 500
	socket := socketPath(t)
	old := startProcess(t, socket, "127.0.0.1:0")
	st := &stage{t: t, address: old.says("serving")}
	var all []*client
	for range idle {
		c := st.dial()
		c.wants("before", c.get("/"), "/ 0")
		all = append(all, c)
	}
	next := startProcess(t, socket, st.address)
	next.says("serving")
	if drained := old.says("drained"); drained != fmt.Sprintf("{Moved:%d Kept:0}", idle) {
		t.Errorf("the predecessor has %s", drained)
	}
	must(t, old.Wait())
	for _, c := range all {
		c.wants("after", c.get("/"), "/ 0")
	}
}

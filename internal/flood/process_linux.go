package flood

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/reexec"
)

// Main is the process that [Start] starts: it attacks the control socket that is its
// first argument, in the ways of the others, until its standard input ends.
func Main() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var up sync.WaitGroup
	for _, name := range os.Args[2:] {
		a := attacks[name]
		for range a.clients {
			up.Add(1)
			wg.Go(func() { client(ctx, os.Args[1], a, sync.OnceFunc(up.Done)) })
		}
	}
	go func() {
		up.Wait()
		fmt.Println("up")
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	wg.Wait()
	fmt.Println(connected.Load(), refused.Load())
}

var connected atomic.Int64

// client connects again and again. up is called when it has once.
func client(ctx context.Context, socket string, a attack, up func()) {
	for ctx.Err() == nil {
		c, err := net.DialTimeout("unix", socket, time.Second)
		if err == nil {
			connected.Add(1)
			up()
			_ = a.run(ctx, c.(*net.UnixConn)) // whatever ends it, there is the next
			_ = c.Close()
		}
		// As fast as the socket takes it would be nothing but a test of the kernel's scheduler.
		if !pause(ctx, 5*time.Millisecond) {
			return
		}
	}
}

// Process is one that attacks.
type Process struct {
	PID int

	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
	once  sync.Once
	end   Result
}

// Result is what became of an attack.
type Result struct {
	Connected int64 // connections that it had
	Refused   int64 // sets of descriptors that the kernel kept back
}

// Start starts the process "flood" of this test binary, which is [Main], and returns
// when each of its clients has been connected once.
func Start(t testing.TB, socket string, names ...string) *Process {
	t.Helper()
	p := &Process{cmd: reexec.Command("flood", append([]string{socket}, names...)...)}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	reexec.Start(t, p.cmd)
	p.PID = p.cmd.Process.Pid
	if line, err := p.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != "up" {
		t.Fatalf("the attack says %q, %v", line, err)
	}
	return p
}

// Stop ends the attack.
func (p *Process) Stop(t testing.TB) Result {
	t.Helper()
	p.once.Do(func() {
		_ = p.stdin.Close()
		if _, err := fmt.Fscan(p.out, &p.end.Connected, &p.end.Refused); err != nil {
			t.Errorf("the attack has not ended well: %v", err)
		}
	})
	return p.end
}

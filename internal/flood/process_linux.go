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
	"syscall"
	"testing"
	"time"
)

// Main is the process that attacks the control socket args[0], in the ways of args[1:],
// until its standard input ends. It is run by the test binary that [Start] starts again.
func Main(args []string) int {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var up sync.WaitGroup
	for _, name := range args[1:] {
		a := attacks[name]
		for range a.clients {
			up.Add(1)
			wg.Go(func() { client(ctx, args[0], a, sync.OnceFunc(up.Done)) })
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
	return 0
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

// Start starts this test binary again, with env in its environment, for a process that
// calls [Main], and returns when each of its clients has been connected once. With a uid
// other than 0 it is another user's.
func Start(t testing.TB, env string, uid uint32, socket string, names ...string) *Process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{cmd: exec.Command(exe, append([]string{socket}, names...)...)}
	p.cmd.Env = append(os.Environ(), env)
	p.cmd.Stderr = os.Stderr
	if uid != 0 {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.PID = p.cmd.Process.Pid
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended, or the test has failed
		_ = p.cmd.Wait()
	})
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

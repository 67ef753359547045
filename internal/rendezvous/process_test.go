//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// generous is how long a test waits for what must happen at all.
const generous = time.Minute

// stranger is a user who owns nothing here. Neither it nor its group has a name.
const stranger = 65533

func init() {
	processes["claim"] = processClaim
	processes["rounds"] = processRounds
	processes["find"] = processFind
	processes["hold-lock"] = processHoldLock
	processes["knock"] = processKnock
}

// process is this test binary started again as something else. It speaks in
// lines on its standard output and ends when its standard input does.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	ended bool
}

type option func(*exec.Cmd)

// as runs the process as another user, in the groups given and in no other.
func as(uid uint32, groups ...uint32) option {
	return func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}
	}
}

// inherits gives the process a file as descriptor 3. Its descriptor in this process is
// not a socket that anybody else uses: a blocking one is fine.
func inherits(f *os.File) option {
	return func(cmd *exec.Cmd) { cmd.ExtraFiles = append(cmd.ExtraFiles, f) }
}

func start(t *testing.T, name string, args []string, options ...option) *process {
	t.Helper()
	cmd := reexec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	for _, o := range options {
		o(cmd)
	}
	if cmd.SysProcAttr.Credential != nil {
		cmd.Path = reexec.Copy(t)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: stdin, lines: bufio.NewScanner(stdout)}
	t.Cleanup(p.stop)
	return p
}

// tempDir is a fresh directory with a short name that every user may enter. The
// name that t.TempDir makes of a subtest's is too long for a socket in it.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "xf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// line waits for the next line.
func (p *process) line() string {
	p.t.Helper()
	if !p.lines.Scan() {
		p.t.Fatalf("%s ended without a word: %v", p.cmd.Args, p.lines.Err())
	}
	return p.lines.Text()
}

func (p *process) say(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// kill is kill -9.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	p.end()
}

// stop lets the process end by itself.
func (p *process) stop() {
	p.stdin.Close()
	p.end()
}

func (p *process) end() {
	if p.ended {
		return
	}
	p.ended = true
	p.stdin.Close()
	p.cmd.Wait()
}

// place is that of this process. Its arguments are: path, mode, group, umask and, where
// it matters, whether the directory is trusted.
func place() rendezvous.Place {
	args := os.Args[1:]
	mode, err := strconv.ParseUint(args[1], 8, 32)
	if err != nil {
		panic(err)
	}
	umask, err := strconv.ParseInt(args[3], 8, 32)
	if err != nil {
		panic(err)
	}
	syscall.Umask(int(umask))
	return rendezvous.Place{Path: args[0], Mode: fs.FileMode(mode), Group: args[2], TrustDirectory: len(args) > 4 && args[4] == "true"}
}

func plain(path string) []string { return []string{path, "0", "", "022"} }

// processClaim claims and keeps.
func processClaim() {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	conn, claim, err := rendezvous.Find(ctx, place())
	fmt.Println(outcome(conn != nil, claim != nil, err))
	io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(claim)
}

// processFind looks once and says what it found.
func processFind() {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	conn, claim, err := rendezvous.Find(ctx, place())
	fmt.Println(outcome(conn != nil, claim != nil, err))
	if claim != nil {
		claim.Unlink()
	}
}

func outcome(connected, claimed bool, err error) string {
	switch {
	case err != nil && !connected && !claimed:
		return "error: " + strings.ReplaceAll(err.Error(), "\n", "; ")
	case err == nil && connected && !claimed:
		return "connected"
	case err == nil && claimed && !connected:
		return "claimed"
	}
	return fmt.Sprintf("impossible: connected %t, claimed %t, %v", connected, claimed, err)
}

// processRounds starts anew for each line it reads: "go" finds and reports with
// the pid that it reached, "release" and "unlink" end that in either way.
func processRounds() {
	var end func(unlink bool)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() != "go" {
			end(in.Text() == "unlink")
			fmt.Println("ended")
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), generous)
		conn, claim, err := rendezvous.Find(ctx, place())
		cancel()
		switch {
		case err != nil:
			fmt.Println("error", err)
			end = func(bool) {}
		case conn != nil:
			pid := -1
			if peer, err := conn.Peer(); err == nil {
				pid = peer.PID
				peer.Close()
			}
			fmt.Println("connected", pid)
			end = func(bool) { conn.Close() }
		default:
			fmt.Println("claimed", os.Getpid())
			end = func(unlink bool) {
				if unlink {
					err = claim.Unlink()
				} else {
					err = claim.Release()
				}
				if err != nil {
					panic(err)
				}
			}
		}
	}
}

// processHoldLock has the lock and serves nobody.
func processHoldLock() {
	f, err := os.OpenFile(os.Args[1]+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	if err := flock(f); err != nil {
		panic(err)
	}
	fmt.Println("locked")
	io.Copy(io.Discard, os.Stdin)
	f.Close()
}

// processKnock connects to path and to its temporary name over and over until
// its input ends, then tells how often each result came.
func processKnock() {
	var connected, denied, other int
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	fmt.Println("knocking")
	for {
		for _, path := range []string{os.Args[1], os.Args[1] + "~/s"} {
			conn, err := net.Dial("unix", path)
			switch {
			case err == nil:
				connected++
				conn.Close()
			case errors.Is(err, syscall.EACCES) && path == os.Args[1]:
				denied++
			default:
				other++
			}
		}
		select {
		case <-stop:
			fmt.Printf("%d connected, %d denied\n", connected, denied)
			return
		default:
		}
	}
}

//go:build unix

package foreign_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/leak"
)

// ownerEnv makes the test binary an owner instead of running tests. Its name
// must not begin with CROSSFADE_, which New removes.
const ownerEnv = "FOREIGN_TEST_OWNER"

// limit bounds what must not hang.
const limit = time.Minute

func TestMain(m *testing.M) {
	if socket := os.Getenv(ownerEnv); socket != "" {
		if err := own(socket); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leak.Main(m)
}

// own is the owner: it answers each client with its pid, and prints its address
// once it owns and why it leaves when it does. Its arguments are options.
func own(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cfg := &crossfade.Config{Socket: socket}
	if command, ok := argument("upgrade"); ok {
		cfg.Command = func(context.Context) (*exec.Cmd, error) {
			args := strings.Split(command, " ")
			return &exec.Cmd{Path: args[0], Args: args, Stdout: os.Stdout, Stderr: os.Stderr}, nil
		}
	}
	upg, err := crossfade.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "http", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := addOthers(ctx, upg); err != nil {
		return err
	}
	go answer(ln)
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	changing := make(chan os.Signal, 1) // a signal that comes early is kept
	signal.Notify(changing, syscall.SIGUSR1)
	go change(upg, changing)
	fmt.Println("owner", ln.Addr())
	if cfg.Command != nil {
		if err := upg.Upgrade(ctx); err != nil {
			return err
		}
	}
	if _, ok := argument("stoppable"); ok {
		stop := make(chan os.Signal, 1) // a signal that comes early is kept
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		upg.Stop()
	}
	<-upg.Exit()
	fmt.Println("exit:", upg.Err())
	return ln.Close()
}

// addOthers registers what the foreign successor has no use for: enough files
// for several pages, and one socket of each kind.
func addOthers(ctx context.Context, upg *crossfade.Upgrader) error {
	if _, ok := argument("others"); !ok {
		return nil
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	for i := range 700 {
		if err := upg.Fds().AddFile(fmt.Sprintf("file %d", i), null); err != nil {
			return err
		}
	}
	directory := filepath.Dir(os.Getenv(ownerEnv))
	if _, err := upg.Listen(ctx, "ipv6", "tcp", "[::1]:0"); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EAFNOSUPPORT) {
		return err
	}
	if _, err := upg.Listen(ctx, "unix", "unix", filepath.Join(directory, "u")); err != nil {
		return err
	}
	if _, err := upg.ListenPacket(ctx, "dns", "udp", "127.0.0.1:0"); err != nil {
		return err
	}
	_, err = upg.ListenPacket(ctx, "datagrams", "unixgram", filepath.Join(directory, "d"))
	return err
}

// change makes the last pages more than an empty one.
func change(upg *crossfade.Upgrader, wanted <-chan os.Signal) {
	<-wanted
	r, w, err := os.Pipe()
	if err == nil {
		err = errors.Join(upg.Fds().AddFile("late", r), upg.Fds().Remove("file 0"), r.Close(), w.Close())
	}
	fmt.Println("changed:", err)
}

// argument returns an option of the form name=value or name.
func argument(name string) (string, bool) {
	for _, a := range os.Args[1:] {
		if key, value, _ := strings.Cut(a, "="); key == name {
			return value, true
		}
	}
	return "", false
}

func answer(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintln(client, "go", os.Getpid()) // it may have left
		_ = client.Close()
	}
}

// process is a running program whose lines are read one by one.
type process struct {
	*exec.Cmd
	t     *testing.T
	lines *bufio.Reader
	stdin *os.File // what the program's standard input comes from; closing it ends that
}

// run starts a program. It is killed when the test ends, and with it what it
// has started, all in a process group of their own.
func run(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	cmd.Stdin = theirs
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		ours.Close()
		t.Fatal(err)
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() }) // so that no line is waited for without end
	t.Cleanup(func() {
		timer.Stop()
		ours.Close()
		if cmd.ProcessState != nil {
			return // it has been waited for, and its number may be another's
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // fails if all have ended
		_ = cmd.Wait()                                      // it was killed
	})
	return &process{Cmd: cmd, t: t, lines: bufio.NewReader(stdout), stdin: ours}
}

// says reads the next line and returns what follows the given beginning.
func (p *process) says(beginning string) string {
	p.t.Helper()
	line, err := p.lines.ReadString('\n')
	rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), beginning)
	if err != nil || !ok {
		p.t.Fatalf("process %d says %q (%v), want %q", p.Process.Pid, line, err, beginning)
	}
	return rest
}

// ends waits for the end and checks the status.
func (p *process) ends(status int) {
	p.t.Helper()
	_ = p.Wait() // the state says it all
	if got := p.ProcessState.ExitCode(); got != status {
		p.t.Fatalf("process %d ended with %v, want status %d", p.Process.Pid, p.ProcessState, status)
	}
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// owner starts an owner on the socket, and returns where its clients go.
func owner(t *testing.T, socket string, options ...string) (*process, string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, options...)
	cmd.Env = append(os.Environ(), ownerEnv+"="+socket)
	p := run(t, cmd)
	return p, p.says("owner ")
}

// python returns the interpreter, or skips the test.
func python(t *testing.T) string {
	t.Helper()
	path, err := interpreter()
	if err != nil {
		t.Skipf("the foreign successor needs Python 3.9 or later as python3: %v", err)
	}
	return path
}

// interpreter asks python3 for its real path: a wrapper that picks a version
// may fork, and a signal would then not reach the program.
var interpreter = sync.OnceValues(func() (string, error) {
	path, err := exec.Command("python3", "-c", "import sys; print(sys.executable) if sys.version_info >= (3, 9) else sys.exit(1)").Output()
	return strings.TrimSpace(string(path)), err
})

func script(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("successor.py")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// successor starts the foreign successor.
func successor(t *testing.T, socket string, options ...string) *process {
	t.Helper()
	args := slices.Concat([]string{"-B", script(t), "--socket", socket, "--listener", "http"}, options)
	return run(t, exec.Command(python(t), args...))
}

// asks connects a client and returns who answers.
func asks(t *testing.T, address string) string {
	t.Helper()
	return answered(t, connect(t, address))
}

func connect(t *testing.T, address string) net.Conn {
	t.Helper()
	client, err := net.DialTimeout("tcp", address, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func answered(t *testing.T, client net.Conn) string {
	t.Helper()
	if err := client.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(client).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

// expect checks that this process answers at the address.
func (p *process) expect(address, language string) {
	p.t.Helper()
	if got, want := asks(p.t, address), fmt.Sprint(language, " ", p.Process.Pid); got != want {
		p.t.Fatalf("the client was answered by %q, want %q", got, want)
	}
}

// socketPath returns a path that is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return filepath.Join(directory, "control")
}

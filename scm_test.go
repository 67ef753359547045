//go:build unix

package crossfade_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	processes["scm: hand a listener over"] = handListenerOver
	processes["scm: take a listener and answer"] = takeListenerAndAnswer
	processes["scm: inherit nothing else"] = inheritNothingElse
	processes["scm: never read"] = neverRead
	processes["scm: read late and answer"] = readLateAndAnswer
}

// handListenerOver serves a path for one connection. It prints the address of a
// TCP listener once the path can be dialled, hands the listener to whoever
// dials, and exits when that one has it.
func handListenerOver() {
	control := bindAndListen(os.Args[1])
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fd, err := scm.DupFD(ln.(syscall.Conn))
	check(err)
	r, _, err := os.Pipe()
	check(err)
	pipe, err := scm.DupFD(r)
	check(err)
	fmt.Println(ln.Addr())

	accepting, err := scm.NewListener(control)
	check(err)
	c, err := accepting.Accept()
	check(err)
	ctx := context.Background()
	check(c.Send(ctx, []byte(ln.Addr().String()), fd, pipe))
	payload, _, err := c.Receive(ctx, 0)
	check(err)
	if string(payload) != "got it" {
		check(fmt.Errorf("the answer is %q", payload))
	}
}

// takeListenerAndAnswer dials the path, takes the listener, and once the other
// process is gone answers one client with its pid.
func takeListenerAndAnswer() {
	inherited := socketsAndPipes()
	ctx := context.Background()
	c, err := scm.Dial(ctx, os.Args[1])
	check(err)
	payload, fds, err := c.Receive(ctx, 2)
	check(err)
	if len(fds) != 2 {
		check(fmt.Errorf("%d descriptors came", len(fds)))
	}
	id, err := fds[0].Identify()
	check(err)
	if !id.Listening || id.Network != "tcp" || id.Address != string(payload) {
		check(fmt.Errorf("the descriptor is %s, announced was %s", id, payload))
	}
	check(reexec.Command("scm: inherit nothing else", inherited...).Run())

	check(c.Send(ctx, []byte("got it")))
	if _, _, err := c.Receive(ctx, 0); err != io.EOF {
		check(fmt.Errorf("the end is %w", err))
	}
	answer(fds[0], 1)
}

// inheritNothingElse fails if a socket or a pipe came through exec that is not
// among the arguments.
func inheritNothingElse() {
	for _, found := range socketsAndPipes() {
		if !slices.Contains(os.Args[1:], found) {
			check(fmt.Errorf("the descriptor of %s was inherited, expected were %v", found, os.Args[1:]))
		}
	}
}

// socketsAndPipes names those that this process has open behind the standard
// streams. The runtime has none of its own. Whoever runs the tests may have left
// some to them.
func socketsAndPipes() []string {
	var found []string
	for num := 3; num < 1024; num++ {
		var st unix.Stat_t
		if unix.Fstat(num, &st) != nil {
			continue
		}
		if t := st.Mode & unix.S_IFMT; t == unix.S_IFSOCK || t == unix.S_IFIFO {
			found = append(found, fmt.Sprintf("inode %d on device %d", st.Ino, st.Dev))
		}
	}
	return found
}

// neverRead connects, says so, and never reads a frame.
func neverRead() {
	c, err := scm.Dial(context.Background(), os.Args[1])
	check(err)
	check(c.Send(context.Background(), []byte("here")))
	_, err = io.Copy(io.Discard, os.Stdin)
	check(err)
	check(errors.New("outlived the test"))
}

// readLateAndAnswer connects, says so, and takes a listener only when its
// standard input has ended. It answers two clients.
func readLateAndAnswer() {
	ctx := context.Background()
	c, err := scm.Dial(ctx, os.Args[1])
	check(err)
	check(c.Send(ctx, []byte("here")))
	_, err = io.Copy(io.Discard, os.Stdin)
	check(err)
	_, fds, err := c.Receive(ctx, 1)
	check(err)
	answer(fds[0], 2)
}

func bindAndListen(path string) *scm.FD {
	fd, err := scm.Bind("unix", path)
	check(err)
	check(fd.Listen(16))
	return fd
}

// answer writes this process's pid to n clients.
func answer(fd *scm.FD, n int) {
	ln, err := fd.Listener()
	check(err)
	for range n {
		client, err := ln.Accept()
		check(err)
		_, err = fmt.Fprintln(client, os.Getpid())
		check(err)
		check(client.Close())
	}
}

// dial connects a client for the length of the test.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// answeredBy reads the pid of whoever serves the client.
func answeredBy(t *testing.T, c net.Conn) int {
	t.Helper()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(line[:len(line)-1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestAListenerMovesBetweenStrangers(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "control")
	predecessor := reexec.Command("scm: hand a listener over", path)
	stdout, err := predecessor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	reexec.Start(t, predecessor)
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	// This one waits in the accept queue until the successor serves.
	client := dial(t, address[:len(address)-1])

	successor := reexec.Command("scm: take a listener and answer", path)
	reexec.Start(t, successor)
	if pid := answeredBy(t, client); pid != successor.Process.Pid {
		t.Errorf("process %d answered, want the successor, %d", pid, successor.Process.Pid)
	}
	if err := predecessor.Wait(); err != nil {
		t.Errorf("predecessor: %v", err)
	}
	if err := successor.Wait(); err != nil {
		t.Errorf("successor: %v", err)
	}
}

// stranger starts the process called name, which dials a path of the test's, and
// returns the connection to it and what keeps its standard input open.
func stranger(t *testing.T, name string) (*exec.Cmd, *scm.Conn, io.Closer) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	control, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := control.Listen(1); err != nil {
		t.Fatal(err)
	}
	ln, err := scm.NewListener(control)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := reexec.Command(name, path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reexec.Start(t, cmd)
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if payload, _, err := c.Receive(limited(t), 0); err != nil || string(payload) != "here" {
		t.Fatalf("received %q, %v", payload, err)
	}
	return cmd, c, stdin
}

// limited is a context for what must not hang.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestAReceiverKilledWithUnreadDescriptors(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	clients := []net.Conn{dial(t, ln.Addr().String()), dial(t, ln.Addr().String())}
	fd, err := scm.DupFD(ln.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()

	receiver, c, _ := stranger(t, "scm: never read")
	for range 5 {
		if err := c.Send(limited(t), []byte("yours"), fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := receiver.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Receive(limited(t), 0); err != io.EOF {
		t.Fatalf("the receiver's death gave %v", err)
	}
	// The queue is served by who has kept its own copy, as if nothing had been.
	for range clients {
		served, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintln(served, os.Getpid()); err != nil {
			t.Error(err)
		}
		served.Close()
	}
	for _, client := range clients {
		if pid := answeredBy(t, client); pid != os.Getpid() {
			t.Errorf("process %d answered", pid)
		}
	}
	// No copy is left anywhere that would hold the port.
	address := ln.Addr().String()
	ln.Close()
	fd.Close()
	again, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the port is still held: %v", err)
	}
	again.Close()
}

func TestAListenerInFlightKeepsItsQueue(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	address := ln.Addr().String()
	before := dial(t, address)
	fd, err := scm.DupFD(ln.(syscall.Conn))
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()

	receiver, c, stdin := stranger(t, "scm: read late and answer")
	if err := c.Send(limited(t), []byte("yours"), fd); err != nil {
		t.Fatal(err)
	}
	// From here on no process holds the listener, only the socket does.
	ln.Close()
	fd.Close()
	during := dial(t, address)
	stdin.Close()
	for _, client := range []net.Conn{before, during} {
		if pid := answeredBy(t, client); pid != receiver.Process.Pid {
			t.Errorf("process %d answered, want %d", pid, receiver.Process.Pid)
		}
	}
	if err := receiver.Wait(); err != nil {
		t.Error(err)
	}
}

package scm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

// listener binds and listens for the length of a test.
func listener(t *testing.T) (path string, fd *scm.FD, ln *scm.Listener) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	fd, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	if err := fd.Listen(16); err != nil {
		t.Fatal(err)
	}
	ln, err = scm.NewListener(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return path, fd, ln
}

func TestABacklogThatIsFull(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	fd, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := fd.Listen(0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c, err := scm.Dial(patient(t), path)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	t.Error("a backlog of 0 took three")
}

func TestPeer(t *testing.T) {
	leak.Check(t)
	path, _, ln := listener(t)
	client, err := scm.Dial(patient(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for name, c := range map[string]*scm.Conn{"client": client, "server": server} {
		p, err := c.Peer()
		if err != nil {
			t.Fatal(err)
		}
		if p.PID != os.Getpid() || int(p.UID) != os.Geteuid() || int(p.GID) != os.Getegid() || p.Unmapped() {
			t.Errorf("%s: the peer is %+v", name, p)
		}
		if want := fmt.Sprintf("pid %d, uid %d, gid %d", os.Getpid(), os.Geteuid(), os.Getegid()); p.String() != want {
			t.Errorf("%s: %q, want %q", name, p, want)
		}
		exited := p.Exited()
		if exited != p.Exited() {
			t.Error("two calls of Exited give two channels")
		}
		for range 2 {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		select {
		case <-exited:
			t.Errorf("%s: this process has exited", name)
		default:
		}
	}
	nobody := scm.Peer{UID: 65534, GID: 7}
	if !nobody.Unmapped() {
		t.Error("the overflow uid counts as an identity")
	}
	if want := "pid unknown, uid 65534, gid 7"; nobody.String() != want {
		t.Errorf("%q, want %q", nobody.String(), want)
	}
}

func init() {
	processes["show groups"] = reexec.Checked(func() error {
		c, err := scm.Dial(context.Background(), os.Args[1])
		if err != nil {
			return err
		}
		_, _, err = c.Receive(context.Background(), 0)
		if err != io.EOF {
			return err
		}
		return nil
	})
}

func TestPeerGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a process other groups")
	}
	for _, n := range []int{0, 3, 500} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			leak.Check(t)
			path, _, ln := listener(t)
			groups := make([]uint32, n)
			for i := range groups {
				groups[i] = uint32(70_000 + i)
			}
			cmd := reexec.Command("show groups", path)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 0, Gid: 0, Groups: groups}}
			reexec.Start(t, cmd)
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			p, err := c.Peer()
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if len(p.Groups) != n || n > 0 && p.Groups[n-1] != uint32(70_000+n-1) {
				t.Errorf("%d groups: %v", len(p.Groups), p.Groups)
			}
		})
	}
}

func init() {
	// A process in namespaces of its own reports what it sees of its peer.
	processes["see a stranger"] = reexec.Checked(func() error {
		c, err := scm.Dial(context.Background(), os.Args[1])
		if err != nil {
			return err
		}
		p, err := c.Peer()
		if err != nil {
			return err
		}
		defer p.Close()
		if p.PID != 0 || !p.Unmapped() {
			return fmt.Errorf("the peer in other namespaces is %s, unmapped %v", p, p.Unmapped())
		}
		return nil
	})
}

func TestPeerInAnotherNamespace(t *testing.T) {
	leak.Check(t)
	path, _, _ := listener(t)
	cmd := reexec.Command("see a stranger", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func init() {
	processes["listen and hand over"] = reexec.Checked(func() error {
		c, err := scm.OpenConn(scm.NewFD(3))
		if err != nil {
			return err
		}
		fd, err := scm.Bind("unix", os.Args[1])
		if err != nil {
			return err
		}
		if err := fd.Listen(16); err != nil {
			return err
		}
		if err := c.Send(context.Background(), nil, fd); err != nil {
			return err
		}
		if _, _, err := c.Receive(context.Background(), 0); err != io.EOF {
			return err
		}
		return nil
	})
}

func TestListenAgainChangesWhoClientsSee(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	c, theirs, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cmd := reexec.Command("listen and hand over", path)
	cmd.ExtraFiles = []*os.File{theirs}
	reexec.Start(t, cmd)
	theirs.Close()
	_, fds, err := c.Receive(patient(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFDs(t, fds)

	seen := func() int {
		t.Helper()
		client, err := scm.Dial(patient(t), path)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		p, err := client.Peer()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		return p.PID
	}
	if pid := seen(); pid != cmd.Process.Pid {
		t.Errorf("clients see %d, not %d, which listened", pid, cmd.Process.Pid)
	}
	if err := fds[0].Listen(16); err != nil {
		t.Fatal(err)
	}
	if pid := seen(); pid != os.Getpid() {
		t.Errorf("clients see %d, not %d, which listened again", pid, os.Getpid())
	}
}

func init() {
	// It dials, leaves a copy of the connection to another process, and waits to
	// be killed. The other ends when its descriptor 4 does.
	processes["leave a copy behind"] = reexec.Checked(func() error {
		c, err := net.Dial("unix", os.Args[1])
		if err != nil {
			return err
		}
		fd, err := scm.DupFD(c.(*net.UnixConn))
		if err != nil {
			return err
		}
		copied, err := fd.File("copy")
		if err != nil {
			return err
		}
		keeper := reexec.Command("keep")
		keeper.ExtraFiles = []*os.File{copied, os.NewFile(3, "life line")}
		if err := keeper.Start(); err != nil {
			return err
		}
		if _, err := c.Write(frame(0, "kept")); err != nil {
			return err
		}
		// Nothing ever comes: the end is a signal.
		_, err = c.Read(make([]byte, 1))
		return fmt.Errorf("outlived its use: %w", err)
	})
	processes["keep"] = reexec.Checked(func() error {
		_, err := io.Copy(io.Discard, os.NewFile(4, "life line"))
		return err
	})
}

func TestExitedFiresThoughTheSocketLivesOn(t *testing.T) {
	leak.Check(t)
	path, _, ln := listener(t)
	r, lifeLine, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer lifeLine.Close()
	cmd := reexec.Command("leave a copy behind", path)
	cmd.ExtraFiles = []*os.File{r}
	reexec.Start(t, cmd)
	r.Close()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := c.Peer()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Exited() == nil {
		t.Skip("this kernel has no SO_PEERPIDFD")
	}
	if payload, _, err := c.Receive(patient(t), 0); err != nil || string(payload) != "kept" {
		t.Fatalf("received %q, %v", payload, err)
	}
	select {
	case <-p.Exited():
		t.Fatal("exited too early")
	default:
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
	if _, _, err := c.Receive(ended(), 0); err != errEnded || c.HungUp() {
		t.Errorf("the copy should keep the connection open: %v", err)
	}
	lifeLine.Close()
	if _, _, err := c.Receive(patient(t), 0); err != io.EOF {
		t.Errorf("the last copy is gone: %v", err)
	}
}

func init() {
	processes["connect and wait"] = reexec.Checked(func() error {
		c, err := scm.Dial(context.Background(), os.Args[1])
		if err != nil {
			return err
		}
		_, _, err = c.Receive(context.Background(), 0) // the end of the test, if not of this process
		return fmt.Errorf("it has not been ended: %w", err)
	})
}

func TestPeerKill(t *testing.T) {
	leak.Check(t)
	path, _, ln := listener(t)
	cmd := reexec.Command("connect and wait", path)
	reexec.Start(t, cmd)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := conn.Peer()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	exited := p.Exited()
	if exited == nil {
		t.Skip("this kernel gives no pidfd of a peer")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	<-exited
	_ = cmd.Wait() // the state says it all
	if w, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || w.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	if err := p.Kill(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Kill of what has ended: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Kill after Close: %v", err)
	}
}

func TestPeerKillOfOneself(t *testing.T) {
	leak.Check(t)
	path, _, _ := listener(t)
	conn, err := scm.Dial(patient(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := conn.Peer()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Exited() == nil {
		t.Skip("this kernel gives no pidfd of a peer")
	}
	if err := p.Kill(); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Kill of oneself: %v", err)
	}
	if err := new(scm.Peer).Kill(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Kill of nobody: %v", err)
	}
}

func TestPeerExecutable(t *testing.T) {
	leak.Check(t)
	path, _, ln := listener(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.Link(exe, copied); err != nil {
		t.Skipf("no second name for this binary: %v", err)
	}
	cmd := reexec.Command("connect and wait", path)
	cmd.Path = copied
	reexec.Start(t, cmd)
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := conn.Peer()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Exited() == nil {
		t.Skip("this kernel gives no pidfd of a peer")
	}
	if got, err := p.Executable(); got != copied || err != nil {
		t.Errorf("it runs %q, %v, not %q", got, err, copied)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Executable(); got != copied+" (deleted)" || err != nil {
		t.Errorf("it runs %q, %v", got, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.Exited()
	if got, err := p.Executable(); got != "" || !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a zombie runs %q, %v", got, err)
	}
	_ = cmd.Wait() // it was killed
	if got, err := p.Executable(); got != "" || !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("what has gone runs %q, %v", got, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Executable(); got != "" || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("after Close: %q, %v", got, err)
	}
	// A number alone is not believed.
	if got, err := (&scm.Peer{PID: os.Getpid()}).Executable(); got != "" || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("by its number: %q, %v", got, err)
	}
}

func init() {
	processes["look at the peer"] = reexec.Checked(func() error {
		c, err := scm.Dial(context.Background(), os.Args[1])
		if err != nil {
			return err
		}
		defer c.Close()
		p, err := c.Peer()
		if err != nil {
			return err
		}
		defer p.Close()
		if got, err := p.Executable(); got != "" || !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("root's process runs %q, %w", got, err)
		}
		return nil
	})
}

func TestPeerExecutableOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	leak.Check(t)
	path, _, ln := listener(t)
	if p, err := ownPeer(t, path, ln); err != nil {
		t.Skipf("this kernel gives no pidfd of a peer: %v", err)
	} else if p == "" {
		t.Error("this process runs nothing")
	}
	for dir := path; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd := reexec.Command("look at the peer", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	// The binary may lie where that user cannot go: it is run by a descriptor.
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	cmd.ExtraFiles, cmd.Path = []*os.File{exe}, "/proc/self/fd/3"
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

// ownPeer connects this process to itself.
func ownPeer(t *testing.T, path string, ln *scm.Listener) (string, error) {
	t.Helper()
	client, err := scm.Dial(patient(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	p, err := server.Peer()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return p.Executable()
}

func TestPeerIn(t *testing.T) {
	p := &scm.Peer{GID: 7, Groups: []uint32{8, 65534}}
	for gid, want := range map[uint32]bool{7: true, 8: true, 9: false, 65534: false} {
		if got := p.In(gid); got != want {
			t.Errorf("in group %d: %t", gid, got)
		}
	}
	if (&scm.Peer{GID: 65534}).In(65534) {
		t.Error("the overflow gid has a member")
	}
}

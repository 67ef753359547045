//go:build unix

package scm_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

// dup duplicates c for the length of a test.
func dup(t testing.TB, c syscall.Conn) *scm.FD {
	t.Helper()
	fd, err := scm.DupFD(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

// ask calls fn with the number behind c.
func ask[T any](t testing.TB, c syscall.Conn, fn func(fd int) (T, error)) T {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v T
	var fnErr error
	if err := raw.Control(func(fd uintptr) { v, fnErr = fn(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if fnErr != nil {
		t.Fatal(fnErr)
	}
	return v
}

func nonblocking(fd int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return flags&unix.O_NONBLOCK != 0, err
}

func closeOnExec(fd int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return flags&unix.FD_CLOEXEC != 0, err
}

// askFD is ask for an FD.
func askFD[T any](t testing.TB, f *scm.FD, fn func(fd int) (T, error)) T {
	t.Helper()
	var v T
	var fnErr error
	if err := f.Control(func(fd uintptr) { v, fnErr = fn(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if fnErr != nil {
		t.Fatal(fnErr)
	}
	return v
}

func TestFDsAreCloseOnExec(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	num, err := unix.Dup(ask(t, r, func(fd int) (int, error) { return fd, nil }))
	if err != nil {
		t.Fatal(err)
	}
	taken := scm.NewFD(num)
	defer taken.Close()
	duplicate := dup(t, r)
	second, err := duplicate.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := a.Send(patient(t), nil, duplicate); err != nil {
		t.Fatal(err)
	}
	_, received, err := b.Receive(patient(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFDs(t, received)
	bound, err := scm.Bind("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer bound.Close()
	for name, fd := range map[string]*scm.FD{
		"NewFD": taken, "DupFD": duplicate, "Dup": second, "Receive": received[0], "Bind": bound,
	} {
		if !askFD(t, fd, closeOnExec) {
			t.Errorf("what comes from %s survives exec", name)
		}
	}
	file, err := taken.File("file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if !ask(t, file, closeOnExec) {
		t.Error("a File survives exec")
	}
	ours, theirs, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	if !ask(t, theirs, closeOnExec) {
		t.Error("theirs survives the exec of others")
	}
	if ask(t, theirs, nonblocking) {
		t.Error("theirs is nonblocking")
	}
}

func TestFDClose(t *testing.T) {
	leak.Check(t)
	dog := newCanary(t)
	fd := dog.fds(1)[0]

	inside, leave := make(chan struct{}), make(chan struct{})
	var using sync.WaitGroup
	using.Go(func() {
		err := fd.Control(func(num uintptr) {
			close(inside)
			<-leave
			if _, err := unix.FcntlInt(num, unix.F_GETFD, 0); err != nil {
				t.Errorf("closed during a use: %v", err)
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	for range 2 {
		if err := fd.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := fd.Control(func(uintptr) { t.Error("used after Close") }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Control after Close gave %v", err)
	}
	close(leave)
	using.Wait()
	dog.requireClosed()

	for name, use := range map[string]func() error{
		"Dup":        func() error { _, err := fd.Dup(); return err },
		"File":       func() error { _, err := fd.File(""); return err },
		"Listener":   func() error { _, err := fd.Listener(); return err },
		"PacketConn": func() error { _, err := fd.PacketConn(); return err },
		"Conn":       func() error { _, err := fd.Conn(); return err },
		"Listen":     func() error { return fd.Listen(1) },
		"Identify":   func() error { _, err := fd.Identify(); return err },
		"OpenConn":   func() error { _, err := scm.OpenConn(fd); return err },
		"NewListener": func() error {
			_, err := scm.NewListener(fd)
			return err
		},
	} {
		if err := use(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close gave %v", name, err)
		}
	}
}

func TestFDCloseFromMany(t *testing.T) {
	leak.Check(t)
	dog := newCanary(t)
	fd := dog.fds(1)[0]
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				d, err := fd.Dup()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
			}
		})
	}
	all.Go(func() { fd.Close() })
	all.Wait()
	dog.requireClosed()
}

// O_NONBLOCK is shared with another process: nothing that is done here may
// change it on a socket that this one did not make.
func TestNonblockIsLeftAlone(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	a, b := pair(t)

	for _, tt := range []struct {
		name string
		c    syscall.Conn
		use  func(fd *scm.FD) (interface{ Close() error }, error)
	}{
		{"Listener", ln.(syscall.Conn), func(fd *scm.FD) (interface{ Close() error }, error) { return fd.Listener() }},
		{"Conn", client.(syscall.Conn), func(fd *scm.FD) (interface{ Close() error }, error) { return fd.Conn() }},
		{"PacketConn", packets.(syscall.Conn), func(fd *scm.FD) (interface{ Close() error }, error) { return fd.PacketConn() }},
	} {
		fd := dup(t, tt.c)
		requireNonblocking := func(after string) {
			t.Helper()
			if !ask(t, tt.c, nonblocking) {
				t.Fatalf("%s: %s has put the socket into blocking mode", tt.name, after)
			}
		}
		requireNonblocking("DupFD")
		file, err := fd.File("socket")
		if err != nil {
			t.Fatal(err)
		}
		requireNonblocking("File")
		file.Close()
		got, err := tt.use(fd)
		if err != nil {
			t.Fatal(err)
		}
		requireNonblocking(tt.name)
		got.Close()
		requireNonblocking("Close")
		if err := a.Send(patient(t), nil, fd); err != nil {
			t.Fatal(err)
		}
		_, received, err := b.Receive(patient(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		requireNonblocking("Send")
		closeFDs(t, received)
		closeFDs(t, []*scm.FD{fd})
	}

	theirs, theirsPeer, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	defer theirsPeer.Close()
	fd := dup(t, theirsPeer)
	defer fd.Close()
	file, err := fd.File("blocking socket")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := a.Send(patient(t), nil, fd); err != nil {
		t.Fatal(err)
	}
	_, received, err := b.Receive(patient(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFDs(t, received)
	if ask(t, theirsPeer, nonblocking) {
		t.Error("a blocking socket became nonblocking by being passed")
	}
}

func TestConnectionsOfAReceivedDescriptorWork(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fd := dup(t, ln.(syscall.Conn))
	ln.Close()
	again, err := fd.Listener()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, ok := again.(*net.TCPListener); !ok {
		t.Errorf("the listener is a %T", again)
	}
	closeFDs(t, []*scm.FD{fd})
	client, err := net.Dial("tcp", again.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := again.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	moved := dup(t, server.(syscall.Conn))
	server.Close()
	c, err := moved.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	closeFDs(t, []*scm.FD{moved})
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestADescriptorIsOnlyUsedAsWhatItIs(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	path := filepath.Join(t.TempDir(), "s")
	bound, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer bound.Close()
	for _, tt := range []struct {
		name string
		err  func() error
		want string
	}{
		{"Listener of a file", func() error { _, err := dup(t, dir).Listener(); return err }, "neither socket"},
		{"Listener of a packet socket", func() error { _, err := dup(t, packets.(syscall.Conn)).Listener(); return err }, "a udp socket on 127.0.0.1:"},
		{"Listener of a socket that does not listen", func() error { _, err := bound.Listener(); return err }, "a unix socket on " + path},
		{"NewListener of TCP", func() error { _, err := scm.NewListener(dup(t, ln.(syscall.Conn))); return err }, "a listening tcp socket on 127.0.0.1:"},
		{"PacketConn of a listener", func() error { _, err := dup(t, ln.(syscall.Conn)).PacketConn(); return err }, "a listening tcp socket"},
		{"Conn of a listener", func() error { _, err := dup(t, ln.(syscall.Conn)).Conn(); return err }, "a listening tcp socket"},
		{"Conn of a file", func() error { _, err := dup(t, dir).Conn(); return err }, "neither socket"},
		{"OpenConn of TCP", func() error { _, err := scm.OpenConn(dup(t, ln.(syscall.Conn))); return err }, "a listening tcp socket"},
		{"OpenConn of a socket that is not connected", func() error {
			d, err := bound.Dup()
			if err != nil {
				return err
			}
			_, err = scm.OpenConn(d)
			return err
		}, "getpeername"},
		{"OpenConn of a file", func() error { _, err := scm.OpenConn(dup(t, dir)); return err }, "neither socket"},
	} {
		if err := tt.err(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s gave %v, want %q in it", tt.name, err, tt.want)
		}
	}
	gram, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "g"))
	if err != nil {
		t.Fatal(err)
	}
	fd := dup(t, gram.(syscall.Conn))
	gram.Close()
	p, err := fd.PacketConn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := scm.NewConn(p.(*net.UnixConn)); !errors.Is(err, unix.EPROTOTYPE) {
		t.Errorf("NewConn of a packet socket gave %v", err)
	}
}

func TestBind(t *testing.T) {
	leak.Check(t)
	t.Chdir(t.TempDir())
	t.Run("listens and answers", func(t *testing.T) {
		fd, err := scm.Bind("unix", "socket")
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		if !askFD(t, fd, nonblocking) {
			t.Error("is in blocking mode")
		}
		if _, err := scm.Dial(patient(t), "socket"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dialling before listen gave %v", err)
		}
		if err := fd.Listen(1); err != nil {
			t.Fatal(err)
		}
		ln, err := scm.NewListener(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		client, err := scm.Dial(patient(t), "socket")
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if err := client.Send(patient(t), []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if payload, _, err := server.Receive(patient(t), 0); err != nil || string(payload) != "hello" {
			t.Errorf("received %q, %v", payload, err)
		}
		if _, err := scm.Bind("unix", "socket"); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("binding the path again gave %v", err)
		}
	})
	if _, err := os.Lstat("socket"); err != nil {
		t.Errorf("closing has removed the path: %v", err)
	}
	if _, err := scm.Dial(patient(t), "socket"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dialling what nobody listens on gave %v", err)
	}
	if _, err := scm.Dial(patient(t), "nothing"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("dialling nothing gave %v", err)
	}
	if _, err := scm.Dial(ended(), "socket"); err != errEnded {
		t.Errorf("dialling too late gave %v", err)
	}
	longest, err := scm.Bind("unix", strings.Repeat("p", scm.MaxPath))
	if err != nil {
		t.Fatalf("the longest path: %v", err)
	}
	longest.Close()
	for _, tt := range []struct {
		name, path string
		want       error
	}{
		{"empty", "", unix.EINVAL},
		{"abstract", "@crossfade", unix.EINVAL},
		{"with a zero byte", "a\x00b", unix.EINVAL},
		{"too long", strings.Repeat("p", scm.MaxPath+1), unix.ENAMETOOLONG},
	} {
		if _, err := scm.Bind("unix", tt.path); !errors.Is(err, tt.want) {
			t.Errorf("Bind, %s: %v", tt.name, err)
		}
		if _, err := scm.Dial(context.Background(), tt.path); !errors.Is(err, tt.want) {
			t.Errorf("Dial, %s: %v", tt.name, err)
		}
	}
	var unknown net.UnknownNetworkError
	if _, err := scm.Bind("tcp", "x"); !errors.As(err, &unknown) {
		t.Errorf("an unknown network gave %v", err)
	}
	if _, err := scm.Bind("unix", "no/such/dir"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a missing directory gave %v", err)
	}
}

func TestListenerClose(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	fd, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := fd.Listen(8); err != nil {
		t.Fatal(err)
	}
	ln, err := scm.NewListener(fd)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1) // one result
	go func() {
		_, err := ln.Accept()
		accepted <- err
	}()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept gave %v", err)
	}
	// The socket itself is the caller's and still there.
	client, err := scm.Dial(patient(t), path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	again, err := scm.NewListener(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	server, err := again.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
}

func TestIdentify(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	listen := func(network, address string) syscall.Conn {
		t.Helper()
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln.(syscall.Conn)
	}
	packets := func(network, address string) syscall.Conn {
		t.Helper()
		p, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p.(syscall.Conn)
	}
	file := func(f *os.File, err error) syscall.Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	tests := []struct {
		name string
		c    syscall.Conn
		want scm.Identity // without what differs from run to run
	}{
		{"TCP over IPv4", listen("tcp4", "127.0.0.1:0"), scm.Identity{Type: scm.TypeSocket, Domain: unix.AF_INET, SockType: unix.SOCK_STREAM, Listening: true, Network: "tcp"}},
		{"UDP", packets("udp4", "127.0.0.1:0"), scm.Identity{Type: scm.TypeSocket, Domain: unix.AF_INET, SockType: unix.SOCK_DGRAM, Network: "udp"}},
		{"unix", listen("unix", filepath.Join(dir, "s")), scm.Identity{Type: scm.TypeSocket, Domain: unix.AF_UNIX, SockType: unix.SOCK_STREAM, Listening: true, Network: "unix"}},
		{"unixgram", packets("unixgram", filepath.Join(dir, "g")), scm.Identity{Type: scm.TypeSocket, Domain: unix.AF_UNIX, SockType: unix.SOCK_DGRAM, Network: "unixgram"}},
		{"regular file", file(os.Create(filepath.Join(dir, "f"))), scm.Identity{Type: scm.TypeRegular}},
		{"directory", file(os.Open(dir)), scm.Identity{Type: scm.TypeOther}},
		{"device", file(os.Open(os.DevNull)), scm.Identity{Type: scm.TypeOther}},
		{"pipe", file(r, nil), scm.Identity{Type: scm.TypePipe}},
	}
	if ln, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		ln.Close()
		tests = append(tests, struct {
			name string
			c    syscall.Conn
			want scm.Identity
		}{"TCP over IPv6", listen("tcp6", "[::1]:0"), scm.Identity{Type: scm.TypeSocket, Domain: unix.AF_INET6, SockType: unix.SOCK_STREAM, Listening: true, Network: "tcp"}})
	}
	seen := make(map[scm.Identity]string)
	for _, tt := range tests {
		fd := dup(t, tt.c)
		id, err := fd.Identify()
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		address := ""
		switch c := tt.c.(type) {
		case net.Listener:
			address = c.Addr().String()
		case net.PacketConn:
			address = c.LocalAddr().String()
		}
		if id.Address != address {
			t.Errorf("%s: the address is %q, package net says %q", tt.name, id.Address, address)
		}
		second, err := fd.Dup()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := second.Identify(); err != nil || again != id {
			t.Errorf("%s: a duplicate is %+v, not %+v, %v", tt.name, again, id, err)
		}
		closeFDs(t, []*scm.FD{fd, second})
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s have one identity", tt.name, other)
		}
		seen[id] = tt.name
		id.Protocol, id.Address, id.Cookie, id.Dev, id.Ino = 0, "", 0, 0, 0
		if id != tt.want {
			t.Errorf("%s is %+v, want %+v", tt.name, id, tt.want)
		}
	}
}

//go:build unix

package tableflip_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/tableflip"
)

// What one generation tells the next goes through the environment, which Upgrade
// passes on.
const (
	dirEnv     = "TEST_TABLEFLIP_DIR"
	addressEnv = "TEST_TABLEFLIP_ADDRESS"
)

// rawSockets shows packet conns that cannot pause.
const rawSockets = "raw sockets"

// services are the programs of TestHandover, by what they show. What a
// generation expects and does not get ends it, and so the upgrade or the test.
var services = map[string]service{
	"listeners": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			for i, a := range listenerAddresses() {
				ln, err := u.Listen(a[0], a[1])
				check(err)
				tell(i, ln.Addr().String())
				check(ln.Close())
			}
		}},
		{prepare: func(u *tableflip.Upgrader) {
			for i, a := range listenerAddresses() {
				addr := told(i)
				ln, err := u.Listener(a[0], addr)
				check(err)
				expect(ln != nil, "%s %s is missing", a[0], addr)
				expect(ln.Addr().String() == addr, "the address of %s is %s", addr, ln.Addr())
				again, err := u.Listener(a[0], addr)
				expect(again == nil && err == nil, "asked for twice, %s is %v, %v", addr, again, err)
			}
		}},
		{prepare: func(u *tableflip.Upgrader) { // what was taken over is handed on
			for i, a := range listenerAddresses() {
				ln, err := u.ListenWithCallback(a[0], told(i), func(string, string) (net.Listener, error) {
					return nil, errors.New("the callback is called for what is inherited")
				})
				check(err)
				expect(ln.Addr().String() == told(i), "the address of %s is %s", told(i), ln.Addr())
			}
		}},
	}},
	"packet conns": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			for i, a := range packetAddresses() {
				pc, err := u.ListenPacket(a[0], a[1])
				check(err)
				tell(i, pc.LocalAddr().String())
				check(pc.Close())
			}
		}},
		{prepare: func(u *tableflip.Upgrader) {
			for i, a := range packetAddresses() {
				addr := told(i)
				pc, err := u.PacketConn(a[0], addr)
				check(err)
				expect(pc != nil, "%s %s is missing", a[0], addr)
				expect(pc.LocalAddr().String() == addr, "the address of %s is %s", addr, pc.LocalAddr())
				again, err := u.PacketConn(a[0], addr)
				expect(again == nil && err == nil, "asked for twice, %s is %v, %v", addr, again, err)
			}
		}},
		{prepare: func(u *tableflip.Upgrader) {
			for i, a := range packetAddresses() {
				pc, err := u.ListenPacketWithCallback(a[0], told(i), func(string, string) (net.PacketConn, error) {
					return nil, errors.New("the callback is called for what is inherited")
				})
				check(err)
				expect(pc.LocalAddr().String() == told(i), "the address of %s is %s", told(i), pc.LocalAddr())
			}
		}},
	}},
	rawSockets: {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			pc, err := u.ListenPacket("ip4:icmp", "127.0.0.1")
			check(err)
			check(pc.Close())
		}},
		{prepare: takeRaw},
		{prepare: takeRaw},
	}},
	"port 0 opens another one": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			for i := range 2 {
				ln, err := u.Listen("tcp", "localhost:0")
				check(err)
				tell(i, ln.Addr().String())
			}
		}},
		{prepare: func(u *tableflip.Upgrader) {
			ln, err := u.Listen("tcp", "localhost:0")
			check(err)
			expect(ln.Addr().String() != told(0) && ln.Addr().String() != told(1), "it was inherited")
			for i := range 2 {
				ln, err := u.Listen("tcp", told(i))
				check(err)
				expect(ln.Addr().String() == told(i), "the address of %s is %s", told(i), ln.Addr())
			}
		}},
	}},
	"connections, in every generation, though each closes its own": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			check(err)
			ours, err := net.Dial("tcp", ln.Addr().String())
			check(err)
			theirs, err := ln.Accept()
			check(err)
			check(ln.Close())
			check(u.AddConn("tcp", "server", theirs.(*net.TCPConn)))
			check(u.AddConn("tcp", "client", ours.(*net.TCPConn)))
			check(errors.Join(ours.Close(), theirs.Close()))
		}},
		{prepare: useConns},
		{prepare: useConns},
	}},
	"files": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			r, w, err := os.Pipe()
			check(err)
			check(u.AddFile("read", r))
			check(u.AddFile("write", w))
			check(errors.Join(r.Close(), w.Close()))
		}},
		{prepare: func(u *tableflip.Upgrader) {
			files, err := u.Files()
			check(err)
			expect(names(files) == "fd:read: fd:write:", "the files are %s", names(files))
			again, err := u.Files()
			expect(len(again) == 0 && err == nil, "asked for twice, the files are %v, %v", again, err)
			file, err := u.File("read")
			expect(file == nil && err == nil, "asked for twice, a file is %v, %v", file, err)
			_, err = io.WriteString(files[1], "from one to the other")
			check(err)
			check(errors.Join(files[0].Close(), files[1].Close()))
		}},
		{prepare: func(u *tableflip.Upgrader) {
			r, err := u.File("read")
			check(err)
			expect(r != nil, "the file was not handed on")
			expectRead(r, "from one to the other")
			check(r.Close())
		}},
	}},
	"sockets as files": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			check(err)
			ours, err := net.Dial("tcp", ln.Addr().String())
			check(err)
			theirs, err := ln.Accept()
			check(err)
			for name, c := range map[string]net.Conn{"client": ours, "server": theirs} {
				file, err := c.(*net.TCPConn).File()
				check(err)
				check(u.AddFile(name, file))
				check(errors.Join(file.Close(), c.Close()))
			}
		}},
		{prepare: func(u *tableflip.Upgrader) {
			client, err := u.File("client")
			check(err)
			expect(client != nil, "the socket is missing")
			_, err = io.WriteString(client, "hello")
			check(err)
			check(client.Close())
		}},
		{prepare: func(u *tableflip.Upgrader) {
			server, err := u.File("server")
			expect(server == nil && err == nil, "what the second generation did not ask for is %v, %v", server, err)
			files, err := u.Files()
			check(err)
			expect(len(files) == 1, "the files are %s", names(files))
			check(files[0].Close())
		}},
	}},
	"a replacement": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			for i := range 2 {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				check(err)
				check(u.AddListener("tcp", "web", ln.(*net.TCPListener)))
				tell(i, ln.Addr().String())
				pc, err := net.ListenPacket("udp", "127.0.0.1:0")
				check(err)
				check(u.AddPacketConn("udp", "dns", pc.(*net.UDPConn)))
				tell(2+i, pc.LocalAddr().String())
			}
		}},
		{prepare: func(u *tableflip.Upgrader) {
			ln, err := u.Listener("tcp", "web")
			check(err)
			expect(ln != nil && ln.Addr().String() == told(1), "the listener is %v", ln)
			pc, err := u.PacketConn("udp", "dns")
			check(err)
			expect(pc != nil && pc.LocalAddr().String() == told(3), "the packet conn is %v", pc)
		}},
	}},
	"names of all sorts": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			for _, name := range oddNames {
				r, w, err := os.Pipe()
				check(err)
				_, err = io.WriteString(w, name)
				check(err)
				check(u.AddFile(name, r))
				check(errors.Join(r.Close(), w.Close()))
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			check(err)
			check(u.AddListener("a:b", "c", ln.(*net.TCPListener)))
		}},
		{prepare: func(u *tableflip.Upgrader) {
			for _, name := range oddNames {
				r, err := u.File(name)
				check(err)
				expect(r != nil, "%q is missing", name)
				expectRead(r, name)
			}
			ln, err := u.Listener("a", "b:c")
			expect(ln == nil && err == nil, "another address is %v, %v", ln, err)
			ln, err = u.Listener("a:b", "c")
			check(err)
			expect(ln != nil, "a network with a colon is missing")
		}},
	}},
	"kinds do not mix": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			check(err)
			check(u.AddListener("tcp", "x", ln.(*net.TCPListener)))
		}},
		{prepare: func(u *tableflip.Upgrader) {
			c, err := u.Conn("tcp", "x")
			expect(c == nil && err == nil, "as a connection it is %v, %v", c, err)
			pc, err := u.PacketConn("tcp", "x")
			expect(pc == nil && err == nil, "as a packet conn it is %v, %v", pc, err)
			ln, err := u.Listener("tcp4", "x")
			expect(ln == nil && err == nil, "of another network it is %v, %v", ln, err)
			ln, err = u.Listener("tcp", "x")
			check(err)
			expect(ln != nil, "it is missing")
		}},
	}},
	"what is not asked for": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			for i, name := range []string{"used", "unused"} {
				ln, err := u.Listen("unix", inDir(name))
				check(err)
				tell(i, ln.Addr().String())
			}
			ln, err := u.Listen("tcp", "127.0.0.1:0")
			check(err)
			tell(2, ln.Addr().String())
		}},
		{
			prepare: func(u *tableflip.Upgrader) {
				_, err := u.Listen("unix", inDir("used"))
				check(err)
			},
			alone: func(u *tableflip.Upgrader) {
				ln, err := u.Listener("tcp", told(2))
				expect(ln == nil && err == nil, "after Ready it is %v, %v", ln, err)
				_, err = net.Dial("tcp", told(2))
				expect(err != nil, "its socket is still open")
				_, err = os.Stat(inDir("unused"))
				expect(errors.Is(err, fs.ErrNotExist), "its path is still there: %v", err)
				c, err := net.Dial("unix", inDir("used"))
				check(err)
				check(c.Close())
			},
		},
		{alone: func(*tableflip.Upgrader) { // now nobody asks for the other one either
			_, err := os.Stat(inDir("used"))
			expect(errors.Is(err, fs.ErrNotExist), "its path is still there: %v", err)
		}},
	}},
	"the only difference: Accept delivers nothing before Ready": {generations: []generation{
		{
			prepare: func(u *tableflip.Upgrader) {
				ln, err := u.Listen("tcp", "127.0.0.1:0")
				check(err)
				tell(0, ln.Addr().String())
				go answer(ln, "predecessor")
			},
		},
		{
			prepare: func(u *tableflip.Upgrader) {
				ln, err := u.Listen("tcp", told(0))
				check(err)
				go answer(ln, "successor")
				for range 20 {
					expectServed("predecessor")
				}
			},
			// Not before: both may accept until the predecessor has heard of it.
			alone: func(*tableflip.Upgrader) { expectServed("successor") },
		},
	}},
	"an added listener is not paused": {generations: []generation{
		{
			prepare: func(u *tableflip.Upgrader) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				check(err)
				check(u.AddListener("tcp", "added", ln.(*net.TCPListener)))
				tell(0, ln.Addr().String())
				go answer(ln, "predecessor")
			},
			leave: func(*tableflip.Upgrader) { expectServed("predecessor") },
		},
		{prepare: func(u *tableflip.Upgrader) {
			ln, err := u.Listener("tcp", "added")
			check(err)
			expect(ln != nil, "it is missing")
		}},
	}},
	"the directory that a process starts in": {generations: []generation{
		{prepare: func(*tableflip.Upgrader) {
			dir, err := os.Getwd()
			check(err)
			check(os.Setenv(dirEnv, dir))
			check(os.Chdir("/"))
		}},
		{prepare: func(*tableflip.Upgrader) {
			dir, err := os.Getwd()
			check(err)
			expect(dir == os.Getenv(dirEnv), "it is %s", dir)
		}},
	}},
	"the PID file": {
		options: tableflip.Options{PIDFile: "pid"},
		generations: []generation{
			{serve: expectPIDFile},
			{serve: expectPIDFile},
			{serve: expectPIDFile},
		},
	},
	"waiting for the parent": {generations: []generation{
		{
			prepare: addLine,
			leave: func(*tableflip.Upgrader) {
				_, err := predecessorsEnd.Read(make([]byte, 1)) // until the successor says so
				check(err)
			},
		},
		{
			serve: func(u *tableflip.Upgrader) {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				err := u.WaitForParent(ctx)
				expect(err == context.Canceled, "WaitForParent: %v", err)
				err = u.Upgrade()
				expect(err != nil && err.Error() == "parent hasn't exited", "Upgrade: %v", err)
				expect(errors.Is(err, crossfade.ErrNotReady), "Upgrade: %v does not match ErrNotReady", err)
				_, err = successorsEnd.Write([]byte("x"))
				check(err)
			},
			prepare: func(u *tableflip.Upgrader) {
				var err error
				successorsEnd, err = u.File("line")
				check(err)
			},
			alone: func(u *tableflip.Upgrader) {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				check(u.WaitForParent(ctx)) // it is known
			},
		},
	}},
	"Upgrade after an upgrade": {generations: []generation{
		{leave: func(u *tableflip.Upgrader) {
			err := u.Upgrade()
			expect(err != nil && err.Error() == "already upgraded", "Upgrade: %v", err)
			expect(errors.Is(err, crossfade.ErrRetired), "Upgrade: %v does not match ErrRetired", err)
			u.Stop()
			err = u.Upgrade()
			expect(errors.Is(err, crossfade.ErrRetired), "after Stop too, Upgrade: %v", err)
		}},
		{},
	}},
	"one Upgrader to a process": {generations: []generation{
		{prepare: func(u *tableflip.Upgrader) {
			again, err := tableflip.New(tableflip.Options{})
			expect(again == nil && err != nil, "a second New is %v, %v", again, err)
			u.Stop()
			again, err = tableflip.New(tableflip.Options{})
			expect(again == nil && err != nil, "after Stop, a second New is %v, %v", again, err)
			fmt.Println("done")
			os.Exit(0)
		}},
	}},
}

func init() {
	for name, s := range services {
		register(name, s)
	}
}

func TestHandover(t *testing.T) {
	for name := range services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == rawSockets && os.Geteuid() != 0 {
				t.Skip("only root may open a raw socket")
			}
			start(t, name, dirEnv+"="+shortDir(t)).finish(t)
		})
	}
}

func listenerAddresses() [][2]string {
	addresses := [][2]string{{"tcp", "localhost:0"}, {"tcp", "127.0.0.1:"}, {"tcp4", ":0"}, {"unix", inDir("stream")}}
	if runtime.GOOS == "linux" { // seqpacket, abstract and chosen names
		addresses = append(addresses, [2]string{"unixpacket", inDir("packet")}, [2]string{"unix", "@" + inDir("abstract")},
			[2]string{"unix", ""}, [2]string{"unixpacket", ""})
	}
	return addresses
}

func packetAddresses() [][2]string {
	addresses := [][2]string{{"udp", "localhost:0"}, {"udp4", "127.0.0.1:0"}, {"unixgram", inDir("packets")}}
	if runtime.GOOS == "linux" {
		addresses = append(addresses, [2]string{"unixgram", "@" + inDir("abstract")}, [2]string{"unixgram", ""})
	}
	return addresses
}

func takeRaw(u *tableflip.Upgrader) {
	pc, err := u.PacketConn("ip4:icmp", "127.0.0.1")
	check(err)
	expect(pc != nil && pc.LocalAddr().String() == "127.0.0.1", "the raw socket is %v", pc)
	check(pc.Close())
}

var oddNames = []string{
	"", ":", "a:b", "two words", "ünïcode", "new\nline", "\xff is no UTF-8",
	strings.Repeat("x", 196), strings.Repeat("x", 197), strings.Repeat("x", 198), "/a/path",
}

func inDir(name string) string { return filepath.Join(os.Getenv(dirEnv), name) }

// tell keeps the i-th address for the next generations.
func tell(i int, address string) { check(os.Setenv(fmt.Sprint(addressEnv, i), address)) }

func told(i int) string { return os.Getenv(fmt.Sprint(addressEnv, i)) }

func names(files []*os.File) string {
	var names []string
	for _, file := range files {
		names = append(names, file.Name())
	}
	return strings.Join(names, " ")
}

func expectRead(r io.Reader, want string) {
	got := make([]byte, len(want))
	_, err := io.ReadFull(r, got)
	check(err)
	expect(string(got) == want, "read %q instead of %q", got, want)
}

// useConns talks through the two connections that the first generation made.
func useConns(u *tableflip.Upgrader) {
	client, err := u.Conn("tcp", "client")
	check(err)
	expect(client != nil, "a connection is missing")
	server, err := u.Conn("tcp", "server")
	check(err)
	expect(server != nil, "a connection is missing")
	again, err := u.Conn("tcp", "client")
	expect(again == nil && err == nil, "asked for twice, it is %v, %v", again, err)
	_, err = io.WriteString(client, "hello")
	check(err)
	expectRead(server, "hello")
	check(errors.Join(client.Close(), server.Close()))
}

// answer tells each client who has accepted it.
func answer(ln net.Listener, who string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, who)
		_ = c.Close()
	}
}

func expectServed(want string) {
	c, err := net.Dial("tcp", told(0))
	check(err)
	defer c.Close()
	check(c.SetDeadline(time.Now().Add(patience)))
	got, err := io.ReadAll(c)
	check(err)
	expect(string(got) == want, "served by %q instead of the %s", got, want)
}

// expectPIDFile expects this process's pid in the PID file, in the directory
// that the first generation started in.
func expectPIDFile(*tableflip.Upgrader) {
	content, err := os.ReadFile("pid")
	check(err)
	expect(strings.TrimSpace(string(content)) == fmt.Sprint(os.Getpid()), "the PID file of %d has %q", os.Getpid(), content)
	entries, err := os.ReadDir(".")
	check(err)
	expect(!slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "pid" }), "the directory has %v", entries)
}

// The ends of a pipe from the second generation to the first.
var predecessorsEnd, successorsEnd *os.File

func addLine(u *tableflip.Upgrader) {
	r, w, err := os.Pipe()
	check(err)
	check(u.AddFile("line", w))
	check(w.Close())
	predecessorsEnd = r
}

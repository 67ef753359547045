//go:build unix

package crossfade_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/leak"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// newUpgrader is an Upgrader in the test's own process. The end of the test
// stops it.
func newUpgrader(t testing.TB, cfg *crossfade.Config) *crossfade.Upgrader {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	upg, err := crossfade.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(upg.Stop)
	return upg
}

// socketDir is a directory with a path short enough for unix sockets: t.TempDir has the
// name of the test in it.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "crossfade")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// listen opens a listener or packet conn for the length of the test and returns
// its address.
func listen(t testing.TB, upg *crossfade.Upgrader, name, network, address string) (string, error) {
	t.Helper()
	if strings.HasPrefix(network, "udp") || network == "unixgram" {
		pc, err := upg.ListenPacket(t.Context(), name, network, address)
		if err != nil {
			return "", err
		}
		t.Cleanup(func() { pc.Close() })
		return pc.LocalAddr().String(), nil
	}
	ln, err := upg.Listen(t.Context(), name, network, address)
	if err != nil {
		return "", err
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String(), nil
}

// origin is where the descriptor of that name came from, 0 if there is none.
func origin(upg *crossfade.Upgrader, name string) handoff.Origin {
	for _, d := range upg.Fds().All() {
		if d.Name == name && d.Origin != handoff.OriginUnclaimed {
			return d.Origin
		}
	}
	return 0
}

// TestAddressesAreComparedAfterResolution: P in an address is a port, and DIR a
// directory.
func TestAddressesAreComparedAfterResolution(t *testing.T) {
	const (
		same  = "the inherited one"
		inUse = "the inherited one is in the way"
		fresh = "another one"
	)
	for _, test := range []struct {
		network, first string
		wanted         string // network
		address        string
		want           string
	}{
		{"tcp", ":P", "tcp", ":P", same},
		{"tcp", ":P", "tcp", "[::]:P", same},
		{"tcp", ":P", "tcp", "0.0.0.0:P", same},
		{"tcp", ":P", "tcp", ":0", same},
		{"tcp", "[::]:P", "tcp", ":P", same},
		{"tcp", "0.0.0.0:P", "tcp", "0.0.0.0:P", same},
		{"tcp4", ":P", "tcp4", "0.0.0.0:P", same},
		{"tcp4", "0.0.0.0:P", "tcp4", ":P", same},
		{"tcp6", ":P", "tcp6", "[::]:P", same},
		{"tcp", ":P", "tcp4", ":P", inUse},
		{"tcp4", ":P", "tcp", ":P", inUse},
		{"tcp", ":P", "tcp6", ":P", inUse},
		{"tcp", ":P", "tcp", "127.0.0.1:P", inUse},
		{"tcp", "127.0.0.1:P", "tcp", ":P", inUse},
		{"tcp", "127.0.0.1:P", "tcp", "localhost:P", same},
		{"tcp", "localhost:P", "tcp", "127.0.0.1:P", same},
		{"tcp", "127.0.0.1:P", "tcp4", "127.0.0.1:P", same},
		{"tcp4", "127.0.0.1:P", "tcp", "127.0.0.1:P", same},
		{"tcp", "127.0.0.1:P", "tcp", "[::ffff:127.0.0.1]:P", same},
		{"tcp6", "[::1]:P", "tcp", "[::1]:P", same},
		{"tcp", "127.0.0.1:P", "tcp", "127.0.0.1:0", same},
		{"tcp", "127.0.0.1:P", "tcp", "[::1]:0", fresh},
		{"udp", ":P", "udp", "[::]:P", same},
		{"udp", "0.0.0.0:P", "udp", "0.0.0.0:P", same},
		{"udp", "127.0.0.1:P", "udp4", "localhost:P", same},
		{"udp4", ":P", "udp", ":P", inUse},
		{"unix", "DIR/a", "unix", "DIR/a", same},
		{"unix", "DIR/a", "unix", "DIR/./a", same},
		{"unix", "DIR/a", "unix", "DIR/b", fresh},
		{"unix", "DIR/a", "unixpacket", "DIR/a", inUse},
		{"unixgram", "DIR/a", "unixgram", "DIR/a", same},
	} {
		name := fmt.Sprintf("%s %s, then %s %s", test.network, test.first, test.wanted, test.address)
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			leak.Check(t)
			dir := socketDir(t)
			place := strings.NewReplacer("DIR", dir, "P", freePort(t))
			cfg := crossfade.Config{Socket: filepath.Join(dir, "control")}
			old := newUpgrader(t, &cfg)
			got, err := listen(t, old, "web", test.network, place.Replace(test.first))
			if err != nil {
				t.Fatal(err)
			}
			if err := old.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			next := newUpgrader(t, &cfg)
			again, err := listen(t, next, "web", test.wanted, place.Replace(test.address))
			switch test.want {
			case same:
				if err != nil || origin(next, "web") != handoff.OriginInherited || again != got {
					t.Errorf("got %s (%v), %v, want the inherited %s", again, origin(next, "web"), err, got)
				}
			case fresh:
				if err != nil || origin(next, "web") != handoff.OriginAdded || again == got {
					t.Errorf("got %s (%v), %v, want a new one", again, origin(next, "web"), err)
				}
			case inUse:
				if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), `has inherited "web" on `) {
					t.Errorf("got %s, %v, want EADDRINUSE that names what is in the way", again, err)
				}
			}
		})
	}
}

// TestAnotherAddressReplacesTheOld: the old one is closed at Commit, and both
// sides say so.
func TestAnotherAddressReplacesTheOld(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := d.launch(web(d).ready())
	before := old.address("web")
	old.expect("ready")
	moved := web(d)
	moved.Sockets[0].Address = net.JoinHostPort(loopback, freePort(t))
	next := d.launch(moved)
	after := next.address("web")
	if after == before {
		t.Fatalf("still on %s", after)
	}
	if a := ask(t, "tcp", before); a.PID != old.pid {
		t.Errorf("process %d answered on the old address before Commit", a.PID)
	}
	early := connect(t, "tcp", after) // waits: a candidate answers nobody
	next.do("ready")
	old.awaitLog("did not ask for everything", "[web]")
	next.awaitLog("closing what nobody asked for", "name=web", before)
	if a := early.answer(); a.PID != next.pid {
		t.Errorf("process %d answered on the new address", a.PID)
	}
	old.end()
	wantFree(t, before)
	wantNames(t, next, "web added")
}

// freePort is a port that nobody uses on any address, and that no system gives
// out to whoever asks for any port.
func freePort(t testing.TB) string {
	t.Helper()
	for {
		port := strconv.Itoa(10000 + rand.IntN(20000))
		pc, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			continue
		}
		pc.Close()
		ln, err := net.Listen("tcp", ":"+port)
		if err != nil {
			continue
		}
		ln.Close()
		return port
	}
}

// wantFree fails unless nobody listens on the TCP address.
func wantFree(t testing.TB, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling %s: %v, want that it is refused", address, err)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Errorf("%s is not free: %v", address, err)
		return
	}
	ln.Close()
}

// TestASharedSocketOnAnInheritedAddressIsRefused: with SO_REUSEPORT the kernel
// would give a candidate's fresh socket clients that it must not answer.
func TestASharedSocketOnAnInheritedAddressIsRefused(t *testing.T) {
	open := func(upg *crossfade.Upgrader, name, network, address string) (net.Listener, error) {
		return upg.ListenFunc(context.Background(), name, network, address, func(ctx context.Context) (net.Listener, error) {
			return reusePort.Listen(ctx, network, address)
		})
	}
	for _, test := range []struct {
		network, first  string
		wanted, address string
		refused         bool
	}{
		{"tcp", "127.0.0.1:P", "tcp", "127.0.0.1:P", true},
		{"tcp", "127.0.0.1:P", "tcp4", ":P", true},
		{"tcp", ":P", "tcp", "127.0.0.1:P", true},
		{"tcp", ":P", "tcp4", "127.0.0.1:P", true},
		{"tcp", ":P", "tcp6", "[::1]:P", true},
		{"tcp6", "[::]:P", "tcp6", "[::1]:P", true},
		{"tcp6", "[::]:P", "tcp4", "0.0.0.0:P", false},
		{"tcp4", "0.0.0.0:P", "tcp6", "[::]:P", false},
		{"tcp", "127.0.0.1:P", "tcp", "127.0.0.2:P", false},
	} {
		if test.address == "127.0.0.2:P" && loopback == "127.0.0.1" {
			continue // this system has one loopback address
		}
		t.Run(fmt.Sprintf("%s %s, then %s %s", test.network, test.first, test.wanted, test.address), func(t *testing.T) {
			leak.Check(t)
			cfg := crossfade.Config{Socket: filepath.Join(socketDir(t), "control")}
			old := newUpgrader(t, &cfg)
			port := freePort(t)
			first, err := open(old, "web", test.network, strings.ReplaceAll(test.first, "P", port))
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			if err := old.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			address := strings.ReplaceAll(test.address, "P", port)

			next := newUpgrader(t, &cfg)
			ln, err := open(next, "shard", test.wanted, address)
			if !test.refused {
				if err != nil {
					t.Fatal(err)
				}
				ln.Close()
				return
			}
			if err == nil {
				ln.Close()
				t.Fatal("a candidate has opened a second socket on an inherited address")
			}
			if !strings.Contains(err.Error(), `inherited under the name "web"`) || !strings.Contains(err.Error(), "SO_REUSEPORT") {
				t.Errorf("got %v", err)
			}
			added, err := reusePort.Listen(t.Context(), test.wanted, address)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := next.Fds().AddListener("shard", added); err == nil || !strings.Contains(err.Error(), "SO_REUSEPORT") {
				t.Errorf("AddListener: %v", err)
			}
			if err := added.Close(); err != nil {
				t.Errorf("after an error the listener is no longer the caller's: %v", err)
			}
			// An owner may have as many as it wants.
			ln, err = open(old, "shard", test.wanted, address)
			if err != nil {
				t.Fatal(err)
			}
			ln.Close()
		})
	}
}

// TestTwoNamesOnOneAddressAreTwo, so that each successor can find both.
func TestTwoNamesOnOneAddressAreTwo(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	address := net.JoinHostPort(loopback, freePort(t))
	spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{
		{Name: "one", Network: "tcp", Address: address, ReusePort: true},
		{Name: "two", Network: "tcp", Address: address, ReusePort: true},
	}}
	old := d.launch(spec.ready())
	old.expect("ready")
	for range 2 {
		next := d.launch(spec.ready())
		next.expect("ready")
		wantNames(t, next, "one inherited", "two inherited")
	}
}

func TestNames(t *testing.T) {
	leak.Check(t)
	upg := newUpgrader(t, new(crossfade.Config))
	for _, test := range []struct {
		name string
		text string // of the error; empty: none
	}{
		{"", "a name is empty"},
		{strings.Repeat("x", 201), "a name has 201 bytes, the limit is 200"},
		{"a\nb", "unprintable character U+000A"},
		{"a\x00b", "unprintable character U+0000"},
		{"a\u202eb", "unprintable character U+202E"},
		{"a\xffb", "is not UTF-8"},
		{"crossfade.control", `starts with "crossfade."`},
		{"crossfade.", `starts with "crossfade."`},
		{strings.Repeat("x", 200), ""},
		{"crossfade", ""},
		{"/run/app/with a space/ü.sock", ""},
	} {
		check := func(what string, err error) {
			t.Helper()
			switch {
			case test.text == "" && err != nil && !errors.Is(err, crossfade.ErrNotInherited):
				t.Errorf("%s %q: %v", what, test.name, err)
			case test.text != "" && (err == nil || !strings.Contains(err.Error(), test.text)):
				t.Errorf("%s %q: %v, want %q", what, test.name, err, test.text)
			}
		}
		ln, err := upg.Listen(t.Context(), test.name, "tcp", "127.0.0.1:0")
		check("Listen", err)
		if err == nil {
			ln.Close()
		}
		pc, err := upg.ListenPacket(t.Context(), test.name, "udp", "127.0.0.1:0")
		check("ListenPacket", err)
		if err == nil {
			pc.Close()
		}
		check("AddFile", upg.Fds().AddFile(test.name, os.Stdin))
		_ = upg.Fds().Remove(test.name)
		_, err = upg.Fds().Listener(test.name)
		check("Listener", err)
		_, err = upg.Fds().PacketConn(test.name)
		check("PacketConn", err)
		_, err = upg.Fds().Conn(test.name)
		check("Conn", err)
		_, err = upg.Fds().File(test.name)
		check("File", err)
	}
}

func TestANameIsTakenOnce(t *testing.T) {
	leak.Check(t)
	upg := newUpgrader(t, new(crossfade.Config))
	first, err := upg.Listen(t.Context(), "web", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for what, take := range map[string]func() error{
		"Listen":       func() error { _, err := upg.Listen(t.Context(), "web", "tcp", "127.0.0.1:0"); return err },
		"ListenPacket": func() error { _, err := upg.ListenPacket(t.Context(), "web", "udp", "127.0.0.1:0"); return err },
		"AddFile":      func() error { return upg.Fds().AddFile("web", os.Stdin) },
		"Listener":     func() error { _, err := upg.Fds().Listener("web"); return err },
	} {
		if err := take(); !errors.Is(err, crossfade.ErrNameTaken) || !strings.Contains(err.Error(), first.Addr().String()) {
			t.Errorf("%s: %v, want ErrNameTaken with the address of who has the name", what, err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := upg.Listen(t.Context(), "web", "tcp", first.Addr().String())
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	// Remove frees the name, and the listener works on.
	if err := upg.Fds().Remove("web"); err != nil {
		t.Fatal(err)
	}
	if err := upg.Fds().Remove("web"); !errors.Is(err, crossfade.ErrNotInherited) {
		t.Errorf("removing twice: %v", err)
	}
	third, err := upg.Listen(t.Context(), "web", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("after Remove: %v", err)
	}
	defer third.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := second.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	connect(t, "tcp", second.Addr().String())
	if err := <-accepted; err != nil {
		t.Errorf("a listener whose name was removed: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if got := origin(upg, "web"); got != handoff.OriginAdded {
		t.Errorf("closing what no longer has the name took the name's new listener out: %v", got)
	}
}

func TestOfManyThatListenOnOneNameOneSucceeds(t *testing.T) {
	leak.Check(t)
	upg := newUpgrader(t, new(crossfade.Config))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var opened []net.Listener
	for range 8 {
		wg.Go(func() {
			ln, err := upg.Listen(t.Context(), "web", "tcp", "127.0.0.1:0")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				opened = append(opened, ln)
			case !errors.Is(err, crossfade.ErrNameTaken):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(opened) != 1 {
		t.Errorf("%d have the name", len(opened))
	}
	for _, ln := range opened {
		ln.Close()
	}
}

func TestListenRefusesOtherNetworks(t *testing.T) {
	leak.Check(t)
	upg := newUpgrader(t, new(crossfade.Config))
	for _, network := range []string{"", "udp", "unixgram", "ip", "tcp5"} {
		if _, err := upg.Listen(t.Context(), "web", network, "127.0.0.1:0"); !errors.As(err, new(net.UnknownNetworkError)) {
			t.Errorf("Listen %q: %v", network, err)
		}
	}
	for _, network := range []string{"", "tcp", "unix", "unixpacket", "ip"} {
		if _, err := upg.ListenPacket(t.Context(), "dns", network, "127.0.0.1:0"); !errors.As(err, new(net.UnknownNetworkError)) {
			t.Errorf("ListenPacket %q: %v", network, err)
		}
	}
	for _, address := range []string{"", "127.0.0.1", "127.0.0.1:no such service", "127.0.0.1:70000", "[::1:80"} {
		if _, err := upg.Listen(t.Context(), "web", "tcp", address); err == nil {
			t.Errorf("Listen on %q succeeded", address)
		}
	}
	if len(upg.Fds().All()) != 0 {
		t.Errorf("the registry has %v", upg.Fds().All())
	}
}

// TestAListenerWithoutDescriptorIsRefused: it could not be handed over.
func TestAListenerWithoutDescriptorIsRefused(t *testing.T) {
	leak.Check(t)
	upg := newUpgrader(t, new(crossfade.Config))
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bare := struct{ net.Listener }{plain}
	if _, err := upg.Fds().AddListener("web", bare); err == nil || !strings.Contains(err.Error(), "syscall.Conn") {
		t.Errorf("AddListener: %v", err)
	}
	wrapper, err := upg.Fds().AddListener("web", plain) // it was left alone
	if err != nil {
		t.Fatal(err)
	}
	defer wrapper.Close()
	if _, err := plain.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the plain listener was not closed: %v", err)
	}
	_, err = upg.ListenFunc(t.Context(), "other", "tcp", "127.0.0.1:0", func(context.Context) (net.Listener, error) { return bare, nil })
	if err == nil || !strings.Contains(err.Error(), "syscall.Conn") {
		t.Errorf("ListenFunc: %v", err)
	}
	failure := errors.New("no")
	if _, err := upg.ListenFunc(t.Context(), "other", "tcp", "127.0.0.1:0", func(context.Context) (net.Listener, error) { return nil, failure }); !errors.Is(err, failure) {
		t.Errorf("ListenFunc: %v", err)
	}
}

// TestPathsOfUnixListeners: who unlinks what, and when.
func TestPathsOfUnixListeners(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		spec := func(d *desk) serviceSpec {
			return serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{{Name: "local", Network: network, Address: d.path("local")}}}
		}
		answers := func(t *testing.T, d *desk, p *process) {
			t.Helper()
			if network == "unixgram" {
				return // the packet tests do that
			}
			if a := ask(t, network, d.path("local")); a.PID != p.pid {
				t.Errorf("process %d answered, want %d", a.PID, p.pid)
			}
		}
		t.Run(network+", stale after kill -9", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			old.kill()
			wantSocket(t, d.path("local"))
			next := d.launch(spec(d).ready())
			next.expect("ready")
			answers(t, d, next)
		})
		t.Run(network+", kept by a handoff and unlinked by Stop", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			owner := d.launch(spec(d).ready())
			owner.expect("ready")
			inode := wantSocket(t, d.path("local"))
			for range 2 {
				next := d.launch(spec(d).ready())
				next.expect("ready")
				owner.exitStatus() // it has closed its listener, too
				if got := wantSocket(t, d.path("local")); got != inode {
					t.Errorf("the inode was %d and is %d", inode, got)
				}
				answers(t, d, next)
				owner = next
			}
			owner.do("stop")
			owner.end()
			wantMissing(t, d.path("local"))
			wantMissing(t, d.path("control"))
		})
		t.Run(network+", kept by a retired process and a failed candidate that close it", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready().lingering())
			old.expect("ready")
			candidate := d.launch(spec(d).lingering())
			candidate.address("local")
			candidate.do("close", "local")
			candidate.do("stop")
			candidate.do("quit")
			candidate.end()
			wantSocket(t, d.path("local"))
			answers(t, d, old)
			next := d.launch(spec(d).ready())
			next.expect("ready")
			old.await("exit")
			old.do("close", "local")
			wantSocket(t, d.path("local"))
			answers(t, d, next)
		})
		t.Run(network+", unlinked by Close in the owner", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			next := d.launch(spec(d).ready())
			next.expect("ready")
			next.expect("settled")
			next.do("close", "local")
			wantMissing(t, d.path("local"))
			next.do("listen", spec(d).Sockets[0])
			wantSocket(t, d.path("local"))
			answers(t, d, next)
		})
		t.Run(network+", kept for a successor that has it although the owner closed it", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			next := d.launch(spec(d))
			next.address("local")
			old.do("close", "local")
			inode := wantSocket(t, d.path("local"))
			next.do("ready")
			next.expect("settled")
			if got := wantSocket(t, d.path("local")); got != inode {
				t.Errorf("the inode was %d and is %d", inode, got)
			}
			answers(t, d, next)
		})
		t.Run(network+", unlinked by Close in the owner once the attempt has failed", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			candidate := d.launch(spec(d))
			candidate.address("local")
			old.do("close", "local")
			wantSocket(t, d.path("local"))
			candidate.do("stop")
			old.awaitFailure()
			old.do("listen", spec(d).Sockets[0]) // the name and the path are free
			answers(t, d, old)
		})
		t.Run(network+", unlinked when settled if nobody wants it", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			next := d.launch(serviceSpec{Socket: d.path("control")}.ready())
			next.expect("settled")
			wantMissing(t, d.path("local"))
		})
		t.Run(network+", kept if it is another's by now", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			replaced := d.path("local")
			if err := os.Remove(replaced); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(replaced, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			old.do("stop")
			old.awaitLog("the path of a unix listener stays", "name=local")
			old.end()
			if _, err := os.Lstat(replaced); err != nil {
				t.Errorf("the owner has unlinked what is not its own: %v", err)
			}
		})
		t.Run(network+", left to an owner that lives", func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(spec(d).ready())
			old.expect("ready")
			other := spec(d)
			other.Socket = d.path("other control")
			stranger := d.launch(other)
			if err := stranger.await("listening").Err; !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("listening on another service's path: %v", err)
			}
			stranger.do("ready")
			stranger.do("stop")
			stranger.end()
			wantSocket(t, d.path("local"))
			answers(t, d, old)
		})
		for _, mask := range []int{0o022, 0o077} {
			t.Run(fmt.Sprintf("%s, umask %03o", network, mask), func(t *testing.T) {
				leak.Check(t)
				d := newDesk(t)
				s := spec(d)
				s.Umask = mask
				d.launch(s.ready()).expect("ready")
				st, err := os.Lstat(d.path("local"))
				if err != nil {
					t.Fatal(err)
				}
				if got, want := st.Mode().Perm(), fs.FileMode(0o777&^mask); got != want {
					t.Errorf("the mode is %v, want %v", got, want)
				}
			})
		}
	}
}

// TestAFailedListenLeavesNoPath: what could not be registered is not left behind.
func TestAFailedListenLeavesNoPath(t *testing.T) {
	leak.Check(t)
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		path := filepath.Join(socketDir(t), "local")
		upg := newUpgrader(t, new(crossfade.Config))
		upg.Stop()
		if _, err := listen(t, upg, "local", network, path); !errors.Is(err, crossfade.ErrStopped) {
			t.Errorf("%s: listening after Stop: %v", network, err)
		}
		wantMissing(t, path)
		_, err := upg.ListenFunc(t.Context(), "local", "unix", path, func(context.Context) (net.Listener, error) { return net.Listen("unix", path) })
		if !errors.Is(err, crossfade.ErrStopped) {
			t.Errorf("ListenFunc after Stop: %v", err)
		}
		wantMissing(t, path)
		// What the program has opened itself stays as it is.
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := upg.Fds().AddListener("local", ln); !errors.Is(err, crossfade.ErrStopped) {
			t.Errorf("AddListener after Stop: %v", err)
		}
		wantSocket(t, path)
		ln.Close()
		wantMissing(t, path)
	}
}

// wantSocket fails unless there is a socket at the path, and returns its inode.
func wantSocket(t testing.TB, path string) uint64 {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		t.Fatalf("%s is %v", path, st.Mode())
	}
	return uint64(st.Sys().(*syscall.Stat_t).Ino)
}

func wantMissing(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
}

// TestAReceivedDescriptorIsWhatTheManifestSays: else the attempt ends before
// anything is used, and nothing of it remains.
func TestAReceivedDescriptorIsWhatTheManifestSays(t *testing.T) {
	for _, test := range []struct {
		name string
		lie  func(t *testing.T, ds []offered)
		text string // the name of the descriptor, and what is wrong
	}{
		{"two descriptors swapped", func(_ *testing.T, ds []offered) {
			ds[0].fd, ds[1].fd = ds[1].fd, ds[0].fd
		}, `listener "web": the manifest describes a listening tcp socket`},
		{"a cookie", func(_ *testing.T, ds []offered) {
			ds[1].entry.Identity.Cookie++
		}, `packet conn "dns"`},
		{"an address", func(_ *testing.T, ds []offered) {
			ds[0].entry.Identity.Address = "127.0.0.1:1"
		}, "on 127.0.0.1:1 ["},
		{"an inode", func(_ *testing.T, ds []offered) {
			ds[2].entry.Identity.Ino++
		}, `file "pipe"`},
		{"a protocol", func(_ *testing.T, ds []offered) {
			ds[0].entry.Identity.Protocol++
		}, `listener "web"`},
		{"whether it listens", func(_ *testing.T, ds []offered) {
			ds[0].entry.Identity.Listening = false
		}, `listener "web"`},
		{"no identity", func(_ *testing.T, ds []offered) {
			ds[2].entry.Identity = nil
		}, `file "pipe"`},
		{"a packet conn as a listener", func(_ *testing.T, ds []offered) {
			ds[1].entry.Kind = pb.Kind_KIND_LISTENER
		}, `listener "dns": the descriptor is no listener but a udp socket`},
		{"a socket as a file", func(_ *testing.T, ds []offered) {
			ds[0].entry.Kind = pb.Kind_KIND_FILE
		}, `file "web": the descriptor is no file but a listening tcp socket`},
		{"a listener as a conn", func(_ *testing.T, ds []offered) {
			ds[0].entry.Kind = pb.Kind_KIND_CONN
		}, `conn "web"`},
		{"a name twice", func(_ *testing.T, ds []offered) {
			ds[1].entry.Name = "web"
		}, `packet conn "web": the manifest has the name twice`},
		{"a reserved name", func(_ *testing.T, ds []offered) {
			ds[1].entry.Name = "crossfade.alive"
		}, `"crossfade.alive"`},
		{"a name with a control character", func(_ *testing.T, ds []offered) {
			ds[1].entry.Name = "a\x1b[31m"
		}, "unprintable"},
		{"an unknown kind", func(_ *testing.T, ds []offered) {
			ds[1].entry.Kind = 99
		}, "unknown kind 99"},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			old := newOwnerByHand(t, filepath.Join(socketDir(t), "control"))
			ds := []offered{offerListener(t, "web"), offerPacketConn(t, "dns"), offerPipe(t, "pipe")}
			test.lie(t, ds)
			failed := make(chan error, 1)
			go func() {
				upg, err := crossfade.New(context.Background(), &crossfade.Config{Socket: old.path, Logger: slog.New(slog.DiscardHandler)})
				if err == nil {
					upg.Stop()
				}
				failed <- err
			}()
			reason := old.tender(ds...)
			if !strings.Contains(reason, test.text) {
				t.Errorf("the predecessor was told %q, want %q", reason, test.text)
			}
			if err := <-failed; err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("New returned %v, want %q", err, test.text)
			}
			// What was sent belongs to the candidate, which has closed it: with
			// ours closed nobody holds the port.
			for _, d := range ds {
				d.fd.Close()
			}
			wantFree(t, ds[0].address)
		})
	}
}

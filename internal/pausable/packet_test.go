package pausable_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/pausable"
	"github.com/crossfade-go/crossfade/scm"
)

// What programs and libraries ask for by assertion.
var (
	_ net.Conn = (*pausable.UDPConn)(nil)
	_ net.Conn = (*pausable.UnixConn)(nil)

	// A QUIC implementation that wants ECN bits and packet information.
	_ interface {
		net.PacketConn
		SyscallConn() (syscall.RawConn, error)
		SetReadBuffer(bytes int) error
		SetWriteBuffer(bytes int) error
		ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error)
		WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error)
		ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, addr netip.AddrPort, err error)
		WriteMsgUDPAddrPort(b, oob []byte, addr netip.AddrPort) (n, oobn int, err error)
	} = (*pausable.UDPConn)(nil)
)

// A readFunc reads one packet by one of the methods that can.
type readFunc func(c pausable.PacketConn, b []byte) (int, error)

// readMethods holds every reading method, by network. Those that need a system
// call of their own are added by init where there is one.
var readMethods = map[string]map[string]readFunc{
	"udp": {
		"Read":     func(c pausable.PacketConn, b []byte) (int, error) { return c.(io.Reader).Read(b) },
		"ReadFrom": readFrom,
		"ReadFromUDP": func(c pausable.PacketConn, b []byte) (int, error) {
			n, _, err := c.(*pausable.UDPConn).ReadFromUDP(b)
			return n, err
		},
		"ReadFromUDPAddrPort": func(c pausable.PacketConn, b []byte) (int, error) {
			n, _, err := c.(*pausable.UDPConn).ReadFromUDPAddrPort(b)
			return n, err
		},
		"ReadMsgUDP": func(c pausable.PacketConn, b []byte) (int, error) {
			n, _, _, _, err := c.(*pausable.UDPConn).ReadMsgUDP(b, nil)
			return n, err
		},
		"ReadMsgUDPAddrPort": func(c pausable.PacketConn, b []byte) (int, error) {
			n, _, _, _, err := c.(*pausable.UDPConn).ReadMsgUDPAddrPort(b, nil)
			return n, err
		},
	},
	"unixgram": {
		"Read":     func(c pausable.PacketConn, b []byte) (int, error) { return c.(io.Reader).Read(b) },
		"ReadFrom": readFrom,
		"ReadFromUnix": func(c pausable.PacketConn, b []byte) (int, error) {
			n, _, err := c.(*pausable.UnixConn).ReadFromUnix(b)
			return n, err
		},
		"ReadMsgUnix": func(c pausable.PacketConn, b []byte) (int, error) {
			n, _, _, _, err := c.(*pausable.UnixConn).ReadMsgUnix(b, nil)
			return n, err
		},
	},
}

func readFrom(c pausable.PacketConn, b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

// forEachRead runs test for every reading method of every network.
func forEachRead(t *testing.T, test func(t *testing.T, s *packetSocket, read readFunc)) {
	t.Helper()
	for _, network := range slices.Sorted(maps.Keys(readMethods)) {
		for _, name := range slices.Sorted(maps.Keys(readMethods[network])) {
			t.Run(network+"/"+name, func(t *testing.T) {
				test(t, openPacket(t, network), readMethods[network][name])
			})
		}
	}
}

// forEachNetwork runs test for each kind of packet socket.
func forEachNetwork(t *testing.T, test func(t *testing.T, s *packetSocket)) {
	t.Helper()
	for _, network := range slices.Sorted(maps.Keys(readMethods)) {
		t.Run(network, func(t *testing.T) { test(t, openPacket(t, network)) })
	}
}

// packetSocket is a bound socket and a client of it.
type packetSocket struct {
	t      *testing.T
	fd     *scm.FD
	client net.Conn // connected to the socket, and with an address of its own
}

func openPacket(t *testing.T, network string) *packetSocket {
	t.Helper()
	s := &packetSocket{t: t}
	switch network {
	case "udp":
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		addr := server.LocalAddr().(*net.UDPAddr)
		s.fd = dup(t, server)
		client, err := net.DialUDP("udp", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		s.client = client
	case "unixgram":
		if runtime.GOOS == "windows" {
			t.Skip("no unix datagram sockets here")
		}
		dir := shortDir(t)
		addr := &net.UnixAddr{Name: filepath.Join(dir, "server"), Net: "unixgram"}
		server, err := net.ListenUnixgram("unixgram", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.fd = dup(t, server)
		client, err := net.DialUnix("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "client"), Net: "unixgram"}, addr)
		if err != nil {
			t.Fatal(err)
		}
		s.client = client
	}
	t.Cleanup(func() { s.client.Close() })
	return s
}

// open returns a paused connection on a duplicate.
func (s *packetSocket) open(closed func()) pausable.PacketConn {
	s.t.Helper()
	c, err := pausable.NewPacketConn(s.fd, closed)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// send sends a packet to the socket.
func (s *packetSocket) send(packet string) {
	s.t.Helper()
	if _, err := s.client.Write([]byte(packet)); err != nil {
		s.t.Fatal(err)
	}
}

// elsewhere reads a packet as another process does, and compares it.
func (s *packetSocket) elsewhere(want string) {
	s.t.Helper()
	c, err := s.fd.PacketConn()
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 64)
	n, _, err := c.ReadFrom(b)
	if err != nil || string(b[:n]) != want {
		s.t.Fatalf("another holder read %q, %v; want %q", b[:n], err, want)
	}
}

// packet is the outcome of a read.
type packet struct {
	data string
	err  error
}

func (p packet) is(t *testing.T, want string) {
	t.Helper()
	if p.err != nil || p.data != want {
		t.Fatalf("read %q, %v; want %q", p.data, p.err, want)
	}
}

// reads calls read in n goroutines, and waits for them when the test ends.
func reads(t *testing.T, c pausable.PacketConn, read readFunc, n int) <-chan packet {
	t.Helper()
	results := make(chan packet, n) // all of them: none outlives its read
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			b := make([]byte, 64)
			n, err := read(c, b)
			if err != nil {
				n = 0 // package net's ReadMsg methods may say -1
			}
			results <- packet{string(b[:n]), err}
		})
	}
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return results
}

func TestPacketConnStartsPaused(t *testing.T) {
	forEachRead(t, func(t *testing.T, s *packetSocket, read readFunc) {
		c := s.open(nil)
		results := reads(t, c, read, 1)
		s.send("not for this one")
		s.elsewhere("not for this one")
		nothing(t, results)
		c.Resume()
		s.send("for this one")
		(<-results).is(t, "for this one")
	})
}

func TestPauseHoldsBackReadsInFlight(t *testing.T) {
	const n = 4
	forEachRead(t, func(t *testing.T, s *packetSocket, read readFunc) {
		c := s.open(nil)
		results := reads(t, c, read, n)
		for range 3 {
			c.Resume()
			awaitInFlight(c, n)
			c.Pause()
			if left := pausable.InFlight(c); left != 0 {
				t.Fatalf("%d reads in flight after Pause", left)
			}
			s.send("not for this one")
			s.elsewhere("not for this one")
			nothing(t, results)
		}
		s.send("queued while paused")
		c.Resume()
		(<-results).is(t, "queued while paused")
		for i := range n - 1 {
			s.send(strconv.Itoa(i))
			(<-results).is(t, strconv.Itoa(i))
		}
	})
}

func TestReadDeadline(t *testing.T) {
	states := map[string]func(c pausable.PacketConn){
		"paused":       func(pausable.PacketConn) {},
		"running":      pausable.PacketConn.Resume,
		"paused again": func(c pausable.PacketConn) { c.Resume(); c.Pause() },
	}
	setters := map[string]func(c pausable.PacketConn, at time.Time) error{
		"SetDeadline":     pausable.PacketConn.SetDeadline,
		"SetReadDeadline": pausable.PacketConn.SetReadDeadline,
	}
	forEachRead(t, func(t *testing.T, s *packetSocket, read readFunc) {
		for state, enter := range states {
			for setter, set := range setters {
				c := s.open(nil)
				mustSet := func(at time.Time) {
					t.Helper()
					if err := set(c, at); err != nil {
						t.Fatal(err)
					}
				}
				mustExceed := func(what string, err error) {
					t.Helper()
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("%s, %s, %s: got %v, want %v", state, setter, what, err, os.ErrDeadlineExceeded)
					}
				}
				b := make([]byte, 64)

				mustSet(never())
				results := reads(t, c, read, 2)
				enter(c)
				mustSet(past())
				mustExceed("shortened during the read", (<-results).err)
				mustExceed("shortened during the read", (<-results).err)

				s.send("over a queued packet")
				_, err := read(c, b)
				mustExceed("over a queued packet", err)
				s.elsewhere("over a queued packet")

				mustSet(time.Now().Add(time.Millisecond))
				_, err = read(c, b)
				mustExceed("passes during the read", err)

				mustSet(time.Time{})
				results = reads(t, c, read, 1)
				c.Resume()
				s.send("no deadline any more")
				(<-results).is(t, "no deadline any more")
				c.Close()
			}
		}
	})
}

func TestReadDeadlineFailsAsInNet(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		plain, err := s.fd.PacketConn()
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		if err := plain.SetReadDeadline(past()); err != nil {
			t.Fatal(err)
		}
		_, _, want := plain.ReadFrom(make([]byte, 1))
		c := s.open(nil)
		if err := c.SetReadDeadline(past()); err != nil {
			t.Fatal(err)
		}
		_, _, got := c.ReadFrom(make([]byte, 1))
		sameFailure(t, got, want)

		plain.Close()
		c.Close()
		_, _, want = plain.ReadFrom(make([]byte, 1))
		_, _, got = c.ReadFrom(make([]byte, 1))
		sameFailure(t, got, want)
		sameFailure(t, c.SetReadDeadline(never()), plain.SetReadDeadline(never()))
		sameFailure(t, c.SetDeadline(never()), plain.SetDeadline(never()))
	})
}

func TestSetDeadlineCoversWrites(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		c := s.open(nil)
		if err := c.SetDeadline(past()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo([]byte("late"), s.client.LocalAddr()); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want %v", err, os.ErrDeadlineExceeded)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		s.receives(c, "in time")
	})
}

// receives writes an answer through c, which must reach the client.
func (s *packetSocket) receives(c pausable.PacketConn, answer string) {
	s.t.Helper()
	if _, err := c.WriteTo([]byte(answer), s.client.LocalAddr()); err != nil {
		s.t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := s.client.Read(b)
	if err != nil || string(b[:n]) != answer {
		s.t.Fatalf("the client read %q, %v; want %q", b[:n], err, answer)
	}
}

func TestWritesGoOn(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		c := s.open(nil)
		s.receives(c, "paused at first")
		c.Resume()
		results := reads(t, c, readFrom, 1)
		awaitInFlight(c, 1)
		c.Pause()
		s.receives(c, "paused")
		c.Retire()
		s.fd.Close()
		s.receives(c, "retired, with the last copy of the descriptor")
		if r := <-results; !errors.Is(r.err, net.ErrClosed) {
			t.Fatalf("read after Retire: %v", r.err)
		}
		c.Close()
		if _, err := c.WriteTo([]byte("x"), s.client.LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("write after Close: %v", err)
		}
	})
}

func TestRetireAndCloseEndReads(t *testing.T) {
	ends := map[string]func(c pausable.PacketConn){
		"Retire": pausable.PacketConn.Retire,
		"Close":  func(c pausable.PacketConn) { c.Close() },
	}
	states := map[string]func(c pausable.PacketConn){
		"paused":       func(pausable.PacketConn) {},
		"running":      pausable.PacketConn.Resume,
		"paused again": func(c pausable.PacketConn) { c.Resume(); c.Pause() },
	}
	forEachRead(t, func(t *testing.T, s *packetSocket, read readFunc) {
		for end, run := range ends {
			for state, enter := range states {
				c := s.open(nil)
				results := reads(t, c, read, 3)
				enter(c)
				run(c)
				for range 3 {
					if r := <-results; !errors.Is(r.err, net.ErrClosed) {
						t.Fatalf("%s when %s: got %v, want %v", end, state, r.err, net.ErrClosed)
					}
				}
				c.Resume() // too late
				if _, err := read(c, make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Fatalf("%s when %s, then Resume: got %v, want %v", end, state, err, net.ErrClosed)
				}
				c.Close()
			}
		}
	})
}

func TestPacketConnClosedHook(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		calls := make(chan struct{}, 8) // room for too many
		c := s.open(func() { calls <- struct{}{} })
		c.Resume()
		c.Pause()
		c.Retire()
		nothing(t, calls)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := c.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		}
		wg.Wait()
		if len(calls) != 1 {
			t.Fatalf("called %d times, want once", len(calls))
		}
	})
}

// Two connections on one socket take turns. In each turn a packet is sent after
// one has paused and before the other reads: it must be the other's. Between
// that, packets flow without pause. Each arrives once.
func TestTurnsLoseNoPacket(t *testing.T) {
	const turns, window, readers = 100, 16, 2
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		twin, err := s.fd.Dup()
		if err != nil {
			t.Fatal(err)
		}
		defer twin.Close()
		second := &packetSocket{t: t, fd: twin, client: s.client}
		sides := []pausable.PacketConn{s.open(nil), second.open(nil)}

		type arrival struct {
			side int
			data string
		}
		arrivals := make(chan arrival, window) // at most window packets are under way
		var wg sync.WaitGroup
		defer wg.Wait()
		for side, c := range sides {
			for range readers {
				wg.Go(func() {
					b := make([]byte, 64)
					for {
						n, _, err := c.ReadFrom(b)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						if err != nil {
							t.Errorf("read: %v", err)
							return
						}
						arrivals <- arrival{side, string(b[:n])}
					}
				})
			}
			defer c.Close()
		}

		seen := map[string]bool{}
		collect := func(n int, check func(arrival)) {
			t.Helper()
			for range n {
				a := <-arrivals
				if seen[a.data] {
					t.Fatalf("%s arrived twice", a.data)
				}
				seen[a.data] = true
				check(a)
			}
		}
		for turn := range turns {
			at := turn % len(sides)
			s.send(fmt.Sprint("only for ", turn))
			sides[at].Resume()
			collect(1, func(a arrival) {
				if a.side != at {
					t.Fatalf("%s was read by the paused side", a.data)
				}
			})
			// The pause falls among these; what is left over the other side reads.
			for i := range window {
				s.send(fmt.Sprint(turn, " ", i))
			}
			sides[at].Pause()
			sides[1-at].Resume()
			collect(window, func(arrival) {})
			sides[1-at].Pause()
		}
		if want := turns * (window + 1); len(seen) != want {
			t.Fatalf("%d packets arrived, want %d", len(seen), want)
		}
	})
}

// Everything that takes a packet must be held back, also by a method that a new
// Go release adds. A retired connection with a packet in its queue shows it: a
// method that is not overridden returns the packet.
func TestNoReadingMethodIsForgotten(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		c := s.open(nil)
		c.Retire()
		s.send("in the queue")
		plain := reflect.TypeOf(c.Raw())
		wrapped := reflect.ValueOf(c)
		tested := 0
		for i := range plain.NumMethod() {
			name := plain.Method(i).Name
			if !strings.HasPrefix(name, "Read") {
				if !knownNotToRead(name) {
					t.Errorf("%v has a method %s that this package does not know: override it if it reads, then name it here", plain, name)
				}
				continue
			}
			tested++
			method := wrapped.MethodByName(name)
			args := make([]reflect.Value, method.Type().NumIn())
			for i := range args {
				if in := method.Type().In(i); in != reflect.TypeFor[[]byte]() {
					t.Fatalf("%s takes a %v, which this test does not know how to make", name, in)
				}
				args[i] = reflect.ValueOf(make([]byte, 64))
			}
			results := method.Call(args)
			err, _ := results[len(results)-1].Interface().(error)
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s reads while reading is retired: %v", name, err)
			}
		}
		if tested < 4 {
			t.Fatalf("only %d reading methods found", tested)
		}
		s.elsewhere("in the queue")
	})
}

func knownNotToRead(method string) bool {
	for _, prefix := range []string{"Write", "Set"} {
		if strings.HasPrefix(method, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"Close", "CloseRead", "CloseWrite", "File", "LocalAddr", "RemoteAddr", "SyscallConn"}, method)
}

func TestShutdownIsRefused(t *testing.T) {
	s := openPacket(t, "unixgram")
	c := s.open(nil).(*pausable.UnixConn)
	for name, shutdown := range map[string]func() error{"CloseRead": c.CloseRead, "CloseWrite": c.CloseWrite} {
		if err := shutdown(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: got %v, want %v", name, err, errors.ErrUnsupported)
		}
	}
	s.send("still open")
	s.elsewhere("still open")
}

// Whoever reads from the plain connection must not meet a deadline that pausing
// has left there.
func TestRawIsLeftAlone(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		c := s.open(nil)
		c.Resume()
		results := reads(t, c, readFrom, 2)
		awaitInFlight(c, 2)
		c.Pause()
		s.send("for the raw one")
		b := make([]byte, 64)
		n, _, err := c.Raw().ReadFrom(b)
		if err != nil || string(b[:n]) != "for the raw one" {
			t.Fatalf("raw read %q, %v", b[:max(n, 0)], err)
		}
		nothing(t, results)

		// A deadline that was set there is reported, not retried without end.
		if err := c.Raw().SetReadDeadline(past()); err != nil {
			t.Fatal(err)
		}
		c.Resume()
		for range 2 {
			if r := <-results; !errors.Is(r.err, os.ErrDeadlineExceeded) {
				t.Fatalf("got %v, want %v", r.err, os.ErrDeadlineExceeded)
			}
		}
		c.Raw().Close()
		if _, _, err := c.ReadFrom(b); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("read on a plain connection that was closed: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestConnectedUDP(t *testing.T) {
	peer, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := net.DialUDP("udp", nil, peer.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	c, err := pausable.NewPacketConn(dup(t, conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	results := reads(t, c, readMethods["udp"]["Read"], 1)
	if _, err := c.(net.Conn).Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, from, err := peer.ReadFrom(b)
	if err != nil || string(b[:n]) != "ping" {
		t.Fatalf("the peer read %q, %v", b[:n], err)
	}
	if _, err := peer.WriteTo([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	nothing(t, results)
	c.Resume()
	(<-results).is(t, "pong")
}

func TestNewPacketConnRefuses(t *testing.T) {
	for name, fd := range map[string]*scm.FD{
		"a listening socket":        listening(t, "tcp"),
		"a unix listening socket":   listening(t, "unix"),
		"something else than those": pipe(t),
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := pausable.NewPacketConn(fd, nil); !errors.Is(err, errors.ErrUnsupported) {
				if err == nil {
					c.Close()
				}
				t.Fatalf("got %v, want %v", err, errors.ErrUnsupported)
			}
		})
	}
}

// pipe returns a descriptor that is no socket.
func pipe(t *testing.T) *scm.FD {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return dup(t, r)
}

// Every method at once, in no order. The race detector and the leak check judge.
func TestPacketConnInAnyOrder(t *testing.T) {
	forEachNetwork(t, func(t *testing.T, s *packetSocket) {
		for range 20 {
			c := s.open(nil)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					b := make([]byte, 64)
					for {
						_, _, err := c.ReadFrom(b)
						switch {
						case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
						case errors.Is(err, net.ErrClosed):
							return
						default:
							t.Errorf("read: %v", err)
							return
						}
					}
				})
			}
			anyOrder(&wg, c.Pause, c.Resume, c.Pause, c.Resume, func() { c.Raw() },
				func() { _ = c.SetDeadline(past()) }, func() { _ = c.SetReadDeadline(time.Time{}) },
				func() { _ = c.SetReadDeadline(time.Now().Add(time.Microsecond)) },
				func() { _, _ = c.WriteTo([]byte("x"), c.LocalAddr()) })
			wg.Go(c.Retire)
			wg.Go(func() { c.Close() })
			wg.Wait()
		}
	})
}

// The plain connection reads without allocating through these; so must this one.
func TestReadsDoNotAllocate(t *testing.T) {
	s := openPacket(t, "udp")
	c := s.open(nil).(*pausable.UDPConn)
	c.Resume()
	b, oob, out := make([]byte, 64), make([]byte, 64), []byte("x")
	for name, read := range map[string]func() error{
		"ReadFromUDPAddrPort": func() error {
			_, _, err := c.ReadFromUDPAddrPort(b)
			return err
		},
		"ReadMsgUDPAddrPort": func() error {
			_, _, _, _, err := c.ReadMsgUDPAddrPort(b, oob)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			allocs := testing.AllocsPerRun(100, func() {
				if _, err := s.client.Write(out); err != nil {
					t.Fatal(err)
				}
				if err := read(); err != nil {
					t.Fatal(err)
				}
			})
			if allocs != 0 {
				t.Fatalf("%v allocations a packet", allocs)
			}
		})
	}
}

func BenchmarkReadFromUDPAddrPort(b *testing.B) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	fd, err := scm.DupFD(server)
	if err != nil {
		b.Fatal(err)
	}
	defer fd.Close()
	c, err := pausable.NewPacketConn(fd, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.Resume()
	client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	type reader interface {
		ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	}
	for name, r := range map[string]reader{"plain": server, "pausable": c.(reader)} {
		b.Run(name, func(b *testing.B) {
			buf, out := make([]byte, 64), []byte("x")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, _, err := r.ReadFromUDPAddrPort(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

//go:build unix

package crossfade_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

// This file has clients that send a numbered stream of bytes to a service that is
// replaced all the while. The service checks that each byte is the next one, and
// answers with a stream of its own, which the client checks. So a byte that is lost,
// doubled or out of order, in either direction, ends the test, and so does a
// connection that two processes serve.

var streamSeed = flag.Uint64("stream-seed", 0, "the seed of the stream tests, 0 for another one each time")

// byteAt is the byte of a stream at a position. The pattern does not repeat within
// what any buffer holds.
func byteAt(position uint64) byte {
	x := position * 0x9e3779b97f4a7c15
	return byte(x >> 56)
}

// position is how far a connection's two streams have come. It travels with it.
type position struct{ Read, Written uint64 }

// check compares what was read with what is next, and moves on.
func (p *position) check(data []byte) error {
	for i, b := range data {
		if want := byteAt(p.Read); b != want {
			return fmt.Errorf("byte %d is %#x instead of %#x, %d bytes into a read of %d", p.Read, b, want, i, len(data))
		}
		p.Read++
	}
	return nil
}

// next returns the n bytes that are to be written next, and moves on.
func (p *position) next(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byteAt(p.Written)
		p.Written++
	}
	return data
}

func init() {
	processes["stream"] = serveStreams
	processes["drop"] = dropDescriptors
}

// streamServer is the service process. Its arguments are the control socket, a TCP
// address, a unix path, and after how many connections that have moved it begins with
// no other one before SIGUSR1, 0 for none.
type streamServer struct {
	upg   *crossfade.Upgrader
	rng   *rand.Rand // of the main goroutine
	halt  int64
	goOn  chan os.Signal
	moved atomic.Int64
	came  atomic.Int64
	wrong atomic.Bool

	closing atomic.Bool

	mu      sync.Mutex
	streams map[*stream]struct{}
	reading sync.WaitGroup
}

// stream is one connection of a service process.
type stream struct {
	listener string
	conn     net.Conn
	at       position
	buf      []byte
	unread   []byte // of buf: what was read and not used
}

func serveStreams() {
	ctx := context.Background()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: os.Args[1], Logger: log})
	check(err)
	halt, err := strconv.Atoi(os.Args[4])
	check(err)
	s := &streamServer{upg: upg, halt: int64(halt), goOn: make(chan os.Signal, 1), streams: make(map[*stream]struct{}), rng: rand.New(rand.NewPCG(1, uint64(os.Getpid())))}
	signal.Notify(s.goOn, syscall.SIGUSR1)
	var accepting sync.WaitGroup
	var listeners []net.Listener
	for _, l := range []struct{ name, network, address string }{{"tcp", "tcp", os.Args[2]}, {"unix", "unix", os.Args[3]}} {
		ln, err := upg.Listen(ctx, l.name, l.network, l.address)
		check(err)
		handed := upg.HandedOver(l.name)
		for _, from := range []net.Listener{ln, handed} {
			listeners = append(listeners, from)
			accepting.Go(func() { s.accept(l.name, from) })
		}
	}
	check(upg.Ready(ctx))
	fmt.Println("ready", listeners[0].Addr())
	select {
	case <-upg.Exit():
	case <-stop:
		fmt.Println("came", s.came.Load())
		os.Exit(s.status())
	}
	if !errors.Is(upg.Err(), crossfade.ErrRetired) {
		check(upg.Err())
	}
	for _, ln := range listeners {
		check(ln.Close())
	}
	accepting.Wait()
	took := s.moveAll(ctx)
	fmt.Println("moved", s.moved.Load(), took.Nanoseconds())
	if s.count() > 0 { // the successor has died: these are still served here
		<-stop
	}
	os.Exit(s.status())
}

func (s *streamServer) status() int {
	if s.wrong.Load() {
		return 1
	}
	return 0
}

func (s *streamServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

func (s *streamServer) accept(name string, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		check(err)
		st := &stream{listener: name, conn: c, buf: make([]byte, 1<<10)}
		if came, ok := crossfade.HandOverOf(c); ok {
			check(json.Unmarshal(came.State, &st.at))
			s.came.Add(1)
		}
		s.mu.Lock()
		s.streams[st] = struct{}{}
		if !s.closing.Load() {
			s.serve(st)
		}
		s.mu.Unlock()
	}
}

// serve begins to read from a stream. The mutex is held.
func (s *streamServer) serve(st *stream) {
	s.reading.Go(func() {
		err := st.serve(&s.closing)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return // it moves
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			s.wrong.Store(true)
			fmt.Fprintf(os.Stderr, "process %d: %v\n", os.Getpid(), err)
		}
		_ = st.conn.Close()
		s.mu.Lock()
		delete(s.streams, st)
		s.mu.Unlock()
	})
}

// serve answers each byte with one, until closing is set and the read deadline passes.
// It answers a half of what it has at a time, so that something may be left unread.
func (st *stream) serve(closing *atomic.Bool) error {
	for {
		if len(st.unread) == 0 {
			n, err := st.conn.Read(st.buf)
			if err != nil {
				return err
			}
			st.unread = st.buf[:n]
		}
		use := (len(st.unread) + 1) / 2
		if err := st.at.check(st.unread[:use]); err != nil {
			return err
		}
		st.unread = st.unread[use:]
		if _, err := st.conn.Write(st.at.next(use)); err != nil {
			return err
		}
		if closing.Load() {
			return os.ErrDeadlineExceeded
		}
	}
}

// moveAll hands everything over at the same time, and serves on what stays. It returns
// how long the handing over took.
func (s *streamServer) moveAll(ctx context.Context) time.Duration {
	s.mu.Lock()
	s.closing.Store(true)
	var all []*stream
	for st := range s.streams {
		all = append(all, st)
		check(st.conn.SetReadDeadline(time.Unix(1, 0)))
	}
	s.mu.Unlock()
	s.reading.Wait()
	s.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	began := time.Now()
	next := make(chan *stream, len(all))
	for _, st := range all {
		next <- st
	}
	close(next)
	movers := len(all)
	if s.halt > 0 { // some are to be left behind when it halts
		movers = min(movers, 80)
	}
	var moving sync.WaitGroup
	for range movers {
		moving.Go(func() {
			for st := range next {
				s.mu.Lock() // while it halts
				_, open := s.streams[st]
				s.mu.Unlock()
				if open {
					s.move(ctx, st)
				}
			}
		})
	}
	moving.Wait()
	return time.Since(began)
}

func (s *streamServer) move(ctx context.Context, st *stream) {
	state, err := json.Marshal(st.at)
	check(err)
	err = s.upg.HandOverConn(ctx, st.listener, st.conn, &crossfade.HandOver{Unread: st.unread, State: state})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.streams, st)
		if s.moved.Add(1) == s.halt {
			fmt.Println("halted")
			<-s.goOn
		}
		return
	}
	if !errors.Is(err, crossfade.ErrLost) {
		s.wrong.Store(true)
		fmt.Fprintf(os.Stderr, "process %d: %v\n", os.Getpid(), err)
	}
	check(st.conn.SetReadDeadline(time.Time{}))
	s.closing.Store(false)
	s.serve(st)
}

// streams is the stage of these tests.
type streams struct {
	t             testing.TB
	dir, address  string
	unix, control string
}

func newStreams(t testing.TB) *streams {
	t.Helper()
	dir := socketDir(t)
	return &streams{t: t, dir: dir, address: loopback + ":0", unix: filepath.Join(dir, "s"), control: filepath.Join(dir, "c")}
}

// streamProcess is a service process as the test sees it.
type streamProcess struct {
	*exec.Cmd
	t     testing.TB
	lines *bufio.Scanner
}

// start starts a process and returns when it serves.
func (s *streams) start(halt int) *streamProcess {
	s.t.Helper()
	cmd := reexec.Command("stream", s.control, s.address, s.unix, strconv.Itoa(halt))
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	reexec.Start(s.t, cmd)
	timer := time.AfterFunc(2*generous, func() { _ = cmd.Process.Kill() })
	s.t.Cleanup(func() { timer.Stop() })
	p := &streamProcess{cmd, s.t, bufio.NewScanner(out)}
	s.address = p.says("ready")[0]
	return p
}

// says waits for a line that begins with word, and returns the others of it.
func (p *streamProcess) says(word string) []string {
	p.t.Helper()
	for p.lines.Scan() {
		if words := strings.Fields(p.lines.Text()); words[0] == word {
			return words[1:]
		}
	}
	p.t.Fatalf("process %d ends without %q", p.Process.Pid, word)
	return nil
}

func (p *streamProcess) number(word string, i int) int {
	p.t.Helper()
	n, err := strconv.Atoi(p.says(word)[i])
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *streamProcess) mustExit() {
	p.t.Helper()
	for p.lines.Scan() { // to its end, before Wait closes it
	}
	if err := p.Wait(); err != nil {
		p.t.Errorf("process %d: %v", p.Process.Pid, err)
	}
}

// freeze stops a process that has halted, and returns when no thread of it runs.
func (p *streamProcess) freeze() {
	p.t.Helper()
	p.says("halted")
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		p.t.Fatal(err)
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(p.Process.Pid, &status, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || !status.Stopped():
			p.t.Fatalf("process %d did not stop: status %#x, %v", p.Process.Pid, status, err)
		default:
			return
		}
	}
}

// streamClient sends its stream, and checks the answer.
type streamClient struct {
	conn net.Conn
	rng  *rand.Rand
	at   position // Written is of what it sends
}

// dial connects n clients, half of them over either network, and returns when each
// has had an answer.
func (s *streams) dial(n int, seed uint64) []*streamClient {
	s.t.Helper()
	var all []*streamClient
	for i := range n {
		network, address := "tcp", s.address
		if i%2 == 1 {
			network, address = "unix", s.unix
		}
		conn, err := net.Dial(network, address)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(4 * generous)); err != nil {
			s.t.Fatal(err)
		}
		c := &streamClient{conn: conn, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		if err := c.ping(); err != nil {
			s.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// ping sends one byte and awaits the answer.
func (c *streamClient) ping() error {
	if _, err := c.conn.Write(c.at.next(1)); err != nil {
		return err
	}
	return c.read(1)
}

func (c *streamClient) read(n int) error {
	data := make([]byte, n)
	got, err := io.ReadFull(c.conn, data)
	return errors.Join(c.at.check(data[:got]), err)
}

// run sends, in pieces of any size and with pauses of any length, until stop is
// closed, and reads all that is answered.
func (c *streamClient) run(stop <-chan struct{}) error {
	total := make(chan uint64, 1) // how much is sent altogether: there before the last of it
	failed := make(chan error, 1) // room for the one error, or for nil
	go func() { failed <- c.send(stop, total) }()
	in := make([]byte, 4<<10)
	last := uint64(math.MaxUint64)
	for c.at.Read < last {
		n, err := c.conn.Read(in)
		if wrong := c.at.check(in[:n]); wrong != nil {
			return wrong
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", c.at.Read, err)
		}
		select {
		case last = <-total:
		default:
		}
	}
	return <-failed
}

func (c *streamClient) send(stop <-chan struct{}, total chan<- uint64) error {
	for {
		n := 1 + c.rng.IntN(16)
		if c.rng.IntN(8) == 0 {
			n = 1 + c.rng.IntN(5000) // more than the server reads at once
		}
		data := c.at.next(n)
		pause := time.NewTimer(time.Duration(c.rng.IntN(3000)) * time.Microsecond)
		stopped := false
		select {
		case <-pause.C:
		case <-stop:
			stopped = true
			total <- c.at.Written
		}
		pause.Stop()
		if _, err := c.conn.Write(data); err != nil || stopped {
			return err
		}
	}
}

// seedOf is the seed of one test, which it prints.
func seedOf(t testing.TB) uint64 {
	seed := *streamSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("go test -run '^%s$' -stream-seed %d", t.Name(), seed)
	return seed
}

func TestStreamsThroughFiftyUpgrades(t *testing.T) {
	t.Parallel()
	const clients, upgrades = 16, 50
	s := newStreams(t)
	serving := s.start(0)
	all := s.dial(clients, seedOf(t))
	stop := make(chan struct{})
	var running sync.WaitGroup
	for i, c := range all {
		running.Go(func() {
			if err := c.run(stop); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	for range upgrades {
		next := s.start(0)
		if moved := serving.number("moved", 0); moved != clients {
			t.Errorf("%d clients of %d have moved", moved, clients)
		}
		serving.mustExit()
		serving = next
		if t.Failed() {
			break
		}
	}
	close(stop)
	running.Wait()
	bytes := uint64(0)
	for _, c := range all {
		bytes += c.at.Read
		if err := c.ping(); err != nil {
			t.Errorf("a client that stopped in between: %v", err)
		}
	}
	t.Logf("%d bytes there and back", bytes)
	if err := serving.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if came := serving.number("came", 0); came != clients {
		t.Errorf("%d clients of %d came to the last one", came, clients)
	}
	serving.mustExit()
}

// TestKilledWhileStreamsMove kills one side when some of the connections have moved
// and others are under way. Each client that the survivor has goes on where it was;
// the others were with who was killed.
func TestKilledWhileStreamsMove(t *testing.T) {
	t.Parallel()
	const clients = 300
	for _, victim := range []string{"predecessor", "successor"} {
		for _, halt := range []int{1, 60, 150} {
			t.Run(fmt.Sprintf("%s after %d", victim, halt), func(t *testing.T) {
				seed := seedOf(t)
				s := newStreams(t)
				old := s.start(halt)
				all := s.dial(clients, seed)
				for _, c := range all { // a part of it will be unread
					if _, err := c.conn.Write(c.at.next(1 + c.rng.IntN(2000))); err != nil {
						t.Fatal(err)
					}
				}
				next := s.start(0)
				old.freeze()
				survivor := next
				if victim == "successor" {
					survivor = old
					_ = next.Process.Kill()
					_ = next.Wait() // it was killed
					if err := errors.Join(old.Process.Signal(syscall.SIGUSR1), old.Process.Signal(syscall.SIGCONT)); err != nil {
						t.Fatal(err)
					}
				} else {
					_ = old.Process.Kill()
					_ = old.Wait()
				}
				lost, moved := 0, 0
				if victim == "successor" {
					words := old.says("moved")
					moved, _ = strconv.Atoi(words[0])
				}
				for i, c := range all {
					outstanding := int(c.at.Written - c.at.Read)
					err := c.read(outstanding)
					if err == nil {
						err = c.ping()
					}
					switch {
					case err == nil:
					case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
						lost++
					default:
						t.Errorf("client %d: %v", i, err)
					}
				}
				if err := survivor.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if victim == "predecessor" {
					moved = survivor.number("came", 0)
					if want := clients - moved; lost != want {
						t.Errorf("%d clients have lost their connection, and %d were with the process that was killed", lost, want)
					}
				} else if lost != moved {
					t.Errorf("%d clients have lost their connection, and %d were with the process that was killed", lost, moved)
				}
				if moved < halt || moved == clients {
					t.Errorf("%d of %d have moved: nothing was under way", moved, clients)
				}
				survivor.mustExit()
			})
		}
	}
}

// BenchmarkHandOver moves ten thousand idle connections in one upgrade, and for
// comparison sends as many descriptors, one a frame, to a process that does nothing
// but close them.
func BenchmarkHandOver(b *testing.B) {
	const n = 10_000
	b.Run("connections", func(b *testing.B) {
		if limit := noFile(b); limit < n+200 {
			b.Skipf("RLIMIT_NOFILE is %d, and the clients alone need %d descriptors", limit, n)
		}
		s := newStreams(b)
		serving := s.start(0)
		all := s.dial(n, 0)
		total := time.Duration(0)
		b.ResetTimer()
		for range b.N {
			next := s.start(0)
			words := serving.says("moved")
			if words[0] != strconv.Itoa(n) {
				b.Fatalf("%s connections of %d have moved", words[0], n)
			}
			took, err := strconv.Atoi(words[1])
			if err != nil {
				b.Fatal(err)
			}
			total += time.Duration(took)
			serving.mustExit()
			serving = next
		}
		b.StopTimer()
		for _, c := range all[:100] {
			if err := c.ping(); err != nil {
				b.Error(err)
			}
		}
		b.ReportMetric(float64(total.Nanoseconds())/float64(b.N)/n, "ns/conn")
		if err := serving.Process.Signal(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		serving.mustExit()
	})
	b.Run("descriptors", func(b *testing.B) {
		path := filepath.Join(newStreams(b).dir, "d")
		ln, err := net.Listen("unix", path)
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		fd, err := scm.DupFD(ln.(syscall.Conn))
		if err != nil {
			b.Fatal(err)
		}
		defer fd.Close()
		reexec.Start(b, reexec.Command("drop", path, strconv.Itoa(n)))
		c, err := ln.Accept()
		if err != nil {
			b.Fatal(err)
		}
		conn, err := scm.NewConn(c.(*net.UnixConn))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		b.ResetTimer()
		for range b.N {
			for range n {
				if err := conn.Send(b.Context(), []byte("x"), fd); err != nil {
					b.Fatal(err)
				}
			}
			if _, _, err := conn.Receive(b.Context(), 0); err != nil { // it has all of them
				b.Fatal(err)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/conn")
	})
}

// noFile is how many descriptors this process may have.
func noFile(b *testing.B) uint64 {
	b.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	return uint64(limit.Cur) //nolint:unconvert // signed on some systems
}

// dropDescriptors receives descriptors and closes them, and answers whenever that
// many have come, until the connection ends.
func dropDescriptors() {
	c, err := net.Dial("unix", os.Args[1])
	check(err)
	conn, err := scm.NewConn(c.(*net.UnixConn))
	check(err)
	n, err := strconv.Atoi(os.Args[2])
	check(err)
	ctx := context.Background()
	for {
		for range n {
			_, fds, err := conn.Receive(ctx, 1)
			if errors.Is(err, io.EOF) {
				return
			}
			check(err)
			check(fds[0].Close())
		}
		check(conn.Send(ctx, []byte("x")))
	}
}

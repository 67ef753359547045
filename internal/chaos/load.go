//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// load is the clients of the service: they dial, read an answer and leave, again
// and again, and keep a record of each try.
type load struct {
	address, unix string
	cancel        context.CancelFunc
	wg            sync.WaitGroup
	probes        sync.WaitGroup

	mu    sync.Mutex
	tries []try
	open  map[net.Conn]bool
}

// try is one client's visit.
type try struct {
	network   string
	began     int64
	connected int64 // 0: not
	ended     int64
	queued    bool // dialled while the process stood still that might have accepted it
	who       string
	err       error
}

// pacing is the pause between two visits of a client. Without it the clients
// would take the processors from what is under test.
const pacing = 2 * time.Millisecond

// answerLimit is how long a client waits for its answer: longer than any process
// of a cell stands still.
const answerLimit = time.Minute

// startLoad lets two clients over TCP and one over the unix socket come and go
// until stop.
func startLoad(address, unix string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{address: address, unix: unix, cancel: cancel, open: make(map[net.Conn]bool)}
	for _, network := range []string{"tcp", "tcp", "unix"} {
		l.wg.Go(func() {
			ticker := time.NewTicker(pacing)
			defer ticker.Stop()
			for ctx.Err() == nil {
				l.visit(network, false)
				select {
				case <-ticker.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return l
}

func (l *load) target(network string) string {
	if network == "unix" {
		return l.unix
	}
	return l.address
}

func (l *load) visit(network string, queued bool) {
	t := try{network: network, began: now(), queued: queued}
	c, err := net.Dial(network, l.target(network))
	if err == nil {
		t.connected = now()
		t.who, err = l.readAnswer(c)
	}
	l.record(t, err)
}

func (l *load) record(t try, err error) {
	t.ended, t.err = now(), err
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries = append(l.tries, t)
}

// queue dials clients that nobody has accepted yet when it returns, if every
// process that accepts stands still, and has them wait for their answers.
func (l *load) queue(n int) {
	for range n {
		for _, network := range []string{"tcp", "unix"} {
			t := try{network: network, began: now(), queued: true}
			c, err := net.Dial(network, l.target(network))
			if err != nil {
				l.record(t, err)
				continue
			}
			t.connected = now()
			l.probes.Go(func() {
				var err error
				t.who, err = l.readAnswer(c)
				l.record(t, err)
			})
		}
	}
}

// readAnswer reads one answer, which names the process, and closes c.
func (l *load) readAnswer(c net.Conn) (who string, err error) {
	l.mu.Lock()
	l.open[c] = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.open, c)
		l.mu.Unlock()
		_ = c.Close()
	}()
	if t, ok := c.(*net.TCPConn); ok {
		// Thousands of ports would wait for their time otherwise.
		if err := t.SetLinger(0); err != nil {
			return "", err
		}
	}
	return ask(c, bufio.NewReader(c))
}

func ask(c net.Conn, in *bufio.Reader) (who string, err error) {
	if err := c.SetReadDeadline(time.Now().Add(answerLimit)); err != nil {
		return "", err
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	var generation uint64
	if _, err := fmt.Sscan(line, &who, &generation); err != nil {
		return "", fmt.Errorf("answer %q: %w", line, err)
	}
	return who, nil
}

// lastAnswer is how long a client waits on once no more are to come.
const lastAnswer = 5 * time.Second

// stop returns when every client has had its answer. One that has none after a
// while gives up: what it has met is then judged like any other failure, for it
// may wait for a process that stands still for good.
func (l *load) stop() []try {
	l.cancel()
	impatient := time.AfterFunc(lastAnswer, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for c := range l.open {
			_ = c.SetReadDeadline(time.Unix(1, 0))
		}
	})
	defer impatient.Stop()
	l.wg.Wait()
	l.probes.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tries
}

// session is a client that stays.
type session struct {
	conn net.Conn
	in   *bufio.Reader
	who  string // who has accepted it
}

func newSession(address string) (*session, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &session{conn: c, in: bufio.NewReader(c)}
	if s.who, err = ask(c, s.in); err != nil {
		_ = c.Close()
		return nil, err
	}
	return s, nil
}

// again asks once more: the connection is served for as long as the process
// lives that has accepted it.
func (s *session) again() error {
	if _, err := fmt.Fprintln(s.conn, "who"); err != nil {
		return err
	}
	who, err := ask(s.conn, s.in)
	if err == nil && who != s.who {
		err = fmt.Errorf("%s answered on a connection of %s", who, s.who)
	}
	return err
}

// stay has the service know it as one that may be told to move.
func (s *session) stay() error {
	if _, err := fmt.Fprintln(s.conn, staying); err != nil {
		return err
	}
	_, err := ask(s.conn, s.in)
	return err
}

// servedBy asks whether that process answers now, and nobody else.
func (s *session) servedBy(p *process) error {
	s.who = p.name
	return s.again()
}

// lost fails if anybody still answers.
func (s *session) lost() error {
	if err := s.again(); err == nil {
		return fmt.Errorf("%s still answers a client that had ended with another process", s.who)
	}
	return nil
}

func (s *session) close() { _ = s.conn.Close() }

// askPackets asks the UDP socket once.
func askPackets(ctx context.Context, address string) (who string, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "udp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetReadDeadline(deadline); err != nil {
			return "", err
		}
	}
	if _, err := c.Write([]byte("who")); err != nil {
		return "", err
	}
	return ask(c, bufio.NewReader(c))
}

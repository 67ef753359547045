package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	maxThink = 5 * time.Millisecond // between an answer and the next request
	bodySize = 1 << 10              // of each second request, which is a POST
	limit    = 10 * time.Second     // for a request
)

// answer is one that a client got.
type answer struct {
	at   time.Time
	took time.Duration
}

// client makes requests on a connection that it keeps, as fast as it can think. It
// repeats nothing but what HTTP says was not handled: requests behind an answer that
// says that the server closes (RFC 9112, 9.3.2).
type client struct {
	*load
	name   string
	atOnce int

	conn net.Conn // nil if there is none
	r    *bufio.Reader

	answered int
	repeated int
	answers  []answer
	failures []string
}

// load is all clients.
type load struct {
	address string
	keep    bool // the answers
	clients []*client
	ended   chan struct{}
	once    sync.Once
	running sync.WaitGroup
}

func startLoad(address string, clients int, keep bool) *load {
	l := &load{address: address, keep: keep, ended: make(chan struct{})}
	for i := range clients {
		c := &client{load: l, name: fmt.Sprint(i), atOnce: 1 + i%2}
		l.clients = append(l.clients, c)
		l.running.Go(c.run)
	}
	return l
}

// stop returns when the requests under way have ended.
func (l *load) stop() {
	l.once.Do(func() { close(l.ended) })
	l.running.Wait()
}

// sum adds up what the clients have seen. They have stopped.
func (l *load) sum(r *result) {
	for _, c := range l.clients {
		r.answered += c.answered
		r.repeated += c.repeated
		r.answers = append(r.answers, c.answers...)
		r.failures = append(r.failures, c.failures...)
	}
}

func (c *client) run() {
	defer c.hangUp()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n += c.atOnce {
		select {
		case <-c.ended:
			return
		case <-timer.C:
		}
		c.make(n)
		timer.Reset(rand.N(maxThink))
	}
}

// make makes the requests from the nth on, all at once.
func (c *client) make(n int) {
	began := time.Now()
	err := c.send(n, n+c.atOnce)
	for i := n; i < n+c.atOnce; i++ {
		if err == nil && c.conn == nil { // the answer before this one has ended it
			c.repeated += n + c.atOnce - i
			err = c.send(i, n+c.atOnce)
		}
		if err == nil {
			err = c.receive(i)
		}
		if err != nil {
			c.hangUp()
			c.failures = append(c.failures, fmt.Sprintf("request %d of client %s at %s: %v", i, c.name, time.Now().Format("15:04:05.000"), err))
			continue
		}
		c.answered++
		if c.keep {
			c.answers = append(c.answers, answer{time.Now(), time.Since(began)})
		}
	}
}

// size is that of the body of the nth request.
func size(n int) int { return n % 4 / 2 * bodySize }

// send sends the requests from the nth on in two pieces, so that each is on its way for
// a moment.
func (c *client) send(n, end int) error {
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.address, limit)
		if err != nil {
			return err
		}
		c.conn, c.r = conn, bufio.NewReader(conn)
	}
	if err := c.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	var b bytes.Buffer
	for ; n < end; n++ {
		if size(n) == 0 {
			fmt.Fprintf(&b, "GET /%s/%d HTTP/1.1\r\nHost: x\r\n\r\n", c.name, n)
			continue
		}
		fmt.Fprintf(&b, "POST /%s/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", c.name, n, size(n), make([]byte, size(n)))
	}
	if _, err := c.conn.Write(b.Next(rand.N(b.Len()))); err != nil {
		return err
	}
	_, err := c.conn.Write(b.Bytes())
	return err
}

func (c *client) receive(n int) error {
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("/%s/%d %d", c.name, n, size(n)); string(body) != want {
		return fmt.Errorf("the answer is %q, not %q", body, want)
	}
	if resp.Close {
		c.hangUp()
	}
	return nil
}

func (c *client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.conn, c.r = nil, nil
}

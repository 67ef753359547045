package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/examples/bluegreen"
)

// client makes one request after another. It speaks HTTP over a plain connection,
// because an http.Client silently repeats a request whose connection has ended.
type client struct {
	*shared
	name     string
	fresh    bool // a connection for each request
	outcomes []outcome

	conn net.Conn // nil if there is none
	br   *bufio.Reader
	last bluegreen.Process // who has answered on conn; nobody at first
}

// shared is what all clients have in common.
type shared struct {
	address string
	limit   time.Duration
	slow    time.Duration
	tell    int

	mu    sync.Mutex
	left  int         // requests that may still be made
	tally map[int]int // answers by pid
}

// outcome is a request and what is needed to judge it.
type outcome struct {
	bluegreen.Request
	used bool // the connection had answered before
	err  error
}

// The time that a client takes between two requests lies between minThink and
// maxThink. roundTrip is what lies between a connection and its first request, and
// between the two pieces of a large one: on the loopback there is no distance, and
// without it a server would hardly ever be replaced in between.
const (
	minThink  = 2 * time.Millisecond
	maxThink  = 20 * time.Millisecond
	roundTrip = 2 * time.Millisecond
)

// bodySize is the size of a large request's body, more than a packet holds.
const bodySize = 32 << 10

// run makes requests until ctx ends or none are left. It never interrupts one.
func (c *client) run(ctx context.Context) {
	defer c.hangUp()
	for n := 0; c.take(); n++ {
		c.outcomes = append(c.outcomes, c.request(n))
		think(ctx, minThink+rand.N(maxThink-minThink))
		if ctx.Err() != nil {
			return
		}
	}
}

// request makes the client's nth request.
func (c *client) request(n int) outcome {
	o := outcome{
		Request: bluegreen.Request{ID: fmt.Sprintf("%s-%d", c.name, n), Fresh: c.fresh, Began: time.Now(), Server: c.last},
		used:    c.last.PID != 0,
	}
	req, asked, err := c.newRequest(n, o.ID)
	if err != nil {
		o.err = err
		return o
	}
	if c.conn == nil {
		asked += roundTrip
	}
	reply, err := c.exchange(req)
	o.Wait = max(0, time.Since(o.Began)-asked)
	if err != nil {
		// What the next request would read is the rest of this one.
		c.hangUp()
		o.err = err
		return o
	}
	o.Server = reply.Process
	if c.conn != nil {
		c.last = reply.Process
	}
	c.answered(reply.PID)
	return o
}

// newRequest returns the nth request, and how long its answer takes by its own
// nature. The first and each fourth after it is slow, each fourth is large.
func (c *client) newRequest(n int, id string) (*http.Request, time.Duration, error) {
	method, path, asked := http.MethodGet, "/", time.Duration(0)
	var body io.Reader
	switch n % 4 {
	case 0:
		path, asked = "/slow?for="+c.slow.String(), c.slow
	case 1:
		method, asked = http.MethodPost, roundTrip
		body = bytes.NewReader(make([]byte, bodySize))
	}
	req, err := http.NewRequest(method, "http://"+c.address+path, body)
	if err != nil {
		return nil, 0, err
	}
	req.Close = c.fresh
	req.Header.Set("X-Request-Id", id)
	return req, asked, nil
}

// exchange sends req and reads the answer, on a connection that it opens if there
// is none.
func (c *client) exchange(req *http.Request) (*bluegreen.Reply, error) {
	deadline := time.Now().Add(c.limit)
	if c.conn == nil {
		dialer := net.Dialer{Deadline: deadline}
		conn, err := dialer.Dial("tcp", c.address)
		if err != nil {
			return nil, err
		}
		c.conn, c.br = conn, bufio.NewReader(conn)
		think(context.Background(), roundTrip)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if err := c.send(req); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.br, req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	reply, err := check(req, resp)
	if err != nil {
		return nil, err
	}
	if c.fresh || resp.Close {
		c.hangUp()
	}
	return reply, nil
}

// send writes req, a large one in two pieces.
func (c *client) send(req *http.Request) error {
	var b bytes.Buffer
	if err := req.Write(&b); err != nil {
		return err
	}
	if req.ContentLength > 0 {
		if _, err := c.conn.Write(b.Next(b.Len() / 2)); err != nil {
			return err
		}
		think(context.Background(), roundTrip)
	}
	_, err := c.conn.Write(b.Bytes())
	return err
}

// check reads the answer and compares it with its request.
func check(req *http.Request, resp *http.Response) (*bluegreen.Reply, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s: %.100q", resp.Status, data)
	}
	reply := new(bluegreen.Reply)
	if err := json.Unmarshal(data, reply); err != nil {
		return nil, fmt.Errorf("not an answer: %.100q: %w", data, err)
	}
	if id := req.Header.Get("X-Request-Id"); reply.ID != id || reply.Bytes != req.ContentLength || reply.PID == 0 {
		return nil, fmt.Errorf("this does not answer request %s with %d bytes: %.100q", id, req.ContentLength, data)
	}
	return reply, nil
}

// hangUp closes the connection, if there is one.
func (c *client) hangUp() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn, c.br, c.last = nil, nil, bluegreen.Process{}
}

// take reports whether one more request may be made.
func (s *shared) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left--
	return s.left >= 0
}

// answered counts an answer of the server pid.
func (s *shared) answered(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally[pid]++
	if s.tally[pid] == s.tell {
		fmt.Println(pid)
	}
}

// think waits for d or until ctx ends.
func think(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

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

// client makes one request after another, or two at once. It speaks HTTP over a plain
// connection, because an http.Client silently repeats a request whose connection has
// ended.
type client struct {
	*shared
	name     string
	fresh    bool // a connection for each request
	atOnce   int  // how many requests it sends before it reads an answer
	outcomes []outcome

	conn net.Conn // nil if there is none
	br   *bufio.Reader
	last bluegreen.Process // who has answered on conn; nobody at first

	dialled  int // connections opened
	repeated int // requests sent again, because the answer before them said that the server closes
}

// shared is what all clients have in common.
type shared struct {
	address string
	limit   time.Duration
	slow    time.Duration
	tell    int

	mu     sync.Mutex
	left   int         // requests that may still be made
	tally  map[int]int // answers by pid
	newest int         // the pid that answered on the last new connection
}

// outcome is a request and what is needed to judge it.
type outcome struct {
	bluegreen.Request
	used bool // the connection had answered before
	err  error
}

// The time that a client with a new connection for each request takes between two of
// them lies between minThink and maxThink; one that keeps its connection takes at most
// maxKeptThink. roundTrip is what lies between a connection and its first request, and
// between the two pieces of a large one: on the loopback there is no distance, and
// without it a server would hardly ever be replaced in between.
const (
	minThink     = 2 * time.Millisecond
	maxThink     = 20 * time.Millisecond
	maxKeptThink = 5 * time.Millisecond
	roundTrip    = 2 * time.Millisecond
)

// bodySize is the size of a large request's body, more than a packet holds.
const bodySize = 32 << 10

// run makes requests until ctx ends or none are left. It never interrupts one.
func (c *client) run(ctx context.Context) {
	defer c.hangUp()
	for n := 0; ; {
		var batch []*message
		for range c.atOnce {
			if c.take() {
				batch = append(batch, c.message(n))
				n++
			}
		}
		if len(batch) == 0 {
			return
		}
		c.make(batch)
		if c.fresh {
			think(ctx, minThink+rand.N(maxThink-minThink))
		} else {
			think(ctx, rand.N(maxKeptThink))
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// message is a request that is to be made.
type message struct {
	outcome
	req   *http.Request
	bytes []byte
	asked time.Duration // how long its answer takes by its own nature
}

// message returns the client's nth request.
func (c *client) message(n int) *message {
	m := &message{outcome: outcome{Request: bluegreen.Request{ID: fmt.Sprintf("%s-%d", c.name, n), Fresh: c.fresh}}}
	m.req, m.asked, m.err = c.newRequest(n, m.ID)
	if m.err == nil {
		var b bytes.Buffer
		m.err = m.req.Write(&b)
		m.bytes = b.Bytes()
	}
	return m
}

// make makes requests, all at once, and notes what becomes of them.
func (c *client) make(batch []*message) {
	began, asked := time.Now(), time.Duration(0)
	for i := range batch {
		batch[i].Began, batch[i].Server, batch[i].used = began, c.last, c.last.PID != 0
	}
	if c.conn == nil {
		asked += roundTrip
	}
	err := c.send(batch)
	for i, m := range batch {
		asked += m.asked
		if err == nil && c.conn == nil { // the answer before this one has ended it
			c.repeated += len(batch) - i
			asked += roundTrip
			err = c.send(batch[i:])
		}
		if err == nil {
			err = c.receive(m)
		}
		m.Wait = max(0, time.Since(began)-asked)
		if err != nil {
			c.hangUp() // what would be read next is the rest of this one
			m.err = err
		}
		c.outcomes = append(c.outcomes, m.outcome)
	}
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

// send sends requests, on a connection that it opens if there is none: in two pieces
// if one of them is large.
func (c *client) send(batch []*message) error {
	deadline := time.Now().Add(c.limit)
	if c.conn == nil {
		dialer := net.Dialer{Deadline: deadline}
		conn, err := dialer.Dial("tcp", c.address)
		if err != nil {
			return err
		}
		c.dialled++
		c.conn, c.br = conn, bufio.NewReader(conn)
		think(context.Background(), roundTrip)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return err
	}
	var all []byte
	large := false
	for _, m := range batch {
		all = append(all, m.bytes...)
		large = large || m.req.ContentLength > 0
	}
	if large {
		if _, err := c.conn.Write(all[:len(all)/2]); err != nil {
			return err
		}
		all = all[len(all)/2:]
		think(context.Background(), roundTrip)
	}
	_, err := c.conn.Write(all)
	return err
}

// receive reads the answer to a request.
func (c *client) receive(m *message) error {
	resp, err := http.ReadResponse(c.br, m.req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	reply, err := check(m.req, resp)
	if err != nil {
		return err
	}
	m.Server, c.last = reply.Process, reply.Process
	if c.fresh || resp.Close {
		c.hangUp()
	}
	c.answered(reply.PID, c.fresh)
	return nil
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

// answered counts an answer of the server pid, on a new connection or on another.
func (s *shared) answered(pid int, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally[pid]++
	returned := fresh && pid != s.newest && s.tally[pid] > s.tell
	if fresh {
		s.newest = pid
	}
	if s.tell > 0 && (returned || s.tally[pid] == s.tell) {
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

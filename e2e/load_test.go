//go:build linux

package e2e_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// load is clients that ask the service who it is, all the time, until stop.
type load struct {
	done chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex
	answers  map[string]int // by version
	news     chan struct{}  // closed and replaced whenever somebody was answered
	failures []error
	refused  []error
}

// think is between two requests of a client: half a dozen services share the machine.
const think = 3 * time.Millisecond

func startLoad(dial dialer, address string) *load {
	l := &load{done: make(chan struct{}), answers: make(map[string]int), news: make(chan struct{})}
	for i := range 4 {
		l.wg.Go(func() { l.run(&client{dial: dial, address: address, fresh: i%2 == 0}) })
	}
	return l
}

func (l *load) run(c *client) {
	defer c.hangUp()
	for {
		version, err := c.ask()
		l.note(version, err)
		select {
		case <-l.done:
			return
		case <-time.After(think):
		}
	}
}

func (l *load) note(version string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		l.refused = append(l.refused, err)
	case err != nil:
		l.failures = append(l.failures, err)
	default:
		l.answers[version]++
		close(l.news)
		l.news = make(chan struct{})
	}
}

// sees waits until a version has answered a request that began after the call.
func (l *load) sees(version string) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	// Each client may have been answered before the call by one that has gone.
	for before := l.answers[version]; l.answers[version] <= before+4; {
		news := l.news
		l.mu.Unlock()
		expired := false
		select {
		case <-news:
		case <-timer.C:
			expired = true
		}
		l.mu.Lock()
		if expired {
			return fmt.Errorf("version %s answers nobody: %v", version, l.answers)
		}
	}
	return nil
}

// stop ends the load. The error is that of clients who were turned away; lossy
// forgives what was lost with a process that was killed.
func (l *load) stop(lossy bool) (summary string, err error) {
	close(l.done)
	l.wg.Wait()
	failures := l.refused
	if !lossy {
		failures = append(failures, l.failures...)
	}
	summary = fmt.Sprintf("load: answers %v, failures %v, refused %v", l.answers, l.failures, l.refused)
	switch {
	case len(failures) > 0:
		return summary, fmt.Errorf("%d requests have failed, the first one: %w", len(failures), failures[0])
	case len(l.answers) == 0:
		return summary, errors.New("nobody was answered")
	default:
		return summary, nil
	}
}

// dialer connects to a service.
type dialer func(network, address string) (net.Conn, error)

// client speaks HTTP over a plain connection: an http.Client repeats in silence what
// has failed.
type client struct {
	dial    dialer
	address string
	fresh   bool // a connection for each request
	conn    net.Conn
	br      *bufio.Reader
}

// ask returns the version that answers. A connection that has been used may end
// under the request: the server cannot know that one is coming. It is asked again on
// a new one, and what happens there counts.
func (c *client) ask() (version string, err error) {
	if used := c.conn != nil; used {
		version, err := c.exchange()
		if err == nil {
			return version, nil
		}
		c.hangUp()
	}
	conn, err := c.dial("tcp", c.address)
	if err != nil {
		return "", err
	}
	c.conn, c.br = conn, nil
	version, err = c.exchange()
	if err != nil || c.fresh {
		c.hangUp()
	}
	return version, err
}

func (c *client) exchange() (version string, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+c.address+"/", nil)
	if err != nil {
		return "", err
	}
	req.Close = c.fresh
	if err := c.send(req); err != nil {
		return "", err
	}
	resp, err := c.receive(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ Version string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return "", err
	}
	if resp.Close {
		c.hangUp()
	}
	return answer.Version, nil
}

func (c *client) send(req *http.Request) error {
	if err := c.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	return req.Write(c.conn)
}

func (c *client) receive(req *http.Request) (*http.Response, error) {
	if c.br == nil {
		c.br = bufio.NewReader(c.conn)
	}
	return http.ReadResponse(c.br, req)
}

func (c *client) hangUp() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

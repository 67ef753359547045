package trial

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
)

// Answer is what the server says of itself.
type Answer struct {
	PID        int
	Generation uint64
	Version    string
}

// Address returns where a service listens for HTTP.
func Address(t testing.TB, status *crossfade.Status) string {
	t.Helper()
	for _, d := range status.Descriptors {
		if d.Name == "http" {
			return d.Address
		}
	}
	t.Fatalf("no descriptor is called http: %+v", status.Descriptors)
	return ""
}

// Ask makes a request on a connection of its own.
func Ask(address string) (Answer, error) {
	var answer Answer
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: Limit}).DialContext}
	client := &http.Client{Transport: transport, Timeout: Limit}
	response, err := client.Get("http://" + address)
	if err != nil {
		return answer, err
	}
	err = json.NewDecoder(response.Body).Decode(&answer)
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	return answer, errors.Join(err, response.Body.Close())
}

// Hold begins a request that a server which leaves has to wait for, and returns when
// it is under way. finish ends it and fails the test if it was not answered.
func Hold(t testing.TB, address string) (finish func()) {
	t.Helper()
	body, write := io.Pipe()
	t.Cleanup(func() { write.Close() })
	ended := make(chan error, 1) // so that the request can end when nobody waits for it
	go func() {
		transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: Limit}).DialContext}
		response, err := (&http.Client{Transport: transport, Timeout: Limit}).Post("http://"+address, "text/plain", body)
		if err == nil {
			err = response.Body.Close()
		}
		ended <- err
	}()
	// The client reads the next part when it has sent the one before.
	for range 2 {
		_, err := io.WriteString(write, "a part")
		must(t, err)
	}
	return func() {
		t.Helper()
		must(t, write.Close())
		must(t, <-ended)
	}
}

// Load is a number of clients that ask again and again, each time on a connection of
// its own.
type Load struct {
	t       testing.TB
	address string
	stop    chan struct{}
	clients sync.WaitGroup

	mu       sync.Mutex
	answers  map[string]int // by version
	failures []error
}

// clients is how many there are: enough for some to be on their way at any moment.
const clients = 4

// StartLoad starts the clients. They stop when the test ends, if not before.
func StartLoad(t testing.TB, address string) *Load {
	l := &Load{t: t, address: address, stop: make(chan struct{}), answers: make(map[string]int)}
	for range clients {
		l.clients.Go(l.client)
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

func (l *Load) client() {
	pause := time.NewTicker(2 * time.Millisecond)
	defer pause.Stop()
	for {
		answer, err := Ask(l.address)
		l.mu.Lock()
		if err != nil {
			l.failures = append(l.failures, err)
		} else {
			l.answers[answer.Version]++
		}
		l.mu.Unlock()
		select {
		case <-pause.C:
		case <-l.stop:
			return
		}
	}
}

// Await waits until some version has answered.
func (l *Load) Await(version string) {
	l.t.Helper()
	Await(l.t, "an answer of "+version, func() bool { return l.Answers()[version] > 0 })
}

// Answers returns how many there were, by version.
func (l *Load) Answers() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.answers)
}

// Stop stops the clients, and fails the test if a request has failed.
func (l *Load) Stop() {
	l.t.Helper()
	select {
	case <-l.stop:
		return
	default:
	}
	close(l.stop)
	l.clients.Wait()
	if len(l.failures) > 0 {
		l.t.Errorf("%d requests failed, the first with: %v", len(l.failures), l.failures[0])
	}
}

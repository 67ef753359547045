package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// maxLine is the longest line that a client may send, and so the most that a
// connection has read and not used.
const maxLine = 4 << 10

// writeTimeout is how long a client may take to read what is said.
const writeTimeout = 5 * time.Second

// hall is where everybody is, in one process.
type hall struct {
	opened   chan struct{} // closed when people are listened to
	openOnce sync.Once

	mu      sync.Mutex
	closed  bool
	people  map[*person]struct{}
	reading sync.WaitGroup // those who are listened to, or will be
}

func newHall() *hall {
	return &hall{opened: make(chan struct{}), people: make(map[*person]struct{})}
}

// person is a client.
type person struct {
	conn  net.Conn
	lines *bufio.Reader

	// Changed by the goroutine that reads; the hall's mu guards room.
	name, room string
	lastRead   string // a line without its end, cut off by the hand-over
}

// knowledge is what travels with a client's connection.
type knowledge struct {
	Name string `json:"name"`
	Room string `json:"room"`
}

// open lets everybody be listened to.
func (h *hall) open() { h.openOnce.Do(func() { close(h.opened) }) }

// enter lets a client in. known is what the predecessor has known of it, nil for one
// that is new. serve follows, unless it is nil.
func (h *hall) enter(c net.Conn, known []byte) *person {
	p := &person{conn: c, lines: bufio.NewReaderSize(c, maxLine), room: "lobby"}
	if known != nil {
		var k knowledge
		if err := json.Unmarshal(known, &k); err != nil {
			p.leave("the server has forgotten you\n")
			return nil
		}
		p.name, p.room = k.Name, k.Room
	}
	if !h.admit(p) {
		p.leave("the server is closing, please come again\n")
		return nil
	}
	return p
}

// admit reports false if the hall is closed.
func (h *hall) admit(p *person) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.people[p] = struct{}{}
	h.reading.Add(1)
	return true
}

// serve listens to a client until it leaves, or the hall is closed.
func (h *hall) serve(p *person) {
	defer h.reading.Done()
	<-h.opened
	if h.isClosed() {
		return // before a word was said: all of it is for the successor
	}
	if p.name == "" {
		p.tell("your name?\n")
	}
	for {
		line, err := p.lines.ReadSlice('\n')
		if err != nil {
			p.lastRead = string(line)
			if h.isClosed() {
				return // whoever has closed the hall goes on with the client
			}
			h.leave(p)
			return
		}
		h.hear(p, strings.TrimSpace(string(line)))
	}
}

func (h *hall) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

func (h *hall) leave(p *person) {
	h.mu.Lock()
	delete(h.people, p)
	h.mu.Unlock()
	_ = p.conn.Close()
	h.say(p.room, fmt.Sprintf("* %s has left\n", p.name))
}

// hear handles one line.
func (h *hall) hear(p *person, line string) {
	switch word, rest, _ := strings.Cut(line, " "); {
	case p.name == "":
		p.name = line
		h.say(p.room, fmt.Sprintf("* %s has come\n", p.name))
	case word == "/join":
		h.mu.Lock()
		p.room = rest
		h.mu.Unlock()
		h.say(p.room, fmt.Sprintf("* %s is in %s\n", p.name, p.room))
	default:
		h.say(p.room, fmt.Sprintf("%s: %s\n", p.name, line))
	}
}

// say tells everybody in the room.
func (h *hall) say(room, text string) {
	h.mu.Lock()
	var listeners []*person
	for p := range h.people {
		if p.room == room {
			listeners = append(listeners, p)
		}
	}
	h.mu.Unlock()
	for _, p := range listeners {
		p.tell(text)
	}
}

// close ends the reading from everybody and returns who is there. With a farewell
// they are sent away.
func (h *hall) close(farewell string) []*person {
	h.mu.Lock()
	h.closed = true
	var people []*person
	for p := range h.people {
		people = append(people, p)
		_ = p.conn.SetReadDeadline(time.Now()) // wakes the one who reads
	}
	h.mu.Unlock()
	h.open() // for those who have not been listened to yet
	h.reading.Wait()
	if farewell != "" {
		for _, p := range people {
			p.leave(farewell)
		}
	}
	return people
}

// tell writes to a client. One that does not read is cut off by the deadline.
func (p *person) tell(text string) {
	_ = p.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = p.conn.Write([]byte(text)) // its reading side meets the error
}

func (p *person) leave(farewell string) {
	p.tell(farewell)
	_ = p.conn.Close()
}

// pack returns what the successor has to know, and what was read and not used.
func (p *person) pack() (state, unread []byte, err error) {
	state, err = json.Marshal(knowledge{Name: p.name, Room: p.room})
	buffered, _ := p.lines.Peek(p.lines.Buffered())
	return state, append([]byte(p.lastRead), buffered...), err
}

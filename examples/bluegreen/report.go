package bluegreen

import (
	"errors"
	"io"
	"syscall"
	"time"
)

// Process is one of the servers. The zero Process is nobody.
type Process struct {
	PID        int    `json:"pid"`
	Generation uint64 `json:"generation"`
	Version    string `json:"version"`
}

// Reply is what a server answers.
type Reply struct {
	Process
	ID    string `json:"id"`    // the request's, from its X-Request-Id
	Bytes int64  `json:"bytes"` // of the request's body
}

// Class says how a request failed. The empty Class means that it was answered.
type Class string

// The classes of failures, which are also their names in a report.
const (
	// Refused: nobody listened on the port.
	Refused Class = "refused"
	// Reset: the connection was new, and it ended before a handler began.
	Reset Class = "reset"
	// Lost: a handler had begun and the client got no answer.
	Lost Class = "lost"
	// Idle: the connection had served before, and the server closed it while
	// the request was on its way. No handler has seen that request.
	Idle Class = "idle"
	// Other: anything else, as a time-out or an answer that makes no sense.
	Other Class = "other"
)

// Failure is what a client saw of a request that was not answered.
type Failure struct {
	Err   error
	Used  bool // the connection had answered a request before
	Begun bool // according to a journal a handler had begun
}

// Class returns what kind of failure it was.
func (f Failure) Class() Class {
	switch {
	case f.Begun:
		return Lost
	case errors.Is(f.Err, syscall.ECONNREFUSED):
		return Refused
	case !ended(f.Err):
		return Other
	case f.Used:
		return Idle
	default:
		return Reset
	}
}

// ended reports whether err says that the other side has ended a connection.
// Whether that shows as end of file, as a reset, or as a broken pipe depends only
// on what was under way in which direction.
func ended(err error) bool {
	for _, target := range []error{
		io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// Request is one request, as its client saw it.
type Request struct {
	ID    string    `json:"id"`
	Fresh bool      `json:"fresh"` // on a connection of its own, opened for it
	Began time.Time `json:"began"`
	// Wait is how long the client waited for the answer or the failure,
	// opening the connection included. What the handler was asked to take, and
	// what the client itself took before the next piece of it, is left out.
	Wait time.Duration `json:"wait_ns"`
	// Server answered the request. If none did: where its handler began, or
	// else the last one that answered on the same connection, or nobody.
	Server  Process `json:"server"`
	Failure Class   `json:"failure,omitempty"`
	Error   string  `json:"error,omitempty"` // empty if it was answered
}

// Report is what the load generator writes: all requests, client by client.
type Report struct {
	Address  string        `json:"address"`
	Answered int           `json:"answered"`
	Failed   map[Class]int `json:"failed"`
	Kept     Kept          `json:"kept"`
	Requests []Request     `json:"requests"`
}

// Kept is how the clients fared that keep their connection alive.
type Kept struct {
	Clients int `json:"clients"`
	Dialled int `json:"dialled"` // connections that they have opened
	// Repeated are requests that were sent behind another one in advance, and sent
	// again on a new connection because the answer to that one said that the server
	// would close: then they were not handled (RFC 9112, 9.3.2).
	Repeated int `json:"repeated"`
}

// NewReport returns the report of requests to address.
func NewReport(address string, requests []Request) *Report {
	r := &Report{Address: address, Failed: make(map[Class]int), Requests: requests}
	for _, class := range []Class{Refused, Reset, Lost, Idle, Other} {
		r.Failed[class] = 0
	}
	for i := range requests {
		if class := requests[i].Failure; class != "" {
			r.Failed[class]++
		} else {
			r.Answered++
		}
	}
	return r
}

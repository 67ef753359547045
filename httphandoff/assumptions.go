package httphandoff

import (
	"bufio"
	"net/http"
)

// # What is assumed of net/http
//
// A connection may only be taken away from an [http.Server] while the server holds
// nothing of it: no byte that it has read and not used, and nobody who writes. The
// server does not say when that is. It shows in the calls that it makes on the
// connection (net/http/server.go, conn.serve and connReader; Go 1.25 and 1.26):
//
//  1. The server reads through one bufio.Reader of that package's default size. It
//     begins a Read only if the buffer has less than what it wants, always with the
//     whole free part of the buffer, and never two Reads at a time.
//  2. When a response has been written, flushed, and its request's body is used up,
//     the server calls ConnState with StateIdle, in the goroutine that reads. No other
//     Read is in progress then: the one of the background, of a single byte, has
//     been waited for.
//  3. Then it calls SetReadDeadline exactly once, and waits for the next request with
//     Peek(4), which begins a Read only if fewer than four bytes are buffered. When
//     it has them, it calls SetReadDeadline again before it parses anything.
//  4. A Read that ends with io.EOF there, or before the first byte of a connection,
//     makes the server close the connection without a word.
//
// Hence a Read is quiet, that is, all that the server holds is known, if
//
//   - no byte was ever delivered on the connection, or
//   - the state is idle, nothing was delivered since it is, exactly one
//     SetReadDeadline was seen since, and the Read offers the whole buffer, or up to
//     three bytes less. Then these bytes, the last that were delivered, are all there
//     is: the server has not parsed them.
//
// If the size of the buffer were another one, no Read would be quiet, and connections
// would stay where they are. The count of deadlines is what tells this wait from a
// Read in the middle of a pipelined request: its first lines may be parsed, and its
// bytes gone from the buffer.
//
// HTTP/2 is another machine, with Reads of its own. It begins with a preface that is
// no valid HTTP/1 request: a connection that has begun so is never quiet.
//
// TestAssumptions compares all of this with the net/http that it is built with.

// bufferSize is the size of the server's read buffer.
var bufferSize = bufio.NewReader(nil).Size()

// maxPeeked is how many bytes the server may hold and wait for more before it parses.
const maxPeeked = 3

// http2Preface is how a connection begins whose client speaks HTTP/2 unasked.
const http2Preface = "PRI * HTTP/2.0\r\n"

// observer knows from the server's calls on one connection what the server holds.
type observer struct {
	started   bool // a byte was delivered
	idle      bool // the last state was idle
	delivered bool // a byte was delivered since the last state
	deadlines int  // SetReadDeadline calls since the last state
	preface   int  // how many bytes of http2Preface the connection began with, -1 once it differs
	tail      [maxPeeked]byte
}

// quiet reports whether a Read with a buffer of n bytes is quiet, and what the server
// then holds.
func (o *observer) quiet(n int) (held []byte, ok bool) {
	if !o.started {
		return nil, true
	}
	k := bufferSize - n
	if !o.idle || o.delivered || o.deadlines != 1 || k < 0 || k > maxPeeked || o.http2() {
		return nil, false
	}
	return o.tail[maxPeeked-k:], true
}

// state is a call of ConnState.
func (o *observer) state(s http.ConnState) {
	o.idle, o.delivered, o.deadlines = s == http.StateIdle, false, 0
}

// deliver is a Read that returns p.
func (o *observer) deliver(p []byte) {
	if len(p) == 0 {
		return
	}
	o.started, o.delivered = true, true
	for _, b := range p[:min(len(p), len(http2Preface))] {
		if o.preface < 0 || o.http2() {
			break
		}
		if b == http2Preface[o.preface] {
			o.preface++
		} else {
			o.preface = -1
		}
	}
	last := p[max(0, len(p)-maxPeeked):]
	copy(o.tail[:], o.tail[len(last):])
	copy(o.tail[maxPeeked-len(last):], last)
}

// http2 reports whether the connection has begun as one of HTTP/2 does.
func (o *observer) http2() bool { return o.preface == len(http2Preface) }

//go:build unix

package httphandoff_test

import (
	"net/http"
	"testing"

	"github.com/crossfade-go/crossfade/httphandoff"
)

// A connection in each state when its process retires: who answers then, and who
// afterwards.
func TestStates(t *testing.T) {
	const who = "GET /who HTTP/1.1\nHost: x\n\n"
	for _, test := range []struct {
		name      string
		configure func(*side)
		run       func(st *stage, c *client)
	}{
		{"idle", nil, func(st *stage, c *client) {
			c.wants("before", c.get("/who"), "old")
			st.old.reaches(st.t, http.StateIdle)
			st.upgrade(options{})
			st.old.ends(st.t)
			c.wants("after", c.get("/who"), "next")
		}},
		{"nothing has ever come", nil, func(st *stage, c *client) {
			st.old.reaches(st.t, http.StateNew)
			st.upgrade(options{})
			st.old.ends(st.t)
			c.wants("after", c.get("/who"), "next")
		}},
		{"in a handler", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.1\nHost: x\n\n")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.wants("in the handler", c.answer("GET"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"two requests in one piece", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.1\nHost: x\n\n" + who)
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.wants("first", c.answer("GET"), "old")
			c.wants("second", c.answer("GET"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"a second request behind the one in the handler", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.1\nHost: x\n\n")
			<-st.old.inHandler
			c.send(who) // of which the server reads one byte, in the background, or none
			st.upgrade(options{})
			close(st.old.release)
			c.wants("first", c.answer("GET"), "old")
			c.wants("second", c.answer("GET"), "next")
			st.old.ends(st.t)
		}},
		{"three bytes of a second request in one piece with the first", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.1\nHost: x\n\nGET")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.wants("first", c.answer("GET"), "old")
			st.old.ends(st.t)
			c.send(" /who HTTP/1.1\nHost: x\n\n")
			c.wants("second", c.answer("GET"), "next")
		}},
		{"a line of a second request in one piece with the first", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.1\nHost: x\n\nGET /who HTTP/1.1\n")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.wants("first", c.answer("GET"), "old")
			c.send("Host: x\n\n")
			c.wants("second", c.answer("GET"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"half a request line", nil, func(st *stage, c *client) {
			c.wants("before", c.get("/who"), "old")
			c.send("GET /wh")
			st.old.hasRead(st.t)
			st.upgrade(options{})
			c.send("o HTTP/1.1\nHost: x\n\n")
			c.wants("begun before", c.answer("GET"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"slow headers", func(s *side) { s.srv.ReadHeaderTimeout = limit }, func(st *stage, c *client) {
			c.send("GET /who HTTP/1.1\nHost: x\nX-Slow: ye")
			st.old.hasRead(st.t)
			st.upgrade(options{})
			for _, b := range "s, very\n\n" {
				c.send(string(b))
			}
			c.wants("begun before", c.answer("GET"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"Expect: 100-continue", nil, func(st *stage, c *client) {
			c.send("POST /echo HTTP/1.1\nHost: x\nContent-Length: 4\nExpect: 100-continue\n\n")
			if resp := c.response("POST"); resp.code != http.StatusContinue {
				st.t.Fatal(resp.code)
			}
			st.upgrade(options{})
			c.send("body")
			c.wants("the continued", c.answer("POST"), "old body ")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"Expect: 100-continue after the move", nil, func(st *stage, c *client) {
			c.wants("before", c.get("/who"), "old")
			st.upgrade(options{})
			st.old.ends(st.t)
			c.send("POST /echo HTTP/1.1\nHost: x\nContent-Length: 4\nExpect: 100-continue\n\n")
			if resp := c.response("POST"); resp.code != http.StatusContinue {
				st.t.Fatal(resp.code)
			}
			c.send("body")
			c.wants("the continued", c.answer("POST"), "next body ")
		}},
		{"a body in chunks with a trailer", nil, func(st *stage, c *client) {
			c.send("POST /echo HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTrailer: Check\n\n3\nbod\n")
			st.old.reaches(st.t, http.StateActive)
			st.upgrade(options{})
			c.send("1\ny\n0\nCheck: yes\n\n")
			c.wants("begun before", c.answer("POST"), "old body yes")
			c.send("POST /echo HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTrailer: Check\n\n1\nb\n0\nCheck: too\n\n")
			c.wants("after", c.answer("POST"), "next b too")
			st.old.ends(st.t)
		}},
		{"a response in chunks with a trailer", nil, func(st *stage, c *client) {
			c.send("GET /stream HTTP/1.1\nHost: x\n\n")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			resp := c.response("GET")
			c.wants("the stream", resp.body+" "+resp.trailer.Get("Check"), "old yes")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"a body that the handler does not read", nil, func(st *stage, c *client) {
			c.send("POST /wait HTTP/1.1\nHost: x\nContent-Length: 9\n\nleft")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.send(" over")
			c.wants("unread", c.answer("POST"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"empty lines behind a POST", nil, func(st *stage, c *client) {
			c.send("POST /echo HTTP/1.1\nHost: x\nContent-Length: 1\n\nb\n")
			c.wants("before", c.answer("POST"), "old b ")
			st.upgrade(options{})
			st.old.ends(st.t)
			c.wants("after", c.get("/who"), "next")
		}},
		{"empty lines behind a POST, after the move", nil, func(st *stage, c *client) {
			c.send("POST /echo HTTP/1.1\nHost: x\nContent-Length: 1\n\nb")
			c.wants("before", c.answer("POST"), "old b ")
			st.upgrade(options{})
			st.old.ends(st.t)
			c.send("\n")
			c.wants("after", c.get("/who"), "next")
		}},
		{"HEAD and 304", nil, func(st *stage, c *client) {
			c.send("HEAD /who HTTP/1.1\nHost: x\n\n")
			c.wants("before", c.answer("HEAD"), "")
			c.wants("before", c.get("/unchanged"), "")
			st.upgrade(options{})
			st.old.ends(st.t)
			c.wants("after", c.get("/unchanged"), "")
			c.send("HEAD /who HTTP/1.1\nHost: x\n\n")
			c.wants("after", c.answer("HEAD"), "")
			c.wants("after", c.get("/who"), "next")
		}},
		{"HTTP/1.0 that is kept alive", nil, func(st *stage, c *client) {
			const who10 = "GET /who HTTP/1.0\nConnection: keep-alive\n\n"
			c.send(who10)
			c.wants("before", c.answer("GET"), "old")
			st.upgrade(options{})
			st.old.ends(st.t)
			c.send(who10)
			c.wants("after", c.answer("GET"), "next")
		}},
		{"HTTP/1.0 that is not", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.0\n\n")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.wants("the only one", c.answer("GET"), "old close")
			c.ended()
			st.old.ends(st.t)
		}},
		{"a client that wants it closed", nil, func(st *stage, c *client) {
			c.send("GET /wait HTTP/1.1\nHost: x\nConnection: close\n\n")
			<-st.old.inHandler
			st.upgrade(options{})
			close(st.old.release)
			c.wants("the last", c.answer("GET"), "old close")
			c.ended()
			st.old.ends(st.t)
		}},
		{"behind http.TimeoutHandler and a ResponseWriter of the program's", wrapped, func(st *stage, c *client) {
			c.wants("before", c.get("/who"), "old")
			c.send("GET /wait HTTP/1.1\nHost: x\n\n")
			<-st.old.inHandler
			st.upgrade(options{configure: wrapped})
			close(st.old.release)
			c.wants("in the handler", c.answer("GET"), "old")
			c.wants("after", c.get("/who"), "next")
			st.old.ends(st.t)
		}},
		{"with unencrypted HTTP/2 allowed", withHTTP2, func(st *stage, c *client) {
			c.wants("before", c.get("/who"), "old")
			c.send("GET /wait HTTP/1.1\nHost: x\n\nGE")
			<-st.old.inHandler
			st.upgrade(options{configure: withHTTP2})
			close(st.old.release)
			c.wants("in the handler", c.answer("GET"), "old")
			st.old.ends(st.t)
			c.send("T /who HTTP/1.1\nHost: x\n\n")
			c.wants("after", c.answer("GET"), "next")
		}},
		{"with every limit set", withLimits, func(st *stage, c *client) {
			c.wants("before", c.get("/who"), "old")
			st.upgrade(options{configure: withLimits})
			st.old.ends(st.t)
			c.wants("after", c.get("/who"), "next")
			c.wants("and again", c.get("/who"), "next")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			st := newStage(t, options{configure: test.configure})
			test.run(st, st.dial())
			if kept := st.old.Stats().Kept; kept != 0 {
				t.Errorf("%d connections were kept", kept)
			}
		})
	}
}

func wrapped(s *side) {
	inner := s.srv.Handler
	s.srv.Handler = http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(struct{ http.ResponseWriter }{w}, r)
	}), limit, "too late")
}

func withHTTP2(s *side) {
	s.srv.Protocols = new(http.Protocols)
	s.srv.Protocols.SetHTTP1(true)
	s.srv.Protocols.SetUnencryptedHTTP2(true)
}

func withLimits(s *side) {
	s.srv.ReadTimeout, s.srv.ReadHeaderTimeout, s.srv.IdleTimeout, s.srv.WriteTimeout = limit, limit, limit, limit
}

// hasRead returns when the server has read something of the request that a client has
// begun. There is no event for it.
func (s *side) hasRead(t *testing.T) {
	t.Helper()
	c := (<-s.accepted).(*httphandoff.Conn)
	eventually(func() bool { return httphandoff.HasRead(c) })
}

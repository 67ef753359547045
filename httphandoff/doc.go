// Package httphandoff lets an [http.Server] hand its connections over to the successor
// of its process, instead of closing them under its clients.
//
//	web := httphandoff.New(upg, srv, "http") // before Ready
//	go web.Serve(ln)                         // for srv.Serve; ln from upg.Listen
//	...
//	<-upg.Exit()
//	drain, cancel := upg.DrainContext(context.Background())
//	defer cancel()
//	web.Shutdown(drain)                      // for srv.Shutdown
//
// [http.Server.Shutdown] closes a keep-alive connection as soon as it is idle, and a
// client whose next request is on its way by then has to find out, and to guess whether
// it was handled. With this package the connection itself goes to the successor, with
// what was read of it and not used: the client notices nothing, and the process can
// exit although none of its clients has disconnected. Server, handlers, middlewares and
// hooks stay as they are.
//
// # What moves when
//
// A connection moves when the server holds nothing of it but known bytes: while it is
// idle, or nothing has come on it since it was accepted. A request of which anything
// was read is handled here, whatever it is made of, and its connection moves after the
// response. So do requests that the client has sent behind it and the server has read
// in the same piece: a client that never lets the server's buffer run dry is served
// here until it does. How the server's state is known is written in assumptions.go,
// and tested against the net/http in use.
//
// That begins when this process retires, and Exit is closed. While a probation lasts
// it stands by, and clients that keep their connection are served by it, and not by
// the successor.
//
// In the successor the connection is new to the server: ConnContext and ConnState see
// StateNew, and in the predecessor StateClosed. Its limits are those of an idle one:
// IdleTimeout until the next request begins, then ReadHeaderTimeout or ReadTimeout.
//
// # What does not move
//
//   - Connections with TLS, whose keys are in this process, and those of a listener
//     that wraps what it accepts, such as a limit on their number. The response to
//     their next request says "Connection: close", and only the end of the drain
//     closes those that do not send one.
//   - HTTP/2, which has a word for it: GOAWAY.
//   - Hijacked connections. They are the program's, which may hand them over with a
//     state of its own: below.
//   - What the successor does not take, because it does not use this package or has
//     no Server of that name, because it is gone, or has no room. It goes on here, and
//     is told to close in its next response.
//
// # Hijacked connections
//
// A handler that hijacks gets a *[Conn]. To hand it over, use a name that no Server
// has, say "websocket", accept from [crossfade.Upgrader.HandedOver] of that name in
// every version of the program, before Ready, and in the predecessor, after Exit, end
// the reading with a past deadline and call
//
//	upg.HandOverConn(drain, "websocket", conn, &crossfade.HandOver{
//		Unread: httphandoff.Unread(conn, rw.Reader),
//		State:  state, // what the successor must know to go on
//	})
//
// as the example does.
//
// # What a program may notice
//
// The connections that hooks and hijackers see are *[Conn], not *[net.TCPConn]:
// [Conn.NetConn] leads there. Files are sent as efficiently as without.
//
// BaseContext gets a listener with the address of the one that it is for, not that one
// itself. For what is handed over it is the first that was served: serve listeners that
// must not be mixed up, such as one for administrators, with a Server each.
//
// What ends streams at a shutdown belongs into [Server.RegisterOnShutdown].
package httphandoff

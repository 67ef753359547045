// Package pausable provides listeners and packet connections that can stop and
// go on while their socket stays open.
//
// Two processes that hold one socket must not both take from it. A process that
// waits for its turn, or that has had it, therefore stops taking, yet the
// program above must notice nothing: an [net/http.Server] whose listener reports
// an error, even a timeout, logs it and backs off. So a paused Accept or read
// blocks, and nothing else of the connection's behaviour changes: deadlines are
// honoured, and Close ends the wait.
//
// A [Listener] or [PacketConn] is in one of four states:
//
//	paused    from the start, and after Pause: calls block
//	running   after Resume: calls take from the socket
//	retired   after Retire: never again; Accept blocks, reads fail
//	closed    after Close, which only the program calls: calls fail
//
// Pausing is complete, and Pause returns, when no call is between its entry and
// its system call's result. What a system call had taken by then is delivered:
// it has left the shared queue, so no other process could.
//
// The package decides nothing about handoffs. Who wants a listener that is in
// one process only needs nothing of it.
package pausable

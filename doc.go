// Package crossfade lets a network service be replaced by another process
// while it serves, without a client noticing.
//
// The old process, the predecessor, serves a control unix socket. The new one,
// the successor, is started by anyone: another binary, another path, another
// container. It connects to the socket, receives the named listening sockets,
// initialises in its own time, and says that it is ready before the old one
// steps down:
//
//	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: "/run/app/control.sock"})
//	if err != nil { ... }
//	defer upg.Stop()
//	ln, err := upg.Listen(ctx, "http", "tcp", ":8080")
//	if err != nil { ... }
//	srv := &http.Server{Handler: h}
//	go srv.Serve(ln)
//	if err := upg.Ready(ctx); err != nil { ... }
//	<-upg.Exit()
//	drain, cancel := upg.DrainContext(context.Background())
//	defer cancel()
//	srv.Shutdown(drain)
//
// # What it promises
//
//   - No old code keeps running after a successful upgrade: what it has accepted
//     it may finish, for as long as [Config.DrainTimeout] allows.
//   - The successor has a grace period for its initialisation.
//   - A crash before it is ready is fine: the predecessor never stopped serving.
//   - A crash after it is ready is fine too, as long as its probation lasts: the
//     predecessor takes the service back, with the clients that queue for it.
//   - One upgrade runs at a time.
//   - There are never two owners: one process decides, and the connection
//     between the two is the lease by which the other may act.
//   - Whoever triggered an upgrade learns the outcome and its reason.
//
// # When a process accepts
//
// A first process accepts at once. A successor accepts nothing before Ready has
// returned nil: Serve may be called earlier, and waits. So an upgrade that fails
// has not touched a client, and a process must not check itself through its own
// listener before Ready. The predecessor goes on accepting until its successor
// owns; then its Accept waits, and only Close by the program ends it, so that a
// server never sees its listener vanish.
//
// # Probation
//
// With [Config.Probation] the predecessor stands by for that long once its
// successor owns. It resumes when the successor dies or calls
// [Upgrader.Rollback]; [Upgrader.Settle] lets it go before. Whoever owns decides:
// the predecessor asks when the time is over, and waits. What must run only once
// begins at [Upgrader.Settled], and what only one process may use is guarded by
// [Config.Suspend] and [Config.Resume].
//
// # Deploying
//
// The command crossfade starts a successor from a script and says what became of it;
// [Dial] gives a Go program the same. Either asks the owner on its control socket:
// how it stands, to upgrade itself, to settle, to roll back, to stop.
//
// # systemd
//
// When NOTIFY_SOCKET is set, the Upgrader tells systemd how the service stands:
// READY=1 at Ready, a STATUS= for every change, RELOADING=1 around an upgrade,
// STOPPING=1 at Stop, and more time for a drain that gets on. Only the main process
// of the unit speaks. A successor in the same unit becomes that when its predecessor
// has retired, which tells systemd so and has it confirmed before Exit is closed;
// never before, so that a successor which dies on probation takes nothing down. What
// Upgrade starts is systemd's child, as this process is, and not this process's own.
// [Config.Watchdog] is what the unit's watchdog asks.
//
// Sockets that systemd passes are in the registry as if they were inherited: Listen
// finds them by their name or their address. With FileDescriptorStoreMax= in the
// unit (and [Config.FDStore] below systemd 254), systemd keeps the sockets of a
// service whose only process crashes, with the clients in their queues, for the
// next one.
//
// A supervisor that restarts every process must not restart one that was replaced,
// which would take the service over again: see [Park].
//
// # Who may
//
// Whoever may use the control socket may take the service over, and has its sockets
// then. The kernel says who it is: by default the owner's user, root, and the members
// of [Config.SocketGroup] may; those of [Config.ReadGroup] may ask for the status.
// [Config.Authorize] is for other rules. A successor asks the same about the owner,
// and a control path that others could lead elsewhere is refused: [ErrUnsafePath].
// docs/security.md says what that defends, and what it does not.
//
// # What a successor gets besides sockets
//
// Files and locks that are descriptors: [Fds.AddFile]. Bytes that the predecessor
// writes for it: [Upgrader.OfferState] and [Upgrader.TakeState]. What lives in a
// process's memory and can be had by one process only, as a database does, it
// opens when Ready has returned, and Config.Suspend has its predecessor let go of
// it before. examples/exclusive does all of that.
//
// # Connections
//
// What is accepted stays with the process that accepted it, and keeps that process
// from exiting. [Upgrader.HandOverConn] moves an established connection to the
// successor, with the bytes that were read of it and not used and what the program
// knows of it; there it comes out of [Upgrader.HandedOver], and its client notices
// nothing. Each is on exactly one side at any time, whichever is killed: an error
// says that it is the caller's as before. A successor that is too old, or whose program takes
// none under that name, refuses: then the predecessor finishes it, as ever.
// examples/chat shows that.
//
// # What a program does
//
// On an error of New or Ready: exit with a status other than 0. Never start
// afresh instead: the predecessor still serves. On Exit: finish what is open
// and exit, with status 0, or [ExitRolledBack] if Err matches [ErrRolledBack].
// Stop is right in every state, so defer it.
//
// Set [Config.DrainTimeout], so that no old code runs for ever: what
// [Upgrader.DrainContext] has not ended by then is ended by the library. A signal
// to a process that drains is the program's own affair. It may exit at once: its
// successor has everything that the two shared. The program in examples/signals
// shows that.
//
// The protocol is described in docs/protocol.md. Package handoff implements it
// for other facades; package tableflip has the API of the library of that name.
package crossfade

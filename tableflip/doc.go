// Package tableflip has the API of github.com/cloudflare/tableflip, with one
// difference by law: in a process that takes over, Accept delivers nothing
// before Ready has returned nil.
//
// It is package crossfade below, so a program changes its import path and
// nothing else, and from then on its upgrades are those of that package: an
// attempt that fails has not touched a client, and a predecessor stays able to
// serve until its successor does. A new program should import crossfade, which
// can do more; this package is for the way there.
//
//	upg, err := tableflip.New(tableflip.Options{})
//	if err != nil { ... }
//	defer upg.Stop()
//	go func() {
//		for range hangups {
//			if err := upg.Upgrade(); err != nil { ... }
//		}
//	}()
//	ln, err := upg.Listen("tcp", "localhost:8080")
//	if err != nil { ... }
//	go serve(ln)
//	if err := upg.Ready(); err != nil { ... }
//	<-upg.Exit()
//
// # Independent successors
//
// With CROSSFADE_SOCKET in its environment a process also serves that control
// path, and takes over from whoever does: a script, another binary or
// another container can then start the successor. What a process is the parent
// of is no matter: the parent in this API's names is the predecessor. The first
// process of this package must be started afresh: the original's Upgrade speaks
// another protocol, and the address it holds cannot be listened on meanwhile.
//
// # Names
//
// The successor finds a descriptor by its kind, network and address, exactly as
// the program has given them, joined by colons: "listener:tcp:localhost:8080".
// These are the names in a status. A port of 0 is replaced
// by the port that was given. What is no name for crossfade, because it is long
// or has unprintable characters, appears as its kind and a digest; that matters
// only to the names of what [Fds.Files] returns.
//
// # What else a program can notice
//
//   - Listen and ListenPacket return wrappers, which implement [syscall.Conn]
//     but are no *net.TCPListener; [crossfade.Raw] gives what is below. What
//     Accept returns is plain. After Exit Accept waits until the program closes
//     the listener, and reads from packet conns fail.
//   - Listen deals with a stale file at the path of a unix listener and leaves
//     a lock file beside it.
//   - A PID file that cannot be written fails New already, and is removed by
//     the process that stops for good.
//   - Stop returns when it has happened.
//   - A child that is not ready in time has a few seconds to exit by itself
//     before it is killed.
//   - The predecessor hands over everything, also what was added while the
//     successor was starting.
//   - An error of Ready means that this process does not serve: it must exit.
package tableflip

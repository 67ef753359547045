// Package handoff is the protocol by which a predecessor hands a service over
// to its successor: the two state machines, the server of the control socket
// and the controllers that ask and command it.
//
// It moves opaque descriptors and knows nothing of listeners; it makes no
// system call itself. What a handoff means for the process around it is behind
// small interfaces, [Service] for the side that gives, [Receiver] for the side
// that takes, and [Commands] for what a controller may wish. docs/protocol.md is the normative text of the protocol;
// the invariants that the comments cite as I1 to I12 are listed there.
//
// A service should use package crossfade, which builds on this one. Import this
// package for its types, and to write another facade.
//
// # How the machines work
//
// Each machine is one goroutine that reads its connection and is told of
// everything else (a call of Ready, Stop, a timer) through the same place,
// [link.next], which gives what the peer has already sent the precedence over
// a command, and a command over a deadline. No decision is thus taken in
// ignorance of a message that had arrived before it.
package handoff

// Package scm sends and receives frames that carry file descriptors over
// AF_UNIX stream sockets, and says who is at the other end.
//
// Invariants:
//
//   - Every descriptor has one owner. An [FD] is closed by whoever holds it; a
//     function that takes it over says so. On every error path what had been
//     received is closed.
//   - Every descriptor that this package makes or receives is close-on-exec.
//   - A frame arrives whole and with all of its descriptors, or not at all.
//   - End of stream means that the peer has let go of its end for good.
//     Shutting down one direction is not enough.
//   - O_NONBLOCK belongs to the open file description, which other processes
//     share. Nothing here clears it.
//
// A frame is four bytes of payload length, two bytes of descriptor count and
// two zero bytes, all big-endian, then the payload. Its descriptors ride on
// its first byte, in one sendmsg(2):
//
//	 0        4        6        8
//	+--------+--------+--------+---------------------+
//	| length | nfds   | zero   | payload             |
//	+--------+--------+--------+---------------------+
//
// [SendDatagram] is beside all this: it speaks to a socket whose protocol is
// somebody else's, such as the notification socket of a service manager.
//
// The package knows nothing about what a payload means. A program that wants
// to hand its listeners over uses package crossfade; this one is for those who
// build a protocol of their own on descriptors.
//
// On systems without SCM_RIGHTS everything builds and returns an error that
// matches [errors.ErrUnsupported].
package scm

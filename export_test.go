package crossfade

import "net"

// MaxHanded is how many connections may wait for Accept of HandedOver.
const MaxHanded = maxHanded

// Expect is a connection of the predecessor, whose acknowledgement is about to be
// written, for a listener of HandedOver.
func Expect(handed net.Listener) error { return handed.(*handedListener).expect() }

// Deliver follows Expect, when it is written, or could not be.
func Deliver(handed net.Listener, c net.Conn, taken bool) { handed.(*handedListener).deliver(c, taken) }

package pausable

// InFlight returns how many taking calls have passed the gate of a *Listener,
// *UDPConn or *UnixConn and have not come back.
func InFlight(x any) int {
	g := gateOf(x)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inFlight
}

// LateTimer runs what a deadline's timer runs, as one does that had fired just
// before the deadline was moved.
func LateTimer(x any) { gateOf(x).expire() }

func gateOf(x any) *gate {
	switch x := x.(type) {
	case *Listener:
		return &x.gate
	case *UDPConn:
		return &x.packets.gate
	case *UnixConn:
		return &x.packets.gate
	}
	panic("not a type of this package")
}

package crossfade

import (
	"errors"
	"net"

	"github.com/crossfade-go/crossfade/handoff"
)

// SetSameUnit says which processes are in this one's unit.
func SetSameUnit(f func(pid int) (bool, error)) { sameUnit = f }

// DefaultAuthorize is what Config.Authorize is by default.
var DefaultAuthorize = defaultAuthorize

// MaxHanded is how many connections may wait for Accept of HandedOver.
const MaxHanded = maxHanded

// Expect is a connection of the predecessor, whose acknowledgement is about to be
// written, for a listener of HandedOver.
func Expect(handed net.Listener) error { return handed.(*handedListener).expect() }

// Deliver follows Expect, when it is written, or could not be.
func Deliver(handed net.Listener, c net.Conn, taken bool) { handed.(*handedListener).deliver(c, taken) }

// TakeEnvironment reads the variables of a deployment and removes them.
func TakeEnvironment() error {
	_, err := takeEnvironment()
	return err
}

// ReceivePage takes one page of a manifest in, as a successor does, and gives
// everything up again. It takes ownership of the descriptors.
func ReceivePage(c *Config, ds []handoff.Descriptor, late bool) error {
	f := newFds(c, nil)
	defer f.release(ErrStopped)
	if err := f.receive(ds, late); err != nil {
		f.forget()
		return err
	}
	for _, d := range f.unclaimed() {
		if err := checkName(d.Name); err != nil {
			return errors.Join(errors.New("registered all the same"), err)
		}
	}
	f.own()
	f.settle()
	return nil
}

// CheckFDName says what the registry takes for a name.
var CheckFDName = checkName

// AsSibling changes the attributes of a command so that what it starts becomes a child
// of this process's own parent.
var AsSibling = asSibling

package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// SendLimit bounds what Send, Store and Remove wait if their context has no
// deadline: a manager that hangs must not hang the service.
const SendLimit = 5 * time.Second

// Notifier speaks to a service manager over its notification socket. A nil
// Notifier is what a process has that no manager started: its methods do nothing
// and return nil.
//
// All methods may be called concurrently. Messages go out in the order of the
// calls, each as one datagram on a socket of its own, so that a manager which
// has bound its path anew is heard again.
//
// The manager listens to the unit's main process only, unless NotifyAccess= says
// otherwise, and never says that it did not listen.
type Notifier struct {
	address string
	turn    chan struct{} // holds one token: whoever took it may send; a channel, so that waiting for it can end with a context
}

// ErrAddress says that an address is none that a Notifier can send to.
var ErrAddress = errors.New("not an address to notify a manager at")

// Open returns a Notifier for a manager's notification socket, an address as in
// NOTIFY_SOCKET: an absolute path, or an abstract name that begins with @. Nothing
// is sent, and nobody needs to be there. Another address, such as one of
// AF_VSOCK, is an error that matches [ErrAddress].
func Open(address string) (*Notifier, error) {
	switch {
	case strings.HasPrefix(address, "vsock"):
		return nil, fmt.Errorf("%w: %q is an AF_VSOCK address, by which a virtual machine tells its host that it has booted; a service of its own needs a unix socket", ErrAddress, address)
	case !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@"):
		return nil, fmt.Errorf("%w: %q is neither an absolute path nor an abstract name that begins with @", ErrAddress, address)
	}
	if err := scm.CheckDatagramAddress(address); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAddress, err)
	}
	return &Notifier{address: address, turn: make(chan struct{}, 1)}, nil
}

// Address returns the address, which another process of the unit can be given in
// NOTIFY_SOCKET, and "" for a nil Notifier.
func (n *Notifier) Address() string {
	if n == nil {
		return ""
	}
	return n.address
}

// Send tells the manager some states in one message, which it acts on as a whole:
//
//	n.Send(ctx, systemd.MainPID(pid, 0), systemd.Status("handed over"))
//
// It waits if the manager's queue is full or the manager is being started again,
// until ctx ends, or for [SendLimit] if ctx has no deadline. Success says that the
// message is in the manager's queue; see [Notifier.Barrier].
func (n *Notifier) Send(ctx context.Context, states ...State) error {
	return n.send(ctx, nil, states)
}

// Store has the manager keep a copy of fd, which stays the caller's, in the unit's
// descriptor store: FDSTORE=1 and FDNAME=, v219. It comes back to the next process
// that the manager starts for the unit, in [Environment].Sockets, under the same
// name. The unit needs FileDescriptorStoreMax=; beyond that number, and without
// it, the manager drops what it gets and says so in its log only.
//
// The name may be any text: what an FDNAME cannot have is escaped, see the package
// documentation. If it does not fit the error matches [ErrName]. Names need not be
// unique: storing another descriptor under a name adds to it. A descriptor of an
// open file that is in the store already, under whatever name, is not stored
// again.
func (n *Notifier) Store(ctx context.Context, name string, fd *scm.FD, also ...State) error {
	if n == nil {
		return nil
	}
	escaped, err := escapeName(name)
	if err != nil {
		return err
	}
	return n.send(ctx, []*scm.FD{fd}, append([]State{field("FDSTORE", "1"), field("FDNAME", escaped)}, also...))
}

// Remove has the manager close everything that is stored under name:
// FDSTOREREMOVE=1, v236.
func (n *Notifier) Remove(ctx context.Context, name string) error {
	if n == nil {
		return nil
	}
	escaped, err := escapeName(name)
	if err != nil {
		return err
	}
	return n.send(ctx, nil, []State{field("FDSTOREREMOVE", "1"), field("FDNAME", escaped)})
}

// Barrier waits until the manager has acted on everything that this process told
// it before: BARRIER=1, v246. A process that is about to exit needs it: of one
// that is gone the manager may not know any more which unit it belonged to. If ctx
// ends first the error is its cause; a manager older than v246 answers as well, as
// it closes a descriptor that it did not ask for.
func (n *Notifier) Barrier(ctx context.Context) error {
	if n == nil {
		return nil
	}
	watched, held, err := scm.Alive()
	if err != nil {
		return err
	}
	defer watched.Close()
	err = n.send(ctx, []*scm.FD{held}, []State{field("BARRIER", "1")})
	// The manager's is the only copy now.
	if err := errors.Join(err, held.Close()); err != nil {
		return err
	}
	watch, err := watched.Watch()
	if err != nil {
		return err
	}
	defer watch.Close()
	stop := context.AfterFunc(ctx, func() { watch.Close() })
	defer stop()
	if err := watch.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}

var errSlow = fmt.Errorf("the manager has not taken the message within %v", SendLimit)

func (n *Notifier) send(ctx context.Context, fds []*scm.FD, states []State) error {
	if n == nil {
		return nil
	}
	payload, err := compose(states)
	if err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, SendLimit, errSlow)
		defer cancel()
	}
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return fmt.Errorf("notifying the manager at %s, behind another message: %w", n.address, context.Cause(ctx))
	}
	return n.deliver(ctx, payload, fds)
}

// retryEvery is how often a manager is looked for that is not there: nothing tells
// when it is back.
const retryEvery = 50 * time.Millisecond

// deliver waits for a manager that is being started again. It finds its unread
// messages, but between closing the socket and binding it there is nobody.
func (n *Notifier) deliver(ctx context.Context, payload []byte, fds []*scm.FD) error {
	err := scm.SendDatagram(ctx, n.address, payload, fds...)
	for errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		timer := time.NewTimer(retryEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("no manager at %s: %w: %w", n.address, context.Cause(ctx), err)
		}
		// That nobody was there says more than that the time was over.
		if again := scm.SendDatagram(ctx, n.address, payload, fds...); again == nil || ctx.Err() == nil {
			err = again
		}
	}
	if err != nil {
		return fmt.Errorf("notifying the manager at %s: %w", n.address, err)
	}
	return nil
}

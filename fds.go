package crossfade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/pausable"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

// reservedPrefix starts the names of what the library itself hands over.
const reservedPrefix = "crossfade."

// Fds is the registry of named descriptors: what was inherited, and what the
// next successor gets. All names share one space: 1 to 200 bytes of printable
// UTF-8, not starting with "crossfade.". Its methods may be called
// concurrently.
//
// From a successor's Ready on, until this process has retired or owns again,
// changes wait, at most for CommitTimeout; then they return
// ErrHandoffInProgress. That is milliseconds as a rule, and a whole probation if
// there is one. The same holds for a process that is giving the service back.
// Closing a listener or packet conn does not wait. Once this process is out they return [Upgrader.Err].
// What is taken out while an attempt is under way stays open until it has
// ended, so that its address is not free before.
type Fds struct {
	log      *slog.Logger
	limit    time.Duration  // how long a change waits for a thaw
	keep     bool           // what the program has closed stays registered
	accepted func(net.Conn) // called with each accepted connection, or nil

	mu        sync.Mutex
	byID      map[uint64]*entry
	byName    map[string]*entry // without inherited ones whose name was taken by another address
	opening   map[string]bool   // names whose socket is being opened
	lastID    uint64
	accepting bool            // this process takes from its sockets
	offered   map[uint64]bool // ids in the offer under way, nil if there is none
	kept      []*scm.FD       // removed during the offer: open until it has ended
	thawed    chan struct{}   // not nil while frozen; closed at the thaw
	deferred  []*entry        // closed by the program, which could not wait for the thaw
	// closedMeanwhile are unix sockets that the program closed during the offer:
	// their paths remain until it has failed.
	closedMeanwhile []*entry
	orphans         []*entry // unix sockets that nobody asked for, closed: their paths remain
	// listened has the Network and Address of every socket that this process has
	// listened on, by which its connections are known when they are all that is
	// left.
	listened map[scm.Identity]bool
	passed   []*entry // what the service manager has passed, in the order of their ids
	// inherited are the names under which something has come, from a predecessor or
	// from the service manager.
	inherited map[string]bool
	changed   func() // called whenever stored may say something else, or nil
	out       error  // why nothing can change any more
	states    states // see state.go
}

// entry is one descriptor.
type entry struct {
	handoff.Descriptor
	origin    handoff.Origin
	offeredID uint64 // the predecessor's number for it
	late      bool   // came in a last page: claimable until Settled
	activated bool   // the service manager has passed it
	listener  *pausable.Listener
	packets   pausable.PacketConn
}

func newFds(c *Config, accepted func(net.Conn)) *Fds {
	return &Fds{
		log: c.Logger, limit: c.CommitTimeout, keep: c.KeepClosed, accepted: accepted,
		byID: make(map[uint64]*entry), byName: make(map[string]*entry), opening: make(map[string]bool),
		listened: make(map[scm.Identity]bool), inherited: make(map[string]bool),
	}
}

// Listener returns the inherited listener of that name: a wrapper as from
// [Upgrader.Listen]. Errors: ErrNotInherited; ErrNameTaken if it was asked for
// before.
func (f *Fds) Listener(name string) (net.Listener, error) {
	e, err := f.claim(name, handoff.KindListener, nil)
	if err != nil {
		return nil, err
	}
	return e.listener, nil
}

// AddListener registers a listener that the program has opened, and returns
// the wrapper to use instead. ln must implement [syscall.Conn]; it is closed,
// without being unlinked, once its descriptor was duplicated. On an error ln
// remains the caller's.
func (f *Fds) AddListener(name string, ln net.Listener) (net.Listener, error) {
	e, err := f.add(name, handoff.KindListener, ln, ln.Addr())
	if err != nil {
		return nil, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	_ = ln.Close() // its socket lives on in the registry
	return e.listener, nil
}

// PacketConn returns the inherited packet conn of that name: a wrapper as from
// [Upgrader.ListenPacket]. Errors: ErrNotInherited; ErrNameTaken if it was
// asked for before.
func (f *Fds) PacketConn(name string) (net.PacketConn, error) {
	e, err := f.claim(name, handoff.KindPacketConn, nil)
	if err != nil {
		return nil, err
	}
	return e.packets, nil
}

// AddPacketConn registers a packet conn that the program has opened, and
// returns the wrapper to use instead. pc must implement [syscall.Conn]; it is
// closed once its descriptor was duplicated. On an error pc remains the
// caller's.
func (f *Fds) AddPacketConn(name string, pc net.PacketConn) (net.PacketConn, error) {
	e, err := f.add(name, handoff.KindPacketConn, pc, pc.LocalAddr())
	if err != nil {
		return nil, err
	}
	_ = pc.Close() // its socket lives on in the registry
	return e.packets, nil
}

// Conn returns the inherited connection of that name, which leaves the
// registry: it is the caller's alone. Errors: ErrNotInherited.
func (f *Fds) Conn(name string) (net.Conn, error) {
	e, err := f.claim(name, handoff.KindConn, nil)
	if err != nil {
		return nil, err
	}
	c, err := e.FD.Conn()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.dropLocked(e)
	f.mu.Unlock()
	return c, nil
}

// AddConn registers a duplicate of an established connection for the next
// successor. conn must implement [syscall.Conn] and remains the caller's.
func (f *Fds) AddConn(name string, conn net.Conn) error {
	_, err := f.add(name, handoff.KindConn, conn, conn.LocalAddr())
	return err
}

// File returns a duplicate of the inherited file of that name, which is the
// caller's; the registry keeps its own for the next successor. Errors:
// ErrNotInherited; ErrNameTaken if it was asked for before.
func (f *Fds) File(name string) (*os.File, error) {
	e, err := f.claim(name, handoff.KindFile, nil)
	if err != nil {
		return nil, err
	}
	return e.FD.File(name)
}

// AddFile registers a duplicate of a file, such as a pipe, a memfd or a lock,
// for the next successor. file remains the caller's. It must not be a socket:
// those have methods of their own.
func (f *Fds) AddFile(name string, file *os.File) error {
	_, err := f.add(name, handoff.KindFile, file, nil)
	return err
}

// Remove takes a name out of the registry: the next successor does not get it.
// A listener or packet conn of that name works on in this process. Errors:
// ErrNotInherited if there is no such name.
func (f *Fds) Remove(name string) error {
	unlock, err := f.change(context.Background())
	if err != nil {
		return err
	}
	defer unlock()
	e := f.byName[name]
	if e == nil {
		return fmt.Errorf("%q: %w", name, ErrNotInherited)
	}
	f.dropLocked(e)
	return nil
}

// All lists the registry by name: what was inherited and asked for, what was
// not asked for, and what was added. The states that this process offers are
// among the last, and those of its predecessor that were not taken among what
// was not asked for.
func (f *Fds) All() []handoff.DescriptorStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]handoff.DescriptorStatus, 0, len(f.byID))
	for _, e := range f.sortedLocked() {
		all = append(all, handoff.DescriptorStatus{
			Name: e.Name, Kind: e.Kind, Network: e.Network, Address: e.Address, Origin: e.origin,
		})
	}
	all = append(all, f.states.list()...)
	slices.SortStableFunc(all, func(a, b handoff.DescriptorStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// change waits until the registry may change, and returns with it locked.
func (f *Fds) change(ctx context.Context) (unlock func(), err error) {
	var limit <-chan time.Time
	f.mu.Lock()
	for f.thawed != nil && f.out == nil {
		thawed := f.thawed
		f.mu.Unlock()
		if limit == nil {
			timer := time.NewTimer(f.limit)
			defer timer.Stop()
			limit = timer.C
		}
		select {
		case <-thawed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-limit:
			return nil, fmt.Errorf("%w, for more than %v", ErrHandoffInProgress, f.limit)
		}
		f.mu.Lock()
	}
	if out := f.out; out != nil {
		f.mu.Unlock()
		return nil, fmt.Errorf("the registry is closed: %w", out)
	}
	return f.mu.Unlock, nil
}

// checkName says whether a program may use the name.
func checkName(name string) error {
	if err := handoff.CheckName(name); err != nil {
		return err
	}
	if strings.HasPrefix(name, reservedPrefix) {
		return fmt.Errorf("the name %q starts with %q, which the library keeps for itself", name, reservedPrefix)
	}
	return nil
}

// claim returns the inherited descriptor of that name and kind, if it is what want,
// which may be nil, means. ErrNotInherited says that there is none.
func (f *Fds) claim(name string, kind handoff.Kind, want *target) (*entry, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f.mu.Lock() // claiming changes nothing that is handed over, so it need not wait
	defer f.mu.Unlock()
	e := f.byName[name]
	if want != nil && (e == nil || e.activated && e.origin == handoff.OriginUnclaimed) {
		if passed := f.activatedLocked(name, kind, want); passed != nil {
			f.renameLocked(passed, name)
			passed.Network = want.network // what the program calls it, and its successors will
			e = passed
		}
	}
	switch {
	case f.out != nil:
		return nil, fmt.Errorf("%q: the registry is closed: %w", name, f.out)
	case e == nil:
		return nil, fmt.Errorf("%q: %w", name, ErrNotInherited)
	case f.states.offers(name):
		return nil, fmt.Errorf("%q: %w: a state", name, ErrNameTaken)
	case e.origin != handoff.OriginUnclaimed:
		return nil, fmt.Errorf("%q: %w: %s %s %s", name, ErrNameTaken, e.Kind, e.Network, e.Address)
	case e.Kind != kind:
		return nil, fmt.Errorf("%q was inherited as a %s, not a %s: %w", name, e.Kind, kind, ErrNotInherited)
	case want != nil && !want.matches(e):
		return nil, fmt.Errorf("%q was inherited as %s %s: %w", name, e.Network, e.Address, ErrNotInherited)
	}
	if err := f.wrapLocked(e); err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	e.origin = handoff.OriginInherited
	f.changedLocked()
	return e, nil
}

// add registers a duplicate of what the program has opened, which remains the
// caller's.
func (f *Fds) add(name string, kind handoff.Kind, opened any, addr net.Addr) (*entry, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	d, err := describe(opened, addr)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	d.Name, d.Kind = name, kind
	if kind != handoff.KindConn { // whose local address is its listener's path
		d.UnixPath = unixPathOf(addr)
	}
	return f.insert(context.Background(), d)
}

// describe duplicates the descriptor of what the program has opened.
func describe(opened any, addr net.Addr) (handoff.Descriptor, error) {
	conn, ok := opened.(syscall.Conn)
	if !ok {
		return handoff.Descriptor{}, fmt.Errorf("a %T does not implement syscall.Conn, so its descriptor cannot be handed over", opened)
	}
	fd, err := scm.DupFD(conn)
	if err != nil {
		return handoff.Descriptor{}, err
	}
	d := handoff.Descriptor{FD: fd}
	if addr != nil {
		d.Network, d.Address = addr.Network(), addr.String()
	}
	return d, nil
}

// unixPathOf finds the file of a unix socket that the program has opened
// itself, nil if there is none.
func unixPathOf(addr net.Addr) *handoff.UnixPath {
	a, ok := addr.(*net.UnixAddr)
	if !ok {
		return nil
	}
	id, err := rendezvous.Identify(a.Name)
	if err != nil {
		return nil // an abstract name, or unlinked already
	}
	return &handoff.UnixPath{Path: id.Path, Bound: a.Name, Dev: id.Dev, Ino: id.Ino}
}

// insert registers a descriptor that this process has opened. It takes
// ownership of d.FD, also on an error.
func (f *Fds) insert(ctx context.Context, d handoff.Descriptor) (e *entry, err error) {
	defer func() {
		if err != nil {
			_ = d.FD.Close()
			err = fmt.Errorf("%q: %w", d.Name, err)
		}
	}()
	if d.Identity, err = d.FD.Identify(); err != nil {
		return nil, err
	}
	if err := checkKind(d); err != nil {
		return nil, err
	}
	if err := f.refuseShared(d); err != nil {
		return nil, err
	}
	unlock, err := f.change(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old := f.byName[d.Name]
	switch {
	case f.states.offers(d.Name):
		return nil, fmt.Errorf("%w: a state", ErrNameTaken)
	case old != nil && old.origin != handoff.OriginUnclaimed:
		return nil, fmt.Errorf("%w: %s %s %s", ErrNameTaken, old.Kind, old.Network, old.Address)
	}
	f.lastID++
	d.ID = f.lastID
	e = &entry{Descriptor: d, origin: handoff.OriginAdded}
	if err := f.wrapLocked(e); err != nil {
		return nil, err
	}
	f.byID[d.ID] = e
	f.byName[d.Name] = e // old, if there is one, stays unclaimed without its name
	f.changedLocked()
	return e, nil
}

// reserve keeps a name for a socket that is about to be opened.
func (f *Fds) reserve(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opening[name] {
		return fmt.Errorf("%q: %w: it is being opened", name, ErrNameTaken)
	}
	f.opening[name] = true
	return nil
}

func (f *Fds) unreserve(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.opening, name)
}

// refuseShared refuses a fresh socket on the address of an inherited one: with
// SO_REUSEPORT the kernel would give it connections before this process may
// answer any.
func (f *Fds) refuseShared(d handoff.Descriptor) error {
	if d.Kind != handoff.KindListener && d.Kind != handoff.KindPacketConn {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.accepting {
		return nil
	}
	for _, e := range f.byID {
		if e.offeredID != 0 && e.Kind == d.Kind && e.Identity != d.Identity && e.Identity.Network == d.Identity.Network &&
			overlap(e.Network, e.Identity.Address, d.Network, d.Identity.Address) {
			return fmt.Errorf("%s %s is inherited under the name %q: a second socket there (SO_REUSEPORT) would take its clients before this process owns; ask for %q",
				e.Network, e.Address, e.Name, e.Name)
		}
	}
	return nil
}

// overlap reports whether a client of the one address could reach the other: the
// unspecified address takes in all of its family, and [::] IPv4 too unless the
// network says that it does not.
func overlap(network, address, network2, address2 string) bool {
	a, err := netip.ParseAddrPort(address)
	b, err2 := netip.ParseAddrPort(address2)
	if err != nil || err2 != nil {
		return address == address2
	}
	takes := func(network string, a, b netip.Addr) bool {
		return a.IsUnspecified() && (a.Is4() == b.Is4() || a.Is6() && !strings.HasSuffix(network, "6"))
	}
	return a.Port() == b.Port() &&
		(a.Addr() == b.Addr() || takes(network, a.Addr(), b.Addr()) || takes(network2, b.Addr(), a.Addr()))
}

// checkKind reports a descriptor that is not what it is to be registered as.
func checkKind(d handoff.Descriptor) error {
	id := d.Identity
	socket := id.Type == scm.TypeSocket
	packets := id.Network == "udp" || id.Network == "unixgram"
	switch d.Kind {
	case handoff.KindListener, handoff.KindControl:
		if id.Listening {
			return nil
		}
	case handoff.KindPacketConn:
		if socket && packets {
			return nil
		}
	case handoff.KindConn:
		if socket && !id.Listening {
			return nil
		}
	case handoff.KindState:
		if id.Type == scm.TypeRegular {
			return nil
		}
	default:
		if !socket {
			return nil
		}
	}
	return fmt.Errorf("the descriptor is no %s but %s", d.Kind, id)
}

// wrapLocked gives a listener or packet conn its wrapper, paused unless this
// process takes from its sockets.
func (f *Fds) wrapLocked(e *entry) (err error) {
	closed := func() { f.closed(e) }
	switch e.Kind {
	case handoff.KindListener:
		f.listened[scm.Identity{Network: e.Identity.Network, Address: e.Identity.Address}] = true
		opts := pausable.ListenerOptions{Accepted: f.accepted, Closed: closed}
		if u := e.UnixPath; u != nil {
			opts.Addr = &net.UnixAddr{Name: u.Path, Net: e.Network} // it was bound to another name
		}
		e.listener, err = pausable.NewListener(e.FD, opts)
		if err == nil && f.accepting {
			err = e.listener.Resume()
		}
	case handoff.KindPacketConn:
		e.packets, err = pausable.NewPacketConn(e.FD, closed)
		if err != nil {
			return err
		}
		if c, ok := e.packets.(*pausable.UnixConn); ok && e.UnixPath != nil {
			e.packets = unixConn{c, &net.UnixAddr{Name: e.UnixPath.Path, Net: e.Network}}
		}
		if f.accepting {
			e.packets.Resume()
		}
	}
	return err
}

// unixConn gives a datagram socket the path that clients send to. The kernel
// knows the name that it was bound to before the rename, which is gone.
type unixConn struct {
	*pausable.UnixConn
	addr net.Addr
}

func (c unixConn) LocalAddr() net.Addr { return c.addr }

// closed follows the program's Close of a wrapper.
func (f *Fds) closed(e *entry) {
	if f.keep {
		return // the registry's own descriptor keeps the socket
	}
	if f.putOff(e) {
		return // until the thaw, which may be long in coming: a probation is in between
	}
	unlock, err := f.change(context.Background())
	for errors.Is(err, ErrHandoffInProgress) && !f.putOff(e) {
		unlock, err = f.change(context.Background()) // it was just over
	}
	if err != nil {
		return // as above; or this process is out, and the path is another's
	}
	unlinked := f.byID[e.ID] == e && e.UnixPath != nil && (f.accepting || e.origin == handoff.OriginAdded)
	f.dropLocked(e)
	if unlinked && f.offered != nil {
		// A successor may have asked for it: if it comes to own, it keeps the path.
		f.closedMeanwhile = append(f.closedMeanwhile, e)
		unlinked = false
	}
	unlock()
	if unlinked {
		f.unlink(e)
	}
}

// putOff leaves an entry's removal to the thaw, and reports whether that is still
// to come.
func (f *Fds) putOff(e *entry) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.thawed == nil {
		return false
	}
	f.deferred = append(f.deferred, e)
	return true
}

// dropLocked takes an entry out. While an offer is under way its descriptor
// stays open, because it may be about to be sent.
func (f *Fds) dropLocked(e *entry) {
	if f.byID[e.ID] != e {
		return
	}
	delete(f.byID, e.ID)
	if f.byName[e.Name] == e {
		delete(f.byName, e.Name)
	}
	f.changedLocked()
	if f.offered != nil {
		f.kept = append(f.kept, e.FD)
		return
	}
	_ = e.FD.Close()
}

func (f *Fds) unlink(e *entry) {
	u := e.UnixPath
	ctx, cancel := context.WithTimeout(context.Background(), f.limit)
	defer cancel()
	err := rendezvous.Remove(ctx, rendezvous.Place{Network: e.Network, Path: u.Path},
		rendezvous.Identity{Path: u.Path, Bound: u.Bound, Dev: u.Dev, Ino: u.Ino})
	if err != nil {
		f.log.Warn("the path of a unix listener stays", "name", e.Name, "err", err)
	}
}

// connections lists the connections that this process has accepted and not
// closed. A program gets plain connections, which nobody counts; the kernel knows
// them. [errors.ErrUnsupported] elsewhere than on Linux.
func (f *Fds) connections() ([]scm.Connection, error) {
	f.mu.Lock()
	listened := slices.Collect(maps.Keys(f.listened))
	f.mu.Unlock()
	return scm.Connections(listened)
}

func (f *Fds) sortedLocked() []*entry {
	entries := make([]*entry, 0, len(f.byID))
	for _, e := range f.byID {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Compare(a.ID, b.ID) })
	return entries
}

package crossfade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// Listen returns the listener of that name: the inherited one if its address is
// the same after resolution (port 0 matches any), else a new one, opened by
// Config.ListenConfig. Networks: tcp, tcp4, tcp6, unix, unixpacket. It stays
// registered for the next successor until it is closed.
//
// The result is a wrapper that implements [syscall.Conn]. Its Accept returns
// plain *net.TCPConn and *net.UnixConn, and blocks while this process does not
// take from its sockets: until Ready returned nil in a successor, and after
// Exit. Only Close by the program ends it. A unix listener's path is unlinked
// when the owner closes it or stops for good, never by a handoff; a stale file
// at the path is no obstacle. Close is a change of the registry (see [Fds]), so
// that between Ready and Commit of a successor it waits, at most CommitTimeout.
//
// Errors: ErrNameTaken; those of listening, where EADDRINUSE tells if an
// inherited descriptor is in the way; ErrHandoffInProgress; the error of Err
// after Exit.
func (u *Upgrader) Listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	return u.listener(ctx, request{name, handoff.KindListener, network, address}, nil)
}

// ListenFunc is [Upgrader.Listen] with a function that opens what was not
// inherited. What it returns must implement [syscall.Conn]; its descriptor is
// duplicated and it is closed. For the networks unix and unixpacket open is
// expected to deal with a stale file itself.
func (u *Upgrader) ListenFunc(ctx context.Context, name, network, address string, open func(context.Context) (net.Listener, error)) (net.Listener, error) {
	return u.listener(ctx, request{name, handoff.KindListener, network, address}, open)
}

// listener serves Listen and, with an open of the program's, ListenFunc.
func (u *Upgrader) listener(ctx context.Context, r request, open func(context.Context) (net.Listener, error)) (net.Listener, error) {
	if err := r.check("tcp", "tcp4", "tcp6", "unix", "unixpacket"); err != nil {
		return nil, fmt.Errorf("crossfade: listen %w", err)
	}
	byRules := open == nil && !u.cfg.Disabled && strings.HasPrefix(r.network, "unix")
	if open == nil {
		open = func(ctx context.Context) (net.Listener, error) {
			return u.cfg.ListenConfig.Listen(ctx, r.network, r.address)
		}
	}
	if u.cfg.Disabled {
		if e, err := u.findActivated(ctx, r); err == nil {
			return e.listener, nil
		}
		return open(ctx)
	}
	e, err := u.find(ctx, r, func(ctx context.Context) (handoff.Descriptor, error) {
		if byRules {
			return openUnix(ctx, r)
		}
		ln, err := open(ctx)
		if err != nil {
			return handoff.Descriptor{}, err
		}
		return takeApart(ln, ln.Addr())
	})
	if err != nil {
		return nil, fmt.Errorf("crossfade: listen %w", err)
	}
	return e.listener, nil
}

// ListenPacket is [Upgrader.Listen] for packet conns. Networks: udp, udp4,
// udp6, unixgram. The result is a wrapper with the whole method set of
// *net.UDPConn or *net.UnixConn. Its reads block while this process does not
// take from its sockets, writes go on; after Exit reads fail with
// net.ErrClosed, and writes go on until the program closes it, for the answers
// that are still owed. The packets of a unixgram conn come from the name that it
// was bound to before the rename to its path, so nobody can answer to that.
func (u *Upgrader) ListenPacket(ctx context.Context, name, network, address string) (net.PacketConn, error) {
	return u.packetConn(ctx, request{name, handoff.KindPacketConn, network, address}, nil)
}

// ListenPacketFunc is [Upgrader.ListenPacket] with a function that opens what
// was not inherited.
func (u *Upgrader) ListenPacketFunc(ctx context.Context, name, network, address string, open func(context.Context) (net.PacketConn, error)) (net.PacketConn, error) {
	return u.packetConn(ctx, request{name, handoff.KindPacketConn, network, address}, open)
}

func (u *Upgrader) packetConn(ctx context.Context, r request, open func(context.Context) (net.PacketConn, error)) (net.PacketConn, error) {
	if err := r.check("udp", "udp4", "udp6", "unixgram"); err != nil {
		return nil, fmt.Errorf("crossfade: listen %w", err)
	}
	byRules := open == nil && !u.cfg.Disabled && r.network == "unixgram"
	if open == nil {
		open = func(ctx context.Context) (net.PacketConn, error) {
			return u.cfg.ListenConfig.ListenPacket(ctx, r.network, r.address)
		}
	}
	if u.cfg.Disabled {
		if e, err := u.findActivated(ctx, r); err == nil {
			return e.packets, nil
		}
		return open(ctx)
	}
	e, err := u.find(ctx, r, func(ctx context.Context) (handoff.Descriptor, error) {
		if byRules {
			return openUnix(ctx, r)
		}
		pc, err := open(ctx)
		if err != nil {
			return handoff.Descriptor{}, err
		}
		return takeApart(pc, pc.LocalAddr())
	})
	if err != nil {
		return nil, fmt.Errorf("crossfade: listen %w", err)
	}
	return e.packets, nil
}

// Raw returns what is below a wrapper of this package: the *net.TCPListener,
// *net.UnixListener, *net.UDPConn or *net.UnixConn; anything else is returned
// as it is. It is for libraries that assert the type. What is below does not
// pause: a packet conn's reads compete with those of the other process during a
// handoff, and a listener is valid until this process stops accepting for the
// first time; one that does not accept yet has none, and nil is returned.
func Raw(x any) any {
	switch w := x.(type) {
	case interface{ Raw() net.Listener }:
		if ln := w.Raw(); ln != nil {
			return ln
		}
		return nil
	case interface{ Raw() net.PacketConn }:
		return w.Raw()
	default:
		return x
	}
}

// request is what a program asked for.
type request struct {
	name    string
	kind    handoff.Kind
	network string
	address string
}

func (r request) check(networks ...string) error {
	if err := checkName(r.name); err != nil {
		return err
	}
	if !slices.Contains(networks, r.network) {
		return fmt.Errorf("%q: %w", r.name, net.UnknownNetworkError(r.network))
	}
	return nil
}

// find claims the request's socket among the inherited, or opens it.
func (u *Upgrader) find(ctx context.Context, r request, open func(context.Context) (handoff.Descriptor, error)) (*entry, error) {
	want, err := resolve(ctx, r.network, r.address)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", r.name, err)
	}
	if err := u.fds.reserve(r.name); err != nil {
		return nil, err
	}
	defer u.fds.unreserve(r.name)
	e, err := u.fds.claim(r.name, r.kind, &want)
	if !errors.Is(err, ErrNotInherited) {
		return e, err
	}
	d, err := open(ctx)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", r.name, u.explainInUse(r, err))
	}
	d.Name, d.Kind, d.Network = r.name, r.kind, r.network
	e, err = u.fds.insert(ctx, d)
	if err != nil && d.UnixPath != nil {
		u.fds.unlink(&entry{Descriptor: d})
	}
	return e, err
}

// findActivated claims what the service manager has passed for the request.
func (u *Upgrader) findActivated(ctx context.Context, r request) (*entry, error) {
	want, err := resolve(ctx, r.network, r.address)
	if err != nil {
		return nil, err
	}
	return u.fds.claim(r.name, r.kind, &want)
}

// takeApart takes the descriptor out of what was just opened and closes the
// rest, which must not unlink a path that lives on.
func takeApart(opened io.Closer, addr net.Addr) (handoff.Descriptor, error) {
	d, err := describe(opened, addr)
	if err != nil {
		return d, errors.Join(err, opened.Close())
	}
	d.UnixPath = unixPathOf(addr)
	if l, ok := opened.(*net.UnixListener); ok {
		l.SetUnlinkOnClose(false)
	}
	if err := opened.Close(); err != nil {
		return d, errors.Join(err, d.FD.Close())
	}
	return d, nil
}

// openUnix opens a unix socket of the service by the rules of the control path,
// so that a stale file is no obstacle, with the mode that package net gives.
func openUnix(ctx context.Context, r request) (handoff.Descriptor, error) {
	fd, id, err := rendezvous.Open(ctx, rendezvous.Place{Network: r.network, Path: r.address, Mode: rendezvous.UmaskMode()})
	if err != nil {
		return handoff.Descriptor{}, err
	}
	return handoff.Descriptor{
		FD: fd, Address: id.Path,
		UnixPath: &handoff.UnixPath{Path: id.Path, Bound: id.Bound, Dev: id.Dev, Ino: id.Ino},
	}, nil
}

// keepAlive returns what is done with each accepted connection, nil for
// nothing, so that ListenConfig's keep-alive settings, which no option of the
// listening socket carries, hold in every generation.
func keepAlive(lc *net.ListenConfig) func(net.Conn) {
	if lc.KeepAlive == 0 && !lc.KeepAliveConfig.Enable {
		return nil // package net applies its default
	}
	return func(c net.Conn) {
		t, ok := c.(*net.TCPConn)
		if !ok {
			return
		}
		// An error means that the connection is already gone.
		switch {
		case lc.KeepAliveConfig.Enable:
			_ = t.SetKeepAliveConfig(lc.KeepAliveConfig)
		case lc.KeepAlive < 0:
			_ = t.SetKeepAlive(false)
		default:
			_ = t.SetKeepAlivePeriod(lc.KeepAlive)
		}
	}
}

// explainInUse says what an operator can do if an inherited socket is in the
// way of a new one.
func (u *Upgrader) explainInUse(r request, err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	for _, d := range u.fds.All() {
		if d.Origin != handoff.OriginAdded && inTheWay(d, r) {
			return fmt.Errorf("%w: this process has inherited %q on %s %s, which may be in the way: ask for it by that name and address, "+
				"or hand over once to a version that does not have it", err, d.Name, d.Network, d.Address)
		}
	}
	return err
}

// inTheWay reports whether a descriptor may keep the request's socket from being
// opened.
func inTheWay(d handoff.DescriptorStatus, r request) bool {
	if strings.HasPrefix(r.network, "unix") {
		path, err := filepath.Abs(r.address)
		return err == nil && d.Address == path && strings.HasPrefix(d.Network, "unix")
	}
	_, port, err := net.SplitHostPort(d.Address)
	_, wanted, err2 := net.SplitHostPort(r.address)
	return err == nil && err2 == nil && port == wanted && baseNetwork(d.Network) == baseNetwork(r.network)
}

// baseNetwork is the network without its address family.
func baseNetwork(network string) string { return strings.TrimRight(network, "46") }

// target is an address in the form in which addresses are compared.
type target struct {
	network string
	path    string       // of a unix socket
	any     bool         // no host, or the unspecified address
	ips     []netip.Addr // what the host resolves to
	port    int          // 0 matches any
}

// matches reports whether an inherited socket is what the target means.
func (t target) matches(e *entry) bool {
	if t.path != "" {
		return e.Network == t.network && e.path() == t.path
	}
	have, err := netip.ParseAddrPort(e.Address)
	if err != nil || baseNetwork(e.Network) != baseNetwork(t.network) || t.port != 0 && int(have.Port()) != t.port {
		return false
	}
	if have.Addr().IsUnspecified() {
		// It means different sockets in different networks: "tcp" on [::] takes
		// IPv4 too, "tcp6" does not. In one network all ways to write it mean
		// the same: package net opens [::] for "tcp" and 0.0.0.0.
		return t.any && (e.Network == t.network || e.activated && t.family(have.Addr()))
	}
	return slices.Contains(t.ips, have.Addr().Unmap())
}

// definite reports whether the target means one address only.
func (t target) definite() bool { return t.path != "" || t.port != 0 }

// family reports whether the target's network has addresses like this one.
func (t target) family(addr netip.Addr) bool {
	switch t.network[len(t.network)-1] {
	case '4':
		return addr.Is4()
	case '6':
		return addr.Is6()
	default:
		return true
	}
}

// path is the file that clients of a unix socket dial, "" of any other.
func (e *entry) path() string {
	switch {
	case e.UnixPath != nil:
		return e.UnixPath.Path
	case strings.HasPrefix(e.Network, "unix"):
		return e.Address // of one that somebody else unlinks
	default:
		return ""
	}
}

// resolve finds out what the program's address means.
func resolve(ctx context.Context, network, address string) (target, error) {
	if strings.HasPrefix(network, "unix") {
		path, err := filepath.Abs(address)
		return target{network: network, path: path}, err
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return target{}, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return target{}, err
	}
	if host == "" {
		return target{network: network, any: true, port: port}, nil
	}
	family := "ip"
	if last := network[len(network)-1]; last == '4' || last == '6' {
		family += string(last)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, family, host)
	if err != nil {
		return target{}, err
	}
	t := target{network: network, port: port}
	for _, ip := range ips {
		ip = ip.Unmap()
		t.ips = append(t.ips, ip)
		t.any = t.any || ip.IsUnspecified()
	}
	return t, nil
}

package tableflip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/crossfade-go/crossfade"
)

// Listener can be shared between processes.
type Listener interface {
	net.Listener
	syscall.Conn
}

// PacketConn can be shared between processes.
type PacketConn interface {
	net.PacketConn
	syscall.Conn
}

// Conn can be shared between processes.
type Conn interface {
	net.Conn
	syscall.Conn
}

// Fds is what a process has inherited and what it hands over. A descriptor that
// was asked for or added is handed to every later process in turn; closing what
// a method has returned, or what was added, changes nothing about that. What a
// successor does not ask for before Ready is closed there, and its path, if it
// is a unix socket's, is unlinked.
//
// Absent is nil without an error. Adding under a network and address that are
// there replaces what has them.
type Fds struct {
	up *crossfade.Upgrader
	lc *net.ListenConfig

	adding sync.Mutex // held over a replacement, which is two steps
}

// Listen returns the inherited listener of that network and address, or opens
// one with Options.ListenConfig. A port of 0 always opens one, which the
// successor finds under the port that was given.
//
// The result is a [Listener]. In a process that takes over, its Accept waits for
// Ready.
func (f *Fds) Listen(network, addr string) (net.Listener, error) {
	if isDynamic(network, addr) || isAbstract(network, addr) {
		return f.ListenWithCallback(network, addr, func(network, addr string) (net.Listener, error) {
			return f.lc.Listen(context.Background(), network, addr)
		})
	}
	if ln, err := f.Listener(network, addr); ln != nil || err != nil {
		return ln, err
	}
	return f.up.Listen(context.Background(), nameOf(kindListener, network, addr), network, addr)
}

// ListenWithCallback is Listen with a function that opens what was not
// inherited, which must return a [Listener]; what it returns belongs to Fds from
// then on. The callback may use Fds.
func (f *Fds) ListenWithCallback(network, addr string, callback func(network, addr string) (net.Listener, error)) (net.Listener, error) {
	dynamic := isDynamic(network, addr)
	if !dynamic {
		if ln, err := f.Listener(network, addr); ln != nil || err != nil {
			return ln, err
		}
	}
	opened, err := callback(network, addr)
	if err != nil {
		return nil, fmt.Errorf("tableflip: listen on %s %s: %w", network, addr, err)
	}
	if _, ok := opened.(Listener); !ok {
		_ = opened.Close()
		return nil, fmt.Errorf("tableflip: listen on %s %s: a %T is no tableflip.Listener: it does not implement syscall.Conn", network, addr, opened)
	}
	if dynamic {
		addr = opened.Addr().String()
	}
	setUnlink(opened, false)
	ln, err := f.up.Fds().AddListener(nameOf(kindListener, network, addr), opened)
	if err != nil {
		setUnlink(opened, true)
		return nil, fmt.Errorf("tableflip: listen on %s %s: %w", network, addr, errors.Join(err, opened.Close()))
	}
	return ln, nil
}

// Listener returns the inherited listener, or nil: see [Fds.Listen].
func (f *Fds) Listener(network, addr string) (net.Listener, error) {
	ln, err := f.up.Fds().Listener(nameOf(kindListener, network, addr))
	if err != nil {
		return nil, inheriting(kindListener, network, addr, err)
	}
	return ln, nil
}

// AddListener hands ln over to successors. It remains the caller's, who may
// close it at once, and is not paused during a handoff; closing it never unlinks
// its path, which is for Stop to do.
func (f *Fds) AddListener(network, addr string, ln Listener) error {
	setUnlink(ln, false)
	return f.add(kindListener, network, addr, func(name string) error {
		_, err := f.up.Fds().AddListener(name, keptListener{ln})
		return err
	})
}

// keptListener is closed by the registry and stays open for its owner.
type keptListener struct{ Listener }

func (keptListener) Close() error { return nil }

// setUnlink says whether closing ln unlinks its path, if it has one. Listeners
// of the program's own types may have the method too.
func setUnlink(ln net.Listener, unlink bool) {
	if u, ok := ln.(interface{ SetUnlinkOnClose(bool) }); ok {
		u.SetUnlinkOnClose(unlink)
	}
}

// ListenPacket returns the inherited packet conn of that network and address, or
// opens one with Options.ListenConfig. Port 0 is treated as by [Fds.Listen].
//
// The result is a [PacketConn] with the methods of *net.UDPConn or
// *net.UnixConn. In a process that takes over, its reads wait for Ready.
func (f *Fds) ListenPacket(network, addr string) (net.PacketConn, error) {
	// A unix datagram socket is opened as package net does it: peers answer to
	// the name that it was bound to, and the rules for stale files would bind
	// another one first.
	if !strings.HasPrefix(network, "udp") || isDynamic(network, addr) {
		return f.ListenPacketWithCallback(network, addr, func(network, addr string) (net.PacketConn, error) {
			return f.lc.ListenPacket(context.Background(), network, addr)
		})
	}
	if pc, err := f.PacketConn(network, addr); pc != nil || err != nil {
		return pc, err
	}
	return f.up.ListenPacket(context.Background(), nameOf(kindPacket, network, addr), network, addr)
}

// ListenPacketWithCallback is ListenPacket with a function that opens what was
// not inherited, which must return a [PacketConn]; what it returns belongs to
// Fds from then on. The callback may use Fds.
//
// What is neither UDP nor a unix datagram socket, such as a raw IP socket, is
// returned as it is and never pauses.
func (f *Fds) ListenPacketWithCallback(network, addr string, callback func(network, addr string) (net.PacketConn, error)) (net.PacketConn, error) {
	dynamic := isDynamic(network, addr)
	if !dynamic {
		if pc, err := f.PacketConn(network, addr); pc != nil || err != nil {
			return pc, err
		}
	}
	opened, err := callback(network, addr)
	if err != nil {
		return nil, fmt.Errorf("tableflip: listen for packets on %s %s: %w", network, addr, err)
	}
	shared, ok := opened.(PacketConn)
	if !ok {
		_ = opened.Close()
		return nil, fmt.Errorf("tableflip: listen for packets on %s %s: a %T is no tableflip.PacketConn: it does not implement syscall.Conn", network, addr, opened)
	}
	if dynamic {
		addr = opened.LocalAddr().String()
	}
	pc, err := f.takePacketConn(nameOf(kindPacket, network, addr), shared)
	if err != nil {
		return nil, fmt.Errorf("tableflip: listen for packets on %s %s: %w", network, addr, errors.Join(err, opened.Close()))
	}
	return pc, nil
}

// takePacketConn registers what was opened and returns what to use instead. On
// an error pc remains the caller's.
func (f *Fds) takePacketConn(name string, pc PacketConn) (net.PacketConn, error) {
	if canPause(pc) {
		return f.up.Fds().AddPacketConn(name, pc)
	}
	return pc, f.up.Fds().AddConn(name, packetConn{pc})
}

// PacketConn returns the inherited packet conn, or nil: see [Fds.ListenPacket].
func (f *Fds) PacketConn(network, addr string) (net.PacketConn, error) {
	name := nameOf(kindPacket, network, addr)
	pc, err := f.up.Fds().PacketConn(name)
	if isAbsent(err) {
		pc, err = f.inheritedOther(name)
	}
	if err != nil {
		return nil, inheriting(kindPacket, network, addr, err)
	}
	return pc, nil
}

// inheritedOther returns the packet conn that was registered as a connection
// because it cannot pause, or nil.
func (f *Fds) inheritedOther(name string) (net.PacketConn, error) {
	c, err := f.inheritedConn(name)
	if c == nil || err != nil {
		return nil, err
	}
	pc, ok := c.(net.PacketConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%q is a %T", name, c), c.Close())
	}
	return pc, nil
}

// AddPacketConn hands conn over to successors. It remains the caller's, who may
// close it at once, and is not paused during a handoff: two processes that read
// it share its packets at random.
func (f *Fds) AddPacketConn(network, addr string, conn PacketConn) error {
	return f.add(kindPacket, network, addr, func(name string) error {
		if !canPause(conn) {
			return f.up.Fds().AddConn(name, packetConn{conn})
		}
		_, err := f.up.Fds().AddPacketConn(name, keptPacketConn{conn})
		return err
	})
}

// canPause reports whether package crossfade knows the socket as a packet conn.
func canPause(pc PacketConn) bool {
	network := pc.LocalAddr().Network()
	return network == "udp" || network == "unixgram"
}

// keptPacketConn is closed by the registry and stays open for its owner.
type keptPacketConn struct{ PacketConn }

func (keptPacketConn) Close() error { return nil }

// packetConn makes a packet conn of another kind look like the connection as
// which it is registered. Only its descriptor and local address are used.
type packetConn struct{ PacketConn }

func (packetConn) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (packetConn) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }
func (packetConn) RemoteAddr() net.Addr      { return nil }

// Conn returns the inherited connection of that network and address, or nil. The
// result is the caller's, who may close it; the connection itself stays open for
// the next successor until this process has exited.
func (f *Fds) Conn(network, addr string) (net.Conn, error) {
	c, err := f.inheritedConn(nameOf(kindConn, network, addr))
	return c, inheriting(kindConn, network, addr, err)
}

// AddConn hands conn over to successors. It remains the caller's, who may close
// it at once; the peer notices that when this process has exited, too.
func (f *Fds) AddConn(network, addr string, conn Conn) error {
	return f.add(kindConn, network, addr, func(name string) error {
		return f.up.Fds().AddConn(name, conn)
	})
}

// inheritedConn returns an inherited connection, or nil, and hands it on to the
// next successor, which the registry by itself does not do.
func (f *Fds) inheritedConn(name string) (net.Conn, error) {
	c, err := f.up.Fds().Conn(name)
	switch {
	case isAbsent(err):
		return nil, nil //nolint:nilnil // what the original's API says
	case err != nil:
		return nil, err
	}
	if err := f.up.Fds().AddConn(name, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// File returns a duplicate of the inherited file of that name, or nil. It is the
// caller's. It may be in blocking mode.
func (f *Fds) File(name string) (*os.File, error) {
	return f.inheritedFile(nameOf(kindFile, name, ""))
}

// Files returns duplicates of all inherited files that were not asked for yet,
// in the order of their names. They are the caller's, and may be in blocking
// mode. Their Name is "fd:", the name that they were added with, and ":", but
// for sockets, which are named by their addresses.
func (f *Fds) Files() ([]*os.File, error) {
	var files []*os.File
	for _, d := range f.up.Fds().All() {
		if !isFile(d.Name) {
			continue
		}
		file, err := f.inheritedFile(d.Name)
		if err != nil {
			for _, file := range files {
				_ = file.Close()
			}
			return nil, err
		}
		if file != nil { // else this process has added or asked for it
			files = append(files, file)
		}
	}
	return files, nil
}

func (f *Fds) inheritedFile(name string) (*os.File, error) {
	file, err := f.up.Fds().File(name)
	if isAbsent(err) {
		return f.inheritedSocket(name)
	}
	if err != nil {
		return nil, fmt.Errorf("tableflip: inheriting a file: %w", err)
	}
	return file, nil
}

// inheritedSocket returns the socket that AddFile has registered as a
// connection, or nil.
func (f *Fds) inheritedSocket(name string) (*os.File, error) {
	c, err := f.inheritedConn(name)
	if c == nil || err != nil {
		return nil, err
	}
	defer c.Close()
	s, ok := c.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("tableflip: inheriting a file: %q is a socket of type %T: %w", name, c, errors.ErrUnsupported)
	}
	return s.File()
}

// AddFile hands a duplicate of file over to successors; file remains the
// caller's. It may be a connected socket, but not a listening one, for which
// there is AddListener.
func (f *Fds) AddFile(name string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("tableflip: adding a file: %w", err)
	}
	return f.add(kindFile, name, "", func(name string) error {
		if info.Mode()&os.ModeSocket != 0 {
			return f.up.Fds().AddConn(name, socketFile{file})
		}
		return f.up.Fds().AddFile(name, file)
	})
}

// socketFile is a file that is a socket, as the registry takes it. Only its
// descriptor is used.
type socketFile struct{ *os.File }

func (socketFile) LocalAddr() net.Addr  { return nil }
func (socketFile) RemoteAddr() net.Addr { return nil }

// add registers something, in the place of what has its name.
func (f *Fds) add(kind, network, addr string, register func(name string) error) error {
	f.adding.Lock()
	defer f.adding.Unlock()
	name := nameOf(kind, network, addr)
	err := register(name)
	if errors.Is(err, crossfade.ErrNameTaken) {
		if err = f.up.Fds().Remove(name); err == nil {
			err = register(name)
		}
	}
	if err != nil {
		return fmt.Errorf("tableflip: adding a %s: %w", kind, err)
	}
	return nil
}

// isAbsent reports whether the predecessor has handed nothing of the name over
// that this process has not already asked for.
func isAbsent(err error) bool {
	return errors.Is(err, crossfade.ErrNotInherited) || errors.Is(err, crossfade.ErrNameTaken)
}

// inheriting describes an error of asking for something inherited. Absence is
// none.
func inheriting(kind, network, addr string, err error) error {
	if err == nil || isAbsent(err) {
		return nil
	}
	return fmt.Errorf("tableflip: inheriting the %s %s %s: %w", kind, network, addr, err)
}

// isDynamic reports whether the system chooses the address, so that the one
// asked for names nothing.
func isDynamic(network, addr string) bool {
	if strings.HasPrefix(network, "unix") || addr == "" {
		return addr == ""
	}
	_, service, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	port, err := net.LookupPort(network, service)
	return err == nil && port == 0
}

// isAbstract reports whether addr is a unix address without a file (Linux).
func isAbstract(network, addr string) bool {
	return strings.HasPrefix(network, "unix") && strings.HasPrefix(addr, "@")
}

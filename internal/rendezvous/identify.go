package rendezvous

import (
	"errors"
	"net"
	"path/filepath"
	"syscall"
)

// Identify tells which socket is at path now, for [Remove] later: the path made
// absolute and its (dev, ino). An error matches [fs.ErrNotExist] if there is
// nothing.
func Identify(path string) (Identity, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Identity{}, err
	}
	st, err := lstat(abs)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Path: abs, Dev: st.dev, Ino: st.ino}, nil
}

// IdentifyLiving is [Identify] of a path at which a socket of this network must be that
// somebody has open. What a process leaves behind that was killed is none: the error
// matches [syscall.ECONNREFUSED]. One of another type is an error that matches
// [syscall.EPROTOTYPE].
//
// Nobody is connected to: connect(2) with a socket of another type fails, with an error
// that tells whether there is anybody (unix(7); Linux 6.18, unix_find_bsd).
// Who may not connect does not learn it, and takes the path at its word.
func IdentifyLiving(network, path string) (Identity, error) {
	id, err := Identify(path)
	if err != nil {
		return Identity{}, err
	}
	other := "unixgram"
	if network == other {
		other = "unix"
	}
	conn, err := net.DialUnix(other, nil, &net.UnixAddr{Name: id.Path, Net: other})
	switch {
	case err == nil:
		return Identity{}, errors.Join(&net.OpError{Op: "dial", Net: network, Addr: conn.RemoteAddr(), Err: syscall.EPROTOTYPE}, conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return Identity{}, err
	}
	return id, nil
}

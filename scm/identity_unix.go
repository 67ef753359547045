//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package scm

import (
	"os"

	"golang.org/x/sys/unix"
)

func identify(fd int) (Identity, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Identity{}, os.NewSyscallError("fstat", err)
	}
	id := Identity{Dev: uint64(st.Dev), Ino: uint64(st.Ino)} //nolint:unconvert // the types differ between systems
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		id.Type = TypeRegular
	case unix.S_IFIFO:
		id.Type = TypePipe
	case unix.S_IFSOCK:
		id.Type = TypeSocket
		err := identifySocket(fd, &id)
		return id, err
	}
	return id, nil
}

func identifySocket(fd int, id *Identity) error {
	var err error
	if id.SockType, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	// Not every family has a name or knows about listening.
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil {
		id.Listening = v != 0
	}
	sa, _ := unix.Getsockname(fd)
	id.Domain, id.Protocol = domainAndProtocol(fd, sa)
	id.Cookie = cookie(fd)
	id.Network = network(id.Domain, id.SockType, id.Protocol)
	if id.Network != "" {
		id.Address = address(sa)
	}
	return nil
}

func address(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return inetAddress(sa.Addr[:], sa.Port, 0)
	case *unix.SockaddrInet6:
		return inetAddress(sa.Addr[:], sa.Port, sa.ZoneId)
	case *unix.SockaddrUnix:
		return sa.Name
	}
	return ""
}

func domainOf(sa unix.Sockaddr) int {
	switch sa.(type) {
	case *unix.SockaddrInet4:
		return unix.AF_INET
	case *unix.SockaddrInet6:
		return unix.AF_INET6
	case *unix.SockaddrUnix:
		return unix.AF_UNIX
	}
	return unix.AF_UNSPEC
}

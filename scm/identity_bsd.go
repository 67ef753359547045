//go:build freebsd || openbsd

package scm

import "golang.org/x/sys/unix"

func domainAndProtocol(fd int, sa unix.Sockaddr) (domain, protocol int) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		domain = domainOf(sa)
	}
	protocol, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		protocol = 0
	}
	return domain, protocol
}

func cookie(int) uint64 { return 0 }

//go:build darwin || dragonfly || netbsd

package scm

import "golang.org/x/sys/unix"

// domainAndProtocol has only the name to go by: these systems do not tell more.
func domainAndProtocol(_ int, sa unix.Sockaddr) (domain, protocol int) {
	return domainOf(sa), 0
}

func cookie(int) uint64 { return 0 }

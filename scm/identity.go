package scm

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// Identity is what the kernel says a descriptor is. Two descriptors of one open
// file description, in whatever processes, have equal identities; on Linux two
// different sockets never have. Compare with ==.
type Identity struct {
	Type Type

	// Domain, SockType and Protocol are of sockets only: SO_DOMAIN, SO_TYPE,
	// SO_PROTOCOL, socket(7). Where the system lacks the first it is the family of
	// the local address, where it lacks the last it is 0.
	Domain, SockType, Protocol int

	// Listening is SO_ACCEPTCONN.
	Listening bool

	// Network is "tcp", "udp", "unix", "unixpacket" or "unixgram", and "" for
	// everything else. MPTCP is "tcp": Go's listeners ask for it where they can.
	Network string

	// Address is the local address as package net prints it: "127.0.0.1:80",
	// "[::]:80", a path. For unix sockets it is the name that was bound, whatever
	// the file was renamed to later.
	Address string

	// Cookie is SO_COOKIE, which is unique among the sockets of a network
	// namespace and not used twice. Linux only, 0 elsewhere.
	Cookie uint64

	// Dev and Ino are of fstat(2). They tell files apart; for the file that a unix
	// socket was bound to see stat(2) on its path.
	Dev, Ino uint64
}

// String describes the descriptor for a message, such as "a listening tcp
// socket on [::]:80".
func (id Identity) String() string {
	if id.Type != TypeSocket {
		return id.Type.String()
	}
	var b strings.Builder
	b.WriteString("a ")
	if id.Listening {
		b.WriteString("listening ")
	}
	if id.Network == "" {
		fmt.Fprintf(&b, "socket of domain %d, type %d", id.Domain, id.SockType)
		return b.String()
	}
	b.WriteString(id.Network + " socket")
	if id.Address != "" {
		b.WriteString(" on " + id.Address)
	}
	return b.String()
}

// Type is the sort of a descriptor.
type Type int

// The types that are told apart.
const (
	TypeOther   Type = iota // a directory, a device, an anonymous inode
	TypeSocket              // a socket of any domain
	TypeRegular             // a regular file
	TypePipe                // a pipe or FIFO
)

// String names the type with its article.
func (t Type) String() string {
	switch t {
	case TypeSocket:
		return "a socket"
	case TypeRegular:
		return "a regular file"
	case TypePipe:
		return "a pipe"
	default:
		return "neither socket, regular file nor pipe"
	}
}

const (
	protocolTCP   = 6
	protocolUDP   = 17
	protocolMPTCP = 262 // Linux 5.6
)

// network names a socket as package net does. Protocol 0 is unknown or the
// default one.
func network(domain, sockType, protocol int) string {
	switch domain {
	case syscall.AF_UNIX:
		switch sockType {
		case syscall.SOCK_STREAM:
			return "unix"
		case syscall.SOCK_SEQPACKET:
			return "unixpacket"
		case syscall.SOCK_DGRAM:
			return "unixgram"
		}
	case syscall.AF_INET, syscall.AF_INET6:
		switch {
		case sockType == syscall.SOCK_STREAM && (protocol == 0 || protocol == protocolTCP || protocol == protocolMPTCP):
			return "tcp"
		case sockType == syscall.SOCK_DGRAM && (protocol == 0 || protocol == protocolUDP):
			return "udp"
		}
	}
	return ""
}

// inetAddress prints an address and port, which TCP and UDP do alike.
func inetAddress(ip net.IP, port int, zoneID uint32) string {
	zone := ""
	if zoneID != 0 {
		zone = strconv.FormatUint(uint64(zoneID), 10)
		if ifi, err := net.InterfaceByIndex(int(zoneID)); err == nil {
			zone = ifi.Name
		}
	}
	a := net.TCPAddr{IP: ip, Port: port, Zone: zone}
	return a.String()
}

package scm

import (
	"fmt"
	"net"
	"strings"
	"syscall"
)

// MaxPath is the longest path, in bytes, that a unix socket can be bound to on
// this system: the size of sun_path less its end, unix(7). A longer one can be
// reached through a short symlink.
const MaxPath = maxPath

// Bind makes an AF_UNIX socket and binds it to path. The network is "unix",
// "unixpacket" or "unixgram". The socket is close-on-exec, nonblocking and not
// listening; the caller owns it and the file, whose mode obeys the umask.
//
// A path longer than [MaxPath] matches ENAMETOOLONG, one that exists
// EADDRINUSE, whoever made it. Nothing is ever unlinked.
func Bind(network, path string) (*FD, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	var sockType int
	switch network {
	case "unix":
		sockType = syscall.SOCK_STREAM
	case "unixpacket":
		sockType = syscall.SOCK_SEQPACKET
	case "unixgram":
		sockType = syscall.SOCK_DGRAM
	default:
		return nil, net.UnknownNetworkError(network)
	}
	num, err := bindUnix(sockType, path)
	if err != nil {
		return nil, err
	}
	return &FD{num: num}, nil
}

// checkPath refuses what the kernel would cut off or take for another sort of
// address.
func checkPath(path string) error {
	if err := supported(); err != nil {
		return err
	}
	switch {
	case path == "":
		return fmt.Errorf("the path of the socket is empty: %w", syscall.EINVAL)
	case strings.HasPrefix(path, "@"):
		return fmt.Errorf("%q names an abstract socket, which any user of the network namespace may connect to or take: use a path: %w", path, syscall.EINVAL)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("the path %q has a zero byte: %w", path, syscall.EINVAL)
	case len(path) > MaxPath:
		return fmt.Errorf("the path %q has %d bytes, a unix socket takes at most %d: use a shorter one, or a symlink to its directory: %w", path, len(path), MaxPath, syscall.ENAMETOOLONG)
	}
	return nil
}

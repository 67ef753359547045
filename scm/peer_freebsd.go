package scm

import (
	"os"

	"golang.org/x/sys/unix"
)

// peer leaves the pid out: FreeBSD 13 has it behind the groups, where x/sys does
// not show it.
func peer(fd int) (*Peer, error) {
	cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	return peerOfXucred(cred), nil
}

//go:build darwin || freebsd

package scm

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// peerOfXucred reads credentials in which the first group is the effective one.
func peerOfXucred(cred *unix.Xucred) *Peer {
	groups := slices.Clone(cred.Groups[:min(max(int(cred.Ngroups), 0), len(cred.Groups))])
	p := &Peer{UID: cred.Uid, GID: ^uint32(0), Groups: groups}
	if len(groups) > 0 {
		p.GID = groups[0]
	}
	return p
}

// awaitExit is never reached: no Peer has a pidfd here.
func awaitExit(*os.File) error { return errors.ErrUnsupported }

// executable is never reached either.
func executable(*os.File) (string, error) { return "", errors.ErrUnsupported }

func overflowUID(uint32) bool { return false }

func overflowGID(uint32) bool { return false }

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package scm

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

func reserve(n int) error {
	limit := descriptorLimit()
	// Any descriptor will do as the original.
	fd, err := newSocket(unix.SOCK_STREAM)
	if errors.Is(err, unix.EMFILE) {
		return &LimitError{Need: saturatingAdd(limit, n), Limit: limit}
	}
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// New descriptors get the lowest free numbers. However those in use lie, the
	// highest of n new ones is then below the sum.
	open := countOpen(fd) - 1
	if n > limit-open {
		return &LimitError{Need: saturatingAdd(open, n), Limit: limit}
	}
	highest, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, open+n-1)
	switch {
	case errors.Is(err, unix.EMFILE):
		// Every number from there up to the limit is taken, so the table is that
		// large already, and the count has shown that there is room below.
		return nil
	case errors.Is(err, unix.EINVAL):
		// Somebody has lowered the limit meanwhile.
		return &LimitError{Need: open + n, Limit: descriptorLimit()}
	case err != nil:
		return os.NewSyscallError("fcntl", err)
	}
	return closeDescriptor(highest)
}

func farBelowLimit(num, n int) bool { return saturatingAdd(num, n) < descriptorLimit() }

// countOpen counts the descriptors of this process. Where no directory lists
// them it takes lowest, the lowest number that was free a moment ago, for a
// count: right if there are no gaps.
func countOpen(lowest int) int {
	// os.Open would start the poller, which keeps descriptors of its own.
	num, err := unix.Open(descriptorDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return lowest + 1
	}
	dir := os.NewFile(uintptr(num), descriptorDir)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return lowest + 1
	}
	return max(len(names)-1, lowest+1) // less the directory itself
}

// descriptorLimit is the soft limit, which is the one in force. 0 is unknown.
func descriptorLimit() int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	if uint64(r.Cur) > math.MaxInt32 { //nolint:unconvert // signed on some systems
		return math.MaxInt32
	}
	return int(r.Cur)
}

func saturatingAdd(a, b int) int {
	if a > math.MaxInt-b {
		return math.MaxInt
	}
	return a + b
}

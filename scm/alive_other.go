//go:build !linux

package scm

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

func openPidfd(int) (int, error) {
	return -1, fmt.Errorf("pidfds on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func pidfdID(int) (uint64, error) {
	return 0, fmt.Errorf("pidfds on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// checkPidfd is asked about what another process claims to be a pidfd.
func checkPidfd(int) error { return ErrNotProcess }

func signal(int, syscall.Signal) error { return ErrNotProcess }

func connections([]Identity) ([]Connection, error) {
	return nil, fmt.Errorf("listing connections on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

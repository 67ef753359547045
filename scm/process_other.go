//go:build !linux

package scm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

func exitStatus(*os.File) (status syscall.WaitStatus, err error) {
	return status, fmt.Errorf("pidfds on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

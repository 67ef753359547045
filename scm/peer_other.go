//go:build !(darwin || freebsd || linux)

package scm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

func peer(int) (*Peer, error) {
	return nil, fmt.Errorf("peer credentials on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// awaitExit is never reached: there is no Peer here.
func awaitExit(*os.File) error { return errors.ErrUnsupported }

// executable is never reached either.
func executable(*os.File) (string, error) { return "", errors.ErrUnsupported }

func overflowUID(uint32) bool { return false }

func overflowGID(uint32) bool { return false }

//go:build unix && !linux

package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// adoptOrphans is for Linux: elsewhere orphans go to process 1. FreeBSD has
// procctl(2) with PROC_REAP_ACQUIRE, and x/sys no wrapper for it.
func adoptOrphans() error {
	if os.Getpid() == 1 {
		return nil
	}
	return fmt.Errorf("orphans go to process 1 on this system: %w", errors.ErrUnsupported)
}

func parentOf(int) (int, error) { return 0, errors.ErrUnsupported }

// pidNamespaces: the number that a process says it has may be one of another name space.
const pidNamespaces = false

// wasGiven is about those name spaces.
func wasGiven(int, string) bool { return true }

// handle names a process and never another: there are none here.
type handle struct{}

func openHandle(int) (*handle, error) { return nil, errors.ErrUnsupported }

func (*handle) signal(syscall.Signal) error { return errors.ErrUnsupported }
func (*handle) exited() bool                { return false }
func (*handle) wait() error                 { return errors.ErrUnsupported }
func (*handle) close()                      {}

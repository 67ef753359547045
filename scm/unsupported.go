//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package scm

import (
	"errors"
	"fmt"
	"runtime"
)

// errUnsupported is the one answer here.
var errUnsupported = fmt.Errorf("passing descriptors over unix sockets is not possible on %s: %w", runtime.GOOS, errors.ErrUnsupported)

const maxPath = 107

func newSocket(int) (int, error) { return -1, errUnsupported }

func supported() error { return errUnsupported }

func setCloseOnExec(int) {}

func checkInherited(int) error { return errUnsupported }

func dupDescriptor(int) (int, error) { return -1, errUnsupported }

func closeDescriptor(int) error { return errUnsupported }

func listen(_, _ int) error { return errUnsupported }

func saveOptions(int) func() error { return func() error { return errUnsupported } }

func identify(int) (Identity, error) { return Identity{}, errUnsupported }

func bindUnix(int, string) (int, error) { return -1, errUnsupported }

func socketPair() (a, b int, err error) { return -1, -1, errUnsupported }

func refuseDescriptors(int) {}

func prepare(int) error { return errUnsupported }

func requireConnected(int) error { return errUnsupported }

func recvmsg(int, []byte) (int, []*FD, error) { return 0, nil, errUnsupported }

func sendmsg(int, []byte, []byte) (int, error) { return 0, errUnsupported }

func rights([]int) []byte { return nil }

func peerClosed(int) bool { return false }

func pollHangUp(int) bool { return false }

func setNonblock(int) error { return errUnsupported }

func reserve(int) error { return errUnsupported }

func farBelowLimit(int, int) bool { return false }

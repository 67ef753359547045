//go:build darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import "testing"

func allow(t *testing.T, _ string, _ uint32) {
	t.Helper()
	t.Skip("the access lists of this system are not read")
}

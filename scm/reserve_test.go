//go:build unix

package scm_test

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/scm"
)

// pairOf returns both ends of a connection, which the test need not close.
func pairOf(t *testing.T) (*scm.Conn, *os.File) {
	t.Helper()
	ours, theirs, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ours.Close()
		_ = theirs.Close()
	})
	return ours, theirs
}

func TestReserveBehindADescriptor(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	_, theirs := pairOf(t)
	fd, err := scm.DupFD(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := fd.Reserve(10); err != nil {
		t.Errorf("room for 10 more: %v", err)
	}
	var full *scm.LimitError
	if err := fd.Reserve(int(limit.Cur)); !errors.As(err, &full) || uint64(full.Limit) != uint64(limit.Cur) {
		t.Errorf("room for %d more: %v", limit.Cur, err)
	}
	if err := fd.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fd.Reserve(10); !errors.Is(err, net.ErrClosed) {
		t.Errorf("behind a closed one: %v", err)
	}
}

func TestIsClosed(t *testing.T) {
	ours, theirs := pairOf(t)
	send := func() error { return ours.Send(context.Background(), []byte("x")) }
	if err := send(); err != nil || scm.IsClosed(err) {
		t.Errorf("to one that is there: %v", err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if err := send(); !scm.IsClosed(err) {
		t.Errorf("to one that has closed: %v", err)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if err := send(); !scm.IsClosed(err) {
		t.Errorf("over a closed end: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	again, _ := pairOf(t)
	if err := again.Send(ended, []byte("x")); err == nil || scm.IsClosed(err) {
		t.Errorf("in an ended context: %v", err)
	}
}

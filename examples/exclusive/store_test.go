//go:build linux

package main_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	exclusive "github.com/crossfade-go/crossfade/examples/exclusive"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// A successor can come before the program has opened the database.
func TestSuspendBeforeOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counters.db")
	db := exclusive.NewStore(path, time.Millisecond) // nobody has the lock but db
	if err := db.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	if !db.Away() {
		t.Error("the process that has let go of the database has opened it")
	}
	successor := exclusive.NewStore(path, time.Millisecond)
	if err := successor.Open(); err != nil {
		t.Fatal(err)
	}
	if err := db.Resume(t.Context()); err == nil {
		t.Error("resume has opened what another one has open")
	}
	if err := successor.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Open(); err != nil || !db.Away() {
		t.Errorf("after a resume that has failed, open: %v, and the database is open: %v", err, !db.Away())
	}
	for range 2 { // the second time there is nothing to do
		if err := db.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if db.Away() {
			t.Error("the database is not open after resume")
		}
	}
	if err := db.Open(); err != nil {
		t.Errorf("open after resume: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// A successor can come while the program waits for the lock of the file.
func TestSuspendDuringOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counters.db")
	holder, opened := hold(t, path), opening(t, path)
	db := exclusive.NewStore(path, generous)
	result := make(chan error, 2) // room for both
	go func() { result <- db.Open() }()
	opened()
	enough := errors.New("the successor has gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if err := db.Suspend(ctx); !errors.Is(err, enough) {
		t.Errorf("suspend while the database is being opened: %v, want %v", err, enough)
	}
	go func() { result <- db.Suspend(t.Context()) }()
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-result; err != nil {
			t.Fatal(err)
		}
	}
	if !db.Away() {
		t.Error("the database is open after suspend")
	}
	if err := probe(path); err != nil {
		t.Errorf("the file is locked after suspend: %v", err)
	}
}

// TestASuccessorComesBeforeTheDatabaseIsOpen has the owner wait for the lock of
// its database when the next process is ready. That one must have it next, and
// the owner again when it gets the service back.
func TestASuccessorComesBeforeTheDatabaseIsOpen(t *testing.T) {
	s := newStage(t)
	path := filepath.Join(s.data, "counters.db")
	holder, opened := hold(t, path), opening(t, path)
	owner := s.service(s.data)
	opened()
	next := s.service(s.data)
	s.awaitReady(next)
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	owner.await("database open")
	owner.await("database closed")
	next.serving()
	next.signal(syscall.SIGTERM)
	owner.await("database open")
	next.wantExit(0)
	owner.signal(syscall.SIGTERM)
	owner.wantExit(0)
}

// awaitReady waits until the owner knows that the successor is ready, of which
// nothing but the status tells.
func (s *stage) awaitReady(successor *process) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), generous)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-successor.done:
			s.t.Fatal("the successor has ended")
		}
		conn, err := scm.Dial(ctx, s.socket)
		if err != nil {
			s.t.Fatal(err)
		}
		status, err := handoff.QueryStatus(ctx, conn)
		conn.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		if status.State == handoff.StateCommitting || status.Process.PID == successor.cmd.Process.Pid {
			return
		}
	}
}

// hold creates a file and locks it until it is closed.
func hold(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return f
}

// opening watches a file; what it returns waits until somebody has opened it.
func opening(t *testing.T, path string) (opened func()) {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { events.Close() })
	if _, err := syscall.InotifyAddWatch(fd, path, syscall.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := events.SetReadDeadline(time.Now().Add(generous)); err != nil {
			t.Fatal(err)
		}
		if _, err := events.Read(make([]byte, syscall.SizeofInotifyEvent+256)); err != nil {
			t.Fatalf("nobody opens %s: %v", path, err)
		}
	}
}

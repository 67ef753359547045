package scm_test

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

// requirePassRights skips on kernels before 6.16.
func requirePassRights(t *testing.T) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if _, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSRIGHTS); err != nil {
		t.Skipf("this kernel has no SO_PASSRIGHTS, which is of Linux 6.16: %v", err)
	}
}

func TestTheKernelLetsNoDescriptorThrough(t *testing.T) {
	leak.Check(t)
	requirePassRights(t)
	dog := newCanary(t)
	fds := dog.fds(3)
	path := filepath.Join(t.TempDir(), "s")
	fd, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := errors.Join(fd.RefuseDescriptors(), fd.Listen(5)); err != nil {
		t.Fatal(err)
	}
	client, err := scm.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	mustRefuse := func(when string) {
		t.Helper()
		if err := client.Send(patient(t), []byte("take this"), fds...); !errors.Is(err, unix.EPERM) {
			t.Errorf("sending descriptors %s: %v, want EPERM", when, err)
		}
	}
	mustRefuse("to who has not accepted yet")
	ln, err := scm.NewListener(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	mustRefuse("to who has accepted")
	// Nothing has happened to the connection: it takes frames without, and gives some.
	if err := client.Send(patient(t), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if payload, _, err := server.Receive(patient(t), 0); err != nil || string(payload) != "hello" {
		t.Errorf("received %q, %v", payload, err)
	}
	if err := server.Send(patient(t), []byte("here"), fds...); err != nil {
		t.Fatal(err)
	}
	_, got, err := client.Receive(patient(t), 3)
	if err != nil || len(got) != 3 {
		t.Fatalf("the client received %d descriptors, %v", len(got), err)
	}
	closeFDs(t, got)
	closeFDs(t, fds)
	dog.requireClosed()
}

// TestWhatCameBeforeIsClosed is what kernels without the option do all the time.
func TestWhatCameBeforeIsClosed(t *testing.T) {
	leak.Check(t)
	for name, sent := range map[string]func(w *wire, dog *canary){
		"with a frame that announces it": func(w *wire, dog *canary) { w.send(frame(200, "x"), dog.copies(200)...) },
		"before a header":                func(w *wire, dog *canary) { w.send([]byte{0}, dog.copies(250)...) },
		"behind a whole frame": func(w *wire, dog *canary) {
			w.send(append(frame(0, "x"), 0, 0), dog.copies(250)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, w := connect(t)
			dog := newCanary(t)
			sent(w, dog)
			c.RefuseDescriptors()
			payload, fds, err := c.Receive(patient(t), 0)
			if !errors.Is(err, scm.ErrUnexpectedDescriptors) || payload != nil || fds != nil {
				t.Errorf("received %q, %d descriptors, %v", payload, len(fds), err)
			}
			dog.requireClosed() // though the connection is still open
		})
	}
}

func TestLimitPayload(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	b.LimitPayload(4)
	if err := a.Send(patient(t), []byte("1234")); err != nil {
		t.Fatal(err)
	}
	if payload, _, err := b.Receive(patient(t), 0); err != nil || string(payload) != "1234" {
		t.Errorf("received %q, %v", payload, err)
	}
	b.LimitPayload(scm.MaxPayload)
	if err := a.Send(patient(t), []byte("12345")); err != nil {
		t.Fatal(err)
	}
	if payload, _, err := b.Receive(patient(t), 0); err != nil || string(payload) != "12345" {
		t.Errorf("received %q, %v", payload, err)
	}
	b.LimitPayload(4)
	if err := a.Send(patient(t), []byte("12345")); err != nil {
		t.Fatal(err)
	}
	var frameErr *scm.FrameError
	if _, _, err := b.Receive(patient(t), 0); !errors.Is(err, scm.ErrPayloadTooLarge) || !errors.As(err, &frameErr) || frameErr.Got != 5 || frameErr.Want != 4 {
		t.Errorf("received %v", err)
	}
}

// TestACrowdedTable: a listener accepts though the service has used up the table.
func TestACrowdedTable(t *testing.T) {
	leak.Check(t)
	run(t, "a crowded table")
}

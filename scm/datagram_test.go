//go:build unix

package scm_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

// receiver is a datagram socket at address, for the length of a test.
func receiver(t *testing.T, address string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// datagram reads one datagram with its descriptors.
func datagram(t *testing.T, c *net.UnixConn) (string, []*scm.FD) {
	t.Helper()
	payload, control := make([]byte, 1024), make([]byte, unix.CmsgSpace(4*254))
	n, controlLen, _, _, err := c.ReadMsgUnix(payload, control)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlLen])
	if err != nil {
		t.Fatal(err)
	}
	var fds []*scm.FD
	for i := range messages {
		nums, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, num := range nums {
			fds = append(fds, scm.NewFD(num))
		}
	}
	return string(payload[:n]), fds
}

func TestSendDatagram(t *testing.T) {
	leak.Check(t)
	addresses := []string{filepath.Join(t.TempDir(), "s")}
	if runtime.GOOS == "linux" {
		addresses = append(addresses, fmt.Sprintf("@crossfade-test-%d", os.Getpid()))
	}
	for _, address := range addresses {
		c := receiver(t, address)
		dog := newCanary(t)
		fds := dog.fds(2)
		if err := scm.SendDatagram(patient(t), address, []byte("two"), fds...); err != nil {
			t.Fatal(err)
		}
		want, err := fds[0].Identify()
		if err != nil {
			t.Fatal(err)
		}
		closeFDs(t, fds)
		payload, got := datagram(t, c)
		if payload != "two" || len(got) != 2 {
			t.Fatalf("%q came with %d descriptors", payload, len(got))
		}
		for _, fd := range got {
			if id, err := fd.Identify(); err != nil || id != want {
				t.Errorf("a descriptor is %v (%v), want %v", id, err, want)
			}
		}
		closeFDs(t, got)
		dog.requireClosed()
	}
}

func TestSendDatagramFails(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	receiver(t, path)
	gone := filepath.Join(dir, "gone")
	if err := receiver(t, gone).Close(); err != nil {
		t.Fatal(err)
	}
	stream, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for name, tt := range map[string]struct {
		ctx     context.Context
		address string
		payload string
		fds     []*scm.FD
		want    error
	}{
		"nobody":               {address: filepath.Join(dir, "nobody"), payload: "x", want: fs.ErrNotExist},
		"somebody who is gone": {address: gone, payload: "x", want: syscall.ECONNREFUSED},
		"a stream socket":      {address: stream.Addr().String(), payload: "x", want: syscall.EPROTOTYPE},
		"too long a path":      {address: "/" + strings.Repeat("p", scm.MaxPath), payload: "x", want: syscall.ENAMETOOLONG},
		"no address":           {payload: "x", want: syscall.EINVAL},
		"no payload":           {address: path, want: syscall.EINVAL},
		"too much payload":     {address: path, payload: strings.Repeat("x", 16<<20), want: syscall.EMSGSIZE},
		"a closed descriptor":  {address: path, payload: "x", fds: []*scm.FD{newCanary(t).fds(1)[0]}, want: net.ErrClosed},
		"too many descriptors": {address: path, payload: "x", fds: make([]*scm.FD, scm.MaxDescriptors+1), want: scm.ErrTooManyDescriptors},
		"no time":              {ctx: ended(), address: path, payload: "x", want: errEnded},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := tt.ctx
			if ctx == nil {
				ctx = patient(t)
			}
			if len(tt.fds) == 1 {
				closeFDs(t, tt.fds)
			}
			if err := scm.SendDatagram(ctx, tt.address, []byte(tt.payload), tt.fds...); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// A receiver that reads nothing is waited for as long as the context allows, and
// gets what was sent once it reads again.
func TestSendDatagramWaitsForRoom(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere than on Linux a full queue is an error at once, ENOBUFS")
	}
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	c := receiver(t, path)
	filled := fill(t, path)

	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errEnded)
	defer cancel()
	if err := scm.SendDatagram(ctx, path, []byte("in vain")); !errors.Is(err, errEnded) {
		t.Errorf("with a queue that is full: %v", err)
	}

	sent := make(chan error, 1) // so that the goroutine ends in a test that fails
	go func() { sent <- scm.SendDatagram(patient(t), path, []byte("at last")) }()
	for range filled {
		if payload, _ := datagram(t, c); payload != "full" {
			t.Fatalf("%q came out of order", payload)
		}
	}
	if payload, _ := datagram(t, c); payload != "at last" {
		t.Errorf("got %q", payload)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// fill sends as many datagrams as the queue takes.
func fill(t *testing.T, path string) (n int) {
	t.Helper()
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sendErr error
	for sendErr == nil {
		if err := raw.Control(func(fd uintptr) { sendErr = unix.Send(int(fd), []byte("full"), unix.MSG_DONTWAIT) }); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if !errors.Is(sendErr, unix.EAGAIN) {
		t.Fatal(sendErr)
	}
	return n - 1
}

func TestCheckDatagramAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("abstract names are Linux's")
	}
	longest := "@" + strings.Repeat("n", scm.MaxPath)
	for address, want := range map[string]error{
		longest:       nil,
		longest + "n": syscall.ENAMETOOLONG,
		"@":           syscall.EINVAL,
		"":            syscall.EINVAL,
		"/a\x00b":     syscall.EINVAL,
	} {
		if err := scm.CheckDatagramAddress(address); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", address, err, want)
		}
	}
	// The kernel agrees about the longest.
	if err := receiver(t, longest).Close(); err != nil {
		t.Error(err)
	}
}

func TestInherited(t *testing.T) {
	leak.Check(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd := reexec.Command("inherit")
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

func init() { processes["inherit"] = reexec.Checked(inherit) }

// inherit takes what it has inherited as number 3, once.
func inherit() error {
	fd, err := scm.Inherited(3)
	if err != nil {
		return err
	}
	defer fd.Close()
	if id, err := fd.Identify(); err != nil || id.Type != scm.TypePipe {
		return fmt.Errorf("it is %v (%w)", id, err)
	}
	if _, err := scm.Inherited(3); !errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("taken twice: %w", err)
	}
	if _, err := fd.Identify(); err != nil {
		return fmt.Errorf("after that: %w", err)
	}
	if _, err := scm.Inherited(1000); !errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("one that is not open: %w", err)
	}
	return nil
}

//go:build unix

package scm_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/crossfade-go/crossfade/scm"
)

// One process serves a path and hands a listener to whoever dials it.
func ExampleConn_Send() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		slog.Error("no directory", "err", err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control.sock")

	control, err := scm.Bind("unix", path)
	if err != nil {
		slog.Error("cannot bind", "err", err)
		return
	}
	defer control.Close()
	if err := control.Listen(16); err != nil {
		slog.Error("cannot listen", "err", err)
		return
	}
	received := make(chan string)
	go func() { received <- takeOver(path) }()

	accepting, err := scm.NewListener(control)
	if err != nil {
		slog.Error("cannot accept", "err", err)
		return
	}
	defer accepting.Close()
	c, err := accepting.Accept()
	if err != nil {
		slog.Error("cannot accept", "err", err)
		return
	}
	defer c.Close()
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		slog.Error("cannot listen", "err", err)
		return
	}
	defer web.Close()
	fd, err := scm.DupFD(web.(syscall.Conn))
	if err != nil {
		slog.Error("cannot duplicate", "err", err)
		return
	}
	defer fd.Close()
	if err := c.Send(context.Background(), []byte("web"), fd); err != nil {
		slog.Error("cannot send", "err", err)
		return
	}
	fmt.Println(<-received)
	// Output: web is a listening tcp socket
}

// takeOver is the other process.
func takeOver(path string) string {
	ctx := context.Background()
	c, err := scm.Dial(ctx, path)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	name, fds, err := c.Receive(ctx, 1)
	if err != nil {
		return err.Error()
	}
	defer fds[0].Close()
	id, err := fds[0].Identify()
	if err != nil {
		return err.Error()
	}
	id.Address = "" // another one each time
	return fmt.Sprintf("%s is %s", name, id)
}

// A process that is started gets its end of a connection as descriptor 3.
func ExamplePair() {
	ours, theirs, err := scm.Pair()
	if err != nil {
		slog.Error("no pair", "err", err)
		return
	}
	defer ours.Close()
	cmd := exec.Command("/opt/app/v2/app")
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		slog.Error("cannot start", "err", err)
		return
	}
	// There: scm.OpenConn(scm.NewFD(3)).
}

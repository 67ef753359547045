package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/systemd"
)

// tool finds a program of systemd itself, by which this package and the manager
// of its tests are not only compared with each other.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("systemd is not installed: %v", err)
	}
	return path
}

func TestAgainstSystemdNotify(t *testing.T) {
	path := tool(t, "systemd-notify")
	leak.Check(t)
	m := fakemanager.New(t, &fakemanager.Config{Access: fakemanager.All})
	cmd := exec.Command(path, "--ready", "--status=as systemd says it")
	cmd.Env = append(os.Environ(), m.Environ()...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	m.Await("READY=1", "STATUS=as systemd says it")
}

func init() { processes["activated"] = reexec.Checked(activated) }

// activated serves one connection of the listener that it was started for.
func activated() error {
	env, err := systemd.Take()
	if err != nil {
		return err
	}
	defer env.Close()
	if len(env.Sockets) != 1 || env.Sockets[0].Name != "unix:web" {
		return fmt.Errorf("passed were %+v", env.Sockets)
	}
	ln, err := env.Sockets[0].FD.Listener()
	if err != nil {
		return err
	}
	defer ln.Close()
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.WriteString(c, "activated")
	return err
}

func TestAgainstSystemdSocketActivate(t *testing.T) {
	path := tool(t, "systemd-socket-activate")
	leak.Check(t)
	keepToOneself(t)
	dir, err := os.MkdirTemp("", "activate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	service := reexec.Command("activated")
	cmd := exec.Command(path, "--listen="+socket, "--fdname=unix%3Aweb", "--setenv="+reexec.Env+"=activated", service.Path)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	reexec.Start(t, cmd)
	// It says when it listens.
	if _, err := log.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c := dial(t, socket)
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "activated" {
		said, _ := io.ReadAll(log)
		t.Errorf("got %q (%v); it said %s", answer, err, said)
	}
}

// dial tries until somebody listens: the line in the log comes a moment before.
func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	ctx := patient(t)
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return c
		}
		timer := time.NewTimer(10 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			t.Fatal(errors.Join(context.Cause(ctx), err))
		}
	}
}

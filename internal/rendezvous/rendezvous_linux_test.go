package rendezvous_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	processes["find-read-only"] = processFindReadOnly
}

// fill connects to path until the backlog is full, which only Linux tells apart
// from nobody listening.
func fill(t *testing.T, path string) {
	t.Helper()
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestFullBacklogIsAnOwnerThatIsNotReached(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	mustClaim(t, rendezvous.Place{Path: path, Backlog: 1})
	fill(t, path)
	before := tree(t, filepath.Dir(path))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, _, err := rendezvous.Find(afterAttempts(ctx, 20, cancel), rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrOwnerUnknown) || !errors.Is(err, syscall.EAGAIN) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err != nil && !strings.Contains(err.Error(), "backlog is full") {
		t.Errorf("%q does not say why", err)
	}
	if _, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Path: path}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("opened over it: %v", err)
	}
	wantSame(t, before, tree(t, filepath.Dir(path)))
}

func TestFullBacklogIsTriedAgain(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path, Backlog: 1})
	l, err := scm.NewListener(claim.Listener())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fill(t, path)
	var served atomic.Bool
	ctx := afterAttempts(deadline(t), 20, func() {
		if served.Swap(true) {
			return
		}
		if c, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	})
	conn, again, err := rendezvous.Find(ctx, rendezvous.Place{Path: path})
	if err != nil || again != nil {
		t.Fatalf("got %v, %v", again, err)
	}
	conn.Close()
	if !served.Load() {
		t.Error("the backlog was not full")
	}
}

// A whole handoff of the place between processes that did not start each other.
func TestClaimTravelsOverItsOwnSocket(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	predecessor := start(t, "hand-over", plain(path))
	if got := predecessor.line(); got != "claimed" {
		t.Fatal(got)
	}
	before := tree(t, filepath.Dir(path))
	conn := mustReach(t, path)
	defer conn.Close()
	payload, fds, err := conn.Receive(deadline(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	claim, err := rendezvous.Adopt(rendezvous.Place{Path: path}, parseIdentity(t, payload), fds[0], fds[1])
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Release()
	predecessor.kill()

	if got := start(t, "find", plain(path)).line(); got != "connected" {
		t.Errorf("after the predecessor's end a starter says %s", got)
	}
	wantSame(t, before, tree(t, filepath.Dir(path)))
	if err := claim.Unlink(); err != nil {
		t.Error(err)
	}
	if got := start(t, "find", plain(path)).line(); got != "claimed" {
		t.Errorf("after the owner's end a starter says %s", got)
	}
}

func init() {
	processes["hand-over"] = processHandOver
}

func processHandOver() {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	_, claim, err := rendezvous.Find(ctx, place())
	fmt.Println(outcome(false, claim != nil, err))
	l, err := scm.NewListener(claim.Listener())
	if err != nil {
		panic(err)
	}
	conn, err := l.Accept()
	if err != nil {
		panic(err)
	}
	id := claim.Identity()
	payload := fmt.Sprintf("%s %s %d %d %d", id.Path, id.Bound, id.Dev, id.Ino, id.Backlog)
	if err := conn.Send(ctx, []byte(payload), claim.Listener(), claim.Lock()); err != nil {
		panic(err)
	}
	select {} // until it is killed
}

func parseIdentity(t *testing.T, payload []byte) (id rendezvous.Identity) {
	t.Helper()
	if _, err := fmt.Sscan(string(payload), &id.Path, &id.Bound, &id.Dev, &id.Ino, &id.Backlog); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestReadOnlyMount(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    string
	}{
		{"a living owner is reached", func(t *testing.T, path string) {
			mustClaim(t, rendezvous.Place{Path: path})
		}, "connected"},
		{"an empty place cannot be claimed", func(*testing.T, string) {}, "read-only"},
		{"a stale place cannot be claimed", func(t *testing.T, path string) {
			makeStale(t, path)
			writeFile(t, path+".lock")
		}, "read-only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "control.sock")
			tt.prepare(t, path)
			before := tree(t, filepath.Dir(path))
			got := start(t, "find-read-only", plain(path), func(cmd *exec.Cmd) {
				cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
			}).line()
			if strings.HasPrefix(got, "no mount") {
				t.Skip(got)
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("%q does not say %q", got, tt.want)
			}
			wantSame(t, before, tree(t, filepath.Dir(path)))
		})
	}
}

// processFindReadOnly runs in a mount namespace of its own, where it mounts the
// directory over itself, read-only.
func processFindReadOnly() {
	dir := filepath.Dir(os.Args[1])
	err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount(dir, dir, "", syscall.MS_BIND, ""),
		syscall.Mount("", dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""),
	)
	if err != nil {
		fmt.Println("no mount in a namespace: ", err)
		os.Exit(0)
	}
	processFind()
}

func TestReachAFullBacklog(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path, Backlog: 1})
	l, err := scm.NewListener(claim.Listener())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fill(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = rendezvous.Reach(afterAttempts(ctx, 20, cancel), rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrOwnerUnknown) || !errors.Is(err, syscall.EAGAIN) || errors.Is(err, rendezvous.ErrNoOwner) {
		t.Errorf("got %v", err)
	}
	var served atomic.Bool
	conn, err := rendezvous.Reach(afterAttempts(deadline(t), 20, func() {
		if served.Swap(true) {
			return
		}
		if c, err := l.Accept(); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	}), rendezvous.Place{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestRightsAreGivenToTheNewSocketOnly: who can write to the directory, such as a member
// of the group of a service of root's, and puts something else in the place of the
// temporary directory, has no other file's mode changed.
func TestRightsAreGivenToTheNewSocketOnly(t *testing.T) {
	const victimMode = 0o600
	tests := []struct {
		name string
		swap string // when
		evil func(t *testing.T, evil, victim string)
	}{
		{"before bind, for an empty directory", "bind", func(*testing.T, string, string) {}},
		{"before bind, for one with a link", "bind", func(t *testing.T, evil, victim string) { symlink(t, victim, evil+"/s") }},
		{"after bind, for one with a link", "chmod", func(t *testing.T, evil, victim string) { symlink(t, victim, evil+"/s") }},
		{"after bind, for one with a second name", "chmod", func(t *testing.T, evil, victim string) {
			if err := os.Link(victim, evil+"/s"); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := tempDir(t)
			p := rendezvous.Place{Network: "unix", Path: filepath.Join(dir, "control.sock"), Mode: 0o666}
			victim, evil, temp := filepath.Join(dir, "victim"), filepath.Join(dir, "evil"), p.Path+"~"
			writeFile(t, victim)
			mkdir(t, evil)
			tt.evil(t, evil, victim)
			swap := func() {
				if err := unix.Renameat2(unix.AT_FDCWD, evil, unix.AT_FDCWD, temp, unix.RENAME_EXCHANGE); err != nil {
					t.Fatal(err)
				}
			}
			fd, err := rendezvous.MakeTemp(p)
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			if tt.swap == "bind" {
				swap()
				if made, _, err := rendezvous.BindTemp(p, fd); err == nil {
					made.Close()
					t.Error("a socket that is somewhere else was taken for the new one")
				}
			} else {
				made, _, err := rendezvous.BindTemp(p, fd)
				if err != nil {
					t.Fatal(err)
				}
				defer made.Close()
				swap()
				p.Mode = 0o606
				if err := rendezvous.SetSocketRights(p, fd); err != nil {
					t.Error(err)
				}
				wantMode(t, evil+"/s", 0o606)
			}
			wantMode(t, victim, victimMode)
		})
	}
}

// TestTemporaryDirectoryOfAnother: one that somebody was quick to put in the place of the
// new one is not used.
func TestTemporaryDirectoryOfAnother(t *testing.T) {
	leak.Check(t)
	for name, prepare := range map[string]func(temp string){
		"a link":           func(temp string) { symlink(t, tempDir(t), temp) },
		"open to a group":  func(temp string) { mkdir(t, temp); chmod(t, temp, 0o770) },
		"a file":           func(temp string) { writeFile(t, temp) },
		"nothing any more": func(string) {},
	} {
		p := rendezvous.Place{Network: "unix", Path: filepath.Join(tempDir(t), "control.sock"), Mode: 0o600}
		prepare(p.Path + "~")
		if fd, err := rendezvous.OpenTemp(p); err == nil {
			fd.Close()
			t.Errorf("%s was taken for the new directory", name)
		}
	}
}

// TestPathThroughProc: the links of /proc to another process's files are followed where
// their text says where they lead, and else refused at once, and not checked somewhere
// else than where the kernel goes.
func TestPathThroughProc(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	mustClaim(t, rendezvous.Place{Path: path})
	mustReach(t, "/proc/self/root"+path).Close()

	t.Run("another mount namespace", func(t *testing.T) {
		needRoot(t)
		path := filepath.Join(tempDir(t), "control.sock")
		owner := start(t, "claim", []string{path, "600", "", "022"}, func(cmd *exec.Cmd) { cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS })
		if got := owner.line(); got != "claimed" {
			t.Fatal(got)
		}
		_, err := rendezvous.Reach(deadline(t), rendezvous.Place{Path: fmt.Sprintf("/proc/%d/root%s", owner.cmd.Process.Pid, path)})
		if !errors.Is(err, rendezvous.ErrUnsafe) || !strings.Contains(err.Error(), "nsenter") {
			t.Errorf("got %v", err)
		}
	})
}

// TestIdentifyLiving: the file of a socket outlives it, and whoever holds a socket that
// was replaced at its path must not take the file for its own.
func TestIdentifyLiving(t *testing.T) {
	leak.Check(t)
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			dir := tempDir(t)
			place := rendezvous.Place{Network: network, Path: filepath.Join(dir, "socket")}
			fd, want, err := rendezvous.Open(deadline(t), place)
			if err != nil {
				t.Fatal(err)
			}
			got, err := rendezvous.IdentifyLiving(network, place.Path)
			if err != nil || got.Path != want.Path || got.Dev != want.Dev || got.Ino != want.Ino {
				t.Errorf("the living one: %+v, %v, want %+v", got, err, want)
			}
			if err := fd.Control(func(fd uintptr) {
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n != 0 || err != nil {
					t.Errorf("it was connected to: %d, %v", n, err)
				}
			}); err != nil {
				t.Error(err)
			}
			fd.Close()
			if _, err := rendezvous.IdentifyLiving(network, place.Path); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the dead one: %v", err)
			}
			if _, err := rendezvous.IdentifyLiving(network, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("none: %v", err)
			}
			other := "unixgram"
			if network == other {
				other = "unix"
			}
			place.Network, place.Path = other, filepath.Join(dir, "other")
			fd, _, err = rendezvous.Open(deadline(t), place)
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			if _, err := rendezvous.IdentifyLiving(network, place.Path); !errors.Is(err, syscall.EPROTOTYPE) {
				t.Errorf("one of another type: %v", err)
			}
		})
	}
}

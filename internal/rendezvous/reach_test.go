//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

func init() { processes["reach"] = processReach }

// processReach asks for the owner as a controller does.
func processReach() {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	conn, err := rendezvous.Reach(ctx, place())
	if errors.Is(err, rendezvous.ErrNoOwner) {
		err = fmt.Errorf("nobody: %w", err)
	}
	fmt.Println(outcome(conn != nil, false, err))
}

// TestReach: what a controller finds, and it leaves everything as it was.
func TestReach(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    []error // nil: the owner
	}{
		{"nothing", func(*testing.T, string) {}, []error{rendezvous.ErrNoOwner}},
		{"a stale socket", makeStale, []error{rendezvous.ErrNoOwner}},
		{"a stale socket whose lock is free", func(t *testing.T, path string) {
			makeStale(t, path)
			writeFile(t, path+".lock")
		}, []error{rendezvous.ErrNoOwner}},
		{"a lock file alone", func(t *testing.T, path string) { writeFile(t, path+".lock") }, []error{rendezvous.ErrNoOwner}},
		{"no directory", func(t *testing.T, path string) { remove(t, filepath.Dir(path)) }, []error{rendezvous.ErrNoOwner}},
		{"an owner", func(t *testing.T, path string) { mustClaim(t, rendezvous.Place{Path: path}) }, nil},
		{"an owner through a symbolic link", func(t *testing.T, path string) {
			mustClaim(t, rendezvous.Place{Path: path + "1"})
			symlink(t, path+"1", path)
		}, nil},
		{"a dangling symbolic link", func(t *testing.T, path string) { symlink(t, path+"1", path) }, []error{rendezvous.ErrOwnerUnknown}},
		{"a plain file", writeFile, []error{rendezvous.ErrOwnerUnknown}},
		{"a directory", mkdir, []error{rendezvous.ErrOwnerUnknown}},
		{"a lock that is a symbolic link", func(t *testing.T, path string) { symlink(t, path+"1", path+".lock") }, []error{rendezvous.ErrOwnerUnknown}},
		{"a lock that is a directory", func(t *testing.T, path string) { mkdir(t, path+".lock") }, []error{rendezvous.ErrOwnerUnknown}},
		{"a living socket of another type", func(t *testing.T, path string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}, []error{rendezvous.ErrOwnerUnknown, syscall.EPROTOTYPE}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := tempDir(t)
			path := filepath.Join(dir, "d", "control.sock")
			mkdir(t, filepath.Dir(path))
			tt.prepare(t, path)
			before := tree(t, dir)
			conn, err := rendezvous.Reach(deadline(t), rendezvous.Place{Path: path})
			wantSame(t, before, tree(t, dir))
			if tt.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if conn != nil {
				conn.Close()
				t.Error("somebody was reached")
			}
			for _, target := range tt.want {
				if !errors.Is(err, target) {
					t.Errorf("got %v, want %v", err, target)
				}
			}
			if errors.Is(err, rendezvous.ErrOwnerUnknown) && errors.Is(err, rendezvous.ErrNoOwner) {
				t.Errorf("%v is certain and is not", err)
			}
		})
	}
	t.Run("places that there cannot be", func(t *testing.T) {
		for _, p := range []rendezvous.Place{{}, {Path: "@abstract"}, {Path: "/run/"}, {Path: "/run/app.sock", Network: "unixgram"}} {
			if conn, err := rendezvous.Reach(deadline(t), p); err == nil || errors.Is(err, rendezvous.ErrNoOwner) {
				t.Errorf("%+v: got %v, %v", p, conn, err)
			}
		}
	})
}

func TestReachWithoutPermission(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
	}{
		{"an owner for its own user", func(t *testing.T, path string) { mustClaim(t, rendezvous.Place{Path: path}) }},
		{"a directory that it may not enter", func(t *testing.T, path string) { chmod(t, filepath.Dir(path), 0) }},
		{"a lock that it may not read", func(t *testing.T, path string) { writeFile(t, path+".lock") }},
		{"a stale socket that it may not connect to", func(t *testing.T, path string) {
			makeStale(t, path)
			chmod(t, path, 0o600)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := filepath.Join(tempDir(t), "d")
			mkdir(t, dir)
			path := filepath.Join(dir, "control.sock")
			tt.prepare(t, path)
			got := start(t, "reach", plain(path), as(stranger)).line()
			if !strings.Contains(got, "is unknown") || !strings.Contains(got, "permission denied") {
				t.Errorf("it says %q", got)
			}
			chmod(t, dir, 0o755)
		})
	}
}

// TestReachAHeldLock: somebody is about to come, or has not gone. Only the end of
// the context says that this takes too long.
func TestReachAHeldLock(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	holder := start(t, "hold-lock", []string{path})
	holder.line()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	_, err := rendezvous.Reach(afterAttempts(ctx, 20, func() { cancel(cause) }), rendezvous.Place{Path: path})
	var unknown *rendezvous.UnknownError
	if !errors.As(err, &unknown) || !errors.Is(err, cause) || errors.Is(err, rendezvous.ErrNoOwner) {
		t.Fatalf("got %v", err)
	}
	if pid := holder.cmd.Process.Pid; knowsHolders && unknown.Holder != pid {
		t.Errorf("pid %d holds the lock, the error says %v", pid, err)
	}
	var once sync.Once
	_, err = rendezvous.Reach(afterAttempts(deadline(t), 20, func() { once.Do(holder.kill) }), rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrNoOwner) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestReachWhoeverComes(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	holder := start(t, "hold-lock", []string{path})
	holder.line()
	var (
		once  sync.Once
		claim *rendezvous.Claim
	)
	conn, err := rendezvous.Reach(afterAttempts(deadline(t), 20, func() {
		once.Do(func() {
			holder.kill()
			claim = mustClaim(t, rendezvous.Place{Path: path})
		})
	}), rendezvous.Place{Path: path})
	if err != nil || claim == nil {
		t.Fatalf("got %v", err)
	}
	conn.Close()
}

func TestReachWithAFinishedContext(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := rendezvous.Reach(ctx, rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrOwnerUnknown) || !errors.Is(err, context.Canceled) || errors.Is(err, rendezvous.ErrNoOwner) {
		t.Errorf("got %v", err)
	}
	if errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v is for want of a permission", err)
	}
}

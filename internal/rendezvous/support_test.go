//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

// knowsHolders: only Linux tells who took a lock, and whose pid a peer is.
const knowsHolders = runtime.GOOS == "linux"

// mustClaim claims p, which the end of the test releases.
func mustClaim(t *testing.T, p rendezvous.Place) *rendezvous.Claim {
	t.Helper()
	conn, claim, err := rendezvous.Find(deadline(t), p)
	if err != nil {
		t.Fatal(err)
	}
	if claim == nil {
		conn.Close()
		t.Fatal("reached an owner instead of becoming the first")
	}
	t.Cleanup(func() {
		if err := claim.Release(); err != nil {
			t.Error(err)
		}
	})
	return claim
}

func mustReach(t *testing.T, path string) *scm.Conn {
	t.Helper()
	conn, claim, err := rendezvous.Find(deadline(t), rendezvous.Place{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if conn == nil {
		claim.Unlink()
		t.Fatal("became the first instead of reaching the owner")
	}
	return conn
}

func wantReached(t *testing.T, path string) {
	t.Helper()
	mustReach(t, path).Close()
}

// wantUnknown looks for the owner of p with all the time that it takes.
func wantUnknown(t *testing.T, p rendezvous.Place) error {
	t.Helper()
	conn, claim, err := rendezvous.Find(deadline(t), p)
	if err == nil {
		t.Fatalf("got %v, %v", conn, claim)
	}
	if !errors.Is(err, rendezvous.ErrOwnerUnknown) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	return err
}

func wantStale(t *testing.T, path string) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != fs.ModeSocket {
		t.Fatalf("%s: %v, %v", path, st, err)
	}
	for _, network := range []string{"unix", "unixgram"} {
		c, err := net.Dial(network, path)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("%s is alive: %v", path, err)
		}
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != want {
		t.Errorf("%s has mode %04o, want %04o", path, got, want)
	}
}

func wantGroup(t *testing.T, path string, want uint32) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Gid != want {
		t.Errorf("%s has group %d, want %d", path, st.Gid, want)
	}
}

// wantFiles compares the names in path's directory.
func wantFiles(t *testing.T, path string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, want %q", got, want)
	}
}

// tree describes every file below dir.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		dev, ino := inodeOf(t, path)
		name, err := filepath.Rel(dir, path)
		files[name] = fmt.Sprintf("%v %d:%d", st.Mode(), dev, ino)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func wantSame(t *testing.T, before, after map[string]string) {
	t.Helper()
	if !maps.Equal(before, after) {
		t.Errorf("files were\n%v\nand are\n%v", before, after)
	}
}

func inodeOf(t *testing.T, path string) (dev, ino uint64) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Dev), uint64(st.Ino)
}

// makeStale leaves a socket at path that nobody listens on.
func makeStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// openFile opens a plain file until the end of the test.
func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB)
	})
	return errors.Join(err, controlErr)
}

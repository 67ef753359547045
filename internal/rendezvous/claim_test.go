//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

func TestUnlinkLeavesOnlyTheLockFile(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	if err := claim.Unlink(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, path, "control.sock.lock")
	wantEnded(t, claim)
	if err := claim.Unlink(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	// The next one is a first starter again.
	mustClaim(t, rendezvous.Place{Path: path})
}

func TestReleaseLeavesEverything(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	before := tree(t, filepath.Dir(path))
	for range 2 {
		if err := claim.Release(); err != nil {
			t.Fatal(err)
		}
	}
	wantEnded(t, claim)
	if err := claim.Unlink(); err != nil {
		t.Errorf("unlink after release: %v", err)
	}
	wantSame(t, before, tree(t, filepath.Dir(path)))
}

func wantEnded(t *testing.T, claim *rendezvous.Claim) {
	t.Helper()
	if err := claim.Verify(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("verify: %v", err)
	}
	if _, err := claim.Check(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("check: %v", err)
	}
	for name, fd := range map[string]*scm.FD{"listener": claim.Listener(), "lock": claim.Lock()} {
		if _, err := fd.Dup(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnlinkRemovesOnlyWhatIsItsOwn(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, path string)
		want   error
		left   []string
	}{
		{
			"path replaced by a stranger's socket",
			func(t *testing.T, path string) {
				makeStale(t, path+".new")
				rename(t, path+".new", path)
			},
			rendezvous.ErrControlLost,
			[]string{"control.sock", "control.sock.lock"},
		},
		{
			"path replaced by a file",
			func(t *testing.T, path string) {
				remove(t, path)
				writeFile(t, path)
			},
			rendezvous.ErrControlLost,
			[]string{"control.sock", "control.sock.lock"},
		},
		{
			"path missing",
			func(t *testing.T, path string) { remove(t, path) },
			nil,
			[]string{"control.sock.lock"},
		},
		{
			"lock replaced",
			func(t *testing.T, path string) {
				writeFile(t, path+".new")
				rename(t, path+".new", path+".lock")
			},
			rendezvous.ErrControlLost,
			[]string{"control.sock", "control.sock.lock"},
		},
		{
			"lock missing",
			func(t *testing.T, path string) { remove(t, path+".lock") },
			fs.ErrNotExist,
			[]string{"control.sock"},
		},
		{
			"both missing",
			func(t *testing.T, path string) {
				remove(t, path)
				remove(t, path+".lock")
			},
			nil,
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "control.sock")
			claim := mustClaim(t, rendezvous.Place{Path: path})
			tt.change(t, path)
			before := tree(t, filepath.Dir(path))
			if err := claim.Unlink(); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			wantEnded(t, claim)
			wantFiles(t, path, tt.left...)
			wantSame(t, before, tree(t, filepath.Dir(path)))
		})
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name    string
		change  func(t *testing.T, path string)
		verify  error // what a look without repair says
		rebound bool
		want    error
		says    []string
	}{
		{name: "all is well", change: func(*testing.T, string) {}},
		{
			name:    "path missing",
			change:  func(t *testing.T, path string) { remove(t, path) },
			verify:  fs.ErrNotExist,
			rebound: true,
		},
		{
			name:   "lock missing",
			change: func(t *testing.T, path string) { remove(t, path+".lock") },
			verify: fs.ErrNotExist,
		},
		{
			name: "directory recreated",
			change: func(t *testing.T, path string) {
				if err := os.RemoveAll(filepath.Dir(path)); err != nil {
					t.Fatal(err)
				}
				mkdir(t, filepath.Dir(path))
			},
			verify:  fs.ErrNotExist,
			rebound: true,
		},
		{
			name: "directory gone",
			change: func(t *testing.T, path string) {
				if err := os.RemoveAll(filepath.Dir(path)); err != nil {
					t.Fatal(err)
				}
			},
			verify: fs.ErrNotExist,
			want:   fs.ErrNotExist,
			says:   []string{"create it first"},
		},
		{
			name: "path replaced by a socket",
			change: func(t *testing.T, path string) {
				makeStale(t, path+".new")
				rename(t, path+".new", path)
			},
			verify: rendezvous.ErrControlLost,
			want:   rendezvous.ErrControlLost,
			says:   []string{"control.sock is no longer the socket", "end one of the two"},
		},
		{
			name: "path replaced by a directory",
			change: func(t *testing.T, path string) {
				remove(t, path)
				mkdir(t, path)
			},
			verify: rendezvous.ErrControlLost,
			want:   rendezvous.ErrControlLost,
		},
		{
			name: "lock replaced",
			change: func(t *testing.T, path string) {
				writeFile(t, path+".new")
				rename(t, path+".new", path+".lock")
			},
			verify: rendezvous.ErrControlLost,
			want:   rendezvous.ErrControlLost,
			says:   []string{"control.sock.lock is no longer the lock", "remove that lock file"},
		},
		{
			name: "lock replaced and path missing",
			change: func(t *testing.T, path string) {
				remove(t, path)
				writeFile(t, path+".new")
				rename(t, path+".new", path+".lock")
			},
			verify: rendezvous.ErrControlLost,
			want:   rendezvous.ErrControlLost,
		},
		{
			name: "path replaced and lock missing",
			change: func(t *testing.T, path string) {
				remove(t, path+".lock")
				remove(t, path)
				makeStale(t, path)
			},
			verify: rendezvous.ErrControlLost,
			want:   rendezvous.ErrControlLost,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := filepath.Join(tempDir(t), "d")
			mkdir(t, dir)
			path := filepath.Join(dir, "control.sock")
			p := rendezvous.Place{Path: path, Mode: 0o640, Backlog: 7}
			claim := mustClaim(t, p)
			id := claim.Identity()
			tt.change(t, path)
			before := tree(t, filepath.Dir(dir))

			if err := claim.Verify(); !errors.Is(err, tt.verify) {
				t.Errorf("verify: %v", err)
			}
			wantSame(t, before, tree(t, filepath.Dir(dir)))

			rebound, err := claim.Check(deadline(t))
			if rebound != tt.rebound || !errors.Is(err, tt.want) {
				t.Fatalf("got %t, %v, want %t, %v", rebound, err, tt.rebound, tt.want)
			}
			if tt.want != nil {
				for _, says := range append(tt.says, path) {
					if !strings.Contains(err.Error(), says) {
						t.Errorf("%q does not say %q", err, says)
					}
				}
				wantSame(t, before, tree(t, filepath.Dir(dir)))
				return
			}
			// Whatever it was, now all is as after a first start.
			if err := claim.Verify(); err != nil {
				t.Errorf("verify afterwards: %v", err)
			}
			if now := claim.Identity(); (now == id) == rebound || now.Path != id.Path || now.Backlog != 7 {
				t.Errorf("identity was %+v and is %+v", id, now)
			}
			wantReached(t, path)
			wantMode(t, path, 0o640)
			wantMode(t, path+".lock", 0o640)
			wantFiles(t, path, "control.sock", "control.sock.lock")
			if err := flock(openFile(t, path+".lock")); !errors.Is(err, syscall.EWOULDBLOCK) {
				t.Errorf("the lock is not held: %v", err)
			}
			if err := claim.Unlink(); err != nil {
				t.Error(err)
			}
			wantFiles(t, path, "control.sock.lock")
		})
	}
}

func TestConnectionsQueuedBeforeARebindAreServed(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	old, err := scm.NewListener(claim.Listener())
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	conn := mustReach(t, path)
	defer conn.Close()
	remove(t, path)
	if rebound, err := claim.Check(deadline(t)); !rebound || err != nil {
		t.Fatalf("got %t, %v", rebound, err)
	}
	accepted, err := old.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted.Close()
}

// A starter that finds path and lock missing follows the rules and becomes an
// owner. The one who lost them must not take them back.
func TestCheckAfterAStrangerHasTakenTheMissingFiles(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	remove(t, path)
	remove(t, path+".lock")
	stranger := start(t, "claim", plain(path))
	if got := stranger.line(); got != "claimed" {
		t.Fatal(got)
	}
	before := tree(t, filepath.Dir(path))
	if rebound, err := claim.Check(deadline(t)); rebound || !errors.Is(err, rendezvous.ErrControlLost) {
		t.Errorf("got %t, %v", rebound, err)
	}
	wantSame(t, before, tree(t, filepath.Dir(path)))
}

func TestPassedLockKeepsOthersOut(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	lock, err := claim.Lock().Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := claim.Release(); err != nil {
		t.Fatal(err)
	}
	wantStale(t, path)

	before := tree(t, filepath.Dir(path))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, _, err = rendezvous.Find(afterAttempts(ctx, 20, cancel), rendezvous.Place{Path: path})
	var unknown *rendezvous.UnknownError
	if !errors.As(err, &unknown) {
		t.Fatalf("got %v", err)
	}
	if knowsHolders && unknown.Holder != os.Getpid() {
		t.Errorf("this process took the lock, the error says %v", err)
	}
	wantSame(t, before, tree(t, filepath.Dir(path)))

	lock.Close()
	mustClaim(t, rendezvous.Place{Path: path})
}

// duplicates of a claim's descriptors, as a successor receives them.
func duplicates(t *testing.T, claim *rendezvous.Claim) (listener, lock *scm.FD) {
	t.Helper()
	listener, err := claim.Listener().Dup()
	if err != nil {
		t.Fatal(err)
	}
	lock, err = claim.Lock().Dup()
	if err != nil {
		t.Fatal(err)
	}
	return listener, lock
}

func TestAdopt(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	first := mustClaim(t, rendezvous.Place{Path: path, Backlog: 7})
	before := tree(t, filepath.Dir(path))

	// Three generations, each from the one before.
	claim := first
	for range 3 {
		listener, lock := duplicates(t, claim)
		next, err := rendezvous.Adopt(rendezvous.Place{Path: path}, claim.Identity(), listener, lock)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.Release() })
		if next.Identity() != first.Identity() {
			t.Errorf("identity was %+v and is %+v", first.Identity(), next.Identity())
		}
		if err := claim.Release(); err != nil {
			t.Fatal(err)
		}
		claim = next
	}
	// The file has stayed, it is answered, and the lock is held.
	wantSame(t, before, tree(t, filepath.Dir(path)))
	wantReached(t, path)
	if rebound, err := claim.Check(deadline(t)); rebound || err != nil {
		t.Errorf("check: %t, %v", rebound, err)
	}
	if err := flock(openFile(t, path+".lock")); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("the lock is not held: %v", err)
	}
	if err := claim.Unlink(); err != nil {
		t.Error(err)
	}
	wantFiles(t, path, "control.sock.lock")
}

func TestAdoptSeesTheFileByAnotherPath(t *testing.T) {
	leak.Check(t)
	dir := tempDir(t)
	mkdir(t, filepath.Join(dir, "a"))
	symlink(t, "a", filepath.Join(dir, "b"))
	claim := mustClaim(t, rendezvous.Place{Path: filepath.Join(dir, "a", "control.sock")})
	listener, lock := duplicates(t, claim)
	here := filepath.Join(dir, "b", "control.sock")
	adopted, err := rendezvous.Adopt(rendezvous.Place{Path: here}, claim.Identity(), listener, lock)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Release()
	want := claim.Identity()
	want.Path = here
	if got := adopted.Identity(); got != want {
		t.Errorf("identity is %+v, want %+v", got, want)
	}
}

func TestAdoptWithoutAPathTakesTheCarriedOne(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	listener, lock := duplicates(t, claim)
	adopted, err := rendezvous.Adopt(rendezvous.Place{}, claim.Identity(), listener, lock)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Release()
	if adopted.Identity() != claim.Identity() {
		t.Errorf("identity is %+v, want %+v", adopted.Identity(), claim.Identity())
	}
}

// received is what Adopt gets. The listener and the lock are right at first.
type received struct {
	place          rendezvous.Place
	id             rendezvous.Identity
	listener, lock *scm.FD
}

func TestAdoptRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, r *received)
		want   error
	}{
		{"a listener that is a file", func(t *testing.T, r *received) {
			swap(t, &r.listener, dupOf(t, openFile(t, filepath.Join(tempDir(t), "f"))))
		}, rendezvous.ErrMismatch},
		{"a listener that does not listen", func(t *testing.T, r *received) {
			fd, err := scm.Bind("unix", filepath.Join(tempDir(t), "s"))
			if err != nil {
				t.Fatal(err)
			}
			swap(t, &r.listener, fd)
		}, rendezvous.ErrMismatch},
		{"a listener of another address", func(t *testing.T, r *received) {
			fd, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Path: filepath.Join(tempDir(t), "s")})
			if err != nil {
				t.Fatal(err)
			}
			swap(t, &r.listener, fd)
		}, rendezvous.ErrMismatch},
		{"a TCP listener", func(t *testing.T, r *received) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			swap(t, &r.listener, dupOf(t, l.(*net.TCPListener)))
		}, rendezvous.ErrMismatch},
		{"a datagram socket", func(t *testing.T, r *received) {
			fd, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Network: "unixgram", Path: filepath.Join(tempDir(t), "s")})
			if err != nil {
				t.Fatal(err)
			}
			swap(t, &r.listener, fd)
		}, rendezvous.ErrMismatch},
		{"a closed listener", func(_ *testing.T, r *received) {
			r.listener.Close()
		}, net.ErrClosed},
		{"a lock that is a socket", func(t *testing.T, r *received) {
			fd, err := r.listener.Dup()
			if err != nil {
				t.Fatal(err)
			}
			swap(t, &r.lock, fd)
		}, rendezvous.ErrMismatch},
		{"a lock that is another file", func(t *testing.T, r *received) {
			swap(t, &r.lock, dupOf(t, openFile(t, filepath.Join(tempDir(t), "f"))))
		}, rendezvous.ErrControlLost},
		{"the lock file opened anew, which holds no lock", func(t *testing.T, r *received) {
			swap(t, &r.lock, dupOf(t, openFile(t, r.id.Path+".lock")))
		}, rendezvous.ErrMismatch},
		{"a closed lock", func(_ *testing.T, r *received) {
			r.lock.Close()
		}, net.ErrClosed},
		{"an identity with another inode", func(_ *testing.T, r *received) {
			r.id.Ino++
		}, rendezvous.ErrControlLost},
		{"an identity with another bound name", func(_ *testing.T, r *received) {
			r.id.Bound += "x"
		}, rendezvous.ErrMismatch},
		{"an identity with a path that is none", func(_ *testing.T, r *received) {
			r.id.Path = "@control"
		}, rendezvous.ErrPath},
		{"a path that is another's here", func(t *testing.T, r *received) {
			r.place.Path = filepath.Join(tempDir(t), "s")
			mustClaim(t, r.place)
		}, rendezvous.ErrControlLost},
		{"a path that does not exist here", func(t *testing.T, r *received) {
			r.place.Path = filepath.Join(tempDir(t), "s")
		}, fs.ErrNotExist},
		{"a path that has vanished", func(t *testing.T, r *received) {
			remove(t, r.id.Path)
		}, fs.ErrNotExist},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "control.sock")
			claim := mustClaim(t, rendezvous.Place{Path: path})
			r := received{id: claim.Identity()}
			r.listener, r.lock = duplicates(t, claim)
			tt.change(t, &r)
			before := tree(t, filepath.Dir(path))
			adopted, err := rendezvous.Adopt(r.place, r.id, r.listener, r.lock)
			if err == nil {
				adopted.Release()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			for name, fd := range map[string]*scm.FD{"listener": r.listener, "lock": r.lock} {
				if _, err := fd.Identify(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("%s is still open: %v", name, err)
				}
			}
			wantSame(t, before, tree(t, filepath.Dir(path)))
			// The predecessor has lost nothing by it.
			if err := flock(openFile(t, path+".lock")); !errors.Is(err, syscall.EWOULDBLOCK) {
				t.Errorf("the lock is not held: %v", err)
			}
		})
	}
}

func swap(t *testing.T, at **scm.FD, fd *scm.FD) {
	t.Helper()
	if err := (*at).Close(); err != nil {
		t.Fatal(err)
	}
	*at = fd
}

func dupOf(t *testing.T, c syscall.Conn) *scm.FD {
	t.Helper()
	fd, err := scm.DupFD(c)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

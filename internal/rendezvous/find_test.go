//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

func TestFirstStarterClaimsAnEmptyPlace(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})

	id := claim.Identity()
	if id.Path != path || id.Backlog != rendezvous.DefaultBacklog {
		t.Errorf("identity is %+v", id)
	}
	if dev, ino := inodeOf(t, path); id.Dev != dev || id.Ino != ino {
		t.Errorf("identity says inode %d:%d, the path is %d:%d", id.Dev, id.Ino, dev, ino)
	}
	got, err := claim.Listener().Identify()
	if err != nil {
		t.Fatal(err)
	}
	if !got.Listening || got.Address != id.Bound {
		t.Errorf("listener is %+v, bound name %q", got, id.Bound)
	}
	wantFiles(t, path, "control.sock", "control.sock.lock")
	wantReached(t, path)
}

func TestSecondStarterReachesTheOwner(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	claim := mustClaim(t, rendezvous.Place{Path: path})
	l, err := scm.NewListener(claim.Listener())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	conn := mustReach(t, path)
	defer conn.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if err := accepted.Send(t.Context(), []byte("it is me")); err != nil {
		t.Fatal(err)
	}
	got, _, err := conn.Receive(t.Context(), 0)
	if err != nil || string(got) != "it is me" {
		t.Errorf("received %q, %v", got, err)
	}
}

func TestRelativePathIsMadeAbsolute(t *testing.T) {
	leak.Check(t)
	dir := tempDir(t)
	t.Chdir(dir)
	claim := mustClaim(t, rendezvous.Place{Path: "control.sock"})
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := claim.Identity().Path, filepath.Join(wd, "control.sock"); got != want {
		t.Errorf("path is %s, want %s", got, want)
	}
}

// What a process leaves behind that dies at the worst moments.
func TestLeftoversAreNoObstacle(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
	}{
		{"a killed owner's socket and lock", func(t *testing.T, path string) {
			owner := start(t, "claim", plain(path))
			if got := owner.line(); got != "claimed" {
				t.Fatal(got)
			}
			owner.kill()
			wantStale(t, path)
		}},
		{"a socket without a lock file", func(t *testing.T, path string) {
			makeStale(t, path)
		}},
		{"a lock file without a socket", func(t *testing.T, path string) {
			writeFile(t, path+".lock")
		}},
		{"a socket that was bound and never renamed", func(t *testing.T, path string) {
			mkdir(t, path+"~")
			makeStale(t, path+"~/s")
			writeFile(t, path+".lock")
		}},
		{"the same beside a stale socket", func(t *testing.T, path string) {
			makeStale(t, path)
			mkdir(t, path+"~")
			makeStale(t, path+"~/s")
		}},
		{"a temporary directory, empty and closed", func(t *testing.T, path string) {
			if err := os.Mkdir(path+"~", 0); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "control.sock")
			tt.prepare(t, path)
			mustClaim(t, rendezvous.Place{Path: path})
			wantReached(t, path)
			wantFiles(t, path, "control.sock", "control.sock.lock")
		})
	}
}

// Owner unknown is not "no owner".
func TestNothingIsBoundWhereItCannotBeSaidWhoOwns(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
		want    error
		says    string
	}{
		{"a plain file", func(t *testing.T, path string) {
			writeFile(t, path)
		}, rendezvous.ErrFileType, "plain file"},
		{"a directory", func(t *testing.T, path string) {
			mkdir(t, path)
		}, rendezvous.ErrFileType, "directory"},
		{"a fifo", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, rendezvous.ErrFileType, "type p"},
		{"a dangling symbolic link", func(t *testing.T, path string) {
			symlink(t, path+".target", path)
		}, rendezvous.ErrFileType, "symbolic link"},
		{"a symbolic link to a stale socket", func(t *testing.T, path string) {
			makeStale(t, path+".target")
			symlink(t, path+".target", path)
		}, rendezvous.ErrFileType, "symbolic link"},
		{"a symbolic link to itself", func(t *testing.T, path string) {
			symlink(t, path, path)
		}, syscall.ELOOP, ""},
		{"a lock that is a symbolic link", func(t *testing.T, path string) {
			writeFile(t, path+".target")
			symlink(t, path+".target", path+".lock")
		}, rendezvous.ErrFileType, "symbolic link"},
		{"a lock that is a dangling symbolic link", func(t *testing.T, path string) {
			symlink(t, path+".target", path+".lock")
		}, rendezvous.ErrFileType, "symbolic link"},
		{"a lock that is a directory", func(t *testing.T, path string) {
			mkdir(t, path+".lock")
		}, rendezvous.ErrFileType, "directory"},
		{"a lock that is a fifo", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path+".lock", 0o600); err != nil {
				t.Fatal(err)
			}
		}, rendezvous.ErrFileType, "type p"},
		{"a lock that is a hard link to another file", func(t *testing.T, path string) {
			writeFile(t, path+".target")
			if err := os.Link(path+".target", path+".lock"); err != nil {
				t.Fatal(err)
			}
		}, rendezvous.ErrFileType, "2 names"},
		{"a lock that is a file with something in it", func(t *testing.T, path string) {
			if err := os.WriteFile(path+".lock", []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, rendezvous.ErrFileType, "6 bytes"},
		{"a live socket of another type", func(t *testing.T, path string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}, syscall.EPROTOTYPE, ""},
		{"a directory that is missing", func(t *testing.T, path string) {
			remove(t, filepath.Dir(path))
		}, fs.ErrNotExist, "does not exist: create it first"},
		{"a directory that is a file", func(t *testing.T, path string) {
			remove(t, filepath.Dir(path))
			writeFile(t, filepath.Dir(path))
		}, syscall.ENOTDIR, "not a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := filepath.Join(tempDir(t), "d")
			mkdir(t, dir)
			path := filepath.Join(dir, "control.sock")
			tt.prepare(t, path)
			before := tree(t, filepath.Dir(dir))

			err := wantUnknown(t, rendezvous.Place{Path: path})
			if !errors.Is(err, tt.want) {
				t.Errorf("%v does not match %v", err, tt.want)
			}
			if !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%q does not say %q of %s", err, tt.says, path)
			}
			after := tree(t, filepath.Dir(dir))
			// The lock file may have been made on the way; it is never removed.
			delete(after, "d/control.sock.lock")
			delete(before, "d/control.sock.lock")
			wantSame(t, before, after)
		})
	}
}

func TestTemporaryNameThatIsNotOurs(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, temp string)
		want    error
	}{
		{"a plain file", writeFile, rendezvous.ErrFileType},
		{"a socket", makeStale, rendezvous.ErrFileType},
		{"a symbolic link", func(t *testing.T, temp string) { symlink(t, tempDir(t), temp) }, rendezvous.ErrFileType},
		{"a directory with a file", func(t *testing.T, temp string) {
			mkdir(t, temp)
			writeFile(t, temp+"/s")
		}, syscall.ENOTEMPTY},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "control.sock")
			writeFile(t, path+".lock")
			tt.prepare(t, path+"~")
			before := tree(t, filepath.Dir(path))
			_, _, err := rendezvous.Find(deadline(t), rendezvous.Place{Path: path})
			if !errors.Is(err, tt.want) || errors.Is(err, rendezvous.ErrOwnerUnknown) {
				t.Errorf("got %v", err)
			}
			wantSame(t, before, tree(t, filepath.Dir(path)))
		})
	}
}

func TestLiveOwnerIsReachedThroughASymbolicLink(t *testing.T) {
	leak.Check(t)
	dir := tempDir(t)
	path, link := filepath.Join(dir, "control.sock"), filepath.Join(dir, "link")
	mustClaim(t, rendezvous.Place{Path: path})
	symlink(t, path, link)
	mustReach(t, link).Close()
}

func TestPathOfALongDirectoryIsClaimedThroughASymbolicLink(t *testing.T) {
	leak.Check(t)
	dir := tempDir(t)
	long := filepath.Join(dir, strings.Repeat("d", 150))
	mkdir(t, long)
	symlink(t, long, filepath.Join(dir, "l"))

	_, _, err := rendezvous.Find(deadline(t), rendezvous.Place{Path: filepath.Join(long, "control.sock")})
	if !errors.Is(err, rendezvous.ErrPath) {
		t.Errorf("a path that is too long: %v", err)
	}
	mustClaim(t, rendezvous.Place{Path: filepath.Join(dir, "l", "control.sock")})
	wantReached(t, filepath.Join(dir, "l", "control.sock"))
}

func TestLongestPath(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			dir := tempDir(t)
			path := filepath.Join(dir, "s")
			for rendezvous.CheckPath(network, path+"s") == nil {
				path += "s"
			}
			if len(path) != scm.MaxPath-len("~/s") {
				t.Errorf("%d bytes are the most, of %d for an address", len(path), scm.MaxPath)
			}
			fd, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Network: network, Path: path})
			if err != nil {
				t.Fatal(err)
			}
			fd.Close()
			wantStale(t, path)
		})
	}
}

func TestCheckPath(t *testing.T) {
	tests := []struct {
		name, network, path string
		want                error
		says                string
	}{
		{"absolute", "unix", "/run/app/control.sock", nil, ""},
		{"relative", "unix", "control.sock", nil, ""},
		{"default network", "", "/run/app/control.sock", nil, ""},
		{"a name that begins with @", "unix", "/run/@app", nil, ""},
		{"seqpacket", "unixpacket", "/run/app/control.sock", nil, ""},
		{"datagram", "unixgram", "/run/app/log.sock", nil, ""},
		{"empty", "unix", "", rendezvous.ErrPath, "empty"},
		{"a directory", "unix", "/run/app/", rendezvous.ErrPath, "directory"},
		{"NUL", "unix", "/run/a\x00b", rendezvous.ErrPath, "NUL"},
		{"abstract", "unix", "@app", rendezvous.ErrPath, "any user"},
		{"abstract as the kernel writes it", "unix", "\x00app", rendezvous.ErrPath, "NUL"},
		{"too long", "unix", "/" + strings.Repeat("a", 199), rendezvous.ErrPath, fmt.Sprintf("200 bytes long and %d is the most", scm.MaxPath-len("~/s"))},
		{"too long in the system's words", "unix", "/" + strings.Repeat("a", 199), syscall.ENAMETOOLONG, "symbolic link"},
		{"not a unix network", "tcp", "/run/app/control.sock", net.UnknownNetworkError("tcp"), "tcp"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := rendezvous.CheckPath(tt.network, tt.path)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q does not say %q", err, tt.says)
			}
		})
	}
}

func TestPlacesThatMakeNoSense(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	for name, p := range map[string]rendezvous.Place{
		"set-uid":             {Path: path, Mode: fs.ModeSetuid | 0o600},
		"a directory's mode":  {Path: path, Mode: fs.ModeDir | 0o700},
		"negative backlog":    {Path: path, Backlog: -1},
		"boundless backlog":   {Path: path, Backlog: 1 << 30},
		"control by datagram": {Path: path, Network: "unixgram"},
		"unknown network":     {Path: path, Network: "udp"},
		"unknown group":       {Path: path, Group: "no group has this name"},
	} {
		if conn, claim, err := rendezvous.Find(deadline(t), p); err == nil {
			t.Errorf("%s: got %v, %v", name, conn, claim)
		}
	}
	wantFiles(t, path)
}

func TestLockOfAProcessThatDoesNotServe(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	holder := start(t, "hold-lock", []string{path})
	holder.line()

	// The search goes on until its context ends. Which it does once that
	// has been waited for often enough.
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	_, _, err := rendezvous.Find(afterAttempts(ctx, 20, func() { cancel(cause) }), rendezvous.Place{Path: path})
	var unknown *rendezvous.UnknownError
	if !errors.As(err, &unknown) || !errors.Is(err, rendezvous.ErrOwnerUnknown) || !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	if unknown.Path != path {
		t.Errorf("the error is about %s", unknown.Path)
	}
	if knowsHolders {
		pid := holder.cmd.Process.Pid
		if unknown.Holder != pid || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", pid)) {
			t.Errorf("pid %d holds the lock, the error says %v", pid, err)
		}
	}
	wantFiles(t, path, "control.sock.lock")

	// It is free as soon as the holder is gone.
	holder.kill()
	mustClaim(t, rendezvous.Place{Path: path})
}

func TestStarterWaitsForALockThatBecomesFree(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	holder := start(t, "hold-lock", []string{path})
	holder.line()
	var once sync.Once
	ctx := afterAttempts(deadline(t), 20, func() { once.Do(holder.kill) })
	conn, claim, err := rendezvous.Find(ctx, rendezvous.Place{Path: path})
	if err != nil || conn != nil {
		t.Fatalf("got %v, %v", conn, err)
	}
	if err := claim.Unlink(); err != nil {
		t.Error(err)
	}
}

func TestFinishedContextClaimsNothing(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := rendezvous.Find(ctx, rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrOwnerUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	wantFiles(t, path)
}

func TestFirstStartersAtOnce(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	const starters = 8
	var (
		wg      sync.WaitGroup
		claims  = make(chan *rendezvous.Claim, starters) // as many as may come if it goes wrong
		conns   atomic.Int32
		release = make(chan struct{})
	)
	for range starters {
		wg.Go(func() {
			<-release
			conn, claim, err := rendezvous.Find(deadline(t), rendezvous.Place{Path: path})
			switch {
			case err != nil:
				t.Error(err)
			case conn != nil:
				conns.Add(1)
				conn.Close()
			default:
				claims <- claim
			}
		})
	}
	close(release)
	wg.Wait()
	close(claims)
	if len(claims) != 1 || conns.Load() != starters-1 {
		t.Errorf("%d claimed, %d connected", len(claims), conns.Load())
	}
	for c := range claims {
		if err := c.Unlink(); err != nil {
			t.Error(err)
		}
	}
}

// Rounds of real processes that all start at once on what the round before left
// behind: a stale socket, or only a lock file.
func TestExactlyOneProcessClaimsEachRound(t *testing.T) {
	leak.Check(t)
	const starters, rounds = 4, 300
	path := filepath.Join(tempDir(t), "control.sock")
	var processes [starters]*process
	for i := range processes {
		processes[i] = start(t, "rounds", plain(path))
	}
	for round := range rounds {
		for _, p := range processes {
			p.say("go")
		}
		var (
			claimed int
			owner   string
			reached []string
		)
		for _, p := range processes {
			what, pid, _ := strings.Cut(p.line(), " ")
			switch what {
			case "claimed":
				claimed++
				owner = pid
			case "connected":
				reached = append(reached, pid)
			default:
				t.Fatalf("round %d: %s %s", round, what, pid)
			}
		}
		if claimed != 1 {
			t.Fatalf("round %d: %d processes claimed", round, claimed)
		}
		for _, pid := range reached {
			if knowsHolders && pid != owner {
				t.Fatalf("round %d: a starter reached pid %s, pid %s owns", round, pid, owner)
			}
		}
		end := []string{"release", "unlink"}[round%2]
		for _, p := range processes {
			p.say(end)
		}
		for _, p := range processes {
			p.line()
		}
	}
}

func TestOpen(t *testing.T) {
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "service.sock")
			p := rendezvous.Place{Network: network, Path: path, Mode: 0o666}
			fd, id, err := rendezvous.Open(deadline(t), p)
			if errors.Is(err, syscall.EPROTONOSUPPORT) {
				t.Skipf("this system has no %s sockets", network)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			got, err := fd.Identify()
			if err != nil {
				t.Fatal(err)
			}
			if got.Network != network || got.Address != id.Bound || got.Listening != (network != "unixgram") {
				t.Errorf("opened %+v, bound name %q", got, id.Bound)
			}
			if dev, ino := inodeOf(t, path); id.Dev != dev || id.Ino != ino {
				t.Errorf("identity says inode %d:%d, the path is %d:%d", id.Dev, id.Ino, dev, ino)
			}
			wantMode(t, path, 0o666)
			wantFiles(t, path, "service.sock", "service.sock.lock")

			// A living one is never taken away,
			if _, _, err := rendezvous.Open(deadline(t), p); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("opened a second time: %v", err)
			}
			// by a socket of another type neither,
			other := p
			if other.Network = "unixgram"; network == "unixgram" {
				other.Network = "unix"
			}
			if _, _, err := rendezvous.Open(deadline(t), other); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("opened as %s: %v", other.Network, err)
			}
			// a stale one is no obstacle.
			fd.Close()
			wantStale(t, path)
			again, _, err := rendezvous.Open(deadline(t), p)
			if err != nil {
				t.Fatal(err)
			}
			again.Close()
		})
	}
}

// An opener that saw nobody may get the lock after another has opened the path
// and let the lock go.
func TestExactlyOneOpensAtOnce(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "service.sock")
	const openers, rounds = 4, 300
	for round := range rounds {
		var (
			wg      sync.WaitGroup
			opened  = make(chan *scm.FD, openers) // as many as may come if it goes wrong
			release = make(chan struct{})
		)
		for range openers {
			wg.Go(func() {
				<-release
				fd, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Path: path})
				switch {
				case err == nil:
					opened <- fd
				case !errors.Is(err, syscall.EADDRINUSE):
					t.Error(err)
				}
			})
		}
		close(release)
		wg.Wait()
		close(opened)
		if len(opened) != 1 {
			t.Fatalf("round %d: %d opened", round, len(opened))
		}
		for fd := range opened {
			fd.Close() // and a stale file stays for the next round
		}
	}
}

func TestOpenRefusesWhatItMayNotReplace(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "service.sock")
	writeFile(t, path)
	before := tree(t, filepath.Dir(path))
	_, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrFileType) {
		t.Errorf("got %v", err)
	}
	wantSame(t, before, tree(t, filepath.Dir(path)))
}

func TestOpenHoldsTheLockForTheOpeningOnly(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "service.sock")
	fd, _, err := rendezvous.Open(deadline(t), rendezvous.Place{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	lock := openFile(t, path+".lock")
	if err := flock(lock); err != nil {
		t.Errorf("the lock is held: %v", err)
	}
}

func TestOpenWaitsForTheLock(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "service.sock")
	holder := start(t, "hold-lock", []string{path})
	holder.line()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, _, err := rendezvous.Open(afterAttempts(ctx, 20, cancel), rendezvous.Place{Path: path})
	if !errors.Is(err, rendezvous.ErrOwnerUnknown) {
		t.Errorf("got %v", err)
	}
	wantFiles(t, path, "service.sock.lock")
}

func TestRemove(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "service.sock")
	p := rendezvous.Place{Path: path}
	fd, id, err := rendezvous.Open(deadline(t), p)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()

	foreign := id
	foreign.Ino++
	if err := rendezvous.Remove(deadline(t), p, foreign); !errors.Is(err, rendezvous.ErrControlLost) {
		t.Errorf("another inode: %v", err)
	}
	wantFiles(t, path, "service.sock", "service.sock.lock")
	for _, name := range []string{"present", "missing"} {
		if err := rendezvous.Remove(deadline(t), p, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantFiles(t, path, "service.sock.lock")
	}
}

// afterAttempts returns a ctx that calls done once it has been waited for more
// than n times, so after that many attempts that came to nothing. More calls
// follow.
func afterAttempts(ctx context.Context, n int32, done func()) context.Context {
	return &countingContext{Context: ctx, left: n, done: done}
}

type countingContext struct {
	context.Context
	left int32
	done func()
}

func (c *countingContext) Done() <-chan struct{} {
	if atomic.AddInt32(&c.left, -1) < 0 {
		c.done()
	}
	return c.Context.Done()
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), generous)
	t.Cleanup(cancel)
	return ctx
}

// TestRemoveTakesNothingButASocket: which file a socket's is was said by a predecessor,
// which may be another user's, and the one that removes it may be root.
func TestRemoveTakesNothingButASocket(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "passwd")
	writeFile(t, path)
	id, err := rendezvous.Identify(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := rendezvous.Remove(deadline(t), rendezvous.Place{Path: path}, id); !errors.Is(err, rendezvous.ErrFileType) {
		t.Errorf("got %v", err)
	}
	wantFiles(t, path, "passwd")
}

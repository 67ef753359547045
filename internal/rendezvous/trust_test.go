//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	"github.com/crossfade-go/crossfade/scm"
)

func init() {
	processes["serve"] = processServe
	processes["listen-on"] = processListenOn
	processes["plant"] = processPlant
}

// processServe listens at a path by no rules, and tells how much it was told.
func processServe() {
	l, err := net.Listen("unix", os.Args[1])
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(os.Args[1], 0o666); err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			heard, _ := io.ReadAll(c)
			fmt.Printf("heard %q\n", heard)
			c.Close()
		}
	}()
	fmt.Println("serving")
	io.Copy(io.Discard, os.Stdin)
}

// processListenOn calls listen(2) on descriptor 3, so that the kernel names it as
// whoever listens.
func processListenOn() {
	fd := scm.NewFD(3)
	if err := fd.Listen(16); err != nil {
		panic(err)
	}
	fmt.Println("listening")
	io.Copy(io.Discard, os.Stdin)
}

// scene is where an attack happens: a directory that every user may enter, in it the
// directory of the control path.
type scene struct {
	t        *testing.T
	top, dir string
	path     string
}

func newScene(t *testing.T) *scene {
	top := tempDir(t)
	s := &scene{t: t, top: top, dir: filepath.Join(top, "d"), path: filepath.Join(top, "d", "control.sock")}
	mkdir(t, s.dir)
	return s
}

// everybodys makes the directory one like /tmp.
func (s *scene) everybodys() { chmod(s.t, s.dir, 0o777|os.ModeSticky) }

// strangers makes what is at path another user's.
func (s *scene) strangers(path string) { giveTo(s.t, path, stranger) }

// socket leaves a stale socket.
func (s *scene) socket(path string) string {
	makeStale(s.t, path)
	return path
}

// TestUnsafePaths: each is a way for a stranger to get between a service and those
// who look for it. The victim is root, and another time somebody else.
func TestUnsafePaths(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name   string
		attack func(s *scene)
		says   []string // besides the path
		asker  bool     // who only asks goes on: the path is that stranger's own
	}{
		{"a directory that everybody can write to", func(s *scene) { chmod(s.t, s.dir, 0o777) }, []string{
			"/d has mode 0777, uid 0 and gid 0", "everybody could put another file into it", "chmod o-w",
		}, false},
		{"a directory that a group can write to", func(s *scene) {
			s.group(s.dir)
			chmod(s.t, s.dir, 0o775)
		}, []string{"/d has mode 0775, uid 0 and gid 65511", "the members of group 65511 could put", "Config.SocketGroup"}, true},
		{"an access list that names a stranger", func(s *scene) {
			allow(s.t, s.dir, stranger)
		}, []string{"/d has mode 0775, uid 0 and gid 0", "whom its access list names could put", "getfacl"}, false},
		{"a directory above that the group of the last one can write to", func(s *scene) {
			s.group(s.dir)
			s.group(s.top)
			chmod(s.t, s.top, 0o775)
		}, []string{"the members of group 65511 could put"}, false},
		{"a directory of another user's", func(s *scene) { s.strangers(s.dir) }, []string{
			"/d has mode 0755, uid 65533", "choose a directory of root's or of this user's",
		}, true},
		{"a directory above that everybody can write to", func(s *scene) { chmod(s.t, s.top, 0o777) }, []string{
			"has mode 0777", "everybody could put another file into it",
		}, false},
		{"a directory above of another user's", func(s *scene) { s.strangers(s.top) }, []string{"uid 65533, who is neither root nor uid"}, false},
		{"a socket that is there already", func(s *scene) {
			s.everybodys()
			s.strangers(s.socket(s.path))
		}, []string{"control.sock has mode", "uid 65533", "where everybody can make files"}, false},
		{"a lock that is there already", func(s *scene) {
			s.everybodys()
			writeFile(s.t, s.path+".lock")
			s.strangers(s.path + ".lock")
		}, []string{"control.sock.lock has mode 0600, uid 65533", "it was made by uid 65533"}, false},
		{"a temporary directory that is there already", func(s *scene) {
			s.everybodys()
			mkdir(s.t, s.path+"~")
			s.strangers(s.path + "~")
		}, []string{"control.sock~ has mode 0755, uid 65533"}, false},
		{"a symbolic link to another service", func(s *scene) {
			s.everybodys()
			mustClaim(s.t, rendezvous.Place{Path: filepath.Join(s.top, "other.sock")})
			symlink(s.t, filepath.Join(s.top, "other.sock"), s.path)
			s.strangers(s.path)
		}, []string{"control.sock has mode", "uid 65533"}, false},
		{"a symbolic link to nowhere", func(s *scene) {
			s.everybodys()
			symlink(s.t, filepath.Join(s.top, "none"), s.path)
			s.strangers(s.path)
		}, []string{"uid 65533"}, false},
		{"a directory that a stranger has made", func(s *scene) {
			chmod(s.t, s.top, 0o777|os.ModeSticky)
			s.strangers(s.dir)
		}, []string{"/d has mode 0755, uid 65533", "where everybody can make files"}, false},
		{"a directory behind a link that a stranger has made", func(s *scene) {
			chmod(s.t, s.top, 0o777|os.ModeSticky)
			if err := os.Rename(s.dir, s.dir+"2"); err != nil {
				s.t.Fatal(err)
			}
			symlink(s.t, "d2", s.dir)
			s.strangers(s.dir)
		}, []string{"/d has mode 0777, uid 65533"}, false},
		{"a link of root's into a directory that everybody can write to", func(s *scene) {
			mkdir(s.t, filepath.Join(s.top, "open"))
			chmod(s.t, filepath.Join(s.top, "open"), 0o777)
			remove(s.t, s.dir)
			symlink(s.t, "../"+filepath.Base(s.top)+"/./open", s.dir)
		}, []string{"/open has mode 0777"}, false},
		{"a second name of another service's socket", func(s *scene) {
			s.everybodys()
			mustClaim(s.t, rendezvous.Place{Path: filepath.Join(s.top, "other.sock")})
			if err := os.Link(filepath.Join(s.top, "other.sock"), s.path); err != nil {
				s.t.Fatal(err)
			}
		}, []string{"control.sock has 2 names"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			s := newScene(t)
			tt.attack(s)
			before := tree(t, s.top)
			for _, victim := range []struct {
				who     string
				options []option
			}{{"root", nil}, {"a user", []option{as(innocent)}}} {
				for _, does := range []string{"find", "reach"} {
					got := start(t, does, plain(s.path), victim.options...).line()
					if tt.asker && does == "reach" {
						if strings.Contains(got, "is not safe") {
							t.Errorf("%s: reach: %s", victim.who, got)
						}
						continue
					}
					for _, says := range append(tt.says, "error: ", "is unknown", s.path+" is not safe") {
						if !strings.Contains(got, says) {
							t.Errorf("%s: %s: %q does not say %q", victim.who, does, got, says)
						}
					}
				}
			}
			wantSame(t, before, tree(t, s.top))
			chmod(t, s.top, 0o755)
		})
	}
}

// innocent is a user besides the stranger.
const innocent = 65532

func (s *scene) group(path string) {
	if err := os.Chown(path, -1, members); err != nil {
		s.t.Fatal(err)
	}
}

func TestSafePaths(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name    string
		prepare func(s *scene)
		place   rendezvous.Place
		options []option
	}{
		{"a directory of root's", func(*scene) {}, rendezvous.Place{}, nil},
		{"a directory of the user's", func(s *scene) { giveTo(s.t, s.dir, innocent) }, rendezvous.Place{}, []option{as(innocent)}},
		{"one that is like /tmp", func(s *scene) { s.everybodys() }, rendezvous.Place{}, []option{as(innocent)}},
		{"a volume of the group", func(s *scene) {
			s.group(s.dir)
			chmod(s.t, s.dir, 0o770|os.ModeSetgid)
		}, rendezvous.Place{Mode: 0o660, Group: strconv.Itoa(members)}, []option{as(innocent, members)}},
		{"a volume of the group and of another member", func(s *scene) {
			s.strangers(s.dir)
			s.group(s.dir)
			chmod(s.t, s.dir, 0o770|os.ModeSetgid)
		}, rendezvous.Place{Mode: 0o660, Group: strconv.Itoa(members), TrustDirectory: true}, []option{as(innocent, members)}},
		{"a volume that everybody is trusted with", func(s *scene) { chmod(s.t, s.dir, 0o777) }, rendezvous.Place{TrustDirectory: true}, []option{as(innocent)}},
		{"a link of root's", func(s *scene) {
			if err := os.Rename(s.dir, s.dir+"2"); err != nil {
				s.t.Fatal(err)
			}
			symlink(s.t, "d2", s.dir)
		}, rendezvous.Place{}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			s := newScene(t)
			tt.prepare(s)
			args := []string{s.path, strconv.FormatUint(uint64(tt.place.Mode), 8), tt.place.Group, "022", strconv.FormatBool(tt.place.TrustDirectory)}
			owner := start(t, "claim", args, tt.options...)
			if got := owner.line(); got != "claimed" {
				t.Fatal(got)
			}
			for _, does := range []string{"find", "reach"} {
				if got := start(t, does, args, tt.options...).line(); got != "connected" {
					t.Errorf("%s: %s", does, got)
				}
			}
		})
	}
	t.Run("who trusts the directory does not trust the one above", func(t *testing.T) {
		leak.Check(t)
		s := newScene(t)
		chmod(t, s.top, 0o777)
		err := wantUnknown(t, rendezvous.Place{Path: s.path, TrustDirectory: true})
		if !errors.Is(err, rendezvous.ErrUnsafe) || !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
	})
}

// TestWhoListens: whom an asker believes. The socket's file may be anybody's who may
// write there; the kernel says who listens.
func TestWhoListens(t *testing.T) {
	needRoot(t)
	listenOn := func(t *testing.T, s *scene, options ...option) {
		claim := mustClaim(t, rendezvous.Place{Path: s.path, Mode: 0o660, Group: strconv.Itoa(members)})
		handed, err := claim.Listener().File("listener")
		if err != nil {
			t.Fatal(err)
		}
		defer handed.Close()
		p := start(t, "listen-on", nil, append(options, inherits(handed))...)
		if got := p.line(); got != "listening" {
			t.Fatal(got)
		}
	}
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, s *scene)
		want    string
	}{
		{"whose directory it is", func(t *testing.T, s *scene) {
			s.strangers(s.dir)
			start(t, "serve", []string{s.path}, as(stranger)).line()
		}, "connected"},
		{"whose file it is", func(t *testing.T, s *scene) {
			listenOn(t, s, as(stranger))
			if err := os.Chown(s.path, stranger, -1); err != nil {
				t.Fatal(err)
			}
		}, "connected"},
		{"a member of the file's group", func(t *testing.T, s *scene) { listenOn(t, s, as(stranger, members)) }, "connected"},
		{"a stranger", func(t *testing.T, s *scene) { listenOn(t, s, as(stranger)) }, "not said to be for the process that listens there (pid "},
		{"a stranger, if the group may not connect", func(t *testing.T, s *scene) {
			listenOn(t, s, as(stranger, members))
			chmod(t, s.path, 0o600)
		}, "uid 65533"},
		{"a stranger who has the directory of everybody for himself", func(t *testing.T, s *scene) {
			s.everybodys()
			start(t, "serve", []string{s.path}, as(stranger)).line()
		}, "where everybody can make files"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			s := newScene(t)
			tt.prepare(t, s)
			for who, options := range map[string][]option{"root": nil, "a member": {as(innocent, members)}} {
				if who != "root" && tt.want == "uid 65533" {
					continue // who may not even connect
				}
				if got := start(t, "reach", plain(s.path), options...).line(); !strings.Contains(got, tt.want) {
					t.Errorf("%s: %q does not say %q", who, got, tt.want)
				}
			}
		})
	}
}

// processPlant puts sockets and links of its own at a path, and takes them away, over
// and over, until its input ends.
func processPlant() {
	path, other := os.Args[1], os.Args[2]
	done := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	fmt.Println("planting")
	for {
		if l, err := net.Listen("unix", path); err == nil {
			_ = os.Chmod(path, 0o666)
			l.Close() // which removes it
		}
		_ = os.Symlink(other, path)
		_ = os.Remove(path)
		select {
		case <-done:
			return
		default:
		}
	}
}

// TestAPathThatIsSwappedBetweenCheckAndUse: a stranger who is quick never gets to be
// the one that was found.
func TestAPathThatIsSwappedBetweenCheckAndUse(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	s := newScene(t)
	s.everybodys()
	other := filepath.Join(s.top, "other.sock")
	mustClaim(t, rendezvous.Place{Path: other, Mode: 0o666})
	attacker := start(t, "plant", []string{s.path, other}, as(stranger))
	attacker.line()
	var refused, nobody int
	for range 500 {
		ctx, cancel := context.WithTimeout(t.Context(), generous)
		conn, err := rendezvous.Reach(ctx, rendezvous.Place{Path: s.path})
		cancel()
		switch {
		case conn != nil:
			conn.Close()
			t.Fatal("a stranger's socket, or link, was believed")
		case errors.Is(err, rendezvous.ErrUnsafe):
			refused++
		case errors.Is(err, rendezvous.ErrNoOwner):
			nobody++
		case !errors.Is(err, rendezvous.ErrOwnerUnknown): // by a link to nowhere, for example
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("the stranger was not there once")
	}
	t.Logf("refused %d times, nobody there %d times", refused, nobody)
}

// TestTrustIsOfferedWhereItHelps: TrustDirectory is for the socket's directory, and no
// help with one above it.
func TestTrustIsOfferedWhereItHelps(t *testing.T) {
	const offer = "CROSSFADE_TRUST_DIRECTORY=1"
	for name, helps := range map[string]bool{"": false, "d": true} {
		top := tempDir(t)
		mkdir(t, filepath.Join(top, "d"))
		chmod(t, filepath.Join(top, name), 0o777)
		err := wantUnknown(t, rendezvous.Place{Path: filepath.Join(top, "d", "control.sock")})
		if !errors.Is(err, rendezvous.ErrUnsafe) || strings.Contains(err.Error(), offer) != helps {
			t.Errorf("everybody may write to %q below the top: %v", name, err)
		}
	}
}

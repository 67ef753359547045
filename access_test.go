//go:build unix

package crossfade_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// Users and groups that own nothing here and have no names.
const (
	someone     = 65533
	operators   = 65511
	onlookers   = 65510
	overflowing = 65534 // the uid and the gid of whoever has none
)

// TestServiceOfNobody: the overflow user's own processes are not known to be its own. It
// is told so when it starts, not only when it is to be replaced.
func TestServiceOfNobody(t *testing.T) {
	needRoot(t)
	dir := socketDir(t)
	if err := os.Chown(dir, overflowing, overflowing); err != nil {
		t.Fatal(err)
	}
	out, err := asUser(t, reexec.Copy(t), overflowing, nil, "serve as nobody", filepath.Join(dir, "control")).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"runs as the overflow uid", "denied: true", "it is of uid 65534, as this process is", "as a user of its own"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
}

func TestDefaultAuthorize(t *testing.T) {
	own := uint32(os.Geteuid())
	for _, tt := range []struct {
		name        string
		peer        *crossfade.Peer
		group, read string
		may         string // of r, c and o
		says        string
	}{
		{"the same user", &crossfade.Peer{UID: own, GID: someone}, "", "", "rco", ""},
		{"root", &crossfade.Peer{UID: 0, GID: someone}, "", "", "rco", ""},
		{"somebody else", &crossfade.Peer{UID: someone, GID: someone}, "", "", "", "Config.SocketGroup can admit a group"},
		{"somebody else than a group", &crossfade.Peer{UID: someone, GID: someone}, "65511", "", "", "nor a member of group 65511"},
		{"a member by the first group", &crossfade.Peer{UID: someone, GID: operators}, "65511", "", "rco", ""},
		{"a member by another group", &crossfade.Peer{UID: someone, GID: someone, Groups: []uint32{1, operators}}, "65511", "", "rco", ""},
		{"an onlooker", &crossfade.Peer{UID: someone, GID: onlookers}, "65511", "65510", "r", "nor a member of group 65511"},
		{"an onlooker where there is no other group", &crossfade.Peer{UID: someone, GID: onlookers}, "", "65510", "r", "Config.SocketGroup can admit a group"},
		{"no onlooker", &crossfade.Peer{UID: someone, GID: someone}, "65511", "65510", "", "group 65511"},
		{"a member that is an onlooker too", &crossfade.Peer{UID: someone, GID: onlookers, Groups: []uint32{operators}}, "65511", "65510", "rco", ""},
		{"the overflow user", &crossfade.Peer{UID: overflowing, GID: someone}, "65511", "", "", "has no number in this user namespace"},
		{"the overflow user and group", &crossfade.Peer{UID: overflowing, GID: overflowing, Groups: []uint32{overflowing}}, "65534", "65534", "", "has no number"},
		{"somebody of the overflow group", &crossfade.Peer{UID: someone, GID: overflowing, Groups: []uint32{overflowing}}, "65534", "65534", "", "nor a member of group 65534"},
		{"a member whose user has no number here", &crossfade.Peer{UID: overflowing, GID: overflowing, Groups: []uint32{operators}}, "65511", "", "rco", ""},
		{"where the system does not tell", nil, "", "", "rco", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			authorize, err := crossfade.DefaultAuthorize(tt.group, tt.read)
			if err != nil {
				t.Fatal(err)
			}
			for letter, access := range map[string]crossfade.Access{
				"r": crossfade.AccessRead, "c": crossfade.AccessChange, "o": crossfade.AccessOwner,
			} {
				err := authorize(tt.peer, access)
				if may := strings.Contains(tt.may, letter); may != (err == nil) {
					t.Errorf("may %v: %t, %v", access, may, err)
				}
				if err != nil && access != crossfade.AccessRead && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%q does not say %q", err, tt.says)
				}
			}
		})
	}
}

func init() {
	processes["try everything"] = processTryEverything
	processes["pose as owner"] = processPoseAsOwner
	processes["serve as nobody"] = processServeAsNobody
}

// processServeAsNobody serves, tries to take over from itself, and prints its log and
// how that ended.
func processServeAsNobody() {
	cfg := crossfade.Config{
		Socket: os.Args[1], DialTimeout: generous, Logger: slog.New(slog.NewTextHandler(os.Stdout, nil)),
	}
	ctx := context.Background()
	upg, err := crossfade.New(ctx, &cfg)
	check(err)
	defer upg.Stop()
	check(upg.Ready(ctx))
	next, err := crossfade.New(ctx, &cfg)
	if err == nil {
		next.Stop()
	}
	fmt.Println("denied:", errors.Is(err, crossfade.ErrDenied), err)
}

// processTryEverything does what a client of a control socket can do, and prints
// what became of it.
func processTryEverything() {
	ctx := context.Background()
	results := make(map[string]*remoteError)
	c, err := crossfade.Dial(ctx, os.Args[1])
	results["dial"] = remote(err)
	if err == nil {
		_, err = c.Status(ctx)
		results["status"] = remote(err)
		seen := errors.New("seen")
		err = c.Watch(ctx, func(crossfade.Event) error { return seen })
		if errors.Is(err, seen) {
			err = nil
		}
		results["watch"] = remote(err)
		rehearsal, err := c.Check(ctx, &crossfade.Successor{Process: crossfade.Process{Instance: "rehearsed"}})
		if err == nil && rehearsal.Refusal != nil {
			err = rehearsal.Refusal
		}
		results["check"] = remote(err)
		_, err = c.Cancel(ctx, nil)
		results["cancel"] = remote(err)
		_, err = c.Settle(ctx)
		results["settle"] = remote(err)
	}
	upg, err := crossfade.New(ctx, &crossfade.Config{Socket: os.Args[1]})
	results["new"] = remote(err)
	if err == nil {
		upg.Stop()
	}
	check(json.NewEncoder(os.Stdout).Encode(results))
}

// processPoseAsOwner listens where an owner would, and says how much it was told.
func processPoseAsOwner() {
	l, err := net.Listen("unix", os.Args[1])
	check(err)
	check(os.Chmod(os.Args[1], 0o666))
	fmt.Println("listening")
	c, err := l.Accept()
	check(err)
	heard, err := io.ReadAll(c)
	check(err)
	fmt.Printf("heard %d bytes\n", len(heard))
}

// asUser is a process of this test binary that another user runs.
func asUser(t *testing.T, exe string, uid uint32, groups []uint32, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := reexec.Command(name, args...)
	cmd.Path, cmd.Dir = exe, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
	return cmd
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
}

// TestWhoMayDoWhat: what each sort of client gets from an owner that is root's.
func TestWhoMayDoWhat(t *testing.T) {
	needRoot(t)
	exe := reexec.Copy(t)
	reads := []string{"dial", "status", "watch"}
	all := append(reads, "check", "cancel", "settle", "new")
	for _, tt := range []struct {
		name        string
		uid         uint32
		groups      []uint32
		mode        os.FileMode
		group, read string
		may         []string
		denied      error // of the others
	}{
		{name: "root", uid: 0, mode: 0o600, may: all},
		{name: "another user", uid: someone, mode: 0o600, denied: os.ErrPermission},
		{name: "another user who may connect", uid: someone, mode: 0o666, denied: crossfade.ErrDenied, may: []string{"dial"}},
		{name: "a member", uid: someone, groups: []uint32{operators}, mode: 0o660, group: "65511", may: all},
		{name: "an onlooker", uid: someone, groups: []uint32{onlookers}, mode: 0o660, read: "65510", may: reads, denied: crossfade.ErrDenied},
		{name: "an onlooker beside members", uid: someone, groups: []uint32{onlookers}, mode: 0o666, group: "65511", read: "65510", may: reads, denied: crossfade.ErrDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, spec, owner, _ := startOwner(t, func(s *serviceSpec) {
				s.SocketMode, s.SocketGroup, s.ReadGroup = tt.mode, tt.group, tt.read
			})
			if err := os.Chmod(d.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			out, err := asUser(t, exe, tt.uid, tt.groups, "try everything", spec.Socket).Output()
			if err != nil {
				t.Fatal(err)
			}
			var results map[string]*remoteError
			if err := json.Unmarshal(out, &results); err != nil {
				t.Fatal(err)
			}
			for _, what := range all {
				err, tried := results[what]
				switch may := strings.Contains(strings.Join(tt.may, " "), what); {
				case !tried && !strings.Contains(strings.Join(tt.may, " "), "dial"): // there was nobody to ask
				case !tried:
					t.Errorf("%s was not tried", what)
				case may && err != nil:
					t.Errorf("%s: %v", what, err)
				case !may && (err == nil || !err.Is(tt.denied)):
					t.Errorf("%s: %v", what, err)
				case !may && what != "check" && !strings.Contains(err.Text, spec.Socket+" has mode "+fmt.Sprintf("%04o, uid 0", tt.mode)):
					t.Errorf("%s: %v does not say what the client can see itself", what, err)
				}
			}
			if s := owner.status(); s.LastFailure != nil && tt.denied != nil {
				t.Errorf("an attempt has begun: %+v", s.LastFailure)
			}
		})
	}
}

// TestAnOnlookerCannotHoldTheLock: who may connect and no more cannot keep the next
// process from starting.
func TestAnOnlookerCannotHoldTheLock(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name         string
		spec         func(*serviceSpec)
		socket, lock string
	}{
		{"readers", func(s *serviceSpec) { s.SocketMode, s.ReadGroup = 0o660, strconv.Itoa(onlookers) }, "660 65510", "600 0"},
		{"readers besides a group", func(s *serviceSpec) {
			s.SocketMode, s.SocketGroup, s.ReadGroup = 0o666, strconv.Itoa(operators), strconv.Itoa(onlookers)
		}, "666 65511", "660 65511"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, spec, _, _ := startOwner(t, tt.spec)
			for path, want := range map[string]string{spec.Socket: tt.socket, spec.Socket + ".lock": tt.lock} {
				var st syscall.Stat_t
				if err := syscall.Stat(path, &st); err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprintf("%o %d", st.Mode&0o777, st.Gid); got != want {
					t.Errorf("%s has mode and group %s, want %s", path, got, want)
				}
			}
		})
	}
}

// TestNothingIsTakenFromAStranger: somebody listens at the control path who is not
// the owner that a successor would take over from.
func TestNothingIsTakenFromAStranger(t *testing.T) {
	needRoot(t)
	exe := reexec.Copy(t)
	for _, tt := range []struct {
		name    string
		sticky  bool
		change  func(*crossfade.Config)
		want    error
		connect bool // it comes to that
	}{
		{"in a directory of everybody's", true, nil, crossfade.ErrUnsafePath, false},
		{"in the stranger's own directory", false, nil, crossfade.ErrUnsafePath, false},
		{"in a directory that is trusted", false, func(c *crossfade.Config) { c.TrustDirectory = true }, crossfade.ErrDenied, true},
		{"in a directory that is trusted, with a group", false, func(c *crossfade.Config) {
			c.TrustDirectory, c.SocketGroup = true, strconv.Itoa(operators)
		}, crossfade.ErrDenied, true},
		{"by the program's own rule", false, func(c *crossfade.Config) {
			c.TrustDirectory = true
			c.Authorize = func(peer *crossfade.Peer, access crossfade.Access) error {
				if access != crossfade.AccessOwner || peer.UID != someone {
					return fmt.Errorf("asked for %v of %v", access, peer)
				}
				return errors.New("not from him")
			}
		}, crossfade.ErrDenied, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := socketDir(t)
			dir := filepath.Join(top, "d")
			err := errors.Join(os.Chmod(top, 0o755), os.Mkdir(dir, 0o755))
			if tt.sticky {
				err = errors.Join(err, os.Chmod(dir, 0o777|os.ModeSticky))
			} else {
				err = errors.Join(err, os.Chown(dir, someone, someone))
			}
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "control")
			poser := asUser(t, exe, someone, nil, "pose as owner", path)
			says, err := poser.StdoutPipe()
			if err == nil {
				err = poser.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				poser.Process.Kill()
				poser.Wait()
			}()
			if _, err := io.ReadFull(says, make([]byte, len("listening\n"))); err != nil {
				t.Fatal(err)
			}
			cfg := &crossfade.Config{Socket: path, DialTimeout: 10 * time.Second}
			if tt.change != nil {
				tt.change(cfg)
			}
			upg, err := crossfade.New(inTime(t), cfg)
			if err == nil {
				upg.Stop()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "uid 65533") || !strings.Contains(err.Error(), "has mode") {
				t.Errorf("New: %v", err)
			}
			if !tt.connect {
				return
			}
			heard, err := io.ReadAll(says)
			if err != nil || string(heard) != "heard 0 bytes\n" {
				t.Errorf("the stranger has %s, %v", heard, err)
			}
		})
	}
}

// TestTheVariableThatTrustsADirectory is for volumes whose rights nobody can change.
func TestTheVariableThatTrustsADirectory(t *testing.T) {
	d := newDesk(t)
	if err := os.Chmod(d.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := d.path("control")
	if _, err := crossfade.New(inTime(t), &crossfade.Config{Socket: path}); !errors.Is(err, crossfade.ErrUnsafePath) || !strings.Contains(err.Error(), "CROSSFADE_TRUST_DIRECTORY=1") {
		t.Fatalf("New: %v", err)
	}
	if _, err := crossfade.Dial(inTime(t), path); !errors.Is(err, crossfade.ErrUnsafePath) {
		t.Fatalf("Dial: %v", err)
	}
	t.Setenv("CROSSFADE_TRUST_DIRECTORY", "1")
	upg, err := crossfade.New(inTime(t), &crossfade.Config{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer upg.Stop()
	if value, there := os.LookupEnv("CROSSFADE_TRUST_DIRECTORY"); there {
		t.Errorf("the program's children get %q", value)
	}
	t.Setenv("CROSSFADE_TRUST_DIRECTORY", "true")
	c, err := crossfade.Dial(inTime(t), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(inTime(t)); err != nil {
		t.Error(err)
	}
	t.Setenv("CROSSFADE_TRUST_DIRECTORY", "perhaps")
	for name, try := range map[string]func() error{
		"New":  func() error { _, err := crossfade.New(inTime(t), nil); return err },
		"Dial": func() error { _, err := crossfade.Dial(inTime(t), path); return err },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), `"perhaps" is neither 0 nor 1`) {
			t.Errorf("%s: %v", name, err)
		}
		t.Setenv("CROSSFADE_TRUST_DIRECTORY", "perhaps")
	}
}

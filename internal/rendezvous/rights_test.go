//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous_test

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// members is a group without a name, for a stranger to be in.
const members = 65511

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
}

// giveTo makes a file another user's.
func giveTo(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Lchown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

func TestModeAndGroupDoNotDependOnTheUmask(t *testing.T) {
	needRoot(t)
	for _, umask := range []string{"000", "022", "077", "777"} {
		for mode, want := range map[string]os.FileMode{"0": 0o600, "600": 0o600, "660": 0o660, "666": 0o666} {
			t.Run(fmt.Sprintf("mode %s under %s", mode, umask), func(t *testing.T) {
				leak.Check(t)
				path := filepath.Join(tempDir(t), "control.sock")
				owner := start(t, "claim", []string{path, mode, strconv.Itoa(members), umask})
				if got := owner.line(); got != "claimed" {
					t.Fatal(got)
				}
				for _, file := range []string{path, path + ".lock"} {
					wantMode(t, file, want)
					wantGroup(t, file, members)
				}
			})
		}
	}
}

func TestUmaskThatTakesOurOwnRightsIsNoObstacle(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	dir := filepath.Join(tempDir(t), "d")
	mkdir(t, dir)
	giveTo(t, dir, stranger)
	path := filepath.Join(dir, "control.sock")
	// Root would not notice.
	owner := start(t, "claim", []string{path, "600", "", "777"}, as(stranger))
	if got := owner.line(); got != "claimed" {
		t.Error(got)
	}
	wantMode(t, path, 0o600)
	wantMode(t, path+".lock", 0o600)
}

func TestGroupByName(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	group, err := user.LookupGroupId("1")
	if err != nil {
		t.Skip("this system has no group 1: ", err)
	}
	path := filepath.Join(tempDir(t), "control.sock")
	mustClaim(t, rendezvous.Place{Path: path, Mode: 0o660, Group: group.Name})
	wantGroup(t, path, 1)
	wantGroup(t, path+".lock", 1)
}

// A volume that several users share is setgid, so that what one makes the others may
// use. A member of the group need not be told of it.
func TestSetgidDirectoryGivesItsGroup(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name, umask string
		groups      []uint32
	}{
		{"a member", "022", []uint32{members}},
		{"a member whose umask takes everything", "777", []uint32{members}},
		{"not a member", "022", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := filepath.Join(tempDir(t), "d")
			mkdir(t, dir)
			if err := os.Chown(dir, stranger, members); err != nil {
				t.Fatal(err)
			}
			chmod(t, dir, 0o755|os.ModeSetgid)
			path := filepath.Join(dir, "control.sock")
			owner := start(t, "claim", []string{path, "660", "", tt.umask}, as(stranger, tt.groups...))
			if got := owner.line(); got != "claimed" {
				t.Fatal(got)
			}
			for _, file := range []string{path, path + ".lock"} {
				wantMode(t, file, 0o660)
				wantGroup(t, file, members)
			}
		})
	}
}

func TestGroupThatDoesNotExist(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	_, _, err := rendezvous.Find(deadline(t), rendezvous.Place{Path: path, Group: "no-such-group"})
	if !errors.As(err, new(user.UnknownGroupError)) || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("got %v", err)
	}
	wantFiles(t, path)
}

func TestDatagramSocketHasItsRightsWhateverTheUmask(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	path := filepath.Join(tempDir(t), "log.sock")
	fd, _, err := rendezvous.Open(deadline(t), rendezvous.Place{
		Network: "unixgram", Path: path, Mode: 0o620, Group: strconv.Itoa(members),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	wantMode(t, path, 0o620)
	wantGroup(t, path, members)
	wantFiles(t, path, "log.sock", "log.sock.lock")
}

func TestLockFileOfAnEarlierRunGetsTheRightsOfThisOne(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	writeFile(t, path+".lock")
	mustClaim(t, rendezvous.Place{Path: path, Mode: 0o660, Group: strconv.Itoa(members)})
	wantMode(t, path+".lock", 0o660)
	wantGroup(t, path+".lock", members)
}

// While a socket comes and goes, a stranger knocks all the time.
func TestRightsAreInForceBeforeAnyoneCanConnect(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name, mode, umask string
		groups            []uint32
		never             string
	}{
		{"a stranger never connects, the umask lets all", "600", "000", nil, " connected"},
		{"a member is never denied, the umask lets nobody", "660", "077", []uint32{members}, " denied"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(tempDir(t), "control.sock")
			owner := start(t, "rounds", []string{path, tt.mode, strconv.Itoa(members), tt.umask})
			knocker := start(t, "knock", []string{path}, as(stranger, tt.groups...))
			knocker.line()
			for round := range 200 {
				owner.say("go")
				if got := owner.line(); !strings.HasPrefix(got, "claimed") {
					t.Fatal(got)
				}
				owner.say([]string{"release", "unlink"}[round%2])
				owner.line()
			}
			knocker.stdin.Close()
			got := strings.Split(knocker.line(), ", ")
			if !slices.Contains(got, "0"+tt.never) {
				t.Errorf("the stranger reports %q", got)
			}
		})
	}
}

func TestMemberOfTheGroupReachesTheOwner(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	path := filepath.Join(tempDir(t), "control.sock")
	mustClaim(t, rendezvous.Place{Path: path, Mode: 0o660, Group: strconv.Itoa(members)})
	if got := start(t, "find", plain(path), as(stranger, members)).line(); got != "connected" {
		t.Error(got)
	}
}

func TestWithoutPermissionNothingIsBound(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name    string
		prepare func(t *testing.T, path string)
		says    []string // besides the path and the stranger's uid
	}{
		{
			"a living owner's socket that is not for us",
			func(t *testing.T, path string) {
				mustClaim(t, rendezvous.Place{Path: path})
			},
			[]string{"control.sock has mode 0600, uid 0 and gid 0"},
		},
		{
			"a stale socket that is not for us",
			func(t *testing.T, path string) {
				makeStale(t, path)
				chmod(t, path, 0o600)
				giveTo(t, filepath.Dir(path), stranger)
			},
			[]string{"control.sock has mode 0600, uid 0 and gid 0"},
		},
		{
			"a directory that we may not enter",
			func(t *testing.T, path string) {
				mustClaim(t, rendezvous.Place{Path: path, Mode: 0o666})
				chmod(t, filepath.Dir(path), 0o700)
			},
			[]string{"/d has mode 0700, uid 0 and gid 0"},
		},
		{
			"an empty directory that we may not write to",
			func(*testing.T, string) {},
			[]string{"/d has mode 0755, uid 0 and gid 0"},
		},
		{
			"a lock that we may not open",
			func(t *testing.T, path string) {
				writeFile(t, path+".lock")
				giveTo(t, filepath.Dir(path), stranger)
			},
			[]string{"control.sock.lock has mode 0600, uid 0 and gid 0"},
		},
		{
			"a lock that we may open in a directory that we may not write to",
			func(t *testing.T, path string) {
				writeFile(t, path+".lock")
				chmod(t, path+".lock", 0o666)
			},
			[]string{"cannot claim", "/d has mode 0755, uid 0 and gid 0"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			dir := filepath.Join(tempDir(t), "d")
			mkdir(t, dir)
			path := filepath.Join(dir, "control.sock")
			tt.prepare(t, path)
			before := tree(t, dir)
			got := start(t, "find", plain(path), as(stranger)).line()
			for _, says := range append(tt.says, "error: ", path, "permission denied", fmt.Sprintf("this process runs as uid %d", stranger)) {
				if !strings.Contains(got, says) {
					t.Errorf("%q does not say %q", got, says)
				}
			}
			wantSame(t, before, tree(t, dir))
		})
	}
}

func TestGroupThatTheProcessMayNotGive(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	dir := filepath.Join(tempDir(t), "d")
	mkdir(t, dir)
	giveTo(t, dir, stranger)
	path := filepath.Join(dir, "control.sock")
	got := start(t, "find", []string{path, "660", strconv.Itoa(members), "022"}, as(stranger)).line()
	if !strings.Contains(got, fmt.Sprintf("gid %d", members)) || !strings.Contains(got, "only a member of the group") {
		t.Error(got)
	}
	wantFiles(t, path, "control.sock.lock")
}

// In a sticky directory with fs.protected_regular, O_CREAT on another user's
// file is refused.
func TestLockFileOfAnotherUserInAStickyDirectory(t *testing.T) {
	needRoot(t)
	leak.Check(t)
	dir := filepath.Join(tempDir(t), "d")
	mkdir(t, dir)
	chmod(t, dir, 0o777|os.ModeSticky)
	path := filepath.Join(dir, "control.sock")
	writeFile(t, path+".lock")
	chmod(t, path+".lock", 0o666)
	if got := start(t, "find", plain(path), as(stranger)).line(); got != "claimed" {
		t.Error(got)
	}
	wantMode(t, path+".lock", 0o666)
}

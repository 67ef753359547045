//go:build unix

package pidfile_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/internal/pidfile"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// stranger is a user who owns nothing here.
const stranger = 65533

func TestModeDoesNotDependOnTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		path := filepath.Join(t.TempDir(), "app.pid")
		old := syscall.Umask(umask)
		err := pidfile.Write(path)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Mode(); got != 0o644 {
			t.Errorf("under umask %03o the mode is %v", umask, got)
		}
	}
}

func TestDeviceIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, fn := range map[string]func(string) error{"check": pidfile.Check, "write": pidfile.Write, "remove": pidfile.Remove} {
		if err := fn(path); err == nil {
			t.Errorf("%s: succeeded", name)
		}
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("the fifo is %v, %v", st, err)
	}
}

// For each directory: what a stranger's Check says, Write must say too.
func TestAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	tests := []struct {
		name     string
		mode     fs.FileMode
		existing bool
		want     string
	}{
		{"a directory for all", 0o777, false, ""},
		{"a directory for all, the file another's", 0o777, true, ""},
		{"a directory of another's", 0o755, false, "permission denied"},
		{"a directory of another's, the file there", 0o755, true, "permission denied"},
		{"a directory that is closed", 0o700, false, "permission denied"},
		{"a sticky directory", 0o777 | fs.ModeSticky, false, ""},
		{"a sticky directory, the file another's", 0o777 | fs.ModeSticky, true, "operation not permitted"},
	}
	binary := reexec.Copy(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, filepath.Dir(dir))
			path := filepath.Join(dir, "app.pid")
			if tt.existing {
				writeFile(t, path, "1\n")
			}
			if err := os.Chmod(dir, tt.mode); err != nil {
				t.Fatal(err)
			}
			cmd := reexec.Command("check and write", path)
			cmd.Path, cmd.Dir = binary, "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			check, write, _ := strings.Cut(string(out), "\n")
			for _, line := range []string{check, strings.TrimSpace(write)} {
				ok := strings.HasSuffix(line, "<nil>")
				if ok != (tt.want == "") || !strings.Contains(line, tt.want) {
					t.Errorf("%q, want %q", line, tt.want)
				}
			}
			if tt.want != "" && tt.existing {
				wantContent(t, path, "1\n")
			}
			if tt.existing || tt.want == "" {
				wantAlone(t, path)
			} else {
				wantNames(t, dir)
			}
		})
	}
}

// open lets every user in, which t.TempDir's parents do not.
func open(t *testing.T, path string) {
	t.Helper()
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

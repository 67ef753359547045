package pidfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/pidfile"
)

func own() string { return strconv.Itoa(os.Getpid()) + "\n" }

func TestWrite(t *testing.T) {
	for name, before := range map[string]string{
		"a new file":               "",
		"over another's pid":       "1\n",
		"over what is much longer": strings.Repeat("1", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.pid")
			if before != "" {
				writeFile(t, path, before)
			}
			if err := pidfile.Check(path); err != nil {
				t.Errorf("check: %v", err)
			}
			wantContent(t, path, before)
			if err := pidfile.Write(path); err != nil {
				t.Fatal(err)
			}
			wantContent(t, path, own())
			wantAlone(t, path)
		})
	}
}

func TestRemove(t *testing.T) {
	tests := []struct {
		name, content string
		stays         bool
	}{
		{"our pid", own(), false},
		{"our pid without an end of line", strings.TrimSpace(own()), false},
		{"another's pid", "1\n", true},
		{"a pid that begins like ours", strings.TrimSpace(own()) + "0\n", true},
		{"no pid", "not a number\n", true},
		{"our pid and more", own() + own(), true},
		{"our pid behind more than a pid file holds", strings.Repeat(" ", 1000) + own(), true},
		{"nothing", "\n", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "app.pid")
			writeFile(t, path, tt.content)
			if err := pidfile.Remove(path); err != nil {
				t.Fatal(err)
			}
			if !tt.stays {
				tt.content = ""
			}
			wantContent(t, path, tt.content)
		})
	}
}

func TestRemoveOfAMissingFile(t *testing.T) {
	for _, path := range []string{"app.pid", "missing/app.pid"} {
		if err := pidfile.Remove(filepath.Join(t.TempDir(), path)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Check and Write refuse the same, and leave nothing behind.
func TestPathsThatCannotBeWritten(t *testing.T) {
	tests := []struct {
		name, path string
		want       error
	}{
		{"a directory", "dir", pidfile.ErrFileType},
		{"a symbolic link", "link", pidfile.ErrFileType},
		{"in a directory that is missing", "missing/app.pid", fs.ErrNotExist},
		{"in a directory that is a file", "file/app.pid", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "file"), "1\n")
			if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
				t.Skip("no symbolic links here: ", err)
			}
			path := filepath.Join(dir, filepath.FromSlash(tt.path))
			for name, err := range map[string]error{"check": pidfile.Check(path), "write": pidfile.Write(path)} {
				switch {
				case err == nil:
					t.Errorf("%s: succeeded", name)
				case tt.want != nil && !errors.Is(err, tt.want):
					t.Errorf("%s: got %v, want %v", name, err, tt.want)
				case !strings.Contains(err.Error(), path):
					t.Errorf("%s: %q does not name the path", name, err)
				}
			}
			wantNames(t, dir, "dir", "file", "link")
			wantContent(t, filepath.Join(dir, "file"), "1\n")
		})
	}
}

func TestEmptyPath(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, fn := range map[string]func(string) error{"check": pidfile.Check, "write": pidfile.Write, "remove": pidfile.Remove} {
		if err := fn(""); err == nil {
			t.Errorf("%s: succeeded", name)
		}
	}
	wantNames(t, ".")
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantContent takes the empty string for a file that is missing.
func wantContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if want == "" && errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v, want %q", path, got, err, want)
	}
}

func wantAlone(t *testing.T, path string) {
	t.Helper()
	wantNames(t, filepath.Dir(path), filepath.Base(path))
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

//go:build unix

package pidfile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/crossfade-go/crossfade/internal/pidfile"
)

// FuzzRemove: a file that says anything else than this process's pid stays as it is.
func FuzzRemove(f *testing.F) {
	own := strconv.Itoa(os.Getpid())
	for _, content := range []string{own + "\n", own + "1", "0" + own, "-" + own, "", own + "\x00"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "pid")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := pidfile.Remove(path); err != nil {
			t.Fatal(err)
		}
		mine := string(bytes.TrimSpace(content[:min(len(content), 64)])) == strconv.Itoa(os.Getpid())
		left, err := os.ReadFile(path)
		if gone := os.IsNotExist(err); gone != mine || !gone && !bytes.Equal(left, content) {
			t.Errorf("a file with %q: %q is left, %v", content, left, err)
		}
	})
}

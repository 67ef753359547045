//go:build unix

package statefile_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/statefile"
	"github.com/crossfade-go/crossfade/scm"
)

// sorts are the ways to make a state.
var sorts = map[string]func() (*statefile.Writer, error){
	"as the system likes it": func() (*statefile.Writer, error) { return statefile.Create("test") },
	"a temporary file":       statefile.CreateTemporary,
}

// eachSort runs a test for each of them, in an empty temporary directory, which
// must be empty at the end too.
func eachSort(t *testing.T, test func(t *testing.T, w *statefile.Writer)) {
	for name, create := range sorts {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			dir := t.TempDir()
			t.Setenv("TMPDIR", dir)
			w, err := create()
			if err != nil {
				t.Fatal(err)
			}
			test(t, w)
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v, %v are left in the temporary directory", left, err)
			}
		})
	}
}

// written makes a state with this content.
func written(t testing.TB, w *statefile.Writer, content string) *scm.FD {
	t.Helper()
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	fd, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	eachSort(t, func(t *testing.T, w *statefile.Writer) {
		fd := written(t, w, "content")
		if _, err := statefile.Check(fd); err != nil {
			t.Fatal(err)
		}
		for range 2 { // each from the beginning
			file, err := statefile.Open(fd, "a state")
			if err != nil {
				t.Fatal(err)
			}
			if file.Name() != "a state" {
				t.Errorf("its name is %q", file.Name())
			}
			got, err := io.ReadAll(file)
			if err != nil || string(got) != "content" {
				t.Errorf("read %q, %v", got, err)
			}
			if _, err := file.Write([]byte("x")); err == nil {
				t.Error("a reader can write")
			}
			file.Close()
		}
	})
}

func TestAnEmptyStateIsOne(t *testing.T) {
	eachSort(t, func(t *testing.T, w *statefile.Writer) {
		fd := written(t, w, "")
		if _, err := statefile.Check(fd); err != nil {
			t.Error(err)
		}
	})
}

func TestNobodyWritesAfterTheEnd(t *testing.T) {
	for name, end := range map[string]func(w *statefile.Writer){
		"Abandon": (*statefile.Writer).Abandon,
		"Seal": func(w *statefile.Writer) {
			if fd, err := w.Seal(); err == nil {
				fd.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachSort(t, func(t *testing.T, w *statefile.Writer) {
				if _, err := w.Write([]byte("in time")); err != nil {
					t.Fatal(err)
				}
				end(w)
				if _, err := w.Write([]byte("too late")); !errors.Is(err, statefile.ErrOver) {
					t.Errorf("Write: %v", err)
				}
				if fd, err := w.Seal(); err == nil {
					fd.Close()
					t.Error("it can be sealed")
				}
			})
		})
	}
}

// What goes beyond the limit is not written, and the state is lost even if its
// writer does not look at the error.
func TestTheSizeIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 1 GiB")
	}
	leak.Check(t)
	w, err := statefile.Create("test")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abandon()
	chunk := make([]byte, 64<<20)
	for range statefile.MaxSize / len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			t.Skipf("there is no room for the test: %v", err)
		}
	}
	if _, err := w.Write(nil); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	for range 2 {
		if n, err := w.Write([]byte("x")); n != 0 || !errors.Is(err, statefile.ErrTooLarge) {
			t.Errorf("beyond the limit: %d, %v", n, err)
		}
	}
	if fd, err := w.Seal(); !errors.Is(err, statefile.ErrTooLarge) {
		fd.Close()
		t.Errorf("Seal: %v", err)
	}
}

func TestCheckRefuses(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	directory, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	large, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if err := large.Truncate(statefile.MaxSize + 1); err != nil { // with a hole: it needs no room
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		file *os.File
		want string
	}{
		{"a pipe", r, "regular file"},
		{"a directory", directory, "regular file"},
		{"a file that is too large", large, statefile.ErrTooLarge.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd, err := scm.DupFD(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			if _, err := statefile.Check(fd); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A plain file is what a predecessor has that may make no memfd.
func TestAPlainFileIsNotSealed(t *testing.T) {
	leak.Check(t)
	w, err := statefile.CreateTemporary()
	if err != nil {
		t.Fatal(err)
	}
	if sealed, err := statefile.Check(written(t, w, "content")); sealed || err != nil {
		t.Errorf("sealed is %t, %v", sealed, err)
	}
}

func BenchmarkWrite(b *testing.B) {
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		w, err := statefile.Create("bench")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(chunk); err != nil {
			b.Fatal(err)
		}
		fd, err := w.Seal()
		if err != nil {
			b.Fatal(err)
		}
		fd.Close()
	}
}

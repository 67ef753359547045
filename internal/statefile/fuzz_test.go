//go:build unix

package statefile_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/crossfade-go/crossfade/internal/statefile"
)

// FuzzState: what is written into a state is what is read of it, in whatever pieces, and
// a state of any name can be made, or cannot, which is an error.
func FuzzState(f *testing.F) {
	f.Add("sessions", []byte("content"), 3)
	f.Add("", []byte{}, 0)
	f.Add("a/b\x00c", []byte{0}, 1)
	f.Fuzz(func(t *testing.T, name string, content []byte, cut int) {
		w, err := statefile.Create(name)
		if err != nil {
			return
		}
		cut = min(max(cut, 0), len(content))
		for _, part := range [][]byte{content[:cut], content[cut:]} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := w.Seal()
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		if _, err := statefile.Check(fd); err != nil {
			t.Fatal(err)
		}
		file, err := statefile.Open(fd, name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if got, err := io.ReadAll(file); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%q came back as %q, %v", content, got, err)
		}
	})
}

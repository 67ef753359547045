package trial

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

const (
	toolPackage   = "github.com/crossfade-go/crossfade/cmd/crossfade"
	serverPackage = "github.com/crossfade-go/crossfade/examples/bluegreen/server"
)

// built are the programs that the tests of one test binary share: linking one takes
// longer than most of them.
var built struct {
	mu  sync.Mutex
	dir string // empty as long as nothing was built
}

// Clean removes what was built. It is for the end of TestMain.
func Clean() {
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // below TMPDIR, which is cleaned anyway
		built.dir = ""
	}
}

// build returns the path of a program in some version.
func build(t testing.TB, pkg, version string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "trial-")
		must(t, err)
		built.dir = dir
	}
	path := filepath.Join(built.dir, filepath.Base(pkg)+"-"+version)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	out, err := exec.Command("go", "build", "-ldflags=-s -w -X main.version="+version, "-o", path, pkg).CombinedOutput()
	if err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// install makes the file of a program appear under another name. A process that runs
// it is known by that name.
func install(program, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.Link(program, name); err != nil {
		return fmt.Errorf("TMPDIR is to be one file system: %w", err)
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

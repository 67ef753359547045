package examples_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// shebang is the first line of a script for a shell.
var shebang = regexp.MustCompile(`^#!/(usr/bin/env )?(bin/)?(ba)?sh\n`)

// TestShellScripts looks for mistakes in every shell script of the repository.
func TestShellScripts(t *testing.T) {
	shellcheck, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skipf("it needs shellcheck: %v", err)
	}
	scripts := 0
	err = filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() == ".git":
			return filepath.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil || !shebang.Match(text[:min(len(text), bytes.IndexByte(text, '\n')+1)]) {
			return err
		}
		scripts++
		t.Run(path, func(t *testing.T) {
			if out, err := exec.Command(shellcheck, path).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if scripts < 5 {
		t.Errorf("%d scripts were found", scripts)
	}
}

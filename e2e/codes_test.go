//go:build linux

package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestEveryExitStatusOccurs looks for each exit status of the deploy tool in the
// scenarios.
func TestEveryExitStatusOccurs(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	exits := regexp.MustCompile(`(?m)^(?:exits (\d+) (?:\S+ )*?)?crossfade `)
	seen := make(map[string]bool)
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range exits.FindAllStringSubmatch(string(text), -1) {
			if m[1] == "" {
				m[1] = "0"
			}
			seen[m[1]] = true
		}
	}
	for _, status := range []string{"0", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"} {
		if !seen[status] {
			t.Errorf("no scenario ends a command with %s", status)
		}
		delete(seen, status)
	}
	for status := range seen {
		t.Errorf("a scenario has a command end with %s, which is no exit status of the tool", status)
	}
}

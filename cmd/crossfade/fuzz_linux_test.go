package main_test

import (
	"fmt"
	"strings"
	"testing"

	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
)

// FuzzParent: whatever name a process has given itself, its parent is found.
func FuzzParent(f *testing.F) {
	f.Add("sh", 1, "0 0 0")
	f.Add(") S 77 (", 4194304, "")
	f.Add("\n\x00\xff", 2, "1")
	f.Fuzz(func(t *testing.T, name string, parent int, rest string) {
		if strings.Contains(rest, ")") {
			return // the kernel writes numbers there
		}
		got, err := tool.ParseParent(fmt.Appendf(nil, "12 (%s) S %d %s\n", name, parent, rest))
		if err != nil || got != parent {
			t.Errorf("the parent of %q is %d, %v", name, got, err)
		}
		_, _ = tool.ParseParent([]byte(name + rest)) // no stat at all: an error, or a number that stands there
	})
}

package main_test

import (
	"testing"

	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/overlap"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// processes are what runs as a process of its own: the tool itself, and services,
// which each test file enters.
var processes = map[string]func(){"crossfade": tool.Main}

// check is for processes, not for tests.
func check(err error) { reexec.Check(err) }

func TestMain(m *testing.M) {
	reexec.Main(processes)
	overlap.Tests(8)
	leak.Main(m)
}

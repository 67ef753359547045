package crossfade_test

import (
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/overlap"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// processes are what runs as a process of its own. Each test file enters its own.
var processes = map[string]func(){}

// check is for processes, not for tests.
func check(err error) { reexec.Check(err) }

func TestMain(m *testing.M) {
	reexec.Main(processes)
	overlap.Tests(8)
	leak.Main(m)
}

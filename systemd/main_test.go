package systemd_test

import (
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

// processes are what runs as a process of its own. Each test file enters its own.
var processes = map[string]func(){}

func TestMain(m *testing.M) {
	reexec.Main(processes)
	leak.Main(m)
}

package rendezvous_test

import (
	"os"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
)

// TestMain runs one of processes instead of the tests if the test binary was
// started again for it, see start.
func TestMain(m *testing.M) {
	if name := os.Getenv(processVariable); name != "" {
		processes[name](os.Args[1:])
		return
	}
	leak.Main(m)
}

const processVariable = "CROSSFADE_TEST_PROCESS"

// processes are what this binary can be besides a test.
var processes = map[string]func(args []string){}

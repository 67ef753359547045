package tableflip_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
)

// processEnv names the function that a re-executed test binary runs instead of
// tests. It is inherited by what Upgrade starts.
const processEnv = "TEST_TABLEFLIP_PROCESS"

// processes are the functions that run as a process of their own. Test files
// register theirs in init. Returning is exit status 0; see check for failing.
var processes = map[string]func(){}

func TestMain(m *testing.M) {
	name := os.Getenv(processEnv)
	if name == "" {
		leak.Main(m)
	}
	run, ok := processes[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no process is named %q\n", name)
		os.Exit(2)
	}
	run()
	os.Exit(0)
}

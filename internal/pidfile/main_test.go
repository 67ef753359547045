package pidfile_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/pidfile"
)

const processVariable = "CROSSFADE_TEST_PROCESS"

// TestMain checks and writes the pid files that it gets as arguments instead of
// testing, if the test binary was started again for that.
func TestMain(m *testing.M) {
	if os.Getenv(processVariable) == "" {
		leak.Main(m)
		return
	}
	for _, path := range os.Args[1:] {
		fmt.Println("check:", pidfile.Check(path))
		fmt.Println("write:", pidfile.Write(path))
	}
}

package leak

import (
	"bytes"
	"runtime"
	"strings"
)

// goroutines returns the stacks of all goroutines by their number, which is
// never used twice. It leaves out those that nobody can end.
func goroutines() map[string]string {
	found := make(map[string]string)
	for stack := range strings.SplitSeq(string(stacks()), "\n\n") {
		stack = strings.TrimSpace(stack)
		id, ok := strings.CutPrefix(stack, "goroutine ")
		if !ok || permanent(stack) {
			continue
		}
		id, _, _ = strings.Cut(id, " ")
		found[id] = stack
	}
	return found
}

// permanent reports whether a goroutine is one of the runtime's or of package
// testing's, or one that os/signal starts once and keeps.
func permanent(stack string) bool {
	for _, function := range []string{
		"os/signal.signal_recv(",
		"os/signal.loop(",
		"runtime.ensureSigM(",
		"runtime.ReadTrace(",
		"testing.(*M).",
		"testing.tRunner(",
		"testing.runFuzzing(",
		"testing.runFuzzTests(",
		"internal/fuzz.",
	} {
		if strings.Contains(stack, "\n"+function) {
			return true
		}
	}
	return false
}

func stacks() []byte {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return bytes.TrimSpace(buf[:n])
		}
	}
}

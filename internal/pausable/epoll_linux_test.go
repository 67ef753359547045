package pausable_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/pausable"
)

// A process that is not to accept must not be woken for each connection either:
// while paused, the socket is in no epoll set.
func TestPausedListenerIsInNoEpollSet(t *testing.T) {
	fd := listening(t, "tcp")
	id, err := fd.Identify()
	if err != nil {
		t.Fatal(err)
	}
	l := listener(t, fd, pausable.ListenerOptions{})
	check := func(state string, want bool) {
		t.Helper()
		if got := watched(t, id.Ino); got != want {
			t.Fatalf("%s: in an epoll set: %v, want %v", state, got, want)
		}
	}
	check("new", false)
	resume(t, l)
	check("running", true)
	results := accept(t, l, 2)
	awaitInFlight(l, 2)
	l.Pause()
	check("paused", false)
	resume(t, l)
	check("running again", true)
	l.Retire()
	check("retired", false)
	nothing(t, results)
}

// watched reports whether the socket with an inode is in one of this process's
// epoll sets. See proc_pid_fdinfo(5).
func watched(t *testing.T, ino uint64) bool {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != "anon_inode:[eventpoll]" {
			continue
		}
		info, err := os.ReadFile(filepath.Join("/proc/self/fdinfo", filepath.Base(fd)))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "tfd:") && strings.Contains(line, fmt.Sprintf("ino:%x ", ino)) {
				return true
			}
		}
	}
	return false
}

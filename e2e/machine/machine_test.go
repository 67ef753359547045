//go:build linux

package machine_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/e2e/machine"
)

// TestBoot checks that a machine is one of its own.
func TestBoot(t *testing.T) {
	if err := machine.Missing(); err != nil {
		t.Skip(err)
	}
	shared := t.TempDir()
	m, err := machine.Boot(t.Context(), map[string]string{"/srv/shared": shared})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WriteFile("/etc/systemd/system/touch.service", []byte(
		"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo here && touch /tmp/inside && echo done >/srv/shared/file'\n"), 0o644); err != nil {
		t.Error(err)
	}
	if out, err := m.Command(t.Context(), "systemctl", "start", "touch").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if text, err := os.ReadFile(filepath.Join(shared, "file")); string(text) != "done\n" {
		t.Errorf("the shared directory has %q (%v)", text, err)
	}
	if _, err := os.Stat("/tmp/inside"); err == nil {
		t.Error("what was written inside is outside")
	}
	for logged, end := false, time.After(time.Minute); !logged; { // its text comes later than the end of what has written it
		text, err := m.Journal(t.Context(), "touch")
		if err != nil {
			t.Fatal(err)
		}
		logged = strings.Contains(text, "here")
		select {
		case <-end:
			t.Fatalf("the journal is %q", text)
		default:
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), " machine ") {
		t.Errorf("what was mounted inside is outside (%v):\n%s", err, mounts)
	}
}

// TestDialComesBack checks that whoever has connected to something inside is outside
// again, the first thread too, which the kernel takes for the whole process.
func TestDialComesBack(t *testing.T) {
	if err := machine.Missing(); err != nil {
		t.Skip(err)
	}
	outside := networks(t)
	m, err := machine.Boot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var dials sync.WaitGroup
	for range 16 {
		dials.Go(func() {
			for range 100 {
				if _, err := m.Dial(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("port 1: %v", err)
				}
			}
		})
	}
	dials.Wait()
	for network := range networks(t) {
		if !outside[network] {
			t.Errorf("a thread is in %s, want %v", network, outside)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// networks returns the network namespaces that threads of this process are in.
func networks(t *testing.T) map[string]bool {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, task := range tasks {
		if network, err := os.Readlink(task); err == nil { // else it has ended
			found[network] = true
		}
	}
	return found
}

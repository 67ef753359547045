//go:build linux

package machine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	if text, err := m.Journal(t.Context(), "touch"); !strings.Contains(text, "here") {
		t.Errorf("the journal is %q (%v)", text, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), " machine ") {
		t.Errorf("what was mounted inside is outside (%v):\n%s", err, mounts)
	}
}

package systemd_test

import (
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/systemd"
)

func TestParseCgroup(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"a service":              {"0::/system.slice/app.service\n", "/system.slice/app.service"},
		"an instance":            {"0::/system.slice/system-app.slice/app@blue.service\n", "/system.slice/system-app.slice/app@blue.service"},
		"below a service":        {"0::/system.slice/app.service/worker/1\n", "/system.slice/app.service"},
		"its control processes":  {"0::/system.slice/app.service/.control\n", "/system.slice/app.service"},
		"a user's service":       {"0::/user.slice/user-0.slice/user@0.service/app.slice/app.service/x\n", "/user.slice/user-0.slice/user@0.service/app.slice/app.service"},
		"a session":              {"0::/user.slice/user-0.slice/session-3.scope\n", "/user.slice/user-0.slice/session-3.scope"},
		"removed":                {"0::/system.slice/app.service (deleted)\n", "/system.slice/app.service"},
		"a container's own view": {"0::/\n", "/"},
		"outside of it":          {"0::/../app.service\n", "/../app.service"},
		"no unit":                {"0::/kubepods/pod1/c1\n", "/kubepods/pod1/c1"},
		"version 1":              {"12:pids:/x.service\n1:name=systemd:/system.slice/app.service/x\n0::/\n", "/system.slice/app.service"},
		"both versions":          {"1:name=systemd:/system.slice/app.service\n0::/system.slice/app.service\n", "/system.slice/app.service"},
		"version 1 of others":    {"1:name=systemd:/\n0::/system.slice/app@blue.service\n", "/system.slice/app@blue.service"},
		"a colon":                {"0::/system.slice/a:b.service\n", "/system.slice/a:b.service"},
		"no line break":          {"0::/a.service", "/a.service"},
	} {
		got, err := systemd.ParseCgroup(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", name, got, err, tt.want)
		}
	}
	for _, text := range []string{"", "\n", "0::", "0::relative\n", "x\n", "3:cpu:/a.service\n"} {
		if got, err := systemd.ParseCgroup(text); err == nil {
			t.Errorf("%q gave %q", text, got)
		}
	}
}

func FuzzCgroup(f *testing.F) {
	for _, text := range []string{
		"", "0::/\n", "0::/system.slice/app.service\n", "0::/user.slice/user-0.slice/user@0.service/app.slice/app.service/x\n",
		"12:pids:/x\n1:name=systemd:/system.slice/app.service\n0::/\n", "0::/../app.scope (deleted)\n", "0::\n", ":::\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		unit, err := systemd.ParseCgroup(text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(unit, "/") || !strings.Contains(text, unit) {
			t.Errorf("%q gave %q", text, unit)
		}
		if !strings.HasSuffix(unit, ".service") && !strings.HasSuffix(unit, ".scope") {
			return
		}
		// It is a unit, and what is below it counts as the same.
		if again, err := systemd.ParseCgroup("0::" + unit + "/below\n"); err != nil || again != unit {
			t.Errorf("%q gave %q, which is in %q", text, unit, again)
		}
	})
}

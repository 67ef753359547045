package systemd_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/crossfade-go/crossfade/systemd"
)

// validName is what sd_notify(3) says of an FDNAME.
func validName(name string) bool {
	return len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool {
		return r < ' ' || r >= 0x7f || r == ':'
	})
}

func TestEscapeName(t *testing.T) {
	for name, want := range map[string]string{
		"http":                   "http",
		"tcp:[::1]:80":           "tcp%3A[%3A%3A1]%3A80",
		"100%":                   "100%25",
		"Zähler":                 "Z%C3%A4hler",
		"a b\\c":                 "a b\\c",
		"/run/app/s":             "/run/app/s",
		"\n\x7f\xff":             "%0A%7F%FF",
		"%3A":                    "%253A",
		strings.Repeat("x", 255): strings.Repeat("x", 255),
		strings.Repeat(":", 85):  strings.Repeat("%3A", 85),
	} {
		got, err := systemd.EscapeName(name)
		if err != nil || got != want {
			t.Errorf("%q is %q (%v), want %q", name, got, err, want)
		}
		if back := systemd.UnescapeName(got); back != name {
			t.Errorf("%q comes back as %q", name, back)
		}
	}
	for _, name := range []string{"", strings.Repeat("x", 256), strings.Repeat(":", 86), strings.Repeat("ä", 100)} {
		if got, err := systemd.EscapeName(name); !errors.Is(err, systemd.ErrName) {
			t.Errorf("%q is %q (%v)", name, got, err)
		}
	}
}

// What no name is escaped as has been chosen by somebody else, and stays.
func TestUnescapeName(t *testing.T) {
	for _, name := range []string{"", "%", "%4", "%3a", "%41", "a%20b", "%3A%", "%zz", "ä", "a:b", "%3A ä"} {
		if got := systemd.UnescapeName(name); got != name {
			t.Errorf("%q became %q", name, got)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, name := range []string{"", "http", "tcp:[::1]:80", "100%", "%3A", "%253A", "Zähler", "\x00\xff", strings.Repeat(":", 86)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		escaped, err := systemd.EscapeName(name)
		if err == nil {
			if !validName(escaped) {
				t.Errorf("%q is escaped as %q, which is no FDNAME", name, escaped)
			}
			if back := systemd.UnescapeName(escaped); back != name {
				t.Errorf("%q is escaped as %q and comes back as %q", name, escaped, back)
			}
		}
		// Whatever it is taken for: what has been unescaped is escaped as it was.
		if plain := systemd.UnescapeName(name); plain != name {
			if again, err := systemd.EscapeName(plain); err == nil && again != name {
				t.Errorf("%q is unescaped as %q, which is escaped as %q", name, plain, again)
			}
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, list := range []string{"", ":", "http:https", "unknown", "tcp%3A80:a.socket", "%3A%:", "::x:"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		names := systemd.ParseNames(list)
		if want := strings.Count(list, ":") + 1; len(names) != want {
			t.Errorf("%q has %d names, got %q", list, want, names)
		}
		for i, part := range strings.Split(list, ":") {
			if names[i] != systemd.UnescapeName(part) {
				t.Errorf("%q: name %d is %q", list, i, names[i])
			}
		}
	})
}

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

// No text makes more of a message than the one state that it is for.
func FuzzState(f *testing.F) {
	for _, text := range []string{"", "serving", "a\nMAINPID=1", "a\r\nREADY=1\x00", "\xff\xfe", "\u2028"} {
		f.Add("X_APP", text, uint8(1))
	}
	f.Add("X_APP", "Äpfel ", uint8(200))
	f.Add("A\nB", "c", uint8(1))
	f.Add("A=B", "c", uint8(1))
	// The fuzzer makes what it finds short again, which takes it long with a long
	// text; so a text is long by being repeated.
	f.Fuzz(func(t *testing.T, name, text string, times uint8) {
		text = strings.Repeat(text, int(times))
		payload, err := systemd.Compose([]systemd.State{systemd.Status(text)})
		if err != nil {
			t.Fatalf("%q is no status: %v", text, err)
		}
		if lines := strings.Split(string(payload), "\n"); len(lines) != 1 || !strings.HasPrefix(lines[0], "STATUS=") {
			t.Errorf("%q gave %q", text, lines)
		}
		if !utf8.Valid(payload) || len(payload) > len("STATUS=")+1024 || slices.Contains(payload, 0) {
			t.Errorf("%q gave %q", text, payload)
		}
		payload, err = systemd.Compose([]systemd.State{systemd.Field(name, text)})
		if err != nil {
			return
		}
		if string(payload) != name+"="+text || strings.ContainsAny(string(payload), "\n\x00") || strings.Contains(name, "=") {
			t.Errorf("%q and %q gave %q", name, text, payload)
		}
	})
}

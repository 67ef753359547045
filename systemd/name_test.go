package systemd_test

import (
	"errors"
	"strings"
	"testing"

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

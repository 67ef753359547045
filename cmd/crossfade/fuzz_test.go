package main_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
)

// FuzzFlags: a command line is taken or refused with a reason, by every command.
func FuzzFlags(f *testing.F) {
	for i, line := range []string{
		"--socket\x00/run/s\x00--json", "--timeout=90s", "--timeout\x00-1s", "--timeout\x009999999999h", "--probation=0", "--for\x00ready,,",
		"-h", "--", "=\x00-=\x00--=x", "--health\x00http://[::1", "--env\x00A=b\x00--\x00prog\x00--flag", "--generation\x00-1",
	} {
		f.Add(byte(i), line)
	}
	commands := tool.Commands()
	f.Fuzz(func(t *testing.T, which byte, line string) {
		name := commands[int(which)%len(commands)].Name
		if err := tool.ParseFlags(name, strings.Split(line, "\x00")); err != nil && err.Error() == "" {
			t.Errorf("%s refuses %q and does not say why", name, line)
		}
	})
}

// FuzzOutputLine: whatever a new process prints, a terminal can be shown it.
func FuzzOutputLine(f *testing.F) {
	for _, line := range []string{"plain", "\x1b]0;title\x07\x1b[2J", "a\tb\r", "\xff\xfe", strings.Repeat("\u00e9", 5000), "a\u202eb"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got := tool.Printable(line)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is shown as %q", line, got)
		}
	})
}

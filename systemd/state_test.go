package systemd_test

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/crossfade-go/crossfade/systemd"
)

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

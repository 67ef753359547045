package transcript_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade/internal/transcript"
)

func example() *transcript.Conversation {
	return &transcript.Conversation{
		About: "A successor that is told no.\nTwice.\n", Recorder: 3, Predecessor: "owner", Successor: "-",
		Events: []transcript.Event{
			{Kind: transcript.FromSuccessor, Text: "Hello", Frame: transcript.Frame([]byte("a payload | of more than sixteen bytes"), 0), Notes: []string{"versions: [1]"}},
			{Kind: transcript.Act, Text: "time 1s"},
			{Kind: transcript.FromPredecessor, Text: "Refuse", Frame: transcript.Frame([]byte{1}, 250)},
			{Kind: transcript.FromPredecessor, Text: "Commit", Frame: transcript.Frame(nil, 0)},
			{Kind: transcript.FromPredecessor, Text: transcript.End},
		},
		Known: map[string][]int{"Hello": {1, 2, 30}, "Prepared": {}},
	}
}

func TestATranscriptIsReadAsItWasWritten(t *testing.T) {
	want := example()
	got, err := transcript.Parse([]byte(want.String()))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%+v\nwritten\n%+v\nas\n%s", got, want, want)
	}
	if e := got.Events[2]; e.Descriptors() != 250 || !bytes.Equal(e.Payload(), []byte{1}) {
		t.Errorf("the frame has %d descriptors and the payload %x", e.Descriptors(), e.Payload())
	}
}

func TestADamagedTranscriptIsNotRead(t *testing.T) {
	text := example().String()
	lines := strings.SplitAfter(text, "\n")
	without := func(part string) string {
		var kept []string
		for _, line := range lines {
			if !strings.Contains(line, part) {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	}
	for name, damaged := range map[string]string{
		"nothing":                   "",
		"a word that nobody knows":  text + "mystery 1\n",
		"a frame without its dump":  without("00000000"),
		"a dump without its middle": without("00000010"),
		"a dump without its end":    without("00000020"),
		"bytes of no frame":         "  00000000  00\n" + text,
		"bytes of an act":           strings.Replace(text, "* time 1s\n", "* time 1s\n  00000000  00\n", 1),
		"no recorder":               without("recorder"),
		"no outcome":                without("successor -"),
		"a digit that is none":      strings.Replace(text, "00000000  00", "00000000  0g", 1),
		"a field that is no number": strings.Replace(text, "known Hello 1", "known Hello x", 1),
	} {
		if c, err := transcript.Parse([]byte(damaged)); err == nil {
			t.Errorf("%s: read as\n%v", name, c)
		}
	}
}

// Package transcript reads and writes recorded conversations: every frame of a
// handoff connection byte by byte, in both directions, with what the programs
// on either side did in between. It is test support and knows no message: a
// transcript must be readable for ever, whatever becomes of the protocol.
//
// A transcript is a text of lines. A line with # at its beginning is for people.
// The others are, in this order:
//
//	recorder 1              whose bytes these are, see the recording test
//	predecessor draining    how it ended on that side; - for a side that was
//	successor owner         played by hand
//	> Hello                 a frame from the successor, in the hexadecimal dump
//	  00000000  00 00 ...   that follows, its header first
//	< Welcome               a frame from the predecessor
//	> end                   that side closed its end
//	* successor Ready       what a program did, or how much time passed
//	known Hello 1 2 3       the fields that the recorder knew of a message
package transcript

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The kinds of an [Event].
const (
	FromSuccessor   = '>'
	FromPredecessor = '<'
	Act             = '*'
)

// End is the text of the event that a side has closed its end.
const End = "end"

// headerSize is the length of a frame's header: payload length, number of
// descriptors, and two bytes that are zero.
const headerSize = 8

// Conversation is everything that passed over one connection.
type Conversation struct {
	About       string // what happens in it, for people
	Recorder    int    // whose bytes these are
	Predecessor string // how it ended on that side, "-" if it was played by hand
	Successor   string
	Events      []Event
	Known       map[string][]int // the numbers of the fields that the recorder knew, by the name of the message
}

// Event is one step of a conversation.
type Event struct {
	Kind  byte     // FromSuccessor, FromPredecessor or Act
	Text  string   // the name of the message, End, or what was done
	Frame []byte   // header and payload, nil for End and acts
	Notes []string // what the frame says, for people
}

// Frame puts the header in front of a payload that nfds descriptors ride on.
func Frame(payload []byte, nfds int) []byte {
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	frame = binary.BigEndian.AppendUint16(frame, uint16(nfds))
	return append(append(frame, 0, 0), payload...)
}

// Payload is the frame without its header.
func (e Event) Payload() []byte { return e.Frame[headerSize:] }

// Descriptors is how many descriptors ride on the frame.
func (e Event) Descriptors() int { return int(binary.BigEndian.Uint16(e.Frame[4:])) }

// whole reports whether the event has the frame that it must have.
func (e Event) whole() bool {
	if e.Kind == Act || e.Text == End {
		return len(e.Frame) == 0
	}
	return len(e.Frame) >= headerSize && int(binary.BigEndian.Uint32(e.Frame)) == len(e.Payload())
}

// String returns the conversation as a text that Parse reads.
func (c *Conversation) String() string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(c.About)) {
		b.WriteString("# " + strings.TrimSpace(line) + "\n")
	}
	fmt.Fprintf(&b, "recorder %d\npredecessor %s\nsuccessor %s\n", c.Recorder, c.Predecessor, c.Successor)
	for _, e := range c.Events {
		fmt.Fprintf(&b, "\n%c %s\n", e.Kind, e.Text)
		for _, note := range e.Notes {
			b.WriteString("#   " + note + "\n")
		}
		for line := range strings.Lines(hex.Dump(e.Frame)) {
			b.WriteString("  " + line)
		}
	}
	names := make([]string, 0, len(c.Known))
	for name := range c.Known {
		names = append(names, name)
	}
	slices.Sort(names)
	b.WriteString("\n")
	for _, name := range names {
		b.WriteString("known " + name)
		for _, n := range c.Known[name] {
			b.WriteString(" " + strconv.Itoa(n))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Read parses the file at path.
func Read(path string) (*Conversation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse reads a conversation from its text. Every frame in it is whole: its
// header gives the length of its payload.
func Parse(text []byte) (*Conversation, error) {
	c := &Conversation{Known: make(map[string][]int)}
	n := 0
	for raw := range bytes.Lines(text) {
		n++
		if err := c.line(strings.TrimRight(string(raw), "\n")); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	for _, e := range c.Events {
		if !e.whole() {
			return nil, fmt.Errorf("the frame of %q has %d bytes, which is not what it should", e.Text, len(e.Frame))
		}
	}
	if c.Recorder == 0 || c.Predecessor == "" || c.Successor == "" || len(c.Events) == 0 {
		return nil, errors.New("no whole transcript")
	}
	return c, nil
}

func (c *Conversation) line(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "":
		if rest == "" {
			return nil
		}
		return c.dump(rest)
	case "#":
		if len(c.Events) == 0 {
			c.About += rest + "\n"
		} else {
			last := &c.Events[len(c.Events)-1]
			last.Notes = append(last.Notes, strings.TrimSpace(rest))
		}
		return nil
	case "recorder":
		var err error
		c.Recorder, err = strconv.Atoi(rest)
		return err
	case "predecessor":
		c.Predecessor = rest
	case "successor":
		c.Successor = rest
	case string(FromSuccessor), string(FromPredecessor), string(Act):
		c.Events = append(c.Events, Event{Kind: word[0], Text: rest})
	case "known":
		name, numbers, _ := strings.Cut(rest, " ")
		c.Known[name] = []int{}
		for field := range strings.FieldsSeq(numbers) {
			number, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			c.Known[name] = append(c.Known[name], number)
		}
	default:
		return fmt.Errorf("%q is no line of a transcript", line)
	}
	return nil
}

// dump takes one line of a hexadecimal dump in: offset, bytes, and the same for
// people behind a bar.
func (c *Conversation) dump(line string) error {
	line, _, _ = strings.Cut(line, "|")
	offset, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
	if len(c.Events) == 0 {
		return errors.New("bytes of no frame")
	}
	e := &c.Events[len(c.Events)-1]
	if at, err := strconv.ParseUint(offset, 16, 32); err != nil || int(at) != len(e.Frame) {
		return fmt.Errorf("the bytes are at %s, expected %08x", offset, len(e.Frame))
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
	if err != nil {
		return err
	}
	e.Frame = append(e.Frame, b...)
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is `crossfade status --watch`: objects on lines, or a live view.

func watch(ctx context.Context, in *invocation) result {
	var err error
	if screen, ok := terminalOf(in.stdout); ok && !in.json && os.Getenv("TERM") != "dumb" {
		err = watchLive(ctx, in, screen)
	} else {
		err = watchLines(ctx, in)
	}
	if interrupted(ctx) {
		return result{printed: true}
	}
	return failure(in, err)
}

// watchLines prints an object for each event, and for each time that there is no owner.
func watchLines(ctx context.Context, in *invocation) error {
	absence := ""
	return follow(ctx, in.socket, func(s sight) error {
		if s.event != nil {
			absence = ""
			in.printJSON(eventObject(s.event))
			return nil
		}
		if text := sentence(s.err); text != absence { // once, and not each time that somebody looks
			absence = text
			in.printJSON(object{
				"at": instant(time.Now()), "process": nil, "state": nil, "text": text,
				"attempt": nil, "failure": nil, "serving": nil,
			})
		}
		return nil
	})
}

func eventObject(e *crossfade.Event) object {
	o := object{
		"at": instant(e.At), "process": processObject(e.Process), "state": e.State.String(), "text": e.Text,
		"attempt": attemptObject(e.Attempt), "failure": failureObject(e.Failure), "serving": nil,
	}
	switch {
	case e.State.Owns():
		o["serving"] = o["process"]
	case e.Attempt != nil && (e.State == crossfade.StateProbation || e.State == crossfade.StateDraining):
		o["serving"] = processObject(e.Attempt.Successor)
	}
	return o
}

// refresh is how often the live view asks again: for the clocks, and for the
// connections that still drain.
const refresh = time.Second

// maxEvents is how many of the last events the live view shows.
const maxEvents = 10

// live is the live view.
type live struct {
	socket string
	status *crossfade.Status // nil while nobody has answered
	err    error             // why not
	events []string          // the last ones
}

// watchLive shows how the owner stands until ctx ends. What it showed last stays on
// the terminal.
func watchLive(ctx context.Context, in *invocation, screen *terminal) error {
	ctx, cancel := context.WithCancelCause(ctx)
	news := make(chan sight)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cancel(follow(ctx, in.socket, func(s sight) error {
			select {
			case news <- s:
			case <-ctx.Done():
			}
			return nil
		}))
	}()
	defer func() { <-ended }()

	screen.enter()
	v := &live{socket: in.socket, err: errors.New("asking")}
	defer func() {
		screen.leave()
		fmt.Fprint(in.stdout, v.render(time.Now()))
	}()
	ticker := time.NewTicker(refresh)
	defer ticker.Stop()
	resized, stop := screen.resized()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-news:
			v.add(s)
			v.look(ctx)
		case <-ticker.C:
			v.look(ctx)
		case <-resized:
		}
		screen.draw(v.render(time.Now()))
	}
}

// add notes an event.
func (v *live) add(s sight) {
	if s.event == nil {
		return // the look that follows says it
	}
	text := fmt.Sprintf("%s  %s: %s", s.event.At.UTC().Format("15:04:05Z"), name(s.event.Process), s.event.Text)
	if f := s.event.Failure; f != nil {
		text += ": " + f.Reason
	}
	v.events = append(v.events, text)
	v.events = v.events[max(0, len(v.events)-maxEvents):]
}

func (v *live) look(ctx context.Context) {
	status, err := look(ctx, v.socket)
	if ctx.Err() == nil { // else the last answer is the last word
		v.status, v.err = status, err
	}
}

func (v *live) render(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s\n\n", v.socket, now.UTC().Format("2006-01-02 15:04:05Z"))
	if v.status != nil {
		b.WriteString(renderStatus(v.status, now))
	} else {
		b.WriteString(sentence(v.err) + "\n")
	}
	if len(v.events) > 0 {
		b.WriteString("\n")
	}
	for _, event := range slices.Backward(v.events) {
		b.WriteString(event + "\n")
	}
	return b.String()
}

// terminal is a screen that is drawn on. All of it is the handful of control
// sequences that every terminal of the last decades knows, ECMA-48 and xterm's.
type terminal struct {
	out    io.Writer
	height func() int
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l" // the other screen, no cursor, no wrapping
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

func (t *terminal) enter() { fmt.Fprint(t.out, enterScreen) }
func (t *terminal) leave() { fmt.Fprint(t.out, leaveScreen) }

// draw shows text in one write, over what was there, so that nothing flickers. What
// does not fit is left out at the bottom.
func (t *terminal) draw(text string) {
	var b strings.Builder
	b.WriteString(home)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines[:min(len(lines), t.height())] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line + clearLine)
	}
	b.WriteString(clearBelow)
	fmt.Fprint(t.out, b.String())
}

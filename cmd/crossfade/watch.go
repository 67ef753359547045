package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file is `crossfade status --watch`: objects on lines, or a live view.

func watch(ctx context.Context, in *invocation) result {
	var err, printing error
	if screen, ok := terminalOf(in.stdout); ok && !in.json && os.Getenv("TERM") != "dumb" {
		err = watchLive(ctx, in, screen)
	} else {
		err, printing = watchLines(ctx, in)
	}
	switch {
	case interrupted(ctx), readerGone(printing):
		return result{printed: true}
	case printing != nil:
		return result{printed: true, code: codeUnknown, reason: "the events cannot be printed: " + printing.Error()}
	default:
		return failure(in, err)
	}
}

// watchLines prints an object for each event, and for each time that there is no owner,
// until ctx ends or there is nobody to print them for.
func watchLines(ctx context.Context, in *invocation) (err, printing error) {
	absence := ""
	err = eachSight(ctx, in.socket, func(s sight) (enough bool) {
		switch {
		case s.event != nil:
			absence = ""
			printing = in.printJSON(eventObject(s.event))
		case s.err != nil && sentence(s.err) != absence: // once, and not each time that somebody looks
			absence = sentence(s.err)
			printing = in.printJSON(object{
				"at": instant(s.at), "process": nil, "state": nil, "text": absence,
				"attempt": nil, "failure": nil, "serving": nil,
			})
		}
		return printing != nil
	})
	return err, printing
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
	sight  sight    // the last one with a status or an error
	events []string // the last ones
}

var errNotAsked = errors.New("nobody has answered yet")

// watchLive shows how the owner stands until ctx ends. What it showed last stays on
// the terminal.
func watchLive(ctx context.Context, in *invocation, screen *terminal) error {
	following, stop := context.WithCancel(ctx)
	sights := make(chan sight)
	var follower sync.WaitGroup
	follower.Go(func() { follow(following, in.socket, sights) })
	defer follower.Wait()
	defer stop()

	screen.enter()
	v := &live{socket: in.socket, sight: sight{err: errNotAsked}}
	defer func() {
		screen.leave()
		fmt.Fprint(in.stdout, v.render(time.Now()))
	}()
	ticker := time.NewTicker(refresh)
	defer ticker.Stop()
	resized, ignore := screen.resized()
	defer ignore()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-sights:
			v.see(ctx, s)
		case <-ticker.C:
			v.see(ctx, look(ctx, in.socket))
		case <-resized:
		}
		if err := v.sight.err; err != nil && !errors.Is(err, errNotAsked) && !passes(err) {
			return err
		}
		screen.draw(v.render(time.Now()))
	}
}

// see takes a sight in. What the end of ctx has broken off is none.
func (v *live) see(ctx context.Context, s sight) {
	if e := s.event; e != nil {
		text := fmt.Sprintf("%s  %s: %s", clock(e.At), name(e.Process), e.Text)
		if e.Failure != nil {
			text += ": " + e.Failure.Reason
		}
		v.events = append(v.events, text)
		v.events = v.events[max(0, len(v.events)-maxEvents):]
	}
	if ctx.Err() == nil && (s.status != nil || s.err != nil) {
		v.sight = s
	}
}

func (v *live) render(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s\n\n", v.socket, clock(now))
	if v.sight.status != nil {
		b.WriteString(renderStatus(v.sight.status, now))
	} else {
		b.WriteString(sentence(v.sight.err) + "\n")
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

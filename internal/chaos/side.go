//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/scm"
)

// This file is the side channel between the harness and each service process:
// one socket pair, JSON in frames. It goes around the library, so that what a
// process does is known from itself and at the moment when it does it.

// roleEnv tells a re-executed binary to be a service process; its value is the
// [spec]. The name must not begin like the library's own variables, which New
// takes out of the environment.
const roleEnv = "CHAOS_SERVICE"

// sideFD is the service's end of the side channel, and takeFD the connection
// that CROSSFADE_FD names, if the process has one.
const (
	sideFD = 3
	takeFD = 4
)

// spec is what a service process does. Fields that [crossfade.Config] has too
// mean the same.
type spec struct {
	Name    string // of the process in transcripts, and its instance
	Socket  string
	Address string // of its TCP listener and its UDP socket
	Unix    string // of its unix listener

	DialTimeout   time.Duration
	Wait          time.Duration
	ReadyTimeout  time.Duration
	CommitTimeout time.Duration

	AtProbationEnd crossfade.ProbationEnd

	MaxDraining int
	Files       int // how many files it hands over besides

	Progress bool   // it sends a Progress before Ready
	Gate     bool   // it calls Ready on the command "ready", else by itself
	Break    string // it stops at the first line of its log that contains this, until the command "go"
}

// event is what a service process reports.
type event struct {
	At    int64    // nanoseconds of the monotonic clock, when it happened
	Name  string   // see below
	Text  string   `json:",omitempty"`
	Is    []string `json:",omitempty"` // the names of the sentinels that the error matches
	Error string   `json:",omitempty"`
}

// The names of events, in the order of a process's life.
const (
	eventLog      = "log"      // a line of its log
	eventBreak    = "break"    // it stands still after that line
	eventReceived = "received" // New has returned
	eventFailed   = "failed"   // New or Ready returned an error
	eventReady    = "ready"    // Ready has returned nil
	eventSettled  = "settled"
	eventGone     = "gone"     // the predecessor has exited
	eventExit     = "exit"     // Exit is closed
	eventMoved    = "moved"    // a client was handed over, or cannot be
	eventAnswer   = "answer"   // a command has been done
	eventHolding  = "holding"  // a child holds a copy of the connection to the predecessor
	eventEnd      = "end"      // the process is gone; of the harness
	eventReleased = "released" // it was stopped for good or ended; of the harness
)

// command is what the harness wants of a service process.
type command struct {
	Name string
	Text string `json:",omitempty"`
}

// The commands.
const (
	commandReady    = "ready" // call Ready
	commandGo       = "go"    // go on after a break
	commandStop     = "stop"
	commandSettle   = "settle"
	commandRollback = "roll back"
	commandMove     = "move" // hand the client over that stays
	commandQuit     = "quit" // finish what is open and exit
	commandExec     = "exec" // become another program
	commandHold     = "hold" // have a child hold the connection to the predecessor open
)

// sentinels are the errors that the harness asks for by name.
var sentinels = map[string]error{
	"ErrRetired":      crossfade.ErrRetired,
	"ErrStopped":      crossfade.ErrStopped,
	"ErrRolledBack":   crossfade.ErrRolledBack,
	"ErrProbation":    crossfade.ErrProbation,
	"ErrOwnerUnknown": crossfade.ErrOwnerUnknown,
	"ErrBusy":         crossfade.ErrBusy,
	"ErrNotReady":     crossfade.ErrNotReady,
	"ErrStopping":     crossfade.ErrStopping,
	"ErrTimeout":      crossfade.ErrTimeout,
	"ErrAborted":      crossfade.ErrAborted,
	"ErrLost":         crossfade.ErrLost,
	"ErrProtocol":     crossfade.ErrProtocol,
	"ErrNotTaken":     crossfade.ErrNotTaken,
}

// now is the monotonic clock of the whole machine, so that the stamps of several
// processes can be compared.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // the clock exists on every Linux
	}
	return ts.Nano()
}

func newEvent(name, text string, err error) event {
	e := event{At: now(), Name: name, Text: text}
	if err == nil {
		return e
	}
	e.Error = err.Error()
	for name, sentinel := range sentinels {
		if errors.Is(err, sentinel) {
			e.Is = append(e.Is, name)
		}
	}
	return e
}

func sendJSON(conn *scm.Conn, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return conn.Send(context.Background(), payload)
}

func receiveJSON(conn *scm.Conn, v any) error {
	payload, _, err := conn.Receive(context.Background(), 0)
	if err != nil {
		return err
	}
	return json.Unmarshal(payload, v)
}

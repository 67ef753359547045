package bluegreen

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// The events of a journal.
const (
	EventOwns   = "owns"          // the process has become the owner of the service
	EventBegan  = "request began" // a handler has begun
	EventEnded  = "request ended" // that handler is about to return
	EventLeaves = "leaves"        // the process has no connection any more and exits
)

// Entry is one line of the journal that all servers append to.
type Entry struct {
	Time       time.Time `json:"time"`
	Event      string    `json:"msg"`
	PID        int       `json:"pid"`
	Generation uint64    `json:"generation"`
	Version    string    `json:"version"`

	ID string `json:"id,omitempty"` // of the request; empty for EventOwns

	// These two come with EventOwns only.
	Inherited bool          `json:"inherited,omitempty"` // taken over from a predecessor
	Handover  time.Duration `json:"handover,omitempty"`  // from before the connect until after the commit

	// These two come with EventLeaves only.
	Drain time.Duration `json:"drain,omitempty"` // since the process was told to leave: Retired, for a predecessor
	Moved int           `json:"moved,omitempty"` // connections that the successor has taken
}

// ReadJournal returns the entries of a journal in the order in which they were
// written. A last line without a line feed is still being written, and is left
// out.
func ReadJournal(r io.Reader) ([]Entry, error) {
	var entries []Entry
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		var e Entry
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			return nil, fmt.Errorf("line %d of the journal: %w", n, err)
		}
		entries = append(entries, e)
	}
}

// Begun returns for each request whose handler began the process that ran it.
func Begun(journal []Entry) map[string]Process {
	begun := make(map[string]Process)
	for _, e := range journal {
		if e.Event == EventBegan {
			begun[e.ID] = e.Process()
		}
	}
	return begun
}

// Process returns who wrote the entry.
func (e *Entry) Process() Process {
	return Process{PID: e.PID, Generation: e.Generation, Version: e.Version}
}

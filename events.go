package crossfade

import (
	"sync"

	"github.com/crossfade-go/crossfade/handoff"
)

// Event is a change in this process's part, as [Config.OnEvent] gets it.
type Event = handoff.Event

// events delivers events one at a time, in their order, without ever holding up
// what they tell of.
type events struct {
	deliver func(Event) // nil if nobody wants them

	mu      sync.Mutex
	queue   []Event
	running bool
}

func (e *events) post(event Event) {
	if e.deliver == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue = append(e.queue, event)
	if !e.running {
		e.running = true
		go e.run()
	}
}

func (e *events) run() {
	for {
		e.mu.Lock()
		if len(e.queue) == 0 {
			e.running = false
			e.mu.Unlock()
			return
		}
		event := e.queue[0]
		e.queue = e.queue[1:]
		e.mu.Unlock()
		e.deliver(event)
	}
}

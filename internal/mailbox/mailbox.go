// Package mailbox hands values over from who must not wait to who may take its
// time.
package mailbox

import "sync"

// Box delivers what is posted one at a time, in its order, in a goroutine of its
// own. Its methods may be called concurrently.
type Box[T any] struct {
	deliver func(T)

	mu      sync.Mutex
	queue   []T
	running bool
}

// New returns a box that gives each value to deliver. With nil they are dropped.
func New[T any](deliver func(T)) *Box[T] { return &Box[T]{deliver: deliver} }

// Post has v delivered and returns at once. What is not delivered when the process
// ends is lost.
func (b *Box[T]) Post(v T) {
	if b.deliver == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, v)
	if !b.running {
		b.running = true
		go b.run()
	}
}

// run ends when the box is empty, so that there is nothing to close.
func (b *Box[T]) run() {
	for {
		b.mu.Lock()
		if len(b.queue) == 0 {
			b.running = false
			b.mu.Unlock()
			return
		}
		v := b.queue[0]
		b.queue = b.queue[1:]
		b.mu.Unlock()
		b.deliver(v)
	}
}

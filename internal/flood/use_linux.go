package flood

import (
	"os"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"
)

// Use is what a process uses.
type Use struct {
	Goroutines, Descriptors int
	Heap                    uint64 // bytes of objects that are not freed yet
}

// Used is what this process uses now.
func Used() Use {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err) // without an answer nothing of what is to be shown is shown
	}
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return Use{runtime.NumGoroutine(), len(fds), sample[0].Value.Uint64()}
}

// Peak looks at what this process uses until the function that it returns is called,
// which returns the most of each that there was.
func Peak() (most func() Use) {
	var top Use
	done := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for {
			now := Used()
			top = Use{max(top.Goroutines, now.Goroutines), max(top.Descriptors, now.Descriptors), max(top.Heap, now.Heap)}
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	})
	return sync.OnceValue(func() Use {
		close(done)
		looking.Wait()
		return top
	})
}

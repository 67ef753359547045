package crossfade_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/flood"
)

func init() {
	processes["flood"] = func() { os.Exit(flood.Main(os.Args[1:])) }
	processes["door"] = door
}

// Who asks the process "door", and its answer.
type (
	doorRequest struct {
		Handoffs int
		Stranger int // the process that may not connect
	}
	doorReply struct {
		Mean                    time.Duration // of a handoff
		Goroutines, Descriptors int           // the most that there were
		Heap                    uint64
	}
)

// BenchmarkDoor hands a service over again and again, at first in peace and then while
// two processes attack its control socket in all ways at once: one that may connect, and
// one that may not. It reports how long a handoff takes in both, and the most that the
// process has used, all generations of which are in it.
func BenchmarkDoor(b *testing.B) {
	for range b.N { // the figures are those of the last
		benchmarkDoor(b)
	}
}

func benchmarkDoor(b *testing.B) {
	const handoffs = 20
	socket := filepath.Join(socketDir(b), "control")
	cmd := command(b, "door", socket)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	start(b, cmd)
	ask, answers := json.NewEncoder(in), json.NewDecoder(out)
	handOver := func(stranger int) (r doorReply) {
		if err := ask.Encode(doorRequest{handoffs, stranger}); err != nil {
			b.Fatal(err)
		}
		if err := answers.Decode(&r); err != nil {
			b.Fatal(err)
		}
		return r
	}
	quiet := handOver(-1)
	allowed := flood.Start(b, processEnv+"=flood", 0, socket, flood.Names...)
	denied := flood.Start(b, processEnv+"=flood", 0, socket, "silent", "bombs")
	flooded := handOver(denied.PID)
	connections := allowed.Stop(b).Connected + denied.Stop(b).Connected

	const milli, mebi = float64(time.Millisecond), float64(1 << 20)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(quiet.Mean)/milli, "quiet-ms")
	b.ReportMetric(float64(flooded.Mean)/milli, "flooded-ms")
	b.ReportMetric(float64(flooded.Mean)/float64(quiet.Mean), "ratio")
	b.ReportMetric(float64(connections), "connections")
	b.ReportMetric(float64(quiet.Goroutines), "quiet-goroutines")
	b.ReportMetric(float64(flooded.Goroutines), "flooded-goroutines")
	b.ReportMetric(float64(quiet.Descriptors), "quiet-descriptors")
	b.ReportMetric(float64(flooded.Descriptors), "flooded-descriptors")
	b.ReportMetric(float64(quiet.Heap)/mebi, "quiet-heapMiB")
	b.ReportMetric(float64(flooded.Heap)/mebi, "flooded-heapMiB")
}

// door is a process that hands its service over to itself, as often as it is told.
func door() {
	var stranger atomic.Int64
	cfg := crossfade.Config{
		Socket: os.Args[1], DialTimeout: generous, Wait: generous, MaxDraining: 100, Logger: slog.New(slog.DiscardHandler),
		Authorize: func(p *crossfade.Peer, _ crossfade.Access) error {
			if int64(p.PID) == stranger.Load() {
				return errors.New("a stranger")
			}
			return nil
		},
	}
	ctx := context.Background()
	own := func() *crossfade.Upgrader {
		upg, err := crossfade.New(ctx, &cfg)
		check(err)
		_, err = upg.Listen(ctx, "web", "tcp", "127.0.0.1:0")
		check(err)
		check(upg.Ready(ctx))
		return upg
	}
	owner := own()
	requests, replies := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var r doorRequest
		err := requests.Decode(&r)
		if errors.Is(err, io.EOF) {
			return
		}
		check(err)
		stranger.Store(int64(r.Stranger))
		runtime.GC()
		var most doorReply
		done := make(chan struct{})
		var looking sync.WaitGroup
		looking.Go(func() { most = lookAtUse(done) })
		began := time.Now()
		for range r.Handoffs {
			next := own()
			<-owner.Exit()
			owner.Stop()
			owner = next
		}
		mean := time.Since(began) / time.Duration(r.Handoffs)
		close(done)
		looking.Wait()
		most.Mean = mean
		check(replies.Encode(most))
	}
}

// lookAtUse returns the most that this process has used until done.
func lookAtUse(done <-chan struct{}) (most doorReply) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for {
		metrics.Read(sample)
		fds, err := os.ReadDir("/proc/self/fd")
		check(err)
		most.Goroutines = max(most.Goroutines, runtime.NumGoroutine())
		most.Descriptors = max(most.Descriptors, len(fds))
		most.Heap = max(most.Heap, sample[0].Value.Uint64())
		select {
		case <-ticker.C:
		case <-done:
			return most
		}
	}
}

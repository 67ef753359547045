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
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/flood"
	"github.com/crossfade-go/crossfade/internal/reexec"
)

func init() {
	processes["flood"] = flood.Main
	processes["door"] = door
}

// Who asks the process "door", and its answer.
type (
	doorRequest struct {
		Handoffs int
		Stranger int // the process that may not connect
	}
	doorReply struct {
		Longest time.Duration // of the handoffs
		Most    flood.Use
	}
)

// BenchmarkDoor hands a service over, in peace and then while two processes attack its
// control socket in all ways at once: one that may connect, and one that may not. An
// operation is a handoff. It reports the longest besides, and the most that the process
// has used, all generations of which are in it.
func BenchmarkDoor(b *testing.B) {
	socket := filepath.Join(socketDir(b), "control")
	cmd := reexec.Command("door", socket)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	reexec.Start(b, cmd)
	ask, answers := json.NewEncoder(in), json.NewDecoder(out)
	stranger := -1
	handOver := func(b *testing.B) {
		if err := ask.Encode(doorRequest{b.N, stranger}); err != nil {
			b.Fatal(err)
		}
		var reply doorReply
		if err := answers.Decode(&reply); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(reply.Longest), "longest-ns")
		b.ReportMetric(float64(reply.Most.Goroutines), "goroutines")
		b.ReportMetric(float64(reply.Most.Descriptors), "descriptors")
		b.ReportMetric(float64(reply.Most.Heap)/(1<<20), "heap-MiB")
	}
	b.Run("in peace", handOver)
	allowed := flood.Start(b, socket, flood.Names...)
	denied := flood.Start(b, socket, "silent", "bombs")
	stranger = denied.PID
	b.Run("attacked", handOver)
	allowed.Stop(b)
	denied.Stop(b)
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
		most := flood.Peak()
		var reply doorReply
		for range r.Handoffs {
			began := time.Now()
			next := own()
			<-owner.Exit()
			owner.Stop()
			owner = next
			reply.Longest = max(reply.Longest, time.Since(began))
		}
		reply.Most = most()
		check(replies.Encode(reply))
	}
}

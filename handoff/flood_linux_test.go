package handoff_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/flood"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

// lines is a log that may be written by several.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// beset is an owner that waits for a Hello for ever, as far as a test can tell.
func beset(t *testing.T, log *lines, strangers bool) *process {
	t.Helper()
	o := newOwner(t, func(c *handoff.ServerConfig) {
		c.Authorize = func(p *scm.Peer, _ handoff.Access) error {
			if strangers && p.PID != os.Getpid() {
				return errors.New("a stranger")
			}
			return nil
		}
		c.Limits.Hello = time.Hour
		c.Log = slog.New(slog.NewTextHandler(log, nil))
	})
	o.service.listed = make([]handoff.DescriptorStatus, 200) // more than one who does not read has room for
	for i := range o.service.listed {
		o.service.listed[i] = handoff.DescriptorStatus{Name: fmt.Sprintf("name-%d", i), Kind: handoff.KindFile, Address: strings.Repeat("x", 2_000)}
	}
	return o.serve()
}

func init() { processes["flood"] = flood.Main }

// TestFloods: whatever somebody does to the control socket who may connect, the process
// uses little more than before, says who it is, and hands over.
func TestFloods(t *testing.T) {
	for _, name := range append([]string{"silent strangers", "bombs of strangers"}, flood.Names...) {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			log := new(lines)
			p := beset(t, log, strings.HasSuffix(name, "strangers"))
			name, _, _ = strings.Cut(name, " ")
			runtime.GC()
			before, most := flood.Used(), flood.Peak()
			t.Cleanup(func() { most() })
			attack := flood.Start(t, p.path, name)
			for range 3 {
				p.mustServe(1)
				_, cfg := successorOn(t)
				p.connect(cfg).Leave()
			}
			result := attack.Stop(t)
			after := most()
			t.Logf("%d connections; before %+v, at most %+v", result.Connected, before, after)
			if extra := after.Goroutines - before.Goroutines; extra > 4*(handoff.MaxConnections+handoff.MaxLeaving) {
				t.Errorf("%d goroutines more", extra)
			}
			// Of each connection the socket and the pidfd, and what one read may bring.
			if extra := after.Descriptors - before.Descriptors; extra > 2*(handoff.MaxConnections+handoff.MaxLeaving)+2*scm.MaxDescriptors {
				t.Errorf("%d descriptors more", extra)
			}
			if extra := int64(after.Heap) - int64(before.Heap); extra > 128<<20 { // of which the race detector takes much
				t.Errorf("%d MiB more", extra>>20)
			}
			if n := strings.Count(log.String(), "\n"); n > 200 {
				t.Errorf("%d lines are logged", n)
			}
			if strings.ContainsAny(strings.ReplaceAll(log.String(), "\n", ""), "\x1b\r\x07") {
				t.Error("a control character is in the log")
			}
		})
	}
}

// TestNobodySendsDescriptorsToWhoTakesNone: neither to an owner, whether it has accepted
// or not, nor to a controller.
func TestNobodySendsDescriptorsToWhoTakesNone(t *testing.T) {
	leak.Check(t)
	fds := fdsOf(t, 1)
	refuses, peer := pair(t)
	defer refuses.Close()
	defer peer.Close()
	refuses.RefuseDescriptors()
	if err := peer.Send(inTime(t), []byte("x"), fds...); !errors.Is(err, syscall.EPERM) {
		t.Skipf("this kernel has no SO_PASSRIGHTS, which is of Linux 6.16: sending gives %v", err)
	}
	p := newOwner(t).serve()
	client := p.dial()
	defer client.Close()
	if err := client.Send(inTime(t), []byte("x"), fds...); !errors.Is(err, syscall.EPERM) {
		t.Errorf("sending one to an owner gives %v, want EPERM", err)
	}
	server, controller := pair(t)
	defer server.Close()
	asked := make(chan error, 1) // one result
	go func() {
		_, err := handoff.QueryStatus(inTime(t), controller)
		asked <- err
	}()
	if _, _, err := server.Receive(inTime(t), 0); err != nil { // its Hello
		t.Fatal(err)
	}
	if err := server.Send(inTime(t), []byte("x"), fds...); !errors.Is(err, syscall.EPERM) {
		t.Errorf("sending one to a controller gives %v, want EPERM", err)
	}
	_ = server.Close()
	if err := <-asked; err == nil {
		t.Error("a status came of nothing")
	}
}

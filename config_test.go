//go:build unix

package crossfade_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/leak"
)

func TestBadConfig(t *testing.T) {
	dir := socketDir(t)
	for _, test := range []struct {
		name string
		cfg  crossfade.Config
		text string
	}{
		{"negative DialTimeout", crossfade.Config{DialTimeout: -1}, "Config.DialTimeout: -1ns"},
		{"negative Wait", crossfade.Config{Wait: -time.Second}, "Config.Wait: -1s"},
		{"negative ReadyTimeout", crossfade.Config{ReadyTimeout: -1}, "Config.ReadyTimeout"},
		{"negative MaxReadyTimeout", crossfade.Config{MaxReadyTimeout: -1}, "Config.MaxReadyTimeout"},
		{"negative CommitTimeout", crossfade.Config{CommitTimeout: -1}, "Config.CommitTimeout"},
		{"negative DrainTimeout", crossfade.Config{DrainTimeout: -1}, "Config.DrainTimeout"},
		{"negative Probation", crossfade.Config{Probation: -1}, "Config.Probation"},
		{"negative MaxProbation", crossfade.Config{MaxProbation: -1}, "Config.MaxProbation"},
		{"MaxProbation below Probation", crossfade.Config{Probation: time.Hour, MaxProbation: time.Minute}, "Config.MaxProbation: 1m0s is below Probation, 1h0m0s"},
		{"unknown AtProbationEnd", crossfade.Config{AtProbationEnd: 7}, "Config.AtProbationEnd: probation end 7"},
		{"Suspend alone", crossfade.Config{Suspend: func(context.Context) error { return nil }}, "Suspend and Resume come together"},
		{"negative MaxDraining", crossfade.Config{MaxDraining: -1}, "Config.MaxDraining: -1 is negative"},
		{"more to drain than a successor is told of", crossfade.Config{MaxDraining: 257}, "Config.MaxDraining: 257 are more than the 256"},
		{"MaxReadyTimeout below ReadyTimeout", crossfade.Config{ReadyTimeout: time.Hour, MaxReadyTimeout: time.Minute}, "Config.MaxReadyTimeout: 1m0s is below ReadyTimeout, 1h0m0s"},
		{"MaxReadyTimeout below the default ReadyTimeout", crossfade.Config{MaxReadyTimeout: time.Second}, "is below ReadyTimeout, 1m0s"},
		{"long Instance", crossfade.Config{Instance: strings.Repeat("x", 201)}, "Config.Instance: "},
		{"unprintable Instance", crossfade.Config{Instance: "a\tb"}, "Config.Instance: "},
		{"long Socket", crossfade.Config{Socket: filepath.Join(dir, strings.Repeat("x", 120))}, "Config.Socket: "},
		{"unknown SocketGroup", crossfade.Config{Socket: filepath.Join(dir, "c"), SocketGroup: "no such group"}, "no such group"},
		{"PIDFile in no directory", crossfade.Config{PIDFile: filepath.Join(dir, "none", "pid")}, "Config.PIDFile: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			before := test.cfg
			upg, err := crossfade.New(t.Context(), &test.cfg)
			if err == nil {
				upg.Stop()
			}
			if err == nil || !strings.HasPrefix(err.Error(), "crossfade: ") || !strings.Contains(err.Error(), test.text) {
				t.Errorf("New returned %v, want %q", err, test.text)
			}
			if test.cfg.Socket != before.Socket || test.cfg.Instance != before.Instance || test.cfg.Logger != before.Logger {
				t.Error("New has changed the caller's Config")
			}
		})
	}
}

func TestNilConfig(t *testing.T) {
	leak.Check(t)
	upg, err := crossfade.New(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer upg.Stop()
	if err := upg.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if upg.State() != handoff.StateOwner || upg.HasPredecessor() {
		t.Errorf("the state is %v", upg.State())
	}
	<-upg.Settled() // at once
}

// TestDisabled: plain listeners, nothing on disk, and every method has its
// answer.
func TestDisabled(t *testing.T) {
	leak.Check(t)
	dir := socketDir(t)
	upg := newUpgrader(t, &crossfade.Config{Disabled: true, Socket: filepath.Join(dir, "control"), PIDFile: filepath.Join(dir, "pid")})
	ln, err := upg.Listen(t.Context(), "web", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, ok := ln.(*net.TCPListener); !ok {
		t.Errorf("Listen returned a %T", ln)
	}
	local, err := upg.Listen(t.Context(), "local", "unix", filepath.Join(dir, "local"))
	if err != nil {
		t.Fatal(err)
	}
	if err := local.Close(); err != nil {
		t.Error(err)
	}
	wantMissing(t, filepath.Join(dir, "local"))
	pc, err := upg.ListenPacket(t.Context(), "dns", "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if _, err := upg.Fds().Listener("web"); !errors.Is(err, crossfade.ErrNotInherited) {
		t.Errorf("Listener: %v", err)
	}
	upg.Progress("nothing", time.Hour)
	if err := upg.Ready(t.Context()); err != nil {
		t.Errorf("Ready: %v", err)
	}
	if err := upg.Upgrade(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Upgrade: %v", err)
	}
	if err := upg.WaitForPredecessor(t.Context()); err != nil {
		t.Errorf("WaitForPredecessor: %v", err)
	}
	<-upg.Settled()
	if upg.HasPredecessor() || upg.Err() != nil || upg.Status() == nil {
		t.Error("HasPredecessor, Err or Status")
	}
	wantMissing(t, filepath.Join(dir, "control"))
	wantMissing(t, filepath.Join(dir, "pid"))
	select {
	case <-upg.Exit():
		t.Error("Exit is closed before Stop")
	default:
	}
	upg.Stop()
	<-upg.Exit()
	if err := upg.Err(); !errors.Is(err, crossfade.ErrStopped) {
		t.Errorf("Err is %v", err)
	}
	if state := upg.State(); state != handoff.StateOut {
		t.Errorf("after Stop the state is %v", state)
	}
	// Disabled, a second service may live at the same path.
	newUpgrader(t, &crossfade.Config{Disabled: true, Socket: filepath.Join(dir, "control")})
}

func TestStatus(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{
		Socket: d.path("control"), Instance: "blue", BuildVersion: "v1.2", Epoch: 3, ReadyTimeout: time.Hour,
		Sockets: []socketSpec{tcpSpec("web"), {Name: "dns", Network: "udp", Address: "127.0.0.1:0"}, {Name: "local", Network: "unix", Address: d.path("local")}},
	}
	old := d.launch(spec)
	address := old.address("web")
	old.address("local")
	s := old.status()
	if s.Ready || s.State != handoff.StateOwner || s.Attempt != nil || s.LastFailure != nil || len(s.Warnings) != 0 {
		t.Errorf("before Ready: %+v", s)
	}
	if want := (handoff.Process{Instance: "blue", BuildVersion: "v1.2", Epoch: 3, Generation: 1, PID: old.pid}); s.Process != want {
		t.Errorf("the process is %+v, want %+v", s.Process, want)
	}
	want := handoff.DescriptorStatus{Name: "web", Kind: handoff.KindListener, Network: "tcp", Address: address, Origin: handoff.OriginAdded}
	if len(s.Descriptors) != 3 || s.Descriptors[2] != want {
		t.Errorf("the descriptors are %+v, want the last to be %+v", s.Descriptors, want)
	}
	if got := names(old); !slices.IsSorted(got) {
		t.Errorf("the descriptors are not sorted: %q", got)
	}
	old.do("ready")
	if s := old.status(); !s.Ready || s.State != handoff.StateOwner {
		t.Errorf("after Ready: %+v", s)
	}

	candidate := spec
	candidate.Instance, candidate.Sockets, candidate.Linger = "green", candidate.Sockets[:1], true
	next := d.launch(candidate)
	next.address("web")
	// It has received everything before its predecessor knows that.
	awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.Attempt != nil && s.Attempt.Step == "Ready" })
	s = old.status()
	switch a := s.Attempt; {
	case s.State != handoff.StateOffering || a == nil:
		t.Fatalf("during the attempt: %+v", s)
	case a.Successor.Instance != "green" || a.Successor.Generation != 2 || a.Successor.PID != next.pid:
		t.Errorf("the successor is %+v", a.Successor)
	case a.Began.Before(s.Since.Add(-time.Minute)) || a.Deadline.Before(a.Began.Add(50*time.Minute)):
		t.Errorf("the attempt is %+v", a)
	}
	if s := next.status(); s.State != handoff.StateCandidate || s.Process.Generation != 2 {
		t.Errorf("the candidate is %+v", s)
	}
	wantNames(t, next, "dns unclaimed", "local unclaimed", "web inherited")
	next.do("stop")
	old.awaitFailure()
	s = old.status()
	if f := s.LastFailure; s.State != handoff.StateOwner || s.Attempt != nil || f == nil ||
		f.Successor.Instance != "green" || f.Step != "Ready" || !strings.Contains(f.Reason, "stopped") {
		t.Errorf("after the attempt: %+v, last failure %+v", s, s.LastFailure)
	}
	if s := next.status(); s.State != handoff.StateOut {
		t.Errorf("the stopped candidate is %v", s.State)
	}
	if s := next.status(); len(s.Descriptors) != 0 {
		t.Errorf("the stopped candidate has %v", s.Descriptors)
	}
}

// TestDrainContext needs no socket, so its time is not real.
func TestDrainContext(t *testing.T) {
	upgrader := func(limit time.Duration) *crossfade.Upgrader {
		upg, err := crossfade.New(context.Background(), &crossfade.Config{Disabled: true, DrainTimeout: limit, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return upg
	}
	run := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	run("ends DrainTimeout after Exit", func(t *testing.T) {
		upg := upgrader(time.Minute)
		before, cancel := upg.DrainContext(context.Background())
		defer cancel()
		<-time.After(time.Hour) // before Exit no time counts
		if before.Err() != nil {
			t.Fatal("it ended before Exit")
		}
		upg.Stop()
		exited := time.Now()
		<-time.After(20 * time.Second)
		after, cancel2 := upg.DrainContext(context.Background())
		defer cancel2()
		if deadline, ok := after.Deadline(); !ok || deadline.Sub(exited) != time.Minute {
			t.Errorf("asked for after Exit, its deadline is %v after it", deadline.Sub(exited))
		}
		for _, ctx := range []context.Context{before, after} {
			<-ctx.Done()
			if took := time.Since(exited); took != time.Minute {
				t.Errorf("it ended %v after Exit", took)
			}
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) || !strings.Contains(cause.Error(), "DrainTimeout, 1m0s") {
				t.Errorf("the cause is %v", cause)
			}
		}
		late, cancel3 := upg.DrainContext(context.Background())
		defer cancel3()
		<-late.Done()
		if took := time.Since(exited); took != time.Minute {
			t.Errorf("asked for after the end, it ended %v after Exit", took)
		}
	})
	run("never ends without a limit", func(t *testing.T) {
		upg := upgrader(0)
		ctx, cancel := upg.DrainContext(context.Background())
		upg.Stop()
		<-time.After(1000 * time.Hour)
		if ctx.Err() != nil {
			t.Error("it ended")
		}
		cancel()
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			t.Errorf("the cause is %v", cause)
		}
	})
	run("ends with its parent", func(t *testing.T) {
		upg := upgrader(time.Hour)
		defer upg.Stop()
		parent, end := context.WithCancelCause(context.Background())
		ctx, cancel := upg.DrainContext(parent)
		defer cancel()
		why := errors.New("a second signal")
		end(why)
		<-ctx.Done()
		if cause := context.Cause(ctx); cause != why {
			t.Errorf("the cause is %v", cause)
		}
	})
	run("carries the parent's values", func(t *testing.T) {
		upg := upgrader(0)
		defer upg.Stop()
		type key struct{}
		ctx, cancel := upg.DrainContext(context.WithValue(context.Background(), key{}, "v"))
		defer cancel()
		if ctx.Value(key{}) != "v" {
			t.Error("the value is lost")
		}
	})
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// The points at which something can be done.
const (
	pointStart    = "start"    // before the owner is looked for
	pointOffered  = "offered"  // everything was received, and Ready has not been called
	pointOwns     = "owns"     // Ready has returned nil, and no request was answered
	pointHealth   = "health"   // somebody asks for /health
	pointSuspend  = "suspend"  // Config.Suspend, with -exclusive
	pointDraining = "draining" // Exit is closed
)

var points = []string{pointStart, pointOffered, pointOwns, pointHealth, pointSuspend, pointDraining}

// actions are what can be done, by name. An error is the end of what goes on at the
// point.
var actions = map[string]func(context.Context) error{
	"exit0": func(context.Context) error {
		os.Exit(0) //nolint:revive // like a program that believes it is done: there is no last word
		return nil
	},
	"exit1": func(context.Context) error { return errors.New("failing because of -do exit1") },
	"fail":  func(context.Context) error { return errors.New("failing because of -do fail") },
	// As by the kernel, for want of memory.
	"crash": func(context.Context) error { return errors.Join(syscall.Kill(os.Getpid(), syscall.SIGKILL), never()) },
	// Goes on when somebody sends SIGCONT.
	"freeze": func(context.Context) error { return freeze() },
	// Only SIGKILL ends it.
	"hang": func(context.Context) error { return never() },
	// Goes on when somebody sends SIGUSR1; a signal to stop, the end of the attempt and
	// that of a drain end it.
	"hold": hold,
}

// faults are actions by the points at which they are done, in the order of the
// command line.
type faults map[string][]string

// String implements flag.Value.
func (f *faults) String() string { return fmt.Sprint(map[string][]string(*f)) }

// Set implements flag.Value.
func (f *faults) Set(s string) error {
	action, point, _ := strings.Cut(s, "@")
	if actions[action] == nil || !slices.Contains(points, point) {
		return fmt.Errorf("not one of %q, @ and one of %q", slices.Sorted(maps.Keys(actions)), points)
	}
	if *f == nil {
		*f = make(faults)
	}
	(*f)[point] = append((*f)[point], action)
	return nil
}

// at does what is to be done at a point.
func (f faults) at(ctx context.Context, point string) error {
	for _, action := range f[point] {
		slog.Info("doing", "action", action, "at", point, "pid", os.Getpid())
		if err := actions[action](ctx); err != nil {
			return err
		}
	}
	return nil
}

// freeze stops the process. The signal goes to the very thread that runs this: one for
// the process may reach another thread first, and this one would go on for a while.
func freeze() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return syscall.Tgkill(os.Getpid(), syscall.Gettid(), syscall.SIGSTOP)
}

func never() error { select {} }

func hold(ctx context.Context) error {
	release := make(chan os.Signal, 1) // signal.Notify does not wait
	signal.Notify(release, syscall.SIGUSR1)
	defer signal.Stop(release)
	slog.Info("holding", "pid", os.Getpid())
	select {
	case <-release:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("held when told to end: %w", context.Cause(ctx))
	}
}

package exclusive_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/exclusive"
)

const limit = 10 * time.Second

// program is what a process does with the resource, step by step.
type program struct {
	*exclusive.Resource
	t       *testing.T
	exit    chan struct{}
	steps   []string
	suspend func(context.Context) error // nil: succeeds at once
	resume  func(context.Context) error
}

// newProgram runs test in a bubble, with a resource whose hooks note their steps.
func newProgram(t *testing.T, test func(p *program)) {
	synctest.Test(t, func(t *testing.T) {
		p := &program{t: t, exit: make(chan struct{})}
		hook := func(name string, do *func(context.Context) error) func(context.Context) error {
			return func(ctx context.Context) (err error) {
				if *do != nil {
					err = (*do)(ctx)
				}
				if err != nil {
					name += " failed"
				}
				p.note(name)
				return err
			}
		}
		p.Resource = exclusive.New(
			func(ctx context.Context) error { return hook("suspend", &p.suspend)(ctx) },
			func(ctx context.Context) error { return hook("resume", &p.resume)(ctx) },
			limit, slog.New(slog.DiscardHandler), p.exit)
		test(p)
		close(p.exit)
	})
}

func (p *program) note(step string) { p.steps = append(p.steps, step) }

func (p *program) accept() { p.note("accept") }

func (p *program) letGo(ctx context.Context) error {
	return p.LetGo(ctx, func() { p.note("pause") })
}

// want compares what was done since the last call.
func (p *program) want(steps ...string) {
	p.t.Helper()
	synctest.Wait()
	if !slices.Equal(p.steps, steps) {
		p.t.Errorf("the steps are %q, want %q", p.steps, steps)
	}
	p.steps = nil
}

func (p *program) mustLetGo() {
	p.t.Helper()
	if err := p.letGo(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

func TestOrder(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		p.want("accept") // the program opens it itself, nothing was let go of
		p.mustLetGo()
		p.want("pause", "suspend")
		p.mustLetGo()
		p.want("pause") // it has let go already
		p.TakeBack(p.accept)
		p.want("resume", "accept")
	})
}

func TestNeverHad(t *testing.T) {
	newProgram(t, func(p *program) { // a candidate that is told to stop
		p.mustLetGo()
		p.want("pause")
	})
}

func TestWithoutHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := exclusive.New(nil, nil, limit, slog.New(slog.DiscardHandler), nil)
		accepted, paused := 0, 0
		x.TakeBack(func() { accepted++ })
		if err := x.LetGo(t.Context(), func() { paused++ }); err != nil || x.Guards() {
			t.Errorf("letting go of nothing: %v, guards %t", err, x.Guards())
		}
		x.TakeBack(func() { accepted++ })
		if accepted != 2 || paused != 1 {
			t.Errorf("accepted %d times and paused %d times, want 2 and 1", accepted, paused)
		}
	})
}

func TestSuspendFails(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		errLocked := errors.New("still locked")
		p.suspend = func(context.Context) error { return errLocked }
		if err := p.letGo(p.t.Context()); !errors.Is(err, errLocked) {
			t.Errorf("letting go: %v", err)
		}
		p.want("accept", "pause", "suspend failed")
		p.TakeBack(p.accept)
		p.want("accept") // it still has it, as the hook's contract says
	})
}

func TestResumeIsTriedAgain(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		p.mustLetGo()
		failures := 3
		p.resume = func(context.Context) error {
			if failures--; failures >= 0 {
				return errors.New("the successor still has it")
			}
			return nil
		}
		p.want("accept", "pause", "suspend")
		p.TakeBack(p.accept)
		p.want("resume failed")
		if w := p.Warning(); !strings.Contains(w, "the successor still has it") {
			t.Errorf("the warning is %q", w)
		}
		<-time.After(time.Minute)
		p.want("resume failed", "resume failed", "resume", "accept")
		if w := p.Warning(); w != "" {
			t.Errorf("the warning stays: %q", w)
		}
	})
}

// A Resume that takes its time is ended by the next handoff, which finds that there
// is nothing to let go of.
func TestLetGoEndsAResume(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		p.mustLetGo()
		p.resume = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		p.want("accept", "pause", "suspend")
		go p.TakeBack(p.accept)
		synctest.Wait()
		p.mustLetGo()
		p.want("resume failed", "pause")
		<-time.After(time.Minute)
		p.want() // nothing is taken back that is to stay away
		if w := p.Warning(); w != "" {
			t.Errorf("the warning stays: %q", w)
		}
	})
}

// A Resume that does not heed its context holds the handoff up no longer than that
// one lasts.
func TestLetGoGivesUp(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		p.mustLetGo()
		release := make(chan struct{})
		p.resume = func(context.Context) error { <-release; return nil }
		p.want("accept", "pause", "suspend")
		go p.TakeBack(p.accept)
		synctest.Wait()
		ctx, cancel := context.WithTimeoutCause(p.t.Context(), time.Second, &handoff.TimeoutError{For: "the last page", Limit: time.Second})
		defer cancel()
		if err := p.letGo(ctx); !errors.Is(err, handoff.ErrTimeout) || !strings.Contains(err.Error(), "waiting for the end of Config.Resume") {
			t.Errorf("letting go: %v", err)
		}
		p.want("pause")
		close(release)
		p.want("resume", "accept")
	})
}

func TestResumeTooLong(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		p.mustLetGo()
		first := true
		p.resume = func(ctx context.Context) error {
			if first {
				first = false
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		began := time.Now()
		go p.TakeBack(p.accept)
		<-time.After(limit + time.Millisecond)
		if w := p.Warning(); !strings.Contains(w, "no end of Config.Resume within 10s") {
			t.Errorf("after %v the warning is %q", time.Since(began), w)
		}
		<-time.After(time.Minute)
		p.want("accept", "pause", "suspend", "resume failed", "resume", "accept")
	})
}

// Nothing is taken back for a process that is out.
func TestOut(t *testing.T) {
	newProgram(t, func(p *program) {
		p.TakeBack(p.accept)
		p.mustLetGo()
		p.resume = func(context.Context) error { return errors.New("no") }
		p.TakeBack(p.accept)
		p.want("accept", "pause", "suspend", "resume failed")
		close(p.exit)
		<-time.After(time.Minute)
		p.want()
		p.exit = make(chan struct{}) // for the end of the test
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade"
)

// This file finds out whether the new owner is healthy.

const (
	healthInterval = 500 * time.Millisecond // between two tries
	requestTimeout = 5 * time.Second        // of one request
)

// health is a check that is tried until it passes.
type health struct {
	check string // a URL or a shell command
	env   []string
	out   io.Writer // the command's

	mu   sync.Mutex
	last error // of the last try that has failed
}

func newHealth(check, socket string, owner *crossfade.Process, out io.Writer) *health {
	return &health{check: check, out: out, env: append(foreignEnviron(),
		"CROSSFADE_SOCKET="+socket, "CROSSFADE_INSTANCE="+owner.Instance, "CROSSFADE_GENERATION="+strconv.FormatUint(owner.Generation, 10))}
}

// pass returns true when a try has passed, and false when ctx ends first.
func (h *health) pass(ctx context.Context) bool {
	for {
		err := h.try(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false // which has ended the try, so it tells nothing
		}
		h.mu.Lock()
		h.last = err
		h.mu.Unlock()
		pause(ctx, healthInterval)
	}
}

// why says how the last try has failed.
func (h *health) why() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		return "it has not answered"
	}
	return h.last.Error()
}

func isURL(check string) bool {
	return strings.HasPrefix(check, "http://") || strings.HasPrefix(check, "https://")
}

func (h *health) try(ctx context.Context) error {
	if isURL(h.check) {
		return h.get(ctx)
	}
	return h.run(ctx)
}

// get asks on a connection of its own: one that is kept may belong to the
// predecessor.
func (h *health) get(ctx context.Context) error {
	client := &http.Client{
		// No proxy: what it answers is not the service's word. The same for a
		// redirection, which is no 2xx.
		Transport:     &http.Transport{DisableKeepAlives: true},
		Timeout:       requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, h.check, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s", h.check, response.Status)
	}
	return nil
}

// run runs the command. It may take as long as there is time. What is left of its group
// then is ended: it would hold the output open, for which a pipeline waits.
func (h *health) run(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", h.check)
	cmd.Env, cmd.Stdout, cmd.Stderr = h.env, h.out, h.out
	ownGroup(cmd)
	cmd.Cancel = func() error {
		killGroup(cmd.Process.Pid)
		return nil
	}
	cmd.WaitDelay = killGrace
	err := cmd.Run()
	if cmd.ProcessState != nil {
		killLeftovers(cmd.Process.Pid)
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return fmt.Errorf("%q ended with %s", h.check, exit.ProcessState)
	}
	return err
}

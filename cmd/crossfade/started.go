package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// This file is the process that run starts.

// started is a process that this one has started, and that may outlive it.
type started struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has been reaped
	gone   time.Time     // when that was
	sent   string        // the last signal that this process has sent it to end it; empty for none
}

// startDetached starts program in a session of its own, with the descriptors 0, 1
// and 2 and no other.
func startDetached(program string, args, env []string, stdout, stderr *os.File) (*started, error) {
	if err := sealDescriptors(); err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: program, Args: args, Env: env, Stdout: stdout, Stderr: stderr}
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &started{cmd: cmd, exited: make(chan struct{})}
	go func() { // ends with the process, which may be after this one
		_ = cmd.Wait() // the state says it all
		p.gone = time.Now()
		close(p.exited)
	}()
	return p, nil
}

// foreignEnviron is the environment less what belongs to a handoff. What is said of the
// directory is true for whoever uses it.
func foreignEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "CROSSFADE_") && !strings.HasPrefix(kv, "CROSSFADE_TRUST_DIRECTORY=")
	})
}

func (p *started) pid() int { return p.cmd.Process.Pid }

func (p *started) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// exitedBefore reports whether what was looked for from at on was without it.
func (p *started) exitedBefore(at time.Time) bool { return p.hasExited() && p.gone.Before(at) }

// await reports whether the process has exited, after at most d.
func (p *started) await(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return p.hasExited()
	}
}

// How long a process may take to exit: by itself, when it has been told by its
// predecessor; after SIGTERM; after SIGKILL, where only the kernel can hold it up.
const (
	exitGrace = 3 * time.Second
	termGrace = 5 * time.Second
	killGrace = 5 * time.Second
)

// end has the process exit, and what it has started in its session's first process
// group with it. told says that it has heard of its failure, and may do so by itself.
func (p *started) end(told bool) {
	if !p.hasExited() && (!told || !p.await(exitGrace)) {
		p.sent = "SIGTERM"
		terminateGroup(p.pid())
		p.await(termGrace)
	}
	p.kill()
}

// kill ends the process at once, or what it has left in its group.
func (p *started) kill() {
	if p.hasExited() {
		killLeftovers(p.pid())
		return
	}
	p.sent = "SIGKILL"
	killGroup(p.pid())
	p.await(killGrace)
}

// status is how the process has exited, as JSON has it: a number, or which signal it
// was; nil if it has not.
func (p *started) status() any {
	if !p.hasExited() {
		return nil
	}
	if code := p.cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	return p.cmd.ProcessState.String()
}

// fate says the same in a sentence, and whether it was this process that wished so.
func (p *started) fate() string {
	if !p.hasExited() {
		return "it has not exited"
	}
	state := p.cmd.ProcessState
	how := "it exited with " + strings.Replace(state.String(), "exit status", "status", 1)
	switch exited := state.ExitCode() >= 0; {
	case exited && p.sent == "":
		return how
	case exited:
		return how + " when run had sent it " + p.sent
	case p.sent != "":
		return "run has ended it by " + p.sent
	}
	return "it was ended by a signal (" + strings.TrimPrefix(state.String(), "signal: ") + ")"
}

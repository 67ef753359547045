//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// detach gives the process a session of its own: no terminal, no signal that is meant
// for this process's group.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

// ownGroup gives the process a group of its own, so that what it starts can be ended
// with it.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// Errors of both are that there is nobody left.
func terminateGroup(pid int) { _ = syscall.Kill(-pid, syscall.SIGTERM) }
func killGroup(pid int)      { _ = syscall.Kill(-pid, syscall.SIGKILL) }

// killLeftovers ends what is left of the group of a process that has been waited for.
// As long as the group has members nobody gets its number: if somebody has it, there
// are none, and the number is a stranger's.
func killLeftovers(pid int) {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		killGroup(pid)
	}
}

// sealListed marks the descriptors that a directory lists close-on-exec, from 3 on.
func sealListed(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

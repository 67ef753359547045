//go:build !unix

package main

import (
	"errors"
	"os/exec"
)

// Without unix sockets that carry descriptors there is no handoff, hence nothing that
// could be started for one.

func detach(*exec.Cmd)       {}
func ownGroup(*exec.Cmd)     {}
func terminateGroup(int)     {}
func killGroup(int)          {}
func killLeftovers(int)      {}
func sealDescriptors() error { return errors.ErrUnsupported }

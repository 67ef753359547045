//go:build !linux

package crossfade

import "syscall"

// asSibling: what is started is a child.
func asSibling(attr *syscall.SysProcAttr, _ *int) (*syscall.SysProcAttr, bool) { return attr, false }

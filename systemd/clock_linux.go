package systemd

import (
	"os"
	"syscall"
	"time"
	"unsafe"
)

// monotonic reads CLOCK_MONOTONIC, clock_gettime(2), which package time reads too
// but does not tell.
func monotonic() (time.Duration, error) {
	const clockMonotonic = 1
	var now syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("clock_gettime", errno)
	}
	return time.Duration(now.Nano()), nil
}

package main

import (
	"math"

	"golang.org/x/sys/unix"
)

// sealDescriptors keeps what this process has inherited, such as a script's lock, from
// the processes that it starts: they would hold it for as long as they live.
func sealDescriptors() error {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	return sealListed("/proc/self/fd") // Linux before 5.11, or a filter of system calls
}

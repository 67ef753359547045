package scm

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// recvmsgCloseOnExec holds the fork lock: macOS has no flag that makes received
// descriptors close-on-exec. The read does not block, so the lock is held
// briefly.
func recvmsgCloseOnExec(fd int, p, control []byte) (n, controlLen, flags int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, controlLen, flags, err = recvRaw(fd, p, control, 0)
	if err != nil || controlLen == 0 {
		return n, controlLen, flags, err
	}
	messages, parseErr := unix.ParseSocketControlMessage(control[:controlLen])
	if parseErr != nil {
		return n, controlLen, flags, nil // reported by the caller, who parses again
	}
	for _, m := range messages {
		nums, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, num := range nums {
			unix.CloseOnExec(num)
		}
	}
	return n, controlLen, flags, nil
}

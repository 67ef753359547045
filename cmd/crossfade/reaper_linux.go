package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// adoptOrphans has the descendants of this process become its children when their
// parents end, PR_SET_CHILD_SUBREAPER(2const), Linux 3.4. Process 1 has them anyway.
func adoptOrphans() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// parentOf returns the parent of a process, 0 if that is not in this pid namespace.
func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	parent, err := parseParent(stat)
	if err != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return parent, nil
}

// parseParent finds the parent in the text of that file.
func parseParent(stat []byte) (int, error) {
	// The name in parentheses may have any character, proc_pid_stat(5).
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0, fmt.Errorf("it says %q", stat)
	}
	return strconv.Atoi(fields[1])
}

// pidNamespaces: the number that a process says it has may be one of another name space.
const pidNamespaces = true

// wasGiven reports whether a process was started with this instance in its environment.
// Of a number that a process says it has this tells whether it is one of this name space.
func wasGiven(pid int, instance string) bool {
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for kv := range strings.SplitSeq(string(environ), "\x00") {
		if kv == "CROSSFADE_INSTANCE="+instance {
			return true
		}
	}
	return false
}

// handle names a process and never another, whatever becomes of its number: a
// pidfd, Linux 5.3.
type handle struct{ pidfd *os.File }

// openHandle returns the handle of whoever has the number now. Whether that is who
// was meant is to be looked at afterwards. An error that matches
// [errors.ErrUnsupported] says that there are no handles here.
func openHandle(pid int) (*handle, error) {
	fd, err := unix.PidfdOpen(pid, 0) // close-on-exec by itself
	if err != nil {
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // EPERM: a filter of system calls
			err = errors.Join(err, errors.ErrUnsupported)
		}
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	// A nonblocking descriptor is one that os.NewFile gives to the poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &handle{os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (h *handle) signal(sig syscall.Signal) error {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var signalErr error
	if err := raw.Control(func(fd uintptr) { signalErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(signalErr, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", signalErr)
}

// exited reports whether the process has ended, reaped or not.
func (h *handle) exited() bool {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	_ = raw.Control(func(fd uintptr) { ended = readable(fd) }) // closed: not known
	return ended
}

// wait returns nil when the process has ended, and an error after close.
func (h *handle) wait() error {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(readable)
}

func (h *handle) close() { h.pidfd.Close() }

// readable is what a pidfd is from the end of its process on, pidfd_open(2).
func readable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLIN != 0
}

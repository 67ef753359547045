package scm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func openPidfd(pid int) (int, error) {
	num, err := unix.PidfdOpen(pid, 0) // close-on-exec by itself
	switch {
	case errors.Is(err, unix.ENOSYS):
		err = errors.Join(err, errors.ErrUnsupported)
	case errors.Is(err, unix.ESRCH):
		err = errors.Join(err, os.ErrProcessDone)
	}
	return num, os.NewSyscallError("pidfd_open", err)
}

// pidfdID looks at the file system first: before pidfs all pidfds shared one
// inode.
func pidfdID(fd int) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, os.NewSyscallError("fstatfs", err)
	}
	if fs.Type != unix.PID_FS_MAGIC || strconv.IntSize == 32 {
		return 0, fmt.Errorf("no number for a pidfd: %w", errors.ErrUnsupported)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Ino, nil
}

// checkPidfd sends no signal. Every other error than EBADF is about the process.
func checkPidfd(fd int) error {
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err == unix.EBADF {
		return ErrNotProcess
	}
	return nil
}

func signal(fd int, s syscall.Signal) error {
	own, err := namesSelf(fd)
	switch {
	case err != nil:
		return err
	case own:
		return fmt.Errorf("the pidfd is this process's own: %w", os.ErrPermission)
	}
	err = unix.PidfdSendSignal(fd, s, nil, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return os.ErrProcessDone
	case errors.Is(err, unix.EBADF):
		return ErrNotProcess
	case errors.Is(err, unix.EINVAL): // nothing else is wrong with the arguments
		return fmt.Errorf("it is in another pid namespace, so only somebody there or above can end it: %w",
			os.NewSyscallError("pidfd_send_signal", err))
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// namesSelf reports whether a pidfd is one of this process: a service may have
// been handed over within one. Its number is found in fdinfo, proc(5), and
// belongs to this process alone as long as this one lives.
func namesSelf(fd int) (bool, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(info)) {
		if pid, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strings.TrimSpace(pid) == strconv.Itoa(os.Getpid()), nil
		}
	}
	return false, ErrNotProcess
}

// connections asks about every descriptor. The numbers belong to others, who may
// close and reuse them meanwhile; nothing that is asked changes anything.
func connections(listeners []Identity) ([]Connection, error) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var found []Connection
	seen := make(map[uint64]bool)
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if c, ok := connectionOf(fd, listeners); ok {
			if id := cookie(fd); id == 0 || !seen[id] {
				seen[id] = true
				found = append(found, c)
			}
		}
	}
	return found, nil
}

// connectionOf begins with what is cheapest and fails for most descriptors.
func connectionOf(fd int, listeners []Identity) (Connection, bool) {
	local, err := unix.Getsockname(fd)
	if err != nil {
		return Connection{}, false
	}
	c := Connection{Local: address(local)}
	sockType, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return Connection{}, false
	}
	domain, protocol := domainAndProtocol(fd, local)
	c.Network = network(domain, sockType, protocol)
	for _, l := range listeners {
		if !acceptedFrom(l, c.Network, c.Local) {
			continue
		}
		remote, err := unix.Getpeername(fd)
		if err != nil {
			return Connection{}, false // the listener itself, or a peer that is gone
		}
		c.Remote = address(remote)
		return c, true
	}
	return Connection{}, false
}

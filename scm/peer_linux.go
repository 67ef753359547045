package scm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

func peer(fd int) (*Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	return &Peer{
		UID:    cred.Uid,
		GID:    cred.Gid,
		PID:    int(cred.Pid),
		Groups: peerGroups(fd),
		pidfd:  peerPidfd(fd),
	}, nil
}

// peerGroups asks twice: the kernel says how much room it needs with ERANGE.
func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 64)
	for range 2 {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4]
		case errno == unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil
		}
	}
	return nil
}

// peerPidfd returns nil where the kernel gives none. One that has been reaped
// already gives an error on some kernels, but so do other things: unknown is the
// safe answer, since the end of the stream tells as well.
func peerPidfd(fd int) *os.File {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return nil
	}
	unix.CloseOnExec(pidfd)
	// A nonblocking descriptor is one that os.NewFile gives to the poller.
	if err := unix.SetNonblock(pidfd, true); err != nil {
		_ = unix.Close(pidfd)
		return nil
	}
	return os.NewFile(uintptr(pidfd), "pidfd")
}

// awaitExit returns nil when the process has exited, or an error once pidfd is
// closed. A pidfd polls readable at exit, pidfd_open(2), and is not read.
func awaitExit(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0 && p[0].Revents&unix.POLLIN != 0
	})
}

// executable finds the process by its pidfd: the number that /proc has for it is in
// fdinfo, proc(5), and is its own as long as it is there again afterwards. The number
// of SO_PEERCRED would not do where /proc is another pid namespace's.
func executable(pidfd *os.File) (string, error) {
	pid, err := pidOf(pidfd)
	if err != nil {
		return "", err
	}
	path, err := os.Readlink("/proc/" + pid + "/exe")
	again, goneErr := pidOf(pidfd)
	switch {
	case goneErr != nil:
		return "", goneErr
	case again != pid:
		return "", os.ErrProcessDone
	case errors.Is(err, os.ErrNotExist): // it has exited and was not reaped
		return "", os.ErrProcessDone
	case err != nil:
		return "", err
	}
	return path, nil
}

func pidOf(pidfd *os.File) (pid string, err error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return "", err
	}
	var info []byte
	var failed error
	err = raw.Control(func(fd uintptr) {
		info, failed = os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(fd)))
	})
	if err := errors.Join(err, failed); err != nil {
		return "", err
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid = strings.TrimSpace(value)
		}
	}
	switch pid {
	case "":
		return "", fmt.Errorf("fdinfo of a pidfd: %w", errors.ErrUnsupported)
	case "-1", "0": // it has exited, or is in no namespace that this one can see
		return "", os.ErrProcessDone
	}
	return pid, nil
}

func overflowUID(uid uint32) bool { return uid == readOverflowUID() }

func overflowGID(gid uint32) bool { return gid == readOverflowGID() }

var (
	readOverflowUID = sync.OnceValue(func() uint32 { return readOverflow("/proc/sys/kernel/overflowuid") })
	readOverflowGID = sync.OnceValue(func() uint32 { return readOverflow("/proc/sys/kernel/overflowgid") })
)

// readOverflow falls back to the kernel's default where /proc is not mounted.
func readOverflow(path string) uint32 {
	const byDefault = 65534
	text, err := os.ReadFile(path)
	if err != nil {
		return byDefault
	}
	number, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return byDefault
	}
	return uint32(number)
}

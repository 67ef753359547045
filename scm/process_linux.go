package scm

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pidfdInfo is the first version of struct pidfd_info in linux/pidfd.h. The kernel
// fills in what it has of the mask that was asked for.
type pidfdInfo struct {
	mask, _                         uint64
	_, _, _, _, _, _, _, _, _, _, _ uint32
	exitCode                        int32
}

const (
	// pidfdGetInfo is PIDFD_GET_INFO, _IOWR(0xFF, 11, struct pidfd_info), Linux 6.13.
	// Two ways to encode that are in use, and for this one they agree.
	pidfdGetInfo = 0xC0000000 | unsafe.Sizeof(pidfdInfo{})<<16 | 0xFF<<8 | 11
	// pidfdInfoExit is PIDFD_INFO_EXIT, Linux 6.15.
	pidfdInfoExit = 1 << 3
)

var errNoStatus = fmt.Errorf("the exit status of another's child: %w", errors.ErrUnsupported)

// exitStatus asks first, so as not to wait where the kernel will not tell. A pidfd
// hangs up when the process has been waited for, since Linux 6.9; what
// it ended with is recorded before.
func exitStatus(pidfd *os.File) (syscall.WaitStatus, error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		status syscall.WaitStatus
		known  bool
		failed error
	)
	err = raw.Read(func(fd uintptr) bool {
		waited := pollHangUp(int(fd)) // before asking: afterwards it could have come in between
		status, known, failed = askStatus(int(fd))
		return known || failed != nil || waited
	})
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, failed
	case !known:
		return 0, errNoStatus
	}
	return status, nil
}

func askStatus(fd int) (status syscall.WaitStatus, known bool, err error) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	switch errno {
	case 0:
		return syscall.WaitStatus(info.exitCode), info.mask&pidfdInfoExit != 0, nil
	case unix.ENOTTY, unix.EINVAL, unix.ESRCH: // no such request; no such part of it, and the process is gone
		return 0, false, errNoStatus
	}
	return 0, false, os.NewSyscallError("ioctl", errno)
}

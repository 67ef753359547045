package statefile

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/scm"
)

// namePrefix is before a state's name in /proc/PID/fd and /proc/PID/maps. The
// kernel allows 249 bytes for both.
const namePrefix = "crossfade:"

// newMemory makes a memfd that can be sealed. There is nothing else that would do: a
// state may be a secret, and whoever keeps one in memory does not expect it on a disk.
func newMemory(name string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// Linux 6.3 can be told, by vm.memfd_noexec, to refuse files that could be
	// executed; an older one does not know the flag.
	fd, err := unix.MemfdCreate(namePrefix+name, flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(namePrefix+name, flags)
	}
	switch err {
	case nil:
		return os.NewFile(uintptr(fd), name), nil
	case unix.ENOSYS, unix.EPERM, unix.EACCES: // an old kernel, or a filter of system calls
		return nil, fmt.Errorf("a state is kept in memory only, which a filter of system calls or a security module has to allow here: %w",
			os.NewSyscallError("memfd_create", err))
	default:
		return nil, os.NewSyscallError("memfd_create", err)
	}
}

// wanted are the seals without which a reader has to trust the writer.
const wanted = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

func seal(file *os.File) error {
	_, err := control(file, func(fd uintptr) (int, error) {
		return unix.FcntlInt(fd, unix.F_ADD_SEALS, wanted|unix.F_SEAL_SEAL)
	})
	return err
}

// checkSeals reports whether nobody can change the file any more. That is an
// error only if the file is of a sort that can be sealed: the plain file of a
// predecessor that may make no memfd has no seals at all, and one on a tmpfs
// has F_SEAL_SEAL from its beginning, fcntl(2).
func checkSeals(file *os.File) (bool, error) {
	seals, err := control(file, func(fd uintptr) (int, error) { return unix.FcntlInt(fd, unix.F_GET_SEALS, 0) })
	switch {
	case errors.Is(err, unix.EINVAL): // not on a tmpfs
		return false, nil
	case err != nil:
		return false, err
	case seals&wanted == wanted:
		return true, nil
	case seals&unix.F_SEAL_SEAL != 0:
		return false, nil
	default:
		return false, fmt.Errorf("%w: of the seals shrink, grow and write, %#x, it has %#x", ErrUnsealed, wanted, seals&wanted)
	}
}

func control(file *os.File, fcntl func(fd uintptr) (int, error)) (value int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { value, failed = fcntl(fd) }); err != nil {
		return 0, err
	}
	return value, os.NewSyscallError("fcntl", failed)
}

// reopen returns a second description of the file, with an offset of its own,
// that can only read. Before Linux 6.7 that is what it takes to map a sealed
// file shared, as many languages do for reading: of one that is open for writing
// the kernel refused it.
func reopen(fd *scm.FD) (*scm.FD, error) {
	var (
		num    int
		failed error
	)
	err := fd.Control(func(fd uintptr) {
		num, failed = unix.Open("/proc/self/fd/"+strconv.Itoa(int(fd)), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, os.NewSyscallError("open", failed)
	}
	return scm.NewFD(num), nil
}

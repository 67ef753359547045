package rendezvous

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// umask reads the umask without changing it for a moment, as umask(2) would for
// all threads: it is in /proc/self/status since Linux 4.7, proc_pid_status(5).
func umask() fs.FileMode {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return safeUmask
	}
	return parseUmask(status)
}

// parseUmask finds it in the text of that file.
func parseUmask(status []byte) fs.FileMode {
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if value, ok := bytes.CutPrefix(lines.Bytes(), []byte("Umask:")); ok {
			mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 8, 32)
			if err != nil {
				return safeUmask
			}
			return fs.FileMode(mask).Perm()
		}
	}
	return safeUmask
}

// chmodNoFollow changes the mode of the file itself that has the name, not of one that
// a symbolic link leads to. fchmodat2(2), which can, came with Linux 6.6 only.
func chmodNoFollow(path string, mode fs.FileMode) error {
	fd, err := open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

package rendezvous

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"strconv"
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

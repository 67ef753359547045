package rendezvous

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// lockHolder returns the pid that took the flock on i, or 0.
func lockHolder(i inode) int {
	if i == (inode{}) {
		return 0
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer locks.Close()
	return findHolder(locks, unix.Major(i.dev), unix.Minor(i.dev), i.ino)
}

// findHolder reads the format of /proc/locks, see proc_locks(5):
//
//	1: FLOCK  ADVISORY  WRITE 1234 fe:00:9977954 0 EOF
//
// It returns the pid that took a flock on the inode, or 0. The kernel lists
// neither a lock whose taker is dead, which a lock that was handed over can be,
// nor one from another pid namespace. On file systems where stat gives another
// device number than the superblock's (btrfs, overlayfs) nothing matches, and a
// wrong pid would be worse than none.
func findHolder(locks io.Reader, major, minor uint32, ino uint64) int {
	want := fmt.Sprintf("%02x:%02x:%d", major, minor, ino)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		var (
			class, kind, access, where string
			pid                        int
		)
		// Waiters, marked "->", do not parse.
		_, line, _ := strings.Cut(lines.Text(), ":")
		_, err := fmt.Sscan(line, &class, &kind, &access, &pid, &where)
		if err == nil && class == "FLOCK" && where == want && pid > 0 {
			return pid
		}
	}
	return 0
}

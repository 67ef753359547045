//go:build unix && !linux

package rendezvous

import (
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

var umaskMu sync.Mutex

// umask can only be read by setting it, umask(2). The one that is in force for
// that moment takes no right away that the program would have wanted to give.
func umask() fs.FileMode {
	umaskMu.Lock()
	defer umaskMu.Unlock()
	mask := unix.Umask(int(safeUmask))
	unix.Umask(mask)
	return fs.FileMode(mask).Perm()
}

// chmodNoFollow changes the mode of the file itself that has the name, not of one that
// a symbolic link leads to.
func chmodNoFollow(path string, mode fs.FileMode) error {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, path, bits, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

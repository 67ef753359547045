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

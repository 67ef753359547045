//go:build unix

package pidfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// checkSticky finds the one case in which a file can be made beside path and
// yet not renamed over it: path is another user's, in another user's sticky
// directory (chmod(2), S_ISVTX).
func checkSticky(path string, file fs.FileInfo) error {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if dir.Mode()&fs.ModeSticky == 0 {
		return nil
	}
	me := os.Geteuid()
	owner, dirOwner := uid(file), uid(dir)
	if me == 0 || me == owner || me == dirOwner {
		return nil
	}
	return fmt.Errorf("it is uid %d's file in a sticky directory, which uid %d may not replace: %w", owner, me, syscall.EPERM)
}

func uid(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

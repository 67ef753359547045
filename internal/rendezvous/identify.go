package rendezvous

import "path/filepath"

// Identify tells which socket is at path now, for [Remove] later: the path made
// absolute and its (dev, ino). An error matches [fs.ErrNotExist] if there is
// nothing.
func Identify(path string) (Identity, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Identity{}, err
	}
	st, err := lstat(abs)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Path: abs, Dev: st.dev, Ino: st.ino}, nil
}

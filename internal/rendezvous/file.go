package rendezvous

import "io/fs"

// inode names a file for as long as something holds it: only then is its number
// not given to another. An open lock file and a bound socket hold theirs.
type inode struct{ dev, ino uint64 }

// file is what stat(2) says of one.
type file struct {
	inode
	mode     fs.FileMode
	uid, gid uint32
	links    uint64
	size     int64
}

//go:build !unix

package rendezvous

import "io/fs"

func umask() fs.FileMode { return safeUmask }

//go:build !unix

package pidfile

import "io/fs"

// checkSticky: there are no sticky directories here.
func checkSticky(string, fs.FileInfo) error { return nil }

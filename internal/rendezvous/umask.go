package rendezvous

import "io/fs"

// safeUmask stands in where the umask cannot be read: nobody else.
const safeUmask fs.FileMode = 0o077

// UmaskMode is the mode that bind(2) gives to a socket's file: everything that
// the umask leaves. It is for the sockets of a service, whose users expect what
// net.Listen does.
func UmaskMode() fs.FileMode { return 0o777 &^ umask() }

package rendezvous

import "golang.org/x/sys/unix"

// hasList reports whether a directory has an access list, acl(5). The group's bits of
// its mode are then no more than what the list may allow to all whom it names.
func hasList(path string) bool {
	n, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return err == nil && n > 0
}

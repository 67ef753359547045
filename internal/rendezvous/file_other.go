//go:build !(linux || darwin || freebsd || openbsd || netbsd || dragonfly)

package rendezvous

import "github.com/crossfade-go/crossfade/scm"

// No function is reached here: a place does not resolve.
const supported = false

func takeLock(Place) (*scm.FD, error) { return nil, errUnsupported }

func lockFree(Place) error { return errUnsupported }

func flock(*scm.FD) error { return errUnsupported }

func bind(Place) (*scm.FD, inode, error) { return nil, inode{}, errUnsupported }

func unlink(Place, inode) error { return errUnsupported }

func checkRemovable(Place, inode) (bool, error) { return false, errUnsupported }

func checkClaimable(string) error { return errUnsupported }

func explain(err error, _ string) error { return err }

// Rights has nothing to tell.
func Rights(string) string { return "this system has no owners of files" }

func lstat(string) (file, error) { return file{}, errUnsupported }

func fstat(*scm.FD) (file, error) { return file{}, errUnsupported }

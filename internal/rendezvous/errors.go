package rendezvous

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

var (
	// ErrOwnerUnknown says that it cannot be told who owns the path, so
	// nothing was bound. Never start afresh on it. See [UnknownError].
	ErrOwnerUnknown = errors.New("owner unknown")

	// ErrNoOwner says that nobody owns the path, for certain.
	ErrNoOwner = errors.New("there is no owner")

	// ErrControlLost says that another file has taken the place of the
	// claim's socket or lock. The process may go on serving, but it must hand
	// over to nobody. See [LostError].
	ErrControlLost = errors.New("control lost")

	// ErrPath says that the path cannot be that of a socket. See [PathError].
	ErrPath = errors.New("unusable socket path")

	// ErrFileType says that something else is where a socket, a lock file or
	// the temporary directory should be.
	ErrFileType = errors.New("wrong type of file")

	// ErrUnsafe says that somebody who is not trusted could lead the path
	// elsewhere, or has. See [UnsafeError].
	ErrUnsafe = errors.New("unsafe socket path")

	// ErrMismatch says that [Adopt] was given something else than announced.
	ErrMismatch = errors.New("not what was announced")
)

var errUnsupported = fmt.Errorf("unix sockets with lock files on this system: %w", errors.ErrUnsupported)

// UnknownError says what stood in the way of finding a path's owner. It matches
// [ErrOwnerUnknown] and both of its causes.
type UnknownError struct {
	Path   string // the socket's
	Holder int    // pid that took the lock, as the kernel names it; 0: unknown, or no lock stands in the way
	Seen   error  // what was seen last
	Cause  error  // why the search ended, the context's cause; nil: what was seen would not have changed by waiting
}

// Error tells what was seen and, if the search ran out of time, how it ended.
func (e *UnknownError) Error() string {
	if e.Cause != nil && errors.Is(e.Seen, e.Cause) {
		return fmt.Sprintf("owner of %s is unknown: there was no time to look: %v", e.Path, e.Cause)
	}
	s := fmt.Sprintf("owner of %s is unknown: %v", e.Path, e.Seen)
	if e.Holder != 0 {
		s += fmt.Sprintf("; pid %d took the lock", e.Holder)
	}
	if e.Cause != nil {
		s += fmt.Sprintf("; gave up: %v", e.Cause)
	}
	return s
}

// Is reports whether target is [ErrOwnerUnknown].
func (e *UnknownError) Is(target error) bool { return target == ErrOwnerUnknown }

// Unwrap returns what was seen and, if there is one, the context's cause.
func (e *UnknownError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Seen}
	}
	return []error{e.Seen, e.Cause}
}

// LostError names the file that is no longer the claim's. It matches
// [ErrControlLost].
type LostError struct {
	Path string // the socket's
	File string // the one that was replaced: Path, or the lock file beside it
}

// Error says which file was replaced and what an operator can do.
func (e *LostError) Error() string {
	if e.File == e.Path {
		return fmt.Sprintf("control lost: %s is no longer the socket of this process, another one has taken its place: "+
			"find out which (ss -xlp), end one of the two, and remove the file if it is a leftover", e.Path)
	}
	return fmt.Sprintf("control lost: %s is no longer the lock of this process, another file has taken its place: "+
		"make sure that no other process serves %s, then remove that lock file", e.File, e.Path)
}

// Is reports whether target is [ErrControlLost].
func (e *LostError) Is(target error) bool { return target == ErrControlLost }

// PathError says why a path cannot be that of a socket. It matches [ErrPath].
type PathError struct {
	Path   string // as the caller gave it
	Reason string // what is wrong and what to do
	Err    error  // ENAMETOOLONG for a path that is too long; may be nil
}

// Error names the path and the reason.
func (e *PathError) Error() string {
	s := fmt.Sprintf("socket path %q cannot be used: %s", e.Path, e.Reason)
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Is reports whether target is [ErrPath].
func (e *PathError) Is(target error) bool { return target == ErrPath }

// Unwrap returns the system's error, or nil.
func (e *PathError) Unwrap() error { return e.Err }

// UnsafeError says by which file a path is in the hands of others. It matches
// [ErrUnsafe], and [fs.ErrPermission]: nobody is permitted to go on.
type UnsafeError struct {
	Path   string // the socket's
	File   string // what others can replace, or may have made
	Reason string // its mode and owner, and what would help
}

// Error names the path and the reason.
func (e *UnsafeError) Error() string {
	return fmt.Sprintf("socket path %s is not safe: %s", e.Path, e.Reason)
}

// Is reports whether target is [ErrUnsafe] or [fs.ErrPermission].
func (e *UnsafeError) Is(target error) bool { return target == ErrUnsafe || target == fs.ErrPermission }

// retryError marks what may look different a moment later.
type retryError struct {
	err  error
	lock inode // the lock file that somebody else holds, if that is what it was
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// errNobody is the answer of a look that met neither an owner nor an obstacle.
var errNobody = errors.New("nobody answers")

// inUse reports a service socket that a living process has.
func inUse(path string) error {
	return fmt.Errorf("a living process has the socket %s: %w", path, syscall.EADDRINUSE)
}

package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"

	"github.com/crossfade-go/crossfade/scm"
)

// Identity tells which socket a path is. It travels in a manifest: getsockname
// on the listener gives only Bound, and fstat on it is not the path's inode.
type Identity struct {
	Path    string // absolute, as the process that made the identity sees it
	Bound   string // the name that was given to bind(2), before the rename
	Dev     uint64 // of the path: st_dev
	Ino     uint64 // of the path: st_ino
	Backlog int    // the one of the first listen(2), for every later one
}

func (id Identity) inode() inode { return inode{id.Dev, id.Ino} }

func identity(p Place, bound string, ino inode) Identity {
	return Identity{Path: p.Path, Bound: bound, Dev: ino.dev, Ino: ino.ino, Backlog: p.Backlog}
}

// Claim is a process's hold on a path: the control listener, the lock, and which
// inodes they are. It ends with [Claim.Release] or [Claim.Unlink]. All methods
// may be called concurrently.
type Claim struct {
	mu       sync.Mutex
	place    Place
	bound    string
	ino      inode
	listener *scm.FD
	lock     *scm.FD
	closed   bool
}

func newClaim(p Place, bound string, ino inode, listener, lock *scm.FD) *Claim {
	return &Claim{place: p, bound: bound, ino: ino, listener: listener, lock: lock}
}

// Adopt makes a claim of what a predecessor handed over. It takes ownership of
// listener and lock, also on error.
//
// p is the place as this process sees it, which may be another path to the same
// file than id.Path; empty means id.Path. Its Mode and Group apply if the path
// must be bound again; the backlog is id's.
//
// Adopt refuses, with an error that matches [ErrMismatch], a listener that is
// not a listening unix stream socket bound to id.Bound, and a lock that is not a
// plain file or that somebody else holds. If the path or the lock file are
// others than those, the error matches [ErrControlLost]; if they are missing,
// [fs.ErrNotExist]. A candidate repairs nothing: the path is still its
// predecessor's.
func Adopt(p Place, id Identity, listener, lock *scm.FD) (claim *Claim, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, listener.Close(), lock.Close())
		}
	}()
	if p.Path == "" {
		p.Path = id.Path
	}
	p.Backlog = id.Backlog
	p, err = p.control()
	if err != nil {
		return nil, err
	}
	if err := checkListener(id, listener); err != nil {
		return nil, err
	}
	claim = newClaim(p, id.Bound, id.inode(), listener, lock)
	if err := claim.Verify(); err != nil {
		return nil, err
	}
	// On the description that holds the lock this is a no-op. On any other
	// it fails, unless nobody holds the lock, and then this process may.
	var held *retryError
	switch err := flock(lock); {
	case errors.As(err, &held):
		return nil, fmt.Errorf("received lock of %s is held through another descriptor: %w", p.Path, ErrMismatch)
	case err != nil:
		return nil, fmt.Errorf("received lock of %s: %w", p.Path, err)
	}
	return claim, nil
}

func checkListener(id Identity, listener *scm.FD) error {
	got, err := listener.Identify()
	if err != nil {
		return fmt.Errorf("received control listener: %w", err)
	}
	if got.Network != "unix" || !got.Listening {
		return fmt.Errorf("received control listener is not a listening unix stream socket: %w", ErrMismatch)
	}
	if got.Address != id.Bound {
		return fmt.Errorf("received control listener is bound to %q, not to %q: %w", got.Address, id.Bound, ErrMismatch)
	}
	return nil
}

// Identity returns what a successor needs for [Adopt]. [Claim.Check] may change
// it.
func (c *Claim) Identity() Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	return identity(c.place, c.bound, c.ino)
}

// Listener returns the listening control socket. It remains the claim's, which
// closes it when [Claim.Check] replaces it: duplicate it, or ask again each
// time.
func (c *Claim) Listener() *scm.FD {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listener
}

// Lock returns the descriptor that holds the lock. Like [Claim.Listener] it
// remains the claim's. Never LOCK_UN it: that would free the lock for strangers
// although other holders rely on it.
func (c *Claim) Lock() *scm.FD {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lock
}

// Verify compares the path and the lock file with the claim's inodes and changes
// nothing. If either is foreign the error is a [*LostError]. If either is
// missing the error matches [fs.ErrNotExist]: see [Claim.Check]. Any other error
// says that they could not be looked at. After the claim's end it is
// [net.ErrClosed].
func (c *Claim) Verify() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return worse(c.compare())
}

// Check is [Claim.Verify] with repair. A missing lock file is made and locked
// by the rules of a first starter, waiting for it until ctx ends. A missing path
// is then bound again under the lock, with a new listener: rebound is true, and
// [Claim.Listener], [Claim.Lock] and [Claim.Identity] give the new ones.
// Duplicates that the caller made of the old listener work on, but nobody can
// reach them by the path.
//
// Only the owner may call it, and not while another process holds copies of the
// claim and may come back: for that one the new files would be foreign. The
// claim's other methods wait for it.
func (c *Claim) Check(ctx context.Context) (rebound bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, net.ErrClosed
	}
	path, lock := c.compare()
	pathMissing, lockMissing := errors.Is(path, fs.ErrNotExist), errors.Is(lock, fs.ErrNotExist)
	if path != nil && !pathMissing || lock != nil && !lockMissing {
		return false, worse(path, lock)
	}
	if lockMissing {
		if err := c.relock(ctx); err != nil {
			return false, err
		}
	}
	if !pathMissing {
		return false, nil
	}
	if err := c.rebind(); err != nil {
		return false, fmt.Errorf("control path %s is missing and cannot be bound again: %w", c.place.Path, err)
	}
	return true, nil
}

// compare returns what is wrong with the path and with the lock file.
func (c *Claim) compare() (path, lock error) {
	path = c.same(c.place.Path, c.ino)
	held, err := fstat(c.lock)
	switch {
	case err != nil:
		lock = fmt.Errorf("lock of %s: %w", c.place.Path, err)
	case !held.mode.IsRegular():
		lock = fmt.Errorf("lock of %s is not a plain file: %w", c.place.Path, ErrMismatch)
	default:
		lock = c.same(c.place.lockPath(), held.inode)
	}
	return path, lock
}

// worse chooses between what compare returned: a file that can be made again is
// the lesser trouble.
func worse(path, lock error) error {
	if path == nil || lock != nil && errors.Is(path, fs.ErrNotExist) {
		return lock
	}
	return path
}

func (c *Claim) same(file string, want inode) error {
	st, err := lstat(file)
	if err != nil {
		return explain(err, file)
	}
	if st.inode != want {
		return &LostError{Path: c.place.Path, File: file}
	}
	return nil
}

// relock takes the lock anew after its file has vanished. The old one is given
// up last, so that there is no moment without.
func (c *Claim) relock(ctx context.Context) error {
	return retry(ctx, c.place, func() error {
		lock, err := takeLock(c.place)
		if err != nil {
			return err
		}
		// While there was no lock file a stranger may have come, taken the
		// path by the rules, and died.
		if err := c.same(c.place.Path, c.ino); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, lock.Close())
		}
		old := c.lock
		c.lock = lock
		return old.Close()
	})
}

func (c *Claim) rebind() error {
	if _, err := c.place.vouch(); err != nil {
		return err
	}
	if err := checkClaimable(c.place.Path); err != nil {
		return err
	}
	listener, ino, err := bind(c.place)
	if err != nil {
		return err
	}
	old := c.listener
	c.listener, c.ino, c.bound = listener, ino, c.place.boundPath()
	return old.Close()
}

// Release closes the claim's copies of listener and lock, for a process that no
// longer owns. It unlinks nothing and unlocks nothing: other holders go on. It
// is idempotent.
func (c *Claim) Release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.close()
}

// Unlink ends the claim of an owner that stops for good: under the lock it
// removes the path if it still is the claim's, then closes the listener, then
// the lock. The lock file stays.
//
// A path that is missing is no error. If path or lock file were replaced, or if
// the lock file is gone, the path stays and the error says so. The descriptors
// are closed in every case. After [Claim.Release] it does nothing.
func (c *Claim) Unlink() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	path, lock := c.compare()
	err := path
	switch {
	case errors.Is(path, fs.ErrNotExist):
		err = nil
	case path == nil && lock != nil:
		err = fmt.Errorf("socket %s is left behind, for this process cannot be sure of the lock: %w", c.place.Path, lock)
	case path == nil:
		err = unlink(c.place, c.ino)
	}
	return errors.Join(err, c.close())
}

// close closes the listener first: whoever gets the lock must find nobody
// listening.
func (c *Claim) close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	return errors.Join(c.listener.Close(), c.lock.Close())
}

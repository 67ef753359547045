package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// Between two attempts. An unlock or a free place in a backlog cannot be waited
// for together with a context, so both are asked for again.
const (
	firstPause = time.Millisecond
	maxPause   = 50 * time.Millisecond
)

// Find reaches the owner of p, or makes the caller the first one: without an
// error exactly one of the two results is not nil, and it is the caller's.
//
// An accepted connect is the answer, no byte is exchanged. A living owner may
// be reached through a symbolic link; a claim is made only where there is
// nothing or a socket that nobody listens on.
//
// A full backlog, and a lock held by a process that does not answer yet, are
// asked again until ctx ends; so give ctx a deadline. Whatever else stands in
// the way is returned at once. All errors before the claim match
// [ErrOwnerUnknown] (type [*UnknownError]) and their system error. An error
// while claiming, when it is certain that there is no owner, does not match
// it; it leaves nothing bound.
func Find(ctx context.Context, p Place) (*scm.Conn, *Claim, error) {
	p, err := p.control()
	if err != nil {
		return nil, nil, err
	}
	var (
		conn  *scm.Conn
		claim *Claim
	)
	err = retry(ctx, p, func() (err error) {
		conn, claim, err = findOnce(ctx, p)
		return err
	})
	return conn, claim, err
}

// Reach connects to the owner of p for somebody who wants nothing of it but an
// answer. [ErrNoOwner] says that nobody owns p: nothing listens there, and its lock
// is free. Otherwise it is like [Find]; nothing is made, nor changed.
func Reach(ctx context.Context, p Place) (*scm.Conn, error) {
	p, err := p.control()
	if err != nil {
		return nil, err
	}
	p.asker = true
	var conn *scm.Conn
	err = retry(ctx, p, func() (err error) {
		if conn, err = look(ctx, p); !errors.Is(err, errNobody) {
			return err
		}
		if err = lockFree(p); err != nil {
			return err
		}
		// The owner may have come between the two looks.
		if conn, err = look(ctx, p); errors.Is(err, errNobody) {
			err = fmt.Errorf("%w of %s", ErrNoOwner, p.Path)
		}
		return err
	})
	return conn, err
}

func findOnce(ctx context.Context, p Place) (*scm.Conn, *Claim, error) {
	conn, err := look(ctx, p)
	if !errors.Is(err, errNobody) {
		return conn, nil, err
	}
	lock, err := takeLock(p)
	if err != nil {
		return nil, nil, err
	}
	// Another first starter may have come and even gone since the first look.
	conn, err = look(ctx, p)
	if !errors.Is(err, errNobody) {
		lock.Close()
		return conn, nil, err
	}
	listener, ino, err := bind(p)
	if err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("cannot claim %s: %w", p.Path, err)
	}
	return nil, newClaim(p, p.boundPath(), ino, listener, lock), nil
}

// Open opens a socket of the service itself at p. It follows the rules of
// [Find] but for two: a living socket at the path is an error, which matches
// [syscall.EADDRINUSE], and the lock is held for the opening only. The socket
// listens, unless p.Network is "unixgram". The descriptor is the caller's.
//
// A process that opens the same path at this moment is waited for until ctx
// ends. To find out whether a socket is alive Open connects to it once: its
// owner sees a connection that is closed at once. Where a full backlog refuses
// connections (macOS, the BSDs) a living socket with a full backlog cannot be
// told from a dead one.
//
// Use [Remove] to unlink what was opened.
func Open(ctx context.Context, p Place) (*scm.FD, Identity, error) {
	p, err := p.resolve()
	if err != nil {
		return nil, Identity{}, err
	}
	var (
		fd *scm.FD
		id Identity
	)
	err = retry(ctx, p, func() (err error) {
		fd, id, err = openOnce(ctx, p)
		return err
	})
	return fd, id, err
}

func openOnce(ctx context.Context, p Place) (*scm.FD, Identity, error) {
	if err := probe(ctx, p); !errors.Is(err, errNobody) {
		return nil, Identity{}, err
	}
	lock, err := takeLock(p)
	if err != nil {
		return nil, Identity{}, err
	}
	defer lock.Close()
	if err := probe(ctx, p); !errors.Is(err, errNobody) {
		return nil, Identity{}, err
	}
	fd, ino, err := bind(p)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("cannot open %s: %w", p.Path, err)
	}
	return fd, identity(p, p.boundPath(), ino), nil
}

// Remove unlinks the socket that [Open] opened at p, here or in a process that
// handed it over, if the path still is the one that id tells of. It does so
// under the lock, which it waits for until ctx ends. Call it before the
// listener is closed, so that nobody can have bound the path in between.
//
// A path that is missing is no error. One that was replaced stays and is a
// [*LostError], and so does what is no socket, [ErrFileType]: id may be the word of
// another process.
func Remove(ctx context.Context, p Place, id Identity) error {
	p, err := p.resolve()
	if err != nil {
		return err
	}
	return retry(ctx, p, func() error {
		// Where nothing is to be removed no lock file is made either.
		if there, err := checkRemovable(p, id.inode()); err != nil || !there {
			return err
		}
		lock, err := takeLock(p)
		if err != nil {
			return err
		}
		defer lock.Close()
		return unlink(p, id.inode())
	})
}

// look dials the owner. errNobody says that nobody answers and that a claim
// would meet nothing or a stale socket.
//
// The path is looked at before, so that no stranger's socket is connected to, and
// afterwards, so that it was that one which was.
func look(ctx context.Context, p Place) (*scm.Conn, error) {
	before, err := p.vouch()
	if err != nil {
		return nil, unknown(p, err)
	}
	conn, err := scm.Dial(ctx, p.Path)
	if err != nil {
		return nil, judge(ctx, p, err)
	}
	after, err := p.vouch()
	switch {
	case err == nil && (before.inode != after.inode || after.inode == inode{}):
		err = &retryError{err: errors.New("another socket was put there meanwhile")}
	case err == nil && p.asker:
		err = p.checkListener(conn, after)
	}
	if err == nil {
		return conn, nil
	}
	if again := new(retryError); !errors.As(err, &again) {
		err = unknown(p, err)
	}
	return nil, errors.Join(err, conn.Close())
}

// probe is look for sockets of any type, which need not speak to us.
func probe(ctx context.Context, p Place) error {
	conn, err := new(net.Dialer).DialContext(ctx, p.Network, p.Path)
	switch {
	case err == nil:
		return errors.Join(inUse(p.Path), conn.Close())
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EPROTOTYPE):
		// A full backlog, or a living socket of another type.
		return inUse(p.Path)
	}
	return judge(ctx, p, err)
}

// judge turns a failed connect into errNobody, into something to try again, or
// into the error that it is. Everything that it does not know is the last.
func judge(ctx context.Context, p Place, err error) error {
	switch {
	case ctx.Err() != nil:
		return &retryError{err: err}
	case errors.Is(err, syscall.EAGAIN):
		return &retryError{err: fmt.Errorf("a process listens but its backlog is full: %w", err)}
	case errors.Is(err, syscall.EINTR):
		return &retryError{err: err}
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		// A plain file refuses connections just as a stale socket does.
		if err := checkClaimable(p.Path); err != nil {
			return unknown(p, err)
		}
		return errNobody
	}
	return unknown(p, explain(err, p.Path))
}

// retry calls try until it returns something else than a retryError, or until
// ctx ends.
func retry(ctx context.Context, p Place, try func() error) error {
	var seen *retryError
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := try()
		var again *retryError
		if !errors.As(err, &again) {
			return err
		}
		// What the end of ctx itself broke off tells nothing.
		if seen == nil || ctx.Err() == nil {
			seen = again
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return &UnknownError{
				Path: p.Path, Seen: seen.err, Cause: context.Cause(ctx),
				Holder: lockHolder(seen.lock),
			}
		}
	}
}

func unknown(p Place, err error) error {
	return &UnknownError{Path: p.Path, Seen: err}
}

//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package rendezvous

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/scm"
)

const supported = true

// takeLock opens and locks p's lock file without waiting. The lock counts only
// if the file still is the one at its path: another may have been put there
// between open and flock.
func takeLock(p Place) (*scm.FD, error) {
	path := p.lockPath()
	gid, err := LookupGroup(p.Group)
	if err != nil {
		return nil, err
	}
	fd, err := openLock(p, gid)
	if err != nil {
		return nil, err
	}
	err = func() error {
		mine, err := tryLock(p, fd)
		if err != nil {
			return err
		}
		switch there, err := lstat(path); {
		case errors.Is(err, fs.ErrNotExist), err == nil && there.inode != mine.inode:
			return &retryError{err: fmt.Errorf("lock file %s was replaced", path)}
		case err != nil:
			return unknown(p, explain(err, path))
		}
		return settleLockRights(p, gid, fd, mine)
	}()
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// lockFree returns nil if nobody holds p's lock, which it takes for an instant to
// find out: who comes then tries again. It makes no file.
func lockFree(p Place) error {
	path := p.lockPath()
	num, err := open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return unknown(p, explain(err, path))
	}
	fd := scm.NewFD(num)
	defer fd.Close()
	_, err = tryLock(p, fd)
	return err
}

// tryLock locks fd, if it is p's lock file, without waiting, and says which file it is.
func tryLock(p Place, fd *scm.FD) (file, error) {
	path := p.lockPath()
	mine, err := checkLockFile(fd, path)
	if err != nil {
		return file{}, unknown(p, err)
	}
	err = flock(fd)
	var held *retryError
	switch {
	case errors.As(err, &held):
		held.lock = mine.inode
		return file{}, err
	case err != nil:
		return file{}, unknown(p, fmt.Errorf("lock %s: %w", path, err))
	}
	return mine, nil
}

// openLock opens the lock file and makes it if need be. The two are separate
// system calls because O_CREAT on another user's file in a sticky directory is
// refused (fs.protected_regular, Linux 4.19).
func openLock(p Place, gid int) (*scm.FD, error) {
	path := p.lockPath()
	// O_NONBLOCK: a fifo in its place must not stop us.
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := open(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		fd, err = open(path, flags|unix.O_CREAT|unix.O_EXCL, uint32(p.lockMode()))
		switch {
		case err == nil:
			lock := scm.NewFD(fd)
			if err := setLockRights(p, gid, lock); err != nil {
				return nil, errors.Join(unknown(p, err), lock.Close())
			}
			return lock, nil
		case errors.Is(err, fs.ErrExist):
			// Somebody else made it just now, or it is a symbolic
			// link to nowhere.
			if st, err := lstat(path); err != nil || st.mode.IsRegular() {
				return nil, &retryError{err: fmt.Errorf("lock file %s was made by another process", path)}
			}
		}
	}
	if err == nil {
		return scm.NewFD(fd), nil
	}
	if st, statErr := lstat(path); statErr == nil && !st.mode.IsRegular() {
		return nil, unknown(p, wrongType(path, st.mode, "the lock file"))
	}
	return nil, unknown(p, explain(err, path))
}

// checkLockFile returns what the lock's descriptor is. A hard link is refused, and a
// file that has something in it: in a directory that others can write either could be
// a file of ours from somewhere else, to which we would give the rights of a lock.
func checkLockFile(fd *scm.FD, path string) (file, error) {
	st, err := fstat(fd)
	switch {
	case err != nil:
		return st, fmt.Errorf("lock file %s: %w", path, err)
	case !st.mode.IsRegular():
		return st, wrongType(path, st.mode, "the lock file")
	case st.links > 1:
		return st, fmt.Errorf("lock file %s has %d names, a lock file has one: remove it: %w", path, st.links, ErrFileType)
	case st.size > 0:
		return st, fmt.Errorf("lock file %s has %d bytes in it, a lock file is empty: find out what it is, and move it away: %w", path, st.size, ErrFileType)
	}
	return st, nil
}

// settleLockRights gives a lock file from an earlier run the rights of this
// one, if it is this user's to change. Only the lock's holder does so.
func settleLockRights(p Place, gid int, fd *scm.FD, st file) error {
	if int(st.uid) != os.Geteuid() || st.mode.Perm() == p.lockMode() && (gid < 0 || gid == int(st.gid)) {
		return nil
	}
	return setLockRights(p, gid, fd)
}

func setLockRights(p Place, gid int, fd *scm.FD) error {
	return control(fd, func(fd int) error {
		if gid >= 0 {
			if err := unix.Fchown(fd, -1, gid); err != nil {
				return groupError(p.lockPath(), p.Group, gid, os.NewSyscallError("fchown", err))
			}
		}
		if err := unix.Fchmod(fd, uint32(p.lockMode())); err != nil {
			return fmt.Errorf("mode of %s: %w", p.lockPath(), os.NewSyscallError("fchmod", err))
		}
		return nil
	})
}

// flock locks the descriptor's open file description without waiting. A lock
// that another description has is a retryError.
func flock(fd *scm.FD) error {
	err := control(fd, func(fd int) error {
		return ignoringEINTR(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &retryError{err: errors.New("nobody answers yet another process holds its lock: it is starting, stopping or hung, " +
			"or its socket file was removed, which an owner binds again within a minute")}
	}
	return os.NewSyscallError("flock", err)
}

// bind makes a socket with p's rights at p.Path, over a stale one if need be.
// The caller holds the lock and has looked at the path.
func bind(p Place) (*scm.FD, inode, error) {
	if err := removeTemp(p); err != nil {
		return nil, inode{}, err
	}
	temp, err := makeTemp(p)
	if err != nil {
		return nil, inode{}, errors.Join(err, removeTemp(p))
	}
	defer temp.Close()
	fd, ino, err := bindTemp(p, temp)
	if err != nil {
		return nil, inode{}, errors.Join(err, removeTemp(p))
	}
	if err := moveIn(p, temp, ino); err != nil {
		return nil, inode{}, errors.Join(err, removeTemp(p), fd.Close())
	}
	return fd, ino, nil
}

// makeTemp makes the temporary directory and opens it. What is done in it is done
// by this descriptor: who can write to the directory of the socket, a member of
// Group for one, can put another in the place of the temporary one at any time, and
// what this user may do is more than what the socket is worth. A chmod of root's by
// name could be led to any file.
func makeTemp(p Place) (*scm.FD, error) {
	path := p.tempPath()
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, explain(err, p.Path)
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	// The umask may have taken our own rights. In a setgid directory the new one is
	// setgid too and gives the socket its group, as to every new file. The bit is kept,
	// and nothing changed without need: chmod(2) takes it from who is not in that group.
	if made.Mode().Perm() != 0o700 {
		if err := chmodNoFollow(path, 0o700|made.Mode()&fs.ModeSetgid); err != nil {
			return nil, explain(err, p.Path)
		}
	}
	return openTemp(p)
}

// openTemp opens the temporary directory if it can be the one that was just made: one
// of ours that is closed to everybody else has nothing in it that is not ours.
func openTemp(p Place) (*scm.FD, error) {
	fd, err := openDir(p.tempPath())
	if err != nil {
		return nil, replacedTemp(p, err)
	}
	st, err := fstat(fd)
	if err == nil && (int(st.uid) != os.Geteuid() || st.mode.Perm() != 0o700) {
		err = replacedTemp(p, fmt.Errorf("it has mode %04o and uid %d", st.mode.Perm(), st.uid))
	}
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// replacedTemp is said when the temporary directory is not the one that was made.
func replacedTemp(p Place, err error) error {
	return fmt.Errorf("temporary directory %s was replaced while the socket was made: find out who does that, and who may write to %s: %w",
		p.tempPath(), filepath.Dir(p.Path), err)
}

// bindTemp makes the socket complete under its temporary name, in a directory
// that is closed to everybody else. Mode and group alone would come too late: a
// connect checks them first and whether anyone listens afterwards, so one that
// found the mode of the umask could pass between bind and chmod and meet the
// listener. A datagram socket can be sent to without any listen at all.
func bindTemp(p Place, temp *scm.FD) (*scm.FD, inode, error) {
	fd, err := scm.Bind(p.Network, p.boundPath())
	if err != nil {
		return nil, inode{}, explain(err, p.Path)
	}
	// bind(2) knows names only, and may have been led elsewhere.
	st, err := lstatIn(temp, boundName)
	if err == nil && st.mode.Type() != fs.ModeSocket {
		err = wrongType(p.boundPath(), st.mode, "the new socket")
	}
	if err != nil {
		return nil, inode{}, errors.Join(replacedTemp(p, err), fd.Close())
	}
	err = setSocketRights(p, temp)
	if err == nil && p.Network != "unixgram" {
		err = fd.Listen(p.Backlog)
	}
	if err != nil {
		return nil, inode{}, errors.Join(err, fd.Close())
	}
	return fd, st.inode, nil
}

// moveIn renames the bound socket to its path.
func moveIn(p Place, temp *scm.FD, ino inode) error {
	err := control(temp, func(fd int) error { return unix.Renameat(fd, boundName, unix.AT_FDCWD, p.Path) })
	if err != nil {
		return explain(&os.LinkError{Op: "rename", Old: p.boundPath(), New: p.Path, Err: err}, p.Path)
	}
	if err := removeTemp(p); err != nil {
		return err
	}
	there, err := lstat(p.Path)
	if err == nil && there.inode != ino {
		err = &LostError{Path: p.Path, File: p.Path}
	}
	return err
}

// removeTemp removes the temporary directory, ours or that of a process that
// died between bind and rename. Whoever uses that name holds the lock, and that
// is us. A directory that holds anything else stays and is an error.
func removeTemp(p Place) error {
	temp := p.tempPath()
	st, err := lstat(temp)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return explain(err, temp)
	case !st.mode.IsDir():
		return wrongType(temp, st.mode, "a temporary directory")
	case st.uid != 0 && int(st.uid) != os.Geteuid() && everybodys(filepath.Dir(p.Path)):
		return fmt.Errorf("temporary directory %s of an earlier run belongs to uid %d: remove it: %w", temp, st.uid, ErrFileType)
	}
	// One that cannot be opened is empty, or cannot be removed.
	if dir, err := openDir(temp); err == nil {
		err := errors.Join(unlinkSocketIn(dir, boundName), dir.Close())
		if err != nil {
			return explain(&fs.PathError{Op: "unlink", Path: p.boundPath(), Err: err}, p.boundPath())
		}
	}
	if err := os.Remove(temp); err != nil {
		return fmt.Errorf("temporary directory of an earlier run: %w", explain(err, temp))
	}
	return nil
}

// everybodys reports whether anybody can make files in a directory.
func everybodys(dir string) bool {
	st, err := os.Stat(dir)
	return err != nil || st.Mode().Perm()&0o002 != 0
}

// setSocketRights: the group comes first, so that the mode's group bits are
// never another group's. The umask has no say in chmod.
func setSocketRights(p Place, temp *scm.FD) error {
	gid, err := LookupGroup(p.socketGroup())
	if err != nil {
		return err
	}
	return control(temp, func(fd int) error {
		if gid >= 0 {
			err := ignoringEINTR(func() error { return unix.Fchownat(fd, boundName, -1, gid, unix.AT_SYMLINK_NOFOLLOW) })
			if err != nil {
				return groupError(p.Path, p.socketGroup(), gid, os.NewSyscallError("fchownat", err))
			}
		}
		err := ignoringEINTR(func() error { return unix.Fchmodat(fd, boundName, uint32(p.Mode), 0) })
		if err != nil {
			return fmt.Errorf("mode of %s: %w", p.Path, os.NewSyscallError("fchmodat", err))
		}
		return nil
	})
}

// unlink removes the path if it is that inode. The caller holds the lock, so
// nobody who keeps the rules can replace the path in between.
func unlink(p Place, want inode) error {
	there, err := checkRemovable(p, want)
	if err != nil || !there {
		return err
	}
	return unlinkFile(p.Path)
}

// checkRemovable reports whether the path is there and that socket. What it is to be
// can be a predecessor's word, whose user may be another one, and no file but a socket
// is removed for that.
func checkRemovable(p Place, want inode) (there bool, err error) {
	st, err := lstat(p.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, explain(err, p.Path)
	case st.inode != want:
		return false, &LostError{Path: p.Path, File: p.Path}
	case st.mode.Type() != fs.ModeSocket:
		return false, wrongType(p.Path, st.mode, "the socket")
	}
	return true, nil
}

// checkClaimable lets pass what a rename may replace: nothing, or a socket.
func checkClaimable(path string) error {
	st, err := lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return explain(err, path)
	case st.mode.Type() != fs.ModeSocket:
		return wrongType(path, st.mode, "the socket")
	}
	return nil
}

func wrongType(path string, mode fs.FileMode, wanted string) error {
	var is string
	switch {
	case mode.IsRegular():
		is = "a plain file"
	case mode.IsDir():
		is = "a directory"
	case mode&fs.ModeSymlink != 0:
		is = "a symbolic link, and there is no owner behind it; links are not replaced"
	default:
		is = "a file of type " + mode.Type().String()
	}
	return fmt.Errorf("where %s belongs, %s is %s: move it away or choose another path: %w", wanted, path, is, ErrFileType)
}

func groupError(path, group string, gid int, err error) error {
	return fmt.Errorf("cannot give %s to group %s (gid %d): %w: this process runs as uid %d and only a member of the group, or root, may do that",
		path, group, gid, err, os.Geteuid())
}

// explain adds to a failed system call on path what an operator has to know to
// act on it.
func explain(err error, path string) error {
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w: %s", err, Rights(path))
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: the file system of %s is mounted read-only: an owner can be reached through it, but a socket needs a writable one", err, dir)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: a part of %s is not a directory: check the path", err, dir)
	case errors.Is(err, syscall.ENOENT):
		if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
			return fmt.Errorf("%w: directory %s does not exist: create it first", err, dir)
		}
	}
	return err
}

// Rights tells, for an error, who may use path, what this process is, and what would
// help. If nothing can be said of the path it is about the nearest directory above it
// of which something can: the one that denied access.
func Rights(path string) string {
	at := path
	st, err := lstat(at)
	for err != nil && at != "/" {
		at = filepath.Dir(at)
		st, err = lstat(at)
	}
	if err != nil {
		return fmt.Sprintf("this process runs as uid %d", os.Geteuid())
	}
	text := fmt.Sprintf("%s has mode %04o, uid %d and gid %d", at, st.mode.Perm(), st.uid, st.gid)
	if dir := filepath.Dir(path); at == path {
		if st, err := lstat(dir); err == nil {
			text += fmt.Sprintf("; %s has mode %04o, uid %d and gid %d", dir, st.mode.Perm(), st.uid, st.gid)
		}
	}
	return text + fmt.Sprintf("; this process runs as uid %d, gid %d: run it as the owner's user, "+
		"or give both a common group and a mode for it", os.Geteuid(), os.Getegid())
}

func lstat(path string) (file, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Lstat(path, &st) }); err != nil {
		return file{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return fileOf(&st), nil
}

func fstat(fd *scm.FD) (file, error) {
	var st unix.Stat_t
	err := control(fd, func(fd int) error {
		return os.NewSyscallError("fstat", ignoringEINTR(func() error { return unix.Fstat(fd, &st) }))
	})
	if err != nil {
		return file{}, err
	}
	return fileOf(&st), nil
}

// lstatIn is lstat of a name in a directory.
func lstatIn(dir *scm.FD, name string) (file, error) {
	var st unix.Stat_t
	err := control(dir, func(fd int) error {
		return os.NewSyscallError("fstatat", ignoringEINTR(func() error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) }))
	})
	if err != nil {
		return file{}, err
	}
	return fileOf(&st), nil
}

// unlinkSocketIn removes a socket of that name from a directory, and leaves all else.
func unlinkSocketIn(dir *scm.FD, name string) error {
	if st, err := lstatIn(dir, name); err != nil || st.mode.Type() != fs.ModeSocket {
		return nil //nolint:nilerr // there is none to be removed
	}
	err := control(dir, func(fd int) error { return unix.Unlinkat(fd, name, 0) })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func fileOf(st *unix.Stat_t) file {
	mode := fs.FileMode(st.Mode).Perm()
	if st.Mode&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	default:
		mode |= fs.ModeDevice
	}
	return file{
		// These have other types on other systems.
		inode: inode{dev: uint64(st.Dev), ino: uint64(st.Ino)},
		links: uint64(st.Nlink),
		size:  st.Size,
		mode:  mode,
		uid:   st.Uid,
		gid:   st.Gid,
	}
}

func open(path string, flags int, mode uint32) (fd int, err error) {
	err = ignoringEINTR(func() error {
		fd, err = unix.Open(path, flags, mode)
		return err
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// openDir opens a directory, and no link to one.
func openDir(path string) (*scm.FD, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return scm.NewFD(fd), nil
}

func unlinkFile(path string) error {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return explain(&fs.PathError{Op: "unlink", Path: path, Err: err}, path)
	}
	return nil
}

// control calls fn with the descriptor's number and returns its error.
func control(fd *scm.FD, fn func(fd int) error) (err error) {
	if controlErr := fd.Control(func(n uintptr) { err = fn(int(n)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// ignoringEINTR: system calls on network and FUSE file systems are interrupted
// by the runtime's own signals.
func ignoringEINTR(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

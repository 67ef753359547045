package rendezvous

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crossfade-go/crossfade/scm"
)

// This file says whether a path leads where it seems to: who could put another file
// in its place, and whether whoever listens there is somebody who may.
//
// Names are resolved here one by one, as the kernel does, from the root on. What is
// in a directory that only trusted users can write to was put there by one of them,
// symbolic links included, so no owner of a file in it matters. Nobody can undo that
// between this look and the use of the path, who is not trusted anyway.

// trust is whom a path may be in the hands of.
type trust struct {
	uids, gids []uint32
	hosts      []uint32 // uids too, but not for what lies in a directory that everybody can write to
	dir        string   // the directory that holds the socket, without symbolic links
	open       bool     // everybody is trusted who can write to dir
}

// trust says whom p is to be in the hands of: root, this user, the members of
// p.Group, and whoever owns the root directory, who is root of the outside where this
// user namespace has no number for that one.
//
// An asker takes nothing from whom it meets, and knows no group: the path that it was
// given also vouches for the one whose directory it names.
func (p Place) trust() (trust, error) {
	t := trust{uids: []uint32{0, uint32(os.Geteuid())}, gids: []uint32{0}, open: p.TrustDirectory}
	if root, err := lstat("/"); err == nil {
		t.uids = append(t.uids, root.uid)
	}
	// The group of a user alone has the user's number, by the custom of useradd(8).
	if os.Getegid() == os.Geteuid() {
		t.gids = append(t.gids, uint32(os.Getegid()))
	}
	gid, err := LookupGroup(p.Group)
	if err != nil {
		return t, err
	}
	if gid >= 0 {
		t.gids = append(t.gids, uint32(gid))
	}
	// A path to nowhere has no directory, or the one where the socket would be made.
	if socket, err := filepath.EvalSymlinks(p.Path); err == nil {
		t.dir = filepath.Dir(socket)
	} else if dir, err := filepath.EvalSymlinks(filepath.Dir(p.Path)); err == nil {
		t.dir = dir
	}
	if dir, err := lstat(t.dir); err == nil && p.asker {
		t.hosts = append(t.hosts, dir.uid)
		if dir.mode.Perm()&0o020 != 0 { // else it is said to be for nobody of that group
			t.gids = append(t.gids, dir.gid)
		}
	}
	return t, nil
}

// maxLinks is how many symbolic links a path may lead over, path_resolution(7).
const maxLinks = 40

// vouch follows the path, and returns the file at its end, the zero one if there is
// nothing, or cannot be seen: who uses the path then finds that out. An error is an
// [*UnsafeError].
func (p Place) vouch() (file, error) {
	t, err := p.trust()
	if err != nil {
		return file{}, err
	}
	unsafe := func(file, reason string) error { return &UnsafeError{Path: p.Path, File: file, Reason: reason} }
	at, rest, links := "/", components(p.Path), 0
	for {
		st, err := lstat(at)
		if err != nil {
			return file{}, nil //nolint:nilerr // see above
		}
		shared, reason := t.directory(at, st)
		if reason != "" {
			return file{}, unsafe(at, reason)
		}
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			at = filepath.Dir(at) // which is none but the real one: at has no links
			if len(rest) == 0 {
				return file{}, nil
			}
			continue
		}
		next := filepath.Join(at, name)
		if len(rest) == 0 && shared {
			for _, beside := range []string{next + lockSuffix, next + tempSuffix} {
				if st, err := lstat(beside); err == nil && !slices.Contains(t.uids, st.uid) {
					return file{}, unsafe(beside, planted(beside, st, at))
				}
			}
		}
		st, err = lstat(next)
		switch {
		case err != nil:
			return file{}, nil //nolint:nilerr // see above
		case shared && !slices.Contains(t.uids, st.uid):
			return file{}, unsafe(next, planted(next, st, at))
		case shared && st.mode.Type() == fs.ModeSocket && st.links > 1:
			return file{}, unsafe(next, fmt.Sprintf("%s has %d names, and who can write to %s may have given it this one: remove it",
				next, st.links, at))
		case st.mode.Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return file{}, nil
			}
			target, err := os.Readlink(next)
			if err != nil {
				return file{}, nil //nolint:nilerr // see above
			}
			if !saysWhere(next) {
				return file{}, unsafe(next, fmt.Sprintf("%s leads into another mount namespace, where the way cannot be checked: "+
					"go there (nsenter --mount --root --target PID) and use the path that it has there", next))
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			if rest = append(components(target), rest...); len(rest) == 0 {
				return file{}, nil
			}
		case len(rest) == 0:
			return st, nil
		default:
			at = next
		}
	}
}

// saysWhere reports whether a symbolic link leads where its text says. Those of proc(5)
// into the files of a process with another mount namespace do not: the kernel follows
// them without a look at the text.
func saysWhere(link string) bool {
	rest, ok := strings.CutPrefix(link, "/proc/")
	process, name, below := strings.Cut(rest, "/")
	if !ok || !below || name == "" {
		return true
	}
	theirs, err := os.Stat("/proc/" + process + "/ns/mnt")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // which is no process, or one without a link to follow
	}
	own, err := os.Stat("/proc/self/ns/mnt")
	return err == nil && os.SameFile(own, theirs)
}

func components(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// directory says why a directory cannot be relied upon, "" if it can. shared says that
// everybody can make files in it, but change only their own: it is sticky.
func (t trust) directory(path string, st file) (shared bool, reason string) {
	who, remedy := "", ""
	switch {
	case !st.mode.IsDir(), t.open && path == t.dir:
		return false, ""
	case !slices.Contains(t.uids, st.uid) && !slices.Contains(t.hosts, st.uid):
		return false, fmt.Sprintf("directory %s has mode %04o, uid %d and gid %d: uid %d, who is neither root nor uid %d, could put another file into it: "+
			"choose a directory of root's or of this user's%s", path, st.mode.Perm(), st.uid, st.gid, st.uid, os.Geteuid(), t.lastResort(path))
	case st.mode.Perm()&0o002 != 0:
		who, remedy = "everybody", "chmod o-w it"
	case st.mode.Perm()&0o020 != 0 && !slices.Contains(t.gids, st.gid):
		who = fmt.Sprintf("the members of group %d", st.gid)
		remedy = fmt.Sprintf("chmod g-w it, or set Config.SocketGroup if all of group %d are trusted", st.gid)
	case st.mode.Perm()&0o020 != 0 && hasList(path):
		who, remedy = "whom its access list names", "see getfacl, and remove the list or chmod g-w"
	default:
		return false, ""
	}
	if st.mode&fs.ModeSticky != 0 {
		return true, ""
	}
	return false, fmt.Sprintf("directory %s has mode %04o, uid %d and gid %d: %s could put another file into it: %s, "+
		"choose another directory%s",
		path, st.mode.Perm(), st.uid, st.gid, who, remedy, t.lastResort(path))
}

// lastResort is what an operator is told last of a directory, nothing of one above the
// socket's: for those it is no help.
func (t trust) lastResort(path string) string {
	if path != t.dir {
		return ""
	}
	return ", or set CROSSFADE_TRUST_DIRECTORY=1 if all who can write there are trusted"
}

// planted is said of a file that others may have put where it is.
func planted(path string, st file, dir string) string {
	return fmt.Sprintf("%s has mode %04o, uid %d and gid %d, in %s, where everybody can make files: it was made by uid %d, who is neither root nor uid %d: "+
		"find out what it is, and choose a directory that only the service's user can write to",
		path, st.mode.Perm(), st.uid, st.gid, dir, st.uid, os.Geteuid())
}

// checkListener is for an asker, who has no rule of its own about owners: whoever
// listens must be one of those who could have put the socket there, or may use it as
// the owner does. st is the socket's file. The kernel tells who it is, so this holds
// too where somebody was quick between a look at the path and its use.
func (p Place) checkListener(conn *scm.Conn, st file) error {
	peer, err := conn.Peer()
	if errors.Is(err, errors.ErrUnsupported) || err == nil && p.TrustDirectory {
		err = nil
		if peer != nil {
			err = peer.Close()
		}
		return err
	}
	if err != nil {
		return err
	}
	defer peer.Close()
	t, err := p.trust()
	if err != nil {
		return err
	}
	known := func(uid uint32) bool {
		return uid == st.uid || uid == 0 || int(uid) == os.Geteuid() || slices.Contains(t.hosts, uid)
	}
	dir, err := lstat(t.dir)
	switch {
	case !peer.Unmapped() && known(peer.UID):
		return nil
	case st.mode.Perm()&0o020 != 0 && peer.In(st.gid):
		return nil
	case err == nil && dir.mode.Perm()&0o020 != 0 && peer.In(dir.gid):
		return nil
	}
	if peer.Unmapped() {
		return &UnsafeError{Path: p.Path, File: p.Path, Reason: fmt.Sprintf(
			"the process that listens there (%v) has the overflow uid, which stands for everybody without a number in this user namespace, and is believed of nobody: "+
				"ask from the namespace that the service's user is of; if that user is nobody, run the service as one of its own; "+
				"or set CROSSFADE_TRUST_DIRECTORY=1 if all are trusted who can write to %s", peer, filepath.Dir(p.Path))}
	}
	return &UnsafeError{Path: p.Path, File: p.Path, Reason: fmt.Sprintf(
		"it is not said to be for the process that listens there (%v): neither the file nor its directory is that user's, or writable for a group of it; %s",
		peer, Rights(p.Path))}
}

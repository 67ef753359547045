package rendezvous

import (
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade/scm"
)

// DefaultBacklog is the length of the accept queue that a zero
// [Place.Backlog] stands for. The kernel caps every backlog at
// net.core.somaxconn (Linux) or kern.ipc.somaxconn (BSD).
const DefaultBacklog = 128

const (
	// More than any kernel grants, and still an int of C.
	maxBacklog = 1 << 20

	defaultMode fs.FileMode = 0o600

	// Appended, so that two paths in one directory never share a name.
	lockSuffix = ".lock"
	tempSuffix = "~" // a directory, see bindTemp

	boundName   = "s" // in it
	boundSuffix = tempSuffix + "/" + boundName
)

// Place is a path and the rights that the socket and the lock file there get.
// The zero value of each field but Path works.
type Place struct {
	// Network is "unix" (the default), "unixpacket" or "unixgram".
	Network string

	// Path is the socket's. A relative one is made absolute against the
	// working directory at the time of the call, see [CheckPath].
	Path string

	// Mode holds the permission bits of the socket and its lock file, 0600
	// if zero. The umask does not apply to it.
	Mode fs.FileMode

	// Group is the name or the number of the group of both files. Empty
	// leaves the one that the system gives to a new file. It is looked up
	// only if nobody answers: reaching a living owner needs no group.
	Group string

	// ReadGroup is a group whose members are to connect and to do nothing else. It
	// is the group of the socket where Group is empty. The lock file, which nobody may
	// hold who is not to own, is for the user and Group alone.
	ReadGroup string

	// TrustDirectory leaves out the check of who can write to the directory of the
	// socket. See [ErrUnsafe].
	TrustDirectory bool

	// Backlog is the length of the accept queue, [DefaultBacklog] if zero.
	// It means nothing to "unixgram".
	Backlog int

	asker bool // who takes nothing from whom it meets, see trust
}

// CheckPath says whether path can be the path of a socket of the network
// ("unix", "unixpacket", "unixgram"; empty is "unix"). An error matches
// [ErrPath] and says what to do. Nothing is looked at in the file system.
//
// A relative path is judged by its absolute form: a working directory may
// change, and that of another process is another one anyway. The longest path
// is a little shorter than a socket address allows ([scm.MaxPath]), for the
// name that is bound at first is longer than the final one.
//
// Abstract names ("@name", Linux) are refused: they belong to one network
// namespace, and every user there may connect to them or take them.
func CheckPath(network, path string) error {
	_, err := absolute(network, path)
	return err
}

func absolute(network, path string) (string, error) {
	switch network {
	case "", "unix", "unixpacket", "unixgram":
	default:
		return "", net.UnknownNetworkError(network)
	}
	switch {
	case path == "":
		return "", &PathError{Path: path, Reason: "it is empty"}
	case strings.HasPrefix(path, "@"):
		return "", &PathError{
			Path: path,
			Reason: "an abstract name belongs to one network namespace and any user there may connect to it: " +
				"use a path, or ./" + path + " for a file of that name",
		}
	case strings.ContainsRune(path, 0):
		return "", &PathError{Path: path, Reason: "it contains a NUL byte"}
	case strings.HasSuffix(path, "/"):
		return "", &PathError{Path: path, Reason: "it names a directory: add the name of the socket"}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", &PathError{Path: path, Reason: "it is relative and the working directory cannot be found", Err: err}
	}
	if most := scm.MaxPath - len(boundSuffix); len(abs) > most {
		return "", &PathError{
			Path: path,
			Reason: fmt.Sprintf("it is %d bytes long and %d is the most: choose a shorter one, "+
				"or reach its directory through a short symbolic link", len(abs), most),
			Err: syscall.ENAMETOOLONG,
		}
	}
	return abs, nil
}

// resolve returns a checked copy of p with its defaults filled in.
func (p Place) resolve() (Place, error) {
	if !supported {
		return p, errUnsupported
	}
	abs, err := absolute(p.Network, p.Path)
	if err != nil {
		return p, err
	}
	p.Path = abs
	if p.Network == "" {
		p.Network = "unix"
	}
	if p.Mode == 0 {
		p.Mode = defaultMode
	}
	if p.Mode != p.Mode.Perm() {
		return p, fmt.Errorf("mode %v of socket %s has more than permission bits", p.Mode, p.Path)
	}
	if p.Backlog == 0 {
		p.Backlog = DefaultBacklog
	}
	if p.Backlog < 0 || p.Backlog > maxBacklog {
		return p, fmt.Errorf("backlog %d of socket %s is not between 0 and %d", p.Backlog, p.Path, maxBacklog)
	}
	return p, nil
}

// control is resolve for a place where an owner listens.
func (p Place) control() (Place, error) {
	p, err := p.resolve()
	if err == nil && p.Network != "unix" {
		err = fmt.Errorf("control socket %s: %w", p.Path, net.UnknownNetworkError(p.Network))
	}
	return p, err
}

// socketGroup is the group that the socket gets; the lock file gets Group, and where
// there are two no right for all others, whom the socket's mode has to let connect.
func (p Place) socketGroup() string {
	if p.Group == "" {
		return p.ReadGroup
	}
	return p.Group
}

func (p Place) lockMode() fs.FileMode {
	switch {
	case p.ReadGroup == "":
		return p.Mode
	case p.Group == "":
		return p.Mode &^ 0o077
	default:
		return p.Mode &^ 0o007
	}
}

func (p Place) lockPath() string { return p.Path + lockSuffix }

func (p Place) tempPath() string { return p.Path + tempSuffix }

// PathOf returns the path at which a socket is that was bound to this name by [Open]
// or [Find], and false if neither has bound it.
func PathOf(bound string) (path string, ok bool) { return strings.CutSuffix(bound, boundSuffix) }

// boundPath is the name that is given to bind(2).
func (p Place) boundPath() string { return p.Path + boundSuffix }

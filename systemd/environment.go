package systemd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// The environment of a process that a service manager has started, systemd.exec(5).
const (
	envNotifySocket = "NOTIFY_SOCKET"  // where to send messages
	envListenPID    = "LISTEN_PID"     // whom the descriptors are meant for
	envListenPIDFD  = "LISTEN_PIDFDID" // the same as the inode number of its pidfd, v259
	envListenFDs    = "LISTEN_FDS"     // how many there are, from firstSocket on
	envListenNames  = "LISTEN_FDNAMES" // their names, with colons between them, v227
	envWatchdog     = "WATCHDOG_USEC"  // how often the manager has to hear from it
	envWatchdogPID  = "WATCHDOG_PID"   // from whom; absent: from anybody
	envFDStore      = "FDSTORE"        // how many descriptors the manager would keep, v254
)

var variables = [...]string{
	envNotifySocket, envListenPID, envListenPIDFD, envListenFDs, envListenNames,
	envWatchdog, envWatchdogPID, envFDStore,
}

// firstSocket is the number of the first descriptor, SD_LISTEN_FDS_START.
const firstSocket = 3

// unknownName is what a descriptor is called that came without a name,
// sd_listen_fds(3).
const unknownName = "unknown"

// Environment is what a service manager has passed to this process. The zero
// value is that of a process which no manager started.
type Environment struct {
	// Notifier speaks to the manager; nil, which works too, if it does not listen.
	Notifier *Notifier

	// Sockets are the descriptors that the manager has passed, in its order: those
	// of the socket units, then those of the unit's descriptor store. Each belongs
	// to the caller of Take.
	Sockets []Socket

	// Watchdog is WatchdogSec= of the unit: the manager takes the service for broken
	// if it does not hear [Alive] for so long. 0: it does not ask for that.
	Watchdog time.Duration

	// FDStore is how many descriptors the manager would keep for the unit, see
	// [Notifier.Store]. 0: none, or the manager is older than v254 and does not
	// tell.
	FDStore int
}

// Socket is a descriptor that the manager has passed, which need not be one of a
// socket.
type Socket struct {
	// Name is that of FileDescriptorName= or of [Notifier.Store], by default the name
	// of the socket unit. "connection" is the connection of a unit with Accept=yes,
	// "stored" comes from the descriptor store and was stored without a name, and
	// "unknown" has no name. Several descriptors may have the same.
	Name string

	// FD is the descriptor. It is close-on-exec.
	FD *scm.FD
}

// Close closes the descriptors that e still has. Further calls, and those of a nil
// Environment, do nothing.
func (e *Environment) Close() error {
	if e == nil {
		return nil
	}
	var errs []error
	for _, s := range e.Sockets {
		errs = append(errs, s.FD.Close())
	}
	return errors.Join(errs...)
}

// takeMu makes taking the environment one step: of two callers one gets it.
var takeMu sync.Mutex

// Take reads what the manager has passed and removes it from the environment, so
// that the process's own children do not take it for theirs. A second call finds
// nothing. A program calls it before it starts other processes: until then they
// would inherit the descriptors.
//
// Descriptors that are meant for another process, by LISTEN_PID or LISTEN_PIDFDID,
// are left alone, and so is WATCHDOG_USEC with another one's WATCHDOG_PID.
//
// Errors name the variable and its value. What makes sense is in the Environment all
// the same, which is never nil, so that a program can warn and go on; descriptors are
// there all or none, and what was passed to this process and is not there is closed.
//
// Elsewhere than on Linux the Environment is empty.
func Take() (*Environment, error) {
	takeMu.Lock()
	defer takeMu.Unlock()
	vars := make(map[string]string)
	var errs []error
	for _, name := range variables {
		if value, ok := os.LookupEnv(name); ok {
			vars[name] = value
			errs = append(errs, os.Unsetenv(name))
		}
	}
	if runtime.GOOS != "linux" {
		return &Environment{}, errors.Join(errs...)
	}
	e := &Environment{}
	var err error
	e.Sockets, err = takeSockets(vars)
	errs = append(errs, err, e.parse(vars))
	return e, errors.Join(errs...)
}

// parse reads all but the descriptors.
func (e *Environment) parse(vars map[string]string) error {
	var errs []error
	if v := vars[envNotifySocket]; v != "" {
		n, err := Open(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envNotifySocket, err))
		}
		e.Notifier = n
	}
	limit, err := parseWatchdog(vars)
	e.Watchdog = limit
	errs = append(errs, err)
	if v := vars[envFDStore]; v != "" {
		most, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			errs, most = append(errs, malformed(envFDStore, v, "a number of descriptors")), 0
		}
		e.FDStore = int(most)
	}
	return errors.Join(errs...)
}

func parseWatchdog(vars map[string]string) (time.Duration, error) {
	v := vars[envWatchdog]
	if v == "" {
		return 0, nil
	}
	if pid, ok := vars[envWatchdogPID]; ok {
		own, err := isOwnPID(envWatchdogPID, pid)
		if err != nil || !own {
			return 0, err
		}
	}
	// The manager's own type has room for more than half a million years, of which
	// the last value stands for none at all.
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n <= 0 || n > int64(maxDuration/time.Microsecond) {
		return 0, malformed(envWatchdog, v, "a time in microseconds")
	}
	return time.Duration(n) * time.Microsecond, nil
}

const maxDuration = time.Duration(1<<63 - 1)

// mostSockets is more than a process can have open: fs.nr_open by default.
const mostSockets = 1 << 20

// takeSockets takes the descriptors, all or, with an error, none.
func takeSockets(vars map[string]string) ([]Socket, error) {
	own, err := meantForSelf(vars)
	if err != nil || !own {
		return nil, err
	}
	v := vars[envListenFDs]
	if v == "" || v == "0" {
		return nil, nil
	}
	count, err := strconv.ParseUint(v, 10, 31)
	if err != nil || count > mostSockets {
		return nil, malformed(envListenFDs, v, "a number of descriptors")
	}
	e := &Environment{}
	for num := firstSocket; num < firstSocket+int(count); num++ {
		fd, inheritErr := scm.Inherited(num)
		if inheritErr != nil {
			// The first one says it. What comes after a gap was meant for this process too.
			if err == nil {
				err = fmt.Errorf("%s=%q: %w", envListenFDs, v, inheritErr)
			}
			continue
		}
		e.Sockets = append(e.Sockets, Socket{FD: fd})
	}
	if err == nil {
		err = nameSockets(e.Sockets, vars)
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e.Sockets, nil
}

// meantForSelf reports whether the descriptors are this process's.
func meantForSelf(vars map[string]string) (bool, error) {
	pid, ok := vars[envListenPID]
	if !ok {
		return false, nil
	}
	if own, err := isOwnPID(envListenPID, pid); err != nil || !own {
		return false, err
	}
	v, ok := vars[envListenPIDFD]
	if !ok {
		return true, nil
	}
	id, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return false, malformed(envListenPIDFD, v, "the inode number of a pidfd")
	}
	pidfd, err := scm.OwnPidfd()
	if err != nil {
		return true, nil // the pid has to do
	}
	defer pidfd.Close()
	own, err := pidfd.PidfdID()
	return err != nil || own == id, nil
}

func isOwnPID(variable, value string) (bool, error) {
	pid, err := strconv.ParseUint(value, 10, 31)
	if err != nil || pid == 0 {
		return false, malformed(variable, value, "a pid")
	}
	return int(pid) == os.Getpid(), nil
}

func nameSockets(sockets []Socket, vars map[string]string) error {
	names := slices.Repeat([]string{unknownName}, len(sockets))
	if v, ok := vars[envListenNames]; ok {
		names = parseNames(v)
		if len(names) != len(sockets) {
			return malformed(envListenNames, v, fmt.Sprintf("a list of %d names", len(sockets)))
		}
	}
	for i := range sockets {
		sockets[i].Name = names[i]
	}
	return nil
}

// parseNames splits a list in which a name may be empty, but not the list: it is
// for no descriptors at all that the manager gives none.
func parseNames(list string) []string {
	names := strings.Split(list, ":")
	for i := range names {
		names[i] = unescapeName(names[i])
	}
	return names
}

func malformed(variable, value, want string) error {
	return fmt.Errorf("%s=%q is not %s", variable, value, want)
}

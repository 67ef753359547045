package systemd

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// State is one thing to tell the manager, for [Notifier.Send]. The functions that
// make one say in which version of systemd it came; a manager ignores what it
// does not know, sd_notify(3).
//
// No value of a State can contain a line break, so that no text can bring in
// another state. One that cannot be expressed is an error of Send.
type State struct {
	lines []string
	err   error
}

// Ready says that the service has started, or has reloaded: READY=1.
func Ready() State { return field("READY", "1") }

// Reloading says that the service begins to reload: RELOADING=1, v217. Ready has
// to follow, however it ended. It carries the time of the call, MONOTONIC_USEC,
// v253, which Type=notify-reload wants; where there is no such clock the error is
// Send's.
func Reloading() State {
	now, err := monotonic()
	if err != nil {
		return State{err: err}
	}
	return State{lines: []string{"RELOADING=1", "MONOTONIC_USEC=" + usec(now)}}
}

// Stopping says that the service is about to stop: STOPPING=1, v217. From v259 on
// nothing takes it back: the unit ends, at the latest after its stop timeout.
func Stopping() State { return field("STOPPING", "1") }

// statusLimit is the most bytes of a Status. systemctl prints it on one line, and
// with the rest of a message it has to fit into one datagram.
const statusLimit = 1024

// Status describes the service for people, as systemctl status shows it: STATUS=,
// v233. Any text will do: line breaks and other unprintable characters become
// spaces, what is not UTF-8 becomes U+FFFD, and after 1024 bytes it ends in an
// ellipsis.
func Status(text string) State {
	line := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
	if len(line) > statusLimit {
		const ellipsis = "…"
		end := statusLimit - len(ellipsis)
		for !utf8.RuneStart(line[end]) {
			end--
		}
		line = line[:end] + ellipsis
	}
	return field("STATUS", line)
}

// ExtendTimeout asks for time: start-up, running or shutdown, whatever the service
// is at, is not too long yet if another message comes within d:
// EXTEND_TIMEOUT_USEC=, v236. It takes effect once the time that the unit's own
// settings grant is over.
func ExtendTimeout(d time.Duration) State {
	return field("EXTEND_TIMEOUT_USEC", usec(max(d, time.Microsecond)))
}

// MainPID says which process is the service's main one from now on: MAINPID=. The
// manager takes one of the unit's own processes, or from root any: it must be
// able to see it, and pid to be a number of its pid namespace.
//
// pidfdID is the inode number of that process's pidfd, see
// [github.com/crossfade-go/crossfade/scm.FD.PidfdID], so that another process
// which has got the same pid is not taken for it: MAINPIDFDID=, v257. It is left
// out where it is 0, unknown.
func MainPID(pid int, pidfdID uint64) State {
	if pid <= 0 {
		return State{err: fmt.Errorf("%d is not the pid of a main process", pid)}
	}
	s := field("MAINPID", strconv.Itoa(pid))
	if pidfdID != 0 {
		s.lines = append(s.lines, "MAINPIDFDID="+strconv.FormatUint(pidfdID, 10))
	}
	return s
}

// Alive says that the service works, which a unit with WatchdogSec= has to hear
// more often than that: WATCHDOG=1. [Notifier.KeepAlive] says it in time.
func Alive() State { return field("WATCHDOG", "1") }

// Broken has the manager do what it does when Alive does not come in time, whether
// the unit has WatchdogSec= or not: WATCHDOG=trigger, v243.
func Broken() State { return field("WATCHDOG", "trigger") }

// WatchdogInterval changes the time within which Alive must come: WATCHDOG_USEC=,
// v233.
func WatchdogInterval(d time.Duration) State {
	if d < time.Microsecond {
		return State{err: fmt.Errorf("%v is no time for a watchdog", d)}
	}
	return field("WATCHDOG_USEC", usec(d))
}

// Errno says with which error the service fails: ERRNO=, v233.
func Errno(e syscall.Errno) State { return field("ERRNO", strconv.Itoa(int(e))) }

// NoPoll goes with [Notifier.Store]: the manager keeps the descriptor until it is
// removed, FDPOLL=0, v246. Without it, and below v246, it drops one on which
// poll(2) reports a hang-up or an error, as on a pipe without a reader, or on a
// UDP socket that an ICMP message has come for.
func NoPoll() State { return field("FDPOLL", "0") }

// Field is any other assignment, of which sd_notify(3) has some and X_ begins
// those of one's own. The name consists of upper-case letters, digits and
// underscores, the value is UTF-8 without control characters.
func Field(name, value string) State {
	if !fieldName(name) {
		return State{err: fmt.Errorf("%q cannot be the name of a field", name)}
	}
	return field(name, value)
}

func field(name, value string) State {
	for _, r := range value {
		if unicode.IsControl(r) {
			return State{err: fmt.Errorf("the value of %s, %q, has a control character", name, value)}
		}
	}
	if !utf8.ValidString(value) {
		return State{err: fmt.Errorf("the value of %s, %q, is not UTF-8", name, value)}
	}
	return State{lines: []string{name + "=" + value}}
}

func fieldName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return name != ""
}

func usec(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

// maxMessage is the most bytes of a message that a manager reads; a longer one it
// drops as a whole. src/core/manager.c, NOTIFY_BUFFER_MAX.
const maxMessage = 4096

var errNothingToSay = errors.New("a message to the manager without any state")

// compose makes the payload of one datagram.
func compose(states []State) ([]byte, error) {
	var lines []string
	for _, s := range states {
		if s.err != nil {
			return nil, s.err
		}
		lines = append(lines, s.lines...)
	}
	if len(lines) == 0 {
		return nil, errNothingToSay
	}
	payload := strings.Join(lines, "\n")
	if len(payload) > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes, the manager reads at most %d: %w", len(payload), maxMessage, syscall.EMSGSIZE)
	}
	return []byte(payload), nil
}

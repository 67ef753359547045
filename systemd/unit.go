package systemd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// SameUnit reports whether the process with this pid belongs to the same unit as
// this one, by the control groups of both: /proc/PID/cgroup, cgroups(7). The
// control group of a unit and those below it, which Delegate= gives a service,
// count as one. Processes that are in no unit, as in a container which sees no
// further than itself, belong together if their control group is the same.
//
// A pid of 0, of a process that this pid namespace cannot see, and one that has
// ended are errors, the latter matching [os.ErrNotExist].
func SameUnit(pid int) (bool, error) {
	if runtime.GOOS != "linux" {
		return false, fmt.Errorf("control groups on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	if pid <= 0 {
		return false, fmt.Errorf("no process can be found by the pid %d", pid)
	}
	own, err := unitOf("self")
	if err != nil {
		return false, err
	}
	other, err := unitOf(fmt.Sprint(pid))
	if err != nil {
		return false, err
	}
	return own == other, nil
}

func unitOf(process string) (string, error) {
	path := "/proc/" + process + "/cgroup"
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	unit, err := parseCgroup(string(text))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return unit, nil
}

var errNoCgroup = errors.New("no control group of a service manager")

// parseCgroup returns the path of a unit's control group. Lines are
// hierarchy:controllers:path. There may be two of them for units, of which the manager uses
// one, and every process has / in the other: that of version 1 counts if it says more.
func parseCgroup(text string) (string, error) {
	var v1, v2 string
	for line := range strings.Lines(text) {
		id, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 || !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("the line %q is not hierarchy:controllers:path", line)
		}
		switch {
		case controllers == "name=systemd":
			v1 = path
		case id == "0" && controllers == "":
			v2 = path
		}
	}
	switch {
	case v2 != "" && (v1 == "" || v1 == "/"):
		return unitPath(v2), nil
	case v1 != "":
		return unitPath(v1), nil
	}
	return "", errNoCgroup
}

// unitPath cuts off what is below the unit: of a user's service the outer unit is
// user@UID.service and the inner one counts. A path without a unit is itself.
func unitPath(path string) string {
	// So the kernel marks what has been removed while a process was in it.
	path = strings.TrimSuffix(path, " (deleted)")
	for end := len(path); end > 0; end = strings.LastIndexByte(path[:end], '/') {
		if p := path[:end]; strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope") {
			return p
		}
	}
	return path
}

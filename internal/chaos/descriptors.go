//go:build linux

package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// inventory is what a process has open: how many of each kind. A kind is what
// stays the same from one process to the next in the same role.
type inventory map[string]int

// inventoryOf looks at a process from outside. The inode numbers of sockets are
// found in the tables of the network namespace, which the harness shares. While
// others open and close sockets the kernel may pass over one in a table, so what
// is in none is looked for again.
func inventoryOf(pid int) (inventory, error) {
	for range inventoryLooks - 1 {
		have, err := lookInto(pid)
		if err != nil || have[kindUnknown] == 0 {
			return have, err
		}
	}
	return lookInto(pid)
}

// inventoryLooks is how often inventoryOf looks for what it does not find.
const inventoryLooks = 10

func lookInto(pid int) (inventory, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	links := make([]string, 0, len(entries))
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		links = append(links, link)
	}
	sockets, err := socketKinds()
	if err != nil {
		return nil, err
	}
	have := make(inventory)
	for _, link := range links {
		kind, number, found := strings.Cut(link, ":[")
		switch {
		case found && kind == "socket":
			// Not in any table: closed since, or of a protocol nobody uses here.
			kind = kindUnknown
			if k := sockets[strings.TrimSuffix(number, "]")]; k != "" {
				kind = k
			}
		case !found:
			kind = link
		}
		switch {
		case strings.HasSuffix(link, ".stderr"):
			kind = "standard error"
		case strings.HasPrefix(link, "/sys/fs/cgroup/"):
			continue // the Go runtime's, which follows the limits of its cgroup
		}
		have[kind]++
	}
	return have, nil
}

// The kinds of sockets.
const (
	kindTCPListener  = "tcp listener"
	kindTCPConn      = "tcp connection"
	kindUDP          = "udp socket"
	kindUnixListener = "unix listener "
	kindUnixConn     = "unix connection "
	kindPair         = "unix connection without a name"
	kindUnknown      = "socket of an unknown kind"

	// What accept(2) returns has the name that its listener was bound to.
	kindHandoff = kindUnixConn + "control~/s"
	kindClient  = kindUnixConn + "local~/s"
)

// tcpListen is the state of a listening socket in /proc/net/tcp, tcp(4).
const tcpListen = "0A"

// socketKinds tells the kind of every socket by its inode.
func socketKinds() (map[string]string, error) {
	kinds := make(map[string]string)
	for _, table := range []struct {
		file       string
		ino, width int // the column of the inode, and how many columns there are at least
		kind       func([]string) string
	}{
		{"tcp", 9, 10, func(f []string) string {
			if f[3] == tcpListen {
				return kindTCPListener
			}
			return kindTCPConn
		}},
		{"udp", 9, 10, func([]string) string { return kindUDP }},
		{"unix", 6, 7, func(f []string) string {
			path := strings.Join(f[7:], " ")
			name := filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path)) // as bound
			switch {
			case f[3] == "00010000": // __SO_ACCEPTCON, proc(5)
				return kindUnixListener + name
			case path == "":
				return kindPair
			default:
				return kindUnixConn + name
			}
		}},
	} {
		text, err := os.ReadFile("/proc/self/net/" + table.file)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) >= table.width {
				kinds[fields[table.ino]] = table.kind(fields)
			}
		}
	}
	return kinds, nil
}

// String lists the kinds in order.
func (v inventory) String() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(v)) {
		parts = append(parts, fmt.Sprintf("%d x %s", v[kind], kind))
	}
	return strings.Join(parts, ", ")
}

func (v inventory) total() int {
	n := 0
	for _, count := range v {
		n += count
	}
	return n
}

// minus is what v has more, or less, of each kind than w.
func (v inventory) minus(w inventory) inventory {
	diff := make(inventory)
	for kind, n := range v {
		if d := n - w[kind]; d != 0 {
			diff[kind] = d
		}
	}
	for kind, n := range w {
		if _, ok := v[kind]; !ok {
			diff[kind] = -n
		}
	}
	return diff
}

// holdsNothing returns what an inventory has that a process which is out must
// not have (I6): anything but what every process has and accepted connections. A
// retired predecessor keeps its end of the handoff connection until it exits.
func (v inventory) holdsNothing(retired bool) inventory {
	rest := make(inventory)
	for kind, n := range v {
		switch {
		case kind == kindPair:
			n-- // the side channel
		case kind == kindHandoff && retired:
			n--
		case kind == kindTCPConn, kind == kindClient, kind == "anon_inode", kind == "pipe",
			kind == "standard error", kind == os.DevNull, strings.HasPrefix(kind, "anon_inode:"):
			n = 0
		}
		if n != 0 {
			rest[kind] = n
		}
	}
	return rest
}

// closeLimit is how long a process may take to close what it must not have any
// more.
const closeLimit = 10 * time.Second

// awaitInventory waits until wrong finds nothing wrong in what the process has
// open, and returns what it finds at last. Nothing announces a close, so it looks
// again, less and less often.
func (p *process) awaitInventory(ctx context.Context, wrong func(inventory) inventory) error {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		have, err := inventoryOf(p.pid())
		if err != nil {
			return err
		}
		rest := wrong(have)
		if len(rest) == 0 {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: wrong descriptors: %v (of %v)", p.name, rest, have)
		}
	}
}

package rendezvous

import (
	"fmt"
	"os/user"
	"strconv"
)

// LookupGroup returns the number of a group that is given by name or number, -1
// for the empty one, which is to be left alone.
func LookupGroup(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("group of the socket: %w", err)
	}
	return strconv.Atoi(g.Gid)
}

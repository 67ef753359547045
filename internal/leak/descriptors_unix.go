//go:build unix

package leak

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// mostDescriptors bounds the search where no directory lists what is open.
const mostDescriptors = 1 << 14

// descriptors returns what this process has open.
func descriptors() map[int]descriptor {
	found := make(map[int]descriptor)
	for _, num := range numbers() {
		var st syscall.Stat_t
		// The directory that was read for the numbers is closed by now.
		if err := syscall.Fstat(num, &st); err != nil {
			continue
		}
		name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", num))
		d := descriptor{identity: fmt.Sprintf("%d:%d", st.Dev, st.Ino), name: name}
		if d.name == "" {
			d.name = fmt.Sprintf("mode %#o, inode %d", st.Mode, st.Ino)
		}
		if strings.HasPrefix(name, "anon_inode:") {
			// These share one inode.
			d.identity += ":" + name
		}
		found[num] = d
	}
	return found
}

// numbers lists the candidates. /dev/fd of the BSDs may show the standard
// streams only, so without /proc every number is tried.
func numbers() []int {
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		nums := make([]int, 0, len(entries))
		for _, e := range entries {
			var num int
			if _, err := fmt.Sscan(e.Name(), &num); err == nil {
				nums = append(nums, num)
			}
		}
		return nums
	}
	most := mostDescriptors
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && uint64(limit.Cur) < mostDescriptors { //nolint:unconvert // signed on some systems
		most = int(limit.Cur)
	}
	nums := make([]int, most)
	for i := range nums {
		nums[i] = i
	}
	return nums
}

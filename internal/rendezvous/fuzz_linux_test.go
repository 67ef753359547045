package rendezvous_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// FuzzHolder: a pid is named only if a line of the file has it, for this inode.
func FuzzHolder(f *testing.F) {
	f.Add([]byte("1: FLOCK  ADVISORY  WRITE 1234 fe:00:9977954 0 EOF\n"), uint32(0xfe), uint32(0), uint64(9977954))
	f.Add([]byte("1: -> FLOCK  ADVISORY  WRITE 1234 fe:00:1 0 EOF\n2: POSIX  ADVISORY  READ 5 fe:00:1 128 128\n"), uint32(0xfe), uint32(0), uint64(1))
	f.Add([]byte("1: FLOCK ADVISORY WRITE -1 00:00:0 0 EOF\n:\n\x00"), uint32(0), uint32(0), uint64(0))
	f.Fuzz(func(t *testing.T, locks []byte, major, minor uint32, ino uint64) {
		pid := rendezvous.FindHolder(bytes.NewReader(locks), major, minor, ino)
		if pid < 0 || pid > 0 && !bytes.Contains(locks, fmt.Appendf(nil, "%02x:%02x:%d", major, minor, ino)) {
			t.Errorf("pid %d holds the lock", pid)
		}
	})
}

// FuzzUmask: what is no umask is the safe one, and what is one has nothing but
// permissions.
func FuzzUmask(f *testing.F) {
	f.Add([]byte("Name:\tx\nUmask:\t0022\nState:\tR\n"))
	f.Add([]byte("Umask:\t9\n"))
	f.Add([]byte("Umask: 77777777777\n"))
	f.Fuzz(func(t *testing.T, status []byte) {
		if mask := rendezvous.ParseUmask(status); mask != mask.Perm() {
			t.Errorf("the umask is %v", mask)
		}
	})
}

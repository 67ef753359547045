package scm

import (
	"fmt"
	"syscall"
)

// Reserve makes room for n more descriptors. It checks RLIMIT_NOFILE, getrlimit(2),
// and has the kernel grow the descriptor table at once.
//
// The table of a process with several threads doubles at the price of
// milliseconds each time, while descriptors are being received: Reserve pays
// that earlier. It keeps nothing open. Others in the process may use up the room
// meanwhile. If there is not enough the error is a [*LimitError].
func Reserve(n int) error {
	if n <= 0 {
		return nil
	}
	return reserve(n)
}

// Reserve is the package's [Reserve] for who receives one descriptor after another,
// of which f is the last: as long as its number, the lowest that was free, is n below
// the limit, there is room, and nothing else is looked at.
func (f *FD) Reserve(n int) error {
	num, err := f.acquire()
	if err != nil {
		return err
	}
	f.release()
	if farBelowLimit(num, n) {
		return nil
	}
	return Reserve(n)
}

// LimitError says that RLIMIT_NOFILE leaves no room. It matches EMFILE.
type LimitError struct {
	Need  int // descriptors that would be open
	Limit int // the limit in force
}

// Error has both numbers and what to do.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%d descriptors are needed but RLIMIT_NOFILE allows %d: raise it, with LimitNOFILE= in a unit or ulimit -n in a shell", e.Need, e.Limit)
}

// Unwrap returns EMFILE.
func (e *LimitError) Unwrap() error { return syscall.EMFILE }

package scm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
)

// Peer is the process at the other end of a connection, as the kernel recorded
// it: at connect(2) for the one that accepted, at listen(2) for the one that
// dialled. It may have passed the socket on since.
//
// All methods may be called concurrently.
type Peer struct {
	// UID and GID are the effective ones, mapped into this user namespace.
	UID, GID uint32

	// PID is 0 where it is unknown: the system does not say, or the process lives
	// in a pid namespace that this one cannot see. A number may have been reused;
	// Exited may not.
	PID int

	// Groups are the supplementary groups, nil where the system does not say.
	// SO_PEERGROUPS, Linux 4.13.
	Groups []uint32

	mu     sync.Mutex
	pidfd  *os.File // nil where the kernel gives none, and after Close
	exited chan struct{}
	done   chan struct{} // closed when the waiting goroutine has ended; nil if none was started
}

// Unmapped reports whether UID is the kernel's overflow uid, which stands for
// every user without a mapping in this user namespace, user_namespaces(7). It
// identifies nobody and must never be taken for a match.
func (p *Peer) Unmapped() bool { return overflowUID(p.UID) }

// In reports whether gid is the process's effective group or among its
// supplementary ones. The overflow gid, which stands for every group without a
// mapping in this user namespace, has no members.
func (p *Peer) In(gid uint32) bool {
	return !overflowGID(gid) && (p.GID == gid || slices.Contains(p.Groups, gid))
}

// Executable returns the path of the file that the process runs, as far as that can
// be seen: with " (deleted)" behind it once the file has been replaced, and by the
// names of the process's own mount namespace. It is certain to be that process's,
// whatever has become of its number.
//
// It is a hint for a log and a guard against mistakes, no proof of anything: who may
// run a process as that user may have it run any file, run the same file with other
// arguments and libraries, or trace it, and a process that has exited may have left
// its socket to another. Who must be kept out needs another user.
//
// Linux only, and with SO_PEERPIDFD (6.5); elsewhere, and after Close, the error
// matches [errors.ErrUnsupported]. Of another user's process only root may know it:
// [os.ErrPermission]. Of one that has exited, or that this pid namespace cannot see:
// [os.ErrProcessDone].
func (p *Peer) Executable() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return "", fmt.Errorf("no pidfd of the peer: %w", errors.ErrUnsupported)
	}
	return executable(p.pidfd)
}

// Exited returns a channel that is closed when the process has exited, whoever
// holds its sockets now. The kernel tells through SO_PEERPIDFD, Linux 6.5; where
// it cannot, or if Close came first, the channel is nil. Close ends the watch
// without closing the channel.
func (p *Peer) Exited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited == nil && p.pidfd != nil {
		p.exited = make(chan struct{})
		p.done = make(chan struct{})
		go p.watch(p.pidfd, p.exited, p.done)
	}
	return p.exited
}

func (p *Peer) watch(pidfd *os.File, exited, done chan struct{}) {
	defer close(done)
	if awaitExit(pidfd) == nil {
		close(exited)
	}
}

// Kill ends the process with SIGKILL, and certainly no other, whatever has become
// of its number. Errors are those of [FD.Signal]; one that matches
// [errors.ErrUnsupported] says that the kernel gives no pidfd of a peer, or that
// Close came first.
func (p *Peer) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return fmt.Errorf("no pidfd of the peer: %w", errors.ErrUnsupported)
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var killErr error
	if err := raw.Control(func(fd uintptr) { killErr = signal(int(fd), syscall.SIGKILL) }); err != nil {
		return err
	}
	return killErr
}

// PidfdID is [FD.PidfdID] of the peer, whatever has become of its number.
func (p *Peer) PidfdID() (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd == nil {
		return 0, fmt.Errorf("no pidfd of the peer: %w", errors.ErrUnsupported)
	}
	return pidfdIDOf(p.pidfd)
}

// Close releases what Exited needs, and waits for its goroutine. Further calls
// return nil.
func (p *Peer) Close() error {
	p.mu.Lock()
	pidfd, done := p.pidfd, p.done
	p.pidfd = nil
	p.mu.Unlock()
	var err error
	if pidfd != nil {
		err = pidfd.Close()
	}
	if done != nil {
		<-done
	}
	return err
}

// String gives the numbers for a log: "pid 12, uid 0, gid 0".
func (p *Peer) String() string {
	if p.PID == 0 {
		return fmt.Sprintf("pid unknown, uid %d, gid %d", p.UID, p.GID)
	}
	return fmt.Sprintf("pid %d, uid %d, gid %d", p.PID, p.UID, p.GID)
}

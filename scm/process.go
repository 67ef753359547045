package scm

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// Process is a process that a pidfd names, and never another, whatever becomes of
// its number. It need not be a child of this one. All methods may be called
// concurrently.
type Process struct{ pidfd *os.File }

// NewProcess takes ownership of the descriptor pidfd, also on an error, such as one
// of [syscall.SysProcAttr.PidFD]; it must be close-on-exec already, as that is.
// O_NONBLOCK is set on the open file description, which waitid(2) obeys. Linux only;
// elsewhere the error matches [errors.ErrUnsupported].
func NewProcess(pidfd int) (*Process, error) {
	fd := &FD{num: pidfd}
	if err := fd.CheckPidfd(); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	if err := setNonblock(pidfd); err != nil { // then the poller takes it
		return nil, errors.Join(err, fd.Close())
	}
	file := os.NewFile(uintptr(fd.disown()), "pidfd")
	if err := file.SetReadDeadline(time.Time{}); err != nil { // the poller has not taken it
		return nil, errors.Join(err, file.Close())
	}
	return &Process{file}, nil
}

// AwaitExit returns nil when the process has exited, whether somebody has waited for
// it or not, and an error after Close.
func (p *Process) AwaitExit() error { return awaitExit(p.pidfd) }

// ExitStatus waits until the process has exited and its parent has waited for it, and
// returns what the parent was told. It is for those who are not the parent. Close ends
// it with an error.
//
// The kernel tells since Linux 6.15 (PIDFD_GET_INFO). Where it does not the error
// matches [errors.ErrUnsupported]: before 6.13 at once, in between when the parent has
// waited.
func (p *Process) ExitStatus() (syscall.WaitStatus, error) { return exitStatus(p.pidfd) }

// PidfdID is [FD.PidfdID] of the process, whatever has become of its number.
func (p *Process) PidfdID() (uint64, error) { return pidfdIDOf(p.pidfd) }

func pidfdIDOf(pidfd *os.File) (uint64, error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	var (
		id    uint64
		idErr error
	)
	if err := raw.Control(func(fd uintptr) { id, idErr = pidfdID(int(fd)) }); err != nil {
		return 0, err
	}
	return id, idErr
}

// Signal is [FD.Signal] of the process.
func (p *Process) Signal(s syscall.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var signalErr error
	if err := raw.Control(func(fd uintptr) { signalErr = signal(int(fd), s) }); err != nil {
		return err
	}
	return signalErr
}

// Close ends AwaitExit and ExitStatus, and lets the process be. Further calls return
// an error.
func (p *Process) Close() error { return p.pidfd.Close() }

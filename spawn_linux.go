package crossfade

import (
	"syscall"

	"github.com/crossfade-go/crossfade/scm"
)

// asSibling returns attr, changed so that what is started with it becomes a child of
// this process's own parent, and its pidfd goes to *pidfd. False: it has to be this
// process's child.
//
// Some attributes are for the process that starts another: it traces it, is the one
// whose end ends it, or wants its pidfd for itself. clone3(2), which a control group and a
// time namespace need, is called by package syscall in a way that does not go with
// CLONE_PARENT, and old kernels have none of it in a new user or pid namespace.
func asSibling(attr *syscall.SysProcAttr, pidfd *int) (*syscall.SysProcAttr, bool) {
	const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWUSER | syscall.CLONE_NEWTIME
	var changed syscall.SysProcAttr
	if attr != nil {
		changed = *attr
	}
	if changed.Ptrace || changed.Pdeathsig != 0 || changed.PidFD != nil || changed.UseCgroupFD ||
		changed.Cloneflags&namespaces != 0 {
		return attr, false
	}
	own, err := scm.OwnPidfd()
	if err != nil { // then nobody would know when it exits
		return attr, false
	}
	_ = own.Close()
	changed.Cloneflags |= syscall.CLONE_PARENT
	changed.PidFD = pidfd
	return &changed, true
}

package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/crossfade-go/crossfade"
)

// takeGuard returns the locked file that says that the data directory belongs to
// this service, from its first process to its last. The file is the caller's; the
// registry has a copy for the next successor.
//
// A flock(2) belongs to the open file description, which a passed descriptor
// shares. So the lock travels: it is held without a gap, by whoever has a copy
// open, and ends with the last of them. For the same reason nobody may unlock it:
// LOCK_UN by one process is one for all. It is let go of by closing.
//
// The lock of the database itself cannot be handed over like this. bbolt keeps
// what it has read in memory, and its Close unlocks: two processes with one
// description would neither see each other's writes nor be locked out. So the
// database is closed and opened again, and in between nobody has it; what keeps
// strangers out of it in that moment is the guard.
func takeGuard(fds *crossfade.Fds, path string) (*os.File, error) {
	guard, err := fds.File("guard")
	if err == nil {
		return guard, sameFile(guard, path)
	}
	if !errors.Is(err, crossfade.ErrNotInherited) {
		return nil, err
	}
	guard, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = lock(guard)
	if err == nil {
		err = fds.AddFile("guard", guard)
	}
	if err != nil {
		return nil, errors.Join(err, guard.Close())
	}
	return guard, nil
}

func lock(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		return err
	}
	if errors.Is(failed, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s is locked: another service uses the directory", file.Name())
	}
	return os.NewSyscallError("flock", failed)
}

// sameFile reports a guard of another directory than the one that was configured.
func sameFile(guard *os.File, path string) error {
	have, err := guard.Stat()
	if err != nil {
		return err
	}
	want, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(have, want) {
		return fmt.Errorf("%s is not the file that the predecessor has locked: the directory is another", path)
	}
	return nil
}

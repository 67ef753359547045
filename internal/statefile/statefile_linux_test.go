package statefile_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/statefile"
	"github.com/crossfade-go/crossfade/scm"
)

func sealedState(t *testing.T, content string) *scm.FD {
	t.Helper()
	w, err := statefile.Create("test")
	if err != nil {
		t.Fatal(err)
	}
	fd := written(t, w, content)
	sealed, err := statefile.Check(fd)
	if err != nil {
		t.Fatal(err)
	}
	if !sealed {
		t.Skip("this system permits no memfd")
	}
	return fd
}

// Whoever has the descriptor, and opens the file anew as its owner may, cannot
// change it.
func TestASealedStateStaysAsItIs(t *testing.T) {
	leak.Check(t)
	fd := sealedState(t, "content")
	var path string
	if err := fd.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/self/fd/%d", fd) }); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, change := range map[string]func() error{
		"write":    func() error { _, err := file.WriteAt([]byte("x"), 0); return err },
		"append":   func() error { _, err := file.WriteAt([]byte("x"), 7); return err },
		"truncate": func() error { return file.Truncate(1) },
		"grow":     func() error { return file.Truncate(100) },
	} {
		if err := change(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if name, err := os.Readlink(path); err != nil || !strings.Contains(name, "memfd:crossfade:test") {
		t.Errorf("it is seen as %q, %v", name, err)
	}
}

func TestAStateCanBeMapped(t *testing.T) {
	leak.Check(t)
	fd := sealedState(t, "content")
	file, err := statefile.Open(fd, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, flags := range map[string]int{"shared": unix.MAP_SHARED, "private": unix.MAP_PRIVATE} {
		b, err := ask(t, file, func(fd int) ([]byte, error) { return unix.Mmap(fd, 0, 7, unix.PROT_READ, flags) })
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(b, []byte("content")) {
			t.Errorf("%s: mapped %q", name, b)
		}
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	}
}

func TestEachOpenHasItsOwnOffset(t *testing.T) {
	leak.Check(t)
	fd := sealedState(t, "content")
	first, err := statefile.Open(fd, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := statefile.Open(fd, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	for _, file := range []*os.File{first, second} {
		if got, err := io.ReadAll(file); err != nil || string(got) != "content" {
			t.Errorf("read %q, %v", got, err)
		}
	}
}

func TestCheckOfSeals(t *testing.T) {
	const all = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	for _, tt := range []struct {
		name   string
		flags  int
		seals  int
		sealed bool
		want   error
	}{
		{name: "all seals", flags: unix.MFD_ALLOW_SEALING, seals: all, sealed: true},
		{name: "and one more", flags: unix.MFD_ALLOW_SEALING, seals: all | unix.F_SEAL_SEAL, sealed: true},
		{name: "none", flags: unix.MFD_ALLOW_SEALING, want: statefile.ErrUnsealed},
		{name: "it can be written", flags: unix.MFD_ALLOW_SEALING, seals: unix.F_SEAL_SHRINK | unix.F_SEAL_GROW, want: statefile.ErrUnsealed},
		{name: "it can be written by a mapping", flags: unix.MFD_ALLOW_SEALING, seals: unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE, want: statefile.ErrUnsealed},
		{name: "it can be truncated", flags: unix.MFD_ALLOW_SEALING, seals: unix.F_SEAL_GROW | unix.F_SEAL_WRITE, want: statefile.ErrUnsealed},
		{name: "it can grow", flags: unix.MFD_ALLOW_SEALING, seals: unix.F_SEAL_SHRINK | unix.F_SEAL_WRITE, want: statefile.ErrUnsealed},
		{name: "it cannot be sealed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			num, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|tt.flags)
			if err != nil {
				t.Skipf("memfd_create: %v", err)
			}
			fd := scm.NewFD(num)
			defer fd.Close()
			if tt.seals != 0 {
				if _, err := unix.FcntlInt(uintptr(num), unix.F_ADD_SEALS, tt.seals); err != nil {
					t.Skipf("this kernel does not know a seal: %v", err)
				}
			}
			if sealed, err := statefile.Check(fd); sealed != tt.sealed || !errors.Is(err, tt.want) {
				t.Errorf("got %t, %v", sealed, err)
			}
		})
	}
}

// A file on a tmpfs knows seals and can have none.
func TestAPlainFileOnATmpfs(t *testing.T) {
	leak.Check(t)
	dir, err := os.MkdirTemp("/dev/shm", "crossfade")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	file, err := os.Create(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := scm.DupFD(file)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if sealed, err := statefile.Check(fd); sealed || err != nil {
		t.Errorf("sealed is %t, %v", sealed, err)
	}
}

func TestCheckRefusesALargeSealedState(t *testing.T) {
	leak.Check(t)
	num, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Skipf("memfd_create: %v", err)
	}
	fd := scm.NewFD(num)
	defer fd.Close()
	if err := unix.Ftruncate(num, statefile.MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(num), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	if _, err := statefile.Check(fd); !errors.Is(err, statefile.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestStatesAreCloseOnExec(t *testing.T) {
	leak.Check(t)
	fd := sealedState(t, "content")
	file, err := statefile.Open(fd, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	flags := func(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0) }
	if got, err := ask(t, file, flags); err != nil || got&unix.FD_CLOEXEC == 0 {
		t.Errorf("the file's flags are %#x, %v", got, err)
	}
	err = fd.Control(func(fd uintptr) {
		if got, err := flags(int(fd)); err != nil || got&unix.FD_CLOEXEC == 0 {
			t.Errorf("the descriptor's flags are %#x, %v", got, err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// ask calls fn with the number behind c.
func ask[T any](t testing.TB, c syscall.Conn, fn func(fd int) (T, error)) (v T, err error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { v, failed = fn(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return v, failed
}

// A state may be a secret. Where the system forbids what keeps it in memory there is
// none, rather than one on a disk.
func TestStatesAreNeverFilesOnLinux(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	fd := sealedState(t, "content")
	err := fd.Control(func(fd uintptr) {
		if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || !strings.HasPrefix(name, "/memfd:") {
			t.Errorf("the state is %q, %v", name, err)
		}
	})
	if err != nil {
		t.Error(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and the thread, which can do less from now on, ends with the goroutine
		if err := forbidMemfds(); err != nil {
			result <- fmt.Errorf("no filter: %w", err)
			return
		}
		w, err := statefile.Create("secret")
		if err == nil {
			w.Abandon()
		}
		result <- err
	}()
	if err := <-result; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "kept in memory only") {
		t.Errorf("without memfds: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v are in the temporary directory", left, err)
	}
}

// forbidMemfds has this thread's memfd_create fail, as a container's filter of system
// calls does, seccomp(2).
func forbidMemfds() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call, at offset 0
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MEMFD_CREATE, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

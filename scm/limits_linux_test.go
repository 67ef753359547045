package scm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

// openDescriptors counts what this process has open.
func openDescriptors() (int, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	return len(entries), err
}

func setDescriptorLimit(n int) error {
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)})
}

// run runs the process called name and fails the test if it fails.
func run(t *testing.T, name string) {
	t.Helper()
	if err := reexec.Command(name).Run(); err != nil {
		t.Fatalf("process %q: %v", name, err)
	}
}

// connected is pair for a process that is no test.
func connected() (a, b *scm.Conn, err error) {
	a, theirs, err := scm.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	fd, err := scm.DupFD(theirs)
	if err != nil {
		return nil, nil, err
	}
	b, err = scm.OpenConn(fd)
	return a, b, err
}

func init() {
	processes["run out of descriptors"] = reexec.Checked(func() error {
		a, b, err := connected()
		if err != nil {
			return err
		}
		fd, err := scm.DupFD(os.Stderr)
		if err != nil {
			return err
		}
		fds := make([]*scm.FD, 50)
		for i := range fds {
			fds[i] = fd
		}
		before, err := openDescriptors()
		if err != nil {
			return err
		}
		if err := setDescriptorLimit(before + 10); err != nil {
			return err
		}
		ctx := context.Background()
		if err := a.Send(ctx, []byte("too many"), fds...); err != nil {
			return err
		}
		payload, got, err := b.Receive(ctx, scm.MaxDescriptors)
		var frameErr *scm.FrameError
		if !errors.Is(err, scm.ErrTruncated) || !errors.As(err, &frameErr) || payload != nil || got != nil {
			return fmt.Errorf("received %q with %d descriptors, error %w", payload, len(got), err)
		}
		if frameErr.Want != before+10 || frameErr.Got < 1 || frameErr.Got >= 50 {
			return fmt.Errorf("the numbers are wrong: %w", err)
		}
		for _, cause := range []string{"RLIMIT_NOFILE is " + strconv.Itoa(before+10), "security module"} {
			if !strings.Contains(err.Error(), cause) {
				return fmt.Errorf("%w: this does not name %q", err, cause)
			}
		}
		after, err := openDescriptors()
		if err != nil {
			return err
		}
		if after != before {
			return fmt.Errorf("%d descriptors were open, now %d are", before, after)
		}
		// Deaf, but not dead.
		if err := a.Send(ctx, []byte("too many again"), fds...); err != nil {
			return err
		}
		if err := a.Close(); err != nil {
			return err
		}
		if err := b.Discard(ctx); err != nil {
			return err
		}
		if after, err = openDescriptors(); err != nil || after != before-1 {
			return fmt.Errorf("%d descriptors are open after Discard, want %d: %w", after, before-1, err)
		}
		return nil
	})
}

func TestDescriptorsThatFindNoRoom(t *testing.T) {
	leak.Check(t)
	run(t, "run out of descriptors")
}

func init() {
	processes["too many in flight"] = reexec.Checked(func() error {
		// The count is per user: this one is nobody else's. Setuid drops the
		// capabilities that would lift the limit.
		if os.Geteuid() == 0 {
			id := 1_000_000 + os.Getpid()
			if err := syscall.Setgid(id); err != nil {
				return err
			}
			if err := syscall.Setuid(id); err != nil {
				return err
			}
		}
		const limit = 64
		if err := setDescriptorLimit(limit); err != nil {
			return err
		}
		a, b, err := connected()
		if err != nil {
			return err
		}
		fd, err := scm.DupFD(os.Stderr)
		if err != nil {
			return err
		}
		fds := make([]*scm.FD, 40)
		for i := range fds {
			fds[i] = fd
		}
		sent := 0
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			err = a.Send(ctx, []byte("page"), fds...)
			cancel()
			if err != nil {
				break
			}
			if sent++; sent > limit {
				return errors.New("this kernel does not limit descriptors in flight")
			}
		}
		if !errors.Is(err, unix.ETOOMANYREFS) || !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("too many in flight gave %w", err)
		}
		// Nothing went out, so the connection is as before. One that waits goes on
		// as soon as there is room.
		result := make(chan error, 1) // one result
		go func() { result <- a.Send(context.Background(), []byte("late"), fds...) }()
		for i := range sent + 1 {
			payload, got, err := b.Receive(context.Background(), len(fds))
			if err != nil {
				return err
			}
			if want := map[bool]string{false: "page", true: "late"}[i == sent]; string(payload) != want || len(got) != len(fds) {
				return fmt.Errorf("frame %d is %q with %d descriptors", i, payload, len(got))
			}
			for _, f := range got {
				if err := f.Close(); err != nil {
					return err
				}
			}
		}
		if err := <-result; err != nil {
			return err
		}
		// A peer that is gone is noticed though the limit, reached on another
		// connection, stands in front.
		other, unread, err := connected()
		if err != nil {
			return err
		}
		for range sent {
			if err := other.Send(context.Background(), []byte("page"), fds...); err != nil {
				return err
			}
		}
		if err := b.Close(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = a.Send(ctx, []byte("page"), fds...)
		if unread.HungUp() || !errors.Is(err, unix.EPIPE) {
			return fmt.Errorf("sending to nobody gave %w", err)
		}
		return nil
	})
}

func TestTooManyDescriptorsInFlight(t *testing.T) {
	leak.Check(t)
	run(t, "too many in flight")
}

func init() {
	processes["reserve"] = reexec.Checked(func() error {
		before, err := openDescriptors()
		if err != nil {
			return err
		}
		before-- // the directory itself
		const limit = 1000
		if err := setDescriptorLimit(limit); err != nil {
			return err
		}
		if err := scm.Reserve(limit - before); err != nil {
			return fmt.Errorf("all that the limit leaves: %w", err)
		}
		size, err := tableSize()
		if err != nil {
			return err
		}
		if size < limit {
			return fmt.Errorf("the table has %d places, want %d", size, limit)
		}
		for _, n := range []int{limit - before + 1, 5 * limit, int(^uint(0) >> 1)} {
			err := scm.Reserve(n)
			var limitErr *scm.LimitError
			if !errors.As(err, &limitErr) || limitErr.Limit != limit || limitErr.Need < n || !errors.Is(err, unix.EMFILE) {
				return fmt.Errorf("%d more gave %w", n, err)
			}
			for _, number := range []int{limitErr.Need, limit} {
				if !strings.Contains(err.Error(), strconv.Itoa(number)) {
					return fmt.Errorf("%w: this does not name %d", err, number)
				}
			}
		}
		for _, n := range []int{0, -1} {
			if err := scm.Reserve(n); err != nil {
				return err
			}
		}
		// A descriptor at the far end is not in the way of those below it.
		if err := unix.Dup3(2, limit-1, unix.O_CLOEXEC); err != nil {
			return err
		}
		now, err := openDescriptors()
		if err != nil {
			return err
		}
		if err := scm.Reserve(limit - (now - 1)); err != nil {
			return fmt.Errorf("with a descriptor at the far end: %w", err)
		}
		return nil
	})
}

// tableSize is FDSize, proc_pid_status(5).
func tableSize() (int, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "FDSize:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("no FDSize in /proc/self/status")
}

func TestReserve(t *testing.T) {
	leak.Check(t)
	run(t, "reserve")
}

// An inherited socket may come with SO_PASSPIDFD set: every read then brings a
// descriptor that nobody asked for.
func TestUnaskedPidfdsAreClosed(t *testing.T) {
	leak.Check(t)
	dog := newCanary(t)
	ours, theirs, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	err = ask(t, theirs, func(fd int) (error, error) {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1), nil
	})
	if err != nil {
		t.Skipf("this kernel has no SO_PASSPIDFD: %v", err)
	}
	fd := dup(t, theirs)
	theirs.Close()
	in, err := scm.OpenConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	sent := dog.fds(1)
	before, err := openDescriptors()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := ours.Send(patient(t), []byte("x"), sent...); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		_, fds, err := in.Receive(patient(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		closeFDs(t, fds)
	}
	after, err := openDescriptors()
	if err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Errorf("%d descriptors were open, now %d", before, after)
	}
}

func init() {
	processes["a crowded table"] = reexec.Checked(func() error {
		dir, err := os.MkdirTemp("", "scm")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		fd, err := scm.Bind("unix", dir+"/s")
		if err != nil {
			return err
		}
		if err := fd.Listen(10); err != nil {
			return err
		}
		ln, err := scm.NewListener(fd)
		if err != nil {
			return err
		}
		ln.Spare(2)
		var clients []*scm.Conn
		for range 5 {
			c, err := scm.Dial(context.Background(), dir+"/s")
			if err != nil {
				return err
			}
			clients = append(clients, c)
		}
		before, err := openDescriptors()
		if err != nil {
			return err
		}
		if err := setDescriptorLimit(before + 10); err != nil {
			return err
		}
		fill := func() error {
			for {
				if _, err := unix.Dup(2); err != nil {
					if !errors.Is(err, unix.EMFILE) {
						return err
					}
					return nil
				}
			}
		}
		if err := fill(); err != nil {
			return err
		}
		var accepted []*scm.Conn
		for range 2 {
			c, err := ln.Accept()
			if err != nil {
				return fmt.Errorf("with a spare place: %w", err)
			}
			accepted = append(accepted, c)
		}
		if _, err := ln.Accept(); !errors.Is(err, unix.EMFILE) {
			return fmt.Errorf("without one: %w", err)
		}
		if err := accepted[0].Close(); err != nil {
			return err
		}
		ln.Refill()
		if err := fill(); err != nil { // nobody else gets the place
			return err
		}
		c, err := ln.Accept()
		if err != nil {
			return fmt.Errorf("with the place of one that has left: %w", err)
		}
		if err := errors.Join(c.Close(), ln.Close()); err != nil {
			return err
		}
		ln.Refill()
		if after, err := unix.Dup(2); err != nil { // the spare places are gone
			return fmt.Errorf("after the listener was closed: %d, %w", after, err)
		}
		_ = clients
		return nil
	})
}

//go:build unix

package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/flood"
	"github.com/crossfade-go/crossfade/scm"
)

// roleVariable makes a re-executed test binary a process of its own. It
// inherits a connection as descriptor 3.
const roleVariable = "CROSSFADE_HANDOFF_TEST_ROLE"

// roleLowLimit is a successor that may have few descriptors.
const roleLowLimit = "low limit"

// roleFlood is who attacks a control socket.
const roleFlood = "flood"

// play plays a role and returns the exit status.
func play(role string) int {
	if role == roleFlood {
		return flood.Main(os.Args[1:])
	}
	if role != roleLowLimit {
		return 2
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Println(err)
		return 2
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Println(err)
		return 2
	}
	conn, err := scm.OpenConn(scm.NewFD(3))
	if err != nil {
		fmt.Println(err)
		return 2
	}
	_, err = handoff.Connect(context.Background(), conn, &handoff.SuccessorConfig{
		Process: handoff.Process{Instance: "small"}, Receiver: new(receiver), Patience: time.Minute, Log: quiet,
	})
	fmt.Println(err)
	if !errors.Is(err, handoff.ErrLimit) {
		return 1
	}
	return 0
}

// countingConn counts the descriptors that are sent.
type countingConn struct {
	*scm.Conn
	sent atomic.Int64
}

func (c *countingConn) Send(ctx context.Context, payload []byte, fds ...*scm.FD) error {
	c.sent.Add(int64(len(fds)))
	return c.Conn.Send(ctx, payload, fds...)
}

func TestALimitThatIsTooLow(t *testing.T) {
	ours, theirs, err := scm.Pair()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("descriptors cannot be passed on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	o := newOwner(t)
	o.service.offer.Descriptors = descriptors(t, 600)
	conn := &countingConn{Conn: ours}
	sp, err := o.server.SpawnOn(conn)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleLowLimit)
	cmd.ExtraFiles = []*os.File{theirs}
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	fate := sp.Run(t.Context(), cmd.Process.Pid, processOf(exited))
	if err := cmd.Wait(); err != nil {
		t.Errorf("the successor: %v", err)
	}
	close(exited)
	for side, text := range map[string]string{"successor": out.String(), "predecessor": fate.Error()} {
		for _, want := range []string{"RLIMIT_NOFILE allows 64", " descriptors are needed"} {
			if !strings.Contains(text, want) {
				t.Errorf("the %s says %q, not %q", side, text, want)
			}
		}
		var need int
		if _, after, ok := strings.Cut(text, "limit too low: "); ok {
			_, _ = fmt.Sscan(after, &need) // 0 is an error below
		}
		if need < 600 {
			t.Errorf("the %s says that %d descriptors are needed, want at least 600: %q", side, need, text)
		}
	}
	mustMatch(t, fate, is(handoff.ErrLimit, handoff.ErrAborted), "predecessor, at Prepared")
	if n := conn.sent.Load(); n != 0 {
		t.Errorf("%d descriptors were sent", n)
	}
	o.mustBe(handoff.StateOwner)
}

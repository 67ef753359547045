//go:build unix

package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
)

func init() { processes["low limit"] = reexec.Checked(lowLimit) }

// lowLimit is a successor that may have few descriptors, and says what comes of that.
// The connection is its descriptor 3.
func lowLimit() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	conn, err := scm.OpenConn(scm.NewFD(3))
	if err != nil {
		return err
	}
	_, err = handoff.Connect(context.Background(), conn, &handoff.SuccessorConfig{
		Process: handoff.Process{Instance: "small"}, Receiver: new(receiver), Patience: time.Minute, Log: quiet,
	})
	fmt.Println(err)
	if !errors.Is(err, handoff.ErrLimit) {
		return fmt.Errorf("Connect gave %w, want %w", err, handoff.ErrLimit)
	}
	return nil
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
	cmd := reexec.Command("low limit")
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

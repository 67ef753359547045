package systemd_test

import (
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// open returns a manager whose main process is the test, and its notifier.
func open(t *testing.T, cfg *fakemanager.Config) (*fakemanager.Manager, *systemd.Notifier) {
	t.Helper()
	m := fakemanager.New(t, cfg)
	m.SetMain(os.Getpid())
	n, err := systemd.Open(m.Address())
	if err != nil {
		t.Fatal(err)
	}
	return m, n
}

func TestSend(t *testing.T) {
	for name, tt := range map[string]struct {
		states []systemd.State
		want   []string
	}{
		"ready":          {[]systemd.State{systemd.Ready()}, []string{"READY=1"}},
		"stopping":       {[]systemd.State{systemd.Stopping()}, []string{"STOPPING=1"}},
		"several":        {[]systemd.State{systemd.MainPID(7, 0), systemd.Status("handed over")}, []string{"MAINPID=7", "STATUS=handed over"}},
		"main with id":   {[]systemd.State{systemd.MainPID(7, 1<<40)}, []string{"MAINPID=7", "MAINPIDFDID=1099511627776"}},
		"extend":         {[]systemd.State{systemd.ExtendTimeout(time.Minute)}, []string{"EXTEND_TIMEOUT_USEC=60000000"}},
		"extend by none": {[]systemd.State{systemd.ExtendTimeout(-1)}, []string{"EXTEND_TIMEOUT_USEC=1"}},
		"alive":          {[]systemd.State{systemd.Alive()}, []string{"WATCHDOG=1"}},
		"broken":         {[]systemd.State{systemd.Broken()}, []string{"WATCHDOG=trigger"}},
		"watchdog":       {[]systemd.State{systemd.WatchdogInterval(time.Second)}, []string{"WATCHDOG_USEC=1000000"}},
		"errno":          {[]systemd.State{systemd.Errno(2)}, []string{"ERRNO=2"}},
		"field":          {[]systemd.State{systemd.Field("X_APP_1", "a=b c")}, []string{"X_APP_1=a=b c"}},
		"no injection":   {[]systemd.State{systemd.Status("loading\nMAINPID=1\r\x00\u2028!")}, []string{"STATUS=loading MAINPID=1   !"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, n := open(t, nil)
			if err := n.Send(t.Context(), tt.states...); err != nil {
				t.Fatal(err)
			}
			got := m.Next()
			if !slices.Equal(got.Lines, tt.want) {
				t.Errorf("the manager has got %q, want %q", got.Lines, tt.want)
			}
			if got.PID != os.Getpid() || !got.Heard {
				t.Errorf("the manager has got %v", got)
			}
		})
	}
}

func TestStoreAndBarrier(t *testing.T) {
	m, n := open(t, &fakemanager.Config{StoreMax: 4})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fd, err := scm.DupFD(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := n.Store(t.Context(), "web:ä", fd, systemd.NoPoll()); err != nil {
		t.Fatal(err)
	}
	if err := n.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.Store(); !slices.Equal(got, []string{"web%3A%C3%A4"}) {
		t.Errorf("stored are %q", got)
	}
	if err := n.Remove(t.Context(), "web:ä"); err != nil {
		t.Fatal(err)
	}
	m.AwaitStore()
}

package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/internal/fakemanager"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// open returns a manager whose main process is the test, and its notifier.
func open(t *testing.T, cfg *fakemanager.Config) (*fakemanager.Manager, *systemd.Notifier) {
	t.Helper()
	leak.Check(t)
	m := fakemanager.New(t, cfg)
	m.SetMain(os.Getpid())
	n, err := systemd.Open(m.Address())
	if err != nil {
		t.Fatal(err)
	}
	return m, n
}

// patient is for what should succeed: a test that hangs fails.
func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// errEnded is why an impatient context ends.
var errEnded = errors.New("the test has waited long enough")

// impatient is for what waits in vain.
func impatient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errEnded)
	t.Cleanup(cancel)
	return ctx
}

// descriptor is one of a new listening socket.
func descriptor(t *testing.T) *scm.FD {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	fd, err := scm.DupFD(ln.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

func TestSend(t *testing.T) {
	for name, tt := range map[string]struct {
		states []systemd.State
		want   []string
	}{
		"ready":          {[]systemd.State{systemd.Ready()}, []string{"READY=1"}},
		"stopping":       {[]systemd.State{systemd.Stopping()}, []string{"STOPPING=1"}},
		"several":        {[]systemd.State{systemd.MainPID(os.Getpid(), 0), systemd.Status("handed over")}, []string{"MAINPID=" + strconv.Itoa(os.Getpid()), "STATUS=handed over"}},
		"main with id":   {[]systemd.State{systemd.MainPID(os.Getpid(), 1<<40)}, []string{"MAINPID=" + strconv.Itoa(os.Getpid()), "MAINPIDFDID=1099511627776"}},
		"extend":         {[]systemd.State{systemd.ExtendTimeout(time.Minute)}, []string{"EXTEND_TIMEOUT_USEC=60000000"}},
		"extend by none": {[]systemd.State{systemd.ExtendTimeout(-1)}, []string{"EXTEND_TIMEOUT_USEC=1"}},
		"alive":          {[]systemd.State{systemd.Alive()}, []string{"WATCHDOG=1"}},
		"broken":         {[]systemd.State{systemd.Broken()}, []string{"WATCHDOG=trigger"}},
		"watchdog":       {[]systemd.State{systemd.WatchdogInterval(time.Second)}, []string{"WATCHDOG_USEC=1000000"}},
		"errno":          {[]systemd.State{systemd.Errno(2)}, []string{"ERRNO=2"}},
		"field":          {[]systemd.State{systemd.Field("X_APP_1", "a=b c")}, []string{"X_APP_1=a=b c"}},
		"an empty value": {[]systemd.State{systemd.Status("")}, []string{"STATUS="}},
		"no injection":   {[]systemd.State{systemd.Status("loading\nMAINPID=1\r\x00\u2028!")}, []string{"STATUS=loading MAINPID=1   !"}},
		"not UTF-8":      {[]systemd.State{systemd.Status("a\xffb")}, []string{"STATUS=a\uFFFDb"}},
		"as much as fits": {
			[]systemd.State{systemd.Field("X_A", strings.Repeat("x", systemd.MaxMessage-4))},
			[]string{"X_A=" + strings.Repeat("x", systemd.MaxMessage-4)},
		},
		"a novel": {[]systemd.State{systemd.Status(strings.Repeat("ä", 2000))}, []string{"STATUS=" + strings.Repeat("ä", 510) + "…"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, n := open(t, nil)
			if err := n.Send(patient(t), tt.states...); err != nil {
				t.Fatal(err)
			}
			got := m.Next()
			if !slices.Equal(got.Lines, tt.want) {
				t.Errorf("the manager has got %q, want %q", got.Lines, tt.want)
			}
			if got.PID != os.Getpid() || got.UID != os.Getuid() || !got.Heard || got.Descriptors != 0 {
				t.Errorf("the manager has got %v", got)
			}
		})
	}
}

// What cannot be said is an error, and nothing of the message is sent.
func TestSendFails(t *testing.T) {
	m, n := open(t, nil)
	for name, tt := range map[string]struct {
		states []systemd.State
		want   string
	}{
		"nothing":               {nil, "without any state"},
		"the zero state":        {[]systemd.State{{}}, "without any state"},
		"a line break":          {[]systemd.State{systemd.Ready(), systemd.Field("X_A", "b\nMAINPID=1")}, "control character"},
		"a zero byte":           {[]systemd.State{systemd.Field("X_A", "\x00")}, "control character"},
		"not UTF-8":             {[]systemd.State{systemd.Field("X_A", "\xff")}, "not UTF-8"},
		"no name":               {[]systemd.State{systemd.Field("", "b")}, "name of a field"},
		"two assignments":       {[]systemd.State{systemd.Field("A=1\nB", "b")}, "name of a field"},
		"nobody":                {[]systemd.State{systemd.Ready(), systemd.MainPID(0, 0)}, "0 is not the pid"},
		"everybody":             {[]systemd.State{systemd.MainPID(-1, 0)}, "-1 is not the pid"},
		"a watchdog of no time": {[]systemd.State{systemd.WatchdogInterval(0)}, "no time for a watchdog"},
		"too much":              {[]systemd.State{systemd.Field("X_A", strings.Repeat("x", systemd.MaxMessage-3))}, "4097 bytes"},
	} {
		if err := n.Send(patient(t), tt.states...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := n.Send(patient(t), systemd.Ready()); err != nil {
		t.Fatal(err)
	}
	if got := m.Next(); !got.Has("READY=1") {
		t.Errorf("the manager has got %v", got)
	}
}

func TestReloadingTellsTheTime(t *testing.T) {
	m, n := open(t, nil)
	before := monotonic(t)
	if err := n.Send(patient(t), systemd.Reloading(), systemd.Status("reloading")); err != nil {
		t.Fatal(err)
	}
	msg := m.Await("RELOADING=1", "STATUS=reloading")
	at, err := strconv.ParseInt(msg.Value("MONOTONIC_USEC"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if after := monotonic(t); at < before || at > after {
		t.Errorf("it was %d, by the clock between %d and %d", at, before, after)
	}
}

// monotonic is CLOCK_MONOTONIC as the kernel prints it for all to see, in
// microseconds.
func monotonic(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/timer_list")
	if err != nil {
		t.Skipf("the clock is read in a file for root: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		var ns int64
		if _, err := fmt.Sscanf(line, "now at %d nsecs", &ns); err == nil {
			return ns / 1000
		}
	}
	t.Skip("/proc/timer_list does not tell the time")
	return 0
}

// The methods of no notifier do nothing, whatever they are given.
func TestNilNotifier(t *testing.T) {
	var n *systemd.Notifier
	for name, err := range map[string]error{
		"Send":    n.Send(t.Context(), systemd.Ready(), systemd.MainPID(0, 0)),
		"Store":   n.Store(t.Context(), "", nil),
		"Remove":  n.Remove(t.Context(), ""),
		"Barrier": n.Barrier(t.Context()),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	n.KeepAlive(t.Context(), time.Hour, nil, nil)
	if a := n.Address(); a != "" {
		t.Errorf("it has the address %q", a)
	}
}

func TestAbstractAddress(t *testing.T) {
	m, n := open(t, &fakemanager.Config{Address: fmt.Sprintf("@crossfade-systemd-test-%d", os.Getpid())})
	if n.Address() != m.Address() {
		t.Errorf("the address is %q", n.Address())
	}
	if err := n.Send(patient(t), systemd.Ready()); err != nil {
		t.Fatal(err)
	}
	m.Await("READY=1")
}

func TestOpenFails(t *testing.T) {
	for _, address := range []string{
		"", "notify", "./notify", "vsock:2:1234", "vsock-stream:2:1", "@", "/a\x00b",
		"/" + strings.Repeat("p", scm.MaxPath), "@" + strings.Repeat("n", scm.MaxPath+1),
	} {
		if n, err := systemd.Open(address); !errors.Is(err, systemd.ErrAddress) || n != nil {
			t.Errorf("%q gave %v", address, err)
		}
	}
}

// A manager that is being started again is waited for.
func TestManagerThatComesBack(t *testing.T) {
	m, n := open(t, nil)
	m.Down()
	if err := n.Send(impatient(t), systemd.Status("lost")); !errors.Is(err, errEnded) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a manager: %v", err)
	}
	sent := make(chan error, 1) // so that the goroutine ends in a test that fails
	go func() { sent <- n.Send(patient(t), systemd.Status("found")) }()
	m.Up()
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if got := m.Next(); !got.Has("STATUS=found") {
		t.Errorf("the manager has got %v", got)
	}
}

// A manager that reads nothing costs no more than the time that is given, and gets
// everything in order when it goes on.
func TestManagerThatHangs(t *testing.T) {
	m, n := open(t, nil)
	m.Pause()
	sent := 0
	for {
		err := n.Send(impatient(t), systemd.Field("X_NUMBER", strconv.Itoa(sent)))
		if errors.Is(err, errEnded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sent++
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if err := n.Send(patient(t), systemd.Ready()); err != nil {
			t.Error(err)
		}
	})
	m.Resume()
	for i := range sent {
		if got := m.Next(); !got.Has("X_NUMBER=" + strconv.Itoa(i)) {
			t.Fatalf("message %d is %v", i, got)
		}
	}
	m.Await("READY=1")
	waiting.Wait()
}

func TestSomethingElseAtTheAddress(t *testing.T) {
	leak.Check(t)
	path := t.TempDir() + "/s"
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	n, err := systemd.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	// It is not waited for that this changes.
	if err := n.Send(t.Context(), systemd.Ready()); !errors.Is(err, syscall.EPROTOTYPE) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestBarrier(t *testing.T) {
	m, n := open(t, nil)
	if err := n.Send(patient(t), systemd.Status("before")); err != nil {
		t.Fatal(err)
	}
	if err := n.Barrier(patient(t)); err != nil {
		t.Fatal(err)
	}
	// Whatever the manager does with a message, it has done it.
	got := m.Messages()
	if len(got) != 2 || !got[0].Has("STATUS=before") || !slices.Equal(got[1].Lines, []string{"BARRIER=1"}) || got[1].Descriptors != 1 {
		t.Errorf("the manager has got %v", got)
	}
}

func TestBarrierThatIsNotAnswered(t *testing.T) {
	m, n := open(t, &fakemanager.Config{HoldBarriers: true})
	if err := n.Barrier(impatient(t)); !errors.Is(err, errEnded) {
		t.Errorf("got %v", err)
	}
	done := make(chan error, 1) // so that the goroutine ends in a test that fails
	go func() { done <- n.Barrier(patient(t)) }()
	m.Await("BARRIER=1")
	m.Await("BARRIER=1")
	m.ReleaseBarriers()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// One that ends lets go of what it has not read.
	m.Pause()
	go func() { done <- n.Barrier(patient(t)) }()
	m.Down()
	m.Up()
	m.Resume()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStore(t *testing.T) {
	m, n := open(t, &fakemanager.Config{StoreMax: 3})
	fd, second := descriptor(t), descriptor(t)
	store := func(name string, fd *scm.FD) {
		t.Helper()
		if err := n.Store(patient(t), name, fd, systemd.NoPoll()); err != nil {
			t.Fatal(err)
		}
	}
	store("tcp:80", fd)
	store("tcp:80", fd) // what is there is not stored again
	store("tcp:80", second)
	store("udp", descriptor(t))
	store("beyond the limit", descriptor(t))
	m.AwaitStore("tcp%3A80", "tcp%3A80", "udp")
	if msg := m.Next(); !slices.Equal(msg.Lines, []string{"FDSTORE=1", "FDNAME=tcp%3A80", "FDPOLL=0"}) || msg.Descriptors != 1 {
		t.Errorf("the manager has got %v", msg)
	}
	if err := n.Remove(patient(t), "tcp:80"); err != nil {
		t.Fatal(err)
	}
	m.AwaitStore("udp")
	for name, err := range map[string]error{
		"too long to store":  n.Store(patient(t), strings.Repeat(":", 86), fd),
		"too long to remove": n.Remove(patient(t), strings.Repeat(":", 86)),
		"empty":              n.Store(patient(t), "", fd),
	} {
		if !errors.Is(err, systemd.ErrName) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := fd.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Store(patient(t), "closed", fd); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed descriptor: %v", err)
	}
}

// A pipe whose other end is closed leaves the store by itself, unless NoPoll was
// said.
func TestNoPoll(t *testing.T) {
	m, n := open(t, &fakemanager.Config{StoreMax: 2})
	for name, also := range map[string][]systemd.State{"polled": nil, "kept": {systemd.NoPoll()}} {
		watched, held, err := scm.Alive()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Store(patient(t), name, watched, also...); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(watched.Close(), held.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Barrier(patient(t)); err != nil {
		t.Fatal(err)
	}
	if got := m.Store(); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("stored are %q", got)
	}
}

func init() { processes["service"] = reexec.Checked(service) }

// service answers each connection with its pid, and keeps its listener in the
// manager's store.
func service() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	env, err := systemd.Take()
	if err != nil {
		return err
	}
	defer env.Close()
	ln, err := listenerOf(env)
	if err != nil {
		return err
	}
	defer ln.Close()
	fd, err := scm.DupFD(ln.(*net.TCPListener))
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := env.Notifier.Store(ctx, "tcp:web", fd, systemd.NoPoll()); err != nil {
		return err
	}
	if err := env.Notifier.Send(ctx, systemd.Ready(), systemd.Field("X_ADDRESS", ln.Addr().String())); err != nil {
		return err
	}
	if os.Getenv("DEAF") != "" {
		<-ctx.Done()
		return ctx.Err()
	}
	// A test that is killed leaves nothing behind for long.
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		fmt.Fprint(c, os.Getpid())
		c.Close()
	}
}

func listenerOf(env *systemd.Environment) (net.Listener, error) {
	if len(env.Sockets) == 0 {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	s := env.Sockets[0]
	if s.Name != "tcp:web" || len(env.Sockets) > 1 || env.FDStore != 4 || env.Watchdog != time.Hour {
		return nil, fmt.Errorf("the manager has passed %+v", env)
	}
	return s.FD.Listener()
}

// Of a process that is killed the manager still has the sockets: who connects
// while nobody serves is served by the next process.
func TestCrash(t *testing.T) {
	leak.Check(t)
	m := fakemanager.New(t, &fakemanager.Config{StoreMax: 4, Watchdog: time.Hour})
	first := reexec.Command("service")
	first.Env = append(first.Env, "DEAF=1")
	run(t, m, first)
	address := m.Await("READY=1").Value("X_ADDRESS")
	m.AwaitStore("tcp%3Aweb")
	queued, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer queued.Close()
	kill(first)
	between, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer between.Close()
	second := reexec.Command("service")
	run(t, m, second)
	if ready := m.Await("READY=1"); ready.PID != second.Process.Pid || ready.Value("X_ADDRESS") != address {
		t.Errorf("the manager has got %v", ready)
	}
	for what, c := range map[string]net.Conn{"before": queued, "after": between} {
		answer := make([]byte, 16)
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(answer)
		if err != nil || string(answer[:n]) != strconv.Itoa(second.Process.Pid) {
			t.Errorf("who connected %s the crash got %q (%v)", what, answer[:n], err)
		}
	}
	m.AwaitStore("tcp%3Aweb")
}

// run starts cmd as the main process, which the test ends at the latest.
func run(t *testing.T, m *fakemanager.Manager, cmd *exec.Cmd) {
	t.Helper()
	keepToOneself(t)
	m.Start(cmd)
	t.Cleanup(func() { kill(cmd) })
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // or have been waited for
}

func init() { processes["notify"] = reexec.Checked(notify) }

// notify waits for its standard input to end, and then says READY.
func notify() error {
	env, err := systemd.Take()
	if err != nil {
		return err
	}
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		return errors.New("something to read")
	}
	return errors.Join(
		env.Notifier.Send(context.Background(), systemd.Ready()),
		env.Notifier.Barrier(context.Background()),
	)
}

// With NotifyAccess=main a process is heard from when the main one has handed the
// part over to it, and the one that had it is not heard any more.
func TestMainProcessHandsOver(t *testing.T) {
	m, n := open(t, nil)
	cmd := reexec.Command("notify")
	cmd.Env = append(cmd.Env, m.Environ()...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reexec.Start(t, cmd)
	if err := n.Send(patient(t), systemd.MainPID(cmd.Process.Pid, 0), systemd.Ready()); err != nil {
		t.Fatal(err)
	}
	if err := n.Send(patient(t), systemd.Stopping()); err != nil {
		t.Fatal(err)
	}
	if err := n.Barrier(patient(t)); err != nil {
		t.Fatal(err)
	}
	if m.Main() != cmd.Process.Pid {
		t.Errorf("the main process is %d, want %d", m.Main(), cmd.Process.Pid)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	want := []string{"MAINPID=" + strconv.Itoa(cmd.Process.Pid) + " READY=1 true", "STOPPING=1 false", "BARRIER=1 true", "READY=1 true", "BARRIER=1 true"}
	var got []string
	for _, msg := range m.Messages() {
		got = append(got, fmt.Sprint(strings.Join(msg.Lines, " "), " ", msg.Heard))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the manager has got %q, want %q", got, want)
	}
}

func TestSameUnit(t *testing.T) {
	if same, err := systemd.SameUnit(os.Getpid()); err != nil || !same {
		t.Errorf("this process: %v, %v", same, err)
	}
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if same, err := systemd.SameUnit(cmd.Process.Pid); err != nil || !same {
		t.Errorf("a child: %v, %v", same, err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := systemd.SameUnit(cmd.Process.Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that has ended: %v", err)
	}
	for _, pid := range []int{0, -1} {
		if _, err := systemd.SameUnit(pid); err == nil {
			t.Errorf("%d is a process", pid)
		}
	}
}

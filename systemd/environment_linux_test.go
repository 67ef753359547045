package systemd_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/reexec"
	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// variables are what a manager may set.
var variables = []string{
	"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES",
	"WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE",
}

// taken is what a process says about its environment.
type taken struct {
	Error    string
	Address  string
	Names    []string
	Types    []scm.Type
	Watchdog string
	FDStore  int
	Left     []string // variables that are still set
	Open     []int    // which of the descriptors 3 to 6 are sockets or pipes after Take
	Exec     []int    // which of them would outlive exec(2)
	Again    int      // how many descriptors a second Take found
}

func init() { processes["take"] = reexec.Checked(take) }

// take takes the environment and says what it was. The value "self" stands for
// what only this process can know.
func take() error {
	if os.Getenv("LISTEN_PID") == "self" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	if os.Getenv("WATCHDOG_PID") == "self" {
		os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	}
	if os.Getenv("LISTEN_PIDFDID") == "self" {
		id, err := ownPidfdID()
		if err != nil {
			return err
		}
		os.Setenv("LISTEN_PIDFDID", strconv.FormatUint(id, 10))
	}
	var got taken
	env, err := systemd.Take()
	if err != nil {
		got.Error = err.Error()
	}
	got.Address = env.Notifier.Address()
	got.Watchdog = env.Watchdog.String()
	got.FDStore = env.FDStore
	for _, s := range env.Sockets {
		id, err := s.FD.Identify()
		if err != nil {
			return err
		}
		got.Names = append(got.Names, s.Name)
		got.Types = append(got.Types, id.Type)
	}
	for _, name := range variables {
		if _, ok := os.LookupEnv(name); ok {
			got.Left = append(got.Left, name)
		}
	}
	for fd := 3; fd < 7; fd++ {
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil {
			continue // closed
		}
		if mode := st.Mode & syscall.S_IFMT; mode != syscall.S_IFSOCK && mode != syscall.S_IFIFO {
			continue // the runtime's own, which took a number that was free
		}
		got.Open = append(got.Open, fd)
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 {
			return errno
		}
		if flags&syscall.FD_CLOEXEC == 0 {
			got.Exec = append(got.Exec, fd)
		}
	}
	again, err := systemd.Take()
	if err != nil {
		return err
	}
	got.Again = len(again.Sockets)
	if err := errors.Join(env.Close(), env.Close()); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(got)
}

func ownPidfdID() (uint64, error) {
	pidfd, err := scm.OwnPidfd()
	if err != nil {
		return 0, err
	}
	defer pidfd.Close()
	return pidfd.PidfdID()
}

func TestTake(t *testing.T) {
	leak.Check(t)
	keepToOneself(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	both := []*os.File{socket, w}
	types := []scm.Type{scm.TypeSocket, scm.TypePipe}
	long := "/" + strings.Repeat("p", scm.MaxPath)

	for name, tt := range map[string]struct {
		env    []string
		files  []*os.File
		want   taken
		kernel bool // it needs pidfs
	}{
		"nothing": {},
		"everything": {
			env: []string{
				"NOTIFY_SOCKET=/run/notify", "LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:a pipe",
				"WATCHDOG_USEC=30000000", "WATCHDOG_PID=self", "FDSTORE=16",
			},
			files: both,
			want:  taken{Address: "/run/notify", Names: []string{"web", "a pipe"}, Types: types, Watchdog: "30s", FDStore: 16, Open: []int{3, 4}},
		},
		"an abstract notification socket": {
			env:  []string{"NOTIFY_SOCKET=@notify"},
			want: taken{Address: "@notify"},
		},
		"empty values": {env: []string{"NOTIFY_SOCKET=", "LISTEN_FDS=", "WATCHDOG_USEC=", "FDSTORE="}},
		"no names": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=2"}, files: both,
			want: taken{Names: []string{"unknown", "unknown"}, Types: types, Open: []int{3, 4}},
		},
		"an empty name": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=:x"}, files: both,
			want: taken{Names: []string{"", "x"}, Types: types, Open: []int{3, 4}},
		},
		"escaped names, and one that only looks like it": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=tcp%3A80:100%25 %41"}, files: both,
			want: taken{Names: []string{"tcp:80", "100%25 %41"}, Types: types, Open: []int{3, 4}},
		},
		"fewer than there are": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=1"}, files: both,
			want: taken{Names: []string{"unknown"}, Types: types[:1], Open: []int{3, 4}, Exec: []int{4}},
		},
		"none": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=0", "LISTEN_FDNAMES="}, files: both,
			want: taken{Open: []int{3, 4}, Exec: []int{3, 4}},
		},
		"for another process": {
			env: []string{"LISTEN_PID=1", "LISTEN_FDS=2"}, files: both,
			want: taken{Open: []int{3, 4}, Exec: []int{3, 4}},
		},
		"for nobody in particular": {
			env: []string{"LISTEN_FDS=2"}, files: both,
			want: taken{Open: []int{3, 4}, Exec: []int{3, 4}},
		},
		"for this very process": {
			env: []string{"LISTEN_PID=self", "LISTEN_PIDFDID=self", "LISTEN_FDS=2"}, files: both, kernel: true,
			want: taken{Names: []string{"unknown", "unknown"}, Types: types, Open: []int{3, 4}},
		},
		"for an earlier process of the same number": {
			env: []string{"LISTEN_PID=self", "LISTEN_PIDFDID=1", "LISTEN_FDS=2"}, files: both, kernel: true,
			want: taken{Open: []int{3, 4}, Exec: []int{3, 4}},
		},
		"a watchdog for anybody":     {env: []string{"WATCHDOG_USEC=1500000"}, want: taken{Watchdog: "1.5s"}},
		"a watchdog for another one": {env: []string{"WATCHDOG_USEC=1500000", "WATCHDOG_PID=1"}},

		"a gap": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=2"}, files: both[:1],
			want: taken{Error: `LISTEN_FDS="2": descriptor 4`},
		},
		"another number of names": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=one"}, files: both,
			want: taken{Error: `LISTEN_FDNAMES="one" is not a list of 2 names`},
		},
		"an error elsewhere": {
			env: []string{"LISTEN_PID=self", "LISTEN_FDS=2", "NOTIFY_SOCKET=/run/notify", "WATCHDOG_USEC=3000000", "FDSTORE=many"}, files: both,
			want: taken{Error: `FDSTORE="many"`, Address: "/run/notify", Names: []string{"unknown", "unknown"}, Types: types, Watchdog: "3s", Open: []int{3, 4}},
		},
		"no pid":               {env: []string{"LISTEN_PID=x", "LISTEN_FDS=1"}, want: taken{Error: `LISTEN_PID="x" is not a pid`}},
		"no number":            {env: []string{"LISTEN_PID=self", "LISTEN_FDS=-1"}, want: taken{Error: `LISTEN_FDS="-1" is not`}},
		"too large a number":   {env: []string{"LISTEN_PID=self", "LISTEN_FDS=2147483647"}, want: taken{Error: `LISTEN_FDS="2147483647" is not`}},
		"no pidfd number":      {env: []string{"LISTEN_PID=self", "LISTEN_PIDFDID=x", "LISTEN_FDS=1"}, want: taken{Error: `LISTEN_PIDFDID="x" is not`}},
		"no time":              {env: []string{"WATCHDOG_USEC=1s"}, want: taken{Error: `WATCHDOG_USEC="1s" is not a time`}},
		"no time at all":       {env: []string{"WATCHDOG_USEC=0"}, want: taken{Error: `WATCHDOG_USEC="0" is not a time`}},
		"an eternity":          {env: []string{"WATCHDOG_USEC=18446744073709551615"}, want: taken{Error: `WATCHDOG_USEC="18446744073709551615"`}},
		"no watchdog's pid":    {env: []string{"WATCHDOG_USEC=1", "WATCHDOG_PID="}, want: taken{Error: `WATCHDOG_PID="" is not a pid`}},
		"a virtual machine":    {env: []string{"NOTIFY_SOCKET=vsock:2:1"}, want: taken{Error: `NOTIFY_SOCKET: not an address to notify a manager at: "vsock:2:1" is an AF_VSOCK address`}},
		"a relative path":      {env: []string{"NOTIFY_SOCKET=notify"}, want: taken{Error: `NOTIFY_SOCKET: not an address`}},
		"too long a path":      {env: []string{"NOTIFY_SOCKET=" + long}, want: taken{Error: `NOTIFY_SOCKET: not an address`}},
		"too large a store":    {env: []string{"FDSTORE=4294967296"}, want: taken{Error: `FDSTORE="4294967296" is not`}},
		"two things are wrong": {env: []string{"FDSTORE=x", "WATCHDOG_USEC=x"}, want: taken{Error: "WATCHDOG_USEC=\"x\" is not a time in microseconds\nFDSTORE=\"x\""}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ownPidfdID(); tt.kernel && err != nil {
				t.Skipf("the kernel gives a process no number: %v", err)
			}
			cmd := reexec.Command("take")
			cmd.Env = append(cmd.Env, tt.env...)
			cmd.ExtraFiles = tt.files
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got taken
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			if tt.want.Watchdog == "" {
				tt.want.Watchdog = "0s"
			}
			if tt.want.Error != "" && strings.Contains(got.Error, tt.want.Error) {
				got.Error = tt.want.Error
			}
			if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", tt.want); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}

func TestTakeInThisProcess(t *testing.T) {
	for _, name := range variables {
		t.Setenv(name, "") // put back what it was
		os.Unsetenv(name)
	}
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	env, err := systemd.Take()
	if err != nil {
		t.Fatal(err)
	}
	if env.Notifier.Address() != "/run/notify" {
		t.Errorf("the address is %q", env.Notifier.Address())
	}
	if slices.ContainsFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "NOTIFY_SOCKET=") }) {
		t.Error("NOTIFY_SOCKET is still set")
	}
}

func init() { processes["own descriptors"] = reexec.Checked(ownDescriptors) }

// ownDescriptors finds that what a process has open itself is not taken for the
// manager's, whatever the environment says.
func ownDescriptors() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	os.Setenv("LISTEN_FDS", "8") // those of the runtime's poller as well
	if env, err := systemd.Take(); err == nil {
		return fmt.Errorf("it took %d descriptors of its own", len(env.Sockets))
	}
	read := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 1))
		read <- err
	}()
	if _, err := w.Write([]byte("x")); err != nil {
		return err
	}
	return <-read
}

func TestTakeLeavesOthersAlone(t *testing.T) {
	keepToOneself(t)
	if err := reexec.Command("own descriptors").Run(); err != nil {
		t.Error(err)
	}
}

// keepToOneself has processes that the test starts inherit no more than it means
// to pass, even if whoever started the test has left something open.
func keepToOneself(t *testing.T) {
	t.Helper()
	for fd := 3; fd < 16; fd++ {
		syscall.CloseOnExec(fd)
	}
}

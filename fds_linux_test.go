package crossfade_test

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/internal/leak"
)

func init() {
	serviceCommands["add memfd"] = addMemfd
	serviceCommands["keep-alive idle"] = keepAliveIdle
}

// addMemfd registers a memfd that holds the content under the name.
func addMemfd(s *service, value json.RawMessage) (any, error) {
	var args fileArgs
	if err := json.Unmarshal(value, &args); err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate(args.Name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), args.Name)
	defer file.Close()
	if _, err := file.WriteString(args.Content); err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, 0); err != nil {
		return nil, err
	}
	return nil, s.upg.Fds().AddFile(args.Name, file)
}

func TestAMemfdPasses(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control")}
	old := d.launch(spec.ready())
	old.expect("ready")
	old.do("add memfd", fileArgs{Name: "state", Content: "warm"})
	next := d.launch(spec)
	next.expect("new")
	next.do("ready")
	old.end()
	if err := next.try("read file", readArgs{"state", 4}).Err; err == nil {
		t.Error("what nobody asked for before Ready was kept")
	}

	next.do("add memfd", fileArgs{Name: "state", Content: "warm"})
	last := d.launch(spec)
	last.expect("new")
	if got := query[string](last, "read file", readArgs{"state", 4}); got != "warm" {
		t.Errorf("read %q", got)
	}
	last.do("ready")
}

// TestExecedProcessesInheritNothing: every descriptor is close-on-exec, opened
// here or received.
func TestExecedProcessesInheritNothing(t *testing.T) {
	leak.Check(t)
	list := []string{"/bin/sh", "-c", "cd /proc/$$/fd && echo *"} // all in the shell itself
	own, err := exec.Command(list[0], list[1:]...).Output()       // what whoever runs the tests has left to them
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: append(everyStream(d), packetSpec(d, "udp"))}
	old := d.launch(spec.ready())
	old.expect("ready")
	old.do("add file", fileArgs{Name: "pipe", Content: "x"})
	candidate := d.launch(spec)
	candidate.address("dns")
	check := func(when string, p *process) {
		t.Helper()
		got := query[string](p, "run", list)
		// Not all of own need be there: os/exec may put something else in the
		// place of one that it does not know of.
		for number := range strings.FieldsSeq(got) {
			if !slices.Contains(strings.Fields(string(own)), number) {
				t.Errorf("%s: a process that was started has the descriptors %s, want %s", when, got, own)
			}
		}
	}
	check("owner with an offer", old)
	check("candidate", candidate)
	candidate.do("ready")
	check("successor", candidate)
}

// keepAliveIdle accepts one connection on the listener of that name, which must
// be idle, and returns its TCP_KEEPIDLE in seconds.
func keepAliveIdle(s *service, value json.RawMessage) (any, error) {
	socket, err := s.socket(value)
	if err != nil {
		return nil, err
	}
	c, err := socket.(net.Listener).Accept()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var seconds int
	var failed error
	err = rc.Control(func(fd uintptr) {
		seconds, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	})
	return seconds, errors.Join(err, failed)
}

// TestKeepAliveHoldsInEveryGeneration: no option of the listening socket carries
// it, so it must be set on each accepted connection.
func TestKeepAliveHoldsInEveryGeneration(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := web(d)
	spec.Sockets[0].Idle = true
	var address string
	for _, seconds := range []int{77, 78, 79} {
		spec.KeepAlive = &net.KeepAliveConfig{Enable: true, Idle: time.Duration(seconds) * time.Second}
		p := d.launch(spec.ready())
		address = p.address("web")
		p.expect("ready")
		connect(t, "tcp", address)
		if got := query[int](p, "keep-alive idle", "web"); got != seconds {
			t.Errorf("TCP_KEEPIDLE is %d, want %d", got, seconds)
		}
	}
}

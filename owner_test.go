//go:build unix

package crossfade_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/reexec"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// Whoever hangs may still be the owner.
func TestOwnerThatHangsIsNotReplaced(t *testing.T) {
	tests := []struct {
		name string
		hang func(t *testing.T, d *desk, path string) (afterDial func())
		want error
		says string
	}{
		{
			"a stopped process",
			func(_ *testing.T, d *desk, path string) func() {
				owner := d.launch(serviceSpec{Socket: path, Ready: true})
				owner.expect("ready")
				owner.freeze()
				return func() {}
			},
			crossfade.ErrTimeout, "no Welcome within 1s",
		},
		{
			"a listener that never accepts",
			func(t *testing.T, _ *desk, path string) func() {
				newOwnerByHand(t, path)
				return func() {}
			},
			crossfade.ErrTimeout, "no Welcome within 1s",
		},
		{
			"a listener that accepts and never answers",
			func(t *testing.T, _ *desk, path string) func() {
				owner := newOwnerByHand(t, path)
				return func() { owner.accept(); owner.readHello() }
			},
			crossfade.ErrTimeout, "no Welcome within 1s",
		},
		{
			"an owner that stops in the middle of its offer",
			func(t *testing.T, _ *desk, path string) func() {
				owner := newOwnerByHand(t, path)
				return func() { owner.accept(); owner.readHello(); owner.sendWelcome(2, 1) }
			},
			crossfade.ErrTimeout, "no ManifestPage within 1s",
		},
		{"a listener whose backlog is full", fillBacklog, crossfade.ErrOwnerUnknown, "its backlog is full"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			path := d.path("control")
			afterDial := tt.hang(t, d, path)
			before := files(t, d.dir)
			next := d.launch(serviceSpec{Socket: path, DialTimeout: time.Second, Ready: true})
			afterDial()
			err := next.await("new").Err
			if !errors.Is(err, tt.want) || !errors.Is(err, crossfade.ErrTimeout) {
				t.Fatalf("New: %v", err)
			}
			if !containsAll(err.Error(), []string{tt.says, path}) {
				t.Errorf("the error does not say %q of %s: %v", tt.says, path, err)
			}
			if status := next.exitStatus(); status == 0 {
				t.Error("it exits with 0")
			}
			wantFiles(t, before, files(t, d.dir))
		})
	}
}

func fillBacklog(t *testing.T, _ *desk, path string) (afterDial func()) {
	if runtime.GOOS != "linux" {
		t.Skip("a full backlog looks like nobody on this system")
	}
	fd, err := scm.Bind("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	if err := fd.Listen(0); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := scm.Dial(inTime(t), path)
		if errors.Is(err, syscall.EAGAIN) {
			return func() {}
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestOwnerThatIsStoppedGoesOnAfterwards(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := startOwner(t)
	owner.freeze()
	spec.DialTimeout = time.Second
	hasty := d.launch(spec)
	if err := hasty.await("new").Err; !errors.Is(err, crossfade.ErrTimeout) {
		t.Errorf("New: %v", err)
	}
	owner.signal(syscall.SIGCONT)
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
	spec.DialTimeout = 0
	next := d.launch(spec)
	next.expect("ready")
	owner.await("exit")
}

func TestUnknownOwnerIsNoFreshStart(t *testing.T) {
	tests := []struct {
		name string
		set  func(t *testing.T, path string)
		says func(path string) string
	}{
		{
			"a regular file at the path",
			func(t *testing.T, path string) { writeFile(t, path, "precious") },
			func(path string) string { return path },
		},
		{
			"a lock that a stranger holds",
			func(t *testing.T, path string) { holdLock(t, path) },
			func(path string) string {
				if runtime.GOOS != "linux" {
					return path
				}
				return fmt.Sprintf("pid %d took the lock", os.Getpid())
			},
		},
		{
			"a lock that a stranger holds, beside a dead socket",
			func(t *testing.T, path string) {
				newOwnerByHand(t, path).die()
				holdLock(t, path)
			},
			func(path string) string { return path },
		},
		{
			"a symbolic link to nowhere",
			func(t *testing.T, path string) {
				if err := os.Symlink(path+".gone", path); err != nil {
					t.Fatal(err)
				}
			},
			func(path string) string { return path },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			path := d.path("control")
			tt.set(t, path)
			before := files(t, d.dir)
			next := d.launch(serviceSpec{Socket: path, DialTimeout: time.Second, Ready: true})
			err := next.await("new").Err
			if !errors.Is(err, crossfade.ErrOwnerUnknown) || !strings.Contains(err.Error(), tt.says(path)) {
				t.Errorf("New: %v", err)
			}
			next.end()
			wantFiles(t, before, files(t, d.dir))
		})
	}
}

// Root may do what others may not, so these run as somebody else.
func TestStrangers(t *testing.T) {
	const stranger, members = 65533, 65511
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	tests := []struct {
		name   string
		mode   os.FileMode
		group  string
		groups []uint32
		want   error // nil: it is served
		says   string
		log    string // of the owner
	}{
		{name: "may not open the socket", mode: 0o600, want: crossfade.ErrOwnerUnknown, says: "permission denied"},
		{name: "may open the socket and is nobody", mode: 0o666, want: crossfade.ErrDenied, says: "uid 65533 may not speak here", log: "uid 65533 is neither root nor uid 0"},
		{name: "is not in the group", mode: 0o666, group: strconv.Itoa(members), want: crossfade.ErrDenied, says: "uid 65533 may not speak here", log: "nor a member of group 65511"},
		{name: "is in the group", mode: 0o660, group: strconv.Itoa(members), groups: []uint32{members}},
	}
	exe := reexec.Copy(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.SocketMode, s.SocketGroup = tt.mode, tt.group })
			if err := os.Chmod(d.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			before := files(t, d.dir)
			cmd := reexec.Command("new", spec.Socket)
			cmd.Path, cmd.Dir = exe, "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger, Groups: tt.groups}}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got *remoteError
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			switch {
			case tt.want == nil && got != nil:
				t.Errorf("New: %v", got)
			case tt.want != nil && (got == nil || !got.Is(tt.want) || !strings.Contains(got.Text, tt.says)):
				t.Errorf("New: %v", got)
			}
			if errors.Is(tt.want, crossfade.ErrDenied) {
				owner.awaitLog("turned away", "uid 65533", tt.log)
				if strings.Contains(got.Text, tt.log) {
					t.Errorf("a stranger is told whom the owner lets in: %v", got)
				}
			}
			if s := owner.status(); tt.want != nil && s.LastFailure != nil {
				t.Errorf("an attempt has begun: %+v", s.LastFailure)
			}
			wantFiles(t, before, files(t, d.dir))
		})
	}
}

func init() { processes["new"] = processNew }

// processNew calls New with a socket and prints its error.
func processNew() {
	upg, err := crossfade.New(context.Background(), &crossfade.Config{Socket: os.Args[1]})
	check(json.NewEncoder(os.Stdout).Encode(remote(err)))
	if err == nil {
		upg.Stop()
	}
}

// badClient is what a client of the control socket does that is no successor.
type badClient struct {
	name   string
	do     func(t testing.TB, c *candidate)
	answer pb.RefuseCode
	says   string // in the answer and in the log
}

// raw writes bytes as they are.
func raw(bytes ...byte) func(testing.TB, *candidate) {
	return func(_ testing.TB, c *candidate) { c.write(bytes) }
}

// says sends one message.
func says(m *pb.ClientMessage) func(testing.TB, *candidate) {
	return func(_ testing.TB, c *candidate) { c.send(m) }
}

func helloOf(h *pb.Hello) *pb.ClientMessage {
	return &pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: h}}
}

const protocolRefusal = pb.RefuseCode_REFUSE_CODE_PROTOCOL

// badClients get their answer at once.
var badClients = []badClient{
	{"speaks HTTP", raw([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")...), protocolRefusal, "speaks another protocol"},
	{"announces 4 GiB", raw(0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0), protocolRefusal, "payload is too large"},
	{"announces 65535 descriptors", raw(0, 0, 0, 1, 0xff, 0xff, 0, 0), protocolRefusal, "too many descriptors"},
	{"sets the reserved bytes", raw(0, 0, 0, 0, 0, 0, 0, 1), protocolRefusal, "reserved bytes"},
	{"announces a descriptor that does not come", raw(0, 0, 0, 1, 0, 1, 0, 0, 0), protocolRefusal, "unexpected descriptors"},
	{"sends an empty frame", raw(0, 0, 0, 0, 0, 0, 0, 0), protocolRefusal, "an unknown message instead of Hello"},
	{"sends a frame of garbage", raw(0, 0, 0, 3, 0, 0, 0, 0, 0xff, 0xff, 0xff), protocolRefusal, "is no message"},
	{"sends a message that nobody knows", raw(0, 0, 0, 3, 0, 0, 0, 0, 0xfa, 0x3f, 0), protocolRefusal, "an unknown message instead of Hello"},
	{"sends 250 descriptors that nobody asked for", func(_ testing.TB, c *candidate) {
		c.sendDescriptors(250)
	}, protocolRefusal, "unexpected descriptors: 250"},
	{"does not begin with Hello", says(&pb.ClientMessage{Message: &pb.ClientMessage_Ready{Ready: &pb.Ready{}}}), protocolRefusal, "Ready instead of Hello"},
	{"comes from the future", says(helloOf(&pb.Hello{
		Versions: []uint32{99}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "x"},
	})), pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE, "the client [99]"},
	{"has no role", says(helloOf(&pb.Hello{Versions: []uint32{1}})), protocolRefusal, "unknown role 0"},
	{"has no name", says(helloOf(&pb.Hello{Versions: []uint32{1}, Role: pb.Role_ROLE_SUCCESSOR})), protocolRefusal, "a name is empty"},
	{"has a name that would harm a terminal", says(helloOf(&pb.Hello{
		Versions: []uint32{1}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "a\x1b[2Jb"},
	})), protocolRefusal, "unprintable character U+001B"},
	{"commands and then takes over", func(_ testing.TB, c *candidate) {
		c.sendHello(1, pb.Role_ROLE_CONTROLLER)
		c.readWelcome()
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Prepared{Prepared: &pb.Prepared{}}})
	}, protocolRefusal, "Prepared instead of ControlRequest"},
}

// slowClients get it when their time for a Hello is over.
var slowClients = []badClient{
	{"says nothing", func(testing.TB, *candidate) {}, protocolRefusal, "no Hello within"},
	{"says half a word", raw(0, 0, 0), protocolRefusal, "no Hello within"},
	{"says half a frame", raw(0, 0, 0, 9, 0, 0, 0, 0, 1), protocolRefusal, "no Hello within"},
	{"closes its writing side", func(t testing.TB, c *candidate) {
		if err := c.unix.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}, protocolRefusal, "no Hello within"},
}

// suffer does what the client does and checks its answer and its end.
func (b badClient) suffer(t testing.TB, socket string) {
	t.Helper()
	c := dialControl(t, socket)
	b.do(t, c)
	r := c.wantRefusal(b.answer)
	if !strings.Contains(r.GetReason(), b.says) {
		t.Errorf("%s: the answer is %q", b.name, r.GetReason())
	}
	if b.answer == pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE && !slices.Equal(r.GetVersions(), []uint32{1}) {
		t.Errorf("%s: the answer has the versions %v", b.name, r.GetVersions())
	}
	c.wantEnd()
	c.close()
}

func TestBadClientIsAnsweredAndLoggedOnce(t *testing.T) {
	for some := range slices.Chunk(badClients, 8) { // an owner's log has room for ten at once
		_, spec, owner, _ := startOwner(t)
		for _, b := range some {
			t.Run(b.name, func(t *testing.T) {
				told := owner.complaints()
				b.suffer(t, spec.Socket)
				owner.do("state") // what was logged before the end of the connection is here
				if n := owner.complaints() - told; n != 1 {
					t.Errorf("%d lines were logged", n)
				}
				owner.awaitLog("level=WARN", "turned away", "pid "+strconv.Itoa(os.Getpid()), b.says)
			})
		}
	}
	_, spec, owner, _ := startOwner(t)
	badClients[0].suffer(t, spec.Socket) // what is made once is made by now
	before := query[resources](owner, "resources")
	for _, b := range badClients {
		b.suffer(t, spec.Socket)
	}
	t.Run("a request of the future", func(t *testing.T) {
		told := owner.complaints()
		c := dialControl(t, spec.Socket)
		c.sendHello(1, pb.Role_ROLE_CONTROLLER)
		c.readWelcome()
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Control{Control: &pb.ControlRequest{}}})
		if m := c.next(); m.GetControl().GetError().GetCode() != pb.ErrorCode_ERROR_CODE_UNIMPLEMENTED {
			t.Errorf("the answer is %v", m)
		}
		c.wantEnd()
		owner.do("state")
		if n := owner.complaints() - told; n != 0 {
			t.Errorf("%d lines were logged", n)
		}
	})
	t.Run("a probe that connects and leaves", func(t *testing.T) {
		told := owner.complaints()
		dialControl(t, spec.Socket).close()
		awaitStatus(t, spec.Socket, func(*handoff.Status) bool { return true }) // the next in the queue
		owner.do("state")
		if n := owner.complaints() - told; n != 0 {
			t.Errorf("%d lines were logged", n)
		}
	})
	t.Run("a controller that has seen enough", func(t *testing.T) {
		told := owner.complaints()
		for range 100 { // most of them leave before they are welcomed
			c := dialControl(t, spec.Socket)
			c.sendHello(1, pb.Role_ROLE_CONTROLLER)
			c.close()
		}
		awaitStatus(t, spec.Socket, func(*handoff.Status) bool { return true }) // the next in the queue
		owner.do("state")
		if n := owner.complaints() - told; n != 0 {
			t.Errorf("%d lines were logged", n)
		}
	})
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the owner has %+v, and had %+v", now, before)
	}
	wantGeneration(t, owner, 1)
}

// The successor's patience is shorter than that of the owner with its silent
// clients: if it had to wait for them it would give up.
func TestHundredBadClientsDelayNobody(t *testing.T) {
	t.Parallel()
	const crowd = 100
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.Linger = true })
	before := query[resources](owner, "resources")
	before.Goroutines += crowd / 10 // a process that drains has others than an owner
	clients := startLoad(t, "tcp", address, 1)
	var wg sync.WaitGroup
	kinds := slices.Concat(slowClients, badClients)
	for i := range crowd {
		c := dialControl(t, spec.Socket)
		b := kinds[i%len(kinds)]
		b.do(t, c)
		wg.Go(func() {
			m, err := c.read()
			if err != nil || m.GetRefuse().GetCode() != b.answer || !strings.Contains(m.GetRefuse().GetReason(), b.says) {
				t.Errorf("%s: got %v, %v", b.name, m, err)
			}
			c.wantEnd()
			c.close()
		})
	}
	spec.DialTimeout = 3 * time.Second
	next := d.launch(spec)
	next.expect("ready")
	owner.await("exit")
	clients.servedBy(next)
	clients.stop()
	wg.Wait()
	owner.do("state")
	if n := owner.logged("turned away"); n == 0 || n > crowd/4 {
		t.Errorf("%d lines were logged for %d clients", n, crowd)
	}
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the owner has %+v, and had %+v", now, before)
	}
}

// complaints counts the lines so far that an operator is to see.
func (p *process) complaints() int { return p.logged("level=WARN") + p.logged("level=ERROR") }

// Whoever looks for it in the logs of all generations finds who owned when.
func TestEveryGenerationLogsThatItOwns(t *testing.T) {
	t.Parallel()
	d, spec, owner, _ := startOwner(t)
	owner.awaitLog("this process owns the service", "generation=1")
	next := d.launch(spec)
	next.awaitLog("this process owns the service", "generation=2")
	if n := owner.logged("this process owns the service"); n != 1 {
		t.Errorf("the first has said so %d times", n)
	}
}

func TestPIDFile(t *testing.T) {
	wantPID := func(t *testing.T, path string, p *process) {
		t.Helper()
		content, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(content)) != strconv.Itoa(p.pid) {
			t.Errorf("the file holds %q, %v; want %d", content, err, p.pid)
		}
	}
	withPIDFile := func(s *serviceSpec) { s.PIDFile = "pid" }
	t.Run("names the owner and goes with the last", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t, withPIDFile)
		wantPID(t, spec.PIDFile, owner)
		spec.Ready = false
		next := d.launch(spec)
		next.expect("new")
		wantPID(t, spec.PIDFile, owner)
		next.do("ready")
		if e := owner.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
			t.Errorf("the predecessor ends with %v", e.Err)
		}
		owner.end()
		wantPID(t, spec.PIDFile, next)
		next.do("stop")
		wantMissing(t, spec.PIDFile)
	})
	t.Run("is the predecessor's again when it resumes", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t, withPIDFile)
		c := newCandidate(t, spec.Socket, "Commit")
		writeFile(t, spec.PIDFile, "1\n")
		c.close()
		owner.awaitLog("the handoff failed")
		wantPID(t, spec.PIDFile, owner)
	})
	t.Run("stays if it names another", func(t *testing.T) {
		_, spec, owner, _ := startOwner(t, withPIDFile)
		writeFile(t, spec.PIDFile, "1\n")
		owner.do("stop")
		if content, err := os.ReadFile(spec.PIDFile); err != nil || string(content) != "1\n" {
			t.Errorf("the file holds %q, %v", content, err)
		}
	})
	t.Run("that cannot be written fails Ready before Commit", func(t *testing.T) {
		d, spec, owner, address := startOwner(t)
		dir := d.path("run")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		spec.PIDFile, spec.Ready = filepath.Join(dir, "pid"), false
		next := d.launch(spec)
		next.expect("new")
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if e := next.try("ready"); !errors.Is(e.Err, os.ErrNotExist) {
			t.Errorf("Ready: %v", e.Err)
		}
		owner.awaitLog("the handoff failed", spec.PIDFile)
		if a := ask(t, "tcp", address); a.PID != owner.pid {
			t.Errorf("answered by %+v", a)
		}
	})
}

func TestControlPathIsTheSameFileInEveryGeneration(t *testing.T) {
	d, spec, owner, _ := startOwner(t)
	first := files(t, d.dir)
	for range 5 {
		next := d.launch(spec)
		next.expect("ready")
		owner.await("exit")
		owner.end()
		owner = next
		wantFiles(t, first, files(t, d.dir))
		wantLocked(t, spec.Socket)
	}
	owner.do("stop")
	wantMissing(t, spec.Socket)
	if err := tryLock(t, spec.Socket); err != nil {
		t.Errorf("the lock is still held: %v", err)
	}
}

func TestControlPathThatVanishedIsBoundAgain(t *testing.T) {
	t.Run("when somebody asks for the status", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		remove(t, spec.Socket)
		if s := owner.status(); len(s.Warnings) > 0 {
			t.Errorf("the status warns of %q", s.Warnings)
		}
		owner.awaitLog("bound again", spec.Socket)
		next := d.launch(spec)
		next.expect("ready")
		owner.await("exit")
		wantGeneration(t, next, 2)
		wantLocked(t, spec.Socket)
	})
	t.Run("before the next offer", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		remove(t, spec.Socket)
		owner.do("upgrade")
		owner.await("exit")
		next := d.spawned()
		next.expect("ready")
		wantGeneration(t, next, 2)
		after := d.launch(spec) // by the path
		after.expect("ready")
		wantGeneration(t, after, 3)
	})
}

func TestControlPathThatIsAnothersIsLeftAlone(t *testing.T) {
	tests := []struct {
		name    string
		replace func(t *testing.T, path string)
	}{
		{"another's socket at the path", func(t *testing.T, path string) {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new", Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			ln.SetUnlinkOnClose(false)
			t.Cleanup(func() { ln.Close() })
			rename(t, path+".new", path)
		}},
		{"another's lock", func(t *testing.T, path string) {
			writeFile(t, path+".new", "")
			rename(t, path+".new", path+".lock")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, spec, owner, address := startOwner(t)
			tt.replace(t, spec.Socket)
			before := files(t, d.dir)
			if s := owner.status(); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "control lost") {
				t.Errorf("the status warns of %q", s.Warnings)
			}
			if e := owner.try("upgrade"); !errors.Is(e.Err, crossfade.ErrControlLost) {
				t.Errorf("Upgrade: %v", e.Err)
			}
			if strings.Contains(tt.name, "lock") { // else the path leads elsewhere
				err := d.launch(spec).await("new").Err
				if !errors.Is(err, crossfade.ErrControlLost) || !strings.Contains(err.Error(), "is no longer the lock of this process") {
					t.Errorf("New: %v", err)
				}
			}
			if a := ask(t, "tcp", address); a.PID != owner.pid {
				t.Errorf("answered by %+v", a)
			}
			owner.do("stop")
			owner.awaitLog("the control path stays")
			wantFiles(t, before, files(t, d.dir))
		})
	}
}

// A draining process holds nothing but its connections (I6): after its successor
// has died, a first process gets the same path and ports at once.
func TestDrainingProcessOccupiesNothing(t *testing.T) {
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.Linger = true })
	local := d.path("local")
	owner.do("listen", socketSpec{Name: "local", Network: "unix", Address: local})
	busy := connect(t, "tcp", address)
	busy.answer()
	spec.Sockets = []socketSpec{
		{Name: "web", Network: "tcp", Address: address},
		{Name: "local", Network: "unix", Address: local},
	}
	next := d.launch(spec)
	next.expect("ready")
	owner.await("exit")
	next.expect("settled")
	next.kill()

	fresh := d.launch(spec)
	fresh.expect("ready")
	wantFirst(t, fresh, 1)
	for _, s := range spec.Sockets {
		if a := ask(t, s.Network, s.Address); a.PID != fresh.pid {
			t.Errorf("%s is served by %+v", s.Name, a)
		}
	}
	if a := busy.again(); a.PID != owner.pid {
		t.Errorf("the old connection is served by %+v", a)
	}
	spec.Linger = false
	after := d.launch(spec)
	after.expect("ready")
	fresh.await("exit")
	wantGeneration(t, after, 2)
}

// Unlike a predecessor that drains, a candidate owes nobody an answer.
func TestFailedCandidateOccupiesNoPacketSocket(t *testing.T) {
	d := newDesk(t)
	packets := socketSpec{Name: "dns", Network: "udp", Address: loopback + ":0"}
	old := d.launch(serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{packets}, Ready: true})
	old.expect("ready")
	address := old.address("dns")
	next := d.launch(serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{packets}, Linger: true})
	next.address("dns")
	next.do("stop")
	next.await("exit")
	old.do("stop")
	old.exitStatus()
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatalf("nobody owns, and a candidate that has failed lives: %v", err)
	}
	c.Close()
}

func TestPolicyReachesTheSuccessor(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Refuse = "not on a Friday" })
	spec.Refuse = ""
	err := d.launch(spec).await("new").Err
	if !errors.Is(err, crossfade.ErrPolicy) || !strings.Contains(err.Error(), "not on a Friday") {
		t.Errorf("New: %v", err)
	}
	owner.awaitLog("turned away", "not on a Friday")
	if err := owner.try("upgrade").Err; !errors.Is(err, crossfade.ErrPolicy) || !strings.Contains(err.Error(), "not on a Friday") {
		t.Errorf("Upgrade: %v", err)
	}
	wantGeneration(t, owner, 1)
}

func TestEpochsOnlyGrow(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Epoch = 7 })
	for _, epoch := range []uint64{0, 6} {
		spec.Epoch = epoch
		err := d.launch(spec).await("new").Err
		if !errors.Is(err, crossfade.ErrPolicy) || !containsAll(err.Error(), []string{"epoch 7", fmt.Sprint("epoch ", epoch), "CROSSFADE_FORCE=1"}) {
			t.Errorf("New with epoch %d: %v", epoch, err)
		}
	}
	wantGeneration(t, owner, 1)
	for _, epoch := range []uint64{7, 8} {
		spec.Epoch = epoch
		next := d.launch(spec)
		next.expect("ready")
		owner.await("exit")
		owner = next
	}
	spec.Epoch = 1
	back := d.launch(spec, environ("CROSSFADE_FORCE=1"))
	back.expect("ready")
	owner.await("exit")
	wantGeneration(t, back, 4)
}

// files are the names in a directory with what each of them is.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = fmt.Sprintf("inode %d, mode %o, uid %d, gid %d", st.Ino, st.Mode, st.Uid, st.Gid)
	}
	return found
}

func wantFiles(t testing.TB, want, got map[string]string) {
	t.Helper()
	if !maps.Equal(want, got) {
		t.Errorf("the files are %v, and were %v", got, want)
	}
}

// wantLocked checks that somebody holds the lock of a control path.
func wantLocked(t testing.TB, socket string) {
	t.Helper()
	if err := tryLock(t, socket); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("nobody holds the lock: %v", err)
	}
}

// holdLock takes the lock of a control path, for the length of the test.
func holdLock(t testing.TB, socket string) {
	t.Helper()
	writeFile(t, socket+".lock", "")
	if err := tryLock(t, socket); err != nil {
		t.Fatal(err)
	}
}

// tryLock takes the lock of a control path, for the length of the test.
func tryLock(t testing.TB, socket string) error {
	t.Helper()
	f, err := os.Open(socket + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var lockErr error
	if err := raw.Control(func(fd uintptr) { lockErr = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		t.Fatal(err)
	}
	return lockErr
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// An owner that can spare nobody of all who are there closes whoever comes, unread. Who
// wants to take over asks again, but does not spend its time with nothing else.
func TestControlSocketThatHasNoRoom(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), DialTimeout: time.Second}
	ln, err := net.Listen("unix", spec.Socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	next := d.launch(spec)
	if err := next.await("new").Err; !errors.Is(err, crossfade.ErrOwnerUnknown) {
		t.Errorf("New: %v", err)
	}
	next.end()
	if n := next.logged("looking again"); n > 100 {
		t.Errorf("it asked %d times", n)
	}
}

// Who has said nothing yet makes room for who has something to say.
func TestControlSocketThatIsFull(t *testing.T) {
	t.Parallel()
	d, spec, _, _ := startOwner(t)
	for range 128 {
		newCandidate(t, spec.Socket, "connecting")
	}
	next := d.launch(serviceSpec{Socket: spec.Socket, Sockets: spec.Sockets, Ready: true, DialTimeout: generous})
	next.expect("ready")
}

//go:build unix

package crossfade_test

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// Stop, by state. What is unlinked is the control path and a unix listener's.
func TestStop(t *testing.T) {
	t.Run("a candidate gives up", func(t *testing.T) {
		d, spec, owner, address := startWithUnix(t)
		spec.Ready = false
		next := d.launch(spec)
		next.address("local")
		next.do("stop")
		wantExit(t, next, crossfade.ErrStopped)
		if status := next.exitStatus(); status != 0 {
			t.Errorf("it exits with %d", status)
		}
		owner.awaitLog("the handoff failed", "stopped")
		wantUnlinked(t, spec, false)
		if a := ask(t, "tcp", address); a.PID != owner.pid {
			t.Errorf("answered by %+v", a)
		}
		wantSuccession(t, d, spec, owner)
	})
	t.Run("a first process that is not ready", func(t *testing.T) {
		_, spec, owner, _ := startWithUnix(t, func(s *serviceSpec) { s.Ready, s.Linger = false, true })
		owner.do("stop")
		wantExit(t, owner, crossfade.ErrStopped)
		wantUnlinked(t, spec, true)
		if e := owner.try("ready"); !errors.Is(e.Err, crossfade.ErrStopped) {
			t.Errorf("Ready after that: %v", e.Err)
		}
	})
	t.Run("an owner at rest", func(t *testing.T) {
		d, spec, owner, _ := startWithUnix(t)
		owner.do("stop")
		wantExit(t, owner, crossfade.ErrStopped)
		wantUnlinked(t, spec, true)
		if status := owner.exitStatus(); status != 0 {
			t.Errorf("it exits with %d", status)
		}
		fresh := d.launch(spec)
		fresh.expect("ready")
		wantFirst(t, fresh, 1)
	})
	t.Run("an owner with an attempt under way", func(t *testing.T) {
		d, spec, owner, _ := startWithUnix(t)
		spec.Ready = false
		next := d.launch(spec)
		next.address("local")
		owner.do("stop")
		wantExit(t, owner, crossfade.ErrStopped)
		wantExit(t, next, crossfade.ErrStopping)
		if status := next.exitStatus(); status == 0 {
			t.Error("the successor exits with 0")
		}
		wantUnlinked(t, spec, true)
	})
	t.Run("an owner to which somebody is just connecting", func(t *testing.T) {
		_, spec, owner, _ := startWithUnix(t)
		c := newCandidate(t, spec.Socket, "connecting")
		silent := newCandidate(t, spec.Socket, "connecting")
		offered := newCandidate(t, spec.Socket, "Received")
		owner.do("stop")
		if reason := offered.wantAbort(); !strings.Contains(reason, "stopping") {
			t.Errorf("the reason is %q", reason)
		}
		silent.wantEnd()
		c.wantEnd()
		wantUnlinked(t, spec, true)
	})
	t.Run("a predecessor on standby whose successor answers", func(t *testing.T) {
		_, spec, owner, _ := startWithUnix(t)
		c := newCandidate(t, spec.Socket, "Commit")
		stop := owner.begin("stop")
		if m := c.next(); m.GetProbationOver() == nil {
			t.Fatalf("%v instead of ProbationOver", m)
		}
		if stop.answered() {
			t.Error("Stop did not wait for the answer")
		}
		c.reach("Retired")
		stop.wait()
		wantExit(t, owner, crossfade.ErrRetired)
		wantUnlinked(t, spec, false)
		c.wantEnd() // when the process is gone
	})
	t.Run("a predecessor on standby whose successor settles later", func(t *testing.T) {
		_, spec, owner, _ := startWithUnix(t)
		c := newCandidate(t, spec.Socket, "Commit")
		stop := owner.begin("stop")
		if m := c.next(); m.GetProbationOver() == nil {
			t.Fatalf("%v instead of ProbationOver", m)
		}
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_CommitAck{CommitAck: &pb.CommitAck{}}})
		c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Settle{Settle: &pb.Settle{}}})
		if m := c.next(); m.GetRetired() == nil {
			t.Errorf("%v instead of Retired", m)
		}
		stop.wait()
		wantExit(t, owner, crossfade.ErrRetired)
		wantUnlinked(t, spec, false)
	})
	t.Run("a predecessor on standby whose successor says nothing", func(t *testing.T) {
		t.Parallel()
		_, spec, owner, _ := startWithUnix(t, func(s *serviceSpec) { s.CommitTimeout = time.Second })
		c := newCandidate(t, spec.Socket, "Commit")
		owner.do("stop")
		wantExit(t, owner, crossfade.ErrRetired)
		wantUnlinked(t, spec, false) // it may own
		if m := c.next(); m.GetProbationOver() == nil {
			t.Errorf("%v instead of ProbationOver", m)
		}
		c.wantEnd()
	})
	t.Run("a predecessor on standby whose successor dies", func(t *testing.T) {
		_, spec, owner, _ := startWithUnix(t)
		c := newCandidate(t, spec.Socket, "Commit")
		stop := owner.begin("stop")
		if m := c.next(); m.GetProbationOver() == nil {
			t.Fatalf("%v instead of ProbationOver", m)
		}
		c.close()
		stop.wait()
		wantExit(t, owner, crossfade.ErrStopped)
		wantUnlinked(t, spec, true)
	})
	t.Run("a process that drains", func(t *testing.T) {
		d, spec, owner, _ := startWithUnix(t, func(s *serviceSpec) { s.Linger = true })
		next := d.launch(spec)
		next.expect("ready")
		owner.await("exit")
		owner.do("stop")
		if s := owner.status(); s.State != handoff.StateDraining {
			t.Errorf("it is in state %v", s.State)
		}
		if got := query[[]string](owner, "exit many", 1); !slices.Equal(got, []string{crossfade.ErrRetired.Error()}) {
			t.Errorf("Err is %v", got)
		}
		next.expect("settled")
		wantUnlinked(t, spec, false)
		if next.happened("gone") {
			t.Error("Stop has told the successor that the process is gone")
		}
		owner.do("quit")
		next.expect("gone")
	})
	t.Run("an heir", func(t *testing.T) {
		d, spec, owner, _ := startWithUnix(t)
		spec.Ready = false
		heir := d.launch(spec)
		heir.address("local")
		owner.kill()
		heir.awaitLog("the predecessor has died")
		heir.do("stop")
		wantExit(t, heir, crossfade.ErrStopped)
		wantUnlinked(t, spec, true)
	})
	t.Run("an owner whose predecessor has not retired gives back", func(t *testing.T) {
		t.Parallel()
		d := newDesk(t)
		owner := newOwnerByHand(t, d.path("control"))
		fd, local := openUnixByHand(t, d.path("local"))
		next := d.launch(serviceSpec{
			Socket: owner.path, CommitTimeout: time.Second, Ready: true, PIDFile: d.path("pid"),
			Sockets: []socketSpec{{Name: "local", Network: "unix", Address: d.path("local")}},
		})
		owner.accept()
		owner.offer([]*pb.Descriptor{local}, []*scm.FD{fd})
		owner.commit()
		next.expect("ready")
		before := files(t, d.dir)
		next.do("stop")
		wantExit(t, next, crossfade.ErrStopped)
		if m, err := owner.next(); m != nil || err == nil {
			t.Errorf("the predecessor gets %v", m)
		}
		// All of it is the predecessor's again.
		wantFiles(t, before, files(t, d.dir))
	})
	t.Run("many at once", func(t *testing.T) {
		_, spec, owner, _ := startWithUnix(t, func(s *serviceSpec) { s.Linger = true })
		c := newCandidate(t, spec.Socket, "Received")
		query[[]string](owner, "stop many", 8)
		c.wantAbort()
		query[[]string](owner, "stop many", 2)
		wantExit(t, owner, crossfade.ErrStopped)
		wantUnlinked(t, spec, true)
		if n := owner.logged("level=ERROR"); n > 0 {
			t.Errorf("%d errors were logged", n)
		}
	})
}

func TestExitIsReadByMany(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Linger = true })
	waiting := owner.begin("exit many", 8)
	next := d.launch(spec)
	next.expect("ready")
	var got []string
	if err := json.Unmarshal(waiting.wait().Value, &got); err != nil {
		t.Fatal(err)
	}
	if want := slices.Repeat([]string{crossfade.ErrRetired.Error()}, 8); !slices.Equal(got, want) {
		t.Errorf("they got %q", got)
	}
}

// startWithUnix is startOwner for a service with a unix listener too.
func startWithUnix(t testing.TB, changes ...func(*serviceSpec)) (*desk, serviceSpec, *process, string) {
	t.Helper()
	var path string
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) {
		path = strings.TrimSuffix(s.Socket, "control") + "local"
		s.Sockets = append(s.Sockets, socketSpec{Name: "local", Network: "unix", Address: path})
		for _, change := range changes {
			change(s)
		}
	})
	owner.address("local")
	return d, spec, owner, address
}

// wantExit checks why a process's part has ended.
func wantExit(t *testing.T, p *process, why error) {
	t.Helper()
	if e := p.await("exit"); !errors.Is(e.Err, why) {
		t.Errorf("Err is %v, want %v", e.Err, why)
	}
}

// wantUnlinked checks that the paths of startWithUnix are gone, or are not, and
// that the lock file stays in any case.
func wantUnlinked(t *testing.T, spec serviceSpec, want bool) {
	t.Helper()
	local := strings.TrimSuffix(spec.Socket, "control") + "local"
	for _, path := range []string{spec.Socket, local} {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) != want {
			t.Errorf("%s unlinked is to be %v: %v", path, want, err)
		}
	}
	if _, err := os.Lstat(spec.Socket + ".lock"); err != nil {
		t.Error(err)
	}
}

// wantSuccession has a successor take over from owner.
func wantSuccession(t *testing.T, d *desk, spec serviceSpec, owner *process) {
	t.Helper()
	spec.Ready = true
	next := d.launch(spec)
	next.expect("ready")
	wantExit(t, owner, crossfade.ErrRetired)
	next.expect("settled")
	if s := next.status(); s.State != handoff.StateOwner || len(s.Warnings) > 0 {
		t.Errorf("the successor says: %+v", s)
	}
}

// openUnixByHand opens a unix listener by the library's rules and describes it.
func openUnixByHand(t testing.TB, path string) (*scm.FD, *pb.Descriptor) {
	t.Helper()
	fd, id, err := rendezvous.Open(inTime(t), rendezvous.Place{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	d := describe(t, fd)
	d.Id, d.Name, d.Kind, d.Network, d.Address = 1, "local", pb.Kind_KIND_LISTENER, "unix", path
	d.UnixPath = &pb.UnixPath{Path: id.Path, Bound: id.Bound, Dev: id.Dev, Ino: id.Ino}
	return fd, d
}

func init() {
	// The argument is how many goroutines do it; the answer, what each got.
	serviceCommands["stop many"] = func(s *service, value json.RawMessage) (any, error) {
		return s.many(value, func() error { s.upg.Stop(); return nil })
	}
	serviceCommands["exit many"] = func(s *service, value json.RawMessage) (any, error) {
		return s.many(value, func() error { <-s.upg.Exit(); return s.upg.Err() })
	}
}

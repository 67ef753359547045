//go:build unix

package crossfade_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/reexec"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// replace has a process of the spec take over from owner, which goes on as long
// as it has connections.
func replace(t *testing.T, d *desk, spec serviceSpec, owner *process) *process {
	t.Helper()
	next := d.launch(spec)
	next.expect("ready")
	next.expect("settled")
	if e := owner.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
		t.Fatalf("the predecessor ends with %v", e.Err)
	}
	return next
}

// awaitDraining waits until the older generations that p lists are as wanted.
// There is no event for what p is told.
func (p *process) awaitDraining(what string, holds func([]handoff.Generation) bool) []handoff.Generation {
	p.desk.t.Helper()
	for begin := time.Now(); ; {
		all := p.status().Draining
		if holds(all) {
			return all
		}
		if time.Since(begin) > generous {
			p.desk.t.Fatalf("process %d lists %v, want %s", p.pid, all, what)
		}
	}
}

// wantGone checks what process p was told of the end of another one, and
// that it lists it no more.
func (p *process) wantGone(other *process) {
	p.desk.t.Helper()
	p.awaitLog("an older generation has gone", "pid="+strconv.Itoa(other.pid))
	for _, g := range p.status().Draining {
		if g.Process.PID == other.pid {
			p.desk.t.Errorf("process %d still lists %v", p.pid, g)
		}
	}
}

func TestStatusListsWhoDrains(t *testing.T) {
	t.Parallel()
	d, spec, first, address := startOwner(t, func(s *serviceSpec) {
		s.Instance, s.BuildVersion, s.DrainTimeout = "one", "v1", time.Hour
	})
	var clients [3]session
	for i := range clients {
		clients[i] = connect(t, "tcp", address)
		clients[i].answer()
	}
	if got := first.status().Draining; len(got) != 0 {
		t.Errorf("a first process lists %v", got)
	}

	spec.Instance, spec.BuildVersion, spec.DrainTimeout, spec.Ready = "two", "v2", 0, false
	second := d.launch(spec)
	second.address("web")
	if got := second.status().Draining; len(got) != 0 {
		t.Errorf("a candidate lists the owner: %v", got)
	}
	second.do("ready")
	second.expect("settled")
	counted := runtime.GOOS == "linux"
	all := second.awaitDraining("three connections", func(all []handoff.Generation) bool {
		return len(all) == 1 && (!counted || all[0].Connections == len(clients))
	})
	wantDraining(t, all[0], first, handoff.Process{Instance: "one", BuildVersion: "v1", Generation: 1})
	if left := time.Until(all[0].Deadline); left > time.Hour || left < time.Hour-generous {
		t.Errorf("its drain should end in %v, want an hour after it has retired", left)
	}

	// What one was told by its predecessor, the next one is told.
	kept := connect(t, "tcp", address)
	kept.answer()
	spec.Instance, spec.BuildVersion, spec.Ready = "three", "v3", true
	third := replace(t, d, spec, second)
	all = third.awaitDraining("two processes", func(all []handoff.Generation) bool {
		return len(all) == 2 && (!counted || all[1].Connections == 1)
	})
	wantDraining(t, all[0], first, handoff.Process{Instance: "one", BuildVersion: "v1", Generation: 1})
	wantDraining(t, all[1], second, handoff.Process{Instance: "two", BuildVersion: "v2", Generation: 2})
	if counted && all[0].Connections != len(clients) {
		t.Errorf("the oldest is said to have %d connections, and had told of %d", all[0].Connections, len(clients))
	}
	if left := time.Until(all[0].Deadline); left > time.Hour || left < time.Hour-generous {
		t.Errorf("its drain should end in %v, want less than an hour", left)
	}
	if !all[1].Deadline.IsZero() {
		t.Errorf("the second has the deadline %v, and no DrainTimeout", all[1].Deadline)
	}
	// They are those of the control socket, too.
	if got := awaitStatus(t, spec.Socket, func(*handoff.Status) bool { return true }).Draining; len(got) != 2 || got[0].Process != all[0].Process || got[0].Connections != all[0].Connections {
		t.Errorf("the control socket tells of %v", got)
	}

	// The end of each reaches the owner, however old it is.
	kept.Close()
	third.wantGone(second)
	third.expect("gone")
	for _, c := range clients {
		c.Close()
	}
	third.wantGone(first)
	if got := third.status().Draining; len(got) != 0 {
		t.Errorf("it lists %v when all have gone", got)
	}
}

func wantDraining(t *testing.T, got handoff.Generation, p *process, want handoff.Process) {
	t.Helper()
	want.PID = p.pid
	if got.Process != want || got.State != handoff.StateDraining || got.Since.After(time.Now()) || time.Since(got.Since) > generous {
		t.Errorf("it lists %+v, want %v draining", got, want)
	}
}

// A process that was killed is gone at once, not when somebody looks.
func TestTheDeathOfAnOldGenerationIsSeen(t *testing.T) {
	t.Parallel()
	d, spec, first, address := startOwner(t)
	connect(t, "tcp", address).answer()
	second := replace(t, d, spec, first)
	connect(t, "tcp", address).answer()
	third := replace(t, d, spec, second)
	first.kill()
	third.wantGone(first)
	if got := third.status().Draining; len(got) != 1 {
		t.Errorf("it lists %v", got)
	}
	// It holds nothing of what is gone, and of what is there as much as before.
	before := query[resources](third, "resources")
	second.kill()
	third.wantGone(second)
	if now := query[resources](third, "resources"); now.Descriptors >= before.Descriptors {
		t.Errorf("it has %d descriptors, and had %d when there was another process", now.Descriptors, before.Descriptors)
	}
}

// What a process starts, its successor too, holds nothing that makes the process
// look alive.
func TestTheDeathOfAParentIsSeen(t *testing.T) {
	t.Parallel()
	d, _, first, address := startOwner(t)
	connect(t, "tcp", address).answer()
	first.do("upgrade")
	second := d.spawned()
	second.expect("settled")
	if got := second.status().Draining; len(got) != 1 || got[0].Process.PID != first.pid {
		t.Errorf("it lists %v", got)
	}
	first.kill()
	second.wantGone(first)
}

func TestMaxDraining(t *testing.T) {
	t.Parallel()
	d, spec, first, address := startOwner(t, func(s *serviceSpec) {
		s.MaxDraining, s.BuildVersion, s.DrainTimeout = 2, "v1", time.Hour
	})
	busy := connect(t, "tcp", address)
	busy.answer()
	spec.BuildVersion = "v2"
	second := replace(t, d, spec, first)
	connect(t, "tcp", address).answer()
	third := replace(t, d, spec, second) // two drain, which is allowed

	inTheWay := []string{"2 generations are draining", "limit of 2", "pid " + strconv.Itoa(first.pid), "version v1", "generation 1", "for at most"}
	refused := func(err error) {
		t.Helper()
		if !errors.Is(err, crossfade.ErrDraining) || !containsAll(err.Error(), inTheWay) {
			t.Errorf("refused with %v, want ErrDraining and %q", err, inTheWay)
		}
	}
	fourth := d.launch(spec)
	refused(fourth.await("new").Err)
	refused(third.try("upgrade").Err)
	if third.happened("spawn") {
		t.Error("Upgrade started a process that could not take over")
	}
	if s := third.status(); s.State != handoff.StateOwner || s.LastFailure != nil {
		t.Errorf("after a refusal the owner is %v with the failure %+v", s.State, s.LastFailure)
	}

	// Who waits gets in when one has gone.
	spec.Wait = generous
	fifth := d.launch(spec)
	fifth.awaitLog("the owner asks to wait", "are draining")
	busy.Close()
	fifth.expect("ready")
	if e := third.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
		t.Errorf("the owner ends with %v", e.Err)
	}
	// Nobody need have seen the end of one for the next attempt to succeed.
	second.kill()
	spec.Wait = 0
	replace(t, d, spec, fifth)
}

func TestOneGenerationAtATime(t *testing.T) {
	t.Parallel()
	d, spec, first, address := startOwner(t, func(s *serviceSpec) { s.MaxDraining = 1 })
	busy := connect(t, "tcp", address)
	busy.answer()
	second := replace(t, d, spec, first)
	if e := d.launch(spec).await("new"); !errors.Is(e.Err, crossfade.ErrDraining) {
		t.Errorf("refused with %v, want ErrDraining", e.Err)
	}
	busy.Close()
	second.wantGone(first)
	replace(t, d, spec, second)
}

// A predecessor in another language may send nothing that tells its end: the
// connection does.
func TestPredecessorWithoutAlivePipe(t *testing.T) {
	d := newDesk(t)
	owner := newOwnerByHand(t, d.path("control"))
	next := d.command(serviceSpec{Socket: d.path("control"), Ready: true})
	started := make(chan *process, 1) // has room, so that a failed test ends
	go func() { started <- d.run(next) }()
	owner.accept()
	owner.offer(nil, nil)
	owner.commit()
	p := <-started
	if got := p.status().Draining; len(got) != 1 || got[0].State != handoff.StateProbation {
		t.Errorf("before Retired it lists %v", got)
	}
	owner.retire()
	p.expect("settled")
	send := func(m *pb.Draining) { owner.send(&pb.ServerMessage{Message: &pb.ServerMessage_Draining{Draining: m}}) }
	send(&pb.Draining{Connections: proto.Uint64(77)})
	all := p.awaitDraining("77 connections", func(all []handoff.Generation) bool { return len(all) == 1 && all[0].Connections == 77 })
	if all[0].Process.Instance != "by hand" || all[0].State != handoff.StateDraining || !all[0].Deadline.IsZero() {
		t.Errorf("it lists %v", all[0])
	}
	owner.die()
	p.awaitLog("an older generation has gone", "by hand")
	if got := p.status().Draining; len(got) != 0 {
		t.Errorf("after its end it lists %v", got)
	}
}

// What is offered under kind alive is checked like everything else.
func TestAliveIsChecked(t *testing.T) {
	watched, held, err := scm.Alive()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	noPipe, err := scm.DupFD(null)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []interface{ Close() error }{watched, held, null, noPipe} {
			_ = c.Close()
		}
	})
	item := func(name string, fd *scm.FD, generation uint64) (*pb.Descriptor, *scm.FD) {
		d := describe(t, fd)
		d.Name, d.Kind = name, pb.Kind_KIND_ALIVE
		if generation != 0 {
			d.Alive = &pb.Generation{Process: &pb.Process{Generation: generation}}
		}
		return d, fd
	}
	one := func(name string, fd *scm.FD, generation uint64) func() (*pb.Descriptor, *scm.FD) {
		return func() (*pb.Descriptor, *scm.FD) { return item(name, fd, generation) }
	}
	items := func(all ...func() (*pb.Descriptor, *scm.FD)) []func() (*pb.Descriptor, *scm.FD) { return all }
	for _, tt := range []struct {
		name string
		list []func() (*pb.Descriptor, *scm.FD)
		says string // "" for what is accepted
	}{
		{"a pipe", items(one("crossfade.alive.3", watched, 3)), ""},
		{"a name of the future", items(one("crossfade.pulse.3", watched, 3)), ""},
		{"no generation", items(one("crossfade.alive.3", watched, 0)), "does not say whose end it tells"},
		{"no pipe", items(one("crossfade.alive.3", noPipe, 3)), "is no pipe"},
		{"twice", items(one("crossfade.alive.3", watched, 3), one("crossfade.alive.3", watched, 3)), "twice"},
		{"a pidfd of somebody unknown", items(one("crossfade.pidfd.3", watched, 3)), "does not come before it"},
		{"no pidfd", items(one("crossfade.alive.3", watched, 3), one("crossfade.pidfd.3", noPipe, 3)), "names no process"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			owner := newOwnerByHand(t, d.path("control"))
			next := d.command(serviceSpec{Socket: d.path("control"), Linger: true})
			started := make(chan *process, 1) // has room, so that a failed test ends
			go func() { started <- d.run(next) }()
			owner.accept()
			owner.readHello()
			owner.sendWelcome(7, len(tt.list))
			owner.expect("Prepared", func(m *pb.ClientMessage) bool { return m.GetPrepared() != nil })
			page := &pb.ManifestPage{Last: true}
			var fds []*scm.FD
			for i, make := range tt.list {
				d, fd := make()
				d.Id = uint64(i + 1)
				page.Descriptors, fds = append(page.Descriptors, d), append(fds, fd)
			}
			owner.sendPage(page, fds)
			m, err := owner.next()
			switch {
			case err != nil:
				t.Fatal(err)
			case tt.says == "" && m.GetPageAck() == nil:
				t.Errorf("answered with %v", m)
			case tt.says != "" && (m.GetAbort().GetCode() != pb.AbortCode_ABORT_CODE_DESCRIPTOR || !strings.Contains(m.GetAbort().GetReason(), tt.says)):
				t.Errorf("answered with %v, want Abort and %q", m, tt.says)
			}
			<-started
		})
	}
}

// What cannot be counted may be counted a moment later, and the deadline is known
// all the while.
func TestACountThatFails(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("connections are not counted on this system")
	}
	t.Parallel()
	_, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.DrainTimeout = time.Hour })
	connect(t, "tcp", address).answer()
	next := newCandidate(t, spec.Socket, "Commit")
	owner.do("nofile", 1)
	next.reach("Retired")
	m := next.next().GetDraining()
	if m == nil || m.Connections != nil {
		t.Errorf("the successor is told %v, and nothing could be counted", m)
	}
	if left := m.GetRemaining().AsDuration(); left <= time.Hour-generous || left > time.Hour {
		t.Errorf("the drain lasts for %v, want an hour", left)
	}
	owner.do("nofile", 100)
	if m := next.next().GetDraining(); m == nil || m.Connections == nil || m.GetConnections() != 1 {
		t.Errorf("the successor is told %v, want one connection", m)
	}
}

func TestDrainTimeout(t *testing.T) {
	t.Run("ends a process that does not", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, func(s *serviceSpec) {
			s.DrainTimeout, s.KeepDraining = 50*time.Millisecond, true
		})
		client := connect(t, "tcp", address)
		client.answer()
		second := replace(t, d, spec, first)
		line := first.awaitLog("the drain has lasted too long: exiting", "limit=50ms", "status="+strconv.Itoa(crossfade.ExitDrainTimeout))
		if runtime.GOOS == "linux" && !strings.Contains(line, "1 open, tcp from "+client.LocalAddr().String()+" on "+address) {
			t.Errorf("the log does not say what was open: %s", line)
		}
		if status := first.exitStatus(); status != crossfade.ExitDrainTimeout {
			t.Errorf("its exit status is %d", status)
		}
		second.expect("gone")
		second.wantGone(first)
		if who := ask(t, "tcp", address); who.PID != second.pid {
			t.Errorf("pid %d serves", who.PID)
		}
	})
	t.Run("leaves a process that ends by itself alone", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, func(s *serviceSpec) { s.DrainTimeout = 50 * time.Millisecond })
		connect(t, "tcp", address).answer()
		replace(t, d, spec, first)
		if e := first.await("drained"); !errors.Is(e.Err, context.DeadlineExceeded) || !strings.Contains(e.Err.Error(), "DrainTimeout, 50ms") {
			t.Errorf("the drain ends because of %v", e.Err)
		}
		if status := first.exitStatus(); status != 0 {
			t.Errorf("its exit status is %d", status)
		}
	})
	t.Run("may be for ever", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, func(s *serviceSpec) {
			s.DrainTimeout, s.KeepDraining, s.OnDrainTimeout = math.MaxInt64, true, true
		})
		client, another := connect(t, "tcp", address), connect(t, "tcp", address)
		client.answer()
		another.answer()
		second := replace(t, d, spec, first)
		if runtime.GOOS == "linux" {
			// Who counts a second time has waited in between, also for the end.
			for n := 2; n > 0; n-- {
				second.awaitDraining(fmt.Sprintf("%d connections", n), func(all []handoff.Generation) bool {
					return len(all) == 1 && all[0].Connections == n
				})
				another.Close()
			}
		}
		client.Close()
		another.Close()
		if status := first.exitStatus(); status != 0 {
			t.Errorf("its exit status is %d", status)
		}
		if first.happened("overstay") {
			t.Error("it has overstayed")
		}
	})
	t.Run("calls the hook instead", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, func(s *serviceSpec) {
			s.DrainTimeout, s.KeepDraining, s.OnDrainTimeout = 50*time.Millisecond, true, true
		})
		client := connect(t, "tcp", address)
		client.answer()
		replace(t, d, spec, first)
		first.await("overstay")
		if who := client.again(); who.PID != first.pid { // it goes on
			t.Errorf("pid %d answers", who.PID)
		}
		client.Close()
		if status := first.exitStatus(); status != 0 {
			t.Errorf("its exit status is %d", status)
		}
	})
	t.Run("ends a process that has rolled back", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, func(s *serviceSpec) {
			s.DrainTimeout, s.KeepDraining, s.Probation = 50*time.Millisecond, true, time.Hour
		})
		second := d.launch(spec)
		second.expect("ready")
		client := connect(t, "tcp", address)
		for client.answer().PID != second.pid { // for an instant both accept
			client.Close()
			client = connect(t, "tcp", address)
		}
		second.do("rollback")
		if status := second.exitStatus(); status != crossfade.ExitDrainTimeout {
			t.Errorf("its exit status is %d", status)
		}
		if s := first.status(); s.State != handoff.StateOwner {
			t.Errorf("the predecessor is %v", s.State)
		}
	})
	t.Run("does not end a process that was stopped", func(t *testing.T) {
		t.Parallel()
		_, _, owner, address := startOwner(t, func(s *serviceSpec) {
			s.DrainTimeout, s.KeepDraining = 50*time.Millisecond, true
		})
		client := connect(t, "tcp", address)
		client.answer()
		owner.do("stop")
		wantExit(t, owner, crossfade.ErrStopped)
		<-time.After(3 * time.Second) // when it would have been ended
		if who := client.again(); who.PID != owner.pid {
			t.Errorf("pid %d answers", who.PID)
		}
	})
}

func TestKillOverdue(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there are no pidfds on this system")
	}
	overdue := func(s *serviceSpec) {
		s.DrainTimeout, s.KeepDraining, s.KillOverdue = 50*time.Millisecond, true, true
	}
	killed := func(t *testing.T, p *process) {
		t.Helper()
		p.end()
		if w, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !w.Signaled() || w.Signal() != syscall.SIGKILL {
			t.Errorf("process %d ended with %v, want SIGKILL", p.pid, p.cmd.ProcessState)
		}
	}
	t.Run("a predecessor that is stopped", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, overdue)
		connect(t, "tcp", address).answer()
		second := replace(t, d, spec, first)
		first.freeze()
		line := second.awaitLog("an older generation was overdue and has been killed", "KillOverdue", "who.pid="+strconv.Itoa(first.pid), "who.generation=1")
		if !containsAll(line, []string{"overdue=5", "level=WARN"}) {
			t.Errorf("it logs %q", line)
		}
		killed(t, first)
		second.wantGone(first)
	})
	t.Run("one of two generations ago", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, overdue)
		connect(t, "tcp", address).answer()
		spec.KillOverdue, spec.DrainTimeout = false, 0
		second := replace(t, d, spec, first)
		first.freeze()
		connect(t, "tcp", address).answer()
		spec.KillOverdue = true
		third := replace(t, d, spec, second)
		third.awaitLog("has been killed", "who.pid="+strconv.Itoa(first.pid))
		killed(t, first)
		third.wantGone(first)
		if got := third.status().Draining; len(got) != 1 || got[0].Process.PID != second.pid {
			t.Errorf("it lists %v", got)
		}
	})
	t.Run("not unless it is wanted", func(t *testing.T) {
		t.Parallel()
		d, spec, first, address := startOwner(t, overdue)
		connect(t, "tcp", address).answer()
		spec.KillOverdue = false
		second := replace(t, d, spec, first)
		first.freeze()
		second.awaitLog("an older generation is overdue", "who.pid="+strconv.Itoa(first.pid))
		if got := second.status().Draining; len(got) != 1 {
			t.Errorf("it lists %v", got)
		}
		first.kill()
	})
	t.Run("not one of another user", func(t *testing.T) {
		const stranger, members = 65533, 65511 // in a group, so that the two replace each other
		if os.Geteuid() != 0 {
			t.Skip("only root can start a process as another user")
		}
		t.Parallel()
		d := newDesk(t)
		err := errors.Join(os.Chown(d.dir, 0, members), os.Chmod(d.dir, 0o770), os.Chown(d.path("desk"), stranger, stranger))
		if err != nil {
			t.Fatal(err)
		}
		exe := reexec.Copy(t)
		spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web")}, Ready: true}
		spec.SocketMode, spec.SocketGroup = 0o660, strconv.Itoa(members)
		overdue(&spec)
		first := d.launch(spec, func(cmd *exec.Cmd) {
			cmd.Path, cmd.Dir = exe, "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger, Groups: []uint32{members}}}
		})
		first.expect("ready")
		address := first.address("web")
		connect(t, "tcp", address).answer()
		second := replace(t, d, spec, first)
		first.freeze()
		second.awaitLog("there is no pidfd of it that can be trusted", "who.pid="+strconv.Itoa(first.pid))
		first.kill()
		second.wantGone(first)
	})
}

//go:build unix

package crossfade_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
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
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// The bugs of the libraries that came before, and the tests of this package which
// would find them here. How descriptors travel is tested in package scm.
//
//	the old process exits though the transfer failed   TestSuccessorThatDiesLeavesEverythingAsItWas, TestUpgradeThatFails
//	a failed spawn or a dead child blocks the next     TestUpgradeThatFails, TestSuccessorIsKilled, TestTwoHundredHandoffsInARow
//	what was done for a failed attempt stays done      TestSuccessorThatOwnedAndWentGivesTheQueueBack
//	more descriptors than fit are lost without a word  TestLimitOfDescriptorsIsCheckedBeforeTheyAreSent, TestTenThousandListeners
//	a loop runs as far as the peer announced           TestOfferThatIsNotWhatWasAnnounced, TestBadClientIsAnsweredAndLoggedOnce
//	the last acknowledgement is never read             TestSuccessorThatNeverAnswersCommit
//	"cannot reach the owner" is taken for "no owner"   TestUnknownOwnerIsNoFreshStart, TestStrangers, TestOwnerThatHangsIsNotReplaced
//	the wrong process unlinks the control socket       TestStop, TestControlPathThatIsAnothersIsLeftAlone
//	the shared socket is put into blocking mode        TestTheOtherProcessStaysNonblocking
//	a stuck client stops everybody                     TestHundredBadClientsDelayNobody
//	a child that hangs is waited for without end       TestUpgradeEndsAChildThatDoesNotConnect, TestUpgradeEndsAChildThatIsNotReadyInTime
//	descriptors leak into other programs               TestExecedProcessesInheritNothing
//	what nobody asked for stays open                   TestUnclaimedDescriptorsAreNamedAndClosed, TestDrainingProcessOccupiesNothing
//	two listeners on one address become one            TestTwoNamesOnOneAddressAreTwo
//	port 0 never matches                               TestAddressesAreComparedAfterResolution
//	an old process waits though nothing is left        TestPredecessorIsKnownUntilItHasGone
//	a pid is taken for an identity                     TestPIDsAreNoIdentity
//	a stop during the drain takes the successor along  TestStop

// A candidate that dies between any two messages, under load: nothing has
// happened, and the next one is in nobody's way.
func TestSuccessorThatDiesLeavesEverythingAsItWas(t *testing.T) {
	d, spec, owner, address := startOwner(t)
	clients := startLoad(t, "tcp", address, 2)
	last := uint64(1)
	for _, step := range candidateSteps {
		if step.name == "CommitAck" {
			break // with a Settle, after which there is no coming back
		}
		t.Run("after "+step.name, func(t *testing.T) {
			c := newCandidate(t, spec.Socket, step.name)
			c.close()
			next := insist(t, spec.Socket, "Welcome")
			next.close()
			for _, c := range []*candidate{c, next} {
				if c.welcome == nil {
					continue // whether its attempt began cannot be known
				}
				generation := c.welcome.GetGeneration()
				if generation <= last {
					t.Errorf("generation %d comes after %d", generation, last)
				}
				last = generation
				owner.awaitLog("the handoff failed", "by hand", fmt.Sprint("generation=", generation), "the other side is gone")
			}
			failure := awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.State == handoff.StateOwner }).LastFailure
			if failure == nil || failure.Successor.Instance != "by hand" || !strings.Contains(failure.Reason, "gone") {
				t.Errorf("the status says of it: %+v", failure)
			}
			clients.more(20)
		})
	}
	next := d.launch(spec)
	next.expect("ready")
	clients.servedBy(next)
	owner.await("exit") // until then both accept
	if a := ask(t, "tcp", address); a.PID != next.pid || a.Generation <= last {
		t.Errorf("got %+v after generation %d", a, last)
	}
	clients.stop()
}

// A killed candidate is in nobody's way, not even for the instant that it takes
// its owner to notice.
func TestSuccessorIsKilled(t *testing.T) {
	d, spec, owner, address := startOwner(t)
	clients := startLoad(t, "tcp", address, 2)
	var victims []*process
	for range 5 {
		victim := launchCandidate(d, spec)
		victim.kill()
		next := newCandidate(t, spec.Socket, "Welcome")
		owner.awaitLog("the handoff failed", "pid="+strconv.Itoa(victim.pid), "gone")
		next.close()
		owner.awaitLog("the handoff failed", "by hand", "gone")
		victims = append(victims, victim)
	}
	last := launchCandidate(d, spec)
	last.kill()
	next := d.launch(spec)
	next.expect("ready")
	clients.servedBy(next)
	counts := clients.stop()
	for _, victim := range append(victims, last) {
		if counts[victim.pid] != 0 {
			t.Errorf("%d clients were served by a process that was never ready", counts[victim.pid])
		}
	}
}

// launchCandidate starts a successor that has all and does not call Ready.
func launchCandidate(d *desk, spec serviceSpec) *process {
	d.t.Helper()
	spec.Ready = false
	p := d.launch(spec)
	p.address("web")
	return p
}

func TestSuccessorThatIsNotReadyInTimeIsGivenUp(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.ReadyTimeout = 2 * time.Second })
	clients := startLoad(t, "tcp", address, 1)
	spec.Ready, spec.Linger = false, true
	slow := d.launch(spec)
	slow.expect("new")
	const reason = "no Ready within 2s"
	owner.awaitLog("the handoff failed", "pid="+strconv.Itoa(slow.pid), reason)
	exit := slow.await("exit")
	if !errors.Is(exit.Err, crossfade.ErrAborted) || !errors.Is(exit.Err, crossfade.ErrTimeout) || !strings.Contains(exit.Err.Error(), reason) {
		t.Errorf("the successor ends with %v", exit.Err)
	}
	if late := slow.try("ready"); !errors.Is(late.Err, crossfade.ErrTimeout) {
		t.Errorf("Ready after that: %v", late.Err)
	}
	spec.Ready = true
	next := d.launch(spec)
	next.expect("ready")
	clients.servedBy(next)
	if counts := clients.stop(); counts[slow.pid] != 0 {
		t.Errorf("%d clients were served by the one that was given up", counts[slow.pid])
	}
}

func TestFrozenSuccessorIsGivenUp(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.ReadyTimeout = 2 * time.Second })
	clients := startLoad(t, "tcp", address, 1)
	spec.Ready = false
	frozen := d.launch(spec)
	frozen.expect("new")
	frozen.freeze()
	owner.awaitLog("the handoff failed", "no Ready within 2s")
	next := newCandidate(t, spec.Socket, "Received") // it holds nobody up
	frozen.signal(syscall.SIGCONT)
	if e := frozen.await("exit"); !errors.Is(e.Err, crossfade.ErrTimeout) {
		t.Errorf("it wakes up to %v", e.Err)
	}
	next.close()
	clients.more(20)
	if counts := clients.stop(); len(counts) != 1 {
		t.Errorf("answers came from %v", counts)
	}
}

// From Commit on the predecessor is not the owner. It goes on accepting all the
// same until it is told that somebody else does.
func TestSuccessorThatNeverAnswersCommit(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.CommitTimeout = time.Second })
	clients := startLoad(t, "tcp", address, 1)
	silent := newCandidate(t, spec.Socket, "Commit")
	owner.awaitLog("the successor has not answered Commit", "by hand")
	clients.more(20)
	if s := owner.status(); s.State != handoff.StateStandby || s.Attempt == nil || s.Attempt.Step != "CommitAck" {
		t.Errorf("the predecessor says: %+v", s)
	}
	newCandidate(t, spec.Socket, "Hello").wantRefusal(pb.RefuseCode_REFUSE_CODE_BUSY)
	if owner.happened("exit") {
		t.Error("the predecessor left before anybody had taken over")
	}
	silent.close()
	owner.awaitLog("the handoff failed", "gone")
	spec.CommitTimeout = 0
	next := d.launch(spec)
	next.expect("ready")
	clients.servedBy(next)
	clients.stop()
}

// Between CommitAck and Settle nobody but the successor accepts. If it goes, the
// queue of those who came meanwhile is the predecessor's again.
func TestSuccessorThatOwnedAndWentGivesTheQueueBack(t *testing.T) {
	tests := []struct {
		name  string
		leave func(*candidate)
		says  string
	}{
		{"dies", (*candidate).close, "gone"},
		{"rolls back", func(c *candidate) {
			c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Rollback{Rollback: &pb.Rollback{Reason: "the database is read-only"}}})
			if m := c.next(); m.GetResumed() == nil {
				c.t.Errorf("%v instead of Resumed", m)
			}
		}, "the database is read-only"},
	}
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.PIDFile = "pid" })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCandidate(t, spec.Socket, "Commit")
			c.send(&pb.ClientMessage{Message: &pb.ClientMessage_CommitAck{CommitAck: &pb.CommitAck{}}})
			if m := c.next(); m.GetProbationOver() == nil {
				t.Fatalf("%v instead of ProbationOver", m)
			}
			var queue []session
			for range 10 {
				queue = append(queue, connect(t, "tcp", address))
			}
			if s := owner.status(); s.State != handoff.StateProbation {
				t.Errorf("the predecessor is in state %v", s.State)
			}
			tt.leave(c)
			for _, s := range queue {
				if a := s.answer(); a.PID != owner.pid {
					t.Errorf("answered by %+v", a)
				}
			}
			owner.awaitLog("the handoff failed", tt.says)
		})
	}
	next := d.launch(spec)
	next.expect("ready")
	owner.await("exit")
	if a := ask(t, "tcp", address); a.PID != next.pid {
		t.Errorf("answered by %+v", a)
	}
}

// What a process says of its pid proves nothing: pids are reused, and mean
// nothing in another namespace.
func TestPIDsAreNoIdentity(t *testing.T) {
	ended := exec.Command("/bin/sh", "-c", "exit 0")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{
		"unknown":                    0,
		"of one that has ended":      ended.Process.Pid,
		"of one that lives for good": 1,
		"out of range":               -7,
	} {
		t.Run(name, func(t *testing.T) {
			_, spec, owner, address := startOwner(t)
			c := dialControl(t, spec.Socket)
			c.send(&pb.ClientMessage{Message: &pb.ClientMessage_Hello{Hello: &pb.Hello{
				Versions: []uint32{1}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "by hand", Pid: int64(pid)},
			}}})
			c.done++
			c.reach("Commit") // that it seems to have ended ends nothing
			if s := owner.status(); s.State != handoff.StateStandby {
				t.Errorf("the owner is in state %v", s.State)
			}
			c.close() // and that it seems to live keeps nothing
			owner.awaitLog("the handoff failed", "gone")
			if a := ask(t, "tcp", address); a.PID != owner.pid {
				t.Errorf("answered by %+v", a)
			}
		})
	}
}

// What an owner announces bounds nothing but what the successor believes.
func TestOfferThatIsNotWhatWasAnnounced(t *testing.T) {
	tests := []struct {
		name  string
		offer func(o *ownerByHand, ds []*pb.Descriptor, fds []*scm.FD)
		says  string
	}{
		{"fewer descriptors", func(o *ownerByHand, ds []*pb.Descriptor, fds []*scm.FD) {
			o.sendWelcome(2, 5)
			o.sendPage(&pb.ManifestPage{Descriptors: ds, Last: true}, fds)
		}, "announced 5 descriptors and ends after 2"},
		{"more descriptors", func(o *ownerByHand, ds []*pb.Descriptor, fds []*scm.FD) {
			o.sendWelcome(2, 1)
			o.sendPage(&pb.ManifestPage{Descriptors: ds, Last: true}, fds)
		}, "makes 2 descriptors, the limit is 1"},
		{"more than any service has", func(o *ownerByHand, _ []*pb.Descriptor, _ []*scm.FD) {
			o.sendWelcome(2, 1<<30)
		}, "announces 1073741824 descriptors"},
		{"a list longer than what rides on the page", func(o *ownerByHand, ds []*pb.Descriptor, fds []*scm.FD) {
			o.sendWelcome(2, 2)
			o.sendPage(&pb.ManifestPage{Descriptors: ds, Last: true}, fds[:1])
		}, "lists 2 descriptors and carries 1"},
		{"a page twice", func(o *ownerByHand, ds []*pb.Descriptor, fds []*scm.FD) {
			o.sendWelcome(2, 2)
			o.sendPage(&pb.ManifestPage{Descriptors: ds[:1]}, fds[:1])
			o.sendPage(&pb.ManifestPage{Descriptors: ds[:1], Last: true}, fds[:1])
		}, "page 0 came instead of page 1"},
		{"empty pages without end", func(o *ownerByHand, _ []*pb.Descriptor, _ []*scm.FD) {
			o.sendWelcome(2, 2)
			o.sendPage(&pb.ManifestPage{}, nil)
		}, "page 0 is empty and not the last"},
		{"descriptors on a message that has none", func(o *ownerByHand, _ []*pb.Descriptor, fds []*scm.FD) {
			o.sendWelcome(2, 2)
			o.send(&pb.ServerMessage{Message: &pb.ServerMessage_Commit{Commit: &pb.Commit{}}}, fds...)
		}, "Commit carries 2 descriptors"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t)
			owner := newOwnerByHand(t, d.path("control"))
			ds, fds := manyListeners(t, 2)
			next := d.launch(serviceSpec{Socket: owner.path, Ready: true})
			owner.accept()
			owner.readHello()
			tt.offer(owner, ds, fds)
			if err := next.await("new").Err; err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("New: %v", err)
			}
			for {
				m, err := owner.next()
				if err != nil {
					t.Fatalf("it ends without Abort: %v", err)
				}
				if a := m.GetAbort(); a != nil {
					if !strings.Contains(a.GetReason(), tt.says) {
						t.Errorf("its reason is %q", a.GetReason())
					}
					break
				}
			}
		})
	}
}

func TestProgressExtendsTheDeadlineAndIsShown(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) {
		s.ReadyTimeout, s.MaxReadyTimeout = time.Hour, 10*time.Hour
	})
	spec.Ready, spec.Instance = false, "the slow one"
	next := d.launch(spec)
	next.expect("new")
	tests := []struct {
		name   string
		extend time.Duration
		want   time.Duration
	}{
		{"no word of time", 0, time.Hour},
		{"less than is left", time.Minute, time.Hour},
		{"more than is left", 5 * time.Hour, 5 * time.Hour},
		{"more than the most", 100 * time.Hour, 10 * time.Hour},
		{"never back", time.Minute, 10 * time.Hour},
	}
	for _, tt := range tests {
		next.do("progress", progressArgs{Status: tt.name, Extend: tt.extend})
		s := awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.Attempt != nil && s.Attempt.Status == tt.name })
		if s.State != handoff.StateOffering || s.Process.PID != owner.pid {
			t.Errorf("%s: the status is that of %v in state %v", tt.name, s.Process, s.State)
		}
		if s.Attempt.Successor.Instance != "the slow one" || s.Attempt.Successor.Generation != 2 || s.Attempt.Step != "Ready" {
			t.Errorf("%s: the attempt is shown as %+v", tt.name, s.Attempt)
		}
		if got := s.Attempt.Deadline.Sub(s.Attempt.Began).Round(time.Hour); got != tt.want {
			t.Errorf("%s: the deadline is %v after the begin, want %v", tt.name, got, tt.want)
		}
	}
	next.do("ready")
}

func TestPredecessorDies(t *testing.T) {
	t.Run("before its Welcome", func(t *testing.T) {
		d := newDesk(t)
		owner := newOwnerByHand(t, d.path("control"))
		next := d.launch(serviceSpec{Socket: owner.path, Ready: true})
		owner.accept()
		owner.readHello()
		owner.die()
		next.expect("ready")
		wantFirst(t, next, 1)
	})
	t.Run("before Received", func(t *testing.T) {
		d := newDesk(t)
		owner := newOwnerByHand(t, d.path("control"))
		next := d.launch(serviceSpec{Socket: owner.path, Ready: true})
		owner.accept()
		owner.readHello()
		owner.sendWelcome(7, 5)
		owner.die()
		next.expect("ready")
		wantFirst(t, next, 7)
	})
	t.Run("after Received", func(t *testing.T) {
		d, spec, owner, address := startOwner(t)
		heir := launchCandidate(d, spec)
		owner.kill()
		heir.awaitLog("the predecessor has died")
		// It answers for the service, and hands over to nobody yet.
		s := awaitStatus(t, spec.Socket, func(*handoff.Status) bool { return true })
		if s.State != handoff.StateHeir || s.Process.PID != heir.pid || s.Process.Generation != 2 || s.Ready {
			t.Errorf("its status is %+v", s)
		}
		if r := newCandidate(t, spec.Socket, "Hello").wantRefusal(pb.RefuseCode_REFUSE_CODE_NOT_READY); r.GetWho().GetPid() != int64(heir.pid) {
			t.Errorf("it refuses with %v", r)
		}
		after := d.launch(spec)
		after.awaitLog("the owner asks to wait")
		wantQueueAnswered(t, address, func() { heir.do("ready") }, heir, after)
		heir.expect("settled")
		heir.expect("gone")
		after.expect("ready")
		wantGeneration(t, after, 3)
	})
	t.Run("after Ready", func(t *testing.T) {
		d, spec, owner, address := startOwner(t)
		heir := launchCandidate(d, spec)
		owner.freeze()
		wantQueueAnswered(t, address, func() {
			ready := heir.begin("ready")
			owner.kill()
			if e := ready.wait(); e.Err != nil {
				t.Errorf("Ready: %v", e.Err)
			}
		}, heir)
		heir.expect("settled")
		heir.expect("gone")
		wantGeneration(t, heir, 2)
	})
	t.Run("after Commit", func(t *testing.T) {
		d := newDesk(t)
		owner := newOwnerByHand(t, d.path("control"))
		next := d.launch(serviceSpec{Socket: owner.path, Ready: true})
		owner.accept()
		owner.offer(nil, nil)
		owner.commit()
		next.expect("ready")
		if next.happened("settled") || next.happened("gone") {
			t.Error("settled although the predecessor can come back")
		}
		owner.die()
		next.expect("settled")
		next.expect("gone")
		wantGeneration(t, next, 7)
	})
	t.Run("while it drains", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Linger = true })
		next := d.launch(spec)
		next.expect("ready")
		owner.await("exit")
		next.expect("settled")
		owner.kill()
		next.expect("gone")
		wantGeneration(t, next, 2)
	})
}

// wantFirst checks that p started as the first process, with the generation that
// its failed attempt had got.
func wantFirst(t *testing.T, p *process, generation uint64) {
	t.Helper()
	wantGeneration(t, p, generation)
	if query[bool](p, "has predecessor") {
		t.Error("it says that it has a predecessor")
	}
}

func wantGeneration(t *testing.T, p *process, generation uint64) {
	t.Helper()
	s := p.status()
	if s.Process.Generation != generation || s.State != handoff.StateOwner || !s.Ready || len(s.Warnings) > 0 {
		t.Errorf("its status is %+v, want an owner of generation %d", s, generation)
	}
}

// wantQueueAnswered has clients connect while nobody accepts, and checks that
// one of who answers each of them once do was done.
func wantQueueAnswered(t *testing.T, address string, do func(), who ...*process) {
	t.Helper()
	var queue []session
	for range 10 {
		queue = append(queue, connect(t, "tcp", address))
	}
	do()
	for _, s := range queue {
		a := s.answer()
		if !slices.ContainsFunc(who, func(p *process) bool { return p.pid == a.PID }) {
			t.Errorf("answered by %+v", a)
		}
	}
}

func TestPredecessorIsKnownUntilItHasGone(t *testing.T) {
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.Linger = true })
	if query[bool](owner, "has predecessor") {
		t.Error("the first process says that it has a predecessor")
	}
	owner.expect("settled")
	owner.do("wait for predecessor", time.Hour) // there is none
	busy := connect(t, "tcp", address)
	busy.answer()

	next := launchCandidate(d, spec)
	if !query[bool](next, "has predecessor") {
		t.Error("the successor says that it has no predecessor")
	}
	if next.happened("settled") {
		t.Error("a candidate is settled")
	}
	if e := next.try("wait for predecessor", time.Nanosecond); !errors.Is(e.Err, context.DeadlineExceeded) {
		t.Errorf("waiting for a living predecessor ends with %v", e.Err)
	}
	next.do("ready")
	next.expect("settled")
	if e := owner.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
		t.Errorf("the predecessor's Err is %v", e.Err)
	}
	if s := owner.status(); s.State != handoff.StateDraining {
		t.Errorf("the predecessor is in state %v", s.State)
	}
	if a := busy.again(); a.PID != owner.pid {
		t.Errorf("an old connection is served by %+v", a)
	}
	if next.happened("gone") {
		t.Error("the predecessor is called gone while it drains")
	}
	busy.Close()
	owner.do("quit")
	next.expect("gone")
	if status := owner.exitStatus(); status != 0 {
		t.Errorf("the predecessor exits with %d", status)
	}
	if !query[bool](next, "has predecessor") {
		t.Error("HasPredecessor has changed")
	}
}

var limitText = regexp.MustCompile(`(\d+) descriptors are needed but RLIMIT_NOFILE allows (\d+)`)

func TestLimitOfDescriptorsIsCheckedBeforeTheyAreSent(t *testing.T) {
	const listeners, limit = 300, 200
	d, spec, owner, _ := startOwner(t)
	owner.do("listen many", manySpec{Count: listeners})
	spec.NoFile = limit
	next := d.launch(spec)
	err := next.await("new").Err
	if !errors.Is(err, crossfade.ErrLimit) {
		t.Fatalf("the successor fails with %v", err)
	}
	for _, text := range []string{err.Error(), owner.awaitLog("the handoff failed")} {
		numbers := limitText.FindStringSubmatch(text)
		if numbers == nil {
			t.Fatalf("%q does not name both numbers", text)
		}
		need, _ := strconv.Atoi(numbers[1])
		said, _ := strconv.Atoi(numbers[2])
		// What is open already counts too.
		if said != limit || need <= listeners || need > listeners+limit {
			t.Errorf("%q names the wrong numbers", text)
		}
	}
	failed := awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.LastFailure != nil })
	if failed.LastFailure.Step != "Prepared" {
		t.Errorf("the attempt failed as %+v, want it to before the offer", failed.LastFailure)
	}
	if status := next.exitStatus(); status == 0 {
		t.Error("the successor exits with 0")
	}
}

// To accept takes a second descriptor for each listener. A process that cannot
// have those must not come to own.
func TestLimitThatSufficesOnlyForReceivingFailsReady(t *testing.T) {
	const listeners = 200
	d, spec, owner, address := startOwner(t)
	owner.do("listen many", manySpec{Count: listeners})
	spec.NoFile, spec.Ready = listeners+100, false
	next := d.launch(spec)
	next.expect("new")
	next.do("listen many", manySpec{Count: listeners})
	if e := next.try("ready"); !errors.Is(e.Err, crossfade.ErrLimit) {
		t.Errorf("Ready: %v", e.Err)
	}
	owner.awaitLog("the handoff failed", strconv.Itoa(listeners+100))
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
}

func TestTenThousandListeners(t *testing.T) {
	const listeners = 10_000
	var have syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &have); err != nil {
		t.Fatal(err)
	}
	// One that accepts takes two descriptors.
	most := min(listeners, (int(have.Max)-1000)/2)
	wantAnswers := func(t *testing.T, many manySpec, addresses []string, who *process) {
		t.Helper()
		for i := 0; i < many.Count; i += many.ServeEvery {
			if a := ask(t, "tcp", addresses[i]); a.PID != who.pid {
				t.Errorf("listener %d is served by %+v", i, a)
			}
		}
	}
	t.Run("as many as the limit allows, from service to service", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Ready = false })
		many := manySpec{Count: most, ServeEvery: 100}
		addresses := query[[]string](owner, "listen many", many)
		owner.do("ready")
		next := d.launch(spec)
		next.expect("new")
		if got := query[[]string](next, "listen many", many); !slices.Equal(got, addresses) {
			t.Error("the successor listens on other addresses")
		}
		next.do("ready")
		if e := owner.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
			t.Errorf("the predecessor ends with %v", e.Err)
		}
		wantAnswers(t, many, addresses, next)
	})
	t.Run("all of them, from an owner that only holds them", func(t *testing.T) {
		d := newDesk(t)
		owner := newOwnerByHand(t, d.path("control"))
		ds, fds := manyListeners(t, listeners)
		next := d.launch(serviceSpec{Socket: owner.path})
		owner.accept()
		owner.offer(ds, fds)
		next.expect("new")
		many := manySpec{Count: 1000, ServeEvery: 10}
		addresses := query[[]string](next, "listen many", many)
		ready := next.begin("ready")
		owner.commit()
		if e := ready.wait(); e.Err != nil {
			t.Fatal(e.Err)
		}
		wantAnswers(t, many, addresses, next)
		owner.retire()
		next.expect("settled")
		if got := len(next.status().Descriptors); got != many.Count {
			t.Errorf("it keeps %d listeners, and has asked for %d", got, many.Count)
		}
	})
}

// Each process is replaced as soon as it is ready, some right after a candidate
// that was killed. The last one has no more open than an early one had.
func TestTwoHundredHandoffsInARow(t *testing.T) {
	t.Parallel()
	const handoffs, early = 200, 10
	d, spec, owner, address := startOwner(t)
	spec.Wait = generous // those that drain may be slow to exit
	clients := startLoad(t, "tcp", address, 1)
	var before resources
	generation := uint64(1)
	for i := range handoffs {
		generation++
		if i%20 == 19 {
			launchCandidate(d, spec).kill()
			generation++
		}
		next := d.launch(spec)
		next.expect("ready")
		if e := owner.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
			t.Fatalf("handoff %d: the predecessor ends with %v", i, e.Err)
		}
		if owner = next; i == early {
			clients.stop()
			owner.expect("gone")
			before = query[resources](owner, "resources")
			clients = startLoad(t, "tcp", address, 1)
		}
	}
	clients.servedBy(owner)
	clients.stop()
	owner.expect("gone")
	wantGeneration(t, owner, generation)
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the last process has %+v, and the %dth had %+v", now, early, before)
	}
}

func TestManySuccessorsAtOnce(t *testing.T) {
	const successors = 8
	t.Run("with Wait all of them get in", func(t *testing.T) {
		d, spec, owner, address := startOwner(t)
		clients := startLoad(t, "tcp", address, 1)
		first := newCandidate(t, spec.Socket, "Received")
		spec.Wait, spec.Linger, spec.MaxDraining = generous, true, successors+1
		var all []*process
		for range successors {
			p := d.launch(spec)
			p.awaitLog("the owner asks to wait", "by hand")
			all = append(all, p)
		}
		first.close()
		generations := make(map[uint64]*process)
		for _, p := range all {
			p.expect("ready")
			generations[p.generation()] = p
		}
		if len(generations) != successors {
			t.Errorf("%d successors have %d generations", successors, len(generations))
		}
		var newest uint64
		for g := range generations {
			newest = max(newest, g)
		}
		owner.await("exit")
		for g, p := range generations {
			if g == newest {
				clients.servedBy(p)
				wantGeneration(t, p, newest)
				continue
			}
			if e := p.await("exit"); !errors.Is(e.Err, crossfade.ErrRetired) {
				t.Errorf("generation %d ends with %v", g, e.Err)
			}
		}
		if newest != successors+2 {
			t.Errorf("the newest has generation %d, want %d", newest, successors+2)
		}
		clients.stop()
	})
	t.Run("without Wait they hear who is ahead", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		spec.Ready, spec.Instance = false, "the early bird"
		winner := d.launch(spec)
		winner.expect("new")
		var losers []*process
		for range successors - 1 {
			losers = append(losers, d.launch(spec))
		}
		for _, p := range losers {
			err := p.await("new").Err
			if !errors.Is(err, crossfade.ErrBusy) || !containsAll(err.Error(), []string{"the early bird", "pid " + strconv.Itoa(winner.pid)}) {
				t.Errorf("a loser hears %v", err)
			}
		}
		winner.do("ready")
		owner.await("exit")
		wantGeneration(t, winner, 2)
	})
}

func TestReadyIsCalledTwiceAtOnce(t *testing.T) {
	d, spec, _, _ := startOwner(t)
	spec.Ready = false
	next := d.launch(spec)
	next.expect("new")
	for _, again := range []string{"at once", "and afterwards"} {
		for _, err := range query[[]string](next, "ready many", 4) {
			if err != "" {
				t.Errorf("%s: one of them got %s", again, err)
			}
		}
	}
	wantGeneration(t, next, 2)

	late := d.launch(spec)
	late.expect("new")
	next.kill()
	late.awaitLog("the predecessor has died")
	for _, err := range query[[]string](late, "ready many", 4) {
		if err != "" {
			t.Errorf("in an heir, one of them got %s", err)
		}
	}
	wantGeneration(t, late, 3)
}

func TestReadyWhoseContextEndsIsAborted(t *testing.T) {
	d, spec, owner, address := startOwner(t)
	spec.Ready = false
	next := d.launch(spec)
	next.expect("new")
	if e := next.try("ready cancelled"); !errors.Is(e.Err, context.Canceled) {
		t.Errorf("Ready: %v", e.Err)
	}
	next.await("exit")
	owner.awaitLog("the handoff failed", "cancelled")
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
}

// startOwner starts the first process of a service with one listener, "web", and
// returns the spec that its successors share.
func startOwner(t testing.TB, changes ...func(*serviceSpec)) (*desk, serviceSpec, *process, string) {
	t.Helper()
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web")}, Ready: true}
	for _, change := range changes {
		change(&spec)
	}
	if spec.PIDFile != "" {
		spec.PIDFile = d.path(spec.PIDFile)
	}
	owner := d.launch(spec)
	address := owner.address("web")
	if spec.Ready {
		owner.expect("ready")
	}
	return d, spec, owner, address
}

// awaitStatus asks whoever serves the control socket until what it says fits.
func awaitStatus(t testing.TB, socket string, fits func(*handoff.Status) bool) *handoff.Status {
	t.Helper()
	ctx := inTime(t)
	for {
		conn, err := scm.Dial(ctx, socket)
		if err != nil {
			t.Fatal(err)
		}
		s, err := handoff.QueryStatus(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		if fits(s) {
			return s
		}
	}
}

// exceeds reports whether there is more of anything than in most.
func (r resources) exceeds(most resources) bool {
	return r.Descriptors > most.Descriptors || r.Goroutines > most.Goroutines
}

// awaitResources waits until the process has no more than most, and returns what
// it has. What has ended may take a moment to be gone, and nothing tells when.
func (p *process) awaitResources(most resources) resources {
	p.desk.t.Helper()
	for begin := time.Now(); ; {
		now := query[resources](p, "resources")
		if !now.exceeds(most) || time.Since(begin) > generous {
			return now
		}
	}
}

// freeze stops a process of the test's own with SIGSTOP, and returns when no
// thread of it runs any more.
func (p *process) freeze() {
	p.desk.t.Helper()
	p.signal(syscall.SIGSTOP)
	p.awaitStopped()
}

// awaitStopped returns when not a single thread of the process runs any more. The
// test has started it.
func (p *process) awaitStopped() {
	p.desk.t.Helper()
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(p.pid, &status, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || !status.Stopped():
			p.desk.t.Fatalf("process %d did not stop: status %#x, %v", p.pid, status, err)
		default:
			return
		}
	}
}

// generation is the one that the process has.
func (p *process) generation() uint64 {
	p.desk.t.Helper()
	return p.status().Process.Generation
}

// From here on is what runs in the service process.

func init() {
	serviceCommands["has predecessor"] = func(s *service, _ json.RawMessage) (any, error) {
		return s.upg.HasPredecessor(), nil
	}
	// The argument is how long it may take.
	serviceCommands["wait for predecessor"] = func(s *service, value json.RawMessage) (any, error) {
		var limit time.Duration
		if err := json.Unmarshal(value, &limit); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(s.ctx, limit)
		defer cancel()
		return nil, s.upg.WaitForPredecessor(ctx)
	}
	// The argument is how many goroutines call Ready; the answer, what each got.
	serviceCommands["ready many"] = func(s *service, value json.RawMessage) (any, error) {
		return s.many(value, func() error { return s.upg.Ready(s.ctx) })
	}
	serviceCommands["ready cancelled"] = func(s *service, _ json.RawMessage) (any, error) {
		ctx, cancel := context.WithCancel(s.ctx)
		cancel()
		return nil, s.upg.Ready(ctx)
	}
	// The answer has the addresses.
	serviceCommands["listen many"] = func(s *service, value json.RawMessage) (any, error) {
		var spec manySpec
		if err := json.Unmarshal(value, &spec); err != nil {
			return nil, err
		}
		var addresses []string
		for i := range spec.Count {
			one := manySocket(i)
			one.Idle = spec.ServeEvery == 0 || i%spec.ServeEvery != 0
			l, err := s.open(one)
			if err != nil {
				return nil, err
			}
			addresses = append(addresses, l.Address)
		}
		return addresses, nil
	}
}

// manySocket is one of many. To find a free port takes the kernel long where
// thousands are taken, so they are spread over the addresses that Linux has.
func manySocket(i int) socketSpec {
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.0.0.%d", 1+i/1000)
	}
	return socketSpec{Name: fmt.Sprintf("many-%05d", i), Network: "tcp", Address: host + ":0"}
}

// manySpec is the argument of the command "listen many".
type manySpec struct {
	Count      int
	ServeEvery int // how many of them nobody takes from, for each that is served; 0: none is
}

// many has n goroutines do the same at once, and returns what each got.
func (s *service) many(n json.RawMessage, do func() error) ([]string, error) {
	var count int
	if err := json.Unmarshal(n, &count); err != nil {
		return nil, err
	}
	got := make([]string, count)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			<-begin
			if err := do(); err != nil {
				got[i] = err.Error()
			}
		})
	}
	close(begin)
	wg.Wait()
	return got, nil
}

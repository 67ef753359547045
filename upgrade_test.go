//go:build unix

package crossfade_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

func TestUpgrade(t *testing.T) {
	for _, path := range []string{"control", ""} {
		t.Run(fmt.Sprintf("with the control path %q", path), func(t *testing.T) {
			d, _, owner, address := startOwner(t, func(s *serviceSpec) {
				if path == "" {
					s.Socket = ""
				}
			})
			clients := startLoad(t, "tcp", address, 2)
			for generation := uint64(2); generation <= 4; generation++ {
				owner.do("upgrade")
				wantExit(t, owner, crossfade.ErrRetired)
				next := d.spawned()
				next.expect("ready")
				next.expect("settled")
				wantGeneration(t, next, generation)
				clients.servedBy(next)
				next.expect("gone")
				owner = next
			}
			clients.stop()
		})
	}
}

// Whatever becomes of the child, the owner goes on, says why, and can be asked
// again.
func TestUpgradeThatFails(t *testing.T) {
	sh := func(script string) *commandSpec { return &commandSpec{Path: "/bin/sh", Args: []string{"-c", script}} }
	candidate := &commandSpec{Spec: &serviceSpec{Sockets: []socketSpec{tcpSpec("web")}}}
	tests := []struct {
		name    string
		command *commandSpec
		do      func(child *process) // with a child that reports
		want    error
		says    string
	}{
		{name: "there is no such program", command: &commandSpec{Path: "/nowhere/service"}, want: os.ErrNotExist, says: "/nowhere/service"},
		{name: "the program may not be executed", command: &commandSpec{Path: os.DevNull}, want: os.ErrPermission, says: "permission denied"},
		{name: "Command fails", command: &commandSpec{Fails: "no build for today"}, says: "no build for today"},
		{name: "it exits with 1 at once", command: sh("exit 1"), want: crossfade.ErrLost, says: "exit status 1"},
		{name: "it exits with 0 at once", command: sh("exit 0"), want: crossfade.ErrLost, says: "exit status 0"},
		{name: "it kills itself", command: sh("kill -9 $$"), want: crossfade.ErrLost, says: "signal: killed"},
		{
			name: "it crashes before Ready", command: candidate, do: func(child *process) { child.address("web"); child.kill() },
			want: crossfade.ErrLost, says: "signal: killed",
		},
		{
			name: "it gives up", command: candidate, do: func(child *process) { child.address("web"); child.do("stop") },
			want: crossfade.ErrAborted, says: "stopped",
		},
		{
			name:    "it refuses what it gets",
			command: &commandSpec{Spec: &serviceSpec{RequireAllClaimed: true, Ready: true}},
			want:    crossfade.ErrUnclaimed, says: `"web"`,
		},
		{name: "it writes garbage", command: sh(`eval "echo this is no frame >&$CROSSFADE_FD"; exit 3`), says: "exit status 3"},
	}
	d, spec, owner, address := startOwner(t)
	clients := startLoad(t, "tcp", address, 1)
	before := query[resources](owner, "resources")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.command.Spec != nil {
				tt.command.Spec.Socket = spec.Socket
			}
			upgrade := owner.begin("upgrade", tt.command)
			if tt.do != nil {
				tt.do(d.spawned())
			}
			err := upgrade.wait().Err
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Upgrade: %v", err)
			}
			owner.awaitLog("level=WARN", "the handoff failed")
			wantNoChildren(t, owner)
			wantGeneration(t, owner, 1)
		})
	}
	clients.more(20)
	if counts := clients.stop(); len(counts) != 1 {
		t.Errorf("answers came from %v", counts)
	}
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the owner has %+v, and had %+v", now, before)
	}
	owner.do("upgrade", nil)
	wantExit(t, owner, crossfade.ErrRetired)
}

func TestUpgradeEndsAChildThatDoesNotConnect(t *testing.T) {
	t.Parallel()
	_, _, owner, _ := startOwner(t, func(s *serviceSpec) { s.ReadyTimeout = time.Second })
	err := owner.try("upgrade", &commandSpec{Path: "/bin/sh", Args: []string{"-c", "exec sleep 1000"}}).Err
	if !errors.Is(err, crossfade.ErrTimeout) || !containsAll(err.Error(), []string{"no Hello within 1s", "signal: killed"}) {
		t.Errorf("Upgrade: %v", err)
	}
	wantNoChildren(t, owner)
	wantGeneration(t, owner, 1)
}

func TestUpgradeEndsAChildThatIsNotReadyInTime(t *testing.T) {
	t.Parallel()
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.ReadyTimeout = 2 * time.Second })
	upgrade := owner.begin("upgrade", &commandSpec{Spec: &serviceSpec{Socket: spec.Socket, Linger: true}})
	child := d.spawned()
	child.expect("new")
	err := upgrade.wait().Err
	if !errors.Is(err, crossfade.ErrTimeout) || !containsAll(err.Error(), []string{"no Ready within 2s", "signal: killed", strconv.Itoa(child.pid)}) {
		t.Errorf("Upgrade: %v", err)
	}
	if e := child.await("exit"); !errors.Is(e.Err, crossfade.ErrTimeout) {
		t.Errorf("the child hears %v", e.Err)
	}
	wantNoChildren(t, owner)
	wantSuccession(t, d, spec, owner)
}

func TestUpgradeIsOneAtATime(t *testing.T) {
	t.Run("by many goroutines", func(t *testing.T) {
		d, _, owner, _ := startOwner(t, func(s *serviceSpec) { s.Linger = true })
		outcomes := query[[]string](owner, "upgrade many", 4)
		d.spawned().expect("ready")
		busy := slices.DeleteFunc(slices.Clone(outcomes), func(s string) bool { return !strings.Contains(s, "another handoff is under way") })
		if len(busy) != 3 || !slices.Contains(outcomes, "") {
			t.Errorf("the outcomes are %q", outcomes)
		}
		wantExit(t, owner, crossfade.ErrRetired)
	})
	t.Run("while a successor that dialled is ahead", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		ahead := launchCandidate(d, spec)
		if e := owner.try("upgrade"); !errors.Is(e.Err, crossfade.ErrBusy) || !strings.Contains(e.Err.Error(), "pid "+strconv.Itoa(ahead.pid)) {
			t.Errorf("Upgrade: %v", e.Err)
		}
		ahead.kill()
		owner.do("upgrade") // at once
		wantExit(t, owner, crossfade.ErrRetired)
	})
	t.Run("while its child is ahead of who dials", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		upgrade := owner.begin("upgrade", &commandSpec{Spec: &serviceSpec{Socket: spec.Socket, Instance: "the child"}})
		child := d.spawned()
		child.expect("new")
		if r := newCandidate(t, spec.Socket, "Hello").wantRefusal(pb.RefuseCode_REFUSE_CODE_BUSY); r.GetWho().GetPid() != int64(child.pid) {
			t.Errorf("refused because of %v", r)
		}
		child.do("ready")
		if e := upgrade.wait(); e.Err != nil {
			t.Errorf("Upgrade: %v", e.Err)
		}
	})
}

func TestUpgradeByOneThatDoesNotOwn(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Ready, s.Linger = false, true })
	if e := owner.try("upgrade"); !errors.Is(e.Err, crossfade.ErrNotReady) {
		t.Errorf("before Ready: %v", e.Err)
	}
	owner.do("ready")
	next := d.launch(spec)
	next.expect("new")
	if e := next.try("upgrade"); !errors.Is(e.Err, crossfade.ErrNotReady) {
		t.Errorf("by a candidate: %v", e.Err)
	}
	next.do("ready")
	owner.await("exit")
	if e := owner.try("upgrade"); e.Err == nil || !strings.Contains(e.Err.Error(), "no longer the owner") {
		t.Errorf("by a process that drains: %v", e.Err)
	}
	next.do("stop")
	if e := next.try("upgrade"); !errors.Is(e.Err, crossfade.ErrStopping) {
		t.Errorf("after Stop: %v", e.Err)
	}
	if owner.happened("spawn") || next.happened("spawn") {
		t.Error("a process was started for nothing")
	}
}

func TestUpgradeWhoseContextEnds(t *testing.T) {
	t.Run("before it begins", func(t *testing.T) {
		_, _, owner, _ := startOwner(t)
		if e := owner.try("upgrade cancelled"); !errors.Is(e.Err, context.Canceled) {
			t.Errorf("Upgrade: %v", e.Err)
		}
		if owner.happened("spawn") {
			t.Error("a process was started for nothing")
		}
		wantGeneration(t, owner, 1)
	})
	t.Run("while the child initialises", func(t *testing.T) {
		d, spec, owner, _ := startOwner(t)
		upgrade := owner.begin("upgrade until cancel", &commandSpec{Spec: &serviceSpec{Socket: spec.Socket}})
		child := d.spawned()
		child.expect("new")
		owner.do("cancel")
		if err := upgrade.wait().Err; !errors.Is(err, context.Canceled) || !containsAll(err.Error(), []string{"exit status 1", strconv.Itoa(child.pid)}) {
			t.Errorf("Upgrade: %v", err)
		}
		if e := child.await("exit"); !errors.Is(e.Err, crossfade.ErrAborted) || !strings.Contains(e.Err.Error(), "cancelled") {
			t.Errorf("the child hears %v", e.Err)
		}
		wantGeneration(t, owner, 1)
		wantSuccession(t, d, spec, owner)
	})
}

// The child's output is the predecessor's own, not a pipe that ends with it.
func TestUpgradedProcessMayPrintAfterItsPredecessorHasGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	d := newDesk(t)
	owner := d.launch(serviceSpec{Socket: d.path("control"), Ready: true, DefaultCommand: true}, func(cmd *exec.Cmd) { cmd.Stdout = w })
	owner.expect("ready")
	owner.do("upgrade")
	owner.await("exit")
	owner.end()
	next := d.spawned()
	next.expect("ready")
	lines := bufio.NewScanner(r)
	for _, text := range []string{"still here", "and still"} {
		next.do("print", text)
		if !lines.Scan() || lines.Text() != text {
			t.Errorf("read %q, %v", lines.Text(), lines.Err())
		}
	}
	wantGeneration(t, next, 2)
}

// A child whose predecessor dies before it has handed anything over looks who
// owns the path, as every successor does.
func TestPredecessorDiesWhileItsChildConnects(t *testing.T) {
	d, spec, owner, address := startOwner(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	spec.Sockets[0].Address = address
	owner.begin("upgrade", &commandSpec{Path: "/bin/sh", Args: []string{
		"-c", `kill -STOP "$PPID" && exec "$0" "$@"`, exe, specArg(spec),
	}})
	child := d.spawned()
	owner.kill()
	child.expect("ready")
	wantFirst(t, child, 1)
	if a := ask(t, "tcp", address); a.PID != child.pid {
		t.Errorf("answered by %+v", a)
	}
}

// wantNoChildren checks that what a process has started was reaped.
func wantNoChildren(t *testing.T, p *process) {
	t.Helper()
	if query[bool](p, "has children") {
		t.Errorf("process %d has children", p.pid)
	}
}

func init() {
	serviceCommands["upgrade many"] = func(s *service, value json.RawMessage) (any, error) {
		return s.many(value, func() error { return s.upg.Upgrade(s.ctx) })
	}
	serviceCommands["upgrade cancelled"] = func(s *service, _ json.RawMessage) (any, error) {
		ctx, cancel := context.WithCancel(s.ctx)
		cancel()
		return nil, s.upg.Upgrade(ctx)
	}
	// This one ends with the command "cancel". Its argument is that of "upgrade".
	var cancel context.CancelFunc
	serviceCommands["upgrade until cancel"] = func(s *service, value json.RawMessage) (any, error) {
		var c *commandSpec
		if err := json.Unmarshal(value, &c); err != nil {
			return nil, err
		}
		ctx, stop := context.WithCancel(s.ctx)
		s.mu.Lock()
		s.command, cancel = c, stop
		s.mu.Unlock()
		return nil, s.upg.Upgrade(ctx)
	}
	serviceCommands["cancel"] = func(s *service, _ json.RawMessage) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		cancel()
		return nil, nil
	}
	serviceCommands["print"] = func(_ *service, value json.RawMessage) (any, error) {
		line, err := text(value)
		if err != nil {
			return nil, err
		}
		_, err = fmt.Println(line)
		return nil, err
	}
	// Whether a process was started and not reaped. Asking reaps one that ended.
	serviceCommands["has children"] = func(*service, json.RawMessage) (any, error) {
		_, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		return !errors.Is(err, unix.ECHILD), nil
	}
}

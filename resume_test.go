//go:build unix

package crossfade_test

import (
	"encoding/json"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

func init() {
	var kept []*os.File
	serviceCommands["fill descriptors"] = func(*service, json.RawMessage) (any, error) {
		for {
			f, err := os.Open(os.DevNull)
			if errors.Is(err, syscall.EMFILE) {
				return len(kept), nil
			}
			if err != nil {
				return nil, err
			}
			kept = append(kept, f)
		}
	}
	serviceCommands["free descriptors"] = func(*service, json.RawMessage) (any, error) {
		for _, f := range kept {
			if err := f.Close(); err != nil {
				return nil, err
			}
		}
		kept = nil
		return nil, nil
	}
}

// A standby has given up the descriptor that accepting takes. If its table is
// full when it gets the service back, it takes it up as soon as there is room.
func TestResumesWhenTheDescriptorTableWasFull(t *testing.T) {
	d := newDesk(t)
	old := d.launch(serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web")}, Ready: true, NoFile: 64})
	old.await("ready")
	address := old.address("web")

	c := newCandidate(t, d.path("control"), "Commit")
	c.send(&pb.ClientMessage{Message: &pb.ClientMessage_CommitAck{CommitAck: &pb.CommitAck{}}})
	if m := c.next(); m.GetProbationOver() == nil {
		t.Fatalf("%v instead of ProbationOver", m)
	}
	old.do("fill descriptors") // ProbationOver says that it no longer accepts
	c.close()
	old.awaitLog("a listener cannot accept yet")
	old.awaitLog("the control socket cannot be served yet")
	old.do("free descriptors")

	if who := ask(t, "tcp", address); who.PID != old.pid {
		t.Errorf("pid %d answers, not the predecessor's %d", who.PID, old.pid)
	}
	next := d.launch(serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{{Name: "web", Network: "tcp", Address: address}}, Ready: true})
	next.expect("settled") // before CommitAck is read the predecessor accepts too
	if who := ask(t, "tcp", address); who.PID != next.pid {
		t.Errorf("pid %d answers, not the successor's %d", who.PID, next.pid)
	}
}

// The clients of a service, or a leak, have used its descriptor table up. It can still
// be asked how it stands, and be replaced.
func TestHandsOverWithAFullDescriptorTable(t *testing.T) {
	d := newDesk(t)
	spec := serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web")}, Ready: true, NoFile: 64}
	old := d.launch(spec)
	old.await("ready")
	address := old.address("web")
	for range 3 {
		old.do("fill descriptors") // whatever has become free meanwhile
		for range 10 {
			awaitStatus(t, spec.Socket, func(s *handoff.Status) bool { return s.Process.PID == old.pid })
		}
	}
	next := d.launch(serviceSpec{Socket: spec.Socket, Sockets: []socketSpec{{Name: "web", Network: "tcp", Address: address}}, Ready: true})
	next.expect("settled")
	old.await("exit")
	if who := ask(t, "tcp", address); who.PID != next.pid {
		t.Errorf("pid %d answers, not the successor's %d", who.PID, next.pid)
	}
}

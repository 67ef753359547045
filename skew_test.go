//go:build unix

package crossfade_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/transcript"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// These tests have service processes meet peers of other versions. Package
// handoff has the others, and has recorded the transcripts.

func recorded(t testing.TB, name string) *transcript.Conversation {
	t.Helper()
	tape, err := transcript.Read(filepath.Join("handoff", "testdata", "v1", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return tape
}

// TestOwnerMeetsARecordedSuccessor spells what successors have said, byte by
// byte, to owners of today.
func TestOwnerMeetsARecordedSuccessor(t *testing.T) {
	for _, name := range []string{
		"handoff", "handoff-spawned", "probation-settled", "probation-rolled-back", "probation-successor-ends",
		"abort-by-the-successor", "abort-by-the-successor-stopping", "refused-incompatible", "refused-protocol",
		"status-on-probation", "controller-not-implemented",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tape := recorded(t, name)
			d, spec, owner, address := startOwner(t)
			c := dialControl(t, spec.Socket)
			for i, e := range tape.Events {
				switch {
				case e.Kind == transcript.FromSuccessor && e.Text == transcript.End:
					c.close()
				case e.Kind == transcript.FromSuccessor:
					for _, b := range e.Frame {
						c.write([]byte{b})
					}
				case e.Kind == transcript.FromPredecessor && e.Text != transcript.End:
					m := c.next()
					field := m.ProtoReflect().WhichOneof(m.ProtoReflect().Descriptor().Oneofs().Get(0))
					if word, _, _ := strings.Cut(e.Text, " "); field == nil || string(field.Message().Name()) != word {
						t.Fatalf("event %d: got %v instead of %s", i, m, e.Text)
					}
				}
			}
			if tape.Predecessor == "draining" {
				wantExit(t, owner, crossfade.ErrRetired)
				return
			}
			c.close()
			if a := ask(t, "tcp", address); a.PID != owner.pid {
				t.Errorf("answered by %+v", a)
			}
			next := d.launch(spec)
			next.expect("ready")
			wantExit(t, owner, crossfade.ErrRetired)
		})
	}
}

// A successor of the future is told which versions there are, and its owner goes
// on.
func TestUpgradeToAFutureVersionOnly(t *testing.T) {
	hello := recorded(t, "refused-incompatible").Events[0]
	if hello.Text != "Hello" {
		t.Fatalf("the transcript begins with %s", hello.Text)
	}
	var octal strings.Builder
	for _, b := range hello.Frame {
		fmt.Fprintf(&octal, `\\%03o`, b)
	}
	d, spec, owner, address := startOwner(t)
	err := owner.try("upgrade", &commandSpec{
		Path: "/bin/sh", Args: []string{"-c", fmt.Sprintf(`eval "printf '%s' >&$CROSSFADE_FD"; exit 3`, octal.String())},
	}).Err
	if !errors.Is(err, crossfade.ErrIncompatible) || !containsAll(err.Error(), []string{"version 1", "[7 8]"}) {
		t.Errorf("Upgrade: %v", err)
	}
	wantNoChildren(t, owner)
	wantGeneration(t, owner, 1)
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
	wantSuccession(t, d, spec, owner)
}

func TestNewMeetsAnOwnerOfTheFuture(t *testing.T) {
	d := newDesk(t)
	path := d.path("control")
	owner := newOwnerByHand(t, path)
	next := d.launch(serviceSpec{Socket: path, Sockets: []socketSpec{tcpSpec("web")}, Ready: true})
	owner.accept()
	owner.readHello()
	before := files(t, d.dir)
	owner.send(&pb.ServerMessage{Message: &pb.ServerMessage_Refuse{Refuse: &pb.Refuse{
		Code: pb.RefuseCode_REFUSE_CODE_INCOMPATIBLE, Reason: "this owner is of the future", Versions: []uint32{7, 8}, Features: []string{"news"},
	}}})
	err := next.await("new").Err
	if !errors.Is(err, crossfade.ErrIncompatible) || !containsAll(err.Error(), []string{"this owner is of the future", "[7 8]", "this process 1"}) {
		t.Errorf("New: %v", err)
	}
	wantFiles(t, before, files(t, d.dir))
}

// What a descriptor is said to be and this version does not know, it is not.
func TestNewMeetsAnUnknownFileType(t *testing.T) {
	for _, number := range []int32{99, 256 + int32(scm.TypeSocket), -1} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			d := newDesk(t)
			path := d.path("control")
			ds, fds := manyListeners(t, 1)
			ds[0].Identity.Type = pb.FileType(number)
			owner := newOwnerByHand(t, path)
			next := d.launch(serviceSpec{Socket: path})
			owner.accept()
			owner.readHello()
			owner.sendWelcome(7, 1)
			owner.expect("Prepared", func(m *pb.ClientMessage) bool { return m.GetPrepared() != nil })
			owner.sendPage(&pb.ManifestPage{Descriptors: ds, Last: true}, fds)
			owner.expect("Abort", func(m *pb.ClientMessage) bool {
				return m.GetAbort().GetCode() == pb.AbortCode_ABORT_CODE_DESCRIPTOR
			})
			if err := next.await("new").Err; err == nil || !strings.Contains(err.Error(), handoff.ErrDescriptor.Error()) {
				t.Errorf("New: %v", err)
			}
		})
	}
}

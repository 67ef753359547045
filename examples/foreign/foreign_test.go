//go:build unix

package foreign_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/crossfade-go/crossfade"
)

// In these tests a successor that says "owner" may share the clients with its
// predecessor for an instant; one that says "settled" has them alone.

func TestAForeignSuccessorTakesOver(t *testing.T) {
	for _, options := range [][]string{nil, {"others"}} {
		t.Run(strings.Join(append([]string{"http"}, options...), " and "), func(t *testing.T) {
			python(t)
			socket := socketPath(t)
			predecessor, address := owner(t, socket, options...)
			predecessor.expect(address, "go")

			p := successor(t, socket, "--wait-for-stdin")
			p.says("candidate of generation 2")
			p.says("received")
			predecessor.expect(address, "go") // a candidate meets no client
			if options != nil {
				predecessor.signal(syscall.SIGUSR1)
				predecessor.says("changed: <nil>")
			}

			p.stdin.Close()
			p.says("owner")
			p.says("settled")
			predecessor.says("exit: retired")
			p.expect(address, "foreign")
			predecessor.ends(0)
			p.says("the predecessor is gone")
			p.expect(address, "foreign")

			p.signal(syscall.SIGTERM)
			p.says("stopped")
			p.ends(0)
			if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the control path is still there: %v", err)
			}
		})
	}
}

func TestAForeignOwnerRefusesAndStaysAlone(t *testing.T) {
	python(t)
	socket := socketPath(t)
	predecessor, address := owner(t, socket)
	p := successor(t, socket)
	p.says("candidate of generation 2")
	p.says("received")
	p.says("owner")
	p.says("settled")
	predecessor.ends(0)
	p.says("the predecessor is gone")

	_, err := crossfade.New(t.Context(), &crossfade.Config{Socket: socket})
	if !errors.Is(err, crossfade.ErrPolicy) {
		t.Fatalf("a successor of the foreign owner got %v, want %v", err, crossfade.ErrPolicy)
	}
	p.expect(address, "foreign")

	// Killed, it leaves a stale path and a free lock: the next one is a first.
	p.signal(syscall.SIGKILL)
	_ = p.Wait() // it was killed
	_, address = owner(t, socket)
	asks(t, address)
}

// TestAStartedForeignSuccessor takes over through CROSSFADE_FD.
func TestAStartedForeignSuccessor(t *testing.T) {
	command := strings.Join([]string{python(t), "-B", script(t), "--listener", "http"}, " ")
	predecessor, address := owner(t, socketPath(t), "upgrade="+command)
	predecessor.says("candidate of generation 2") // the output is inherited
	predecessor.says("received")
	// From here on two processes write lines.
	lines := []string{predecessor.says(""), predecessor.says(""), predecessor.says(""), predecessor.says("")}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"owner", "settled", "exit: retired", "the predecessor is gone"} {
		if !strings.Contains(text, want) {
			t.Errorf("the processes say %q, want %q among it", text, want)
		}
	}
	if got := asks(t, address); !strings.HasPrefix(got, "foreign ") {
		t.Errorf("the client was answered by %q", got)
	}
	// The started process lives on and is killed with the group.
}

func TestWhoDiesWhen(t *testing.T) {
	t.Run("the successor before Ready", func(t *testing.T) {
		python(t)
		socket := socketPath(t)
		predecessor, address := owner(t, socket)
		first := successor(t, socket, "--wait-for-stdin")
		first.says("candidate of generation 2")
		first.says("received")
		first.signal(syscall.SIGKILL)
		predecessor.expect(address, "go")

		second := successor(t, socket) // at once, with the next number
		second.says("candidate of generation 3")
		second.says("received")
		second.says("owner")
		second.says("settled")
		second.expect(address, "foreign")
	})
	t.Run("the successor is told to stop before Ready", func(t *testing.T) {
		python(t)
		socket := socketPath(t)
		predecessor, address := owner(t, socket)
		p := successor(t, socket, "--wait-for-stdin")
		p.says("candidate of generation 2")
		p.says("received")
		p.signal(syscall.SIGTERM)
		p.ends(1)
		predecessor.expect(address, "go")
	})
	t.Run("the predecessor after Received", func(t *testing.T) {
		python(t)
		socket := socketPath(t)
		predecessor, address := owner(t, socket)
		p := successor(t, socket, "--wait-for-stdin")
		p.says("candidate of generation 2")
		p.says("received")
		predecessor.signal(syscall.SIGKILL)
		p.says("heir")
		waiting := connect(t, address) // in the accept queue, which lives on
		p.stdin.Close()
		p.says("owner")
		p.says("settled")
		if got := answered(t, waiting); !strings.HasPrefix(got, "foreign ") {
			t.Errorf("the client that had waited was answered by %q", got)
		}
		p.expect(address, "foreign")
	})
	t.Run("the predecessor is told to stop after Received", func(t *testing.T) {
		python(t)
		socket := socketPath(t)
		predecessor, _ := owner(t, socket, "stoppable")
		p := successor(t, socket, "--wait-for-stdin")
		p.says("candidate of generation 2")
		p.says("received")
		predecessor.signal(syscall.SIGTERM)
		p.ends(1) // it must not adopt what was told to stop
	})
	t.Run("nobody is there", func(t *testing.T) {
		python(t)
		successor(t, socketPath(t)).ends(1)
	})
}

func TestASecondCandidateWaits(t *testing.T) {
	python(t)
	socket := socketPath(t)
	_, address := owner(t, socket)
	first := successor(t, socket, "--wait-for-stdin")
	first.says("candidate of generation 2")
	first.says("received")
	second := successor(t, socket)
	second.says("waiting: another handoff is under way")
	first.signal(syscall.SIGKILL)
	second.says("candidate of generation 3")
	second.says("received")
	second.says("owner")
	second.says("settled")
	second.expect(address, "foreign")
}

//go:build unix

package crossfade_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/leak"
)

// web is a service with one TCP listener, which serves before it calls Ready.
func web(d *desk) serviceSpec {
	return serviceSpec{Socket: d.path("control"), Sockets: []socketSpec{tcpSpec("web")}}
}

// ready is the same spec with Ready called at once.
func (s serviceSpec) ready() serviceSpec {
	s.Ready = true
	return s
}

// lingering is the same spec for a process that stays after Exit.
func (s serviceSpec) lingering() serviceSpec {
	s.Linger = true
	return s
}

func TestACandidateAnswersNobodyBeforeCommit(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := d.launch(web(d).ready())
	address := old.address("web")
	old.expect("ready")
	clients := startLoad(t, "tcp", address, 2)

	for range 3 {
		candidate := d.launch(web(d))
		candidate.address("web") // its Accept waits from here on
		clients.more(200)
		candidate.kill()
		clients.more(50)
		old.awaitFailure("the other side is gone")
	}
	counts := clients.stop()
	if len(counts) != 1 || counts[old.pid] == 0 {
		t.Errorf("answers by process: %v, want only the owner's, %d", counts, old.pid)
	}
	if state := query[string](old, "state"); state != "owner" {
		t.Errorf("the owner's state is %s", state)
	}
}

func TestNoClientNoticesAHandoff(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	owner := d.launch(web(d).ready())
	address := owner.address("web")
	owner.expect("ready")
	clients := startLoad(t, "tcp", address, 2)
	for generation := uint64(2); generation <= 4; generation++ {
		clients.servedBy(owner)
		next := d.launch(web(d).ready())
		next.expect("ready")
		next.expect("settled")
		// Whoever dials after Retired meets the successor alone.
		for range 100 {
			if a := ask(t, "tcp", address); a != (served{next.pid, generation}) {
				t.Fatalf("%+v answered after the retirement, want process %d of generation %d", a, next.pid, generation)
			}
		}
		if err := owner.await("exit").Err; !errors.Is(err, crossfade.ErrRetired) {
			t.Errorf("Err of the predecessor is %v", err)
		}
		if status := owner.exitStatus(); status != 0 {
			t.Errorf("the predecessor's exit status is %d", status)
		}
		next.expect("gone")
		owner = next
	}
	clients.stop()
}

func TestThePredecessorFinishesWhatItHasAccepted(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := d.launch(web(d).ready())
	address := old.address("web")
	old.expect("ready")
	client := connect(t, "tcp", address)
	client.answer()

	next := d.launch(web(d).ready())
	next.expect("ready")
	old.await("exit")
	for range 3 {
		if a := client.again(); a.PID != old.pid {
			t.Fatalf("process %d answered on a connection of process %d", a.PID, old.pid)
		}
	}
	if next.happened("gone") {
		t.Error("WaitForPredecessor has returned while the predecessor serves")
	}
	client.Close()
	next.expect("gone")
	if status := old.exitStatus(); status != 0 {
		t.Errorf("the predecessor's exit status is %d", status)
	}
}

// TestAcceptIsEndedByTheProgramAlone: a server that saw its listener vanish
// would take that for a failure.
func TestAcceptIsEndedByTheProgramAlone(t *testing.T) {
	for _, test := range []struct {
		name string
		// leave makes one of two processes leave and returns it.
		leave func(old, candidate *process) *process
		err   error
	}{
		{"retired", func(old, candidate *process) *process {
			candidate.do("ready")
			return old
		}, crossfade.ErrRetired},
		{"aborted", func(old, candidate *process) *process {
			old.do("stop")
			return candidate
		}, crossfade.ErrStopping},
		{"given up", func(_, candidate *process) *process {
			candidate.do("stop")
			return candidate
		}, crossfade.ErrStopped},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			d := newDesk(t)
			old := d.launch(web(d).ready().lingering())
			address := old.address("web")
			old.expect("ready")
			candidate := d.launch(web(d).lingering())
			candidate.address("web")

			gone := test.leave(old, candidate)
			if err := gone.await("exit").Err; !errors.Is(err, test.err) {
				t.Fatalf("Err is %v, want %v", err, test.err)
			}
			stays := old
			if gone == old {
				stays = candidate
			}
			for range 20 {
				if a := ask(t, "tcp", address); a.PID != stays.pid {
					t.Fatalf("process %d answered, which is out", a.PID)
				}
			}
			if gone.happened("accept web") {
				t.Fatal("Accept has returned before the program closed the listener")
			}
			if err := gone.try("listen", tcpSpec("new")).Err; !errors.Is(err, test.err) {
				t.Errorf("the registry of a process that is out says %v, want %v", err, test.err)
			}
			gone.do("close", "web")
			if err := gone.await("accept web").Err; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept has returned %v", err)
			}
		})
	}
}

func TestAnHTTPServerNoticesNothing(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	spec := web(d)
	spec.Sockets[0].HTTP = true
	old := d.launch(spec.ready().lingering())
	url := "http://" + old.address("web") + "/"
	old.expect("ready")
	keepAlive := new(http.Transport)
	defer keepAlive.CloseIdleConnections()
	if a := get(t, keepAlive, url); a.PID != old.pid {
		t.Fatalf("process %d answered", a.PID)
	}
	// A candidate's server waits, and its failure is no event for the other.
	candidate := d.launch(spec.lingering())
	candidate.address("web")
	candidate.do("stop")
	candidate.await("exit")

	next := d.launch(spec.ready())
	next.expect("ready")
	old.await("exit")
	for range 20 {
		if a := get(t, &http.Transport{DisableKeepAlives: true}, url); a.PID != next.pid {
			t.Fatalf("process %d answered a new connection", a.PID)
		}
		if a := get(t, keepAlive, url); a.PID != old.pid {
			t.Fatalf("process %d answered on a connection of its predecessor", a.PID)
		}
	}
	for name, p := range map[string]*process{"predecessor": old, "failed candidate": candidate, "successor": next} {
		p.mu.Lock()
		for _, e := range p.events {
			if e.Name == "http web" {
				t.Errorf("the server of the %s complains: %s", name, e.text())
			}
		}
		p.mu.Unlock()
	}
	old.do("quit")
	if status := old.exitStatus(); status != 0 {
		t.Errorf("the predecessor's exit status is %d", status)
	}
}

func get(t *testing.T, transport *http.Transport, url string) (a served) {
	t.Helper()
	resp, err := (&http.Client{Transport: transport, Timeout: generous}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := fmt.Fscanf(resp.Body, "%d %d\n", &a.PID, &a.Generation); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestQueuedClientsAreServedByTheSuccessor: who connected while nobody accepted
// waits in the queue of the socket, which belongs to no process.
func TestQueuedClientsAreServedByTheSuccessor(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	idle := web(d)
	idle.Sockets[0].Idle = true
	old := d.launch(idle.ready())
	address := old.address("web")
	old.expect("ready")
	var clients []session
	for range 20 {
		clients = append(clients, connect(t, "tcp", address))
	}
	next := d.launch(web(d).ready())
	next.expect("ready")
	next.expect("gone")
	for i, c := range clients {
		if a := c.answer(); a.PID != next.pid {
			t.Errorf("client %d was answered by process %d", i, a.PID)
		}
	}
}

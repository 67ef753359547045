package handoff_test

import (
	"encoding/binary"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/transcript"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// A script is what the fuzzer has one side say. Each byte below the number of
// messages is one of them; the others are these, the last two with the byte that
// follows, the first with two.
const (
	scriptRecord  = 0xf8 // a payload of as many bytes follows, with the descriptors that it lists
	scriptReady   = 0xf9 // the program on the other side calls Ready, or hands a connection over
	scriptLeave   = 0xfa // ... or leaves
	scriptFDs     = 0xfb // the next payload carries two descriptors more
	scriptClose   = 0xfc // the end of the script
	scriptElapse  = 0xfd // as many seconds pass
	scriptPayload = 0xfe // a payload of as many bytes follows
)

// script runs data as p's side of the conversation.
func script(t *testing.T, p *player, data []byte, messages []proto.Message, do func(op byte)) {
	fds := 0
	for len(data) > 0 {
		op := data[0]
		data = data[1:]
		arg := 0
		if op >= scriptElapse && len(data) > 0 {
			arg, data = int(data[0]), data[1:]
		}
		switch {
		case int(op) < len(messages):
			m := messages[op]
			switch m := m.(type) {
			case *pb.ManifestPage:
				fds += len(m.GetDescriptors())
			case *pb.Connection:
				if m.GetListener() != "" {
					fds++
				}
			}
			p.write(wrap(p.end.arrow == ">", m), fdsOf(t, fds)...)
			fds = 0
		case op == scriptRecord:
			if len(data) < 2 {
				return
			}
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			payload := data[2 : 2+n]
			switch m := member(p.end.arrow == ">", payload).(type) {
			case *pb.ManifestPage:
				fds += min(len(m.GetDescriptors()), scm.MaxDescriptors)
			case *pb.Connection:
				fds++
			}
			p.write(payload, fdsOf(t, fds)...)
			data, fds = data[2+n:], 0
		case op == scriptFDs:
			fds = 2
		case op == scriptClose:
			return
		case op == scriptElapse:
			elapse(time.Duration(arg) * time.Second)
			synctest.Wait()
		case op == scriptPayload:
			n := min(arg, len(data))
			p.write(data[:n], fdsOf(t, fds)...)
			data, fds = data[n:], 0
		default:
			do(op)
		}
	}
}

// indexes finds messages in a list, by their short names.
func indexes(all []proto.Message, names ...string) []byte {
	var list []byte
	for _, name := range names {
		for i, m := range all {
			if shortName(m) == name {
				list = append(list, byte(i))
				break
			}
		}
	}
	return list
}

// recordedScripts are the transcripts as one side's scripts. What the program on
// the other side did is in them too.
func recordedScripts(f *testing.F, by byte) [][]byte {
	f.Helper()
	names := slices.Sorted(maps.Keys(scenes))
	scripts := make([][]byte, 0, len(names))
	for _, name := range names {
		tape, err := transcript.Read(filepath.Join(transcripts, name+".txt"))
		if err != nil {
			f.Fatal(err)
		}
		var script []byte
		for _, e := range tape.Events {
			words := strings.Fields(e.Text)
			switch {
			case e.Kind == by && e.Frame != nil && len(e.Payload()) <= math.MaxUint16:
				script = binary.BigEndian.AppendUint16(append(script, scriptRecord), uint16(len(e.Payload())))
				script = append(script, e.Payload()...)
			case e.Kind != transcript.Act:
			case words[0] == "time":
				d, err := time.ParseDuration(words[1])
				if err != nil {
					f.Fatal(err)
				}
				script = append(script, scriptElapse, byte(min(d/time.Second, math.MaxUint8)))
			case words[1] == "Ready":
				script = append(script, scriptReady)
			case words[1] == "Leave", words[1] == "Stop":
				script = append(script, scriptLeave)
			}
		}
		scripts = append(scripts, script)
	}
	return scripts
}

// FuzzServerMessages has a client say anything. Whatever it says, the owner owns
// at the end, unless it has retired after a Commit that was acknowledged.
func FuzzServerMessages(f *testing.F) {
	messages := append([]proto.Message{}, clientMessages...)
	messages = append(messages, commitAck(false), &pb.Ready{Unclaimed: 1, UnclaimedIds: []uint64{2}},
		passing(hello()), taken(1), taken(2), notTaken(1, "no"), taken(99),
		&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER})
	controller := byte(len(messages) - 1)
	for _, request := range []*pb.ControlRequest{
		statusRequest, watchRequest, upgradeRequest, settledRequest, settleRequest, rollbackRequest, endDrainRequest,
		stopRequest, checkRequest, cancelRequest("", true), cancelRequest("by hand", false),
	} {
		f.Add([]byte{controller, byte(len(messages)), scriptLeave})
		f.Add([]byte{controller, byte(len(messages)), byte(len(messages)), scriptElapse, 200})
		messages = append(messages, request)
	}
	at := func(names ...string) []byte { return indexes(messages, names...) }
	commit := at("Hello", "Prepared", "PageAck 1", "Received", "Ready", "PageAck 2", "FinalReceived")
	for i := range commit {
		f.Add(commit[:i])
		f.Add(append(append([]byte{}, commit[:i]...), scriptElapse, 200))
		f.Add(append(append([]byte{}, commit[:i]...), scriptPayload, 2, 0xff, 0xff))
		f.Add(append(append([]byte{}, commit[:i]...), scriptFDs, commit[i]))
	}
	f.Add(append(append([]byte{}, commit...), at("CommitAck", "EndDrain")...))
	retired := append(append([]byte{byte(len(clientMessages) + 3)}, commit[1:]...), at("CommitAck")...)
	for ack := len(clientMessages) + 4; ack < len(messages); ack++ {
		f.Add(append(append([]byte{}, retired...), scriptReady, byte(ack)))
		f.Add(append(append([]byte{}, retired...), scriptReady, scriptReady, byte(ack), byte(ack)))
		f.Add(append(append([]byte{}, retired...), scriptReady, byte(ack), scriptReady, at("Settle")[0], byte(ack)))
	}
	f.Add(append(append([]byte{}, commit...), at("Abort")...))
	f.Add(append(append([]byte{}, commit...), byte(len(clientMessages)), at("Settle")[0]))
	f.Add(append(append([]byte{}, commit...), byte(len(clientMessages)), at("Rollback")[0]))
	f.Add(append(append([]byte{}, commit...), scriptLeave, at("CommitAck")[0]))
	for _, recorded := range recordedScripts(f, transcript.FromSuccessor) {
		f.Add(recorded)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			o, _ := commanded(t, func(c *handoff.ServerConfig) { c.Limits.MaxProbation = 10 * time.Minute })
			p := o.client()
			stopped := false
			var passed []*transfer
			script(t, p, data, messages, func(op byte) {
				if op == scriptReady && len(passed) < 2*handoff.ConnectionWindow {
					passed = append(passed, o.pass(t.Context(), aConnection(t)))
				}
				if op == scriptLeave {
					stopped = true
					go o.server.Stop()
					synctest.Wait()
				}
			})
			p.close()
			elapse(24 * time.Hour)
			synctest.Wait()

			wire := p.end.pipe.transcript()
			acked := strings.Contains(wire, "< Commit\n") &&
				(strings.Contains(wire, "> CommitAck: settle true") || strings.Contains(wire, "> Settle"))
			retired := strings.Contains(wire, "< Retired")
			taken := 0
			for _, tr := range passed {
				if tr.outcome() == nil {
					taken++
				}
			}
			if said := strings.Count(wire, "taken true"); taken > said {
				t.Errorf("%d connections are taken after %d answers:\n%s", taken, said, wire)
			}
			if retired && !acked {
				t.Errorf("the predecessor has retired without a word of the successor:\n%s", wire)
			}
			switch state := o.server.State(); {
			case retired, stopped && o.service.count("Retire") == 1:
				if state != handoff.StateDraining {
					t.Errorf("the state is %v after Retired:\n%s", state, wire)
				}
			case stopped && state != handoff.StateOut, !stopped && state != handoff.StateOwner:
				t.Errorf("the state is %v, stopped: %v:\n%s", state, stopped, wire)
			}
			ends := o.service.count("Thaw") + o.service.count("Resume") + o.service.count("Retire")
			if o.service.count("Offer") != ends || ends > 1 {
				t.Errorf("%d endings of %d attempts: %v:\n%s", ends, o.service.count("Offer"), &o.service.calls, wire)
			}
			if failed := o.server.Status(t.Context()).LastFailure != nil; failed != (ends == 1 && o.service.count("Retire") == 0) {
				t.Errorf("a failure is shown: %v, calls are %v:\n%s", failed, &o.service.calls, wire)
			}
		})
	})
}

// FuzzClientMessages has a server say anything. Whatever it says, Connect and
// Ready give a value or an error, and a candidate that fails owns nothing.
func FuzzClientMessages(f *testing.F) {
	page := func(n uint32, count int, last bool) *pb.ManifestPage {
		p := &pb.ManifestPage{Page: n, Last: last}
		for i := range count {
			p.Descriptors = append(p.Descriptors, &pb.Descriptor{Id: uint64(i), Name: "a", Kind: pb.Kind_KIND_FILE})
		}
		return p
	}
	messages := append([]proto.Message{}, serverMessages...)
	n := byte(len(messages))
	messages = append(messages, welcome(3), page(0, 2, false), page(1, 1, true), page(2, 2, true), page(1, 2, false),
		&pb.Refuse{Code: pb.RefuseCode_REFUSE_CODE_NOT_READY}, passing(welcome(0)), connectionTo("web"), connectionTo("nobody"), connectionTo("\x00"))
	at := func(names ...string) []byte { return indexes(messages, names...) }
	small := append(at("Welcome", "ManifestPage 0"), append([]byte{scriptReady}, at("ManifestPage 1", "Commit", "Retired")...)...)
	large := append([]byte{n, n + 1, n + 2, scriptReady, n + 3}, at("Commit", "Retired")...)
	for _, whole := range [][]byte{small, large} {
		for i := range whole {
			f.Add(whole[:i])
			f.Add(append(append([]byte{}, whole[:i]...), scriptElapse, 200))
			f.Add(append(append([]byte{}, whole[:i]...), scriptPayload, 2, 0xff, 0xff))
			f.Add(append(append([]byte{}, whole[:i]...), scriptFDs, whole[i]))
			f.Add(append(append([]byte{}, whole[:i]...), scriptLeave))
			f.Add(append(append([]byte{}, whole[:i]...), at("Abort")...))
		}
		f.Add(whole)
	}
	f.Add([]byte{n + 5, scriptElapse, 200, scriptClose})
	moving := append([]byte{n + 6}, small[1:]...)
	for i := range byte(3) {
		f.Add(append(append([]byte{}, moving...), n+7+i, n+7))
		f.Add(append(append([]byte{}, moving...), scriptFDs, n+7+i, n+7))
		f.Add(append(append([]byte{}, moving...), n+7, scriptLeave, n+7+i))
	}
	for _, recorded := range recordedScripts(f, transcript.FromPredecessor) {
		f.Add(recorded)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			c := newCandidate(t)
			refusesTheRest(c.cfg)
			p := c.server()
			called, left := false, false
			ready := func() {
				select {
				case <-c.connected:
					if c.taking != nil && !called {
						called = true
						c.ready(t.Context())
					}
				default:
				}
			}
			script(t, p, data, messages, func(op byte) {
				if op == scriptReady {
					ready()
				}
				if op == scriptLeave && c.taking != nil && !left {
					left = true
					c.taking.Leave()
				}
			})
			p.close()
			elapse(24 * time.Hour)
			<-c.connected
			ready()
			synctest.Wait()

			wire := c.pipe.transcript()
			if (c.taking != nil) == (c.err != nil) {
				t.Fatalf("Connect gave %v and %v:\n%s", c.taking, c.err, wire)
			}
			owned, failed := c.receiver.count("Own"), c.receiver.count("Fail")
			if c.taking == nil {
				if owned+failed != 0 {
					t.Errorf("Connect failed, and the calls are %v:\n%s", &c.receiver.calls, wire)
				}
				return
			}
			err := c.outcome()
			if owned+failed != 1 || (err == nil) != (owned == 1) {
				t.Errorf("Ready: %v, and the calls are %v:\n%s", err, &c.receiver.calls, wire)
			}
			if owned == 1 && strings.Contains(wire, "> Abort") {
				t.Errorf("it owns after its own Abort:\n%s", wire)
			}
			if answers := strings.Count(wire, "> ConnectionAck"); c.receiver.count("Taken") > answers+1 {
				t.Errorf("calls are %v, and %d answers were written:\n%s", &c.receiver.calls, answers, wire)
			}
			if g, s := c.receiver.count("Gone"), c.receiver.count("Settled"); g > 1 || s > 1 || owned == 1 && !left && (g != 1 || s != 1) {
				t.Errorf("calls are %v:\n%s", &c.receiver.calls, wire)
			}
		})
	})
}

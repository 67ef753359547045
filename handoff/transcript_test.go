package handoff_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/transcript"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// Old versions and new ones must understand each other, both ways, for ever. So
// whole conversations of version 1 are kept byte by byte in testdata/v1, and in
// these tests one side says what was recorded while today's code is the other:
// it must answer what was answered then, and end as it ended then.
//
// A transcript is recorded from both real machines by
//
//	make transcripts
//
// which until the first release tag may rewrite it. From then on it is a promise,
// like the image of the wire format: new ones may come, none changes any more.

// update has TestTranscripts write what it records.
var update = flag.Bool("update", false, "record the transcripts in testdata/v1")

// recorder is the number in every transcript that this code records: as long as
// it is the same, today's bytes must be those of the transcript. Before a release
// `make transcripts` is the answer to a difference that is meant. After it, raise
// this number: the transcripts that are there stay, as what an older version says,
// and are compared by meaning. To keep what the new one says as well, give a
// conversation a second name.
const recorder = 1

const transcripts = "testdata/v1"

// scene is a handoff connection to record and to play again.
type scene struct {
	about      string
	config     func(*handoff.ServerConfig)                 // nil for nothing, like the rest
	owner      func(*owner) *candidate                     // what has happened before; a candidate that is ahead
	asks       func(*handoff.SuccessorConfig)              // what the successor wants
	spawned    bool                                        // the connection is a process's that the owner has started
	controller func(context.Context, handoff.Frames) error // what the client asks, if it is a controller
	client     []proto.Message                             // what the client says, if it is played by hand
	server     []proto.Message                             // what the server says, if it is played by hand
	acts       []string                                    // what the programs do: see stage.act
}

// scenes are those of testdata/v1, by the names of their files.
var scenes = map[string]scene{
	"handoff": {
		about: "A handoff without a probation, up to the drain.",
		acts:  []string{"successor Progress", "successor Ready 3", "successor Leave"},
	},
	"handoff-spawned": {
		about:   "The same with a successor that the owner has started: the connection is one end of a socket pair.",
		spawned: true,
		acts:    []string{"successor Ready"},
	},
	"handoff-every-kind": {
		about: "A handoff of every kind of descriptor, which changes between the offer and the last page.",
		owner: func(o *owner) *candidate {
			o.service.offer.Descriptors = everyKind(o.t)
			o.service.changes = handoff.Changes{Added: others(o.t), Removed: []uint64{3, 5}}
			return nil
		},
		acts: []string{"successor Progress", "successor Ready 4 6", "time 1s"},
	},
	"handoff-many-pages": {
		about: "A handoff whose offer and whose changes take more than one page each.",
		owner: func(o *owner) *candidate {
			all := descriptors(o.t, 503)
			for i := range all {
				all[i].Address = ""
			}
			o.service.offer.Descriptors = append(essentials(o.t), all[2:252]...)
			o.service.changes = handoff.Changes{Added: all[252:], Removed: []uint64{7}}
			return nil
		},
		acts: []string{"successor Ready"},
	},
	"handoff-no-control": {
		about: "A handoff of nothing at all: an owner without a control path and without a descriptor.",
		owner: func(o *owner) *candidate { o.service.offer = handoff.Offer{}; return nil },
		acts:  []string{"successor Ready"},
	},
	"handoff-connections": {
		about: "Connections that move behind Retired: taken, refused, and unanswered when the successor ends.",
		asks:  refusesTheRest,
		acts: []string{
			"successor Ready", "predecessor HandOver web", "predecessor HandOver admin", "predecessor HandOver web",
			"successor Freeze", "predecessor HandOver web", "predecessor HandOver web", "successor End",
		},
	},
	"handoff-in-a-unit": {
		about: "A predecessor that was the main process of a unit, in which the successor is too.",
		asks:  refusesTheRest,
		owner: func(o *owner) *candidate {
			o.service.unit = &handoff.ServiceManager{NotifySocket: "/run/systemd/notify", Watchdog: 30 * time.Second, FDStore: true, FDStoreMax: 16}
			return nil
		},
		acts: []string{"successor Ready"},
	},
	"handoff-no-features": {
		about: "A successor that takes no connections, and so is sent none. It is played by hand.",
		client: []proto.Message{
			&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "by hand", Pid: 33}},
			prepared, pageAck(1), received, ready, pageAck(2), finalReceived, commitAck(true),
		},
		acts: []string{"predecessor HandOver web"},
	},
	"handoff-unknown-feature": {
		about: "A successor of the future that has another feature besides. It is played by hand.",
		client: []proto.Message{
			&pb.Hello{
				Versions: []uint32{handoff.Version}, Features: []string{"a-new-feature", handoff.FeatureConnections},
				Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "by hand", Pid: 33},
			},
			prepared, pageAck(1), received, ready, pageAck(2), finalReceived, commitAck(true),
		},
		acts: []string{"predecessor HandOver web"},
	},
	"probation-settled": {
		about: "A probation that the owner ends by itself, because it stays.",
		asks:  asksFor(handoff.SettleAtEnd),
		acts:  []string{"successor Ready", "time 10s", "successor Settle"},
	},
	"probation-over-settled": {
		about: "A probation whose end is asked for, and the answer is to stay.",
		asks:  asksFor(handoff.SettleAtEnd),
		acts:  []string{"successor Ready", "time 30s"},
	},
	"probation-rolled-back": {
		about: "A probation that the owner ends by giving the service back.",
		asks:  asksFor(handoff.RollbackAtEnd),
		acts:  []string{"successor Ready", "time 10s", "successor Rollback"},
	},
	"probation-over-rolled-back": {
		about: "A probation whose end is asked for, and the answer is to give the service back.",
		asks:  asksFor(handoff.RollbackAtEnd),
		acts:  []string{"successor Ready", "time 30s"},
	},
	"probation-predecessor-stops": {
		about: "A predecessor that is told to stop while it stands by: it asks for the answer before the time is over.",
		asks:  asksFor(handoff.SettleAtEnd),
		acts:  []string{"successor Ready", "predecessor Stop"},
	},
	"probation-by-default": {
		about:  "A successor that asks for no probation in particular gets the predecessor's own.",
		config: func(c *handoff.ServerConfig) { c.Limits.Probation = 20 * time.Second },
		acts:   []string{"successor Ready", "time 20s"},
	},
	"probation-successor-ends": {
		about: "A successor that ends on probation: its predecessor resumes.",
		asks:  asksFor(handoff.SettleAtEnd),
		acts:  []string{"successor Ready", "successor Leave"},
	},

	"abort-by-the-successor": {
		about: "A successor whose initialisation fails.",
		acts:  []string{"successor Abort"},
	},
	"abort-by-the-successor-stopping": {
		about: "A candidate that is told to stop.",
		acts:  []string{"successor Leave"},
	},
	"abort-by-the-predecessor": {
		about: "A hook of the predecessor that fails behind Ready.",
		owner: func(o *owner) *candidate { o.service.freezeErr = errBoom; return nil },
		acts:  []string{"successor Ready"},
	},
	"abort-by-the-predecessor-stopping": {
		about: "An owner that is told to stop during its offer.",
		acts:  []string{"predecessor Stop", "successor Ready"},
	},
	"abort-by-the-predecessor-timeout": {
		about: "A successor that takes too long to be ready.",
		acts:  []string{"time 1m0s", "successor Ready"},
	},

	"refused-busy": {
		about: "Refused because another attempt is ahead, which then fails.",
		owner: func(o *owner) *candidate { return o.connected() },
		asks:  waits,
		acts:  []string{"predecessor FirstLeaves"},
	},
	"refused-not-ready": {
		about: "Refused because the owner has not called Ready, which it then does.",
		owner: func(o *owner) *candidate { o.server.Own(1, false, true); return nil },
		acts:  []string{"predecessor SetReady"},
	},
	"refused-retiring": {
		about: "Refused because the owner's own predecessor has not retired, which it then does.",
		owner: func(o *owner) *candidate { o.server.Own(2, true, false); return nil },
		acts:  []string{"predecessor SetSettled"},
	},
	"refused-probation": {
		about: "Refused because the owner is on probation itself, until it has settled.",
		owner: func(o *owner) *candidate {
			o.server.Own(2, true, false)
			o.server.SetProbation(&handoff.Probation{
				Predecessor: handoff.Process{Instance: "v0", BuildVersion: "0.9.0", Generation: 1, PID: 10}, Until: time.Now().Add(time.Minute),
			})
			return nil
		},
		asks: waits,
		acts: []string{"predecessor SetSettled"},
	},
	"refused-draining": {
		about: "Refused because too many generations drain. The server is played by hand.",
		server: []proto.Message{&pb.Refuse{
			Code: pb.RefuseCode_REFUSE_CODE_DRAINING, Reason: "4 generations are draining, and no more may",
			Who: &pb.Process{Instance: "v0", Generation: 1, Pid: 10},
		}},
	},
	"refused-policy": {
		about: "Refused by the owner's policy.",
		config: func(c *handoff.ServerConfig) {
			c.Accept = func(context.Context, handoff.Candidate) error { return errBoom }
		},
	},
	"refused-denied": {
		about:  "Refused for the kernel's credentials.",
		config: func(c *handoff.ServerConfig) { c.Authorize = func(*scm.Peer, handoff.Access) error { return errBoom } },
	},
	"refused-stopping": {
		about: "Refused by an owner that has stopped.",
		owner: func(o *owner) *candidate { o.server.Stop(); return nil },
	},
	"refused-moved": {
		about: "Refused by a process that has retired.",
		owner: func(o *owner) *candidate { o.takeOver(); return nil },
	},
	"refused-control-lost": {
		about: "Refused by an owner that has lost its control path.",
		owner: func(o *owner) *candidate { o.service.controlErr = errBoom; return nil },
	},
	"refused-cancelled": {
		about: "Refused because its attempt was cancelled before it began.",
		owner: func(o *owner) *candidate { o.controller(cancelRequest("v2", false)).answer(); return nil },
	},
	"refused-incompatible": {
		about: "A successor of the future, which does not speak version 1 any more. It is played by hand.",
		client: []proto.Message{&pb.Hello{
			Versions: []uint32{7, 8}, Features: []string{"a-new-feature"}, Role: pb.Role_ROLE_SUCCESSOR, Process: &pb.Process{Instance: "v9", Pid: 99},
		}},
	},
	"refused-protocol": {
		about:  "A client that does not begin with Hello. It is played by hand.",
		client: []proto.Message{ready},
	},

	"status": {
		about:      "A controller asks an owner at rest.",
		controller: asksStatus,
		owner: func(o *owner) *candidate {
			o.service.controlErr = errBoom
			for i, d := range everyKind(o.t) {
				o.service.listed = append(o.service.listed, handoff.DescriptorStatus{
					Name: d.Name, Kind: d.Kind, Network: d.Network, Address: d.Address, Origin: handoff.Origin(i%3 + 1),
				})
			}
			return nil
		},
	},
	"status-during-a-handoff": {
		about:      "A controller asks during an attempt, after another one has failed.",
		controller: asksStatus,
		owner: func(o *owner) *candidate {
			o.connected().taking.Leave()
			synctest.Wait()
			first := o.connected()
			first.taking.Progress("warming up", 5*time.Minute)
			rest()
			return first
		},
	},
	"status-on-probation": {
		about:      "A controller asks an owner that can still give the service back.",
		controller: asksStatus,
		owner: func(o *owner) *candidate {
			o.server.Own(2, true, false)
			o.server.SetProbation(&handoff.Probation{
				Predecessor: handoff.Process{Instance: "v0", BuildVersion: "0.9.0", Generation: 1, PID: 10},
				Until:       time.Now().Add(time.Minute), AtEnd: handoff.RollbackAtEnd,
			})
			return nil
		},
	},
	"controller-watch": {
		about:      "A controller watches an owner during an attempt that fails, until the owner stops.",
		controller: asksEvents,
		owner: func(o *owner) *candidate {
			first := o.connected()
			first.taking.Progress("warming up", 5*time.Minute)
			rest()
			return first
		},
		acts: []string{"predecessor FirstLeaves", "predecessor Stop"},
	},
	"controller-upgrade": {
		about: "A controller has the owner start its successor, and hears when that one is settled.",
		controller: demands(&pb.ControlRequest{Request: &pb.ControlRequest_Upgrade{Upgrade: &pb.UpgradeRequest{
			Timeout: durationpb.New(time.Minute), WaitSettled: true,
		}}}),
		config: obeys,
		owner:  upgrades,
		acts:   []string{"predecessor FirstOwns"},
	},
	"controller-upgrade-failed": {
		about:      "A controller has the owner start a successor that fails.",
		controller: demands(upgradeRequest),
		config:     obeys,
		owner:      upgrades,
		acts:       []string{"predecessor FirstAborts"},
	},
	"controller-upgrade-busy": {
		about:      "A controller asks for an upgrade while another handoff is under way.",
		controller: demands(upgradeRequest),
		config:     obeys,
		owner: func(o *owner) *candidate {
			upgrades(o)
			return o.connected()
		},
	},
	"controller-cancel": {
		about:      "A controller cancels the attempt of an instance.",
		controller: demands(cancelRequest("v2", false)),
		owner:      func(o *owner) *candidate { return o.connected() },
	},
	"controller-cancel-committed": {
		about:      "A controller cancels an instance that owns.",
		controller: demands(cancelRequest("v1", true)),
	},
	"controller-settle": {
		about:      "A controller has the owner settle its probation.",
		controller: demands(settleRequest),
		config:     obeys,
	},
	"controller-rollback": {
		about:      "A controller has the owner give the service back, which is settled.",
		controller: demands(rollbackRequest),
		config: func(c *handoff.ServerConfig) {
			c.Commands = &commands{rollback: func(context.Context) error { return handoff.ErrSettled }}
		},
	},
	"controller-end-drain": {
		about:      "A controller ends the drain of a generation.",
		controller: demands(endDrainRequest),
		config:     obeys,
	},
	"controller-end-drain-not-allowed": {
		about:      "A controller ends the drain of a generation that the owner cannot reach.",
		controller: demands(endDrainRequest),
		config: func(c *handoff.ServerConfig) {
			c.Commands = &commands{endDrain: func() (string, error) { return "", fmt.Errorf("%w: no", handoff.ErrNotAllowed) }}
		},
	},
	"controller-stop": {
		about:      "A controller stops the owner.",
		controller: demands(stopRequest),
		config:     obeys,
	},
	"controller-check": {
		about:      "A controller rehearses a handoff.",
		controller: rehearses,
	},
	"controller-check-refused": {
		about:      "A controller rehearses a handoff while another is under way.",
		controller: rehearses,
		owner:      func(o *owner) *candidate { return o.connected() },
	},
	"controller-moved": {
		about:      "A controller commands a process that has retired.",
		controller: demands(settleRequest),
		config:     obeys,
		owner:      func(o *owner) *candidate { o.takeOver(); return nil },
	},
	"controller-not-implemented": {
		about: "A controller with a request that this version does not implement. It is played by hand.",
		client: []proto.Message{
			&pb.Hello{Versions: []uint32{handoff.Version}, Role: pb.Role_ROLE_CONTROLLER},
			&pb.ControlRequest{Request: &pb.ControlRequest_EndDrain{EndDrain: &pb.EndDrainRequest{Generation: 3}}},
		},
	},
}

// refusesTheRest takes connections of one listener only.
func refusesTheRest(c *handoff.SuccessorConfig) {
	c.Receiver.(*receiver).onConnection = func(c *handoff.Connection) error {
		if c.Listener != "web" {
			return fmt.Errorf("nobody takes connections for %q", c.Listener)
		}
		return nil
	}
}

// asksFor a probation of 30 seconds and this end of it.
func asksFor(atEnd handoff.ProbationEnd) func(*handoff.SuccessorConfig) {
	length := 30 * time.Second
	return func(c *handoff.SuccessorConfig) { c.Probation, c.AtProbationEnd = &length, atEnd }
}

// obeys is an owner that does what controllers wish.
func obeys(c *handoff.ServerConfig) { c.Commands = new(commands) }

// upgrades has the owner start the candidate that it returns.
func upgrades(o *owner) *candidate {
	c := newCandidate(o.t)
	o.upgradesTo(o.cfg.Commands.(*commands), c)
	return c
}

func asksStatus(ctx context.Context, conn handoff.Frames) error {
	_, err := handoff.QueryStatusOn(ctx, conn)
	return err
}

func asksEvents(ctx context.Context, conn handoff.Frames) error {
	return handoff.WatchOn(ctx, conn, func(handoff.Event) error { return nil })
}

func rehearses(ctx context.Context, conn handoff.Frames) error {
	_, err := handoff.CheckOn(ctx, conn, &handoff.Candidate{
		Process: handoff.Process{Instance: "v2", BuildVersion: "2.0.0", Epoch: 1, PID: 22}, Force: true,
		Probation: 30 * time.Second, AtProbationEnd: handoff.RollbackAtEnd,
	})
	return err
}

// demands is a controller with one request.
func demands(r *pb.ControlRequest) func(context.Context, handoff.Frames) error {
	return func(ctx context.Context, conn handoff.Frames) error {
		_, err := handoff.CommandOn(ctx, conn, r)
		return err
	}
}

// waits is for as long as it takes.
func waits(c *handoff.SuccessorConfig) { c.WaitUntil = time.Now().Add(24 * time.Hour) }

// essentials are a control listener and its lock. These and the rest say of
// themselves what a Linux system would; nobody compares it here.
func essentials(t *testing.T) []handoff.Descriptor {
	ds := descriptors(t, 2)
	ds[0].Name, ds[0].Kind, ds[0].Network, ds[0].Address = "crossfade.control", handoff.KindControl, "unix", "/run/app.sock"
	ds[0].Identity = scm.Identity{
		Type: scm.TypeSocket, Domain: 1, SockType: 1, Listening: true, Cookie: 101, Dev: 8, Ino: 1001, Network: "unix", Address: "/run/app.sock~/s",
	}
	ds[1].Name, ds[1].Kind, ds[1].Address = "crossfade.lock", handoff.KindLock, "/run/app.sock.lock"
	ds[1].Identity = scm.Identity{Type: scm.TypeRegular, Dev: 26, Ino: 1002}
	return ds
}

// everyKind is a descriptor of each kind.
func everyKind(t *testing.T) []handoff.Descriptor {
	ds := descriptors(t, 8)[2:]
	tcp := scm.Identity{Type: scm.TypeSocket, Domain: 10, SockType: 1, Protocol: 6, Listening: true, Cookie: 103, Dev: 8, Ino: 1003, Network: "tcp", Address: "[::]:8080"}
	udp := scm.Identity{Type: scm.TypeSocket, Domain: 2, SockType: 2, Protocol: 17, Cookie: 104, Dev: 8, Ino: 1004, Network: "udp", Address: "127.0.0.1:53"}
	unix := scm.Identity{Type: scm.TypeSocket, Domain: 1, SockType: 1, Cookie: 105, Dev: 8, Ino: 1005, Network: "unix", Address: "@abstract"}
	for i, d := range []handoff.Descriptor{
		{Name: "http", Kind: handoff.KindListener, Network: "tcp", Address: "[::]:8080", Identity: tcp},
		{Name: "dns", Kind: handoff.KindPacketConn, Network: "udp4", Address: "127.0.0.1:53", Identity: udp},
		{Name: "upstream", Kind: handoff.KindConn, Network: "unix", Address: "@abstract", Identity: unix},
		{Name: "журнал", Kind: handoff.KindFile, Address: "/var/log/app.log", Identity: scm.Identity{Type: scm.TypeRegular, Dev: 9, Ino: 1006}},
		{Name: "sessions", Kind: handoff.KindState, Moment: handoff.AtOffer, Identity: scm.Identity{Type: scm.TypeRegular, Dev: 1, Ino: 1007}},
		{Name: "crossfade.alive", Kind: handoff.KindAlive, Identity: scm.Identity{Type: scm.TypePipe, Dev: 14, Ino: 1008}},
	} {
		d.ID, d.FD = ds[i].ID, ds[i].FD
		ds[i] = d
	}
	return append(essentials(t), ds...)
}

// others are what a program has added late.
func others(t *testing.T) []handoff.Descriptor {
	ds := descriptors(t, 10)[8:]
	ds[0].Name, ds[0].Kind, ds[0].Network, ds[0].Address = "admin", handoff.KindListener, "unix", "/run/admin.sock"
	ds[0].Identity = scm.Identity{
		Type: scm.TypeSocket, Domain: 1, SockType: 1, Listening: true, Cookie: 109, Dev: 8, Ino: 1009, Network: "unix", Address: "/run/admin.sock~/s",
	}
	ds[0].UnixPath = &handoff.UnixPath{Path: "/run/admin.sock", Bound: "/run/admin.sock~/s", Dev: 26, Ino: 1010}
	return ds
}

// rest returns when nothing moves any more, however long a nanosecond is.
func rest() {
	elapse(time.Microsecond)
	synctest.Wait()
}

// stage is where a conversation is held: on each side a real machine, a player,
// or nobody.
type stage struct {
	t     *testing.T
	c     scene
	owner *owner // nil if the server is played
	first *candidate
	next  *candidate // its pipe is the connection; not connected if the client is played
	query chan error // of a controller
	moved calls      // what has become of connections, in the order in which that was known
}

// newStage sets the stage and opens the connection. What is played by hand, or
// from a transcript, has its end of the pipe.
func newStage(t *testing.T, c scene, server bool) *stage {
	t.Helper()
	s := &stage{t: t, c: c, next: newCandidate(t), query: make(chan error, 1)}
	s.next.cfg.Process.BuildVersion = "2.0.0"
	s.next.cfg.Patience = time.Hour // a player takes its time
	if c.asks != nil {
		c.asks(s.next.cfg)
	}
	if server {
		s.owner = newOwner(t, func(cfg *handoff.ServerConfig) {
			cfg.Process.BuildVersion = "1.0.0"
			cfg.Limits.MaxProbation = 10 * time.Minute
			if c.config != nil {
				c.config(cfg)
			}
		})
		s.owner.service.offer = handoff.Offer{
			Control:     &handoff.Control{Path: "/run/app.sock", Bound: "/run/app.sock~/s", Dev: 26, Ino: 1000, Backlog: 4096},
			Descriptors: append(essentials(t), descriptors(t, 3)[2:]...),
		}
		if c.owner != nil {
			s.first = c.owner(s.owner)
		}
	}
	return s
}

// open begins the conversation. An inherited connection is there before its
// successor.
func (s *stage) open(client bool) {
	s.t.Helper()
	pipe := s.next.pipe
	switch {
	case s.owner == nil:
	case s.c.spawned:
		sp, err := s.owner.server.SpawnOn(pipe.server)
		if err != nil {
			s.t.Fatal(err)
		}
		go func() { _ = sp.Run(s.t.Context(), 22, processOf(nil)) }() // its fate is the state's
	default:
		go s.owner.server.Serve(pipe.server, nil)
	}
	rest() // who is denied may hear of it before its Hello
	switch {
	case !client:
	case s.c.controller != nil:
		go func() { s.query <- s.c.controller(s.t.Context(), pipe.client) }()
	default:
		s.next.dial(s.t.Context())
	}
	rest()
}

// act does what a program does, if that program is here.
func (s *stage) act(act string) {
	s.t.Helper()
	words := strings.Fields(act)
	switch {
	case words[0] == "time":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		elapse(d)
	case words[0] == "predecessor" && s.owner != nil:
		s.predecessorActs(words[1], words[2:])
	case words[0] == "successor" && s.next.isConnected():
		s.successorActs(words[1], words[2:])
	}
	rest()
}

func (s *stage) predecessorActs(act string, args []string) {
	switch act {
	case "Stop":
		go s.owner.server.Stop()
	case "SetReady":
		s.owner.server.SetReady()
	case "SetSettled":
		s.owner.server.SetSettled()
	case "FirstLeaves":
		s.first.taking.Leave()
	case "FirstOwns":
		s.first.dial(s.t.Context())
		s.first.ready(s.t.Context())
	case "FirstAborts":
		s.first.dial(s.t.Context())
		s.first.taking.Abort(errBoom)
	case "HandOver":
		c := aConnection(s.t)
		c.Listener = args[0]
		go func() {
			s.moved.add("%s", outcomeOf(s.owner.server.HandOver(s.t.Context(), c, func(error) {}), "taken"))
		}()
	default:
		s.t.Fatalf("no predecessor can %q", act)
	}
}

func (s *stage) successorActs(act string, args []string) {
	if s.next.taking == nil {
		return // it was refused
	}
	switch act {
	case "Progress":
		s.next.taking.Progress("warming up", 5*time.Minute)
	case "Ready":
		var unclaimed []handoff.Descriptor
		for _, d := range s.next.receiver.got {
			if slices.Contains(args, strconv.FormatUint(d.ID, 10)) {
				unclaimed = append(unclaimed, d)
			}
		}
		s.next.ready(s.t.Context(), unclaimed...)
	case "Settle":
		go func() { _ = s.next.taking.Settle(s.t.Context()) }() // see outcomes
	case "Rollback":
		go func() { _ = s.next.taking.Rollback(s.t.Context(), "not good enough") }()
	case "Abort":
		s.next.taking.Abort(errBoom)
	case "Leave":
		s.next.taking.Leave()
	case "Freeze":
		s.next.pipe.client.freeze()
	case "End":
		s.next.pipe.client.kill()
	default:
		s.t.Fatalf("no successor can %q", act)
	}
}

func (c *candidate) isConnected() bool {
	select {
	case <-c.connected:
		return true
	default:
		return false
	}
}

// outcomes say how the conversation has ended on either side, "-" for a player's.
func (s *stage) outcomes(client bool) (predecessor, successor string) {
	predecessor, successor = "-", "-"
	if s.owner != nil {
		predecessor = s.owner.server.State().String()
		if moved := s.moved.String(); moved != "" {
			predecessor += "; connections: " + moved
		}
	}
	if client {
		successor = s.successorOutcome()
	}
	return predecessor, successor
}

func (s *stage) successorOutcome() string {
	r := s.next.receiver
	switch {
	case s.c.controller != nil:
		return outcomeOf(<-s.query, "answered")
	case !s.next.isConnected():
		return "waiting"
	case s.next.err != nil:
		return outcomeOf(s.next.err, "")
	case r.failure != nil:
		return outcomeOf(r.failure, "")
	case r.count("Own") == 0:
		return "candidate"
	case r.count("Settled") == 0:
		return "owner, not settled"
	default:
		return "owner"
	}
}

// outcomeOf names an error by all that a caller can decide by.
func outcomeOf(err error, none string) string {
	if err == nil {
		return none
	}
	var names []string
	for _, e := range []struct {
		name string
		is   error
	}{
		{"rolled back", handoff.ErrRolledBack},
		{"ask again", handoff.ErrAskAgain},
		{"busy", handoff.ErrBusy},
		{"not ready", handoff.ErrNotReady},
		{"probation", handoff.ErrProbation},
		{"draining", handoff.ErrDraining},
		{"policy", handoff.ErrPolicy},
		{"denied", handoff.ErrDenied},
		{"incompatible", handoff.ErrIncompatible},
		{"stopping", handoff.ErrStopping},
		{"moved", handoff.ErrMoved},
		{"control lost", handoff.ErrControlLost},
		{"aborted", handoff.ErrAborted},
		{"timeout", handoff.ErrTimeout},
		{"hook", handoff.ErrHook},
		{"lost", handoff.ErrLost},
		{"not taken", handoff.ErrNotTaken},
		{"protocol", handoff.ErrProtocol},
		{"not implemented", handoff.ErrUnimplemented},
		{"cancelled", handoff.ErrCancelled},
		{"committed", handoff.ErrCommitted},
		{"settled", handoff.ErrSettled},
		{"outcome unknown", handoff.ErrOutcomeUnknown},
		{"wrong state", handoff.ErrWrongState},
		{"not allowed", handoff.ErrNotAllowed},
	} {
		if errors.Is(err, e.is) {
			names = append(names, e.name)
		}
	}
	if len(names) == 0 {
		return "failed"
	}
	return strings.Join(names, ", ")
}

// record holds a conversation between today's two sides.
func record(t *testing.T, c scene) *transcript.Conversation {
	t.Helper()
	client := c.client == nil
	s := newStage(t, c, c.server == nil)
	pipe := s.next.pipe
	tape := &transcript.Conversation{About: c.about, Recorder: recorder, Known: make(map[string][]int)}
	pipe.tape = func(arrow string, payload []byte, fds int) {
		e := transcript.Event{Kind: arrow[0], Text: transcript.End}
		if payload != nil {
			m := member(arrow == ">", payload)
			e.Text, e.Frame, e.Notes = shortName(m), transcript.Frame(payload, fds), notes(m)
			know(tape.Known, m.ProtoReflect())
		}
		tape.Events = append(tape.Events, e)
	}
	// What may be sent ahead waits for the answer to what came before: a page for
	// the acknowledgement of the last one, a request for Welcome. So the two
	// directions have one order, which suits a side that sends nothing ahead too.
	pipe.before = func(message string) {
		if strings.HasPrefix(message, "< ManifestPage") || message == "> ControlRequest" {
			elapse(time.Nanosecond)
		}
	}
	s.open(client)
	by, said := pipe.client, c.client
	if c.server != nil {
		by, said = pipe.server, c.server
	}
	hand := &player{t: t, end: by}
	for _, m := range said {
		hand.say(m)
		rest() // a page takes its time, see above
	}
	if c.server != nil {
		hand.close()
	}
	for _, act := range c.acts {
		pipe.client.set(func() { tape.Events = append(tape.Events, transcript.Event{Kind: transcript.Act, Text: act}) })
		s.act(act)
	}
	rest()
	pipe.client.set(func() { pipe.tape = nil })
	// Both ends may close at the same moment.
	for i := 1; i < len(tape.Events); i++ {
		a, b := &tape.Events[i-1], &tape.Events[i]
		if a.Text == transcript.End && b.Text == transcript.End && a.Kind == transcript.FromSuccessor {
			*a, *b = *b, *a
		}
	}
	tape.Predecessor, tape.Successor = s.outcomes(client)
	return tape
}

// know adds the fields that this code knows of a message and of those in it.
func know(known map[string][]int, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	numbers := []int{}
	for i := range fields.Len() {
		numbers = append(numbers, int(fields.Get(i).Number()))
	}
	slices.Sort(numbers)
	known[string(m.Descriptor().Name())] = numbers
	each(m, func(inner protoreflect.Message) { know(known, inner) })
}

// each calls f for every message that is a field of m.
func each(m protoreflect.Message, f func(protoreflect.Message)) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				f(v.List().Get(i).Message())
			}
		default:
			f(v.Message())
		}
		return true
	})
}

// notes say what is in a message, a line for each of its fields.
func notes(m proto.Message) []string {
	var lines []string
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !r.Has(fd) {
			continue
		}
		if !fd.IsList() {
			lines = append(lines, string(fd.Name())+": "+note(fd, r.Get(fd)))
			continue
		}
		list := r.Get(fd).List()
		for i := range list.Len() {
			lines = append(lines, string(fd.Name())+": "+note(fd, list.Get(i)))
		}
	}
	return lines
}

func note(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case fd.Message() != nil:
		return "{" + strings.Join(notes(v.Message().Interface()), ", ") + "}"
	case fd.Enum() != nil:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return string(d.Name())
		}
		return strconv.Itoa(int(v.Enum()))
	case fd.Kind() == protoreflect.StringKind:
		return strconv.Quote(v.String())
	default:
		return v.String()
	}
}

// TestTranscripts compares the transcripts with what today's code says, as long
// as that is meant to be the same, and records them.
func TestTranscripts(t *testing.T) {
	for name, c := range scenes {
		bubble(t, name, func(t *testing.T) {
			path := filepath.Join(transcripts, name+".txt")
			now := record(t, c)
			if *update {
				old, err := transcript.Read(path)
				if earlier := err == nil && old.Recorder < recorder; !earlier || !released(t) {
					if err := keep(path, now.String(), released(t)); err != nil {
						t.Fatal(err)
					}
				}
			}
			old, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v: make transcripts records it", err)
			}
			parsed, err := transcript.Parse(old)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Recorder == recorder && string(old) != now.String() {
				t.Errorf("%s is not what this code says, which is\n%s\nSee the comment at recorder if that is meant.", path, now)
			}
		})
	}
	files, err := filepath.Glob(filepath.Join(transcripts, "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, ok := scenes[strings.TrimSuffix(filepath.Base(file), ".txt")]; !ok {
			t.Errorf("nothing plays %s", file)
		}
	}
}

// TestARecordedSuccessor has each recorded successor say again what it said, to
// today's predecessor.
func TestARecordedSuccessor(t *testing.T) {
	for name, c := range scenes {
		if c.server == nil {
			bubble(t, name, func(t *testing.T) { replay(t, name, c, transcript.FromSuccessor, asItWas) })
		}
	}
}

// TestARecordedPredecessor has each recorded predecessor say again what it said,
// to today's successor.
func TestARecordedPredecessor(t *testing.T) {
	for name, c := range scenes {
		if c.client == nil {
			bubble(t, name, func(t *testing.T) { replay(t, name, c, transcript.FromPredecessor, asItWas) })
		}
	}
}

// asItWas is the change to a recorded frame that is none.
func asItWas(e transcript.Event) []byte { return e.Payload() }

// replay plays the recorded side by, with each frame's payload as say gives it,
// against the machine of today.
func replay(t *testing.T, name string, c scene, by byte, say func(transcript.Event) []byte) {
	t.Helper()
	tape, err := transcript.Read(filepath.Join(transcripts, name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	fromSuccessor := by == transcript.FromSuccessor
	s := newStage(t, c, fromSuccessor)
	p := &player{t: t, end: s.next.pipe.client}
	if !fromSuccessor {
		p.end = s.next.pipe.server
	}
	s.open(!fromSuccessor)
	events := tape.Events
	for i := range events {
		if next := i + 1; next < len(events) && events[i].Text == transcript.End && events[next].Text == transcript.End && events[next].Kind == by {
			events[i], events[next] = events[next], events[i] // one end is the reason for the other
		}
		e := events[i]
		switch {
		case e.Kind == transcript.Act:
			s.act(e.Text)
		case e.Kind == by && e.Text == transcript.End:
			p.close()
		case e.Kind == by:
			p.write(say(e), fdsOf(t, e.Descriptors())...)
		default:
			if err := p.expect(e, tape.Known); err != nil {
				t.Fatalf("event %d, %s: %v\non the wire was\n%s", i, e.Text, err, s.next.pipe.transcript())
			}
		}
	}
	rest()
	if names, _, _ := p.hearAll(); len(names) > 0 {
		t.Errorf("this code says %q more than was recorded", names)
	}
	predecessor, successor := s.outcomes(!fromSuccessor)
	if fromSuccessor && predecessor != tape.Predecessor {
		t.Errorf("the predecessor is %s, and was %s", predecessor, tape.Predecessor)
	}
	if !fromSuccessor && successor != tape.Successor {
		t.Errorf("the successor: %s, and was: %s", successor, tape.Successor)
	}
}

// expect reads what the other side says and compares it with what it said.
func (p *player) expect(e transcript.Event, known map[string][]int) error {
	synctest.Wait()
	now, cancel := context.WithCancel(context.Background())
	cancel()
	payload, fds, err := p.end.Receive(now, scm.MaxDescriptors)
	closeFDs(fds)
	switch {
	case e.Text == transcript.End && err != nil && !errors.Is(err, context.Canceled):
		return nil
	case e.Text == transcript.End:
		return fmt.Errorf("this code has not closed: %w", err)
	case err != nil:
		return err
	case len(fds) != e.Descriptors():
		return fmt.Errorf("it came with %d descriptors, and had %d", len(fds), e.Descriptors())
	}
	fromSuccessor := e.Kind == transcript.FromSuccessor
	was, is := member(fromSuccessor, e.Payload()), member(fromSuccessor, payload)
	if was == nil || is == nil || shortName(was) != e.Text || shortName(is) != e.Text {
		return fmt.Errorf("this code says %s", shortName(is))
	}
	return sameMeaning(e.Text, was.ProtoReflect(), is.ProtoReflect(), known)
}

// measured are times that depend on the moment, and told is what people read:
// that these are there is what counts.
var (
	measured = []protoreflect.FullName{
		"Refuse.since", "Refuse.until", "StatusReply.since", "Attempt.since", "Attempt.remaining", "Failure.ago",
		"Probation.remaining", "Generation.since", "Generation.remaining", "Draining.remaining",
	}
	told = []protoreflect.FullName{
		"Refuse.reason", "Abort.reason", "Rollback.reason", "Error.reason", "Outcome.reason", "ConnectionAck.reason",
		"Failure.reason", "Failure.step", "Attempt.step", "StatusReply.warnings", "Event.text",
	}
)

// sameMeaning compares a message with a recorded one, field by field of those
// that the recorder knew. A newer one may have others. The recorded message must
// be understood altogether.
func sameMeaning(path string, was, is protoreflect.Message, known map[string][]int) error {
	if len(was.GetUnknown()) > 0 {
		return fmt.Errorf("%s: this code does not know all of what was recorded: %x", path, was.GetUnknown())
	}
	d := was.Descriptor()
	numbers, ok := known[string(d.Name())]
	if !ok {
		return fmt.Errorf("%s: the recorder did not know any %s", path, d.Name())
	}
	for _, n := range numbers {
		fd := d.Fields().ByNumber(protoreflect.FieldNumber(n))
		if fd == nil {
			return fmt.Errorf("%s: %s has no field %d any more", path, d.Name(), n)
		}
		if err := sameField(path+"."+string(fd.Name()), fd, was, is, known); err != nil {
			return err
		}
	}
	return nil
}

// localName is a field's name with that of its message.
func localName(fd protoreflect.FieldDescriptor) protoreflect.FullName {
	return protoreflect.FullName(strings.TrimPrefix(string(fd.FullName()), "crossfade.handoff.v1."))
}

func sameField(path string, fd protoreflect.FieldDescriptor, was, is protoreflect.Message, known map[string][]int) error {
	name := localName(fd)
	switch {
	case name == "Hello.features": // a newer side may offer more, and only what both have is agreed on
		return offersAll(path, was.Get(fd).List(), is.Get(fd).List())
	case was.Has(fd) != is.Has(fd):
		return fmt.Errorf("%s is %v, and was %v", path, is.Get(fd), was.Get(fd))
	case !was.Has(fd), slices.Contains(measured, name), slices.Contains(told, name):
		return nil
	case fd.IsList():
		return sameList(path, fd, was.Get(fd).List(), is.Get(fd).List(), known)
	case fd.Message() != nil:
		return sameMeaning(path, was.Get(fd).Message(), is.Get(fd).Message(), known)
	case !was.Get(fd).Equal(is.Get(fd)):
		return fmt.Errorf("%s is %v, and was %v", path, is.Get(fd), was.Get(fd))
	}
	return nil
}

// offersAll compares what may be offered with what was.
func offersAll(path string, was, is protoreflect.List) error {
	var offered []string
	for i := range is.Len() {
		offered = append(offered, is.Get(i).String())
	}
	for i := range was.Len() {
		if feature := was.Get(i).String(); !slices.Contains(offered, feature) {
			return fmt.Errorf("%s are %q, without %q", path, offered, feature)
		}
	}
	return nil
}

func sameList(path string, fd protoreflect.FieldDescriptor, was, is protoreflect.List, known map[string][]int) error {
	if was.Len() != is.Len() {
		return fmt.Errorf("%s has %d elements, and had %d", path, is.Len(), was.Len())
	}
	for i := range was.Len() {
		here := fmt.Sprintf("%s[%d]", path, i)
		if fd.Message() == nil {
			if !was.Get(i).Equal(is.Get(i)) {
				return fmt.Errorf("%s is %v, and was %v", here, is.Get(i), was.Get(i))
			}
			continue
		}
		if err := sameMeaning(here, was.Get(i).Message(), is.Get(i).Message(), known); err != nil {
			return err
		}
	}
	return nil
}

// keep writes a transcript. What a released version has said cannot be taken
// back.
func keep(path, text string, released bool) error {
	old, err := os.ReadFile(path)
	if err == nil && string(old) == text {
		return nil
	}
	if err == nil && released {
		return fmt.Errorf("%s belongs to a released version: it stays as it is. Raise recorder, and give what is new another name", path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// released reports whether a version of this library was released.
func released(t *testing.T) bool {
	t.Helper()
	tags, err := exec.Command("git", "tag", "--list", "v*").Output()
	if err != nil {
		t.Fatalf("whether a version was released is not known without git: %v", err)
	}
	return len(tags) > 0
}

func TestAReleasedTranscriptStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v1", "handoff.txt")
	want := func(text string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("the transcript is %q, %v; want %q", got, err, text)
		}
	}
	if err := keep(path, "new", true); err != nil { // a new one may always come
		t.Fatal(err)
	}
	want("new")
	if err := keep(path, "new", true); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := keep(path, "other", true); err == nil {
		t.Error("a released transcript was changed")
	}
	want("new")
	if err := keep(path, "other", false); err != nil {
		t.Error(err)
	}
	want("other")
}

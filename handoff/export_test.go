package handoff

import (
	"context"
	"time"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// What the tests put between the machines instead of sockets.

type Frames = frames

const (
	MaxPageSize  = maxPageSize
	PageWindow   = pageWindow
	WriteTimeout = writeTimeout
	MaxReason    = maxReason
	MaxDuration  = maxDuration

	MaxConnections = maxConnections
	MaxLeaving     = maxLeaving
	MaxShare       = maxShare
	MaxUserShare   = maxUserShare
	MaxWatchers    = maxWatchers
	WatchQueue     = watchQueue
	MaxCancelled   = maxCancelled
	CancelGrace    = cancelGrace
	DebtLimit      = debtLimit
	AllowedAtOnce  = allowedAtOnce

	MaxAckReason = maxAckReason

	NoiseBurst    = noiseBurst
	NoiseInterval = noiseInterval
	NoiseUsers    = noiseUsers
)

func (s *Server) Serve(conn Frames, peer *scm.Peer) {
	s.serve(&guest{link: newLink(conn, 0), peer: peer})
}

func (s *Server) SpawnOn(conn Frames) (*Spawned, error) { return s.spawn(conn) }

func ConnectOn(ctx context.Context, conn Frames, cfg *SuccessorConfig) (*Taking, error) {
	return connect(ctx, conn, cfg)
}

func QueryStatusOn(ctx context.Context, conn Frames) (*Status, error) {
	return queryStatus(ctx, conn)
}

func WatchOn(ctx context.Context, conn Frames, each func(Event) error) error {
	return watch(ctx, conn, each)
}

func CommandOn(ctx context.Context, conn Frames, r *pb.ControlRequest) (*Outcome, error) {
	return command(ctx, conn, r)
}

func CheckOn(ctx context.Context, conn Frames, who *Candidate) (*Rehearsal, error) {
	return check(ctx, conn, who)
}

func ChangesSomething(r *pb.ControlRequest) bool { return changes(r) }

func RefusedFromWire(w *pb.Refuse) error { return refusedFromWire(w) }

type Noise = noise

// Admit reports whether a line about somebody of that user would be written.
func (n *noise) Admit(now time.Time, uid int64) bool {
	_, ok := n.admit(now, uid)
	return ok
}

// Guest is what a test says of a connection to the control socket.
type Guest struct {
	Peer    *scm.Peer
	Part    part
	Leaving bool
	Stalled time.Duration
}

const (
	Waiting  = waiting
	Informed = informed
	Served   = served
)

// FirstToLeave is which of the guests has to leave, who came in this order, -1 for none.
func FirstToLeave(guests []Guest) int {
	began := time.Now()
	all, numbers := make(crowd), make(map[*guest]int)
	for i, of := range guests {
		g := &guest{link: new(link), peer: of.Peer, part: of.Part, leaving: of.Leaving, since: began.Add(time.Duration(i))}
		if of.Stalled > 0 {
			g.sending.Store(began.Add(-of.Stalled).UnixNano())
		}
		all[g] = struct{}{}
		numbers[g] = i
	}
	if first := all.first(); first != nil {
		return numbers[first]
	}
	return -1
}

package handoff

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade/scm"
)

// Limits of the protocol, see docs/protocol.md.
const (
	// Version is the highest protocol version that this package speaks.
	Version = 1
	// MaxName is the longest name of a descriptor or an instance, in bytes.
	MaxName = 200
	// MaxStatus is the longest status of a Progress, in bytes.
	MaxStatus = 1000
	// MaxDescriptors is how many descriptors one manifest may have: far above
	// what a service has, and far below what would exhaust a receiver.
	MaxDescriptors = 1 << 17

	// maxRequest bounds what a client may say at once before its attempt begins, in
	// bytes, and maxListed the versions and features that it may list: far above what
	// a Hello or a request needs, and far below what many clients could exhaust the
	// owner with.
	maxRequest = 64 << 10
	maxListed  = 64

	// maxUnclaimedNames is how many names of unclaimed descriptors Ready lists,
	// and how many of them are logged.
	maxUnclaimedNames = 100

	// maxPageSize bounds the encoded descriptors of a manifest page, and
	// pageWindow the pages that may be unacknowledged. Both together stay
	// below half of the send buffer that package scm sets, so that Abort and
	// Commit can be written whatever the successor does.
	maxPageSize = 64 << 10
	pageWindow  = 2
)

// Kind says what a descriptor is. The zero Kind is no valid one.
type Kind uint8

// The kinds of descriptors.
const (
	KindListener   Kind = iota + 1 // a listening socket of the service
	KindPacketConn                 // a datagram socket of the service
	KindConn                       // one established connection
	KindFile                       // anything that is not a socket
	KindState                      // a state that the predecessor has written
	KindControl                    // the control listener
	KindLock                       // the lock of the control path
	KindAlive                      // tells the end of a generation: a pipe or a pidfd
)

var kindNames = [...]string{"", "listener", "packet conn", "conn", "file", "state", "control", "lock", "alive"}

// String returns the kind as status and errors print it.
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return "kind " + strconv.Itoa(int(k))
	}
	return kindNames[k]
}

// Moment says when a state was written, or is to be.
type Moment uint8

// The moments.
const (
	AtOffer  Moment = iota + 1 // before the first page of the offer
	AtCommit                   // between Ready and Commit
)

var momentNames = [...]string{"", "at offer", "at commit"}

// String returns the moment as errors and logs print it.
func (m Moment) String() string {
	if m == 0 || int(m) >= len(momentNames) {
		return "moment " + strconv.Itoa(int(m))
	}
	return momentNames[m]
}

// State is where a process stands in the life of a service.
type State uint8

// The states of a process. Owner, Offering and Committing own; the others do
// not.
const (
	StateCandidate  State = iota + 1 // takes over and has not been given the service yet
	StateHeir                        // its predecessor died after Received; owns at Ready
	StateOwner                       // owns
	StateOffering                    // owns, an attempt is under way
	StateCommitting                  // owns, between Ready and Commit
	StateStandby                     // has sent Commit and not read CommitAck
	StateProbation                   // its successor owns, and it can resume
	StateYielding                    // has rolled back, and waits for its predecessor to resume
	StateDraining                    // has retired and finishes what it has
	StateOut                         // takes no part any more
)

var stateNames = [...]string{
	"", "candidate", "heir", "owner", "offering", "committing",
	"standby", "probation", "yielding", "draining", "out",
}

// String returns the state's name as the documentation spells it.
func (s State) String() string {
	if s == 0 || int(s) >= len(stateNames) {
		return "state " + strconv.Itoa(int(s))
	}
	return stateNames[s]
}

// sentences are what the event says that leads to a state.
var sentences = [...]string{
	"", "this process is to take over", "the predecessor has died: this process will own the service once it is ready",
	"this process owns the service", "a successor is taking over", "the successor is ready: the service is being committed to it",
	"the service was committed to the successor", "the successor owns: this process stands by",
	"this process has rolled back: the predecessor is to own again", "this process has retired, and finishes what it has",
	"this process is out",
}

// Owns reports whether a process in this state owns the service.
func (s State) Owns() bool {
	return s == StateOwner || s == StateOffering || s == StateCommitting
}

// Process says who somebody is. It is what that process says of itself and
// proves nothing: credentials do.
type Process struct {
	Instance     string // unique to one run of the program
	BuildVersion string // the program's version; may be empty
	Epoch        uint64 // the epoch of its deployment; 0 for none
	Generation   uint64 // 0 while it has none
	PID          int    // in its own pid namespace; 0 for unknown
}

// String names the process for logs and errors.
func (p Process) String() string {
	var b strings.Builder
	b.WriteString("instance ")
	b.WriteString(strconv.Quote(p.Instance))
	if p.Generation != 0 {
		b.WriteString(", generation " + strconv.FormatUint(p.Generation, 10))
	}
	if p.BuildVersion != "" {
		b.WriteString(", version " + p.BuildVersion)
	}
	if p.PID != 0 {
		b.WriteString(", pid " + strconv.Itoa(p.PID))
	}
	return b.String()
}

// LogValue implements [slog.LogValuer].
func (p Process) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("instance", p.Instance),
		slog.Uint64("generation", p.Generation),
		slog.String("version", p.BuildVersion),
		slog.Int("pid", p.PID),
	)
}

// ProbationEnd is what an owner answers when its probation is over and nobody
// has decided before.
type ProbationEnd uint8

// The answers.
const (
	SettleAtEnd   ProbationEnd = iota // it stays
	RollbackAtEnd                     // it gives the service back
)

// String returns the answer as CROSSFADE_AT_PROBATION_END spells it.
func (e ProbationEnd) String() string {
	switch e {
	case SettleAtEnd:
		return "settle"
	case RollbackAtEnd:
		return "rollback"
	default:
		return "probation end " + strconv.Itoa(int(e))
	}
}

// Probation is the time in which an owner can still give the service back, and
// loses it by dying.
type Probation struct {
	Predecessor Process      // who stands by
	Until       time.Time    // when the owner will be asked to decide
	AtEnd       ProbationEnd // what it will answer then
}

// Candidate is a process that asks to take over, as policies see it.
type Candidate struct {
	Process
	Force bool // it takes over even from an owner of a higher epoch
	// Probation is how long it will be on probation, and AtProbationEnd what
	// it says that it will answer then.
	Probation      time.Duration
	AtProbationEnd ProbationEnd
	Features       []string  // the optional features that it offers
	Peer           *scm.Peer // its kernel credentials; nil for a process that Upgrade started
}

// Control is where the control socket is. It travels with the socket, because
// a handoff never binds the path again (I9).
type Control struct {
	Path     string // what clients dial
	Bound    string // the name it was bound to before the rename to Path
	Dev, Ino uint64 // of Path: only who carries them may unlink it
	Backlog  int    // of the first owner, for every later listen(2)
}

// UnixPath is the file of a unix socket that the service listens on.
type UnixPath struct {
	Path     string // what clients dial
	Bound    string // the name it was bound to
	Dev, Ino uint64 // of Path: only who carries them may unlink it
}

// Descriptor is one named descriptor of a manifest.
type Descriptor struct {
	ID       uint64 // unique within one process, never reused by it
	Name     string
	Kind     Kind
	Network  string // tcp, udp, unix, ...; empty for files
	Address  string // local address or path
	Identity scm.Identity
	UnixPath *UnixPath   // nil unless its owner unlinks a path for it
	Alive    *Generation // of KindAlive: whose end it tells; nil for the others
	Moment   Moment      // of a KindState; else 0
	FD       *scm.FD
}

// Generation is a process that has owned the service and has not gone yet.
type Generation struct {
	Process Process
	State   State     // draining, or probation as long as it can come back
	Since   time.Time // when it came into that state
	// Connections is how many it had open when it last told, which it tells its
	// own successor only; -1 if it has not.
	Connections int
	// Deadline is when its drain should end; the zero time if it has no limit, or
	// has not begun.
	Deadline time.Time
	// Limit is how long the drain of a process that has not retired yet may last,
	// from its Retired on; 0 for any time, and when it has.
	Limit time.Duration
}

// String names the generation, what it does and until when, for logs and errors.
func (g Generation) String() string {
	s := fmt.Sprintf("%v, %v for %v", g.Process, g.State, time.Since(g.Since).Round(time.Millisecond))
	if g.Connections >= 0 {
		s += fmt.Sprintf(", %d connections when it last told", g.Connections)
	}
	switch left := time.Until(g.Deadline).Round(time.Millisecond); {
	case g.Limit > 0:
		return s + fmt.Sprintf(", for at most %v once it has retired", g.Limit)
	case g.Deadline.IsZero():
		return s + ", without a limit"
	case left < 0:
		return s + fmt.Sprintf(", overdue since %v", -left)
	default:
		return s + fmt.Sprintf(", for at most %v more", left)
	}
}

// Offer is everything that a handoff carries, as it was when it began. The
// descriptors remain the property of the [Service] that made it, which keeps
// them open until the attempt has ended.
type Offer struct {
	Control     *Control // nil if the owner has no control path
	Descriptors []Descriptor
	// Pending is how many descriptors there will be besides, for which the
	// program takes its time. Complete, nil if there are none, makes them; it is
	// called at most once, when the successor has room for all. It must return
	// when ctx ends.
	Pending  int
	Complete func(ctx context.Context) ([]Descriptor, error)
}

// ServiceManager is what the main process of a unit needs to speak to systemd.
type ServiceManager struct {
	NotifySocket string        // where it listens
	Watchdog     time.Duration // how long it waits for a sign of life; 0: it wants none
	FDStore      bool          // the service's sockets are kept in its store
	FDStoreMax   int           // how many that holds; 0 if it does not say
}

// Changes is what has changed since the offer was made.
type Changes struct {
	Added   []Descriptor
	Removed []uint64 // ids of offered descriptors
}

// Origin says how a descriptor came into a process.
type Origin uint8

// The origins of descriptors.
const (
	OriginAdded     Origin = iota + 1 // this process opened or added it
	OriginInherited                   // it came from the predecessor and was asked for
	OriginUnclaimed                   // it came from the predecessor and nobody has asked for it
)

var originNames = [...]string{"", "added", "inherited", "unclaimed"}

// String returns the origin as status prints it.
func (o Origin) String() string {
	if o == 0 || int(o) >= len(originNames) {
		return "origin " + strconv.Itoa(int(o))
	}
	return originNames[o]
}

// DescriptorStatus is one descriptor in a [Status].
type DescriptorStatus struct {
	Name    string
	Kind    Kind
	Network string
	Address string
	Origin  Origin
}

// Status is how a process stands. A State, Kind or Origin of 0 in one is a value
// that this version does not know.
type Status struct {
	Process     Process
	State       State
	Since       time.Time    // when it came into that state
	Ready       bool         // whether it has called Ready
	Settled     bool         // whether its predecessor cannot come back, or it has had none
	Attempt     *Attempt     // the handoff under way, or nil
	Probation   *Probation   // this process's own as an owner, nil once it is settled
	LastFailure *Failure     // the last attempt that failed, or nil
	Draining    []Generation // older generations that have not gone yet, the oldest first
	Warnings    []string     // trouble that a person should know of
	Descriptors []DescriptorStatus
}

// Event is a change in a process's part.
type Event struct {
	At      time.Time
	Process Process
	State   State    // from now on
	Text    string   // what has happened, one sentence
	Attempt *Attempt // that it belongs to, or nil
	Failure *Failure // how that attempt has failed, nil if it has not
}

// Attempt is a handoff that has not ended.
type Attempt struct {
	Successor Process
	Step      string    // what is waited for, named like the messages of the protocol
	Status    string    // the successor's last Progress
	Began     time.Time // when the attempt began
	Deadline  time.Time // of the step; zero if it has none
}

// Failure is how an attempt failed.
type Failure struct {
	Successor Process
	Step      string
	Reason    string
	At        time.Time
	Err       error `json:"-"` // the same for errors.Is; nil if another process has told
}

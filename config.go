package crossfade

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/generations"
	"github.com/crossfade-go/crossfade/internal/pidfile"
	"github.com/crossfade-go/crossfade/internal/rendezvous"
)

// The defaults of [Config].
const (
	DefaultSocketMode      = 0o600
	DefaultDialTimeout     = 5 * time.Second
	DefaultReadyTimeout    = time.Minute
	DefaultMaxReadyTimeout = 10 * time.Minute
	DefaultCommitTimeout   = 10 * time.Second
	DefaultMaxProbation    = 10 * time.Minute
	DefaultMaxDraining     = 4
)

// helloTimeout is how long an authorised client of the control socket may take
// for its first message.
const helloTimeout = 5 * time.Second

// Successor is a process that asks to take over, as [Config.AcceptSuccessor]
// sees it.
type Successor = handoff.Candidate

// Event is a change in this process's part, as [Config.OnEvent] gets it.
type Event = handoff.Event

// ProbationEnd is what an owner answers when its probation is over and nobody
// has decided before.
type ProbationEnd = handoff.ProbationEnd

// The values of [Config.AtProbationEnd].
const (
	SettleAtEnd   = handoff.SettleAtEnd   // it stays
	RollbackAtEnd = handoff.RollbackAtEnd // it gives the service back
)

// Config configures an [Upgrader]. The zero value and nil work; New reads it
// once and never changes it. A duration of more than 50 years means as many.
type Config struct {
	// Socket is the path of the control socket. Empty: the environment's
	// CROSSFADE_SOCKET; if that is empty too, only successors that Upgrade
	// starts can take over. The deploy tool, which sets CROSSFADE_INSTANCE too,
	// starts a process for the socket that it names: New fails if this is another.
	// A relative path is resolved once, by New. At most 104 bytes on Linux.
	Socket string
	// SocketMode is the mode of the socket and its lock file (default 0600),
	// in force before anyone can connect.
	SocketMode fs.FileMode
	// SocketGroup is the group of the socket and its lock file, by name or
	// number. Its members may connect too, given a SocketMode of 0660.
	SocketGroup string
	// ReadGroup is a group whose members may ask for the status, watch, and rehearse
	// a handoff, by name or number. SocketMode has to let them connect: without a
	// SocketGroup the socket is of this group, so 0660 does; with both, what is left
	// is 0666, where the credentials alone decide.
	ReadGroup string
	// TrustDirectory takes everybody for trusted who can write to the directory of
	// Socket. Without it New refuses one that others than this user, root and the
	// members of SocketGroup can change, because they could put their own socket
	// there: [ErrUnsafePath]. It is for a volume whose rights nobody can change and
	// nobody else can reach, as an emptyDir of Kubernetes is. Also
	// CROSSFADE_TRUST_DIRECTORY=1, which [Dial] heeds too. The directories above are
	// checked in any case.
	TrustDirectory bool

	// Instance names this run of the program in every status and log: 1 to
	// 200 bytes. Default: CROSSFADE_INSTANCE, else random.
	Instance string
	// BuildVersion is the program's version, shown everywhere.
	BuildVersion string
	// Epoch orders deployments: an owner refuses a successor of a lower epoch
	// unless that one's environment has CROSSFADE_FORCE=1. Default:
	// CROSSFADE_EPOCH, else 0.
	Epoch uint64

	// DialTimeout is how long New waits for a silent owner, at each step
	// (default 5 s).
	DialTimeout time.Duration
	// Wait is how long New queues while the owner is busy with another successor,
	// on probation itself, or has too many older ones that drain. Default 0: not at all. An owner that is not ready yet is
	// always waited for, as long as New's context allows.
	Wait time.Duration
	// ReadyTimeout is how long a successor may take from the offer to Ready
	// (default 1 min).
	ReadyTimeout time.Duration
	// MaxReadyTimeout is how far Progress may extend that, counted from the
	// offer (default 10 min, at least ReadyTimeout).
	MaxReadyTimeout time.Duration
	// CommitTimeout bounds the time from a successor's Ready to Commit, in
	// which the registry stands still (default 10 s).
	CommitTimeout time.Duration
	// Probation is how long, once this process owns, its predecessor stands by:
	// it resumes if this process dies, or calls Rollback. Until then the owner
	// hands over to nobody. As an owner it is also what a successor gets that
	// asks for none. CROSSFADE_PROBATION, which belongs to one deployment,
	// comes before it. Default 0: the predecessor retires at once.
	Probation time.Duration
	// MaxProbation is the longest probation that a successor may ask this
	// process for (default 10 min, at least Probation).
	MaxProbation time.Duration
	// AtProbationEnd is what this process does when its probation is over and
	// neither Settle nor Rollback was called. CROSSFADE_AT_PROBATION_END comes
	// before it. Default: SettleAtEnd.
	AtProbationEnd ProbationEnd
	// Suspend and Resume guard what only one process may use at a time: a
	// database that is locked, a queue's consumer, a device. Set both or none.
	//
	// Suspend lets go of it, before the successor's Ready returns, and before a
	// rollback. It is called when this process accepts nothing, on any of its
	// sockets, so that no work arrives that needs it. If it returns an error it
	// must have undone what it did: the handoff then fails. ctx ends after four
	// fifths of CommitTimeout, or when the successor has gone; a Suspend that does
	// not heed it holds the service up for as long as it takes.
	//
	// Suspend may be called as soon as this process owns: when Ready has returned
	// nil, but also before or while the program opens what is guarded. It then has
	// to wait for that, or to see to it that nothing is opened before Resume. What
	// was opened after Suspend has returned is in two processes' hands.
	//
	// Resume takes it back, before this process accepts again: after a handoff
	// that has failed, after a rollback, after a successor's death. While it
	// returns an error it is called again, about once a second, and this process
	// accepts nothing. A successor opens what is guarded when Ready has returned
	// nil; neither is called for that. ctx ends after CommitTimeout, or when the
	// next handoff needs the turn; a Resume that does not heed it holds up both.
	//
	// Neither may call Stop, nor change the registry, nor wait for somebody who
	// does: both wait for the hook.
	Suspend, Resume func(ctx context.Context) error
	// DrainTimeout is how long this process may go on after Exit, so that no old
	// code runs for ever: it ends the contexts of DrainContext. A process that was
	// replaced, and exits not within 2 s from then on, is ended: what is still
	// open is logged, and it exits with the status [ExitDrainTimeout]. After Stop
	// only the contexts end. Default 0: no limit.
	DrainTimeout time.Duration
	// OnDrainTimeout is called instead of that exit, once, in a goroutine of its
	// own. The process goes on when it returns; but it is overdue, and an owner
	// with KillOverdue ends it.
	OnDrainTimeout func()
	// MaxDraining is how many processes may drain at the same time (default 4, at
	// most 256, which is what the protocol lets a successor be told of): a
	// successor is refused (ErrDraining) if more older ones than MaxDraining-1
	// have not gone yet, since this one would be the next to drain. With 1, there
	// is no handoff before the previous predecessor has exited.
	MaxDraining int
	// KillOverdue has this process, once it owns and is settled, end older ones
	// that are still there 5 s after the end of their DrainTimeout, by SIGKILL, so
	// that also a hung one goes. It takes a pidfd that the other has opened of
	// itself, so it is never another process: Linux 5.3 or later, the other in
	// this pid namespace or one below it, and the predecessor of the same user or
	// of root. Elsewhere they are only logged.
	KillOverdue bool

	// AcceptSuccessor is the owner's policy: an error refuses the successor
	// with its text. Several may run at once; ctx ends after a few seconds. It
	// must not call Stop, which waits for it.
	AcceptSuccessor func(ctx context.Context, s Successor) error
	// Authorize decides by the kernel's credentials who may do what on the control
	// socket: AccessRead before a byte of a client is read, AccessChange when it asks
	// for more. It also decides whether New may take over from the owner that it has
	// found: AccessOwner. An error denies; its text goes to this process's log, and
	// for AccessOwner into New's error. It may be called several times for one peer,
	// and concurrently.
	//
	// Default: the same effective user, root, the members of SocketGroup, and for
	// AccessRead those of ReadGroup. The overflow uid and gid of user_namespaces(7)
	// are nobody's. peer is nil on a system that does not tell credentials; there the
	// default relies on the file mode. A process that Upgrade has started is the
	// owner's own, and neither asks about the other.
	Authorize func(peer *Peer, access Access) error
	// RequireAllClaimed makes Ready fail if anything that the predecessor
	// offered was not asked for, so that a forgotten listener does not
	// disappear silently.
	RequireAllClaimed bool

	// Command makes what Upgrade starts; ctx bounds the making only, and Stop
	// waits for it. Default: os.Args[0] as New found it, made absolute but with
	// its symbolic links not resolved, the same arguments, working directory
	// and environment, and inherited output. Below a service manager it may
	// become that one's child: see Upgrade.
	Command func(ctx context.Context) (*exec.Cmd, error)
	// PIDFile is written when this process becomes the owner and removed by
	// the owner that stops for good.
	PIDFile string
	// ListenConfig opens what Listen and ListenPacket do not find among the
	// inherited. Its keep-alive settings hold for inherited listeners too.
	ListenConfig *net.ListenConfig
	// KeepClosed leaves what Listen and ListenPacket have returned in the
	// registry when the program closes it: clients queue up for the next
	// successor, and the path of a unix socket stays until Stop. Default: Close
	// takes it out, and the successor does not get it.
	KeepClosed bool
	// IgnoreServiceManager leaves systemd, and what it has put into the environment,
	// alone. Default: New takes that out of the environment, and the Upgrader tells
	// the manager how the service stands, see the section on systemd of the package
	// documentation.
	IgnoreServiceManager bool
	// FDStore has the manager keep the registry's listeners, packet conns and files
	// while this process owns and is ready, so that they survive a crash of the only
	// process, with the clients in their queues. The unit needs
	// FileDescriptorStoreMax=. From systemd 254 on that is enough, and turns this on
	// by itself.
	FDStore bool
	// Watchdog is asked whether this process works, twice within WatchdogSec= of the
	// unit, until Exit. With an error, and as long as it does not return, the
	// manager hears no sign of life, and does what the unit says for that. ctx ends
	// with the time that it may take. Default: this process works as long as it runs.
	Watchdog func(ctx context.Context) error
	// OnEvent gets every change of this process's state, and what it is due to,
	// one at a time and in their order, in a goroutine of its own: it may block
	// and call any method. The first may come before New has returned. What has
	// not been delivered when the process exits is lost.
	OnEvent func(event Event)
	// Logger gets what an operator should know of (default slog.Default).
	Logger *slog.Logger
	// Disabled turns handoffs off, for development, tests and systems without
	// them: Listen opens, Ready is nil, Upgrade says errors.ErrUnsupported.
	Disabled bool
}

// populate returns a copy with the defaults filled in, or what is wrong.
func (c *Config) populate(env environment) (*Config, error) {
	var p Config
	if c != nil {
		p = *c
	}
	for _, d := range p.durations() {
		*d = min(*d, maxDuration)
	}
	setDefault(&p.Socket, env.socket)
	setDefault(&p.SocketMode, DefaultSocketMode)
	setDefault(&p.Instance, env.instance)
	setDefault(&p.Instance, rand.Text())
	setDefault(&p.Epoch, env.epoch)
	p.TrustDirectory = p.TrustDirectory || env.trustDirectory
	setDefault(&p.DialTimeout, DefaultDialTimeout)
	setDefault(&p.ReadyTimeout, DefaultReadyTimeout)
	setDefault(&p.MaxReadyTimeout, max(DefaultMaxReadyTimeout, p.ReadyTimeout))
	setDefault(&p.CommitTimeout, DefaultCommitTimeout)
	if env.atProbationEnd != nil {
		p.AtProbationEnd = *env.atProbationEnd
	}
	setDefault(&p.MaxProbation, max(DefaultMaxProbation, p.Probation))
	setDefault(&p.MaxDraining, DefaultMaxDraining)
	if p.ListenConfig == nil {
		p.ListenConfig = new(net.ListenConfig)
	}
	if p.Logger == nil {
		p.Logger = slog.Default()
	}
	if p.Authorize == nil {
		authorize, err := defaultAuthorize(p.SocketGroup, p.ReadGroup)
		if err != nil {
			return nil, err
		}
		p.Authorize = authorize
		p.warnUnmapped()
	}
	if p.Command == nil {
		command, err := defaultCommand()
		if err != nil {
			return nil, err
		}
		p.Command = command
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	if err := p.resolvePaths(); err != nil {
		return nil, err
	}
	return &p, p.checkDeployment(env)
}

// checkDeployment refuses another control path than the one that this process was
// started for. Whoever has started it watches that one, and would take it for hung
// while it takes over elsewhere.
func (c *Config) checkDeployment(env environment) error {
	if env.fd >= 0 || env.instance == "" || env.socket == "" || samePath(c.Socket, env.socket) {
		return nil
	}
	return fmt.Errorf("this process was started for CROSSFADE_SOCKET=%s, and its Config.Socket is %s: "+
		"leave Config.Socket empty, or give both the same path", env.socket, c.Socket)
}

// samePath reports whether two paths lead to one name in one directory.
func samePath(a, b string) bool {
	b, err := filepath.Abs(b)
	if err != nil || a == b {
		return err == nil
	}
	first, err := os.Stat(filepath.Dir(a))
	second, err2 := os.Stat(filepath.Dir(b))
	return err == nil && err2 == nil && os.SameFile(first, second) && filepath.Base(a) == filepath.Base(b)
}

// maxDuration is what a duration that means "for ever" is taken for: with it one
// can still calculate.
const maxDuration = 50 * 365 * 24 * time.Hour

// durations are the fields that are durations, by their names.
func (c *Config) durations() map[string]*time.Duration {
	return map[string]*time.Duration{
		"DialTimeout":     &c.DialTimeout,
		"Wait":            &c.Wait,
		"ReadyTimeout":    &c.ReadyTimeout,
		"MaxReadyTimeout": &c.MaxReadyTimeout,
		"CommitTimeout":   &c.CommitTimeout,
		"Probation":       &c.Probation,
		"MaxProbation":    &c.MaxProbation,
		"DrainTimeout":    &c.DrainTimeout,
	}
}

// resolvePaths makes paths independent of a later change of the working
// directory.
func (c *Config) resolvePaths() error {
	for _, path := range []*string{&c.Socket, &c.PIDFile} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	return nil
}

func (c *Config) validate() error {
	if err := handoff.CheckName(c.Instance); err != nil {
		return fmt.Errorf("invalid Config.Instance: %w", err)
	}
	for name, value := range c.durations() {
		if *value < 0 {
			return fmt.Errorf("invalid Config.%s: %v is negative", name, *value)
		}
	}
	switch {
	case c.MaxDraining < 0:
		return fmt.Errorf("invalid Config.MaxDraining: %d is negative", c.MaxDraining)
	case c.MaxDraining > generations.Max: // the offer lists all that may drain after it
		return fmt.Errorf("invalid Config.MaxDraining: %d are more than the %d that a successor takes note of", c.MaxDraining, generations.Max)
	}
	if c.MaxReadyTimeout < c.ReadyTimeout {
		return fmt.Errorf("invalid Config.MaxReadyTimeout: %v is below ReadyTimeout, %v", c.MaxReadyTimeout, c.ReadyTimeout)
	}
	if c.MaxProbation < c.Probation {
		return fmt.Errorf("invalid Config.MaxProbation: %v is below Probation, %v", c.MaxProbation, c.Probation)
	}
	if c.AtProbationEnd > RollbackAtEnd {
		return fmt.Errorf("invalid Config.AtProbationEnd: %v", c.AtProbationEnd)
	}
	if (c.Suspend == nil) != (c.Resume == nil) {
		return errors.New("invalid Config: Suspend and Resume come together, and one of them is missing")
	}
	if c.Socket != "" {
		if err := rendezvous.CheckPath("unix", c.Socket); err != nil {
			return fmt.Errorf("invalid Config.Socket: %w", err)
		}
	}
	if c.PIDFile != "" {
		if err := pidfile.Check(c.PIDFile); err != nil {
			return fmt.Errorf("invalid Config.PIDFile: %w", err)
		}
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// place is where the control socket is and what rights it has.
func (c *Config) place() rendezvous.Place {
	return rendezvous.Place{
		Path: c.Socket, Mode: c.SocketMode, Group: c.SocketGroup, ReadGroup: c.ReadGroup, TrustDirectory: c.TrustDirectory,
	}
}

func (c *Config) process() handoff.Process {
	return handoff.Process{Instance: c.Instance, BuildVersion: c.BuildVersion, Epoch: c.Epoch, PID: os.Getpid()}
}

// defaultCommand is this program as it was started: the path that the caller
// used, so that a symbolic link which has been switched leads to the new code.
// os.Executable would name the old file.
func defaultCommand() (func(context.Context) (*exec.Cmd, error), error) {
	if len(os.Args) == 0 {
		return func(context.Context) (*exec.Cmd, error) {
			return nil, errors.New("the program was started without arguments: set Config.Command")
		}, nil
	}
	path, args := os.Args[0], slices.Clone(os.Args)
	if !strings.ContainsRune(path, filepath.Separator) {
		found, err := exec.LookPath(path)
		if err != nil {
			return func(context.Context) (*exec.Cmd, error) {
				return nil, fmt.Errorf("this program cannot be started again, set Config.Command: %w", err)
			}, nil
		}
		path = found
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	return func(context.Context) (*exec.Cmd, error) {
		return &exec.Cmd{Path: path, Args: args, Dir: dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}, nil
	}, nil
}

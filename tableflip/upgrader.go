package tableflip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-go/crossfade"
)

// DefaultUpgradeTimeout is how long an upgrade may take if Options do not say.
const DefaultUpgradeTimeout time.Duration = time.Minute

// ErrNotSupported is the error of New on Windows and other systems where one
// process cannot pass a socket to another. It matches [errors.ErrUnsupported].
var ErrNotSupported = fmt.Errorf("tableflip: upgrades need sockets that can be passed between processes: %w", errors.ErrUnsupported)

// Options configure an [Upgrader]. The zero value works.
type Options struct {
	// UpgradeTimeout is how long a new process may take from its start to
	// Ready. One that takes longer is killed and Upgrade fails. Zero and less
	// mean DefaultUpgradeTimeout.
	UpgradeTimeout time.Duration
	// PIDFile gets the pid of the process that serves. A relative path is
	// resolved by New. Empty: none.
	PIDFile string
	// ListenConfig opens what Listen and ListenPacket do not find among the
	// inherited; nil is an empty one.
	ListenConfig *net.ListenConfig
}

// Upgrader replaces this process by a new one, or is on its way to take over
// from an old one. Its methods, and those of Fds, may be called concurrently.
type Upgrader struct {
	*Fds

	up    *crossfade.Upgrader
	limit time.Duration
	ready atomic.Bool
}

// initialDir is where a new process starts, as in the original, wherever the
// program has gone meanwhile.
var initialDir, errInitialDir = os.Getwd()

// only keeps a second Upgrader out: the program's Fds would be divided.
var only struct {
	sync.Mutex
	taken bool
}

// New returns the process's one Upgrader, with everything that its predecessor
// has handed over, if there is one. It blocks until that has arrived, at most
// for the UpgradeTimeout.
//
// Only the first call that succeeds does. Errors: ErrNotSupported; those of
// [crossfade.New], after which the program must exit and not start afresh.
func New(opts Options) (*Upgrader, error) {
	if !supported() {
		return nil, ErrNotSupported
	}
	only.Lock()
	defer only.Unlock()
	if only.taken {
		return nil, errors.New("tableflip: this process has its Upgrader already")
	}
	u, err := newUpgrader(opts)
	if err != nil {
		return nil, err
	}
	only.taken = true
	return u, nil
}

func newUpgrader(opts Options) (*Upgrader, error) {
	if errInitialDir != nil {
		return nil, fmt.Errorf("tableflip: the directory that new processes start in is unknown: %w", errInitialDir)
	}
	if opts.UpgradeTimeout <= 0 {
		opts.UpgradeTimeout = DefaultUpgradeTimeout
	}
	if opts.ListenConfig == nil {
		opts.ListenConfig = new(net.ListenConfig)
	}
	if opts.PIDFile != "" {
		path, err := filepath.Abs(opts.PIDFile)
		if err != nil {
			return nil, fmt.Errorf("tableflip: pid file: %w", err)
		}
		opts.PIDFile = path
	}
	ctx, cancel := deadline(opts.UpgradeTimeout, "the predecessor's offer did not arrive")
	defer cancel()
	up, err := crossfade.New(ctx, &crossfade.Config{
		ReadyTimeout: opts.UpgradeTimeout,
		PIDFile:      opts.PIDFile,
		ListenConfig: opts.ListenConfig,
		KeepClosed:   true,
		Command:      command,
	})
	if err != nil {
		return nil, err
	}
	return &Upgrader{Fds: &Fds{up: up, lc: opts.ListenConfig}, up: up, limit: opts.UpgradeTimeout}, nil
}

// supported lists the systems on which package crossfade passes descriptors.
func supported() bool {
	switch runtime.GOOS {
	case "darwin", "dragonfly", "freebsd", "linux", "netbsd", "openbsd":
		return true
	}
	return false
}

// deadline is a context whose cause says what did not happen in time.
func deadline(limit time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("%s within %v: %w", what, limit, crossfade.ErrTimeout))
}

// command is what Upgrade starts: this program, looked up at the time of the
// call, so that a PATH, a symbolic link or os.Args which the program has changed
// since counts.
func command(context.Context) (*exec.Cmd, error) {
	if len(os.Args) == 0 {
		return nil, errors.New("os.Args is empty: it is not known which program to start")
	}
	path := os.Args[0]
	if strings.ContainsRune(path, filepath.Separator) && !filepath.IsAbs(path) {
		path = filepath.Join(initialDir, path)
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("this program cannot be started again (a program that is run by \"go run\" cannot): %w", err)
	}
	return &exec.Cmd{
		Path: path, Args: slices.Clone(os.Args), Dir: initialDir,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}, nil
}

// Ready says that this process can serve. On nil it does: its listeners deliver,
// and what it has not asked for is closed. An error means that it does not and
// never will, that the predecessor serves on, and that the program should exit.
//
// Further calls return the first one's result.
func (u *Upgrader) Ready() error {
	if err := u.up.Ready(context.Background()); err != nil {
		return err
	}
	u.ready.Store(true)
	return nil
}

// Exit returns a channel that is closed when this process should finish what is
// open and exit: a new process has taken over, the attempt to take over has
// failed, or Stop was called.
func (u *Upgrader) Exit() <-chan struct{} { return u.up.Exit() }

// Stop ends upgrades, one that is running too, whose process is killed, and
// closes Exit. If no upgrade had succeeded before, the paths of unix sockets in
// Fds are unlinked, because the program as a whole is taken to stop. It returns
// when that is done, and may be called any number of times.
func (u *Upgrader) Stop() { u.up.Stop() }

// HasParent reports whether this process has taken over from another, or is
// about to. It is fixed when New returns.
func (u *Upgrader) HasParent() bool { return u.up.HasPredecessor() }

// WaitForParent returns nil when the predecessor has exited, at once if there
// is none, or ctx.Err().
func (u *Upgrader) WaitForParent(ctx context.Context) error {
	if err := u.up.WaitForPredecessor(ctx); err != nil {
		return ctx.Err() // unwrapped, as programs may compare it
	}
	return nil
}

// Upgrade starts this program anew and returns nil when the new process has
// taken over: Exit is closed or about to be. On an error this process serves on
// and the new one has ended.
//
// Errors: one upgrade runs at a time; before Ready, before the predecessor has
// exited, after Stop and after an upgrade there is none. Their texts are the
// original's, because programs compare them, and they match the errors of
// package crossfade: ErrBusy, ErrNotReady, ErrStopped, ErrRetired. Else those
// of [crossfade.Upgrader.Upgrade]: ErrTimeout after the UpgradeTimeout, ErrLost
// with the exit status of a process that gave up, ErrAborted with its reason.
func (u *Upgrader) Upgrade() error {
	if err := u.refusal(); err != nil {
		return err
	}
	ctx, cancel := deadline(u.limit, "the new process was not ready")
	defer cancel()
	err := u.up.Upgrade(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, crossfade.ErrOutcomeUnknown) && errors.Is(u.up.Err(), crossfade.ErrRetired):
		return nil // the time was up between its taking over and the news of that
	case errors.Is(err, crossfade.ErrBusy):
		return &refusedError{"upgrade in progress", err}
	case errors.Is(err, crossfade.ErrStopping) && !errors.Is(err, crossfade.ErrAborted): // else the new process stops
		return &refusedError{"terminating", err}
	case errors.Is(err, crossfade.ErrMoved):
		return &refusedError{"already upgraded", err}
	}
	return err
}

// refusal says why there can be no upgrade now.
func (u *Upgrader) refusal() error {
	if err := u.ended(); err != nil {
		return err
	}
	if !u.ready.Load() {
		return &refusedError{"process is not ready yet", crossfade.ErrNotReady}
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if u.up.WaitForPredecessor(now) != nil {
		return &refusedError{"parent hasn't exited", crossfade.ErrNotReady}
	}
	return nil
}

// ended is the answer of a process whose part is over, nil before.
func (u *Upgrader) ended() error {
	switch err := u.up.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, crossfade.ErrRetired):
		return &refusedError{"already upgraded", err}
	default:
		return &refusedError{"terminating", err}
	}
}

// refusedError has a text that programs written for the original look for.
type refusedError struct {
	text  string
	cause error
}

func (e *refusedError) Error() string { return e.text }
func (e *refusedError) Unwrap() error { return e.cause }

//go:build linux

// Command app is the service of the scenarios beside it: an HTTP server that can
// be replaced while it serves, and that goes wrong where a scenario wishes it to.
//
// Its release directory may have a file app.conf beside the program, by the path
// that it was started with: one argument a line, which come before those of the
// command line. So releases differ as they do in real life, by what lies in their
// directories, and `crossfade upgrade`, which starts the same command line once
// more, finds another one behind a symbolic link that was switched.
//
// It answers / with who it is, as an object. /health is 200, or 503 with -healthy=false.
// /command has the arguments and the environment that it was started with, and
// whatever is asked for below /say/ goes to its log.
//
// On standard error it says, in lines of slog's text format: msg=started with the
// descriptors that it found open, msg=owns with the address of each listener,
// msg=draining, msg=parked with -park, msg=exits with the status. Exit status: 0 if a successor has taken
// over or it was to stop, 75 if it has rolled back, 1 otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade"
)

// app is what the command line says, and the process that came of it.
type app struct {
	config     crossfade.Config
	listen     addresses
	packet     addresses
	faults     faults
	healthy    bool
	exclusive  bool
	ignoreTerm bool
	refuse     string
	newer      bool
	park       bool
	hup        bool
	mode       uint

	command []string // as it was started, before the library has taken its variables
	environ []string
}

func main() {
	a := &app{command: slices.Clone(os.Args), environ: os.Environ()}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: withoutTime})))
	if err := a.parse(); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(2)
	}
	slog.Info("started", "version", a.config.BuildVersion, "pid", os.Getpid(), "descriptors", inherited())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if a.ignoreTerm {
		ctx = context.WithoutCancel(ctx)
	}
	status := 0
	switch err := a.run(ctx); {
	case errors.Is(err, crossfade.ErrRolledBack):
		status = crossfade.ExitRolledBack
	case err != nil:
		slog.Error("failed", "version", a.config.BuildVersion, "pid", os.Getpid(), "err", err)
		status = 1
	}
	slog.Info("exits", "version", a.config.BuildVersion, "pid", os.Getpid(), "status", status)
	os.Exit(status)
}

// withoutTime leaves the time out of the lines, which are for programs.
func withoutTime(groups []string, attr slog.Attr) slog.Attr {
	if len(groups) == 0 && attr.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return attr
}

func (a *app) parse() error {
	flags := flag.NewFlagSet("app", flag.ContinueOnError)
	c := &a.config
	flags.StringVar(&c.Socket, "socket", "", "`path` of the control socket (default $CROSSFADE_SOCKET)")
	flags.UintVar(&a.mode, "socket-mode", 0, "`mode` of the control socket")
	flags.StringVar(&c.SocketGroup, "socket-group", "", "`group` of the control socket")
	flags.StringVar(&c.BuildVersion, "version", "", "the `version` that it says it is")
	flags.Var(&a.listen, "listen", "`name=address` to serve HTTP on, tcp or unix:PATH; repeatable")
	flags.Var(&a.packet, "packet", "`name=address` to answer datagrams on; repeatable")
	flags.Var(&a.faults, "do", "`action@point`, see fault.go; repeatable")
	flags.BoolVar(&a.healthy, "healthy", true, "what /health says")
	flags.BoolVar(&a.exclusive, "exclusive", false, "have something that only one process may use")
	flags.BoolVar(&a.ignoreTerm, "ignore-term", false, "do nothing on SIGTERM and SIGINT")
	flags.StringVar(&a.refuse, "refuse", "", "refuse every successor with this `text`")
	flags.BoolVar(&a.newer, "newer", false, "refuse every successor whose version is not a later one")
	flags.BoolVar(&a.park, "park", false, "stay after the drain, until told to stop")
	flags.BoolVar(&a.hup, "upgrade-on-hup", false, "start a successor on SIGHUP")
	flags.BoolVar(&c.FDStore, "fd-store", false, "have the service manager keep the listeners")
	flags.DurationVar(&c.Wait, "wait", 0, "how long to queue for an owner that is busy")
	flags.DurationVar(&c.ReadyTimeout, "ready-timeout", 0, "how long a successor may initialise")
	flags.DurationVar(&c.CommitTimeout, "commit-timeout", 0, "how long from Ready to Commit")
	flags.DurationVar(&c.Probation, "probation", 0, "for how long the predecessor can come back")
	flags.DurationVar(&c.DrainTimeout, "drain-timeout", 0, "how long the last requests may take")
	flags.IntVar(&c.MaxDraining, "max-draining", 0, "how many older processes may drain")
	flags.BoolVar(&c.RequireAllClaimed, "require-all", false, "fail if something offered is not asked for")
	if err := flags.Parse(append(a.conf(), os.Args[1:]...)); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("what is %q?", flags.Args())
	}
	if len(a.listen)+len(a.packet) == 0 {
		a.listen = addresses{{"http", "tcp", "127.0.0.1:0"}}
	}
	c.SocketMode = os.FileMode(a.mode)
	if a.refuse != "" {
		c.AcceptSuccessor = func(context.Context, crossfade.Successor) error { return errors.New(a.refuse) }
	}
	if a.newer {
		c.AcceptSuccessor = func(_ context.Context, s crossfade.Successor) error {
			if s.BuildVersion <= c.BuildVersion {
				return fmt.Errorf("version %s is not later than %s", s.BuildVersion, c.BuildVersion)
			}
			return nil
		}
	}
	if a.exclusive {
		c.Suspend = func(ctx context.Context) error { return a.faults.at(ctx, pointSuspend) }
		c.Resume = func(context.Context) error { return nil }
	}
	return nil
}

// conf returns the arguments of the release directory, if it has any.
func (a *app) conf() []string {
	path := a.command[0]
	if !strings.ContainsRune(path, filepath.Separator) {
		path, _ = exec.LookPath(path)
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "app.conf"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

// address is where to listen, and under which name.
type address struct{ name, network, address string }

type addresses []address

// String implements flag.Value.
func (as *addresses) String() string { return fmt.Sprint(*as) }

// Set implements flag.Value.
func (as *addresses) Set(s string) error {
	name, where, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("not of the form name=address")
	}
	network := "tcp"
	if path, ok := strings.CutPrefix(where, "unix:"); ok {
		network, where = "unix", path
	}
	*as = append(*as, address{name, network, where})
	return nil
}

// run takes the service over, or begins it, and serves until a successor has taken
// over or ctx ends.
func (a *app) run(ctx context.Context) error {
	hup := make(chan os.Signal, 1) // several at once ask for one upgrade
	if a.hup {                     // it may come as soon as Ready has told the service manager
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
	}
	if err := a.faults.at(ctx, pointStart); err != nil {
		return err
	}
	upg, err := crossfade.New(ctx, &a.config)
	if err != nil {
		return err
	}
	defer upg.Stop()
	// The point lies between the offer and Ready: this is where a real program
	// initialises.
	upg.Progress("initialising "+a.config.BuildVersion, 0)
	initialising, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	go func() {
		select {
		case <-upg.Exit(): // the attempt has failed
			abort(upg.Err())
		case <-initialising.Done():
		}
	}()
	if err := a.faults.at(initialising, pointOffered); err != nil {
		return err
	}
	srv := newServer(a)
	defer srv.close()
	if err := srv.listen(ctx, upg); err != nil {
		return err
	}
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	srv.who = upg.Status().Process
	if err := a.faults.at(ctx, pointOwns); err != nil {
		return err
	}
	srv.serve(ctx)
	slog.Info("owns", srv.describe()...)
	go func() {
		select {
		case <-upg.Settled():
			slog.Info("settled", srv.identify()...)
		case <-upg.Exit():
		}
	}()

	go upgradeOnHUP(ctx, upg, hup)
	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop()
	}
	slog.Info("draining", append(srv.identify(), "why", upg.Err())...)
	impatient, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop() // a signal ends the drain of a process that has begun to
	drain, cancel := upg.DrainContext(impatient)
	defer cancel()
	if err := a.faults.at(drain, pointDraining); err != nil && drain.Err() == nil {
		return err
	}
	if err := srv.drain(drain); err != nil {
		slog.Warn("requests were cut off", "err", err)
	}
	if a.park && !errors.Is(upg.Err(), crossfade.ErrStopped) { // a new process would take the service back
		slog.Info("parked", srv.identify()...)
		crossfade.Park(impatient)
	}
	if err := upg.Err(); !errors.Is(err, crossfade.ErrRetired) && !errors.Is(err, crossfade.ErrStopped) {
		return err
	}
	return nil
}

// upgradeOnHUP does what Type=notify-reload asks for.
func upgradeOnHUP(ctx context.Context, upg *crossfade.Upgrader, hup <-chan os.Signal) {
	for {
		select {
		case <-hup:
			if err := upg.Upgrade(ctx); err != nil {
				slog.Warn("the upgrade has failed", "err", err)
			}
		case <-upg.Exit():
			return
		}
	}
}

// inherited are the descriptors that the process had when it started: what the Go
// runtime and this program open is close-on-exec, and what has survived exec is
// not.
func inherited() string {
	var found []string
	for fd := range 1 << 10 {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno == 0 && flags&syscall.FD_CLOEXEC == 0 {
			found = append(found, fmt.Sprint(fd))
		}
	}
	return strings.Join(found, " ")
}

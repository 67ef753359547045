//go:build unix

package main_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/crossfade-go/crossfade"
)

// This file is the service that the tests of run have it start: an HTTP server that
// goes wrong where a test wishes it to. / answers with its pid, /health with 200 or
// 503, /say/X logs X.

func init() { processes["service"] = func() { check(serve()) } }

// serviceOptions is what a service does. It is on its command line.
type serviceOptions struct {
	crossfade.Config

	places string // the directory where it leaves a file named by its pid while it lives
	do     string // action@point,action@point
	sick   bool
	refuse string // this version
	gate   string // the FIFO at which it holds
}

func (o *serviceOptions) define(flags *flag.FlagSet) {
	flags.StringVar(&o.BuildVersion, "version", "", "")
	flags.StringVar(&o.places, "places", "", "")
	flags.StringVar(&o.do, "do", "", "")
	flags.BoolVar(&o.sick, "sick", false, "")
	flags.StringVar(&o.refuse, "refuse", "any", "")
	flags.StringVar(&o.gate, "gate", "", "")
}

func serve() error {
	var o serviceOptions
	o.define(flag.CommandLine)
	flag.Parse()
	if o.refuse != "any" {
		o.AcceptSuccessor = func(_ context.Context, s crossfade.Successor) error {
			if o.refuse != s.BuildVersion {
				return nil
			}
			return fmt.Errorf("version %q is not wanted", s.BuildVersion)
		}
	}
	if strings.Contains(o.do, "@resume") {
		o.Suspend = func(context.Context) error { return nil }
		o.Resume = func(context.Context) error {
			o.at("resume")
			return nil
		}
	}
	place := filepath.Join(o.places, fmt.Sprint(os.Getpid()))
	if err := os.WriteFile(place, nil, 0o600); err != nil {
		return err
	}
	slog.Info("started", "version", o.BuildVersion, "descriptors", openDescriptors(), "environ", handoffEnviron())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := o.serve(ctx)
	return errors.Join(err, os.Remove(place))
}

func (o *serviceOptions) serve(ctx context.Context) error {
	o.at("start")
	upg, err := crossfade.New(ctx, &o.Config)
	if err != nil {
		return err
	}
	defer upg.Stop()
	ln, err := upg.Listen(ctx, "web", "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: o.handler()}
	go srv.Serve(ln) // which Close ends
	defer srv.Close()
	o.at("offered")
	if err := upg.Ready(ctx); err != nil {
		return err
	}
	o.at("owns")
	go func() {
		<-upg.Settled()
		o.at("settled")
	}()
	select {
	case <-upg.Exit():
	case <-ctx.Done():
		upg.Stop()
	}
	slog.Info("leaving", "why", upg.Err())
	if errors.Is(upg.Err(), crossfade.ErrRolledBack) {
		_ = os.Remove(filepath.Join(o.places, fmt.Sprint(os.Getpid())))
		os.Exit(crossfade.ExitRolledBack)
	}
	return nil
}

func (o *serviceOptions) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		o.at("health")
		if o.sick {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/say/", func(_ http.ResponseWriter, r *http.Request) { slog.Info("said", "text", filepath.Base(r.URL.Path)) })
	return mux
}

// at does what is to be done at a point.
func (o *serviceOptions) at(point string) {
	for wish := range strings.SplitSeq(o.do, ",") {
		action, where, _ := strings.Cut(wish, "@")
		if where != point {
			continue
		}
		slog.Info("doing", "action", action, "at", point)
		switch action {
		case "exit0":
			os.Exit(0)
		case "exit1":
			os.Exit(1)
		case "crash": // without a last word
			check(syscall.Kill(os.Getpid(), syscall.SIGKILL))
			select {}
		case "hang": // only SIGKILL helps
			signal.Ignore(syscall.SIGTERM)
			select {}
		case "freeze": // until SIGCONT
			woken := make(chan os.Signal, 1) // as Notify asks for
			signal.Notify(woken, syscall.SIGCONT)
			check(syscall.Kill(os.Getpid(), syscall.SIGSTOP))
			<-woken
		case "hold":
			f, err := os.Open(o.gate)
			check(err)
			_, err = f.Read(make([]byte, 1))
			_ = err // the end
			check(f.Close())
		default:
			check(fmt.Errorf("no action %q", action))
		}
	}
}

// openDescriptors are the numbers that are in use, less those of the runtime.
func openDescriptors() string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/sys/fs/cgroup") || strings.HasSuffix(target, "/fd") {
			continue
		}
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func handoffEnviron() string {
	names := slices.DeleteFunc(os.Environ(), func(kv string) bool { return !strings.HasPrefix(kv, "CROSSFADE_") })
	slices.Sort(names)
	return strings.Join(names, " ")
}

package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/crossfade-go/crossfade/scm"
	"github.com/crossfade-go/crossfade/systemd"
)

// A service that is started by a socket unit, by hand, or again after a crash:
// the listener is the manager's if there is one.
func Example() {
	ctx := context.Background()
	env, err := systemd.Take()
	if err != nil {
		slog.Error("what the service manager has passed is not right", "error", err)
		return
	}
	defer env.Close()
	ln, err := web(env)
	if err != nil {
		slog.Error("no socket", "error", err)
		return
	}
	defer ln.Close()
	// go http.Serve(ln, handler)

	// Without a manager the notifier is nil, and this does nothing.
	if err := env.Notifier.Send(ctx, systemd.Ready(), systemd.Status("serving")); err != nil {
		slog.Warn("the service manager does not know that the service is ready", "error", err)
	}
	fmt.Println(ln.Addr().Network())
	// Output: tcp
}

func web(env *systemd.Environment) (net.Listener, error) {
	for _, s := range env.Sockets {
		if s.Name == "web" {
			return s.FD.Listener()
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// The process that is the unit's main one hands that over, and exits only when
// the manager has taken note.
func ExampleNotifier_Send() {
	handOver := func(n *systemd.Notifier, successor *scm.Peer) error {
		id, err := successor.PidfdID()
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := n.Send(ctx, systemd.MainPID(successor.PID, id), systemd.Status("handed over")); err != nil {
			return err
		}
		return n.Barrier(ctx)
	}
	fmt.Println(handOver(nil, &scm.Peer{PID: 4711}))
	// Output: <nil>
}

// What is stored comes back after a crash, under its name.
func ExampleNotifier_Store() {
	store := func(ctx context.Context, env *systemd.Environment, name string, ln *net.TCPListener) error {
		if env.FDStore == 0 {
			return nil // the unit has no FileDescriptorStoreMax=
		}
		fd, err := scm.DupFD(ln)
		if err != nil {
			return err
		}
		defer fd.Close()
		return env.Notifier.Store(ctx, name, fd, systemd.NoPoll())
	}
	fmt.Println(store(context.Background(), &systemd.Environment{}, "tcp:80", nil))
	// Output: <nil>
}

func ExampleNotifier_KeepAlive() {
	env, err := systemd.Take()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer env.Close()
	works := func(context.Context) error { return nil } // ask the service
	// go
	env.Notifier.KeepAlive(context.Background(), env.Watchdog, works, func(err error) {
		slog.Error("the watchdog is not fed", "error", err)
	})
}

func ExampleOpen() {
	n, err := systemd.Open("vsock:2:4711") // a host's, not a service manager's
	fmt.Println(n.Address() == "", errors.Is(err, systemd.ErrAddress))
	// Output: true true
}

func ExampleSameUnit() {
	same, err := systemd.SameUnit(os.Getpid())
	if errors.Is(err, errors.ErrUnsupported) {
		same = true // no control groups here
	}
	fmt.Println(same)
	// Output: true
}

// A text from elsewhere cannot bring in another state.
func ExampleStatus() {
	var n *systemd.Notifier // or the one of Take
	fromAPeer := "loading caches\nMAINPID=1"
	fmt.Println(n.Send(context.Background(), systemd.Status(strings.TrimSpace(fromAPeer))))
	// Output: <nil>
}

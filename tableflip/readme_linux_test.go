package tableflip_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade/tableflip"
)

func init() {
	processes["README"] = func() {
		endWithTest()
		// Here and not in the example: which process answers, and a SIGHUP that
		// comes before the example's goroutine runs is not the end.
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		readme()
	}
}

// readme is the example in the original's README, to the letter.
func readme() {
	upg, _ := tableflip.New(tableflip.Options{})
	defer upg.Stop()

	go func() {
		sig := make(chan os.Signal, 1)
		signal.Notify(sig, syscall.SIGHUP)
		for range sig {
			upg.Upgrade()
		}
	}()

	// Listen must be called before Ready
	ln, _ := upg.Listen("tcp", "localhost:8080")
	defer ln.Close()

	go http.Serve(ln, nil)

	if err := upg.Ready(); err != nil {
		panic(err)
	}

	<-upg.Exit()
}

// namespaceEnv says that the test binary runs in a network namespace of its own,
// where port 8080 is free.
const namespaceEnv = "TEST_TABLEFLIP_NAMESPACE"

// The program in the original's README needs nothing but another import path.
func TestTheExampleOfTheREADME(t *testing.T) {
	if os.Getenv(namespaceEnv) == "" {
		inNamespace(t)
		return
	}
	raiseLoopback(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	first := start(t, "README")
	old := []int{newcomer(ctx, t, nil)}
	if old[0] != first.cmd.Process.Pid {
		t.Fatalf("%d answers, and %d was started", old[0], first.cmd.Process.Pid)
	}
	for range 3 {
		old = append(old, newcomer(ctx, t, old))
	}
	if err := first.cmd.Wait(); err != nil {
		t.Errorf("the first process: %v", err)
	}
}

// newcomer returns the first process that answers and is none of the old ones.
// The last of these gets SIGHUP until then: the example does not say that it is
// not ready yet, or that its predecessor has not exited.
func newcomer(ctx context.Context, t *testing.T, old []int) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if len(old) > 0 {
			if err := syscall.Kill(old[len(old)-1], syscall.SIGHUP); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
		pid, err := askPID(ctx, client)
		switch {
		case ctx.Err() != nil:
			t.Fatalf("after %v nobody came: %v", old, context.Cause(ctx))
		case err == nil && !slices.Contains(old, pid):
			return pid
		case len(old) > 0 && errors.Is(err, syscall.ECONNREFUSED):
			t.Fatalf("the port was closed for a moment: %v", err)
		}
		// Other errors are the example's: its main returns at Exit, without
		// waiting for what it has accepted.
	}
}

func askPID(ctx context.Context, client *http.Client) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost:8080/", http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(body))
}

// inNamespace runs this test in network and process namespaces of its own: the
// second ends, with its first process, all that came from it.
func inNamespace(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skipf("a network namespace takes CAP_SYS_ADMIN: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// raiseLoopback makes 127.0.0.1 work in a new network namespace.
func raiseLoopback(t *testing.T) {
	t.Helper()
	pc, err := net.ListenPacket("udp4", ":0") // any socket is a handle to the namespace
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	raw, err := pc.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlIfreq(int(fd), unix.SIOCSIFFLAGS, lo) }); err != nil || ioctlErr != nil {
		t.Fatal(errors.Join(err, ioctlErr))
	}
}

//go:build unix

package tableflip_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/tableflip"
)

func TestUpgradeBeforeReadyAndAfterStop(t *testing.T) {
	u := first(t, tableflip.Options{})
	err := u.Upgrade()
	if !errors.Is(err, crossfade.ErrNotReady) || err.Error() != "process is not ready yet" {
		t.Errorf("before Ready: %v", err)
	}
	if err := u.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := u.Ready(); err != nil {
		t.Errorf("a second Ready: %v", err)
	}
	select {
	case <-u.Exit():
		t.Error("Exit is closed before Stop")
	default:
	}
	u.Stop()
	<-u.Exit()
	u.Stop()
	err = u.Upgrade()
	if !errors.Is(err, crossfade.ErrStopped) || err.Error() != "terminating" {
		t.Errorf("after Stop: %v", err)
	}
}

func TestReadyAfterStopFails(t *testing.T) {
	u := first(t, tableflip.Options{})
	u.Stop()
	if err := u.Ready(); !errors.Is(err, crossfade.ErrStopped) {
		t.Errorf("Ready: %v", err)
	}
}

func TestAPIDFileThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "pid")
	u, err := tableflip.NewUpgrader(tableflip.Options{PIDFile: path})
	if err == nil {
		u.Stop()
	}
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("New: %v", err)
	}
}

func TestWaitForParentEndsWithItsContext(t *testing.T) {
	u := first(t, tableflip.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.WaitForParent(ctx); err != nil {
		t.Errorf("without a parent, with a context that has ended: %v", err)
	}
}

// childEnv says what a new process does instead of becoming ready.
const childEnv = "TEST_TABLEFLIP_CHILD"

func init() {
	processes["failing upgrades"] = failingUpgrades
	processes["a child that is never ready"] = neverReady
	processes["two upgrades"] = twoUpgrades
	processes["control socket"] = controlSocket
	processes["hangups"] = hangups
}

func TestUpgrade(t *testing.T) {
	for _, name := range []string{"failing upgrades", "a child that is never ready", "two upgrades"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start(t, name).finish(t)
		})
	}
}

// failingUpgrades serves on, and can be upgraded after each failure.
func failingUpgrades() {
	endWithTest()
	switch os.Getenv(childEnv) {
	case "no New":
		os.Exit(7)
	case "no Ready":
		_, err := tableflip.New(tableflip.Options{})
		check(err)
		os.Exit(8)
	case "Stop":
		u, err := tableflip.New(tableflip.Options{})
		check(err)
		u.Stop()
		<-u.Exit()
		os.Exit(9)
	}
	u, err := tableflip.New(tableflip.Options{})
	check(err)
	defer u.Stop()
	if u.HasParent() {
		ln, err := u.Listen("tcp", told(0))
		check(err)
		expect(len(os.Args) == 2 && os.Args[1] == "more", "the arguments are %q", os.Args)
		go answer(ln, "successor")
		check(u.Ready())
		check(u.WaitForParent(context.Background()))
		expectServed("successor")
		fmt.Println("done")
		return
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	check(err)
	tell(0, ln.Addr().String())
	go answer(ln, "predecessor")
	check(u.Ready())

	for child, status := range map[string]string{"no New": "exit status 7", "no Ready": "exit status 8", "Stop": "exit status 9"} {
		check(os.Setenv(childEnv, child))
		err := u.Upgrade()
		expect(err != nil && strings.Contains(err.Error(), status), "%s: %v", child, err)
		expect(errors.Is(err, crossfade.ErrLost) || errors.Is(err, crossfade.ErrAborted), "%s: %v", child, err)
		expectNoChildren()
		expectServed("predecessor")
	}
	check(os.Unsetenv(childEnv))

	program := os.Args[0]
	os.Args[0] = "./missing"
	err = u.Upgrade()
	expect(errors.Is(err, os.ErrNotExist), "a missing program: %v", err)
	os.Args = []string{program, "more"}
	check(u.Upgrade())
	<-u.Exit()
}

// neverReady kills its child in time, says so, and serves on.
func neverReady() {
	endWithTest()
	if os.Getenv(childEnv) != "" {
		_, err := tableflip.New(tableflip.Options{})
		check(err)
		select {}
	}
	u, err := tableflip.New(tableflip.Options{UpgradeTimeout: time.Second})
	check(err)
	defer u.Stop()
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	check(err)
	tell(0, ln.Addr().String())
	go answer(ln, "predecessor")
	check(u.Ready())
	check(os.Setenv(childEnv, "hangs"))
	err = u.Upgrade()
	expect(errors.Is(err, crossfade.ErrTimeout), "the error is %v", err)
	expect(strings.Contains(err.Error(), "1s") && strings.Contains(err.Error(), "killed"), "the error says neither the limit nor the end: %v", err)
	expectNoChildren()
	expectServed("predecessor")
	fmt.Println("done")
}

// twoUpgrades refuses the second, and stops the first.
func twoUpgrades() {
	endWithTest()
	u, err := tableflip.New(tableflip.Options{})
	check(err)
	if u.HasParent() {
		line, err := u.File("line")
		check(err)
		_, err = line.WriteString("x")
		check(err)
		select {}
	}
	addLine(u)
	check(u.Ready())
	upgraded := make(chan error)
	go func() { upgraded <- u.Upgrade() }()
	_, err = predecessorsEnd.Read(make([]byte, 1)) // the child has begun
	check(err)
	err = u.Upgrade()
	expect(err != nil && err.Error() == "upgrade in progress", "a second Upgrade: %v", err)
	expect(errors.Is(err, crossfade.ErrBusy), "a second Upgrade: %v does not match ErrBusy", err)
	u.Stop()
	err = <-upgraded
	expect(err != nil && err.Error() == "terminating", "Upgrade: %v", err)
	expectNoChildren()
	<-u.Exit()
	fmt.Println("done")
}

// expectNoChildren expects that everything this process has started has ended
// and was reaped.
func expectNoChildren() {
	pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
	expect(err == syscall.ECHILD, "there is a child: %d, %v", pid, err)
}

// Somebody else than Upgrade can start the successor.
func TestAControlSocketInTheEnvironment(t *testing.T) {
	socket := "CROSSFADE_SOCKET=" + filepath.Join(shortDir(t), "control")
	old := start(t, "control socket", socket)
	line, err := bufio.NewReader(old.stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	successor := start(t, "control socket", socket, addressEnv+"0="+strings.TrimSpace(line))
	successor.finish(t)
	old.finish(t)
}

func controlSocket() {
	endWithTest()
	u, err := tableflip.New(tableflip.Options{})
	check(err)
	defer u.Stop()
	expect(u.HasParent() == (told(0) != ""), "HasParent is %t", u.HasParent())
	if u.HasParent() {
		ln, err := u.Listener("tcp", told(0))
		check(err)
		expect(ln != nil, "the listener is missing")
		check(u.Ready())
		check(u.WaitForParent(context.Background()))
		fmt.Println("done")
		return
	}
	ln, err := u.Listen("tcp", "127.0.0.1:0")
	check(err)
	check(u.Ready())
	fmt.Println(ln.Addr())
	<-u.Exit()
	fmt.Println("done")
}

func TestThreeUpgradesInARow(t *testing.T) {
	service := start(t, "hangups")
	lines := bufio.NewScanner(service.stdout)
	seen := make(map[int]bool)
	for generation := range 4 {
		if !lines.Scan() {
			t.Fatalf("generation %d does not serve: %v", generation, lines.Err())
		}
		pid, address, _ := strings.Cut(lines.Text(), " ")
		number, err := strconv.Atoi(pid)
		if err != nil || seen[number] {
			t.Fatalf("generation %d says %q", generation, lines.Text())
		}
		seen[number] = true
		if got := served(t, address); got != pid {
			t.Errorf("generation %d is %s, and %q answers", generation, pid, got)
		}
		if generation == 3 {
			break
		}
		if err := syscall.Kill(number, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	if err := service.cmd.Wait(); err != nil {
		t.Errorf("the first generation: %v", err)
	}
}

func served(t *testing.T, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(got)
}

// hangups upgrades at each SIGHUP, and says when it serves alone.
func hangups() {
	endWithTest()
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGHUP)
	u, err := tableflip.New(tableflip.Options{})
	check(err)
	defer u.Stop()
	go func() {
		for range sig {
			check(u.Upgrade())
		}
	}()
	address := told(0)
	if address == "" {
		address = "127.0.0.1:0"
	}
	ln, err := u.Listen("tcp", address)
	check(err)
	tell(0, ln.Addr().String())
	go answer(ln, fmt.Sprintln(os.Getpid()))
	check(u.Ready())
	check(u.WaitForParent(context.Background()))
	fmt.Println(os.Getpid(), ln.Addr())
	<-u.Exit()
}

package bluegreen_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDemo(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-turns", "4", "-answers", "50")
	output, status := d.wait(t)
	if status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	for _, row := range []string{
		`1 +v1 +\d+ +- `, `2 +v2 +\d+ +[\d.]+[µm]?s `, `3 +v1 +\d+ +[\d.]+[µm]?s `,
		`v2, pid \d+, is sent away again: its predecessor, pid \d+, resumes`, `5 +v1 +\d+ +[\d.]+[µm]?s .* 3 \(v1\)`,
	} {
		if !regexp.MustCompile(`(?m)^` + row).MatchString(output) {
			t.Errorf("no line matches %q", row)
		}
	}
	if t.Failed() {
		t.Log(output)
	}
}

// TestDemoCold shows that the demo can fail: here each server closes the port
// before the next one opens it.
func TestDemoCold(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-turns", "2", "-answers", "50", "-cold")
	output, status := d.wait(t)
	if status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	refused := regexp.MustCompile(`(?m)^connections refused +(\d+)$`).FindStringSubmatch(output)
	if refused == nil {
		t.Fatalf("the table does not say how many connections were refused:\n%s", output)
	}
	if n, err := strconv.Atoi(refused[1]); err != nil || n == 0 {
		t.Errorf("no connection was refused:\n%s", output)
	}
}

func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	stop := syscall.SIGINT
	if signal.Ignored(stop) {
		// A shell that starts tests in the background has it ignored, and then no
		// shell below can catch it.
		stop = syscall.SIGTERM
	}
	d := startDemo(t, "-answers", "50")
	d.await(t, "v2, pid ")
	must(t, d.cmd.Process.Signal(stop))
	if output, status := d.wait(t); status != 128+int(stop) {
		t.Errorf("exit status %d, want %d\n%s", status, 128+int(stop), output)
	}
}

func TestDemoUsage(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-turns", "0")
	if output, status := d.wait(t); status != 2 || !strings.HasPrefix(output, "Usage: ") {
		t.Errorf("exit status %d, want 2\n%s", status, output)
	}
}

// demo is demo.sh. All of its processes hold the write end of a pipe, and all of
// its files are in one directory.
type demo struct {
	cmd      *exec.Cmd
	seen     strings.Builder // output that has been read
	output   *bufio.Reader
	lifeline *os.File
	dir      string
}

func startDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("demo.sh needs named pipes and signals, which Windows does not have")
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skipf("demo.sh needs bash: %v", err)
	}
	d := &demo{cmd: exec.Command(bash, append([]string{"./demo.sh"}, args...)...), dir: t.TempDir()}
	d.cmd.Env = append(os.Environ(), "TMPDIR="+d.dir)
	output, stdout := pipe(t)
	defer stdout.Close()
	d.cmd.Stdout, d.cmd.Stderr = stdout, stdout
	d.output = bufio.NewReader(output)
	var held *os.File
	d.lifeline, held = pipe(t)
	defer held.Close()
	// It becomes descriptor 9; the script uses lower ones itself.
	d.cmd.ExtraFiles = []*os.File{6: held}
	must(t, d.cmd.Start())
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil { // the test has failed before it waited
			must(t, d.cmd.Process.Signal(syscall.SIGTERM))
			d.wait(t)
		}
	})
	return d
}

// pipe returns a pipe whose read end is closed when the test ends.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r, w
}

// await reads the output up to a line that contains text.
func (d *demo) await(t *testing.T, text string) {
	t.Helper()
	for {
		line, err := d.output.ReadString('\n')
		d.seen.WriteString(line)
		if err != nil {
			t.Fatalf("no line with %q: %v\n%s", text, err, d.seen.String())
		}
		if strings.Contains(line, text) {
			return
		}
	}
}

// wait returns the output and the exit status, and checks that no process and no
// file stays behind.
func (d *demo) wait(t *testing.T) (string, int) {
	t.Helper()
	_, err := io.Copy(&d.seen, d.output)
	must(t, err)
	err = d.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	// A process that was left behind would hold it for ever, so there is a limit,
	// far above what a process takes to end that has been waited for.
	must(t, d.lifeline.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := d.lifeline.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a process is still there: %v", err)
	}
	left, err := os.ReadDir(d.dir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return d.seen.String(), d.cmd.ProcessState.ExitCode()
}

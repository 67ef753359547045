package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade/examples/internal/trial"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/internal/overlap"
)

func TestMain(m *testing.M) {
	overlap.Tests(8)
	_ = os.Setenv("CROSSFADE_TRUST_DIRECTORY", "1") // for what the tests ask themselves
	leak.Main(m, trial.Clean)
}

// pod plays a pod: what the manifest says of its containers, and the directory that
// they share.
type pod struct {
	*trial.Place
	t         *testing.T
	isolated  bool // each container has its own processes and files
	command   []string
	hook      []string
	mountPath string
	socket    string
	trust     string
	probation string // of what is started from now on
	count     int    // of containers
}

func newPod(t *testing.T, isolated bool) *pod {
	t.Helper()
	m := readManifest(t)
	p := &pod{Place: trial.NewPlace(t), t: t, isolated: isolated, command: m.commands[0], hook: m.hooks[0], mountPath: m.mountPaths[0], probation: "1s"}
	must(t, os.Mkdir(p.Path("volume"), 0o755))
	must(t, os.Chmod(p.Path("volume"), 0o777)) // as an emptyDir is made
	p.trust = m.trust[0]
	p.socket = p.Path("volume", filepath.Base(m.sockets[0]))
	// All that an image has: the tool, the service and the hook.
	for _, version := range []string{"v1", "v2", "v3"} {
		p.Server(version, "images/"+version+"/app")
		p.Install("poststart.sh", "images/"+version+"/poststart.sh")
	}
	return p
}

// container is a running container.
type container struct {
	pod     *pod
	name    string
	version string
	cmd     *exec.Cmd
	log     string
}

// mounts gives a container its files, as the kubelet does: its own processes in /proc,
// the image, and the volume.
const mounts = `set -e
mount --make-rprivate /
mount -t proc none /proc
mount -t tmpfs none /opt
mkdir -p /opt/app /opt/bin
mount --bind "$IMAGE" /opt/app
mount --bind "$TOOLS" /opt/bin
mount -t tmpfs none /run
mkdir -p "$MOUNT_PATH"
mount --bind "$VOLUME" "$MOUNT_PATH"
PATH=/opt/bin:$PATH
: >"$CREATED"
exec "$@"
`

// start starts a container from an image.
func (p *pod) start(name, version string) *container {
	p.t.Helper()
	c := &container{pod: p, name: name, version: version, log: p.Path(fmt.Sprintf("%s-%d.log", name, p.count))}
	p.count++
	args := p.words(version, p.command)
	if p.isolated {
		args = append([]string{"sh", "-c", mounts, "sh"}, args...)
	}
	c.cmd = p.Command(args[0], args[1:]...)
	c.cmd.Env = append(c.cmd.Env, c.environ()...)
	// What a container writes goes to its runtime, which outlives it: not to a pipe.
	log, err := os.Create(c.log)
	must(p.t, err)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if p.isolated {
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	}
	must(p.t, c.cmd.Start())
	must(p.t, log.Close())
	p.t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait() // it was killed
		}
		if p.t.Failed() {
			text, err := os.ReadFile(c.log)
			p.t.Logf("%s %s: %s (%v)", name, version, text, err)
		}
	})
	if p.isolated {
		// The kubelet runs the hook when the container has been created.
		trial.Await(p.t, "the container's files", func() bool {
			_, err := os.Stat(c.log + ".created")
			return err == nil
		})
	}
	return c
}

// words are those of a command, with the paths that they have in this place, and a
// port that is free.
func (p *pod) words(version string, command []string) []string {
	words := []string{":8080", "127.0.0.1:0"}
	if !p.isolated {
		words = append(words, "/opt/app", p.Path("images", version), p.mountPath, p.Path("volume"))
	}
	var out []string
	for _, word := range command {
		out = append(out, strings.NewReplacer(words...).Replace(word))
	}
	return out
}

func (c *container) environ() []string {
	p := c.pod
	socket := p.socket
	if p.isolated {
		socket = filepath.Join(p.mountPath, filepath.Base(p.socket))
	}
	return []string{
		"CROSSFADE_PROBATION=" + p.probation, "CROSSFADE_TRUST_DIRECTORY=" + p.trust, "APP_VERSION=" + c.version, "CROSSFADE_SOCKET=" + socket, "POSTSTART_TIMEOUT=" + trial.Limit.String(),
		"IMAGE=" + p.Path("images", c.version), "TOOLS=" + p.Path("bin"), "VOLUME=" + p.Path("volume"), "MOUNT_PATH=" + p.mountPath, "CREATED=" + c.log + ".created",
	}
}

// postStart runs the hook in the container.
func (c *container) postStart() *exec.Cmd {
	c.pod.t.Helper()
	p := c.pod
	args := p.words(c.version, p.hook)
	if p.isolated {
		enter := []string{"nsenter", "--target", fmt.Sprint(c.cmd.Process.Pid), "--pid", "--mount", "--", "sh", "-c", `PATH=/opt/bin:$PATH; exec "$@"`, "sh"}
		args = append(enter, args...)
	}
	cmd := p.Command(args[0], args[1:]...)
	cmd.Env = append(cmd.Env, c.environ()...)
	cmd.Stdout = p.t.Output()
	return cmd
}

// started runs the hook, which must succeed.
func (c *container) started() {
	c.pod.t.Helper()
	if err := c.postStart().Run(); err != nil {
		c.pod.t.Fatalf("the hook of %s, %s: %v", c.name, c.version, err)
	}
	status := c.pod.Status(c.pod.socket)
	if got := status.Process.BuildVersion; got != c.version {
		c.pod.t.Errorf("the hook of %s has returned, and %s serves", c.version, got)
	}
	if status.Probation != nil {
		c.pod.t.Errorf("the hook of %s has returned, and it is on probation: %+v", c.version, status.Probation)
	}
}

// stop ends a container as the kubelet does. It must end without force.
func (c *container) stop() {
	c.pod.t.Helper()
	must(c.pod.t, c.cmd.Process.Signal(syscall.SIGTERM))
	c.wait()
	if got := c.cmd.ProcessState.ExitCode(); got != 0 {
		c.pod.t.Errorf("%s ends with %v, want status 0", c.name, c.cmd.ProcessState)
	}
}

// wait waits for the end of the container.
func (c *container) wait() {
	c.pod.t.Helper()
	grace := time.AfterFunc(trial.Limit, func() { _ = c.cmd.Process.Kill() }) // as the kubelet would
	_ = c.cmd.Wait()                                                          // the state says it all
	if !grace.Stop() {
		c.pod.t.Errorf("%s has not ended within %v", c.name, trial.Limit)
	}
}

// serves waits until the container's log says that it serves.
func (c *container) serves() { c.says("serves", false) }

// idle waits until the container's log says that another one serves.
func (c *container) idle() { c.says("is idle", true) }

// says waits until the last word of the log on who owns the service is that it is
// another container, or this one.
func (c *container) says(what string, another bool) {
	c.pod.t.Helper()
	trial.Await(c.pod.t, c.name+" to say that it "+what, func() bool {
		log, err := os.ReadFile(c.log)
		last := ""
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "owns the service") {
				last = line
			}
		}
		return err == nil && last != "" && strings.Contains(last, "does not descend from this process") == another
	})
}

// inBoth runs a test with containers that see each other's processes and files, and
// with those that do not.
func inBoth(t *testing.T, test func(t *testing.T, isolated bool)) {
	t.Parallel()
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		test(t, false)
	})
	t.Run("in namespaces", func(t *testing.T) {
		t.Parallel()
		if os.Geteuid() != 0 {
			t.Skip("only root may mount")
		}
		for _, command := range []string{"mount", "nsenter"} {
			if _, err := exec.LookPath(command); err != nil {
				t.Skipf("it needs %s: %v", command, err)
			}
		}
		if out, err := namespaces().CombinedOutput(); err != nil {
			t.Skipf("no namespaces can be made here: %v: %s", err, out)
		}
		test(t, true)
	})
}

// namespaces tries what a container needs.
func namespaces() *exec.Cmd {
	cmd := exec.Command("sh", "-c", "mount --make-rprivate / && mount -t proc none /proc && mount -t tmpfs none /opt")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	return cmd
}

// TestUpgrade plays the life of a pod: the containers start one after the other, as the
// kubelet has it that waits for the hook of the first; then each gets a new image in
// its turn while clients ask.
func TestUpgrade(t *testing.T) { inBoth(t, upgrade) }

func upgrade(t *testing.T, isolated bool) {
	p := newPod(t, isolated)
	blue := p.start("blue", "v1")
	blue.started() // there is no old process
	blue.started() // it may be repeated
	green := p.start("green", "v1")
	// The same version serves already, so it may return before this one does.
	if err := green.postStart().Run(); err != nil {
		t.Errorf("the hook of green: %v", err)
	}
	green.serves()
	blue.idle()
	load := trial.StartLoad(t, trial.Address(t, p.Status(p.socket)))
	load.Await("v1")

	blue.stop()
	blue = p.start("blue", "v2")
	blue.started()
	load.Await("v2")
	blue.serves()
	green.idle()

	green.stop()
	green = p.start("green", "v3")
	green.started()
	load.Await("v3")
	blue.stop()
	load.Stop()
	green.stop()
	if !p.NoOwner(p.socket) {
		t.Error("the containers have ended, and somebody serves")
	}
}

// TestStopOnStandby ends the old container while the new one is on probation: that one
// stays, which the old one waits for.
func TestStopOnStandby(t *testing.T) { inBoth(t, stopOnStandby) }

func stopOnStandby(t *testing.T, isolated bool) {
	p := newPod(t, isolated)
	blue := p.start("blue", "v1")
	blue.started()
	p.probation = "1h"
	green := p.start("green", "v2")
	p.AwaitVersion(p.socket, "v2")
	blue.idle()
	blue.stop()
	green.started()
	green.stop()
}

// TestKilled plays the end of the container that serves, with all that is in it: the
// idle one ends as well, so that the kubelet starts it again.
func TestKilled(t *testing.T) { inBoth(t, killed) }

func killed(t *testing.T, isolated bool) {
	if !isolated {
		t.Skip("without a pid namespace its processes do not end with process 1")
	}
	p := newPod(t, isolated)
	blue := p.start("blue", "v1")
	blue.started()
	green := p.start("green", "v2")
	green.started()
	blue.idle()
	must(t, green.cmd.Process.Kill())
	_ = green.cmd.Wait() // it was killed
	blue.wait()
	if blue.cmd.ProcessState.Success() {
		t.Error("the idle container has ended with status 0, as if nothing had happened")
	}
	blue = p.start("blue", "v1")
	blue.started()
	green = p.start("green", "v2")
	green.started()
	blue.stop()
	green.stop()
}

// TestBroken plays an image whose service does not start: its container ends, and its
// hook fails.
func TestBroken(t *testing.T) { inBoth(t, broken) }

func broken(t *testing.T, isolated bool) {
	p := newPod(t, isolated)
	p.Write("images/v4/app", "#!/bin/sh\nexit 1\n", 0o755)
	p.Install("poststart.sh", "images/v4/poststart.sh")
	blue := p.start("blue", "v1")
	blue.started()
	green := p.start("green", "v4")
	hook := green.postStart()
	hook.Env = append(hook.Env, "POSTSTART_TIMEOUT=2s")
	if err := hook.Run(); err == nil {
		t.Error("the hook says that v4 serves")
	}
	green.wait()
	if green.cmd.ProcessState.Success() {
		t.Error("the container with a broken image has ended with status 0")
	}
	if got := p.Status(p.socket).Process.BuildVersion; got != "v1" {
		t.Errorf("%s serves, want v1", got)
	}
	blue.stop()
}

// manifest is what the tests know of the pod. Its commands are written as lists in one
// line, which are JSON too.
type manifest struct {
	sockets    []string
	trust      []string // who may write to the directory
	mountPaths []string
	commands   [][]string // of the containers
	hooks      [][]string
}

func readManifest(t *testing.T) *manifest {
	t.Helper()
	text, err := os.ReadFile("pod.yaml")
	must(t, err)
	m := new(manifest)
	var name string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "\t") {
			t.Errorf("YAML knows no tabs: %q", line)
		}
		depth := len(line) - len(strings.TrimLeft(line, " "))
		key, value, _ := strings.Cut(strings.TrimSpace(strings.TrimLeft(line, " -")), ": ")
		switch key {
		case "name":
			name = value
		case "value":
			switch name {
			case "CROSSFADE_SOCKET":
				m.sockets = append(m.sockets, value)
			case "CROSSFADE_TRUST_DIRECTORY":
				m.trust = append(m.trust, strings.Trim(value, `"`))
			}
		case "mountPath":
			m.mountPaths = append(m.mountPaths, value)
		case "command":
			var words []string
			if err := json.Unmarshal([]byte(value), &words); err != nil {
				t.Errorf("%q: %v", value, err)
			}
			if depth == containerDepth {
				m.commands = append(m.commands, words)
			} else {
				m.hooks = append(m.hooks, words)
			}
		}
	}
	return m
}

// containerDepth is how far the fields of a container are indented.
const containerDepth = 6

// TestManifest checks that the two containers are alike where they have to be. That every
// field exists is a test of examples/sidecar, which knows Kubernetes.
func TestManifest(t *testing.T) {
	m := readManifest(t)
	if len(m.commands) != 2 || !slices.Equal(m.commands[0], m.commands[1]) {
		t.Errorf("the commands are %q, want two that are alike", m.commands)
	}
	if len(m.hooks) != 2 || !slices.Equal(m.hooks[0], m.hooks[1]) {
		t.Errorf("the hooks are %q, want two that are alike", m.hooks)
	}
	if len(m.mountPaths) != 2 || m.mountPaths[0] != m.mountPaths[1] {
		t.Errorf("the volume is mounted at %q, want at one path twice", m.mountPaths)
	}
	if len(m.sockets) != 2 || m.sockets[0] != m.sockets[1] || filepath.Dir(m.sockets[0]) != m.mountPaths[0] {
		t.Errorf("the sockets are %q, want one path twice, in the volume", m.sockets)
	}
	if len(m.trust) != 2 || m.trust[0] != m.trust[1] {
		t.Errorf("the directory is trusted like %q, want twice alike", m.trust)
	}
	if !slices.Contains(m.commands[0], m.sockets[0]) {
		t.Errorf("%q does not name %s", m.commands[0], m.sockets[0])
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

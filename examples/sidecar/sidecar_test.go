//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/crossfade-go/crossfade/examples/internal/trial"
)

func TestMain(m *testing.M) {
	status := m.Run()
	trial.Clean()
	if images != "" {
		_ = os.RemoveAll(images) // below TMPDIR, which is cleaned anyway
	}
	os.Exit(status)
}

// images is where the program was built, in each version that a test has asked for.
var images string

func image(t *testing.T, version string) string {
	t.Helper()
	if images == "" {
		dir, err := os.MkdirTemp("", "sidecar-")
		must(t, err)
		images = dir
	}
	path := filepath.Join(images, version)
	if _, err := os.Stat(path); err != nil {
		build := exec.Command("go", "build", "-ldflags=-X main.version="+version, "-o", path, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", build.Args, err, out)
		}
	}
	return path
}

// read decodes a manifest as the API server does, which knows every field, and refuses
// the others.
func read[T any](t *testing.T, file string) *T {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	object := new(T)
	must(t, yaml.UnmarshalStrict(text, object))
	return object
}

// TestPod plays the life of the pod as the kubelet does, which starts a container again
// whenever it ends.
func TestPod(t *testing.T) {
	pod := read[corev1.Pod](t, "pod.yaml")
	p := newKubelet(t, &pod.Spec)
	blue, green := pod.Spec.InitContainers[0], pod.Spec.InitContainers[1]

	first := p.start(&blue)
	first.started()
	load := trial.StartLoad(t, trial.Address(t, p.Status(p.socket)))
	second := p.start(&green)
	second.started()
	first.parked()
	p.serves("proxy-green", "v1")

	// Each gets an image in its turn.
	first.stop()
	first = p.start(update(&blue, "v2"))
	first.started()
	second.parked()
	load.Await("v2")
	second.stop()
	second = p.start(update(&green, "v3"))
	second.started()
	first.parked()
	load.Await("v3")
	p.serves("proxy-green", "v3")
	load.Stop()

	// The one that serves is killed, and the probe of the other one finds nobody.
	address := trial.Address(t, p.Status(p.socket))
	must(t, second.cmd.Process.Kill())
	second.wait()
	if answer, err := trial.Ask(address); err == nil {
		t.Errorf("%+v serves", answer)
	}
	first.stop()
	first = p.start(update(&blue, "v2"))
	first.started()
	p.serves("proxy-blue", "v2")
	first.stop()
	if !p.NoOwner(p.socket) {
		t.Error("the containers have ended, and somebody serves")
	}
}

// TestNode plays a rolling update on one node.
func TestNode(t *testing.T) {
	set := read[appsv1.DaemonSet](t, "node.yaml")
	spec := &set.Spec.Template.Spec
	p := newKubelet(t, spec)
	server := spec.Containers[0]
	old := p.start(&server)
	old.started()
	load := trial.StartLoad(t, trial.Address(t, p.Status(p.socket)))
	load.Await("v1")

	next := update(&server, "v2")
	hook := next.Lifecycle.PostStart.Exec
	hook.Command = strings.Fields(strings.ReplaceAll(strings.Join(hook.Command, " "), " v1 ", " v2 "))
	setEnv(t, next, "CROSSFADE_EPOCH", "2")
	surge := p.start(next)
	surge.started()
	old.parked()
	load.Await("v2")
	old.stop()

	// Its container is started once more before its pod has gone: the number of its
	// deployment is a lower one.
	again := p.start(&server)
	again.wait()
	if got := again.cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("the old pod ends with %v, want status 1: its epoch is lower", again.cmd.ProcessState)
	}
	p.serves("", "v2")
	load.Stop()
	surge.stop()
}

// TestManifests checks what the files say about each other.
func TestManifests(t *testing.T) {
	read[corev1.Pod](t, "../kubernetes/pod.yaml") // whose test knows no Kubernetes
	pod := read[corev1.Pod](t, "pod.yaml")
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Errorf("%s is no native sidecar", c.Name)
		}
		if group := argument(t, c.Args, "-group"); group != fmt.Sprint(*pod.Spec.SecurityContext.FSGroup) {
			t.Errorf("%s lets the group %s take over, and the volume is that of %d", c.Name, group, *pod.Spec.SecurityContext.FSGroup)
		}
		if got := argument(t, c.Lifecycle.PostStart.Exec.Command, "--instance"); got != c.Name || env(&c)["CROSSFADE_INSTANCE"] != c.Name {
			t.Errorf("%s waits for %q and is %q", c.Name, got, env(&c)["CROSSFADE_INSTANCE"])
		}
		wantGrace(t, &pod.Spec, &c)
	}
	if blue, green := pod.Spec.InitContainers[0].VolumeMounts[0], pod.Spec.InitContainers[1].VolumeMounts[0]; blue.ReadOnly || !green.ReadOnly {
		t.Errorf("blue begins and has to write; green does not: %+v, %+v", blue, green)
	}

	set := read[appsv1.DaemonSet](t, "node.yaml")
	spec := &set.Spec.Template.Spec
	update := set.Spec.UpdateStrategy.RollingUpdate
	if update.MaxSurge.IntValue() < 1 || update.MaxUnavailable.IntValue() != 0 {
		t.Errorf("the old pod is deleted before the new one is there: %+v", update)
	}
	server := spec.Containers[0]
	if !spec.HostNetwork || len(server.Ports) > 0 {
		t.Errorf("two pods of one node cannot have a port: hostNetwork %v, ports %v", spec.HostNetwork, server.Ports)
	}
	if got, want := argument(t, server.Lifecycle.PostStart.Exec.Command, "--version"), tag(&server); got != want {
		t.Errorf("the hook waits for %s, and the image is %s", got, want)
	}
	if _, err := strconv.ParseUint(env(&server)["CROSSFADE_EPOCH"], 10, 64); err != nil {
		t.Error(err)
	}
	wantGrace(t, spec, &server)
}

// wantGrace checks that a container has the time for its hook, and then for its drain.
func wantGrace(t *testing.T, spec *corev1.PodSpec, c *corev1.Container) {
	t.Helper()
	const drain = 30 * time.Second // the default of the program
	hook, err := time.ParseDuration(argument(t, c.Lifecycle.PreStop.Exec.Command, "--timeout"))
	must(t, err)
	if grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second; grace <= hook+drain {
		t.Errorf("%s has %v to end, and its hook may take %v and its requests %v", c.Name, grace, hook, drain)
	}
}

// argument is what follows a flag.
func argument(t *testing.T, args []string, flag string) string {
	t.Helper()
	for i, arg := range args[:max(0, len(args)-1)] {
		if arg == flag {
			return args[i+1]
		}
	}
	t.Errorf("%q has no %s", args, flag)
	return ""
}

func env(c *corev1.Container) map[string]string {
	vars := make(map[string]string)
	for _, v := range c.Env {
		vars[v.Name] = v.Value
	}
	return vars
}

func setEnv(t *testing.T, c *corev1.Container, name, value string) {
	t.Helper()
	for i := range c.Env {
		if c.Env[i].Name == name {
			c.Env[i].Value = value
			return
		}
	}
	t.Fatalf("%s has no variable %s", c.Name, name)
}

// tag is the version of an image.
func tag(c *corev1.Container) string { return c.Image[strings.LastIndex(c.Image, ":")+1:] }

// update is what kubectl set image does.
func update(c *corev1.Container, version string) *corev1.Container {
	c = c.DeepCopy()
	c.Image = strings.TrimSuffix(c.Image, tag(c)) + version
	return c
}

// kubelet plays one, with plain processes: they have their users, and not their own
// files and process numbers, which the scenarios in e2e have.
type kubelet struct {
	*trial.Place
	t      *testing.T
	spec   *corev1.PodSpec
	socket string
	count  int
}

func newKubelet(t *testing.T, spec *corev1.PodSpec) *kubelet {
	t.Helper()
	k := &kubelet{Place: trial.NewPlace(t), t: t, spec: spec}
	must(t, os.Chmod(k.Path(), 0o755))
	k.socket = k.Path("volume", "control.sock")
	must(t, os.Mkdir(k.Path("volume"), 0o755))
	if group := spec.SecurityContext.FSGroup; group != nil && isRoot() {
		must(t, os.Chown(k.Path("volume"), 0, int(*group)))
		must(t, os.Chmod(k.Path("volume"), 0o777|os.ModeSetgid)) // as an emptyDir is made
		t.Setenv("CROSSFADE_TRUST_DIRECTORY", "1")               // for what the test asks itself
	}
	for _, version := range []string{"v1", "v2", "v3"} {
		must(t, os.MkdirAll(k.Path("images", version), 0o755))
		must(t, os.Link(image(t, version), k.Path("images", version, "sidecar")))
	}
	return k
}

// running is a container that was started.
type running struct {
	*corev1.Container
	k   *kubelet
	cmd *exec.Cmd
	log string
}

func (k *kubelet) start(c *corev1.Container) *running {
	k.t.Helper()
	r := &running{Container: c, k: k, log: k.Path(fmt.Sprintf("%s-%d.log", c.Name, k.count))}
	k.count++
	r.cmd = r.command(append([]string{k.Path("images", tag(c), "sidecar")}, c.Args...))
	log, err := os.Create(r.log)
	must(k.t, err)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	must(k.t, r.cmd.Start())
	must(k.t, log.Close())
	k.t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait() // it was killed
		}
		if k.t.Failed() {
			text, err := os.ReadFile(r.log)
			k.t.Logf("%s %s: %s (%v)", c.Name, tag(c), text, err)
		}
	})
	return r
}

// command is one that runs in the container: with its variables, and as its user if
// that is permitted.
func (r *running) command(words []string) *exec.Cmd {
	group := strconv.Itoa(os.Getgid())
	if isRoot() {
		group = "3000"
	}
	replacer := strings.NewReplacer(":8080", "127.0.0.1:0", "3000", group, "/bin/crossfade", r.k.Path("bin", "crossfade"))
	for i := range words {
		if i > 0 || words[i] == "/bin/crossfade" {
			words[i] = replacer.Replace(words[i])
		}
	}
	cmd := r.k.Command(words[0], words[1:]...)
	for name, value := range env(r.Container) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, "CROSSFADE_SOCKET="+r.k.socket)
	if c := r.SecurityContext; isRoot() && c.RunAsUser != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: uint32(*c.RunAsUser), Gid: uint32(*c.RunAsGroup), Groups: []uint32{uint32(*r.k.spec.SecurityContext.FSGroup)},
		}}
	}
	return cmd
}

func isRoot() bool { return os.Geteuid() == 0 }

// started runs the hook.
func (r *running) started() {
	r.k.t.Helper()
	r.hook(r.Lifecycle.PostStart)
}

func (r *running) hook(h *corev1.LifecycleHandler) {
	r.k.t.Helper()
	cmd := r.command(append([]string(nil), h.Exec.Command...))
	if err := cmd.Run(); err != nil {
		r.k.t.Fatalf("%s: %v: %v", r.Name, cmd.Args, err)
	}
}

// stop ends the container. It must end without force.
func (r *running) stop() {
	r.k.t.Helper()
	if !r.k.NoOwner(r.k.socket) { // for whom it would wait
		r.hook(r.Lifecycle.PreStop)
	}
	must(r.k.t, r.cmd.Process.Signal(syscall.SIGTERM))
	r.wait()
	if !r.cmd.ProcessState.Success() {
		r.k.t.Errorf("%s ends with %v", r.Name, r.cmd.ProcessState)
	}
}

func (r *running) wait() {
	r.k.t.Helper()
	grace := time.AfterFunc(trial.Limit, func() { _ = r.cmd.Process.Kill() }) // as the kubelet would
	_ = r.cmd.Wait()                                                          // the state says it all
	if !grace.Stop() {
		r.k.t.Errorf("%s has not ended within %v", r.Name, trial.Limit)
	}
}

// parked waits until the container waits for its next turn.
func (r *running) parked() {
	r.k.t.Helper()
	trial.Await(r.k.t, r.Name+" to be parked", func() bool {
		log, err := os.ReadFile(r.log)
		return err == nil && strings.Contains(string(log), "parked: another container serves")
	})
}

// serves checks who serves. The instance may be anything if it is empty.
func (k *kubelet) serves(instance, version string) {
	k.t.Helper()
	who := k.Status(k.socket).Process
	if instance != "" && who.Instance != instance || who.BuildVersion != version {
		k.t.Errorf("%+v serves, want %s of version %s", who, instance, version)
	}
}

// TestDocker does it with Docker: images FROM scratch, two containers of one volume and
// one network.
func TestDocker(t *testing.T) {
	if out, err := exec.Command("docker", "info").CombinedOutput(); err != nil {
		t.Skipf("no Docker engine answers: %v: %s", err, lastLine(out))
	}
	d := &docker{t: t, id: fmt.Sprintf("crossfade-%d", os.Getpid())}
	for i, version := range []string{"v1", "v2"} {
		d.build(version, i+1)
	}
	d.do("volume", "create", d.id)
	t.Cleanup(func() { d.try("volume", "rm", "-f", d.id) })
	d.run("blue", "v1", "--user", "10001:3000")
	d.exec("blue", "wait", "--version", "v1", "--timeout", trial.Limit.String())
	d.run("green", "v2", "--user", "10002:3000", "--network", "container:"+d.name("blue"))
	d.exec("green", "wait", "--version", "v2", "--settled", "--timeout", trial.Limit.String())
	var status struct{ Serving struct{ Version string } }
	must(t, json.Unmarshal([]byte(d.exec("blue", "status", "--json")), &status))
	if status.Serving.Version != "v2" {
		t.Errorf("%s serves", status.Serving.Version)
	}

	// The old image comes again, and is refused: blue is started again and again.
	d.do("restart", d.name("blue"))
	trial.Await(t, "blue to be refused", func() bool {
		return strings.Contains(d.try("logs", d.name("blue")), "epoch")
	})
	must(t, json.Unmarshal([]byte(d.exec("green", "status", "--json")), &status))
	if status.Serving.Version != "v2" {
		t.Errorf("%s serves", status.Serving.Version)
	}
	d.do("stop", d.name("green"))
	if got := strings.TrimSpace(d.do("inspect", "--format", "{{.State.ExitCode}}", d.name("green"))); got != "0" {
		t.Errorf("green ends with status %s", got)
	}
}

type docker struct {
	t  *testing.T
	id string
}

func (d *docker) name(container string) string { return d.id + "-" + container }

func (d *docker) try(args ...string) string {
	out, _ := exec.Command("docker", args...).CombinedOutput() // what it says
	return string(out)
}

func (d *docker) do(args ...string) string {
	d.t.Helper()
	cmd := exec.Command("docker", args...)
	cmd.Stderr = d.t.Output()
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out)
}

// build makes an image by the Dockerfile, of what its comment says.
func (d *docker) build(version string, epoch int) {
	d.t.Helper()
	dir := d.t.TempDir()
	must(d.t, os.Mkdir(filepath.Join(dir, "run"), 0o755))
	text, err := os.ReadFile("Dockerfile")
	must(d.t, err)
	must(d.t, os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o644))
	must(d.t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	must(d.t, os.Link(image(d.t, version), filepath.Join(dir, "bin", "sidecar")))
	tool := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", "crossfade"), "github.com/crossfade-go/crossfade/cmd/crossfade")
	tool.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := tool.CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v\n%s", tool.Args, err, out)
	}
	tag := d.id + ":" + version
	d.do("build", "-q", "--build-arg", fmt.Sprintf("EPOCH=%d", epoch), "-t", tag, dir)
	d.t.Cleanup(func() { d.try("rmi", "-f", tag) })
}

// run starts a container that is always restarted.
func (d *docker) run(container, version string, flags ...string) {
	d.t.Helper()
	args := append([]string{
		"run", "-d", "--name", d.name(container), "--restart", "always", "--read-only",
		"--volume", d.id + ":/run/proxy",
	}, flags...)
	d.do(append(args, d.id+":"+version)...)
	d.t.Cleanup(func() { d.try("rm", "-f", d.name(container)) })
}

func (d *docker) exec(container string, args ...string) string {
	d.t.Helper()
	return d.do(append([]string{"exec", d.name(container), "/bin/crossfade"}, args...)...)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

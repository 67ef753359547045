//go:build linux

package main_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	exclusive "github.com/crossfade-go/crossfade/examples/exclusive"
	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/scm"
)

// generous is more than anything here takes.
const generous = time.Minute

// processEnv makes the test binary be something else: the service, or a candidate
// that does not come to own.
const processEnv = "TEST_EXCLUSIVE_PROCESS"

func TestMain(m *testing.M) {
	switch as := os.Getenv(processEnv); as {
	case "":
		os.Exit(m.Run())
	case "service":
		exclusive.Main()
	default:
		os.Exit(runCandidate(as))
	}
}

// TestTheDatabaseChangesHands has clients count while processes take over, give
// back, give up and die. Each increment that a client was told of is in the
// database at the end, once; nobody but the owner has the database open, and the
// guard is held throughout.
func TestTheDatabaseChangesHands(t *testing.T) {
	s := newStage(t)
	owner := s.service(s.data)
	address := owner.serving()
	load := startLoad(t, address, 4)
	watch := startWatch(t, s)
	load.servedBy(owner)

	// back is what every attempt that fails leads to.
	back := func() {
		t.Helper()
		owner.await("database closed")
		owner.await("database open")
		load.servedBy(owner)
	}
	// They follow from one another, so none is a test of its own.
	phase := func(name string, act func()) {
		t.Logf("%s, with the owner %d", name, owner.cmd.Process.Pid)
		act()
	}
	phase("commit", func() {
		next := s.service(s.data, "CROSSFADE_PROBATION=0")
		next.serving()
		owner.await("database closed")
		owner.wantExit(0)
		load.servedBy(next)
		owner = next
	})
	phase("a candidate that has the wrong directory", func() {
		other := s.dir("other")
		if err := os.WriteFile(filepath.Join(other, "guard"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		next := s.service(other)
		next.await("the directory is another")
		next.wantExit(1)
		load.servedBy(owner)
		if owner.has("database closed") {
			t.Error("the owner has let go of the database for nothing")
		}
	})
	phase("a candidate that gives up when the owner has let go", func() {
		s.start("gives up", nil).wantExit(1)
		back()
	})
	phase("a candidate that dies when the owner has let go", func() {
		s.start("dies", nil).wantExit(-1)
		back()
	})
	phase("rollback, because the successor cannot open the database", func() {
		broken := s.dir("broken")
		if err := os.Link(filepath.Join(s.data, "guard"), filepath.Join(broken, "guard")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(broken, "counters.db"), 0o700); err != nil {
			t.Fatal(err)
		}
		next := s.service(broken)
		next.await("opening the database")
		next.wantExit(75)
		back()
	})
	phase("rollback, because the successor is told to stop", func() {
		next := s.service(s.data)
		next.serving()
		load.servedBy(next)
		next.signal(syscall.SIGTERM)
		next.await("database closed")
		back()
		next.wantExit(0)
	})
	phase("the successor is killed on probation", func() {
		next := s.service(s.data)
		next.serving()
		load.servedBy(next)
		load.expectFailures(true) // of what it had accepted, which no library can help
		next.signal(syscall.SIGKILL)
		back()
		next.wantExit(-1)
		load.settle()
		load.expectFailures(false)
	})
	phase("commit after all of that", func() {
		next := s.service(s.data, "CROSSFADE_PROBATION=0")
		next.serving()
		owner.wantExit(0)
		load.servedBy(next)
		owner = next
	})
	acknowledged := load.stop()
	watch.stop()
	if again, err := load.ask("0-0"); err != nil || again.Value != acknowledged["0-0"] {
		t.Errorf("the first request, made once more, gets %+v, %v, and got %d", again, err, acknowledged["0-0"])
	}
	load.client.CloseIdleConnections()
	owner.signal(syscall.SIGTERM)
	owner.wantExit(0)
	verify(t, filepath.Join(s.data, "counters.db"), acknowledged)
}

// A second service must not get at the data, also while nobody has the database
// open, and may when the first one has ended.
func TestTheGuardKeepsStrangersOut(t *testing.T) {
	s := newStage(t)
	owner := s.service(s.data)
	owner.serving()
	stranger := newStage(t)
	first := stranger.service(s.data)
	first.await("another service uses the directory")
	first.wantExit(1)
	owner.signal(syscall.SIGTERM)
	owner.wantExit(0)
	second := stranger.service(s.data)
	second.serving()
	second.signal(syscall.SIGTERM)
	second.wantExit(0)
}

// verify compares the database with what clients were told.
func verify(t *testing.T, path string, acknowledged map[string]uint64) {
	t.Helper()
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("the database is damaged: %v", err)
		}
		count := binary.BigEndian.Uint64(tx.Bucket([]byte("counters")).Get([]byte("hits")))
		seen := make(map[uint64]string)
		err := tx.Bucket([]byte("requests")).ForEach(func(k, v []byte) error {
			value := binary.BigEndian.Uint64(v)
			if other, ok := seen[value]; ok || value == 0 || value > count {
				t.Errorf("request %s was the %dth of %d, as was %q", k, value, count, other)
			}
			seen[value] = string(k)
			return nil
		})
		if err != nil {
			return err
		}
		if uint64(len(seen)) != count {
			t.Errorf("%d requests have made the counter %d", len(seen), count)
		}
		for key, value := range acknowledged {
			if seen[value] != key {
				t.Errorf("request %s was told %d, and in the database that is %q", key, value, seen[value])
			}
		}
		t.Logf("%d requests were counted, %d acknowledged", count, len(acknowledged))
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// stage is where the processes of a test live.
type stage struct {
	t      *testing.T
	root   string
	data   string
	socket string

	mu        sync.Mutex
	processes []*process
}

func newStage(t *testing.T) *stage {
	t.Helper()
	root, err := os.MkdirTemp("", "exclusive") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, root: root, socket: filepath.Join(root, "control")}
	t.Cleanup(func() { os.RemoveAll(root) })
	s.data = s.dir("data")
	return s
}

func (s *stage) dir(name string) string {
	s.t.Helper()
	path := filepath.Join(s.root, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// service starts the service on a directory, with a probation that no test waits
// for.
func (s *stage) service(data string, environ ...string) *process {
	s.t.Helper()
	return s.start("service", environ, "-data", data, "-listen", "127.0.0.1:0", "-probation=1h")
}

// start starts a process, which does not outlive the test.
func (s *stage) start(as string, environ []string, args ...string) *process {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{t: s.t, cmd: exec.Command(exe, args...), news: make(chan struct{}), done: make(chan struct{})}
	p.cmd.Env = slices.Concat(os.Environ(), environ,
		[]string{processEnv + "=" + as, "CROSSFADE_SOCKET=" + s.socket, "GORACE=atexit_sleep_ms=0 " + os.Getenv("GORACE")})
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go p.follow(bufio.NewScanner(stderr))
	s.mu.Lock()
	s.processes = append(s.processes, p)
	s.mu.Unlock()
	s.t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if s.t.Failed() {
			s.t.Logf("process %d, %s:\n\t%s", p.cmd.Process.Pid, as, strings.Join(p.lines, "\n\t"))
		}
	})
	return p
}

// alive lists the processes that have not been waited for.
func (s *stage) alive() []*process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.processes), func(p *process) bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
}

// process is a process of a stage. What it logs are its events.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and all that it said was read

	mu    sync.Mutex
	lines []string
	taken int           // lines that were awaited, or passed over
	news  chan struct{} // closed and replaced with each line
}

func (p *process) follow(in *bufio.Scanner) {
	for in.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, in.Text())
		close(p.news)
		p.news = make(chan struct{})
		p.mu.Unlock()
	}
	_ = p.cmd.Wait() // its state says it all
	close(p.done)
}

// await waits for the next line with this text.
func (p *process) await(text string) string {
	p.t.Helper()
	timer := time.NewTimer(generous)
	defer timer.Stop()
	for done := false; ; {
		p.mu.Lock()
		for p.taken < len(p.lines) {
			line := p.lines[p.taken]
			p.taken++
			if strings.Contains(line, text) {
				p.mu.Unlock()
				return line
			}
		}
		news := p.news
		p.mu.Unlock()
		if done {
			p.t.Fatalf("process %d ended without %q", p.cmd.Process.Pid, text)
		}
		select {
		case <-news:
		case <-p.done:
			done = true
		case <-timer.C:
			p.t.Fatalf("process %d: no %q", p.cmd.Process.Pid, text)
		}
	}
}

// has reports whether a line has this text that was not awaited yet.
func (p *process) has(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.lines[p.taken:], func(line string) bool { return strings.Contains(line, text) })
}

// serving waits until the process serves, and returns where.
func (p *process) serving() string {
	p.t.Helper()
	_, address, _ := strings.Cut(p.await("INFO serving"), "address=")
	return address
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// wantExit waits for the end of the process; -1 is that by a signal.
func (p *process) wantExit(status int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(generous):
		p.t.Fatalf("process %d does not end", p.cmd.Process.Pid)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != status {
		p.t.Errorf("process %d: %v, want status %d", p.cmd.Process.Pid, p.cmd.ProcessState, status)
	}
}

// load is a crowd of clients that count, each request until it is answered.
type load struct {
	t      *testing.T
	url    string
	client http.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu           sync.Mutex
	acknowledged map[string]uint64 // answers by idempotency key
	by           map[int]int       // how many each process has given
	asking       map[string]bool   // keys whose request has failed and is being repeated
	mayFail      bool
	news         chan struct{} // closed and replaced with each answer
}

func startLoad(t *testing.T, address string, workers int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{
		t: t, url: "http://" + address + "/counters/hits", cancel: cancel,
		client:       http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}, Timeout: generous},
		acknowledged: make(map[string]uint64), by: make(map[int]int), asking: make(map[string]bool), news: make(chan struct{}),
	}
	for worker := range workers {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				for key := fmt.Sprintf("%d-%d", worker, n); !l.once(key); {
				}
			}
		})
	}
	t.Cleanup(func() { l.stop(); l.client.CloseIdleConnections() })
	return l
}

// once makes one request, and reports whether it was answered.
func (l *load) once(key string) bool {
	a, err := l.ask(key)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if !l.mayFail {
			l.t.Errorf("request %s: %v", key, err)
		}
		l.asking[key] = true
		return !l.mayFail // what must not fail is not tried for ever
	}
	l.acknowledged[key] = a.Value
	l.by[a.PID]++
	delete(l.asking, key)
	close(l.news)
	l.news = make(chan struct{})
	return true
}

func (l *load) ask(key string) (answer struct {
	Value uint64
	PID   int
}, err error,
) {
	r, err := http.NewRequest(http.MethodPost, l.url, nil)
	if err != nil {
		return answer, err
	}
	r.Header.Set("Idempotency-Key", key)
	resp, err := l.client.Do(r)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer, errors.New(resp.Status)
	}
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

func (l *load) until(what string, holds func() bool) {
	l.t.Helper()
	timer := time.NewTimer(generous)
	defer timer.Stop()
	for {
		l.mu.Lock()
		done, news := holds(), l.news
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-timer.C:
			l.t.Fatalf("no %s", what)
		}
	}
}

// servedBy waits until the process has counted some more.
func (l *load) servedBy(p *process) {
	l.t.Helper()
	pid := p.cmd.Process.Pid
	l.mu.Lock()
	before := l.by[pid]
	l.mu.Unlock()
	l.until(fmt.Sprintf("answers of process %d", pid), func() bool { return l.by[pid] >= before+20 })
}

func (l *load) expectFailures(mayFail bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mayFail = mayFail
}

// settle waits until what has failed was answered.
func (l *load) settle() {
	l.t.Helper()
	l.until("answers to what had failed", func() bool { return len(l.asking) == 0 })
}

func (l *load) stop() map[string]uint64 {
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acknowledged
}

// watch looks on, from outside, that the guard is always held and that the
// database is open in one process at most.
type watch struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	looks  int
	users  map[int]bool // processes that were seen with the database open
}

func startWatch(t *testing.T, s *stage) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{cancel: cancel, users: make(map[int]bool)}
	w.wg.Go(func() {
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				if w.looks == 0 || len(w.users) < 2 {
					t.Errorf("the watch has looked %d times and seen %d users", w.looks, len(w.users))
				}
				return
			}
			w.looks++
			if err := probe(filepath.Join(s.data, "guard")); !errors.Is(err, syscall.EWOULDBLOCK) {
				t.Errorf("the guard can be taken: %v", err)
			}
			w.findUsers(t, s)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *watch) stop() {
	w.cancel()
	w.wg.Wait()
}

// probe tries to lock a file.
func probe(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		return err
	}
	return failed
}

// findUsers looks for two processes that have the database open at one time. One
// look at each would not do: it can change hands in between. But if the first has
// it open both before and after the second was seen with it, both have.
func (w *watch) findUsers(t *testing.T, s *stage) {
	path := filepath.Join(s.data, "counters.db")
	processes := s.alive()
	for _, p := range processes {
		if !opened(p, path) {
			continue
		}
		w.users[p.cmd.Process.Pid] = true
		for _, other := range processes {
			if other != p && opened(other, path) && opened(p, path) {
				t.Errorf("processes %d and %d both have the database open", p.cmd.Process.Pid, other.cmd.Process.Pid)
			}
		}
	}
}

// opened reports whether the process has the file open.
func opened(p *process, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		return err == nil && target == path
	})
}

// runCandidate is a successor that gives up, or dies, when it is sent the last
// page: the owner has let go of its database by then.
func runCandidate(how string) int {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	conn, err := scm.Dial(ctx, os.Getenv("CROSSFADE_SOCKET"))
	if err != nil {
		slog.Error("candidate", "err", err)
		return 2
	}
	taking, err := handoff.Connect(ctx, conn, &handoff.SuccessorConfig{
		Process: handoff.Process{Instance: how, PID: os.Getpid()}, Receiver: candidate{how: how}, Patience: generous, Log: slog.Default(),
	})
	if err != nil {
		slog.Error("candidate", "err", err)
		return 2
	}
	slog.Error("candidate", "err", taking.Ready(ctx, nil))
	return 1
}

// candidate is a handoff.Receiver that keeps nothing and never owns: of the
// interface it needs no more than what comes before that.
type candidate struct {
	handoff.Receiver // nil
	how              string
}

func (candidate) Receive(_ *handoff.Control, ds []handoff.Descriptor) error {
	for _, d := range ds {
		_ = d.FD.Close()
	}
	return nil
}

func (c candidate) Apply(handoff.Changes) error {
	if c.how == "dies" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	return errors.New("this candidate has changed its mind")
}

func (candidate) Fail(error) {}

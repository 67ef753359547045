//go:build unix

package crossfade_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/internal/leak"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

// stateSpec is a state that a service process offers.
type stateSpec struct {
	Name string
	When crossfade.Moment
	// Does is what its writer does. Default: it writes Content, and how often it
	// was called.
	Does    string
	Content string
	Size    int64 // of what "large" writes
}

// takenState is what a service process has read.
type takenState struct {
	Content string
	Size    int64
	Sum     uint32
	File    string // what the kernel says of the file
}

func TestStates(t *testing.T) {
	d, spec, owner, _ := startOwner(t)
	owner.do("offer state", stateSpec{Name: "cache", When: crossfade.AtOffer, Content: "warm"})
	owner.do("offer state", stateSpec{Name: "sessions", When: crossfade.AtCommit, Content: "all"})
	newCandidate(t, spec.Socket, "FinalReceived").close() // for whom both were written in vain
	owner.awaitFailure("gone")

	next := launchCandidate(d, spec)
	wantNames(t, next, "cache unclaimed", "web inherited")
	if e := next.try("take state", "sessions"); !errors.Is(e.Err, crossfade.ErrNotInherited) || !strings.Contains(e.Err.Error(), "when Ready has returned") {
		t.Errorf("a state AtCommit before Ready: %v", e.Err)
	}
	wantState(t, next, "cache", "warm 2")
	wantNames(t, next, "web inherited")
	if e := next.try("take state", "cache"); !errors.Is(e.Err, crossfade.ErrNameTaken) {
		t.Errorf("taking a state again: %v", e.Err)
	}
	next.do("ready")
	wantState(t, next, "sessions", "all 2")
	for name, want := range map[string]error{"sessions": crossfade.ErrNameTaken, "nothing": crossfade.ErrNotInherited, "web": crossfade.ErrNotInherited} {
		if e := next.try("take state", name); !errors.Is(e.Err, want) {
			t.Errorf("taking %s: %v, want %v", name, e.Err, want)
		}
	}
	wantExit(t, owner, crossfade.ErrRetired)
	next.expect("settled")

	// It offers none of its own.
	last := launchCandidate(d, spec)
	if e := last.try("take state", "cache"); !errors.Is(e.Err, crossfade.ErrNotInherited) {
		t.Errorf("a state of the one before the predecessor: %v", e.Err)
	}
	last.do("ready")
}

func wantState(t *testing.T, p *process, name, content string) {
	t.Helper()
	if s := query[takenState](p, "take state", name); s.Content != content {
		t.Errorf("the state %s is %q, want %q", name, s.Content, content)
	}
}

// What a writer does wrong ends the attempt that it was called for, and nothing
// else.
func TestWritersThatFail(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := startOwner(t)
	clients := startLoad(t, "tcp", address, 1)
	before := query[resources](owner, "resources")
	for _, tt := range []struct{ does, says string }{
		{"fail", "the disk is on fire"},
		{"panic", "its writer panicked: nobody expects this"},
		{"exit", "its writer has ended its goroutine"},
		{"write too much", "at most 1073741824 bytes"},
	} {
		for _, when := range []crossfade.Moment{crossfade.AtOffer, crossfade.AtCommit} {
			t.Run(fmt.Sprintf("%s, %v", tt.does, when), func(t *testing.T) {
				owner.do("offer state", stateSpec{Name: "fine", When: when, Content: "fine"})
				owner.do("offer state", stateSpec{Name: "bad", When: when, Does: tt.does})
				wantStateFails(t, d, spec, owner, when, tt.says)
				owner.do("withdraw state", "bad")
				owner.do("withdraw state", "fine")
			})
		}
	}
	clients.more(20)
	clients.stop()
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the owner has %+v, and had %+v", now, before)
	}
	owner.do("offer state", stateSpec{Name: "bad", When: crossfade.AtOffer, Content: "good"})
	owner.do("upgrade", &commandSpec{Spec: &spec})
}

// wantStateFails has the owner upgrade, which the state "bad" shall prevent.
func wantStateFails(t *testing.T, d *desk, spec serviceSpec, owner *process, when crossfade.Moment, reason string) {
	t.Helper()
	upgrade := owner.begin("upgrade", &commandSpec{Spec: &spec})
	child := d.spawned()
	step := map[crossfade.Moment]string{crossfade.AtOffer: "new", crossfade.AtCommit: "ready"}[when]
	e := child.await(step)
	says := fmt.Sprintf(`state "bad", written %v: `, when)
	for who, err := range map[string]error{"Upgrade": upgrade.wait().Err, "the successor's " + step: e.Err} {
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, want %q and %q", who, err, says, reason)
		}
	}
	owner.awaitFailure(reason)
	child.end()
}

// The limit of a writer ends before that of the successor, which is told what
// took so long.
func TestAWriterThatTakesTooLong(t *testing.T) {
	t.Parallel()
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.ReadyTimeout, s.CommitTimeout = 5*time.Second, 5*time.Second })
	for _, when := range []crossfade.Moment{crossfade.AtOffer, crossfade.AtCommit} {
		owner.do("offer state", stateSpec{Name: "bad", When: when, Does: "wait for the end"})
		wantStateFails(t, d, spec, owner, when, "no end of writing within ")
	}
	owner.do("withdraw state", "bad")
	owner.do("upgrade", &commandSpec{Spec: &spec})
}

// A writer that does not heed the end of its context is left behind, and cannot
// be called again before it has returned.
func TestAWriterThatDoesNotReturn(t *testing.T) {
	t.Parallel()
	d, spec, owner, address := startOwner(t, func(s *serviceSpec) { s.ReadyTimeout = time.Second })
	owner.do("offer state", stateSpec{Name: "bad", When: crossfade.AtOffer, Does: "ignore the end"})
	for _, says := range []string{"its writer does not return: no end of writing within ", "its writer has not returned from an earlier call: no end of writing within "} {
		e := d.launch(spec).await("new")
		if e.Err == nil || !strings.Contains(e.Err.Error(), `state "bad", written at offer: `+says) {
			t.Errorf("New: %v, want %q", e.Err, says)
		}
		owner.awaitFailure(says)
	}
	if a := ask(t, "tcp", address); a.PID != owner.pid {
		t.Errorf("answered by %+v", a)
	}
	owner.do("release writers")
	if got := owner.expect("late write").text(); !strings.Contains(got, "not to be written any more") {
		t.Errorf("a write that comes too late: %s", got)
	}
	spec.ReadyTimeout = 0
	next := launchCandidate(d, spec)
	wantState(t, next, "bad", "too late 2")
	next.do("ready")
}

// The end of a successor is noticed while its states are being written.
func TestAWriterIsToldThatItsSuccessorIsGone(t *testing.T) {
	d, spec, owner, _ := startOwner(t)
	for when, step := range map[crossfade.Moment]string{crossfade.AtOffer: "Prepared", crossfade.AtCommit: "Ready"} {
		owner.do("offer state", stateSpec{Name: "bad", When: when, Does: "wait for the end"})
		c := newCandidate(t, spec.Socket, step)
		owner.expect("writing")
		c.close()
		owner.awaitFailure("the other side is gone") // long before any limit
	}
	owner.do("withdraw state", "bad")
	next := d.launch(spec)
	next.expect("ready")
}

func TestAStateOfferedDuringAnAttempt(t *testing.T) {
	d, spec, owner, _ := startOwner(t)
	owner.do("offer state", stateSpec{Name: "changed", When: crossfade.AtOffer, Content: "before"})
	owner.do("offer state", stateSpec{Name: "gone", When: crossfade.AtCommit, Content: "gone"})
	next := launchCandidate(d, spec)
	owner.do("offer state", stateSpec{Name: "changed", When: crossfade.AtCommit, Content: "after"})
	owner.do("offer state", stateSpec{Name: "new", When: crossfade.AtOffer, Content: "new"})
	owner.do("withdraw state", "gone")
	wantNames(t, owner, "changed added", "new added", "web added")
	if e := next.try("take state", "new"); !errors.Is(e.Err, crossfade.ErrNotInherited) {
		t.Errorf("it comes with the last page: %v", e.Err)
	}
	wantState(t, next, "changed", "before 1")
	next.do("ready")
	wantState(t, next, "new", "new 1")
	if e := next.try("take state", "gone"); !errors.Is(e.Err, crossfade.ErrNotInherited) {
		t.Errorf("a state that was withdrawn: %v", e.Err)
	}
}

// A state is not a descriptor that somebody may have forgotten to serve.
// A successor that was waiting begins its attempt at the instant at which this
// process is settled, and takes no state from it.
func TestAStateCanBeTakenWhileASuccessorComes(t *testing.T) {
	d, spec, owner, _ := startOwner(t)
	owner.do("offer state", stateSpec{Name: "counters", When: crossfade.AtCommit, Content: "all"})
	next := d.launch(spec)
	next.expect("ready")
	next.expect("settled")
	newCandidate(t, spec.Socket, "Received")
	wantState(t, next, "counters", "all 1")
}

// Who means "for ever" writes the longest duration there is.
func TestForEver(t *testing.T) {
	const ever = time.Duration(math.MaxInt64)
	d, spec, owner, _ := onProbation(t, ever, func(s *serviceSpec) {
		s.DialTimeout, s.Wait, s.ReadyTimeout, s.MaxReadyTimeout, s.CommitTimeout = ever, ever, ever, ever, ever
		s.MaxProbation, s.DrainTimeout = ever, ever
	})
	for name, when := range map[string]crossfade.Moment{"early": crossfade.AtOffer, "late": crossfade.AtCommit} {
		owner.do("offer state", stateSpec{Name: name, When: when})
	}
	next := begin(d, spec, owner)
	next.do("settle")
	wantExit(t, owner, crossfade.ErrRetired)
	if e := owner.status(); e.State.String() != "draining" {
		t.Errorf("its status is %+v", e)
	}
}

func TestStatesNeedNotBeTaken(t *testing.T) {
	d, spec, owner, _ := startOwner(t, func(s *serviceSpec) { s.Linger = true })
	owner.do("offer state", stateSpec{Name: "cache", When: crossfade.AtOffer})
	owner.do("offer state", stateSpec{Name: "sessions", When: crossfade.AtCommit})
	spec.RequireAllClaimed = true
	next := d.launch(spec)
	next.expect("ready")
	next.awaitLog("closing a state that nobody has taken", "name=cache")
	if e := next.try("take state", "cache"); !errors.Is(e.Err, crossfade.ErrNotInherited) {
		t.Errorf("a state AtOffer after Ready: %v", e.Err)
	}
	next.expect("settled")
	wantNames(t, next, "sessions unclaimed", "web inherited")
	newCandidate(t, spec.Socket, "Received").close()
	next.awaitFailure("gone")
	wantNames(t, next, "sessions unclaimed", "web inherited") // it is this process's to take

	wantExit(t, owner, crossfade.ErrRetired)
	if e := owner.try("offer state", stateSpec{Name: "more", When: crossfade.AtOffer}); !errors.Is(e.Err, crossfade.ErrRetired) {
		t.Errorf("offering a state when retired: %v", e.Err)
	}
}

func TestStatesOfARollback(t *testing.T) {
	d, spec, owner, _ := onProbation(t, long)
	before := query[resources](owner, "resources")
	owner.do("offer state", stateSpec{Name: "sessions", When: crossfade.AtCommit, Content: "all"})
	next := begin(d, spec, owner)
	next.do("rollback")
	owner.awaitFailure("the successor rolled back")
	if e := next.try("take state", "sessions"); !errors.Is(e.Err, crossfade.ErrRolledBack) {
		t.Errorf("after the rollback: %v", e.Err)
	}
	if now := owner.awaitResources(before); now.exceeds(before) {
		t.Errorf("the owner has %+v, and had %+v", now, before)
	}
	spec.Probation = 0
	last := d.launch(spec, environ("CROSSFADE_PROBATION=0"))
	last.expect("ready")
	wantState(t, last, "sessions", "all 2")
}

func TestNamesOfStates(t *testing.T) {
	leak.Check(t)
	upg, err := crossfade.New(t.Context(), &crossfade.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer upg.Stop()
	write := func(context.Context, io.Writer) error { return nil }
	ln, err := upg.Listen(t.Context(), "web", "tcp", loopback+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, tt := range []struct {
		name, state string
		when        crossfade.Moment
		want        string
	}{
		{"a listener's name", "web", crossfade.AtOffer, crossfade.ErrNameTaken.Error()},
		{"no name", "", crossfade.AtOffer, "empty"},
		{"a reserved name", "crossfade.state", crossfade.AtOffer, "keeps for itself"},
		{"a long name", strings.Repeat("n", 201), crossfade.AtOffer, "201 bytes"},
		{"no moment", "state", 0, "moment 0"},
		{"an unknown moment", "state", 3, "moment 3"},
	} {
		if err := upg.OfferState(tt.state, tt.when, write); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	for range 2 { // the second replaces the first
		if err := upg.OfferState("state", crossfade.AtOffer, write); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := upg.Listen(t.Context(), "state", "tcp", loopback+":0"); !errors.Is(err, crossfade.ErrNameTaken) {
		t.Errorf("listening under the name of a state: %v", err)
	}
	if _, err := upg.TakeState("state"); !errors.Is(err, crossfade.ErrNotInherited) {
		t.Errorf("taking a state of one's own: %v", err)
	}
	if err := upg.OfferState("state", crossfade.AtOffer, nil); err != nil {
		t.Fatal(err)
	}
	again, err := upg.Listen(t.Context(), "state", "tcp", loopback+":0")
	if err != nil {
		t.Fatalf("listening under a name that was given back: %v", err)
	}
	again.Close()
	if got := len(upg.Fds().All()); got != 1 {
		t.Errorf("the registry has %d entries", got)
	}
}

// A state that could change while it is read, or that is none, is refused; what
// cannot be sealed is taken, and said to be so.
func TestReceivedStatesAreChecked(t *testing.T) {
	plain := func(t *testing.T) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.WriteString("plain"); err != nil {
			t.Fatal(err)
		}
		return f
	}
	offer := func(t *testing.T, f *os.File, name string, moment pb.StateMoment) offered {
		o := describeAs(t, name, pb.Kind_KIND_STATE, f, nil)
		o.entry.StateMoment = moment
		return o
	}
	for _, tt := range []struct {
		name string
		page func(t *testing.T) []offered
		want string
	}{
		{"a pipe", func(t *testing.T) []offered {
			o := offerPipe(t, "state")
			o.entry.Kind, o.entry.StateMoment = pb.Kind_KIND_STATE, pb.StateMoment_STATE_MOMENT_AT_OFFER
			return []offered{o}
		}, `state "state": the descriptor is no state but a pipe`},
		{"a file that is too large", func(t *testing.T) []offered {
			f := plain(t)
			if err := f.Truncate(crossfade.MaxStateSize + 1); err != nil {
				t.Fatal(err)
			}
			return []offered{offer(t, f, "state", pb.StateMoment_STATE_MOMENT_AT_OFFER)}
		}, "at most 1073741824 bytes, this one has 1073741825"},
		{"another file", func(t *testing.T) []offered {
			o := offer(t, plain(t), "state", pb.StateMoment_STATE_MOMENT_AT_OFFER)
			o.entry.Identity.Ino++
			return []offered{o}
		}, "the manifest describes"},
		{"a name twice", func(t *testing.T) []offered {
			return []offered{
				offer(t, plain(t), "state", pb.StateMoment_STATE_MOMENT_AT_OFFER),
				offer(t, plain(t), "state", pb.StateMoment_STATE_MOMENT_AT_OFFER),
			}
		}, "the manifest has the name twice"},
		{"a listener's name", func(t *testing.T) []offered {
			return []offered{offerListener(t, "state"), offer(t, plain(t), "state", pb.StateMoment_STATE_MOMENT_AT_OFFER)}
		}, "the manifest has the name twice"},
		{"a name for a listener", func(t *testing.T) []offered {
			return []offered{offer(t, plain(t), "state", pb.StateMoment_STATE_MOMENT_AT_OFFER), offerListener(t, "state")}
		}, "the manifest has the name twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			old := newOwnerByHand(t, filepath.Join(socketDir(t), "control"))
			failed := make(chan error, 1) // one result
			go func() {
				upg, err := crossfade.New(context.Background(), &crossfade.Config{Socket: old.path, Logger: slog.New(slog.DiscardHandler)})
				if err == nil {
					upg.Stop()
				}
				failed <- err
			}()
			if reason := old.tender(tt.page(t)...); !strings.Contains(reason, tt.want) {
				t.Errorf("the predecessor was told %q, want %q", reason, tt.want)
			}
			if err := <-failed; !errors.Is(err, crossfade.ErrDescriptor) {
				t.Errorf("New returned %v", err)
			}
		})
	}
	t.Run("a plain file", func(t *testing.T) {
		leak.Check(t)
		d := newDesk(t)
		old := newOwnerByHand(t, d.path("control"))
		next := d.launch(web(d))
		old.tender(offer(t, plain(t), "state", pb.StateMoment_STATE_MOMENT_AT_OFFER))
		next.awaitLog("level=WARN", "the predecessor could not seal a state", "name=state")
		wantState(t, next, "state", "plain")
	})
}

// A predecessor that dies without a word after the last page may have lived on
// after it, while this process stood still.
func TestALateStateOfADeadPredecessorIsDropped(t *testing.T) {
	leak.Check(t)
	d := newDesk(t)
	old := newOwnerByHand(t, d.path("control"))
	next := d.launch(web(d))
	file, err := os.Create(d.path("state"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	early, late := describeAs(t, "early", pb.Kind_KIND_STATE, file, nil), describeAs(t, "late", pb.Kind_KIND_STATE, file, nil)
	early.entry.StateMoment, late.entry.StateMoment = pb.StateMoment_STATE_MOMENT_AT_OFFER, pb.StateMoment_STATE_MOMENT_AT_COMMIT
	old.tender(early)
	wantState(t, next, "early", "")
	ready := next.begin("ready")
	old.expect("Ready", func(m *pb.ClientMessage) bool { return m.GetReady() != nil })
	page, fds := manifestPage(1, []offered{late})
	old.send(page, fds...)
	old.expect("PageAck", func(m *pb.ClientMessage) bool { return m.GetPageAck().GetNext() == 2 })
	old.expect("FinalReceived", func(m *pb.ClientMessage) bool { return m.GetFinalReceived() != nil })
	old.die()
	if err := ready.wait().Err; err != nil {
		t.Fatal(err)
	}
	next.awaitLog("dropping a state that may be old", "name=late")
	if e := next.try("take state", "late"); !errors.Is(e.Err, crossfade.ErrNotInherited) {
		t.Errorf("taking it: %v", e.Err)
	}
}

// What is written AtCommit is as Suspend has left it, and Resume comes after it.
func TestWritingAtCommitIsBetweenSuspendAndResume(t *testing.T) {
	// Without a collection, no finalizer closes a file that was forgotten.
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	leak.Check(t)
	calls := make(chan string, 4) // room for all that are expected
	socket := filepath.Join(socketDir(t), "control")
	owner := newUpgrader(t, &crossfade.Config{
		Socket:  socket,
		Suspend: func(context.Context) error { calls <- "Suspend"; return nil },
		Resume:  func(context.Context) error { calls <- "Resume"; return nil },
	})
	offer := func(name string, when crossfade.Moment, failure error) {
		t.Helper()
		if err := owner.OfferState(name, when, func(context.Context, io.Writer) error { calls <- name; return failure }); err != nil {
			t.Fatal(err)
		}
	}
	offer("early", crossfade.AtOffer, nil)
	offer("late", crossfade.AtCommit, errors.New("not this time"))
	if err := owner.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := newUpgrader(t, &crossfade.Config{Socket: socket})
	if err := next.Ready(t.Context()); !errors.Is(err, crossfade.ErrAborted) || !strings.Contains(err.Error(), "not this time") {
		t.Errorf("Ready: %v", err)
	}
	for _, want := range []string{"early", "Suspend", "late", "Resume"} {
		if got := <-calls; got != want {
			t.Fatalf("%s was called, and not %s", got, want)
		}
	}
}

// 1 GiB passes: both processes have the same file, and neither has a copy of it
// in its own memory.
func TestALargeState(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs time and memory for 1 GiB")
	}
	if free := memoryAvailable(t); free < 2<<30 {
		t.Skipf("the system has %d MiB for a test with 1 GiB", free>>20)
	}
	d, spec, owner, _ := startOwner(t)
	owner.do("offer state", stateSpec{Name: "large", When: crossfade.AtOffer, Does: "write much", Size: crossfade.MaxStateSize})
	next := launchCandidate(d, spec)
	wrote := owner.expect("wrote")
	var want, got takenState
	if err := json.Unmarshal(wrote.Value, &want); err != nil {
		t.Fatal(err)
	}
	got = query[takenState](next, "sum state", "large")
	if got.Size != crossfade.MaxStateSize || got.Sum != want.Sum {
		t.Errorf("the successor has %d bytes with the sum %#x, written were %#x", got.Size, got.Sum, want.Sum)
	}
	if !slices.Contains(query[[]string](owner, "files"), got.File) {
		t.Errorf("the successor has read %s, which the predecessor has not got", got.File)
	}
	for _, p := range []*process{owner, next} {
		if most := query[int64](p, "peak memory"); most > 256<<20 {
			t.Errorf("process %d has used %d MiB of its own", p.pid, most>>20)
		}
	}
	next.do("ready")
	wantExit(t, owner, crossfade.ErrRetired)
}

func memoryAvailable(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Skip("this system does not tell how much memory it has")
	}
	return kilobytes(t, string(text), "MemAvailable:")
}

// kilobytes finds a line of a file of /proc and returns its value in bytes.
func kilobytes(t testing.TB, text, name string) int64 {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name && fields[2] == "kB" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err == nil {
				return n << 10
			}
		}
	}
	if t != nil {
		t.Fatalf("there is no %s", name)
	}
	return -1
}

// BenchmarkState is an attempt with a state, which is written, passed and read
// once, up to where the successor could call Ready.
func BenchmarkState(b *testing.B) {
	for _, size := range []int64{1 << 20, 256 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			socket := filepath.Join(socketDir(b), "control")
			owner := newUpgrader(b, &crossfade.Config{Socket: socket})
			err := owner.OfferState("state", crossfade.AtOffer, func(_ context.Context, w io.Writer) error {
				for range size / int64(len(block)) {
					if _, err := w.Write(block); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			if err := owner.Ready(b.Context()); err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, len(block))
			b.SetBytes(size)
			for b.Loop() {
				next := newUpgrader(b, &crossfade.Config{Socket: socket, Wait: generous})
				file, err := next.TakeState("state")
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{file}, buf); n != size || err != nil {
					b.Fatalf("read %d bytes, %v", n, err)
				}
				file.Close()
				next.Stop()
			}
		})
	}
}

// block is what large states consist of, each time with its number in front.
var block = bytes.Repeat([]byte("crossfade"), 1<<20/9+1)[:1<<20]

// writeBlocks writes size bytes and returns their sum.
func writeBlocks(w io.Writer, size int64) (uint32, error) {
	b := bytes.Clone(block)
	sum := uint32(0)
	for i := uint64(0); size > 0; i++ {
		binary.BigEndian.PutUint64(b, i)
		part := b[:min(size, int64(len(b)))]
		sum = crc32.Update(sum, crc32.IEEETable, part)
		if _, err := w.Write(part); err != nil {
			return 0, err
		}
		size -= int64(len(part))
	}
	return sum, nil
}

// From here on is what runs in the service process.

// releaseWriters is closed when the writers that ignore their context may return.
var releaseWriters = make(chan struct{})

func init() {
	serviceCommands["offer state"] = func(s *service, value json.RawMessage) (any, error) {
		var spec stateSpec
		if err := json.Unmarshal(value, &spec); err != nil {
			return nil, err
		}
		calls := 0
		return nil, s.upg.OfferState(spec.Name, spec.When, func(ctx context.Context, w io.Writer) error {
			calls++ // never at the same time
			return s.writeState(ctx, w, spec, calls)
		})
	}
	serviceCommands["withdraw state"] = func(s *service, value json.RawMessage) (any, error) {
		name, err := text(value)
		if err != nil {
			return nil, err
		}
		return nil, s.upg.OfferState(name, crossfade.AtOffer, nil)
	}
	serviceCommands["release writers"] = func(*service, json.RawMessage) (any, error) {
		close(releaseWriters)
		return done, nil
	}
	serviceCommands["take state"] = func(s *service, value json.RawMessage) (any, error) {
		file, err := s.takeState(value)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		content, err := io.ReadAll(file)
		return takenState{Content: string(content)}, err
	}
	serviceCommands["sum state"] = func(s *service, value json.RawMessage) (any, error) {
		file, err := s.takeState(value)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		sum := crc32.NewIEEE()
		n, err := io.CopyBuffer(sum, struct{ io.Reader }{file}, make([]byte, len(block)))
		return takenState{Size: n, Sum: sum.Sum32(), File: identityOf(info)}, err
	}
	// files lists the regular files that the process has open, memfds included.
	serviceCommands["files"] = func(*service, json.RawMessage) (any, error) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return nil, err
		}
		var files []string
		for _, e := range entries {
			if info, err := os.Stat("/proc/self/fd/" + e.Name()); err == nil && info.Mode().IsRegular() {
				files = append(files, identityOf(info))
			}
		}
		return files, nil
	}
	// peak memory is the most that the process has ever used, but for what it has
	// mapped.
	serviceCommands["peak memory"] = func(*service, json.RawMessage) (any, error) {
		text, err := os.ReadFile("/proc/self/status")
		return kilobytes(nil, string(text), "VmHWM:"), err
	}
}

func (s *service) takeState(value json.RawMessage) (*os.File, error) {
	name, err := text(value)
	if err != nil {
		return nil, err
	}
	return s.upg.TakeState(name)
}

func identityOf(info os.FileInfo) string {
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("device %d, inode %d", st.Dev, st.Ino)
}

func (s *service) writeState(ctx context.Context, w io.Writer, spec stateSpec, call int) error {
	switch spec.Does {
	case "":
		_, err := fmt.Fprintf(w, "%s %d", spec.Content, call)
		return err
	case "fail":
		return errors.New("the disk is on fire")
	case "panic":
		panic("nobody expects this")
	case "exit":
		runtime.Goexit()
	case "write too much":
		// More than is ever touched, and without a look at the error.
		much, err := unix.Mmap(-1, 0, crossfade.MaxStateSize+1, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Munmap(much) }()
		_, _ = w.Write(much)
	case "wait for the end":
		s.emit("writing", nil, nil)
		<-ctx.Done()
		return ctx.Err()
	case "ignore the end":
		<-releaseWriters
		_, err := fmt.Fprintf(w, "too late %d", call)
		s.emit("late write", nil, fmt.Sprint(err))
		return err
	case "write much":
		sum, err := writeBlocks(w, spec.Size)
		s.emit("wrote", err, takenState{Size: spec.Size, Sum: sum})
		return err
	}
	return nil
}

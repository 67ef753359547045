//go:build unix

package generations_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/generations"
	"github.com/crossfade-go/crossfade/internal/leak"
	"github.com/crossfade-go/crossfade/scm"
)

func TestMain(m *testing.M) { leak.Main(m) }

// generous is how long what does not depend on a clock may take.
const generous = time.Minute

// member is a process of a service, as far as this package is concerned.
type member struct {
	*generations.List
	t    *testing.T
	self handoff.Process
	gone chan handoff.Process // has room for all that a test has go
	log  lines
}

// newMember makes the process that is to get the generation, and owns.
func newMember(t *testing.T, generation uint64, changes ...func(*generations.Config)) *member {
	t.Helper()
	m := &member{
		t: t, gone: make(chan handoff.Process, 8),
		self: handoff.Process{Instance: fmt.Sprintf("member %d", generation), Generation: generation},
	}
	cfg := generations.Config{
		Log:  slog.New(slog.NewTextHandler(&m.log, nil)),
		Owns: func() bool { return true }, Gone: func(who handoff.Process) { m.gone <- who },
		Check: func(handoff.Descriptor) error { return nil },
	}
	for _, change := range changes {
		change(&cfg)
	}
	m.List = generations.New(cfg)
	if err := m.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// offer is what m offers, as it is sent: in copies.
func (m *member) offer(limit time.Duration) []handoff.Descriptor {
	m.t.Helper()
	ds, err := m.Offer(m.self, limit)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range ds {
		if ds[i].FD, err = ds[i].FD.Dup(); err != nil {
			m.t.Fatal(err)
		}
	}
	return ds
}

// receive has m take ds in, which came from the predecessor.
func (m *member) receive(ds []handoff.Descriptor) {
	m.t.Helper()
	rest, err := m.Receive(ds)
	if err != nil || len(rest) != 0 {
		m.t.Fatalf("Receive: %v, %v", rest, err)
	}
}

// takeOver has m replace owner, and returns when owner drains.
func (m *member) takeOver(owner *member, limit time.Duration) {
	m.t.Helper()
	m.receive(owner.offer(limit))
	m.Follow(owner.self)
	m.Succeeded()
	m.Retired()
	owner.LetGo()
}

// mustList compares what m lists with generations and states, as in "1 draining".
func (m *member) mustList(want ...string) {
	m.t.Helper()
	var got []string
	for _, g := range m.All() {
		got = append(got, fmt.Sprintf("%d %v", g.Process.Generation, g.State))
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("it lists %q, want %q", got, want)
	}
}

// names are the names of ds.
func names(ds []handoff.Descriptor) []string {
	all := make([]string, 0, len(ds))
	for _, d := range ds {
		all = append(all, d.Name)
	}
	return all
}

func closeAll(ds []handoff.Descriptor) {
	for _, d := range ds {
		_ = d.FD.Close()
	}
}

// awaitGone waits for the end of one older generation.
func (m *member) awaitGone() {
	m.t.Helper()
	select {
	case <-m.gone:
	case <-time.After(generous):
		m.t.Fatalf("nobody has gone; it lists %v", m.All())
	}
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// count is how many lines have the part.
func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

func TestTheLifeOfAList(t *testing.T) {
	first, second, third := newMember(t, 1), newMember(t, 2), newMember(t, 3)
	first.mustList()

	second.receive(first.offer(0))
	second.Follow(first.self)
	second.mustList() // the owner is no older generation yet
	second.Succeeded()
	second.mustList("1 probation")
	second.Retired()
	second.mustList("1 draining")
	first.LetGo()
	second.Told(5, time.Time{})
	if got := second.All()[0]; got.Connections != 5 || !got.Deadline.IsZero() || got.Process != first.self {
		t.Errorf("it lists %v", got)
	}

	second.Told(-1, time.Time{}) // nothing
	if got := second.All()[0]; got.Connections != 5 || !got.Deadline.IsZero() {
		t.Errorf("it lists %v", got)
	}

	third.takeOver(second, 0)
	third.mustList("1 draining", "2 draining")
	if all := third.All(); all[0].Connections != 5 || all[1].Connections != -1 {
		t.Errorf("it lists %v", all)
	}
	third.Told(7, time.Time{}) // which only the predecessor does
	if all := third.All(); all[0].Connections != 5 || all[1].Connections != 7 {
		t.Errorf("it lists %v", all)
	}

	first.Close() // as the end of the process does
	third.awaitGone()
	third.mustList("2 draining")
	second.Close()
	third.awaitGone()
	third.mustList()
}

// A handoff that fails leaves the owner as it was, and the candidate with nothing.
func TestAnOfferOfWhichNothingComes(t *testing.T) {
	first, second, third := newMember(t, 1), newMember(t, 2), newMember(t, 3)
	second.takeOver(first, 0)
	third.receive(second.offer(0))
	third.Follow(second.self)
	third.Forget()
	second.EndOffer()
	third.mustList()
	second.mustList("1 draining")
	third.takeOver(second, 0)
	third.mustList("1 draining", "2 draining")
}

// What is offered stays open until the offer has ended: it may be about to be
// sent.
func TestOneThatGoesDuringAnOffer(t *testing.T) {
	first, second := newMember(t, 1), newMember(t, 2)
	second.takeOver(first, 0)
	ds, err := second.Offer(second.self, 0)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	second.awaitGone()
	sent, err := ds[0].FD.Dup()
	if err != nil {
		t.Fatalf("%s is closed: %v", ds[0].Name, err)
	}
	_ = sent.Close()
	second.EndOffer()
	if sent, err := ds[0].FD.Dup(); err == nil {
		_ = sent.Close()
		t.Error("it is still open after the offer")
	}
}

// What has ended is not offered, whether or not its end was noticed: it does not
// count for the limit of those that may drain, and there is one of those offered.
func TestOneThatHasGoneBeforeAnOffer(t *testing.T) {
	first, second := newMember(t, 1), newMember(t, 2)
	second.takeOver(first, 0)
	first.Close()
	ds := second.offer(0)
	defer closeAll(ds)
	for _, name := range names(ds) {
		if !strings.HasSuffix(name, ".2") {
			t.Errorf("it offers %s", name)
		}
	}
}

// An offer may have as many as the successor takes.
func TestAnOfferOfAsManyAsThereMayBe(t *testing.T) {
	first, owner, next := newMember(t, 1), newMember(t, generations.Max), newMember(t, generations.Max+1)
	alive := first.offer(0)
	t.Cleanup(func() { closeAll(alive) })
	list := func(number uint64) handoff.Descriptor {
		t.Helper()
		d := alive[0]
		d.Name, d.Alive = fmt.Sprintf("crossfade.alive.%d", number), &handoff.Generation{Process: handoff.Process{Generation: number}}
		var err error
		if d.FD, err = d.FD.Dup(); err != nil {
			t.Fatal(err)
		}
		return d
	}
	for n := range uint64(generations.Max - 1) {
		owner.receive([]handoff.Descriptor{list(n + 1)})
	}
	next.takeOver(owner, 0)
	if got := len(next.All()); got != generations.Max {
		t.Errorf("it lists %d, want %d", got, generations.Max)
	}
	if _, err := next.Receive([]handoff.Descriptor{list(1000)}); err == nil || !strings.Contains(err.Error(), "more than 256") {
		t.Errorf("one more: %v", err)
	}
}

// One that has sent nothing of its end is known by its connection.
func TestOneWithoutAPipe(t *testing.T) {
	m := newMember(t, 2)
	m.Follow(handoff.Process{Instance: "mute", Generation: 1})
	m.Succeeded()
	m.Retired()
	m.mustList("1 draining")
	m.Left()
	m.awaitGone()
	m.mustList()

	late := newMember(t, 2)
	late.Left()
	late.Follow(handoff.Process{Instance: "mute", Generation: 1})
	late.Succeeded()
	late.mustList()
}

// However long the offer takes, and what comes after it: the drain begins at
// Retired, and has its limit from there on.
func TestTheLimitCountsFromRetired(t *testing.T) {
	const limit = 2 * time.Second
	for _, tt := range []struct {
		name    string
		offered time.Duration
		change  func(*handoff.Generation)
		want    time.Duration // 0 for no deadline
	}{
		{name: "the predecessor's", offered: limit, want: limit},
		{name: "none", offered: 0},
		{
			name: "one that is over, said by one who counts from the offer", offered: limit,
			change: func(g *handoff.Generation) { g.Limit, g.Deadline = 0, time.Now().Add(-time.Hour) },
			want:   1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := newMember(t, 1), newMember(t, 2)
				ds := first.offer(tt.offered)
				<-time.After(time.Minute) // states are written
				if tt.change != nil {
					tt.change(ds[0].Alive)
				}
				second.receive(ds)
				second.Follow(first.self)
				second.Succeeded()
				second.Retired()
				got := second.All()[0]
				if tt.want == 0 && !got.Deadline.IsZero() || tt.want != 0 && got.Deadline.Sub(got.Since) != tt.want {
					t.Errorf("its deadline is %v after %v, want %v", got.Deadline, got.Since, tt.want)
				}
				second.Forget() // its watch would keep the bubble's clock from moving
			})
		})
	}
}

// An older generation has begun to drain, and its deadline is what it was.
func TestTheDeadlineOfAnOlderGeneration(t *testing.T) {
	first, second, third := newMember(t, 1), newMember(t, 2), newMember(t, 3)
	second.takeOver(first, time.Hour)
	want := second.All()[0].Deadline
	third.takeOver(second, 2*time.Hour)
	all := third.All()
	if !all[0].Deadline.Equal(want) || all[1].Deadline.Sub(all[1].Since) != 2*time.Hour {
		t.Errorf("it lists %v", all)
	}
}

// One warning is enough for each time that it becomes overdue, however often it
// tells of itself.
func TestTheWarningComesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const warning = "an older generation is overdue: end it"
		var owns atomic.Bool
		owns.Store(true)
		m := newMember(t, 2, func(cfg *generations.Config) { cfg.Owns = owns.Load })
		pass := func(d time.Duration, want int) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if got := m.log.count(warning); got != want {
				t.Fatalf("there are %d warnings, want %d", got, want)
			}
		}
		// Without a pipe: what watches one is no business of the bubble.
		m.Follow(handoff.Process{Instance: "mute", Generation: 1})
		m.Succeeded()
		m.Retired()
		deadline := time.Now().Add(time.Minute)
		m.Told(3, deadline)
		pass(time.Minute+4*time.Second, 0)
		owns.Store(false) // for a moment
		pass(2*time.Second, 0)
		owns.Store(true)
		pass(10*time.Second, 1)
		if got := m.Warnings(); len(got) != 1 {
			t.Errorf("the status warns of %q", got)
		}
		for n := range 3 {
			m.Told(n, deadline)
			pass(time.Second, 1)
		}
		m.Told(1, time.Now().Add(time.Minute)) // it has more time
		pass(time.Minute, 1)
		if got := m.Warnings(); len(got) != 0 {
			t.Errorf("the status warns of %q", got)
		}
		pass(6*time.Second, 2)
		m.Told(0, time.Time{})
		pass(time.Second, 2)
	})
}

// Trust in one predecessor is none in the next.
func TestWhoseWordIsTaken(t *testing.T) {
	conn, theirs, err := scm.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = conn.Close(), theirs.Close() })
	if peer, err := conn.Peer(); err == nil {
		_ = peer.Close()
	} else {
		t.Skipf("nobody is trusted on this system: %v", err)
	}
	first, second := newMember(t, 1), newMember(t, 2)
	offered := func() []string {
		t.Helper()
		second.receive(first.offer(0))
		defer second.Forget()
		ds := second.offer(0)
		defer closeAll(ds)
		return names(ds)
	}
	const pidfd = "crossfade.pidfd.1"
	sent := first.offer(0)
	closeAll(sent)
	if !slices.Contains(names(sent), pidfd) {
		t.Skip("there are no pidfds on this system")
	}
	if got := offered(); slices.Contains(got, pidfd) {
		t.Errorf("it has %q from nobody in particular", got)
	}
	second.Trust(conn)
	if got := offered(); !slices.Contains(got, pidfd) {
		t.Errorf("it has %q from one of its own user", got)
	}
	_ = conn.Close() // nothing is known of the peer any more
	second.Trust(conn)
	if got := offered(); slices.Contains(got, pidfd) {
		t.Errorf("it has %q from one that is not known", got)
	}
}

func TestWhatIsReceivedIsChecked(t *testing.T) {
	broken := errors.New("not what it claims to be")
	for _, tt := range []struct {
		name   string
		change func([]handoff.Descriptor) []handoff.Descriptor
		check  error
		says   string
	}{
		{name: "another descriptor", check: broken, says: broken.Error()},
		{name: "nobody's", change: func(ds []handoff.Descriptor) []handoff.Descriptor {
			ds[0].Alive = nil
			return ds
		}, says: "whose end"},
		{name: "no pipe", change: func(ds []handoff.Descriptor) []handoff.Descriptor {
			ds[0].Identity.Type = scm.TypeRegular
			return ds
		}, says: "no pipe"},
		{name: "the same one twice", change: func(ds []handoff.Descriptor) []handoff.Descriptor {
			again := ds[0]
			again.FD, _ = again.FD.Dup()
			return append(ds, again)
		}, says: "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := newMember(t, 1)
			second := newMember(t, 2, func(cfg *generations.Config) {
				cfg.Check = func(handoff.Descriptor) error { return tt.check }
			})
			ds := first.offer(0)
			if tt.change != nil {
				ds = tt.change(ds)
			}
			if _, err := second.Receive(ds); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Receive: %v, want %q", err, tt.says)
			}
			second.Forget()
		})
	}
	t.Run("other kinds are somebody else's", func(t *testing.T) {
		first, second := newMember(t, 1), newMember(t, 2)
		ds := first.offer(0)
		ds[0].Kind = handoff.KindFile
		rest, err := second.Receive(ds[:1])
		if err != nil || len(rest) != 1 {
			t.Errorf("Receive: %v, %v", rest, err)
		}
		closeAll(ds)
	})
}

func TestTotalIsWhatAnOfferHas(t *testing.T) {
	first, second := newMember(t, 1), newMember(t, 2)
	for _, m := range []*member{first, second} {
		ds := m.offer(0)
		if got := m.Total(); got != len(ds) || got == 0 {
			t.Errorf("the total of %d is %d, and its offer has %q", m.self.Generation, got, names(ds))
		}
		closeAll(ds)
		m.EndOffer()
		if m == first {
			second.takeOver(first, 0)
		}
	}
	first.Close()
	second.awaitGone()
	ds := second.offer(0)
	defer closeAll(ds)
	if got := second.Total(); got != len(ds) {
		t.Errorf("the total is %d without the one that has gone, and the offer has %q", got, names(ds))
	}
}

// TestEndDrain is about those whose end the pidfd of this process stands for: it may
// not be signalled, which shows that it was tried.
func TestEndDrain(t *testing.T) {
	kills := func(c *generations.Config) { c.Kill = true }
	trusts := func(t *testing.T, m *member) {
		conn, other, err := scm.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		defer other.Close()
		m.Trust(conn)
	}
	for _, tt := range []struct {
		name       string
		kill       bool
		trusted    bool
		generation uint64
		want       []error
		says       string
	}{
		{"one that is unknown", true, true, 7, nil, "generation 7 has gone"},
		{"without KillOverdue", false, true, 1, []error{handoff.ErrNotAllowed}, "Config.KillOverdue is not set: signal it yourself"},
		{"whose pidfd is not believed", true, false, 1, []error{handoff.ErrNotAllowed}, "no pidfd of generation 1"},
		{"that may not be signalled", true, true, 1, []error{handoff.ErrNotAllowed, os.ErrPermission}, "generation 1 cannot be signalled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if runtime.GOOS != "linux" && slices.Contains(tt.want, os.ErrPermission) {
				t.Skip("only Linux has pidfds")
			}
			first := newMember(t, 1)
			var second *member
			if tt.kill {
				second = newMember(t, 2, kills)
			} else {
				second = newMember(t, 2)
			}
			if tt.trusted {
				trusts(t, second)
			}
			second.takeOver(first, 0)
			text, err := second.EndDrain(tt.generation)
			if len(tt.want) == 0 {
				if err != nil || !strings.Contains(text, tt.says) {
					t.Errorf("%q, %v", text, err)
				}
				return
			}
			for _, target := range tt.want {
				if err == nil || !errors.Is(err, target) || !strings.Contains(err.Error(), tt.says) || text != "" {
					t.Errorf("%q, %v, want %v %q", text, err, target, tt.says)
				}
			}
		})
	}
	t.Run("one that has gone", func(t *testing.T) {
		first, second := newMember(t, 1), newMember(t, 2)
		second.takeOver(first, 0)
		first.Close()
		if text, err := second.EndDrain(1); err != nil || text != "generation 1 has gone" {
			t.Errorf("%q, %v", text, err)
		}
		second.awaitGone()
	})
}

package handoff

import (
	"iter"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// This file turns the package's types into messages and back. What comes from
// the other side is checked here for form; whether a descriptor is what it
// claims to be is for the [Receiver] to check.

// CheckName reports why name cannot name a descriptor or an instance: it must
// have 1 to [MaxName] bytes of printable UTF-8.
func CheckName(name string) error {
	switch {
	case name == "":
		return errNameEmpty
	case len(name) > MaxName:
		return protocolError("a name has %d bytes, the limit is %d", len(name), MaxName)
	case !utf8.ValidString(name):
		return protocolError("the name %q is not UTF-8", name)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return protocolError("the name %q has the unprintable character %U", name, r)
		}
	}
	return nil
}

var errNameEmpty = protocolError("a name is empty")

func processToWire(p Process) *pb.Process {
	return &pb.Process{
		Instance: printable(p.Instance), BuildVersion: printable(p.BuildVersion), Epoch: p.Epoch,
		Generation: p.Generation, Pid: int64(p.PID),
	}
}

func processFromWire(p *pb.Process) Process {
	return Process{
		Instance: printable(p.GetInstance()), BuildVersion: printable(p.GetBuildVersion()),
		Epoch: p.GetEpoch(), Generation: p.GetGeneration(), PID: pidFromWire(p.GetPid()),
	}
}

// pidFromWire takes what no process can have for unknown.
func pidFromWire(pid int64) int {
	if pid < 0 || pid > math.MaxInt32 {
		return 0
	}
	return int(pid)
}

// known returns an enumeration's number as it is here, 0 if it has none of the
// names: an unknown value must not look like a known one, nor lose its upper
// bits on the way.
func known[E ~int32](value E, names []string) uint8 {
	if value < 0 || int(value) >= len(names) {
		return 0
	}
	return uint8(value)
}

// printable bounds a text from the other side and takes out what would harm a
// log or a terminal.
func printable(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func probationEndToWire(e ProbationEnd) pb.ProbationEnd {
	if e == RollbackAtEnd {
		return pb.ProbationEnd_PROBATION_END_ROLLBACK
	}
	return pb.ProbationEnd_PROBATION_END_SETTLE
}

// probationEndFromWire takes what it does not know for the default.
func probationEndFromWire(e pb.ProbationEnd) ProbationEnd {
	if e == pb.ProbationEnd_PROBATION_END_ROLLBACK {
		return RollbackAtEnd
	}
	return SettleAtEnd
}

func controlToWire(c *Control) *pb.Control {
	if c == nil {
		return nil
	}
	return &pb.Control{Path: c.Path, Bound: c.Bound, Dev: c.Dev, Ino: c.Ino, Backlog: uint32(c.Backlog)}
}

func controlFromWire(c *pb.Control) *Control {
	if c == nil {
		return nil
	}
	return &Control{Path: c.GetPath(), Bound: c.GetBound(), Dev: c.GetDev(), Ino: c.GetIno(), Backlog: int(c.GetBacklog())}
}

func descriptorToWire(d Descriptor) *pb.Descriptor {
	w := &pb.Descriptor{
		Id: d.ID, Name: d.Name, Kind: pb.Kind(d.Kind), Network: d.Network, Address: d.Address,
		Identity:    identityToWire(d.Identity),
		StateMoment: pb.StateMoment(d.Moment),
	}
	if d.Alive != nil {
		w.Alive = generationToWire(*d.Alive)
	}
	if u := d.UnixPath; u != nil {
		w.UnixPath = &pb.UnixPath{Path: u.Path, Bound: u.Bound, Dev: u.Dev, Ino: u.Ino}
	}
	return w
}

func identityToWire(id scm.Identity) *pb.Identity {
	return &pb.Identity{
		Type: pb.FileType(id.Type), Domain: int32(id.Domain), SocketType: int32(id.SockType),
		Protocol: int32(id.Protocol), Listening: id.Listening,
		Cookie: id.Cookie, Dev: id.Dev, Ino: id.Ino,
		Network: id.Network, Address: id.Address,
	}
}

func identityFromWire(id *pb.Identity) scm.Identity {
	return scm.Identity{
		Type: scm.Type(id.GetType()), Domain: int(id.GetDomain()), SockType: int(id.GetSocketType()),
		Protocol: int(id.GetProtocol()), Listening: id.GetListening(),
		Network: id.GetNetwork(), Address: id.GetAddress(),
		Cookie: id.GetCookie(), Dev: id.GetDev(), Ino: id.GetIno(),
	}
}

// descriptorFromWire pairs what the manifest says with the descriptor that
// came for it.
func descriptorFromWire(w *pb.Descriptor, fd *scm.FD) (Descriptor, error) {
	if err := CheckName(w.GetName()); err != nil {
		return Descriptor{}, err
	}
	kind := Kind(known(w.GetKind(), kindNames[:]))
	if kind == 0 {
		return Descriptor{}, protocolError("descriptor %q is of the unknown kind %d", w.GetName(), w.GetKind())
	}
	d := Descriptor{
		ID: w.GetId(), Name: w.GetName(), Kind: kind, Network: w.GetNetwork(), Address: w.GetAddress(),
		Identity: identityFromWire(w.GetIdentity()),
		Moment:   momentFromWire(w.GetStateMoment()),
		FD:       fd,
	}
	if w.GetAlive() != nil {
		g := generationFromWire(w.GetAlive())
		d.Alive = &g
	}
	if u := w.GetUnixPath(); u != nil {
		d.UnixPath = &UnixPath{Path: u.GetPath(), Bound: u.GetBound(), Dev: u.GetDev(), Ino: u.GetIno()}
	}
	return d, nil
}

func generationToWire(g Generation) *pb.Generation {
	w := &pb.Generation{Process: processToWire(g.Process), State: pb.State(g.State), Since: ago(g.Since)}
	if g.Connections >= 0 {
		w.Connections = proto.Uint64(uint64(g.Connections))
	}
	switch {
	case g.Limit > 0:
		w.Remaining = durationpb.New(g.Limit)
	case !g.Deadline.IsZero():
		w.Remaining = durationpb.New(time.Until(g.Deadline))
	}
	return w
}

// generationFromWire takes what remains of a drain that has not begun for its
// Limit, however long the message was under way. One that is over before it has
// begun is the shortest, and not none.
func generationFromWire(w *pb.Generation) Generation {
	g := Generation{
		Process: processFromWire(w.GetProcess()), State: State(known(w.GetState(), stateNames[:])),
		Since: before(w.GetSince()), Connections: -1,
	}
	if w != nil && w.Connections != nil { // whether it is there is the question
		g.Connections = count(w.GetConnections())
	}
	switch {
	case w.GetRemaining() == nil:
	case g.State == StateDraining:
		g.Deadline = after(w.GetRemaining())
	default:
		g.Limit = max(durationFromWire(w.GetRemaining()), 1)
	}
	return g
}

func serviceManagerToWire(m *ServiceManager) *pb.ServiceManager {
	w := &pb.ServiceManager{NotifySocket: m.NotifySocket, FdStore: m.FDStore, FdStoreMax: uint32(m.FDStoreMax)}
	if m.Watchdog > 0 {
		w.Watchdog = durationpb.New(m.Watchdog)
	}
	return w
}

func serviceManagerFromWire(w *pb.ServiceManager) ServiceManager {
	return ServiceManager{
		NotifySocket: w.GetNotifySocket(), Watchdog: max(durationFromWire(w.GetWatchdog()), 0),
		FDStore: w.GetFdStore(), FDStoreMax: count(uint64(w.GetFdStoreMax())),
	}
}

// count bounds a number from the other side.
func count(n uint64) int { return int(min(n, math.MaxInt32)) }

// momentFromWire is 0 for a moment that this version does not know.
func momentFromWire(w pb.StateMoment) Moment {
	if w < 0 || int(w) >= len(momentNames) {
		return 0
	}
	return Moment(w)
}

// page is one ManifestPage before it is sent.
type page struct {
	message *pb.ManifestPage
	fds     []*scm.FD
}

// paginate makes pages of at most scm.Batch descriptors and
// maxPageSize bytes, at least one, numbered from first on.
func paginate(first uint32, control *Control, added []Descriptor, removed []uint64) []page {
	pages := []page{{message: &pb.ManifestPage{Page: first, Control: controlToWire(control)}}}
	size := proto.Size(pages[0].message)
	next := func(room int) *page {
		last := &pages[len(pages)-1]
		if len(last.fds) == scm.Batch || size+room > maxPageSize {
			first++
			pages = append(pages, page{message: &pb.ManifestPage{Page: first}})
			last, size = &pages[len(pages)-1], 0
		}
		size += room
		return last
	}
	for _, d := range added {
		w := descriptorToWire(d)
		p := next(proto.Size(w) + 8) // tag and length of the element
		p.message.Descriptors = append(p.message.Descriptors, w)
		p.fds = append(p.fds, d.FD)
	}
	for _, id := range removed {
		p := next(10) // the longest varint
		p.message.Removed = append(p.message.Removed, id)
	}
	pages[len(pages)-1].message.Last = true
	return pages
}

// pageFromWire takes a page and its descriptors apart. On an error every
// descriptor is closed.
func pageFromWire(w *pb.ManifestPage, fds []*scm.FD) (ds []Descriptor, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	if len(fds) != len(w.GetDescriptors()) {
		return nil, protocolError("page %d lists %d descriptors and carries %d", w.GetPage(), len(w.GetDescriptors()), len(fds))
	}
	for i, d := range w.GetDescriptors() {
		descriptor, err := descriptorFromWire(d, fds[i])
		if err != nil {
			return nil, err
		}
		ds = append(ds, descriptor)
	}
	return ds, nil
}

func statusToWire(s *Status) *pb.StatusReply {
	w := &pb.StatusReply{
		Process: processToWire(s.Process), State: pb.State(s.State), Since: ago(s.Since),
		Ready: s.Ready, Settled: s.Settled,
	}
	for _, warning := range s.Warnings {
		w.Warnings = append(w.Warnings, oneLine(warning))
	}
	for _, g := range s.Draining {
		w.Draining = append(w.Draining, generationToWire(g))
	}
	w.Attempt = attemptToWire(s.Attempt)
	if p := s.Probation; p != nil {
		w.Probation = &pb.Probation{
			Predecessor: processToWire(p.Predecessor), Remaining: durationpb.New(time.Until(p.Until)), AtEnd: probationEndToWire(p.AtEnd),
		}
	}
	w.LastFailure = failureToWire(s.LastFailure)
	return w
}

func attemptToWire(a *Attempt) *pb.Attempt {
	if a == nil {
		return nil
	}
	w := &pb.Attempt{Successor: processToWire(a.Successor), Step: a.Step, Status: a.Status, Since: ago(a.Began)}
	if !a.Deadline.IsZero() {
		w.Remaining = durationpb.New(time.Until(a.Deadline))
	}
	return w
}

func attemptFromWire(w *pb.Attempt) *Attempt {
	if w == nil {
		return nil
	}
	a := &Attempt{
		Successor: processFromWire(w.GetSuccessor()), Step: printable(w.GetStep()),
		Status: printable(w.GetStatus()), Began: before(w.GetSince()),
	}
	if w.GetRemaining() != nil {
		a.Deadline = after(w.GetRemaining())
	}
	return a
}

func failureToWire(f *Failure) *pb.Failure {
	if f == nil {
		return nil
	}
	return &pb.Failure{Successor: processToWire(f.Successor), Step: f.Step, Reason: oneLine(f.Reason), Ago: ago(f.At)}
}

func failureFromWire(w *pb.Failure) *Failure {
	if w == nil {
		return nil
	}
	return &Failure{
		Successor: processFromWire(w.GetSuccessor()), Step: printable(w.GetStep()),
		Reason: printable(w.GetReason()), At: before(w.GetAgo()),
	}
}

func eventToWire(e Event) *pb.Event {
	return &pb.Event{
		Process: processToWire(e.Process), State: pb.State(e.State), Text: oneLine(e.Text),
		Attempt: attemptToWire(e.Attempt), Failure: failureToWire(e.Failure),
	}
}

// eventFromWire takes an event for one of this moment.
func eventFromWire(w *pb.Event) Event {
	return Event{
		At: time.Now(), Process: processFromWire(w.GetProcess()), State: State(known(w.GetState(), stateNames[:])),
		Text: printable(w.GetText()), Attempt: attemptFromWire(w.GetAttempt()), Failure: failureFromWire(w.GetFailure()),
	}
}

func outcomeFromWire(w *pb.Outcome) *Outcome {
	return &Outcome{
		Text: printable(w.GetReason()), State: State(known(w.GetState(), stateNames[:])),
		Serving: optionalProcess(w.GetServing()), Who: optionalProcess(w.GetWho()),
	}
}

func optionalProcess(w *pb.Process) *Process {
	if w == nil {
		return nil
	}
	p := processFromWire(w)
	return &p
}

func rehearsalFromWire(w *pb.CheckReply) *Rehearsal {
	r := &Rehearsal{
		Descriptors: int(w.GetTotal()),
		Ready:       durationFromWire(w.GetReadyTimeout()), MaxReady: durationFromWire(w.GetMaxReadyTimeout()),
		Commit: durationFromWire(w.GetCommitTimeout()), Probation: durationFromWire(w.GetProbation()),
	}
	if w.GetRefuse() != nil {
		r.Refusal = refusedFromWire(w.GetRefuse())
	}
	return r
}

// statusPages are the frames of a status: everything but descriptors in the
// first, as many descriptors as fit in each. One is made when it is asked for, so
// that many who do not read hold little.
func statusPages(s *Status) iter.Seq[*pb.StatusReply] {
	return func(yield func(*pb.StatusReply) bool) {
		page, size := statusToWire(s), 0
		for _, d := range s.Descriptors {
			w := &pb.DescriptorStatus{
				Name: printable(d.Name), Kind: pb.Kind(d.Kind), Network: d.Network, Address: printable(d.Address), Origin: pb.Origin(d.Origin),
			}
			if size += proto.Size(w) + 8; size > maxPageSize {
				if !yield(page) {
					return
				}
				page, size = &pb.StatusReply{}, 0
			}
			page.Descriptors = append(page.Descriptors, w)
		}
		page.Last = true
		yield(page)
	}
}

// addPage takes one page of a status in.
func (s *Status) addPage(w *pb.StatusReply) {
	if w.GetProcess() != nil {
		s.Process = processFromWire(w.GetProcess())
		s.State = State(known(w.GetState(), stateNames[:]))
		s.Since = before(w.GetSince())
		s.Ready, s.Settled = w.GetReady(), w.GetSettled()
		for _, warning := range w.GetWarnings() {
			s.Warnings = append(s.Warnings, printable(warning))
		}
		for _, g := range w.GetDraining() {
			s.Draining = append(s.Draining, generationFromWire(g))
		}
		s.Attempt = attemptFromWire(w.GetAttempt())
		if p := w.GetProbation(); p != nil {
			s.Probation = &Probation{
				Predecessor: processFromWire(p.GetPredecessor()), Until: after(p.GetRemaining()),
				AtEnd: probationEndFromWire(p.GetAtEnd()),
			}
		}
		s.LastFailure = failureFromWire(w.GetLastFailure())
	}
	for _, d := range w.GetDescriptors() {
		s.Descriptors = append(s.Descriptors, DescriptorStatus{
			Name: printable(d.GetName()), Kind: Kind(known(d.GetKind(), kindNames[:])), Network: printable(d.GetNetwork()),
			Address: printable(d.GetAddress()), Origin: Origin(known(d.GetOrigin(), originNames[:])),
		})
	}
}

// maxDuration bounds what the other side may call a duration: a hundred years,
// so that neither a sum of a few nor a point in time overflows.
const maxDuration = 100 * 365 * 24 * time.Hour

// durationFromWire is 0 for an absent duration. Nanoseconds that are out of their
// range count as what they amount to.
func durationFromWire(d *durationpb.Duration) time.Duration {
	return min(max(d.AsDuration(), -maxDuration), maxDuration)
}

// ago, before and after carry times as durations: the two sides may not share a
// clock.
func ago(t time.Time) *durationpb.Duration { return durationpb.New(time.Since(t)) }

// before is never in the future.
func before(d *durationpb.Duration) time.Time { return time.Now().Add(-max(durationFromWire(d), 0)) }

func after(d *durationpb.Duration) time.Time { return time.Now().Add(durationFromWire(d)) }

// Package docs_test keeps the documents honest: what they list is what the code
// has, and the example of the protocol is what the code sends.
package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/crossfade-go/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
	"github.com/crossfade-go/crossfade/scm"
)

// section returns the text from a heading of protocol.md up to the next one of
// its level or above.
func section(t *testing.T, heading string) string {
	t.Helper()
	text := read(t, "protocol.md")
	level := strings.IndexFunc(heading, func(r rune) bool { return r != '#' })
	_, rest, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("protocol.md has no heading %q", heading)
	}
	end := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} `, level)).FindStringIndex(rest)
	if end == nil {
		return rest
	}
	return rest[:end[0]]
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// table returns the rows of the first table in text whose header begins with
// these cells. Cells come without their back quotes.
func table(t *testing.T, text string, header ...string) [][]string {
	t.Helper()
	var rows [][]string
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if inside {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i, c := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(c), "`", "")
		}
		switch {
		case !inside:
			inside = len(cells) >= len(header) && slices.Equal(cells[:len(header)], header)
		case strings.HasPrefix(cells[0], "---"):
		default:
			rows = append(rows, cells)
		}
	}
	if len(rows) == 0 {
		t.Fatalf("there is no table that begins with the columns %q", header)
	}
	return rows
}

func column(rows [][]string, n int) []string {
	cells := make([]string, 0, len(rows))
	for _, row := range rows {
		cells = append(cells, row[n])
	}
	return cells
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s\nthe document has %q\nthe code has     %q", what, got, want)
	}
}

// enumNames are the names of an enumeration's values without their prefix and
// without the unspecified one.
func enumNames(d protoreflect.EnumDescriptor, prefix string) []string {
	var names []string
	for i := range d.Values().Len() {
		if v := d.Values().Get(i); v.Number() != 0 {
			names = append(names, strings.TrimPrefix(string(v.Name()), prefix))
		}
	}
	return names
}

func TestMessagesAreThoseOfTheProto(t *testing.T) {
	for _, test := range []struct {
		heading string
		message protoreflect.ProtoMessage
	}{
		{"### From the client", new(pb.ClientMessage)},
		{"### From the server", new(pb.ServerMessage)},
	} {
		t.Run(test.heading, func(t *testing.T) {
			rows := table(t, section(t, test.heading), "message", "member")
			var documented, defined []string
			for _, row := range rows {
				documented = append(documented, row[0]+" "+row[1])
			}
			fields := test.message.ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
			for i := range fields.Len() {
				f := fields.Get(i)
				defined = append(defined, string(f.Message().Name())+" "+string(f.Name()))
			}
			compare(t, "messages", documented, defined)
		})
	}
}

func TestFieldsNamedInMessagesExist(t *testing.T) {
	known := make(map[string]bool)
	var collect func(protoreflect.MessageDescriptor)
	collect = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if first := !known[string(m.Name())+"."+string(f.Name())]; first {
				known[string(m.Name())+"."+string(f.Name())] = true
				known[string(f.Name())] = true
				if f.Message() != nil {
					collect(f.Message())
				}
			}
		}
	}
	collect(new(pb.ClientMessage).ProtoReflect().Descriptor())
	collect(new(pb.ServerMessage).ProtoReflect().Descriptor())
	name := regexp.MustCompile("`([a-z_]+|[A-Z][A-Za-z]+\\.[a-z_]+)`")
	for _, heading := range []string{"### From the client", "### From the server", "## 9. The manifest", "## 17. Versions and features"} {
		for _, m := range name.FindAllStringSubmatch(section(t, heading), -1) {
			if !known[m[1]] {
				t.Errorf("%s names the field %q, which no message has", heading, m[1])
			}
		}
	}
}

func TestStates(t *testing.T) {
	rows := table(t, section(t, "## 2. Words"), "state", "meaning", "owns")
	var inCode, owning, documentedOwning []string
	for s := handoff.StateCandidate; s <= handoff.StateOut; s++ {
		inCode = append(inCode, s.String())
		if s.Owns() {
			owning = append(owning, s.String())
		}
	}
	for _, row := range rows {
		if row[2] == "yes" {
			documentedOwning = append(documentedOwning, row[0])
		}
	}
	compare(t, "states", column(rows, 0), inCode)
	compare(t, "states that own", documentedOwning, owning)
	var onTheWire []string
	for _, name := range enumNames(pb.State(0).Descriptor(), "STATE_") {
		onTheWire = append(onTheWire, strings.ToLower(name))
	}
	compare(t, "states on the wire", column(rows, 0), onTheWire)
}

func TestKinds(t *testing.T) {
	rows := table(t, section(t, "### Descriptors"), "kind", "must be")
	var inCode, onTheWire []string
	for k := handoff.KindListener; k <= handoff.KindAlive; k++ {
		inCode = append(inCode, k.String())
	}
	for _, name := range enumNames(pb.Kind(0).Descriptor(), "KIND_") {
		onTheWire = append(onTheWire, strings.ToLower(strings.ReplaceAll(name, "_", " ")))
	}
	compare(t, "kinds", column(rows, 0), inCode)
	compare(t, "kinds on the wire", column(rows, 0), onTheWire)
}

func TestCodes(t *testing.T) {
	text := section(t, "## 13. Refusals and aborts")
	compare(t, "refuse codes", column(table(t, text, "code", "kind"), 0), enumNames(pb.RefuseCode(0).Descriptor(), "REFUSE_CODE_"))
	compare(t, "abort codes", column(table(t, text, "code", "when"), 0), enumNames(pb.AbortCode(0).Descriptor(), "ABORT_CODE_"))
	text = section(t, "## 14. Controllers")
	compare(t, "outcome codes", column(table(t, text, "outcome", "when"), 0), enumNames(pb.OutcomeCode(0).Descriptor(), "OUTCOME_CODE_"))
	compare(t, "error codes", column(table(t, text, "error", "when"), 0), enumNames(pb.ErrorCode(0).Descriptor(), "ERROR_CODE_"))
}

func TestRequests(t *testing.T) {
	var documented, defined []string
	for _, cell := range column(table(t, section(t, "## 14. Controllers"), "request", "what it asks for"), 0) {
		documented = append(documented, strings.Split(cell, ", ")...)
	}
	fields := new(pb.ControlRequest).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	for i := range fields.Len() {
		defined = append(defined, string(fields.Get(i).Name()))
	}
	compare(t, "requests", documented, defined)
}

// TestSkews: whatever the document says of something unknown has its test.
func TestSkews(t *testing.T) {
	const file = "../handoff/skew_test.go"
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var tested []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		pair, ok := n.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		key, named := pair.Key.(*ast.Ident)
		value, literal := pair.Value.(*ast.BasicLit)
		if named && literal && key.Name == "unknown" {
			text, err := strconv.Unquote(value.Value)
			if err != nil {
				t.Fatal(err)
			}
			tested = append(tested, text)
		}
		return true
	})
	compare(t, "what may be unknown", column(table(t, section(t, "## 17. Versions and features"), "unknown", "the receiver"), 0), tested)
}

func TestLimits(t *testing.T) {
	want := map[string]int{
		"payload of a frame":                             scm.MaxPayload,
		"payload of a frame before the offer":            number(t, "../handoff/types.go", "maxRequest"),
		"versions, features in a Hello":                  number(t, "../handoff/types.go", "maxListed"),
		"descriptors on a frame":                         scm.MaxDescriptors,
		"descriptors and ids on a manifest page":         number(t, "../handoff/types.go", "maxPageSize"),
		"pages without PageAck":                          number(t, "../handoff/types.go", "pageWindow"),
		"descriptors of an offer and its last pages":     handoff.MaxDescriptors,
		"a name, an instance":                            handoff.MaxName,
		"status in Progress":                             handoff.MaxStatus,
		"reason":                                         number(t, "../handoff/errors.go", "maxReason"),
		"older generations in an offer":                  number(t, "../internal/generations/generations.go", "Max"),
		"connections that a server serves at once":       number(t, "../handoff/guest.go", "maxConnections"),
		"watches among these":                            number(t, "../handoff/guest.go", "maxConnections") / 2,
		"events that a watch may be behind":              number(t, "../handoff/watch.go", "watchQueue"),
		"instances that a server remembers as cancelled": number(t, "../handoff/command.go", "maxCancelled"),
		"reason of a ConnectionAck":                      number(t, "../handoff/connection.go", "maxAckReason"),
		"unread and state of a Connection, together":     handoff.MaxPassedBytes,
		"Connections without ConnectionAck":              handoff.ConnectionWindow,
	}
	rows := table(t, section(t, "## 6. Frames"), "limit", "value")
	compare(t, "limits", column(rows, 0), slices.Collect(maps.Keys(want)))
	for _, row := range rows {
		value, _, _ := strings.Cut(row[1], " ")
		if value != strconv.Itoa(want[row[0]]) {
			t.Errorf("the limit %q is given as %s, in the code it is %d", row[0], value, want[row[0]])
		}
	}
}

func TestDeadlines(t *testing.T) {
	hello, write := duration(t, "../config.go", "helloTimeout"), duration(t, "../handoff/link.go", "writeTimeout")
	want := map[string]time.Duration{
		"the first connect to an owner that answers, or a claim":                              crossfade.DefaultDialTimeout,
		"accept to a complete Hello, a controller's request included, and the owner's policy": hello,
		"its last message to Welcome, each page of the offer":                                 crossfade.DefaultDialTimeout,
		"Welcome to Ready": crossfade.DefaultReadyTimeout,
		"Welcome to Ready, as far as Progress may move it": crossfade.DefaultMaxReadyTimeout,
		"Ready to FinalReceived":                           crossfade.DefaultCommitTimeout,
		" to one write":                                    write,
		"the start to Hello":                               crossfade.DefaultReadyTimeout,

		"a cancel with kill to the exit of the candidate's process": duration(t, "../handoff/command.go", "cancelGrace"),
		"its decision to leave to the last answers to controllers":  time.Second, // debtLimit
		"the end of DrainTimeout to its exit":                       duration(t, "../drain.go", "drainGrace"),
		"the end of an older generation's drain to its end of file": duration(t, "../internal/generations/generations.go", "killGrace"),
	}
	for _, row := range table(t, section(t, "## 12. Time"), "who waits", "from", "to", "default") {
		if limit, ok := want[row[1]+" to "+row[2]]; ok {
			delete(want, row[1]+" to "+row[2])
			if got := strings.NewReplacer(" min", "m0s", " s", "s").Replace(row[3]); got != limit.String() {
				t.Errorf("the wait from %q to %q is given as %s, in the code it is %v", row[1], row[2], row[3], limit)
			}
		}
	}
	for wait := range want {
		t.Errorf("the table lacks the wait from %s", wait)
	}
}

// constant returns the expression that defines a constant, such as "64 << 10".
func constant(t *testing.T, file, name string) string {
	t.Helper()
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	expression := ""
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, id := range spec.Names {
			if id.Name == name && i < len(spec.Values) {
				expression = types.ExprString(spec.Values[i])
			}
		}
		return true
	})
	if expression == "" {
		t.Fatalf("%s has no constant %s", file, name)
	}
	return expression
}

func number(t *testing.T, file, name string) int {
	t.Helper()
	tv, err := types.Eval(token.NewFileSet(), nil, token.NoPos, constant(t, file, name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(tv.Value.ExactString())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, file, name string) time.Duration {
	t.Helper()
	units := map[string]time.Duration{"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute}
	count, unit, _ := strings.Cut(constant(t, file, name), " * time.")
	n, err := strconv.Atoi(count)
	if err != nil || units[unit] == 0 {
		t.Fatalf("%s in %s is %q, expected a number of units", name, file, constant(t, file, name))
	}
	return time.Duration(n) * units[unit]
}

func TestEnvironment(t *testing.T) {
	source := read(t, "../env.go")
	for _, row := range table(t, section(t, "## 18. Environment"), "variable", "meaning") {
		name := strings.TrimPrefix(row[0], "CROSSFADE_")
		if used, reserved := strings.Contains(source, `envPrefix + "`+name+`"`), row[1] == "reserved"; used == reserved {
			t.Errorf("%s is documented as %q; the code reads it: %t", row[0], row[1], used)
		}
	}
	for _, m := range regexp.MustCompile(`envPrefix \+ "(\w+)"`).FindAllStringSubmatch(source, -1) {
		if !strings.Contains(section(t, "## 18. Environment"), "`CROSSFADE_"+m[1]+"`") {
			t.Errorf("CROSSFADE_%s is not documented", m[1])
		}
	}
}

// TestCitedInvariants: comments in the code cite the invariants by number.
func TestCitedInvariants(t *testing.T) {
	stated := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^\*\*(I\d+)\. `).FindAllStringSubmatch(section(t, "## 3. Invariants"), -1) {
		stated[m[1]] = true
	}
	if len(stated) != 12 {
		t.Errorf("%d invariants are stated, want 12", len(stated))
	}
	cited := regexp.MustCompile(`[( ](I\d+)[),. ]`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		for line := range strings.Lines(read(t, path)) {
			_, comment, _ := strings.Cut(line, "//")
			for _, m := range cited.FindAllStringSubmatch(comment, -1) {
				if !stated[m[1]] {
					t.Errorf("%s cites the invariant %s, which protocol.md does not state", path, m[1])
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOperationsQuotesTheCode: what an operator finds in the document is what the
// code says. An ellipsis in a quotation stands for anything.
func TestOperationsQuotesTheCode(t *testing.T) {
	var literals strings.Builder
	for _, directory := range []string{"..", "../cmd/crossfade", "../handoff", "../scm", "../internal/exclusive", "../internal/generations", "../internal/rendezvous", "../internal/statefile", "../internal/unit"} {
		files, err := filepath.Glob(filepath.Join(directory, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if text, err := strconv.Unquote(lit.Value); err == nil {
						literals.WriteString(text + "\n")
					}
				}
				return true
			})
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(read(t, "operations.md"), -1)
	if len(rows) == 0 {
		t.Fatal("operations.md quotes nothing")
	}
	for _, row := range rows {
		for piece := range strings.SplitSeq(row[1], "...") {
			if piece = strings.TrimSpace(piece); !strings.Contains(literals.String(), piece) {
				t.Errorf("no message in the code has %q", piece)
			}
		}
	}
}

// TestLinks follows what leads from one document to a file or to a heading.
func TestLinks(t *testing.T) {
	documents, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, document := range documents {
		for _, m := range link.FindAllStringSubmatch(read(t, document), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			if file == "" {
				file = document
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link %q leads nowhere: %v", document, m[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, file)), anchor) {
				t.Errorf("%s: there is no heading for the link %q", document, m[1])
			}
		}
	}
}

// anchors are the names that headings get.
func anchors(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestSecurityClaimsAreTested: behind each claim of the threat model stands a test
// that exists, and each actor that could do harm has one.
func TestSecurityClaimsAreTested(t *testing.T) {
	known := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`).FindAllStringSubmatch(read(t, path), -1) {
			known[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, "security.md")
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllStringSubmatch(text, -1) {
		if !known[m[1]] {
			t.Errorf("security.md names the test %s, which does not exist", m[1])
		}
	}
	for _, row := range table(t, text, "actor", "what it can do", "what keeps it from more", "proved by") {
		defended := !strings.HasPrefix(row[2], "-")
		if defended && !strings.Contains(row[3], "Test") {
			t.Errorf("nothing proves what is said of %q", row[0])
		}
	}
}

// TestWhoMayDoWhat compares the table of the default with the code's kinds of access.
func TestWhoMayDoWhat(t *testing.T) {
	var documented, inCode []string
	text := read(t, "security.md")
	for _, m := range regexp.MustCompile("(?m)^\\| who \\| `(\\w+)`[^|]*\\| `(\\w+)`[^|]*\\| `(\\w+)`").FindAllStringSubmatch(text, -1) {
		documented = append(documented, m[1:]...)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t(Access\w+) = handoff\.`).FindAllStringSubmatch(read(t, "../access.go"), -1) {
		inCode = append(inCode, m[1])
	}
	compare(t, "kinds of access", documented, inCode)
}

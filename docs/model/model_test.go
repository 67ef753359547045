package main_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/internal/leak"
	pb "github.com/crossfade-go/crossfade/proto/crossfade/handoff/v1"
)

func TestMain(m *testing.M) { leak.Main(m) }

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var comment = regexp.MustCompile(`(?s)/\*.*?\*/`)

// mtype returns the members of one enumeration in names.pml.
func mtype(t *testing.T, kind string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?s)mtype:` + kind + ` = \{(.*?)\}`).FindStringSubmatch(read(t, "names.pml"))
	if m == nil {
		t.Fatalf("names.pml defines no mtype:%s", kind)
	}
	return strings.FieldsFunc(comment.ReplaceAllString(m[1], ""), func(r rune) bool { return strings.ContainsRune(", \t\n", r) })
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\nthe model has %q\nthe code has  %q", what, got, want)
	}
}

func TestStatesAreThoseOfTheCode(t *testing.T) {
	var states []string
	for s := handoff.StateCandidate; s <= handoff.StateOut; s++ {
		states = append(states, s.String())
	}
	compare(t, "states", mtype(t, "state"), states)
}

// TestOwningStatesAreThoseOfTheCode: the claims speak of owns(x).
func TestOwningStatesAreThoseOfTheCode(t *testing.T) {
	m := regexp.MustCompile(`(?m)^#define owns\(x\) (.*)$`).FindStringSubmatch(read(t, "rules.pml"))
	if m == nil {
		t.Fatal("rules.pml does not define owns(x)")
	}
	var model, code []string
	for _, s := range regexp.MustCompile(`state\[x\] == (\w+)`).FindAllStringSubmatch(m[1], -1) {
		model = append(model, s[1])
	}
	for s := handoff.StateCandidate; s <= handoff.StateOut; s++ {
		if s.Owns() {
			code = append(code, s.String())
		}
	}
	compare(t, "states that own", model, code)
}

// TestMessagesAreThoseOfTheProto: each is in the model, or is listed among those
// that it leaves out, with the reason.
func TestMessagesAreThoseOfTheProto(t *testing.T) {
	defined := make(map[string]bool) // Abort is a member of both
	for _, m := range []proto.Message{new(pb.ClientMessage), new(pb.ServerMessage)} {
		fields := m.ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
		for i := range fields.Len() {
			defined[string(fields.Get(i).Message().Name())] = true
		}
	}
	var messages []string
	for name := range defined {
		messages = append(messages, name)
	}
	modelled := slices.DeleteFunc(mtype(t, "message"), func(name string) bool { return name == "garbage" })
	_, list, _ := strings.Cut(read(t, "names.pml"), "Left out")
	for _, m := range regexp.MustCompile(`(?m)^ \* (\w+): \S`).FindAllStringSubmatch(list, -1) {
		modelled = append(modelled, m[1])
	}
	compare(t, "messages", modelled, messages)
}

// TestNamesAreUsed: a name that no rule uses would make the comparisons vain.
func TestNamesAreUsed(t *testing.T) {
	rules := comment.ReplaceAllString(read(t, "rules.pml")+read(t, "drain.pml"), "")
	for _, name := range append(mtype(t, "state"), mtype(t, "message")...) {
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(rules) {
			t.Errorf("no rule of the model uses %s", name)
		}
	}
}

// documented are the states of a machine in docs/protocol.md under which to look
// for what the model receives below the labels that begin with the key. The
// longest key counts.
var documented = map[string]map[string][]string{
	"Predecessor": {
		"owner":             {"owner"},
		"offering":          {"offering", "offering, committing"},
		"committing":        {"committing", "offering, committing"},
		"standby":           {"standby"},
		"standby_last_wait": {"standby", "probation"}, // told to stop, it hears CommitAck and what comes then
		"probation":         {"probation"},
		"draining":          {"draining"},
	},
	"Successor": {
		"candidate_hello":    {"candidate, before Received"},
		"candidate_offer":    {"candidate, before Received"},
		"candidate_received": {"candidate, after Received"},
		"candidate_final":    {"candidate, after Ready"},
		"candidate_commit":   {"candidate, after Ready"},
		"owner":              {"owner, not settled"},
		"yielding":           {"yielding"},
	},
}

// TestReceivesAreDocumented looks each message that the model receives up in the
// state tables of docs/protocol.md.
func TestReceivesAreDocumented(t *testing.T) {
	rules := comment.ReplaceAllString(read(t, "rules.pml"), "")
	for _, name := range []string{"BEFORE_COMMIT", "WHILE_CANDIDATE"} {
		m := regexp.MustCompile(`(?m)^#define ` + name + ` \\\n((?:.*\\\n)*.*\n)`).FindStringSubmatchIndex(rules)
		if m == nil {
			t.Fatalf("rules.pml does not define %s", name)
		}
		body := strings.ReplaceAll(rules[m[2]:m[3]], "\\\n", "\n")
		rules = strings.ReplaceAll(rules[:m[0]]+rules[m[1]:], name, body)
	}
	protocol := read(t, "../protocol.md")
	for machine, heading := range map[string]string{"Predecessor": "## 10. The predecessor", "Successor": "## 11. The successor"} {
		_, body, _ := strings.Cut(rules, "proctype "+machine)
		body, _, _ = strings.Cut(body, "\n}")
		_, section, _ := strings.Cut(protocol, "\n"+heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		events := eventsByState(section)
		label, receives := "", 0
		for line := range strings.Lines(body) {
			if m := regexp.MustCompile(`^(\w+):`).FindStringSubmatch(line); m != nil {
				label = m[1]
			}
			if strings.Contains(line, "note(crossed)") || strings.Contains(line, "{ mutant(") {
				continue // a claim says that it never comes; or a mutation
			}
			for _, m := range regexp.MustCompile(`to(?:Server|Client)\[l\]\?([A-Z]\w+)`).FindAllStringSubmatch(line, -1) {
				receives++
				key := ""
				for k := range documented[machine] {
					if strings.HasPrefix(label, k) && len(k) > len(key) {
						key = k
					}
				}
				word := regexp.MustCompile(`\b` + m[1] + `\b`)
				if !slices.ContainsFunc(documented[machine][key], func(state string) bool { return word.MatchString(events[state]) }) {
					t.Errorf("%s receives %s at %s, but protocol.md has no such event in %q", machine, m[1], label, documented[machine][key])
				}
			}
		}
		if receives < 10 {
			t.Errorf("%s receives only %d messages: has the form of the model changed?", machine, receives)
		}
	}
}

// eventsByState joins the events of each state in the one table of a section. An
// empty cell stands for the state above it.
func eventsByState(section string) map[string]string {
	events := make(map[string]string)
	state := ""
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 2 {
			continue
		}
		if s := strings.TrimSpace(cells[0]); s != "" {
			state = s
		}
		events[state] += cells[1] + "\n"
	}
	return events
}

// TestEachClaimHasItsMutation: a claim that no mutation can break says nothing,
// and a mutation that no rule obeys breaks nothing.
func TestEachClaimHasItsMutation(t *testing.T) {
	broken := make(map[string]bool)
	rules := read(t, "rules.pml") + read(t, "drain.pml")
	readme := read(t, "README.md")
	claims := make(map[string]bool)
	for _, model := range []string{"handoff", "chain", "drain"} {
		for _, m := range regexp.MustCompile(`(?m)^ltl (\w+) \{`).FindAllStringSubmatch(read(t, model+".pml"), -1) {
			if !strings.HasPrefix(m[1], "reach_") {
				claims[model+" "+m[1]] = true
				if !strings.Contains(readme, "`"+m[1]+"`") {
					t.Errorf("README.md does not explain the claim %s", m[1])
				}
			}
		}
	}
	numbers := make(map[string]string)
	defined := regexp.MustCompile(`(?m)^#define ([A-Z_]+) +([1-9][0-9]*) /\* (\w+ \w+): .* \*/$`).FindAllStringSubmatch(read(t, "mutations.pml"), -1)
	if all := regexp.MustCompile(`(?m)^#define [A-Z_]+ +[1-9]`).FindAllString(read(t, "mutations.pml"), -1); len(all) != len(defined) {
		t.Errorf("%d of the %d mutations lack the comment that says what they break", len(all)-len(defined), len(all))
	}
	for _, m := range defined {
		name, number, claim := m[1], m[2], m[3]
		broken[claim] = true
		if other := numbers[number]; other != "" {
			t.Errorf("the mutations %s and %s have the same number", name, other)
		}
		numbers[number] = name
		if !claims[claim] {
			t.Errorf("%s is to break %s, which is no claim", name, claim)
		}
		if !strings.Contains(rules, "mutant("+name+")") {
			t.Errorf("no rule obeys the mutation %s", name)
		}
	}
	for claim := range claims {
		if !broken[claim] {
			t.Errorf("no mutation breaks the claim %s", claim)
		}
	}
}

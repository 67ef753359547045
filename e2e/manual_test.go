//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// manual is what docs/tool.md says of the objects that the tool prints. Whoever
// decodes them here has read nothing else.
type manual struct {
	every    fields            // of every object
	process  fields            // of every process
	commands map[string]fields // of a command's object besides, by its name
	parts    map[string]fields // of what is within an object, by what the table says it is of
	codes    []string          // the exit codes
}

type (
	// fields are the rows of a table, by name.
	fields map[string]field
	// field is what a row says.
	field struct{ kind, meaning string }
)

// readManual reads docs/tool.md, once.
var readManual = sync.OnceValues(func() (*manual, error) {
	text, err := os.ReadFile("../docs/tool.md")
	if err != nil {
		return nil, err
	}
	return parseManual(string(text))
})

// parseManual takes the tables whose first column is called field, or field of
// something, and that of the exit codes.
func parseManual(text string) (*manual, error) {
	m := &manual{commands: make(map[string]fields), parts: make(map[string]fields)}
	var section []string // the commands that it is about, none for a general one
	var table fields
	codes := false
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(line, "#"); ok {
			section = nil
			if names, ok := strings.CutPrefix(strings.TrimSpace(strings.TrimLeft(title, "#")), "crossfade "); ok {
				section = strings.Split(names, ", ")
			}
			for _, name := range section {
				m.commands[name] = make(fields)
			}
		}
		cells := strings.Split(strings.TrimSpace(line), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case len(cells) != 5:
			table, codes = nil, false
		case cells[1] == "code" && cells[2] == "meaning":
			codes = true
		case codes && strings.Trim(cells[1], "-") != "":
			m.codes = append(m.codes, cells[1])
		case strings.HasPrefix(cells[1], "field") && cells[2] == "type":
			table = m.table(section, cells[1])
		case table != nil && strings.Trim(cells[1], "-") != "":
			table[strings.Trim(cells[1], "`")] = field{cells[2], cells[3]}
		}
	}
	if m.every == nil || m.process == nil || len(m.codes) == 0 {
		return nil, errors.New("docs/tool.md lacks the table of the fields that every object has, that of a process, or that of the exit codes")
	}
	return m, nil
}

// table returns where the rows of a table belong: under a command, to a part of its
// object, or, in a general section, to every object first and then to a process.
func (m *manual) table(section []string, title string) fields {
	switch of, part := strings.CutPrefix(title, "field of "); {
	case part:
		of = strings.TrimPrefix(strings.Trim(of, "`"), "a ")
		m.parts[of] = make(fields)
		return m.parts[of]
	case len(section) == 1:
		return m.commands[section[0]]
	case m.every == nil:
		m.every = make(fields)
		return m.every
	default:
		m.process = make(fields)
		return m.process
	}
}

// checkOutput checks what a command has printed with --json.
func (m *manual) checkOutput(command string, stdout string) error {
	own, ok := m.commands[command]
	if !ok {
		return fmt.Errorf("docs/tool.md has no section about crossfade %s", command)
	}
	watching := strings.Contains(command, "--watch")
	lines := 0
	for line := range strings.Lines(stdout) {
		lines++
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
		want := maps.Clone(m.every)
		maps.Copy(want, own)
		if watching {
			want = own
		}
		if object["code"] == 2.0 { // the fields of the command may be missing
			maps.DeleteFunc(want, func(name string, _ field) bool {
				_, has := object[name]
				_, must := m.every[name]
				return !has && !must
			})
		}
		if err := m.checkFields(want, object); err != nil {
			return fmt.Errorf("by docs/tool.md this is wrong: %w: %s", err, line)
		}
	}
	if lines != 1 && !watching {
		return fmt.Errorf("%d lines instead of one object", lines)
	}
	return nil
}

// checkFields checks that an object has these fields and no others.
func (m *manual) checkFields(want fields, object map[string]any) error {
	var errs []error
	for name, f := range want {
		value, ok := object[name]
		if !ok {
			errs = append(errs, fmt.Errorf("the field %q is missing", name))
		} else if err := m.check(name, f, value); err != nil {
			errs = append(errs, fmt.Errorf("the field %q: %w", name, err))
		}
	}
	for name := range object {
		if _, ok := want[name]; !ok {
			errs = append(errs, fmt.Errorf("nothing is said of the field %q", name))
		}
	}
	return errors.Join(errs...)
}

// check checks the value of a field. Alternatives are joined by or.
func (m *manual) check(name string, f field, value any) error {
	var errs []error
	for kind := range strings.SplitSeq(f.kind, " or ") {
		err := m.checkKind(name, kind, f.meaning, value)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m *manual) checkKind(name, kind, meaning string, value any) error {
	ok := false
	switch kind {
	case "null":
		ok = value == nil
	case "boolean":
		_, ok = value.(bool)
	case "number":
		_, ok = value.(float64)
	case "string":
		_, ok = value.(string)
	case "time":
		text, isString := value.(string)
		_, err := time.Parse(time.RFC3339, text)
		ok = isString && err == nil && strings.HasSuffix(text, "Z")
	case "process", "object":
		if object, isObject := value.(map[string]any); isObject {
			return m.checkPart(name, kind, meaning, object)
		}
	case "array", "array of strings":
		if array, isArray := value.([]any); isArray {
			return m.checkElements(name, kind, array)
		}
	default:
		return fmt.Errorf("what is the type %q?", kind)
	}
	if !ok {
		return fmt.Errorf("%v is no %s", value, kind)
	}
	return nil
}

// checkPart checks an object within another: a process, with the table that bears the
// field's name if there is one, or whatever that table says.
func (m *manual) checkPart(name, kind, meaning string, object map[string]any) error {
	if other := regexp.MustCompile("(?:the fields of|as) `(\\w+)`").FindStringSubmatch(meaning); other != nil {
		name = other[1]
	}
	want := make(fields)
	if kind == "process" {
		want = maps.Clone(m.process)
	} else if m.parts[name] == nil {
		return fmt.Errorf("no table says what %q has, but those of %q exist", name, slices.Sorted(maps.Keys(m.parts)))
	}
	maps.Copy(want, m.parts[name])
	return m.checkFields(want, object)
}

// checkElements checks an array. Its elements are strings, or have a table that is
// called as one of them is: a descriptor, a draining process.
func (m *manual) checkElements(name, kind string, array []any) error {
	for _, element := range array {
		if kind == "array of strings" {
			if _, ok := element.(string); !ok {
				return fmt.Errorf("%v is no string", element)
			}
			continue
		}
		object, ok := element.(map[string]any)
		if !ok {
			return fmt.Errorf("%v is no object", element)
		}
		one, of := strings.TrimSuffix(name, "s"), "object"
		if m.parts[one] == nil {
			one, of = name+" process", "process"
		}
		if err := m.checkPart(one, of, "", object); err != nil {
			return err
		}
	}
	return nil
}

// checkObject checks what the tool has printed, if that is an object: that of every
// command in every scenario.
func checkObject(ts *testscript.TestScript, args []string, stdout string) {
	_, args, found := cutAt(args, "crossfade")
	if !found || len(args) == 0 || stdout == "" {
		return
	}
	flags, _, _ := cutAt(args, "--")
	command := args[0]
	watching := slices.Contains(flags, "--watch")
	if watching {
		command += " --watch"
	}
	if !watching && !slices.Contains(flags, "--json") {
		return
	}
	m, err := readManual()
	ts.Check(err)
	ts.Check(m.checkOutput(command, stdout))
}

// cutAt cuts a slice around an element.
func cutAt(args []string, at string) (before, after []string, found bool) {
	i := slices.Index(args, at)
	if i < 0 {
		return args, nil, false
	}
	return args[:i], args[i+1:], true
}

// TestEveryExitCodeOccurs looks in the scenarios for each exit code of docs/tool.md.
func TestEveryExitCodeOccurs(t *testing.T) {
	m, err := readManual()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, line := range scriptLines(t) {
		if code := regexp.MustCompile(`^(?:exits (\d+) (?:.* )?)?crossfade `).FindStringSubmatch(line); code != nil {
			seen[code[1]] = true
		}
	}
	seen["0"] = seen[""]
	delete(seen, "")
	for _, code := range m.codes {
		if !seen[code] {
			t.Errorf("no scenario ends a command with %s", code)
		}
		delete(seen, code)
	}
	for code := range seen {
		t.Errorf("a scenario has a command end with %s, which docs/tool.md does not list", code)
	}
}

// TestEveryCommandOccurs looks in the scenarios for each command of docs/tool.md, and
// for its object.
func TestEveryCommandOccurs(t *testing.T) {
	m, err := readManual()
	if err != nil {
		t.Fatal(err)
	}
	for command := range m.commands {
		words := regexp.MustCompile(`\bcrossfade ` + command + `\b`)
		plain, object := false, false
		for _, line := range scriptLines(t) {
			if words.MatchString(line) {
				plain = true
				object = object || strings.Contains(line, "--json") || strings.Contains(line, "--watch")
			}
		}
		if !plain || !object {
			t.Errorf("crossfade %s occurs in a scenario: %v; with its object: %v", command, plain, object)
		}
	}
}

// scriptLines are the lines of all scenarios.
func scriptLines(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("testdata/script")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, entry := range entries {
		text, err := os.ReadFile("testdata/script/" + entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		lines = slices.AppendSeq(lines, strings.Lines(string(text)))
	}
	return lines
}

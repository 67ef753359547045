//go:build unix

package main_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// This file holds docs/tool.md against what the tool prints.

// documented returns the tables of a section of docs/tool.md: the types of the fields
// that they list. What a table is of is in its first header.
func documented(t *testing.T, heading string) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "tool.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n"+heading+"\n")
	if !found {
		t.Fatalf("docs/tool.md has no heading %q", heading)
	}
	if i := strings.Index(section, "\n##"); i >= 0 {
		section = section[:i]
	}
	tables := make(map[string]map[string]string)
	of := ""
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.ReplaceAll(strings.Trim(strings.TrimSpace(line), "|"), "`", ""), "|")
		switch first := strings.TrimSpace(cells[0]); {
		case len(cells) < 3, strings.HasPrefix(first, "---"):
		case strings.HasPrefix(first, "field"):
			of = first
			for tables[of] != nil {
				of += " again"
			}
			tables[of] = make(map[string]string)
		default:
			tables[of][first] = strings.TrimSpace(cells[1])
		}
	}
	return tables
}

// compareFields compares an object with what is documented of it.
func compareFields(t *testing.T, what string, o map[string]any, fields ...map[string]string) {
	t.Helper()
	all := make(map[string]string)
	for _, f := range fields {
		maps.Copy(all, f)
	}
	for name := range o {
		if all[name] == "" {
			t.Errorf("%s: the field %q is not documented", what, name)
		}
	}
	for name, kind := range all {
		value, ok := o[name]
		if !ok {
			t.Errorf("%s: there is no field %q", what, name)
			continue
		}
		got := map[bool]string{true: "null"}[value == nil]
		switch value := value.(type) {
		case bool:
			got = "boolean"
		case float64:
			got = "number"
		case string:
			got = "string"
			if _, err := time.Parse(time.RFC3339, value); err == nil {
				got = "time"
			}
		case []any:
			got = "array"
		case map[string]any:
			got = "object"
			if _, ok := value["generation"]; ok {
				got = "process"
			}
		}
		if kind, _, _ := strings.Cut(kind, " of "); !slices.Contains(strings.Split(kind, " or "), got) {
			t.Errorf("%s: the field %q is of type %s and not %s", what, name, got, kind)
		}
	}
}

// What docs/tool.md says of the objects is all that there is in them.
func TestObjectsAreAsDocumented(t *testing.T) {
	s := newScene(t)
	object := documented(t, "## The object")
	common, process := object["field"], object["field again"]
	decode := func(text string) map[string]any {
		t.Helper()
		var o map[string]any
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			t.Fatalf("%v in %q", err, text)
		}
		return o
	}
	// look compares what a command prints with a section, and returns it.
	look := func(code int, heading string, line ...string) map[string]any {
		t.Helper()
		o := decode(s.want(code, line[0], append(line[1:], "--json")...).stdout)
		compareFields(t, strings.Join(line, " "), o, common, documented(t, heading)["field"])
		if who, ok := o["serving"].(map[string]any); ok {
			compareFields(t, "serving of "+line[0], who, process)
		}
		return o
	}
	none := "### crossfade cancel, settle, drain"
	whole := func(code int) {
		t.Helper()
		look(code, "### crossfade status", "status")
		look(code, "### crossfade check", "check")
		look(code, "### crossfade upgrade", "upgrade")
		look(code, "### crossfade rollback", "rollback")
		look(code, none, "settle")
		look(code, none, "cancel")
		look(code, none, "drain", "--now", "1")
		look(code, "### crossfade stop", "stop")
	}
	whole(3)
	look(6, "### crossfade wait", "wait", "--timeout", "1ms")

	s.service(told{Version: "v1", Probation: long})
	s.candidate(told{Version: "failed", Fails: true})
	s.want(0, "wait", "--version", "v1")
	s.service(told{Version: "v2", Probation: long, Lingers: true})
	look(4, "### crossfade check", "check")
	look(0, "### crossfade rollback", "rollback")
	s.service(told{Version: "v3", Probation: long, Lingers: true})
	look(0, none, "settle")
	s.service(told{Version: "v4", Lingers: true})
	o := look(0, "### crossfade status", "status")
	tables := documented(t, "### crossfade status")
	compareFields(t, "owner", o["owner"].(map[string]any), process, tables["field of owner"])
	compareFields(t, "descriptor", o["descriptors"].([]any)[0].(map[string]any), tables["field of a descriptor"])
	compareFields(t, "draining", o["draining"].([]any)[0].(map[string]any), process, tables["field of a draining process"])
	compareFields(t, "probation", o["probation"].(map[string]any), tables["field of probation"])
	o = look(4, "### crossfade check", "check")
	tables = documented(t, "### crossfade check")
	compareFields(t, "limits", o["limits"].(map[string]any), tables["field of limits"])
	compareFields(t, "refusal", o["refusal"].(map[string]any), tables["field of refusal"])
	look(0, none, "settle")
	s.candidate(told{Version: "v5", Initialising: "warming up"})
	s.awaitAttempt("warming up")
	tables = documented(t, "### crossfade status")
	o = look(0, "### crossfade status", "status")
	compareFields(t, "attempt", o["attempt"].(map[string]any), tables["field of attempt"])
	look(0, none, "cancel")
	o = look(0, "### crossfade status", "status")
	compareFields(t, "last_failure", o["last_failure"].(map[string]any), tables["field of last_failure"])
	look(0, "### crossfade wait", "wait")
	look(0, "### crossfade upgrade", "upgrade")
	watching := s.begin("status", "--watch")
	line, _ := watching.line()
	compareFields(t, "event", decode(line), documented(t, "### crossfade status --watch")["field"])
	look(8, "### crossfade rollback", "rollback")
	compareFields(t, "version", decode(call(t, "version", "--json").stdout), common, documented(t, "### crossfade version")["field"])
}

// The codes of docs/tool.md are those of help.
func TestCodesAreAsDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "tool.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(call(t, "help").stdout) {
		var code int
		if _, err := fmt.Sscanf(line, "%d", &code); err != nil {
			continue
		}
		rows++
		_, meaning, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if !strings.Contains(string(text), fmt.Sprintf("| %d | %s |", code, meaning)) {
			t.Errorf("code %d, %q, is not in docs/tool.md", code, meaning)
		}
	}
	if rows != 11 {
		t.Errorf("help lists %d codes", rows)
	}
}

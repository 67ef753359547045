package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-go/crossfade"
	tool "github.com/crossfade-go/crossfade/cmd/crossfade"
	"github.com/crossfade-go/crossfade/handoff"
)

// This file tests what the tool says without asking anybody.

// printed is how a run of the tool ended.
type printed struct {
	code           int
	stdout, stderr string
}

// call runs the tool in this process.
func call(t *testing.T, args ...string) printed {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := tool.Run(t.Context(), args, &stdout, &stderr)
	return printed{int(code), stdout.String(), stderr.String()}
}

func TestWrongCommandLines(t *testing.T) {
	t.Setenv("CROSSFADE_SOCKET", "")
	for _, test := range []struct {
		line string
		want string // part of what stderr says
	}{
		{"", "which command? `crossfade help` lists them"},
		{"deploy", `there is no command "deploy"`},
		{"status", "status: which service? give --socket, or set CROSSFADE_SOCKET"},
		{"status --sockt s", "status: flag provided but not defined: -sockt: see `crossfade help status`"},
		{"status --socket s all", `status: what does "all" mean?`},
		{"wait --socket s --timeout soon", "a duration is written like 90s or 1m30s"},
		{"wait --socket s --timeout -1s", "a duration cannot be negative"},
		{"wait --socket s --generation one", "invalid value"},
		{"check --socket s --expect http,,admin", "a name is missing"},
		{"drain --socket s", "drain: which generation? give --now"},
		{"help nothing", `there is no command "nothing"`},
		{"help status wait", "one command at a time"},
		{"completion", "for which shell?"},
		{"completion tcsh", `nothing is known of the shell "tcsh"`},
	} {
		t.Run(test.line, func(t *testing.T) {
			got := call(t, strings.Fields(test.line)...)
			if got.code != 2 || got.stdout != "" {
				t.Errorf("exit code %d, stdout %q", got.code, got.stdout)
			}
			if !strings.HasPrefix(got.stderr, "crossfade: ") || !strings.Contains(got.stderr, test.want) || strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line with %q", got.stderr, test.want)
			}
		})
	}
}

// A script that asks for an object gets one, also if something else in the line is wrong.
func TestWrongCommandLineAsObject(t *testing.T) {
	got := call(t, "wait", "--forever", "--json")
	var o struct {
		OK      *bool
		Code    int
		Reason  string
		Serving any
	}
	if err := json.Unmarshal([]byte(got.stdout), &o); err != nil {
		t.Fatalf("%v: %q", err, got.stdout)
	}
	if o.OK == nil || *o.OK || o.Code != 2 || got.code != 2 || o.Serving != nil || !strings.Contains(o.Reason, "-forever") {
		t.Errorf("exit code %d and %q", got.code, got.stdout)
	}
}

func TestSocketOfTheEnvironment(t *testing.T) {
	t.Setenv("CROSSFADE_SOCKET", filepath.Join(t.TempDir(), "none"))
	if got := call(t, "status", "--timeout", "10s"); got.code != 3 && got.code != 9 { // 9 where there are no control sockets
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
}

// The table of commands is what help, the man page and the completions are made of.
func TestEveryCommandSaysWhatItDoes(t *testing.T) {
	for _, c := range tool.Commands() {
		t.Run(c.Name, func(t *testing.T) {
			if c.Summary == "" || strings.HasSuffix(c.Summary, ".") || c.Summary != strings.ToLower(c.Summary[:1])+c.Summary[1:] {
				t.Errorf("the summary %q is no sentence without a capital or a period", c.Summary)
			}
			if c.Long == "" || c.Example == "" || !strings.Contains(c.Example, "crossfade "+c.Name) {
				t.Error("it has no text, or no example of itself")
			}
			if len(c.Codes) == 0 {
				t.Error("it does not say what it can end with")
			}
			for line := range strings.SplitSeq(c.Long, "\n") {
				if len(line) > 100 {
					t.Errorf("the line %q is too long for a terminal", line)
				}
			}
			got := call(t, "help", c.Name)
			if got.code != 0 || got.stderr != "" {
				t.Fatalf("help: exit code %d, stderr %q", got.code, got.stderr)
			}
			for _, flag := range c.Flags {
				if !strings.Contains(c.Synopsis, "--"+flag) {
					t.Errorf("the synopsis %q lacks --%s", c.Synopsis, flag)
				}
				if !strings.Contains(got.stdout, "\n  --"+flag) {
					t.Errorf("help lacks --%s", flag)
				}
			}
			if direct := call(t, c.Name, "--help"); direct != got {
				t.Errorf("--help says\n%s and help says\n%s", direct.stdout, got.stdout)
			}
		})
	}
}

func TestOverview(t *testing.T) {
	got := call(t, "help")
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
	for _, c := range tool.Commands() {
		if listed := strings.Contains(got.stdout, fmt.Sprintf("\n  %-11s %s\n", c.Name, c.Summary)); listed == c.Hidden {
			t.Errorf("%s is listed: %v", c.Name, listed)
		}
	}
	for _, alias := range []string{"-h", "--help"} {
		if call(t, alias) != got {
			t.Errorf("%s says something else", alias)
		}
	}
}

func TestVersion(t *testing.T) {
	if got := call(t, "--version"); got.code != 0 || !strings.HasPrefix(got.stdout, "crossfade ") {
		t.Errorf("exit code %d, stdout %q", got.code, got.stdout)
	}
	var o struct{ Version, Go, System string }
	if err := json.Unmarshal([]byte(call(t, "version", "--json").stdout), &o); err != nil || o.Version == "" || o.Go == "" || o.System == "" {
		t.Errorf("%v: %+v", err, o)
	}
}

func TestCodeOfAnError(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{crossfade.ErrNoOwner, 3},
		{crossfade.ErrBusy, 4},
		{crossfade.ErrNotReady, 4},
		{crossfade.ErrProbation, 4},
		{crossfade.ErrDraining, 4},
		{crossfade.ErrStopping, 4},
		{crossfade.ErrFailed, 5},
		{crossfade.ErrTimeout, 5},
		{crossfade.ErrRolledBack, 5},
		{crossfade.ErrCancelled, 5},
		{errors.New("anything else"), 5},
		{crossfade.ErrDenied, 7},
		{crossfade.ErrNotAllowed, 7},
		{fmt.Errorf("%w: %w", crossfade.ErrOwnerUnknown, fs.ErrPermission), 7},
		{crossfade.ErrPolicy, 8},
		{crossfade.ErrIncompatible, 8},
		{crossfade.ErrUnimplemented, 8},
		{crossfade.ErrControlLost, 8},
		{crossfade.ErrLimit, 8},
		{crossfade.ErrWrongState, 8},
		{crossfade.ErrPath, 2},
		{crossfade.ErrSettled, 8},
		{crossfade.ErrCommitted, 8},
		{crossfade.ErrOwnerUnknown, 9},
		{crossfade.ErrOutcomeUnknown, 9},
		{crossfade.ErrLost, 9},
		{crossfade.ErrMoved, 9},
	} {
		if got := int(tool.CodeOf(fmt.Errorf("while asking: %w", test.err))); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}

// now is when everything below was looked at.
var now = time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)

// fullStatus is one that has everything.
func fullStatus() *crossfade.Status {
	v1 := crossfade.Process{Instance: "ONE", BuildVersion: "v1", Generation: 3, PID: 301}
	v2 := crossfade.Process{Instance: "TWO", BuildVersion: "v2", Generation: 4, PID: 402}
	v3 := crossfade.Process{Instance: "THREE", Generation: 5, PID: 503}
	return &crossfade.Status{
		Process: v2, State: crossfade.StateOffering, Since: now.Add(-90 * time.Second), Ready: true,
		Attempt:     &crossfade.Attempt{Successor: v3, Step: "Ready", Status: "loading", Began: now.Add(-2 * time.Second), Deadline: now.Add(58 * time.Second)},
		Probation:   &crossfade.Probation{Predecessor: v1, Until: now.Add(12 * time.Second), AtEnd: crossfade.RollbackAtEnd},
		LastFailure: &crossfade.Failure{Successor: v3, Step: "Ready", Reason: "predecessor, at Ready: timed out", At: now.Add(-time.Hour)},
		Warnings:    []string{"control lost"},
		Draining: []crossfade.Generation{
			{Process: v3, State: crossfade.StateDraining, Since: now.Add(-5 * time.Minute), Connections: 7, Deadline: now.Add(-time.Second)},
			{Process: v1, State: crossfade.StateProbation, Since: now.Add(-90 * time.Second), Connections: -1, Limit: time.Minute},
		},
		Descriptors: []handoff.DescriptorStatus{
			{Name: "http", Kind: handoff.KindListener, Network: "tcp", Address: "127.0.0.1:80", Origin: handoff.OriginInherited},
			{Name: "log", Kind: handoff.KindFile, Origin: handoff.OriginUnclaimed},
		},
	}
}

func TestStatusForPeople(t *testing.T) {
	const want = `owner         generation 4 (version v2, pid 402)
instance      TWO
state         offering, for 1m30s, since 2026-11-22 05:58:30Z
probation     12s left, then it is rolled back; generation 3 (version v1, pid 301) can take the service back
attempt       generation 5 (pid 503), for 2s, at Ready (loading), 58s left
last failure  1h ago, at 2026-11-22 05:00:00Z, generation 5 (pid 503): predecessor, at Ready: timed out
warning       control lost

DRAINING  VERSION  PID  STATE      FOR    CONNECTIONS  ENDS
5         -        503  draining   5m     7            over for 1s
3         v1       301  probation  1m30s  -            at most 1m after it has retired

DESCRIPTOR  KIND      NETWORK  ADDRESS       ORIGIN
http        listener  tcp      127.0.0.1:80  inherited
log         file      -        -             unclaimed
`
	if got := tool.RenderStatus(fullStatus(), now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	bare := &crossfade.Status{
		Process: crossfade.Process{Instance: "ONE", Generation: 1}, State: crossfade.StateOwner, Since: now.Add(-20 * time.Millisecond),
	}
	const wantBare = `owner     generation 1
instance  ONE
state     owner, not ready yet, for 20ms, since 2026-11-22 05:59:59Z
`
	if got := tool.RenderStatus(bare, now); got != wantBare {
		t.Errorf("got\n%s\nwant\n%s", got, wantBare)
	}
}

func TestStatusAsObject(t *testing.T) {
	got, err := json.MarshalIndent(tool.StatusObject(fullStatus()), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"attempt":{"deadline":"2026-11-22T06:00:58.000Z","since":"2026-11-22T05:59:58.000Z","status":"loading","step":"Ready",
		"successor":{"generation":5,"instance":"THREE","pid":503,"version":""}},
	"descriptors":[{"address":"127.0.0.1:80","kind":"listener","name":"http","network":"tcp","origin":"inherited"},
		{"address":"","kind":"file","name":"log","network":"","origin":"unclaimed"}],
	"draining":[{"connections":7,"deadline":"2026-11-22T05:59:59.000Z","generation":5,"instance":"THREE","pid":503,
			"since":"2026-11-22T05:55:00.000Z","state":"draining","version":""},
		{"connections":null,"deadline":null,"generation":3,"instance":"ONE","pid":301,
			"since":"2026-11-22T05:58:30.000Z","state":"probation","version":"v1"}],
	"last_failure":{"at":"2026-11-22T05:00:00.000Z","reason":"predecessor, at Ready: timed out","step":"Ready",
		"successor":{"generation":5,"instance":"THREE","pid":503,"version":""}},
	"owner":{"generation":4,"instance":"TWO","pid":402,"ready":true,"since":"2026-11-22T05:58:30.000Z","state":"offering","version":"v2"},
	"probation":{"at_end":"rollback","predecessor":{"generation":3,"instance":"ONE","pid":301,"version":"v1"},"until":"2026-11-22T06:00:12.000Z"},
	"warnings":["control lost"]}`
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(want), "", " "); err != nil {
		t.Fatal(err)
	}
	if indented.String() != string(got) {
		t.Errorf("got\n%s\nwant\n%s", got, indented.String())
	}
	// Nobody's has the same fields, so that a script need not look which are there.
	for field, value := range tool.StatusObject(nil) {
		if raw, err := json.Marshal(value); err != nil || string(raw) != "null" && string(raw) != "[]" {
			t.Errorf("%s of nobody is %s, %v", field, raw, err)
		}
	}
	if len(tool.StatusObject(nil)) != len(tool.StatusObject(fullStatus())) {
		t.Error("nobody's status has other fields")
	}
}

func TestWhatWaitMisses(t *testing.T) {
	owner := func(change func(*crossfade.Status)) *crossfade.Status {
		s := &crossfade.Status{
			Process: crossfade.Process{Instance: "TWO", BuildVersion: "v2", Generation: 4, PID: 402}, State: crossfade.StateOwner, Ready: true,
		}
		change(s)
		return s
	}
	same := func(*crossfade.Status) {}
	failed := func(s *crossfade.Status) {
		s.LastFailure = &crossfade.Failure{Successor: crossfade.Process{Generation: 5}}
	}
	takingOver := func(s *crossfade.Status) {
		failed(s)
		s.Attempt = &crossfade.Attempt{Successor: crossfade.Process{Generation: 6, PID: 403}}
	}
	onProbation := func(s *crossfade.Status) { s.Probation = new(crossfade.Probation) }
	draining := func(state crossfade.State) func(*crossfade.Status) {
		return func(s *crossfade.Status) {
			s.Draining = []crossfade.Generation{{Process: crossfade.Process{Generation: 3, PID: 301}, State: state, Connections: 2}}
		}
	}
	const is = "generation 4 (version v2, pid 402) "
	for _, test := range []struct {
		flags  string
		status *crossfade.Status
		want   string
	}{
		{"", owner(same), ""},
		{"", owner(func(s *crossfade.Status) { s.Ready = false }), is + "owns and is not ready yet"},
		{"", owner(func(s *crossfade.Status) { s.State = crossfade.StateStandby }), is + "answers and is standby"},
		{"", owner(onProbation), ""},
		{"--instance TWO", owner(same), ""},
		{"--instance ONE", owner(same), is + "owns, whose instance is TWO"},
		{"--generation 4", owner(same), ""},
		{"--generation 3", owner(same), ""},
		{"--generation 5", owner(same), is + "owns"},
		{"--version v2", owner(same), ""},
		{"--version v1", owner(same), is + "owns"},
		{"--settled", owner(same), ""},
		{"--settled", owner(onProbation), is + "owns and is not settled: its predecessor can come back"},
		{"--settled", owner(draining(crossfade.StateProbation)), is + "owns and is not settled: its predecessor can come back"},
		{"--settled", owner(draining(crossfade.StateDraining)), ""},
		{"--gone 3", owner(same), ""},
		{"--gone 3", owner(draining(crossfade.StateDraining)), "generation 3 (pid 301) is draining, with 2 connections"},
		{"--gone 2", owner(draining(crossfade.StateDraining)), ""},
		{"--gone 4", owner(same), is + "owns"},
		{"--gone 5", owner(same), "there has been no generation 5 yet: the last is 4, and " + is + "owns"},
		{"--gone 5", owner(failed), ""},
		{"--gone 6", owner(failed), "there has been no generation 6 yet: the last is 5, and " + is + "owns"},
		{"--gone 6", owner(takingOver), "generation 6 (pid 403) is taking over"},
		{"--gone 5", owner(takingOver), ""},
		{"--gone 7", owner(takingOver), "there has been no generation 7 yet: the last is 6, and " + is + "owns"},
		{"--version v2 --settled", owner(onProbation), is + "owns and is not settled: its predecessor can come back"},
	} {
		if got := tool.Unmet(test.status, strings.Fields(test.flags)...); got != test.want {
			t.Errorf("wait %s: %q, want %q", test.flags, got, test.want)
		}
	}
}

func TestManPageIsUpToDate(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "crossfade.1"))
	if err != nil {
		t.Fatal(err)
	}
	if got := call(t, "man").stdout; got != string(page) {
		t.Error("docs/crossfade.1 is not what the table of commands says: make generate")
	}
}

func TestManPageRenders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crossfade.1")
	if err := os.WriteFile(path, []byte(call(t, "man").stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	tried := false
	for _, formatter := range [][]string{{"mandoc", "-T", "lint", "-W", "warning"}, {"groff", "-man", "-ww", "-z"}} {
		if _, err := exec.LookPath(formatter[0]); err != nil {
			t.Logf("not tried: %v", err)
			continue
		}
		tried = true
		out, err := exec.Command(formatter[0], append(formatter[1:], path)...).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", formatter[0], err, out)
		}
	}
	if !tried {
		t.Skip("neither mandoc nor groff is installed")
	}
}

func TestBashCompletes(t *testing.T) {
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Skipf("no bash: %v", err)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "completion")
	if err := os.WriteFile(script, []byte(call(t, "completion", "bash").stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "control.sock of mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const file = "control.sock of mine"
	for _, test := range []struct {
		words []string // the last one is completed
		want  []string
		not   []string
	}{
		{[]string{""}, []string{"status", "wait", "help", "completion"}, []string{"man"}},
		{[]string{"st"}, []string{"status", "stop"}, []string{"wait"}},
		{[]string{"status", "--"}, []string{"--socket", "--json", "--watch"}, []string{"--if-running"}},
		{[]string{"stop", "--if"}, []string{"--if-running"}, []string{"--socket"}},
		{[]string{"status", "--socket", ""}, []string{file}, nil},
		{[]string{"status", "-socket", "con"}, []string{file}, nil},
		{[]string{"status", "--socket", "="}, []string{file}, nil},
		{[]string{"status", "--socket", "=", "con"}, []string{file}, nil},
		{[]string{"wait", "--timeout", ""}, nil, []string{file, "--json"}},
		{[]string{"wait", "--timeout", "1s", "--s"}, []string{"--settled", "--socket"}, nil},
		{[]string{"help", "ro"}, []string{"rollback"}, []string{"status"}},
		{[]string{"completion", ""}, []string{"bash", "zsh", "fish"}, nil},
		{[]string{"nonsense", "--"}, nil, []string{"--socket"}},
		{[]string{"run", "--socket", "s", "--", "con"}, []string{file}, nil},
		{[]string{"run", "--socket", "s", "--", "app", "con"}, []string{file}, nil},
	} {
		t.Run(strings.Join(test.words, " "), func(t *testing.T) {
			words := append([]string{"crossfade"}, test.words...)
			cmd := exec.Command(shell, append([]string{
				"--norc", "-c", `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _crossfade; printf '%s\n' "${COMPREPLY[@]}"`, "bash", script,
			}, words...)...)
			cmd.Dir = dir
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			for _, want := range test.want {
				if !slices.Contains(got, want) {
					t.Errorf("%q is missing in %q", want, got)
				}
			}
			for _, not := range test.not {
				if slices.Contains(got, not) {
					t.Errorf("%q is among %q", not, got)
				}
			}
		})
	}
}

// The other shells at least understand what is printed for them.
func TestCompletionsParse(t *testing.T) {
	for _, shell := range []string{"zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			text := call(t, "completion", shell).stdout
			for _, c := range tool.Commands() {
				if strings.Contains(text, c.Summary[:min(len(c.Summary), 20)]) == c.Hidden {
					t.Errorf("%s is among the commands: %v", c.Name, c.Hidden)
				}
			}
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("its syntax is not checked: %v", err)
			}
			cmd := exec.Command(path, "-n")
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

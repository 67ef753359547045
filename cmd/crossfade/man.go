package main

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"strings"
)

// This file makes the man page, docs/crossfade.1, out of the table of commands:
// `make generate` writes it, and a test compares.

var manCommand = &command{
	name:    "man",
	summary: "print the man page",
	long:    "It prints the man page of the tool, in the macros of man(7).",
	example: "crossfade man | man -l -",
	codes:   []code{codeDone},
	local:   true, plain: true, hidden: true,
	define: func(*flag.FlagSet) func(context.Context, *invocation) result {
		return func(_ context.Context, in *invocation) result {
			return result{output: manPage(in.commands)}
		}
	},
}

// manDate is when the text of the page was last changed to mean something else.
const manDate = "2026-11-22"

func manPage(commands []*command) string {
	m := new(manual)
	m.line(`.\" Made by "make generate" from the table of commands in cmd/crossfade. Do not edit.`)
	m.line(`.TH CROSSFADE 1 ` + manDate + ` crossfade "User Commands"`)
	m.line(".SH NAME")
	m.text("crossfade - replace a running service without a client noticing")
	m.line(".SH SYNOPSIS")
	m.line(".B crossfade")
	m.line(`.I COMMAND`)
	m.text("[FLAGS]")
	m.line(".SH DESCRIPTION")
	m.text("Each command answers one question of a deploy script, with an exit code, a sentence and, with `--json`, an object.")
	m.line(".PP")
	m.text("The service is named by its control socket: `--socket`, or the variable CROSSFADE_SOCKET. Results are printed " +
		"on stdout; everything else on stderr, in lines that begin with `crossfade:`. Flags can be written with one hyphen or two.")
	m.line(".SH COMMANDS")
	for _, c := range commands {
		if !c.hidden {
			m.command(c)
		}
	}
	m.line(".SH EXIT STATUS")
	m.text("Each answers the question who serves now. None ever changes its meaning.")
	for _, c := range allCodes {
		m.tagged(fmt.Sprint(int(c)), c.meaning())
	}
	m.line(".SH ENVIRONMENT")
	for _, v := range environment {
		m.tagged(v.name, v.meaning)
	}
	m.line(".SH FILES")
	for _, f := range files {
		m.tagged(f.name, f.meaning)
	}
	m.line(".SH SEE ALSO")
	m.text("The objects of --json are described in docs/tool.md of the module github.com/crossfade-go/crossfade, " +
		"and what to do when something is wrong in docs/operations.md.")
	return m.String()
}

// environment is what the tool reads, or sets for what it starts.
var environment = []struct{ name, meaning string }{
	{"CROSSFADE_SOCKET", "the control socket of the service, where `--socket` is not given. The commands `run` and `supervise` set it for what they start, " +
		"and a health check finds it"},
	{"CROSSFADE_INSTANCE, CROSSFADE_EPOCH, CROSSFADE_FORCE, CROSSFADE_PROBATION, CROSSFADE_AT_PROBATION_END", "set for what `run` and `supervise` " +
		"start, as their flags say, and not read. A health check finds CROSSFADE_INSTANCE and CROSSFADE_GENERATION of the new owner"},
	{"CROSSFADE_TRUST_DIRECTORY", "1: whoever can write to the directory of the control socket is trusted, by this tool and by what it starts. " +
		"Without it a directory that others can write to is refused"},
	{"TMPDIR", "where `run` puts the output of what it starts, without `--log`, and `supervise` a control socket that it makes itself; default: /tmp"},
	{"PATH", "where `run` and `supervise` look for a program without a slash in its name"},
	{"NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID", "read by `supervise`, which speaks to systemd for " +
		"the service. Only the sockets are passed on, to the first generation"},
}

// files are those that the tool knows.
var files = []struct{ name, meaning string }{
	{"SOCKET", "the control socket, made by the first generation and removed by an owner that stops for good. Nothing else should touch it"},
	{"SOCKET.lock", "says by its lock (flock(2)) whether anybody owns the service. It is never removed: without it two processes could own at once"},
	{"$TMPDIR/crossfade-*.log", "the output of what `run` has started, one file for each, mode 0600. Nobody removes them"},
	{"$TMPDIR/crossfade-*/control.sock", "the control socket that `supervise` makes where none is given, removed in the end"},
}

// manual writes the macros of man(7).
type manual struct{ strings.Builder }

func (m *manual) line(s string) { m.WriteString(s + "\n") }

var backquoted = regexp.MustCompile("`([^`]*)`")

// roff escapes what the formatter would take for its own.
var roff = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// text is running text. What is in backquotes is bold.
func (m *manual) text(s string) {
	for line := range strings.SplitSeq(s, "\n") {
		line = backquoted.ReplaceAllString(roffText(line), `\fB$1\fP`)
		if strings.HasPrefix(line, ".") {
			line = `\&` + line
		}
		m.line(line)
	}
}

// roffText is roff without the backquotes, which text reads.
func roffText(s string) string { return strings.ReplaceAll(roff.Replace(s), `\(ga`, "`") }

// verbatim is text whose lines stay as they are.
func (m *manual) verbatim(s string) {
	m.line(".PP")
	m.line(".nf")
	m.line(".RS 4")
	for line := range strings.SplitSeq(s, "\n") {
		m.line(`\&` + roff.Replace(strings.TrimPrefix(line, "  ")))
	}
	m.line(".RE")
	m.line(".fi")
}

// tagged is a term and what it means.
func (m *manual) tagged(term, meaning string) {
	m.line(".TP")
	m.line(`\fB` + roff.Replace(term) + `\fP`)
	m.text(meaning)
}

func (m *manual) command(c *command) {
	m.line(".SS " + c.name)
	m.line(`\fB` + roff.Replace(c.synopsis()) + `\fP`)
	for paragraph := range strings.SplitSeq(c.long, "\n\n") {
		if strings.HasPrefix(paragraph, " ") {
			m.verbatim(paragraph)
			continue
		}
		m.line(".PP")
		m.text(paragraph)
	}
	for _, f := range c.describeFlags() {
		if f.name == "socket" || f.name == "json" { // which all have
			continue
		}
		m.tagged(f.syntax, f.meaning)
	}
	m.line(".PP")
	codes := make([]string, 0, len(allCodes))
	for _, code := range c.exitCodes() {
		codes = append(codes, fmt.Sprint(int(code)))
	}
	m.text("Exit status: " + strings.Join(codes, ", ") + ". Example:")
	m.verbatim(c.example)
}

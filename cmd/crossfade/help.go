package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// This file is what the tool says of itself: help, and its version.

var helpCommand = &command{
	name: "help", args: "[COMMAND]",
	summary: "say what a command does, or list the commands",
	long: `Without a command it lists all of them. For one it prints what it does, its flags,
the exit codes that it can end with, and an example.`,
	example: "crossfade help run",
	codes:   []code{codeDone},
	local:   true, plain: true, operands: true,
	define: func(*flag.FlagSet) func(context.Context, *invocation) result {
		return help
	},
}

func help(_ context.Context, in *invocation) result {
	var text strings.Builder
	switch len(in.args) {
	case 0:
		overview(&text, in.commands)
	case 1:
		c := find(in.commands, in.args[0])
		if c == nil {
			return usage("help: there is no command %q: `crossfade help` lists those that exist", in.args[0])
		}
		c.help(&text)
	default:
		return usage("help: one command at a time")
	}
	return result{output: text.String()}
}

// overview lists the commands, and what the exit codes mean.
func overview(out io.Writer, commands []*command) {
	fmt.Fprint(out, "crossfade replaces a running service without a client noticing, and says who serves.\n\n"+
		"usage: crossfade COMMAND [FLAGS]\n\n")
	for _, c := range commands {
		if !c.hidden {
			fmt.Fprintf(out, "  %-11s %s\n", c.name, c.summary)
		}
	}
	fmt.Fprint(out, "\nexit codes:\n")
	writeCodes(out, allCodes)
	fmt.Fprint(out, "\nThe service is named by --socket, or by CROSSFADE_SOCKET. `crossfade help COMMAND` tells more.\n")
}

// help prints what there is to know of the command.
func (c *command) help(out io.Writer) {
	fmt.Fprintf(out, "usage: %s\n\n%s\n\n%s\n", c.synopsis(), c.summary, c.long)
	if flags := c.describeFlags(); len(flags) > 0 {
		fmt.Fprint(out, "\nflags:\n")
		for _, f := range flags {
			fmt.Fprintf(out, "  %s\n        %s\n", f.syntax, f.meaning)
		}
	}
	fmt.Fprint(out, "\nexit codes:\n")
	writeCodes(out, c.exitCodes())
	fmt.Fprint(out, "\nexample:\n")
	for line := range strings.SplitSeq(c.example, "\n") {
		fmt.Fprintf(out, "  %s\n", line)
	}
}

// synopsis is how the command is called.
func (c *command) synopsis() string {
	words := []string{"crossfade", c.name}
	if !c.local {
		words = append(words, "--socket PATH")
	}
	if !c.plain {
		words = append(words, "[--json]")
	}
	if c.args != "" {
		words = append(words, c.args)
	}
	return strings.Join(words, " ")
}

// exitCodes are all that the command can end with, in order.
func (c *command) exitCodes() []code {
	codes := append([]code{codeUsage}, c.codes...)
	slices.Sort(codes)
	return slices.Compact(codes)
}

func writeCodes(out io.Writer, codes []code) {
	for _, c := range codes {
		fmt.Fprintf(out, "  %3d  %s\n", c, c.meaning())
	}
}

// flagHelp is a flag as help, the man page and the completions have it.
type flagHelp struct {
	name    string
	value   string // what it takes, as a placeholder; empty for none
	syntax  string // --name VALUE
	meaning string // with its default
}

// describeFlags lists the command's flags by name.
func (c *command) describeFlags() []flagHelp {
	flags, _ := c.flags(new(invocation))
	var all []flagHelp
	flags.VisitAll(func(f *flag.Flag) {
		value, meaning := flag.UnquoteUsage(f)
		syntax := "--" + f.Name
		if _, ok := f.Value.(*patience); ok {
			value = "duration" // as the package says of its own
		}
		if value == "uint" || value == "int" {
			value = "n"
		}
		if value = strings.ToUpper(value); value != "" {
			syntax += " " + value
		}
		if !slices.Contains([]string{"", "false", "0", "0s"}, f.DefValue) {
			meaning += " (default " + shortDuration(f.DefValue) + ")"
		}
		all = append(all, flagHelp{f.Name, value, syntax, meaning})
	})
	return all
}

// shortDuration is a duration as people write it: 1m, and not 1m0s.
func shortDuration(text string) string {
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

var versionCommand = &command{
	name:    "version",
	summary: "say which version of the tool this is",
	long: `It prints the version of the module that the tool was built from, the Go release that
built it, and the system that it is for. The object of --json has them as version, go and system.`,
	example: "crossfade version",
	codes:   []code{codeDone},
	local:   true,
	define: func(*flag.FlagSet) func(context.Context, *invocation) result {
		return func(context.Context, *invocation) result {
			version, system := toolVersion(), runtime.GOOS+"/"+runtime.GOARCH
			return result{
				output: fmt.Sprintf("crossfade %s, %s, %s\n", version, runtime.Version(), system),
				fields: object{"version": version, "go": runtime.Version(), "system": system},
			}
		}
	},
}

// toolVersion is that of the module, as the go command has stamped it.
func toolVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}

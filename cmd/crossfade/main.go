// Command crossfade is the deploy tool: it starts the successor of a running
// service, or has the service start it, and says who serves in the end. Each of its
// commands answers one question of a deploy script, with an exit code, a sentence
// and, with --json, an object. See docs/tool.md, docs/crossfade.1 or `crossfade help`.
//
// What it prints: results on stdout; everything else on stderr, in sentences
// without capitals or periods, each on a line that begins with "crossfade:".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	// A reader of the output that is gone ends no command in the midst of what it does,
	// nor takes its exit code away. Not Ignore, which a process that is started would
	// inherit. Nobody reads the channel.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(int(status))
}

// command is one of the tool's commands. Its help, its place in the man page and its
// completions are made of it.
type command struct {
	name    string
	args    string // synopsis of what follows the name; must have every flag of its own
	summary string // one line, a sentence without a capital or a period
	long    string // paragraphs for help and the man page; what is indented is shown as it is
	example string // one or more lines as a user types them
	codes   []code // the exit codes that it can end with, besides codeUsage
	// define defines the command's own flags and returns what it does.
	define func(flags *flag.FlagSet) func(ctx context.Context, in *invocation) result
	// local says that the command needs no control socket.
	local bool
	// plain says that the command prints text and nothing else: it has no --json.
	plain bool
	// operands says that something may follow the flags.
	operands bool
	// hidden says that help does not list it.
	hidden bool
}

// commands are in the order in which help lists them.
var commands = []*command{
	runCommand, superviseCommand,
	statusCommand, waitCommand, checkCommand,
	upgradeCommand, cancelCommand, settleCommand, rollbackCommand, drainCommand, stopCommand,
	versionCommand, helpCommand, completionCommand, manCommand, activateCommand,
}

// invocation is one call of a command.
type invocation struct {
	command  string
	commands []*command
	socket   string   // of the service; set unless the command is local
	args     []string // what follows the flags
	json     bool     // the result is to be an object
	stdout   io.Writer
	stderr   io.Writer
}

// say tells the user something that is not the result.
func (in *invocation) say(format string, args ...any) {
	fmt.Fprintf(in.stderr, "crossfade: "+format+"\n", args...)
}

// run is the program, less its process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) code {
	in := &invocation{commands: commands, stdout: stdout, stderr: stderr}
	if len(args) == 0 {
		return in.finish(usage("which command? `crossfade help` lists them"))
	}
	name := args[0]
	switch name { // as people try them first
	case "-h", "-help", "--help":
		name = helpCommand.name
	case "-version", "--version":
		name = versionCommand.name
	}
	c := find(in.commands, name)
	if c == nil {
		return in.finish(usage("there is no command %q: `crossfade help` lists those that exist", name))
	}
	in.command = c.name
	return c.run(ctx, in, args[1:])
}

// find returns the command of that name, nil if there is none.
func find(commands []*command, name string) *command {
	if i := slices.IndexFunc(commands, func(c *command) bool { return c.name == name }); i >= 0 {
		return commands[i]
	}
	return nil
}

func (c *command) run(ctx context.Context, in *invocation, args []string) code {
	flags, do := c.flags(in)
	err := flags.Parse(args)
	if in.socket == "" {
		in.socket = os.Getenv("CROSSFADE_SOCKET")
	}
	in.args = flags.Args()
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.help(in.stdout)
		return codeDone
	case err != nil:
		// The rest was not parsed, and a script that wants an object wants it now.
		in.json = in.json || !c.plain && slices.ContainsFunc(args, func(arg string) bool { return arg == "-json" || arg == "--json" })
		return in.finish(usage("%s: %v: see `crossfade help %s`", c.name, err, c.name))
	case !c.operands && len(in.args) > 0:
		return in.finish(usage("%s: what does %q mean? see `crossfade help %s`", c.name, in.args[0], c.name))
	case !c.local && in.socket == "":
		return in.finish(usage("%s: which service? give --socket, or set CROSSFADE_SOCKET", c.name))
	}
	return in.finish(do(ctx, in))
}

// flags are all flags of the command, those that it shares with others included.
// The values of the latter go to in.
func (c *command) flags(in *invocation) (*flag.FlagSet, func(context.Context, *invocation) result) {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it
	if !c.local {
		flags.StringVar(&in.socket, "socket", "", "the `path` of the service's control socket; if it is not given, the variable CROSSFADE_SOCKET has it")
	}
	if !c.plain {
		flags.BoolVar(&in.json, "json", false, "print the result as an object on stdout")
	}
	return flags, c.define(flags)
}

// patience is how long a command waits: the value of a --timeout. 0 is for ever.
type patience struct{ limit time.Duration }

// timeout defines --timeout. usage says what it bounds.
func timeout(flags *flag.FlagSet, preset time.Duration, usage string) *patience {
	p := &patience{preset}
	flags.Var(p, "timeout", usage)
	return p
}

// String implements [flag.Value].
func (p *patience) String() string { return p.limit.String() }

// Set implements [flag.Value].
func (p *patience) Set(text string) error {
	limit, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return errors.New("a duration is written like 90s or 1m30s")
	case limit < 0:
		return errors.New("a duration cannot be negative; 0 is for ever")
	}
	p.limit = limit
	return nil
}

// context returns a context that ends with ctx, or when there is no patience left:
// then the cause is a [*impatienceError].
func (p *patience) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.limit == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, p.limit, &impatienceError{p.limit})
}

// impatienceError is the end of a --timeout.
type impatienceError struct{ limit time.Duration }

func (e *impatienceError) Error() string { return "no answer within " + span(e.limit) }

func (e *impatienceError) Is(target error) bool { return target == context.DeadlineExceeded }

// interrupted reports whether ctx has ended because the user wishes so.
func interrupted(ctx context.Context) bool {
	return ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded)
}

// list is the value of a flag that takes names, separated by commas.
type list []string

// String implements [flag.Value].
func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements [flag.Value].
func (l *list) Set(text string) error {
	for name := range strings.SplitSeq(text, ",") {
		if name = strings.TrimSpace(name); name == "" {
			return errors.New("a name is missing")
		}
		*l = append(*l, name)
	}
	return nil
}

// Command crossfade is the deploy tool: it starts the successor of a running
// service, or has the service start it, and says who serves in the end. Each of its
// commands answers one question of a deploy script, with an exit code, a sentence
// and, with -json, an object. See docs/crossfade.1 or `crossfade help`.
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
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(int(status))
}

// command is one of the tool's commands.
type command struct {
	name    string
	args    string // synopsis of what follows the name
	summary string // one line
	long    string // paragraphs for help and the man page
	example string // one or more lines as a user types them
	// define defines the command's own flags and returns what it does.
	define func(flags *flag.FlagSet) func(ctx context.Context, in *invocation) result
	// local says that the command needs no control socket.
	local bool
}

// commands are in the order in which help lists them.
var commands = []*command{
	settleCommand,
}

// invocation is one call of a command.
type invocation struct {
	command string
	socket  string   // of the service; set unless the command is local
	args    []string // what follows the flags
	json    bool     // the result is to be an object
	stdout  io.Writer
	stderr  io.Writer
}

// say tells the user something that is not the result.
func (in *invocation) say(format string, args ...any) {
	fmt.Fprintf(in.stderr, "crossfade: "+format+"\n", args...)
}

// run is the program, less its process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) code {
	if len(args) == 0 {
		fmt.Fprintln(stderr, "crossfade: which command? `crossfade help` lists them")
		return codeUsage
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "crossfade: there is no command %q: `crossfade help` lists those that exist\n", args[0])
	return codeUsage
}

func (c *command) run(ctx context.Context, args []string, stdout, stderr io.Writer) code {
	in := &invocation{command: c.name, stdout: stdout, stderr: stderr}
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it
	if !c.local {
		flags.StringVar(&in.socket, "socket", os.Getenv("CROSSFADE_SOCKET"), "the `path` of the service's control socket; default: CROSSFADE_SOCKET")
		flags.BoolVar(&in.json, "json", false, "print the result as an object on stdout")
	}
	do := c.define(flags)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return c.help(stdout)
	case err != nil:
		return in.finish(usage("%s: %v: see `crossfade help %s`", c.name, err, c.name))
	case !c.local && in.socket == "":
		return in.finish(usage("%s: which service? give -socket, or set CROSSFADE_SOCKET", c.name))
	}
	in.args = flags.Args()
	return in.finish(do(ctx, in))
}

// help prints what there is to know of the command.
func (c *command) help(out io.Writer) code {
	fmt.Fprintf(out, "usage: crossfade %s %s\n\n%s\n", c.name, c.args, c.long)
	return codeDone
}

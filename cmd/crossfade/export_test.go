package main

import (
	"flag"

	"github.com/crossfade-go/crossfade"
)

// Main is the program, for the test binary that runs as it.
var Main = main

// Internals that tests look at.
var (
	Run          = run
	CodeOf       = codeOf
	RenderStatus = renderStatus
	StatusObject = statusObject
	Printable    = printable
	Clock        = clock
)

// Command is what a test sees of a command.
type Command struct {
	Name, Summary, Long, Example, Synopsis string
	Flags                                  []string
	Codes                                  []code
	Hidden                                 bool
}

// Commands are all of them.
func Commands() []Command {
	var all []Command
	for _, c := range commands {
		seen := Command{
			Name: c.name, Summary: c.summary, Long: c.long, Example: c.example, Synopsis: c.synopsis(),
			Codes: c.codes, Hidden: c.hidden,
		}
		for _, f := range c.describeFlags() {
			seen.Flags = append(seen.Flags, f.name)
		}
		all = append(all, seen)
	}
	return all
}

// Unmet is what `crossfade wait` with these flags misses in a status.
func Unmet(s *crossfade.Status, args ...string) string {
	c := new(condition)
	flags := flag.NewFlagSet("wait", flag.PanicOnError)
	c.define(flags)
	_ = flags.Parse(args) // it panics
	return c.unmet(s)
}

// ParseFlags parses what follows the name of a command, and does nothing more.
func ParseFlags(name string, args []string) error {
	flags, _ := find(commands, name).flags(new(invocation))
	return flags.Parse(args)
}

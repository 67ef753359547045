package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
)

// This file makes the completions of the shells out of the table of commands.

var completionCommand = &command{
	name: "completion", args: "bash|zsh|fish",
	summary: "print the completion for a shell",
	long: `What it prints completes commands, their flags, and the files that flags take.

  bash    source <(crossfade completion bash), in ~/.bashrc
  zsh     crossfade completion zsh >"${fpath[1]}/_crossfade"
  fish    crossfade completion fish >~/.config/fish/completions/crossfade.fish`,
	example: "crossfade completion bash >/etc/bash_completion.d/crossfade",
	codes:   []code{codeDone},
	local:   true, plain: true, operands: true,
	define: func(*flag.FlagSet) func(context.Context, *invocation) result {
		return func(_ context.Context, in *invocation) result {
			if len(in.args) != 1 {
				return usage("completion: for which shell? bash, zsh or fish")
			}
			shell, ok := shells[in.args[0]]
			if !ok {
				return usage("completion: nothing is known of the shell %q: bash, zsh and fish are", in.args[0])
			}
			visible := slices.DeleteFunc(slices.Clone(in.commands), func(c *command) bool { return c.hidden })
			return result{output: shell(visible)}
		}
	},
}

var shells = map[string]func([]*command) string{"bash": bash, "zsh": zsh, "fish": fish}

// commandNames are those of the commands.
func commandNames(commands []*command) []string {
	var names []string
	for _, c := range commands {
		names = append(names, c.name)
	}
	return names
}

// takesFile reports whether the value of the flag is the path of a file.
func (f flagHelp) takesFile() bool { return f.value == "PATH" || f.value == "FILE" }

// words are what a command's operands can be.
func (c *command) words(commands []*command) []string {
	switch c.name {
	case helpCommand.name:
		return commandNames(commands)
	case "completion":
		return []string{"bash", "zsh", "fish"}
	default:
		return nil
	}
}

func bash(commands []*command) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# bash completion of crossfade, which has printed it: crossfade completion bash
_crossfade() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} flags= values= files= words= i
	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W '%s' -- "$cur"))
		return
	fi
	case ${COMP_WORDS[1]} in
`, strings.Join(commandNames(commands), " "))
	for _, c := range commands {
		var flags, values, files []string
		for _, f := range c.describeFlags() {
			flags = append(flags, "--"+f.name)
			switch {
			case f.takesFile():
				files = append(files, "--"+f.name)
			case f.value != "":
				values = append(values, "--"+f.name)
			}
		}
		fmt.Fprintf(&b, "\t%s) flags='%s' values='%s' files='%s' words='%s' ;;\n", c.name, strings.Join(flags, " "),
			strings.Join(values, " "), strings.Join(files, " "), strings.Join(c.words(commands), " "))
	}
	b.WriteString(`	*) return ;;
	esac
	for ((i = 2; i < COMP_CWORD; i++)); do
		if [[ ${COMP_WORDS[i]} == -- ]]; then # what follows is a command line
			local IFS=$'\n'
			if ((i == COMP_CWORD - 1)); then
				COMPREPLY=($(compgen -c -- "$cur") $(compgen -f -- "$cur"))
			else
				COMPREPLY=($(compgen -f -- "$cur"))
			fi
			return
		fi
	done
	if [[ $cur == = ]]; then # readline takes --flag= for two words
		cur=
	elif [[ $prev == = ]]; then # and --flag=value for three
		prev=${COMP_WORDS[COMP_CWORD-2]}
	fi
	prev=--${prev#"${prev%%[!-]*}"} # -flag is --flag
	if [[ " $files " == *" $prev "* ]]; then
		local IFS=$'\n'
		compopt -o filenames 2>/dev/null # there is none outside of a completion
		COMPREPLY=($(compgen -f -- "$cur"))
	elif [[ " $values " == *" $prev "* ]]; then
		return
	elif [[ $cur == -* ]]; then
		COMPREPLY=($(compgen -W "$flags" -- "$cur"))
	elif [[ -n $words ]]; then
		COMPREPLY=($(compgen -W "$words" -- "$cur"))
	fi
}
complete -F _crossfade crossfade
`)
	return b.String()
}

func zsh(commands []*command) string {
	var b strings.Builder
	b.WriteString(`#compdef crossfade
# zsh completion of crossfade, which has printed it: crossfade completion zsh
_crossfade() {
	local curcontext=$curcontext state line
	local -a commands
	commands=(
`)
	for _, c := range commands {
		fmt.Fprintf(&b, "\t\t%s\n", quote(c.name+":"+c.summary))
	}
	b.WriteString(`	)
	_arguments -C '1:command:->command' '*::argument:->arguments' && return
	case $state in
	command) _describe -t commands command commands ;;
	arguments)
		case ${words[1]} in
`)
	for _, c := range commands {
		fmt.Fprintf(&b, "\t\t%s) _arguments", c.name)
		for _, f := range c.describeFlags() {
			spec := "--" + f.name + "[" + strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`).Replace(f.meaning) + "]"
			switch {
			case f.takesFile():
				spec += ":" + strings.ToLower(f.value) + ":_files"
			case f.value != "":
				spec += ":" + strings.ToLower(f.value) + ":"
			}
			b.WriteString(" \\\n\t\t\t" + quote(spec))
		}
		switch words := c.words(commands); {
		case len(words) > 0:
			b.WriteString(" \\\n\t\t\t" + quote("1:argument:("+strings.Join(words, " ")+")"))
		case c.operands: // a command line
			b.WriteString(" \\\n\t\t\t'*::command:_normal'")
		}
		b.WriteString(" ;;\n")
	}
	b.WriteString(`		esac ;;
	esac
}
if [[ $funcstack[1] == _crossfade ]]; then
	_crossfade "$@"
else
	compdef _crossfade crossfade
fi
`)
	return b.String()
}

func fish(commands []*command) string {
	var b strings.Builder
	fmt.Fprintln(&b, "# fish completion of crossfade, which has printed it: crossfade completion fish")
	fmt.Fprintln(&b, "complete -c crossfade -f")
	for _, c := range commands {
		fmt.Fprintf(&b, "complete -c crossfade -n __fish_use_subcommand -a %s -d %s\n", c.name, quote(c.summary))
	}
	for _, c := range commands {
		condition := quote("__fish_seen_subcommand_from " + c.name)
		for _, f := range c.describeFlags() {
			fmt.Fprintf(&b, "complete -c crossfade -n %s -l %s -d %s", condition, f.name, quote(f.meaning))
			switch {
			case f.takesFile():
				b.WriteString(" -r -F")
			case f.value != "":
				b.WriteString(" -x")
			}
			b.WriteString("\n")
		}
		switch words := c.words(commands); {
		case len(words) > 0:
			fmt.Fprintf(&b, "complete -c crossfade -n %s -a %s\n", condition, quote(strings.Join(words, " ")))
		case c.operands: // a command line
			fmt.Fprintf(&b, "complete -c crossfade -n %s -F\n", condition)
		}
	}
	return b.String()
}

// quote makes one word of a shell's command line. The quotes inside are doubled by
// closing, escaping and opening again, which all three shells understand.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"
)

// This file is where the output of the started process goes: a file, or what this
// process has, but never a pipe, whose reader may exit before the process does: the
// next line would end it.

// outputLog is the output of one process.
type outputLog struct {
	path           string // empty if the output is inherited
	stdout, stderr *os.File
	fresh          bool     // the file was made for this process
	read           *os.File // the same file, nil if it cannot be read again
	from           int64    // where this process's part begins
}

// The last words that a failure quotes.
const (
	maxLines    = 20
	maxLineSize = 500
	maxTailSize = 64 << 10
)

// checkInherited returns an error if this process's own output is none to inherit.
func checkInherited(in *invocation) error {
	for _, w := range []struct {
		name string
		io.Writer
	}{{"stdout", in.stdout}, {"stderr", in.stderr}} {
		if w.name == "stdout" && in.json {
			continue // which the object has for itself
		}
		f, ok := w.Writer.(*os.File)
		if !ok {
			return fmt.Errorf("--log -: %s is no file that could be inherited", w.name)
		}
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("--log -: %s: %w", w.name, err)
		}
		if info.Mode()&fs.ModeNamedPipe != 0 {
			return fmt.Errorf("--log -: %s is a pipe: when its reader exits the next line of output would end the new process; redirect it to a file, or give --log FILE", w.name)
		}
	}
	return nil
}

// checkLog returns an error if path cannot be a log.
func checkLog(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("--log: %w", err)
	case info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0:
		return fmt.Errorf("--log: %s is a pipe or a socket: when its reader exits the next line of output would end whoever writes it", path)
	case info.IsDir():
		return fmt.Errorf("--log: %s is a directory", path)
	}
	return nil
}

// openLog opens the log of a program: path, a fresh file if that is empty, or what
// in has if it is -.
func openLog(in *invocation, path, program string) (*outputLog, error) {
	if path == "-" {
		stderr, _ := in.stderr.(*os.File) // checkInherited
		stdout, _ := in.stdout.(*os.File)
		if in.json {
			stdout = stderr // stdout has the object, and nothing else
		}
		return &outputLog{stdout: stdout, stderr: stderr}, nil
	}
	l := new(outputLog)
	if path == "" {
		f, err := os.CreateTemp("", "crossfade-"+filepath.Base(program)+"-*.log")
		if err != nil {
			return nil, err
		}
		l.fresh, path = true, f.Name()
		if err := f.Close(); err != nil { // it does not append
			return nil, err
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	l.path, l.stdout, l.stderr = path, f, f
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		l.from = info.Size()
		l.read, _ = os.Open(path) // without it the failure quotes nothing
	}
	return l, nil
}

// started closes what only the started process needs.
func (l *outputLog) started() {
	if l.path != "" {
		_ = l.stdout.Close()
	}
}

// discard is for a process that could not be started.
func (l *outputLog) discard() {
	l.started()
	if l.fresh {
		_ = os.Remove(l.path)
		l.path = ""
	}
}

func (l *outputLog) close() {
	if l.read != nil {
		_ = l.read.Close()
	}
}

// tail returns the last lines that the process has written, in a form that a terminal
// can be shown.
func (l *outputLog) tail() []string {
	if l.read == nil {
		return nil
	}
	info, err := l.read.Stat()
	if err != nil {
		return nil
	}
	from := l.from
	if info.Size() < from {
		from = 0 // somebody has truncated it
	}
	cut := info.Size()-from > maxTailSize
	if cut {
		from = info.Size() - maxTailSize
	}
	text, err := io.ReadAll(io.NewSectionReader(l.read, from, maxTailSize))
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if cut && len(lines) > 1 {
		lines = lines[1:] // of which the beginning is missing
	}
	lines = lines[max(0, len(lines)-maxLines):]
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	for i, line := range lines {
		lines[i] = printable(line)
	}
	return lines
}

// printable is one line of anything as a terminal can be shown it.
func printable(line string) string {
	line = strings.TrimSuffix(line, "\r")
	if len(line) > maxLineSize {
		line = line[:maxLineSize] + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(line, "?"))
}

//go:build unix

package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminalOf returns the terminal that out is, and whether it is one.
func terminalOf(out io.Writer) (*terminal, bool) {
	f, ok := out.(*os.File)
	if !ok {
		return nil, false
	}
	if _, ok := windowHeight(f); !ok {
		return nil, false
	}
	return &terminal{out: f, height: func() int {
		height, _ := windowHeight(f)
		return height
	}}, true
}

// windowHeight asks how many lines the terminal has. One that does not know, as a
// serial line, has those of a VT100.
func windowHeight(f *os.File) (lines int, ok bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, false
	}
	var size *unix.Winsize
	var failed error
	if err := raw.Control(func(fd uintptr) { size, failed = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ) }); err != nil || failed != nil {
		return 0, false
	}
	if size.Row == 0 {
		return 24, true
	}
	return int(size.Row), true
}

// resized returns a channel that tells of a new size, until stop is called.
func (t *terminal) resized() (changes <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1) // room for one: whoever draws asks for the size anyway
	signal.Notify(c, syscall.SIGWINCH)
	return c, func() { signal.Stop(c) }
}

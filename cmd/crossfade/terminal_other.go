//go:build !unix

package main

import (
	"io"
	"os"
)

// terminalOf finds none: there are no control sockets either.
func terminalOf(io.Writer) (*terminal, bool) { return nil, false }

func (t *terminal) resized() (changes <-chan os.Signal, stop func()) { return nil, func() {} }

//go:build !linux

// Command chaos is the fault matrix; it needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "the fault matrix needs Linux: it looks into /proc and stops processes thread by thread")
	os.Exit(1)
}

// Package overlap has tests that wait for other processes run at the same time.
package overlap

import (
	"flag"
	"strconv"
)

// Tests has n of the tests that call t.Parallel run at a time, where package testing
// runs one for each processor. It is for a TestMain, before the flags are parsed: what
// the command line says of -parallel counts.
func Tests(n int) {
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		panic(err) // this is no test
	}
}

// Package foreign holds a successor that is not written in Go.
//
// successor.py takes a service over from any owner that uses package crossfade,
// and answers its clients from then on. It was written from docs/protocol.md
// alone, to find out whether that text says everything; the package's tests run
// it against real processes. It is also the shortest complete answer to the
// question what a successor has to do.
package foreign

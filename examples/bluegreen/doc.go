// Package bluegreen shows the main job of crossfade: two builds of an HTTP
// server take turns at one port, each started on its own by a shell, while
// clients talk to it. Run demo.sh.
//
// The server in the directory server is the example to copy; it imports nothing
// from here. The rest measures it: servers write a journal of what they began
// and finished, the program load makes requests and reports each, and the
// program verdict puts both together. This package is what those two share.
package bluegreen

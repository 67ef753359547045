//go:build unix && !linux

package main

// sealDescriptors keeps what this process has inherited, such as a script's lock, from
// the processes that it starts: they would hold it for as long as they live.
func sealDescriptors() error { return sealListed("/dev/fd") }

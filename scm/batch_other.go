//go:build !linux

package scm

// Batch is how many descriptors a sender puts on one frame on this system: what
// every kernel takes in one message. OpenBSD refuses more than 127.
const Batch = 64

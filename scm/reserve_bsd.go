//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package scm

const descriptorDir = "/dev/fd"

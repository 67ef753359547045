//go:build linux

package main

// ParseParent reads /proc/PID/stat.
var ParseParent = parseParent

package scm

const descriptorDir = "/proc/self/fd"

// Package kubernetes has no code: it is the manifest of a pod whose two containers
// replace each other while they serve, the hook that waits for it, and a test that
// plays both containers.
package kubernetes

// Package systemd is units for systemd, and how to use them is in README.md. The
// scenarios of e2e/testdata/systemd run each of them below a real systemd.
package systemd

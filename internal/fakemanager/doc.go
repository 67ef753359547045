// Package fakemanager plays a service manager in tests: it has a notification
// socket that real processes speak to, keeps descriptors for them and passes them
// to the next process, and follows the main process of the one unit that it has,
// as systemd does. Linux only.
package fakemanager

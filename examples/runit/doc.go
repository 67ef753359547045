// Package runit has no code: it is the service directory of a service below runit
// whose code is replaced while it serves, and a test that runs it.
package runit

// Package supervisord has no code: it is the configuration of a service below
// supervisord whose code is replaced while it serves, and a test that runs it.
package supervisord

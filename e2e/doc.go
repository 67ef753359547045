// Package e2e is nothing but tests: what an operator does with the deploy tool, and
// what comes of it, with real processes, on Linux. The scenarios are in
// testdata/script, the service that they deploy is in app.
package e2e

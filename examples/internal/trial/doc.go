// Package trial is what the tests of the examples share: it builds the tool and the
// server of examples/bluegreen, gives each test a place of its own, asks who answers,
// and ends what is left in the end. Only tests import it.
package trial

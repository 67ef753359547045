// Package flood is the clients that a control socket must survive. Tests and the
// benchmark of the door run them as a process of their own, so that what they use is
// not counted as the owner's. Linux only.
package flood

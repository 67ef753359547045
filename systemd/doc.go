// Package systemd speaks with the service manager that started this process: it
// takes what the manager has passed, tells it how the service does, and has it
// keep descriptors.
//
// A program that uses package crossfade needs none of it: the Upgrader takes the
// environment, says what is to be said in each phase of a handoff, and stores the
// listeners. This package alone is for a service that is not handed over but is
// started, watched or activated by systemd, or by another manager with these
// interfaces:
//
//	env, err := systemd.Take()
//	if err != nil { ... }
//	for _, s := range env.Sockets {
//		ln, err := s.FD.Listener()
//		...
//	}
//	env.Notifier.Send(ctx, systemd.Ready(), systemd.Status("serving"))
//
// # Names of stored descriptors
//
// The name of a descriptor in the store has at most 255 ASCII characters, of which
// none is a control character or a colon, sd_notify(3). Elsewhere in this module
// names are UTF-8 and have colons. So each byte which cannot be there, and the
// percent sign, is stored as a percent sign and two upper-case hexadecimal digits,
// and is itself again in what [Take] returns: "tcp:[::1]:80" is stored as
// tcp%3A[%3A%3A1]%3A80. Each name has one such form, and what is not the form of a
// name, because a unit file has it, is left as it is.
//
// # Sources
//
// The interfaces are those of sd_notify(3), sd_listen_fds(3),
// sd_watchdog_enabled(3), systemd.exec(5) and systemd.service(5). Where a version
// is given, as v246, it is the one of systemd in which a thing came.
//
// On systems other than Linux [Take] finds nothing, and a nil [Notifier] does
// nothing.
package systemd

// Package rendezvous answers one question: who owns this unix socket path?
//
// [Find] either reaches the owner or makes the caller the first one. Nobody
// owns a path only if connecting to it gives ENOENT or ECONNREFUSED and its
// lock file is free. Permission, a timeout, a file of the wrong type, a lock
// that somebody holds: all of these say that the owner is unknown, and then
// nothing is bound and nothing is unlinked. [Open] gives a service's own unix
// sockets by the same rules, so that the file left behind by a killed process
// is no obstacle and a living one is never taken away.
//
// Three names make a place: the socket's path, the lock beside it (".lock"
// appended) and, for an instant, a directory ("~" appended) that is closed to
// all others, in which the socket is bound before it is renamed. The lock file stays for good: whoever unlinks a
// lock file lets two processes lock two files of one name. The lock itself is
// a flock(2). It belongs to the open file description, so it travels with its
// descriptor over SCM_RIGHTS, and it is only ever closed, never unlocked: an
// unlock by one holder would be one by all.
//
// The order of a claim is: lock, look again, bind the temporary name, chown,
// chmod, listen, rename. A connect therefore meets the final rights or nothing,
// whatever the umask is, and a stale path is replaced without a gap.
//
// The directory must be on a local file system and writable by nobody who is
// not trusted to run the service: who can rename files there can always take a
// path away. That is noticed (see [Claim.Check]) but cannot be prevented.
//
// On systems without flock(2) or unix sockets every function fails with
// [errors.ErrUnsupported].
package rendezvous

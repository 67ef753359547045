/* The names of the protocol, as docs/protocol.md and the code spell them.
 * model_test.go compares them with both, so that the model and the machines in
 * package handoff cannot drift apart.
 *
 * A message is spelt as its type in handoff.proto, a state as a status shows
 * it. Upper and lower case keep them apart: Draining is a message, draining a
 * state.
 */
mtype:state = {
	candidate, heir, owner, offering, committing,
	standby, probation, yielding, draining, out
};

mtype:message = {
	/* from the client */
	Hello, Received, Ready, FinalReceived, CommitAck, Settle, Rollback, ConnectionAck,
	/* from the server */
	Welcome, Refuse, ManifestPage, Commit, ProbationOver, Resumed, Retired, Connection,
	/* from either */
	Abort,
	/* what is no message of the protocol: bytes that cannot be decoded, or a
	   message that is not due */
	garbage
};

/* Left out, one to a line, because nothing that the claims speak of hangs on them:
 *
 * Prepared: between Welcome and the first page nothing has been handed over
 * PageAck: it bounds what is unread; the model lets a page fail to be written instead (FAULT_JAM)
 * Progress: it moves a deadline, and the model's deadlines may pass at any moment
 * EndDrain: the model's drain may end at any moment
 * Draining: for displays only
 * ControlRequest: a controller takes nothing; what it commands (Stop, Cancel, Settle, Rollback) the model does at any moment
 * ControlResponse: the answer to it
 */

/* Each mutation breaks one rule of the protocol and must make one claim fail:
 * otherwise that claim says nothing. -DMUTATION=NAME chooses one, none is the
 * default. main.go reads these lines: a number, the model and its claim.
 */
#define NONE 0
#ifndef MUTATION
#define MUTATION NONE
#endif
#define mutant(name) (MUTATION == name)

/* -- Who owns -- */
#define COMMIT_BEFORE_CEASING       1 /* handoff never_two: writes Commit first and ceases to own then */
#define RESUME_ON_TIMER             2 /* handoff never_two: resumes when CommitAck is late */
#define RETIRE_ON_TIMER             3 /* handoff owner_decides: retires when the probation is over, unasked */
#define CLOSE_WITHOUT_ABORT         4 /* handoff never_two: gives an attempt up by closing the connection */
#define CLOSE_THOUGH_UNWRITTEN      5 /* handoff never_two: closes although Abort could not be written */
#define END_BEFORE_QUEUE            6 /* handoff never_two: the successor acts on the end of the connection before it has read what was queued */
#define COMMIT_AFTER_ABORT          7 /* handoff never_two: the successor obeys Commit although it has begun to write Abort */
#define ROLLBACK_BEFORE_CEASING     8 /* handoff never_two: the successor writes Rollback first and ceases to own then */
#define RESUME_WITHOUT_A_WORD       9 /* handoff never_two: answers Rollback by closing the connection */
#define ANSWER_TWICE               10 /* handoff answers_once: the owner rolls back although it has settled */
#define OFFER_IN_PROBATION         11 /* chain never_two: the owner hands over before it is settled */
#define OFFER_TO_A_SECOND          12 /* chain never_two: an owner that could not write Abort offers to the next candidate */
#define OFFER_IN_STANDBY           13 /* chain never_two: a predecessor on standby takes another candidate, as if it still owned */

/* -- What comes of it -- */
#define NO_HEIR                    14 /* handoff served: the successor gives up when the predecessor dies before Ready */
#define RETIRED_UNCHECKED          15 /* handoff served: retires although Retired could not be written */
#define YIELD_FOR_GOOD             16 /* handoff served: a successor that rolls back is out, whether it reads Resumed or not */
#define CLOSE_AT_COMMIT            17 /* handoff never_a_gap: the predecessor closes its copies when it commits */
#define CLOSE_AT_ROLLBACK          18 /* handoff never_a_gap: the successor closes its copies when it rolls back */
#define NO_DEADLINE                19 /* handoff free_before_commit: waits for Ready and FinalReceived without a limit */
#define PATIENT_FOR_EVER           20 /* handoff candidate_ends: a candidate waits for each answer without a limit */
#define ADOPT_IN_EACH_CASE         21 /* handoff never_two: the successor takes Abort for the end of the predecessor */
#define NEVER_ASKS                 22 /* handoff ends: the predecessor does not ask the owner to answer */
#define WAIT_AFTER_ABORT           23 /* handoff ends: a successor that has read Abort waits for another offer */

/* -- What two processes must not use at once -- */
#define SUSPEND_AT_COMMIT_ACK      24 /* handoff one_user: the predecessor lets go of the exclusive resource when it has read CommitAck */
#define PAUSE_AT_COMMIT_ACK        25 /* handoff one_reader: the predecessor reads packets until it has read CommitAck */
#define YIELD_UNSUSPENDED          26 /* handoff one_user: the successor lets go after it has read Resumed */
#define YIELD_UNPAUSED             27 /* handoff one_reader: the successor reads packets until it has read Resumed */
#define RESUME_NOT_CALLED          28 /* handoff in_use: a failed attempt leaves the resource suspended */
#define UNPAUSE_NOT_CALLED         29 /* handoff packets_read: a failed attempt leaves the packet sockets paused */

/* -- Stopping -- */
#define STOP_WITHOUT_ABORT         30 /* handoff stop_means_stop: an owner that is told to stop leaves its candidate without a word */
#define STOP_AS_IF_SETTLED         31 /* handoff path_stays: an owner in probation unlinks the control path when it stops */
#define STOP_AS_IF_OWNER           32 /* handoff path_stays: a predecessor on standby unlinks the control path when it stops */
#define STOP_AND_FORGET            33 /* handoff path_stays: a predecessor that stops while Abort cannot be written unlinks the control path */

/* -- After garbage -- */
#define RESUME_ON_GARBAGE          34 /* handoff never_two: a predecessor resumes when its successor breaks the protocol */
#define CLOSE_ON_GARBAGE           35 /* handoff never_two: the owner closes its end when its predecessor breaks the protocol */
#define OWN_AGAIN_THOUGH_DEAF      36 /* handoff never_two: a successor that rolled back and went deaf owns at the end of the connection */

/* -- Connections -- */
#define READ_AFTER_SENDING         37 /* drain one_reader: the predecessor reads on after it has written Connection */
#define ACK_AFTER_READING          38 /* drain nothing_lost: the successor reads before it has written ConnectionAck */
#define TAKE_BACK_ON_TIMER         39 /* drain one_reader: the predecessor takes a connection back when ConnectionAck is late */
#define TAKE_BACK_BEFORE_QUEUE     40 /* drain one_reader: the predecessor acts on the end before it has read what was queued */
#define READ_THOUGH_REFUSED        41 /* drain one_reader: the successor says no, and serves the connection all the same */
#define UNREAD_FORGOTTEN           42 /* drain in_order: what the predecessor had read does not travel with the connection */
#define EXIT_UNACKNOWLEDGED        43 /* drain nothing_lost: the predecessor exits while a connection is not acknowledged */
#define NEVER_TAKEN_BACK           44 /* drain nothing_lost: the predecessor forgets a connection that the successor has refused */
#define TAKE_BACK_AFTER_GARBAGE    45 /* drain one_reader: the predecessor takes a connection back at the end of a successor that it did not understand */
#define SERVE_UNACKNOWLEDGED       46 /* drain one_reader: the successor serves a connection though its answer cannot be written */

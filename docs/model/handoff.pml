/* One handoff: a predecessor and its successor. Either may be killed or freeze
 * at any moment and be told to stop in any state; a message of either may
 * arrive as garbage, and a frame of the predecessor may break off.
 */
#define PROCESSES 2
#define LINKS 1
#define FAULT_KILL 1
#define FAULT_FREEZE 1
#define FAULT_JAM 1
#define FAULT_GARBAGE 1
#define STOPS 1
#define FACTS

#include "names.pml"
#include "mutations.pml"
#include "rules.pml"

#define P 0
#define S 1

init {
	atomic {
		server[0] = P; client[0] = S;
		isOwner(P); settled[P] = true;
		run Predecessor(P, 0); run Successor(S, 0);
		begins(P); begins(S)
	}
}

#define runs(x) (life[x] == running)
#define dead(x) (life[x] == killed)
#define garbled (garbledToServer || garbledToClient)

#define begun (server[0] != client[0])

/* The service has ended as the rules accept it: its owner stopped for good; one
 * side was killed or is out because it was told to stop, when the other could
 * not come to own yet, or not any more. */
#define successorIsNoHelp (!received || declined || aborted || resumed || dead(S) || stopped[S] || garbledToClient)
#define predecessorIsNoHelp (retired || dead(P) || stopped[P])
#define over (unlinked || \
	((dead(P) || stopped[P]) && successorIsNoHelp) || \
	(dead(S) && predecessorIsNoHelp) || \
	(stopped[S] && retired))

/* What the rules promise nothing about but safety: a frozen process decides
 * nothing, and after garbage or a broken frame one side waits for the end of
 * the other. */
#define impaired (life[P] == frozen || life[S] == frozen || brokeOff || garbled)

/* -- Safety: at every moment, whatever happens -- */

/* I1. */
ltl never_two { [] !(owns(P) && owns(S)) }

/* The predecessor never retires of its own accord: a frozen successor would be
 * left alone with the service. */
ltl owner_decides { [] !(retired && !settleSaid) }

/* Settle or Rollback, once; so neither crosses the answer to the other. */
ltl answers_once { [] !crossed }

/* I3: a process that is not dead holds the listening sockets. */
ltl never_a_gap { [] (begun -> copies[P] || copies[S] || over) }

/* Suspend and Resume: the exclusive resource never has two users. */
ltl one_user { [] !(uses[P] && uses[S]) }

/* Nor has a packet socket two readers. */
ltl one_reader { [] !(reads[P] && reads[S]) }

/* Who is told to stop before Commit is not succeeded by its candidate. The one
 * exception is a candidate that could not be told. */
ltl stop_means_stop { [] !(stoppedEarly && !brokeOff && !dead(P) && (state[S] == heir || owns(S))) }

/* I9: the control path is unlinked only when nobody owns, or is about to. */
ltl path_stays { [] !(unlinked && (owns(P) || owns(S) || state[S] == heir)) }

/* -- Liveness: in the end, and from then on -- */

/* Somebody owns. */
ltl served { <> [] (owns(P) || owns(S) || over || impaired) }

/* Each attempt ends. */
ltl ends { <> [] (impaired || ((state[P] == owner || state[P] == out) && (state[S] == owner || state[S] == out))) }

/* Before Commit each side is free by its deadline, also beside one that is
 * frozen, deaf or cannot be written to. */
ltl free_before_commit { <> [] !(runs(P) && (state[P] == offering || state[P] == committing)) }
ltl candidate_ends { <> [] !(runs(S) && state[S] == candidate) }

/* Whoever owns in the end uses what it has to itself. */
ltl in_use { <> [] ((state[P] == owner -> uses[P]) && (state[S] == owner -> uses[S])) }
ltl packets_read { <> [] ((state[P] == owner -> reads[P]) && (state[S] == owner -> reads[S])) }

/* -- These must fail: what they deny can happen -- */

ltl reach_offering { [] (state[P] != offering) }
ltl reach_committing { [] (state[P] != committing) }
ltl reach_standby { [] (state[P] != standby) }
ltl reach_probation { [] (state[P] != probation) }
ltl reach_draining { [] (state[P] != draining) }
ltl reach_heir { [] (state[S] != heir) }
ltl reach_yielding { [] (state[S] != yielding) }

/* The successor owns for good, beside a predecessor that drains. */
ltl reach_settled { [] !(state[P] == draining && state[S] == owner && settled[S]) }

/* The service comes back: by Rollback; because the successor died; because it
 * gave up when Commit was already on its way. */
ltl reach_rolled_back { [] !(state[P] == owner && resumed && runs(S)) }
ltl reach_resumed { [] !(state[P] == owner && settleSaid && dead(S)) }
ltl reach_commit_crosses_abort { [] !(state[P] == standby && state[S] == out && runs(S)) }

/* The predecessor died: an heir comes to own; a successor owns that has not
 * read Commit; one that had rolled back owns again. */
ltl reach_inherited { [] !(state[S] == owner && dead(P) && !readySaid) }
ltl reach_adopted { [] !(state[S] == owner && dead(P) && readySaid && !committed) }
ltl reach_owns_again { [] !(state[S] == owner && rolledBack) }

/* A predecessor waits for ever, before and after CommitAck, beside a successor
 * that is frozen: the price of owner_decides. */
ltl reach_standby_for_ever { ! <> [] (state[P] == standby && runs(P) && life[S] == frozen) }
ltl reach_probation_for_ever { ! <> [] (state[P] == probation && runs(P) && life[S] == frozen) }

/* Deaf: an owner that may hand over to nobody; one that resumes when the broken
 * connection ends. */
ltl reach_deaf_owner { [] !(state[P] == owner && busy[P] && brokeOff && runs(S)) }
ltl reach_deaf_resumed { [] !(state[P] == owner && committed && garbledToServer) }

/* Stopping: a predecessor is out and its successor goes on; one that was about
 * to retire is the owner that stops, after all; an owner in probation gives the
 * service back. */
ltl reach_left { [] !(stoppedLate && state[S] == owner && settled[S]) }
ltl reach_stopped_after_all { [] !(stopped[P] && !stoppedEarly && unlinked && committed) }
ltl reach_given_back { [] !(stopped[S] && state[P] == owner && resumed) }

/* Three processes. A owns; B takes over from A; C asks either of them, at any
 * moment. So C may be the third of a chain, or the second candidate of an owner
 * whose first one failed, or come too early or too late. One of A and B may be
 * killed, and what A writes to B may break off. What befalls C alone is not new:
 * handoff.pml has it.
 */
#define PROCESSES 3
#define LINKS 2
#define FAULT_KILL 1
#define FAULT_JAM (l == 0)

#include "names.pml"
#include "mutations.pml"
#include "rules.pml"

#define A 0
#define B 1
#define C 2

init {
	atomic {
		server[0] = A; client[0] = B;
		if :: server[1] = A :: server[1] = B fi;
		client[1] = C;
		isOwner(A); settled[A] = true;
		run Predecessor(A, 0); run Successor(B, 0);
		run Predecessor(server[1], 1); run Successor(C, 1);
		if :: run Fate(A) :: run Fate(B) fi
	}
}

/* I1, for all three. */
ltl never_two { [] (owns(A) + owns(B) + owns(C) <= 1) }

/* -- These must fail -- */

ltl reach_third { [] !(state[C] == owner && settled[C]) }
ltl reach_three_alive { [] !(state[A] == draining && state[B] == draining && state[C] == owner) }
ltl reach_second_candidate { [] !(state[C] == owner && server[1] == A && state[B] == out) }
ltl reach_too_early { [] !(state[A] == probation && server[1] == B && !serverEnd[1] && state[B] == owner) }

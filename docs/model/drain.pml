/* Established connections that move to the successor. The predecessor has
 * retired and drains; one of its connections has a client that sends LENGTH
 * bytes. Whoever reads it takes bytes out of the kernel's queue into its own
 * buffer and handles them in order.
 *
 * From writing Connection on the predecessor neither reads nor writes the
 * connection. It takes it back only on a negative answer, or when the
 * successor's end has come, all that it wrote was read, and no answer was there.
 * What it had read and not handled travels along, and it keeps a copy. An answer
 * that it cannot understand may have been a yes: then it never takes it back.
 */
#define LENGTH 3

#include "names.pml"
#include "mutations.pml"

mtype:life = { running, frozen, killed, exited };
mtype:life predecessorLife = running, successorLife = running;

/* Each message with its argument: Connection{unread}, ConnectionAck{taken}.
 * Unread bytes are numbered in order, so the first and how many tell all. */
chan toClient = [1] of { mtype:message, byte, byte };
chan toServer = [1] of { mtype:message, bool };
bool serverEnd = true, clientEnd = true;

byte next;        /* the byte that the kernel gives out next: those below were read */
byte handled;     /* bytes that were handled */
bool disorder;    /* a byte was handled twice, or too early */
bool predecessorReads = true, successorReads; /* who may call read(2) */
bool predecessorHas = true; /* it holds the connection open, and may take it back */
bool acked;       /* ConnectionAck{taken} was written, or nobody is there to read it */
bool refusedIt;

#define clientGone (!clientEnd && (len(toServer) == 0 || mutant(TAKE_BACK_BEFORE_QUEUE)))
#define serverGone (!serverEnd && len(toClient) == 0)

/* first and count are the bytes that were read and not handled. */
inline readsByte(first, count) { if :: count == 0 -> first = next :: else fi; count++; next++ }
inline handles(first, count) {
	if :: first == handled -> handled++ :: else -> disorder = true fi;
	first++; count--
}

proctype Predecessor() provided (predecessorLife == running) {
	byte first, count;

serves:
	do
	:: atomic { next < LENGTH && count < 2 -> readsByte(first, count) }
	:: atomic { count > 0 -> handles(first, count) }
	:: atomic { clientEnd -> /* the connection is idle, or quiet enough: it goes */
		predecessorReads = mutant(READ_AFTER_SENDING);
		if
		:: mutant(UNREAD_FORGOTTEN) -> toClient!Connection(0, 0)
		:: else -> toClient!Connection(first, count)
		fi;
		goto waits }
	:: atomic { next == LENGTH && count == 0 -> goto finished }
	od;

waits:
	if
	:: atomic { toServer?ConnectionAck(true) -> predecessorHas = false; predecessorReads = false; goto finished }
	:: atomic { toServer?ConnectionAck(false) ->
		if :: mutant(NEVER_TAKEN_BACK) -> predecessorHas = false; goto finished :: else -> goto takes_back fi }
	:: atomic { toServer?garbage(_) -> /* a yes may be what it cannot understand */
		if
		:: mutant(TAKE_BACK_AFTER_GARBAGE) -> goto broken
		:: else -> predecessorHas = false; predecessorReads = false; goto finished
		fi }
	:: atomic { clientGone -> goto takes_back }
	:: atomic { mutant(TAKE_BACK_ON_TIMER) && clientEnd && len(toServer) == 0 -> goto takes_back }
	:: atomic { mutant(EXIT_UNACKNOWLEDGED) -> goto finished }
	fi;

broken:
	atomic { !clientEnd -> goto takes_back };

takes_back:
	atomic { predecessorReads = true };
	do
	:: atomic { next < LENGTH && count < 2 -> readsByte(first, count) }
	:: atomic { count > 0 -> handles(first, count) }
	:: atomic { next == LENGTH && count == 0 -> break }
	od;

finished:
	/* The drain is over: it exits, which closes what it holds. */
	atomic { predecessorReads = false; predecessorHas = false; serverEnd = false;
		do :: toServer?_, _ :: empty(toServer) -> break od;
		predecessorLife = exited }
}

proctype Successor() provided (successorLife == running) {
	byte first, count;
	if
	:: atomic { toClient?Connection(first, count) ->
		if
		:: mutant(ACK_AFTER_READING) -> successorReads = true; goto reads_early
		:: goto takes
		:: goto refuses
		fi }
	:: atomic { serverGone -> goto without }
	:: atomic { clientEnd = false; do :: toClient?_, _, _ :: empty(toClient) -> break od; goto without } /* it closes its end, and lives on */
	fi;

reads_early:
	if
	:: atomic { next < LENGTH && count < 2 -> readsByte(first, count) }
	:: skip
	fi;

takes:
	/* Before the first read, and before anybody in the program gets it. If the
	 * predecessor is gone nobody can take it back. */
	if
	:: atomic { acked = true;
		if
		:: serverEnd -> toServer!ConnectionAck(true)
		:: serverEnd -> toServer!garbage(true)
		:: else
		fi }
	:: atomic { serverEnd -> /* it cannot be written, though the predecessor is there */
		clientEnd = false;
		if :: mutant(SERVE_UNACKNOWLEDGED) :: else -> goto without fi }
	fi;
	atomic { successorReads = true };
	do
	:: atomic { next < LENGTH && count < 2 -> readsByte(first, count) }
	:: atomic { count > 0 -> handles(first, count) }
	:: atomic { clientEnd -> clientEnd = false } /* the answer may still be unread */
	:: atomic { next == LENGTH && count == 0 -> break }
	od;
	goto without;

refuses:
	atomic { successorReads = mutant(READ_THOUGH_REFUSED);
		refusedIt = true;
		if :: serverEnd -> toServer!ConnectionAck(false) :: else fi };

without:
	skip
}

proctype Fate() {
	if
	:: atomic { predecessorLife == running -> predecessorLife = killed;
		predecessorReads = false; predecessorHas = false; serverEnd = false;
		do :: toServer?_, _ :: empty(toServer) -> break od }
	:: atomic { successorLife == running -> successorLife = killed;
		successorReads = false; clientEnd = false;
		do :: toClient?_, _, _ :: empty(toClient) -> break od }
	:: atomic { predecessorLife == running -> predecessorLife = frozen }
	:: atomic { successorLife == running -> successorLife = frozen }
	:: skip
	fi
}

init { atomic { run Predecessor(); run Successor(); run Fate(); run Fate() } }

/* A connection goes down with the process that has it, and stands still with one
 * that is frozen: the predecessor before the answer and after a no, the
 * successor after its yes. Beside a frozen successor that has not answered, the
 * predecessor waits. */
#define heldByTheDead ( \
	(successorLife != running && acked) || \
	((predecessorLife == killed || predecessorLife == frozen) && (refusedIt || !acked)) || \
	(predecessorLife == killed && !clientEnd) || (successorLife == frozen))

/* One reader at any time. */
ltl one_reader { [] !(predecessorReads && successorReads) }

/* Each byte is handled once and in order. */
ltl in_order { [] !disorder }

/* And all are, unless the process that had the connection died with it. */
ltl nothing_lost { <> [] (handled == LENGTH || heldByTheDead) }

/* -- These must fail -- */

ltl reach_moved { [] !(handled == LENGTH && acked && predecessorLife == exited) }
ltl reach_taken_back { [] !(handled == LENGTH && refusedIt && predecessorLife == exited) }
ltl reach_taken_back_at_end { [] !(handled == LENGTH && !acked && successorLife == killed && predecessorHas) }
ltl reach_taken_from_the_dead { [] !(handled == LENGTH && acked && predecessorLife == killed) }

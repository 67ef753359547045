/* The two machines of the protocol, with everything that may happen to them.
 *
 * A process of the model stands for one machine of one process: the same
 * process can be the successor on one connection and the predecessor on
 * another. What a process has is therefore kept by process, what a connection
 * has by link. Each label names the state that the machine is in and, behind
 * it, what it waits for; model_test.go looks up in docs/protocol.md whether a
 * message that is received below a label may come there.
 *
 * There is no clock. A deadline passes, a program gives up and an operator
 * interferes whenever they like, but never before the machine has read what
 * had arrived: "what has arrived comes before any timer". Nothing is repeated,
 * so each run ends, and what holds in the end is what holds for ever.
 *
 * One step is what a process does without anything else being able to happen
 * in between: a read with the decisions that hang on it, or one write. So a
 * process can die, freeze or lose its peer between any two of them.
 */

/* What may happen: 1 it does. A model switches on what its claims are about. */
#ifndef FAULT_KILL
#define FAULT_KILL 0 /* a process is killed */
#endif
#ifndef FAULT_FREEZE
#define FAULT_FREEZE 0 /* a process stops for good, and keeps all that it holds */
#endif
#ifndef FAULT_JAM
#define FAULT_JAM 0 /* a frame of the server breaks off half-way: nothing more can be written */
#endif
#ifndef FAULT_GARBAGE
#define FAULT_GARBAGE 0 /* a message arrives as garbage, once in each direction */
#endif
#ifndef STOPS
#define STOPS 0 /* an operator stops processes */
#endif

mtype:life = { running, frozen, killed, exited };

/* Of each process. */
mtype:life life[PROCESSES] = running;
mtype:state state[PROCESSES] = candidate;
bool settled[PROCESSES]; /* as an owner: no predecessor can come back */
bool busy[PROCESSES];    /* as an owner: an attempt is in everybody's way */
bool toStop[PROCESSES];  /* it will be told to stop, at some moment */
bool stopped[PROCESSES]; /* it was told */
bool copies[PROCESSES];  /* it holds the descriptors */
bool uses[PROCESSES];    /* it uses the exclusive resource, that Suspend and Resume are for */
bool reads[PROCESSES];   /* it reads the packet sockets */

/* Of each connection. */
byte server[LINKS];
byte client[LINKS];
chan toServer[LINKS] = [4] of { mtype:message };
chan toClient[LINKS] = [4] of { mtype:message };
bool serverEnd[LINKS] = true; /* held open by somebody */
bool clientEnd[LINKS] = true;
bool jammed[LINKS];           /* the server's last frame broke off */
bool brokeOff;                /* on some connection, then or now */
bool garbledToServer, garbledToClient;

/* What has happened, for the claims of a model that wants to know. */
#ifdef FACTS
bool received;     /* a successor has written Received */
bool readySaid;    /* a successor has written Ready */
bool aborted;      /* a predecessor has written Abort */
bool committed;    /* a predecessor has ceased to own, and writes Commit */
bool settleSaid;   /* an owner has written Settle */
bool rolledBack;   /* an owner has begun to write Rollback */
bool resumed;      /* a predecessor has written Resumed */
bool retired;      /* a predecessor has written Retired */
bool declined;     /* a candidate has ended as the rules want it */
bool stoppedEarly; /* a predecessor was stopped before Commit */
bool stoppedLate;  /* a predecessor was stopped after it, and is out */
bool unlinked;     /* the owner that stops for good has unlinked the control path */
bool crossed;      /* Rollback has come after Retired, or Retired after Rollback */
#define note(fact) fact = true
#else
#define note(fact) skip
#endif

#define owns(x) (state[x] == owner || state[x] == offering || state[x] == committing)
#define mayStop(x) (toStop[x] && !stopped[x])

/* The lease: an end of the connection that is open says nothing, one that is
 * closed says that the peer does not own, once all that it wrote was read. */
#define clientGone (!clientEnd[l] && len(toServer[l]) == 0)
#define serverGone (!serverEnd[l] && (len(toClient[l]) == 0 || mutant(END_BEFORE_QUEUE)))

/* Nothing has arrived that would come before a deadline or a command. */
#define serverIdle (clientEnd[l] && len(toServer[l]) == 0)
#define clientIdle (serverEnd[l] && len(toClient[l]) == 0)

/* Whether the last write went well. Only read in the step of that write. */
hidden byte ok;

/* A message into a connection whose other end is closed is an error for the
 * sender; otherwise it is in the queue, and that is all that is known of it. */
inline serverSays(message) {
	if
	:: !clientEnd[l] || jammed[l] -> ok = false
	:: else ->
		if
		:: toClient[l]!message; ok = true
		:: FAULT_GARBAGE && !garbledToClient -> garbledToClient = true; toClient[l]!garbage; ok = true
		:: FAULT_JAM -> jammed[l] = true; brokeOff = true; ok = false
		fi
	fi
}

/* A client's messages are small and its server reads at all times. */
inline clientSays(message) {
	if
	:: !serverEnd[l]
	:: else ->
		if
		:: toServer[l]!message
		:: FAULT_GARBAGE && !garbledToServer -> garbledToServer = true; toServer[l]!garbage
		fi
	fi
}

/* Whoever closes an end will read nothing more. */
inline discard(queue) { do :: queue?_ :: empty(queue) -> break od }
inline serverCloses(link) { serverEnd[link] = false; jammed[link] = false; discard(toServer[link]) }
inline clientCloses(link) { clientEnd[link] = false; discard(toClient[link]) }

inline closeEnds(x) {
	if :: server[0] == x -> serverCloses(0) :: client[0] == x -> clientCloses(0) :: else fi;
#if LINKS > 1
	if :: server[1] == x -> serverCloses(1) :: client[1] == x -> clientCloses(1) :: else fi
#endif
}

/* Whoever is out holds nothing. */
inline isOut(x) { state[x] = out; settled[x] = false; copies[x] = false; uses[x] = false; reads[x] = false }

inline isOwner(x) { state[x] = owner; copies[x] = true; uses[x] = true; reads[x] = true }

/* The owner that stops for good: nobody can come back, nobody is to come. */
inline stopsForGood(x) { stopped[x] = true; isOut(x); note(unlinked); closeEnds(x) }

inline begins(x) { if :: STOPS -> toStop[x] = true :: skip fi; run Fate(x) }

/* What befalls one process: nothing, or it is killed, or stops for good, at any
 * moment. One that freezes and is killed later, or goes on, is to the others no
 * different from one that is slow, and each may be that already. */
proctype Fate(byte x) {
	if
	:: atomic { FAULT_KILL && life[x] == running -> life[x] = killed; isOut(x); closeEnds(x) }
	:: atomic { FAULT_FREEZE && life[x] == running -> life[x] = frozen }
	:: skip
	fi
}

/* What may end an attempt before Commit: the candidate says that it gives up,
 * or is gone; it breaks the protocol; a deadline passes, a hook fails, or
 * somebody cancels; this process is told to stop. */
#define BEFORE_COMMIT \
	:: atomic { toServer[l]?Abort -> goto committing_undone } \
	:: atomic { clientGone -> goto committing_undone } \
	:: atomic { toServer[l]?garbage -> goto committing_gives_up } \
	:: atomic { serverIdle && !mutant(NO_DEADLINE) -> goto committing_gives_up } \
	:: atomic { serverIdle && mayStop(me) -> stopped[me] = true; note(stoppedEarly); goto committing_gives_up }

proctype Predecessor(byte me; byte l) provided (life[me] == running) {
	bool offered; /* a page was written, or begun: the candidate may come to own */
	bool asked;   /* ProbationOver was written */

owner_at_rest:
	/* One attempt at a time. An owner that is not settled offers nothing: its
	 * own predecessor would resume beside the successor's successor. */
	if
	:: atomic { toServer[l]?Hello ->
		if
		:: state[me] == owner && !stopped[me] &&
		   (settled[me] || mutant(OFFER_IN_PROBATION)) &&
		   (!busy[me] || mutant(OFFER_TO_A_SECOND)) ->
			busy[me] = true; state[me] = offering; serverSays(Welcome)
		:: state[me] == standby && mutant(OFFER_IN_STANDBY) ->
			state[me] = offering; serverSays(Welcome)
		:: else ->
			serverSays(Refuse); serverCloses(l); goto at_end
		fi }
	:: atomic { clientGone -> serverCloses(l); goto at_end }
	:: atomic { toServer[l]?garbage -> serverCloses(l); goto at_end }
	:: atomic { mayStop(me) && state[me] == owner && settled[me] && !busy[me] -> stopsForGood(me); goto at_end }
	fi;

	atomic { serverSays(ManifestPage); offered = true;
		if :: ok :: else -> goto committing_gives_up fi };

offering_received:
	if
	:: toServer[l]?Received
	BEFORE_COMMIT
	fi;

offering_ready:
	/* Packets must not be read by two: this process stops before Commit, the
	 * successor begins after it. */
	if
	:: atomic { toServer[l]?Ready -> state[me] = committing;
		if :: mutant(PAUSE_AT_COMMIT_ACK) :: else -> reads[me] = false fi }
	BEFORE_COMMIT
	fi;

	/* Suspend, for the same reason. One that fails has undone itself. */
	if
	:: atomic { if :: mutant(SUSPEND_AT_COMMIT_ACK) :: else -> uses[me] = false fi }
	:: goto committing_gives_up
	fi;

	/* The last page: what has changed since the offer. */
	atomic { serverSays(ManifestPage);
		if :: ok :: else -> goto committing_gives_up fi };

committing_final:
	if
	:: atomic { toServer[l]?FinalReceived -> note(committed);
		if
		:: mutant(COMMIT_BEFORE_CEASING) -> serverSays(Commit)
		:: else -> state[me] = standby /* from before the write: a failed one may have arrived */
		fi;
		if :: mutant(CLOSE_AT_COMMIT) -> copies[me] = false :: else fi }
	BEFORE_COMMIT
	fi;
	atomic {
		if
		:: mutant(COMMIT_BEFORE_CEASING) -> state[me] = standby
		:: else -> serverSays(Commit)
		fi };

standby_ack:
	/* It does not know whether Commit was read, and has no deadline: only the
	 * successor, or its end, can say. */
	if
	:: atomic { toServer[l]?CommitAck -> state[me] = probation; reads[me] = false; uses[me] = false; goto probation_answer }
	:: atomic { toServer[l]?Abort -> goto standby_resumes }
	:: atomic { clientGone -> goto standby_resumes }
	:: atomic { toServer[l]?garbage ->
		if :: mutant(RESUME_ON_GARBAGE) -> goto standby_resumes :: else -> goto standby_deaf fi }
	:: atomic { serverIdle && mutant(RESUME_ON_TIMER) -> goto standby_resumes }
	:: atomic { serverIdle && mayStop(me) -> stopped[me] = true; goto standby_leaves }
	fi;

probation_answer:
	/* The time is up at some moment. It asks, and goes on waiting: the answer
	 * is the owner's alone, and a frozen one gives none. */
	if
	:: atomic { toServer[l]?Settle -> goto probation_retires }
	:: atomic { toServer[l]?Rollback -> goto probation_rolled_back }
	:: atomic { clientGone -> goto standby_resumes }
	:: atomic { toServer[l]?garbage ->
		if :: mutant(RESUME_ON_GARBAGE) -> goto standby_resumes :: else -> goto standby_deaf fi }
	:: atomic { serverIdle && !asked && !mutant(NEVER_ASKS) -> asked = true; serverSays(ProbationOver);
		if :: mutant(RETIRE_ON_TIMER) -> goto probation_retires :: else -> goto probation_answer fi }
	:: atomic { serverIdle && mayStop(me) -> stopped[me] = true; goto standby_leaves }
	fi;

probation_rolled_back:
	/* Resumed is in the queue before this process owns, and so before its end
	 * can be closed. If it cannot be written the end stays open: a successor
	 * that sees it closed, and no Resumed, owns again. (Once it is written the
	 * code keeps the end open too, as long as the successor does its own; that it
	 * may be closed at once is the harder case, and safe.) */
	atomic {
		if :: mutant(RESUME_WITHOUT_A_WORD) -> ok = true :: else -> serverSays(Resumed) fi;
		if :: ok -> note(resumed); goto standby_resumes :: else -> goto standby_deaf fi };

probation_retires:
	/* Writing Retired is the decision. Sending is not delivering: if the
	 * successor dies with it unread, it dies as the sole owner. */
	atomic { serverSays(Retired);
		if
		:: ok -> note(retired)
		:: !ok && mutant(RETIRED_UNCHECKED)
		:: else -> goto standby_deaf
		fi };
	atomic { state[me] = draining; copies[me] = false; uses[me] = false; reads[me] = false; busy[me] = false };

draining_exits:
	/* Its end stays open until it exits: that is how the successor knows. */
	do
	:: atomic { toServer[l]?Rollback -> note(crossed) }
	:: toServer[l]?garbage
	:: atomic { isOut(me); closeEnds(me); life[me] = exited; break }
	od;
	goto at_end;

standby_deaf:
	/* After garbage nothing that comes can be trusted, and closing would say
	 * something untrue. What is left is the end of the peer, or to leave. */
	do
	:: toServer[l]?_
	:: atomic { clientGone -> goto standby_resumes }
	:: atomic { clientEnd[l] && (stopped[me] || mayStop(me)) -> stopped[me] = true; goto standby_is_out }
	od;

standby_leaves:
	/* Told to stop: it asks once more and waits a bounded time. */
	atomic { serverSays(ProbationOver) };
standby_last_wait:
	do
	:: atomic { toServer[l]?CommitAck -> state[me] = probation }
	:: atomic { toServer[l]?Settle -> goto probation_retires }
	:: atomic { toServer[l]?Abort -> goto standby_resumes }
	:: atomic { clientGone -> goto standby_resumes }
	:: atomic { toServer[l]?Rollback -> goto standby_is_out } /* the end without Resumed makes the successor own again */
	:: atomic { toServer[l]?garbage -> goto standby_is_out }
	:: atomic { serverIdle -> goto standby_is_out }
	od;

standby_is_out:
	atomic {
		note(stoppedLate);
		if :: mutant(STOP_AS_IF_OWNER) -> note(unlinked) :: else fi;
		isOut(me); serverCloses(l); goto at_end };

standby_resumes:
	/* The successor does not own, has said so or is gone. Told to stop, this
	 * process is the owner that stops. */
	atomic {
		if
		:: stopped[me] -> stopsForGood(me)
		:: else -> isOwner(me)
		fi };
	atomic { serverCloses(l); busy[me] = false; goto at_end };

committing_gives_up:
	/* Abort before it closes: the end of a connection without Abort makes the
	 * candidate own. */
	atomic {
		if
		:: mutant(CLOSE_WITHOUT_ABORT) || (stopped[me] && mutant(STOP_WITHOUT_ABORT)) -> ok = true
		:: else -> serverSays(Abort); if :: ok -> note(aborted) :: else fi
		fi;
		if
		:: ok || !offered || mutant(CLOSE_THOUGH_UNWRITTEN) -> skip
		:: else -> goto owner_deaf
		fi };

committing_undone:
	/* Nothing has happened. Resume is called, the packet sockets are read. */
	atomic {
		if
		:: stopped[me] -> stopsForGood(me)
		:: else -> state[me] = owner;
			if :: mutant(RESUME_NOT_CALLED) :: else -> uses[me] = true fi;
			if :: mutant(UNPAUSE_NOT_CALLED) :: else -> reads[me] = true fi
		fi };
	atomic { serverCloses(l); busy[me] = false; goto at_end };

owner_deaf:
	/* It serves, and commits to nobody else while the candidate may still come
	 * to own. Told to stop it lets go first and closes then: the candidate may
	 * well own, so the path is not its to unlink. */
	if
	:: stopped[me]
	:: else -> atomic { isOwner(me) };
		do
		:: toServer[l]?_
		:: atomic { clientGone -> serverCloses(l); busy[me] = false; goto at_end }
		:: atomic { clientEnd[l] && mayStop(me) -> stopped[me] = true; break }
		od
	fi;
	atomic {
		if :: mutant(STOP_AND_FORGET) -> note(unlinked) :: else fi;
		isOut(me); serverCloses(l) };

at_end:
	atomic { offered = false; asked = false }
}

/* What may end a candidate: the predecessor says so; it breaks the protocol;
 * its program fails, a deadline passes or it is told to stop, and it says so or
 * goes without a word. */
#define WHILE_CANDIDATE \
	:: atomic { toClient[l]?Abort -> goto candidate_aborted } \
	:: atomic { toClient[l]?garbage -> goto candidate_gives_up } \
	:: atomic { clientIdle && !mutant(PATIENT_FOR_EVER) -> goto candidate_gives_up } \
	:: atomic { clientIdle && !mutant(PATIENT_FOR_EVER) -> goto candidate_fails }

proctype Successor(byte me; byte l) provided (life[me] == running) {
	bool answered; /* it has decided between Settle and Rollback */
	bool unasked;  /* its program decides before it is asked */

	atomic { clientSays(Hello) };

candidate_hello:
	if
	:: toClient[l]?Welcome
	:: atomic { toClient[l]?Refuse -> goto candidate_fails }
	:: atomic { serverGone -> goto candidate_fails }
	WHILE_CANDIDATE
	fi;

candidate_offer:
	if
	:: atomic { toClient[l]?ManifestPage -> copies[me] = true }
	:: atomic { serverGone -> goto candidate_fails } /* it looks again who owns: a fresh start */
	WHILE_CANDIDATE
	fi;
	atomic { clientSays(Received); note(received) };

candidate_received:
	/* Its program initialises. */
	if
	:: atomic { clientIdle -> goto candidate_is_ready }
	:: atomic { serverGone ->
		if :: mutant(NO_HEIR) -> isOut(me); clientCloses(l); goto at_end :: else -> state[me] = heir; goto heir_is_ready fi }
	WHILE_CANDIDATE
	fi;

heir_is_ready:
	/* There is nobody left to talk to. */
	if
	:: goto owner_adopts
	:: atomic { mayStop(me) -> stopsForGood(me); note(declined); goto at_end }
	:: goto candidate_fails
	fi;

candidate_is_ready:
	atomic { clientSays(Ready); note(readySaid) };

candidate_final:
	if
	:: toClient[l]?ManifestPage
	:: atomic { serverGone -> goto owner_adopts }
	WHILE_CANDIDATE
	fi;
	atomic { clientSays(FinalReceived) };

candidate_commit:
	if
	:: atomic { toClient[l]?Commit -> goto owner_commits }
	:: atomic { serverGone -> goto owner_adopts }
	WHILE_CANDIDATE
	fi;

owner_commits:
	/* It owns first and acknowledges then. Without a probation CommitAck
	 * settles, which is the same as a Settle right behind it. */
	atomic { isOwner(me) };
	atomic { clientSays(CommitAck);
		if
		:: answered = true; clientSays(Settle); note(settleSaid)
		:: unasked = true
		:: skip
		fi };

owner_unsettled:
	if
	:: atomic { toClient[l]?Retired -> goto owner_settled }
	:: atomic { serverGone -> goto owner_settled }
	:: atomic { toClient[l]?ProbationOver -> goto owner_asked }
	:: atomic { unasked && !answered -> goto owner_settles }
	:: atomic { unasked && !answered -> goto yielding_begins }
	:: atomic { answered && mutant(ANSWER_TWICE) -> goto yielding_begins }
	:: atomic { toClient[l]?garbage ->
		if :: mutant(CLOSE_ON_GARBAGE) -> clientCloses(l); goto at_end :: else -> goto owner_goes_deaf fi }
	:: atomic { clientIdle && mayStop(me) ->
		if
		:: mutant(STOP_AS_IF_SETTLED) -> stopsForGood(me); goto at_end
		:: else -> stopped[me] = true;
			if :: answered :: else -> goto yielding_begins fi
		fi }
	/* Told to stop while it waits for Retired: not for ever. Its end, closed,
	 * gives the service back. */
	:: atomic { clientIdle && stopped[me] -> isOut(me); clientCloses(l); goto at_end }
	fi;

owner_asked:
	if
	:: answered -> goto owner_unsettled
	:: else -> if :: goto owner_settles :: goto yielding_begins fi
	fi;

owner_settles:
	atomic { answered = true; clientSays(Settle); note(settleSaid); goto owner_unsettled };

owner_goes_deaf:
	/* It serves on. It would not hear Resumed, so it does not write Rollback:
	 * its end, closed, gives the service back. */
	do
	:: toClient[l]?_
	:: atomic { serverGone -> goto owner_settled }
	:: atomic { serverEnd[l] && mayStop(me) -> stopped[me] = true; isOut(me); clientCloses(l); goto at_end }
	:: atomic { serverEnd[l] && unasked && !answered -> isOut(me); clientCloses(l); goto at_end }
	od;

yielding_begins:
	/* Exactly one answer. It lets go of everything before it says so. */
	atomic {
		answered = true; note(rolledBack);
		if :: mutant(ROLLBACK_BEFORE_CEASING) -> clientSays(Rollback) :: else -> state[me] = yielding fi;
		if :: mutant(YIELD_UNSUSPENDED) :: else -> uses[me] = false fi;
		if :: mutant(YIELD_UNPAUSED) :: else -> reads[me] = false fi;
		if :: mutant(CLOSE_AT_ROLLBACK) -> copies[me] = false :: else fi };
	atomic {
		if :: mutant(ROLLBACK_BEFORE_CEASING) -> state[me] = yielding :: else -> clientSays(Rollback) fi };

yielding_answer:
	do
	:: atomic { toClient[l]?Resumed -> isOut(me); clientCloses(l); goto at_end }
	:: toClient[l]?ProbationOver
	:: atomic { toClient[l]?Retired -> note(crossed) }
	:: atomic { serverGone -> goto yielding_ends } /* nobody has resumed */
	/* Resumed may be among what it cannot understand, so the end of the
	 * connection would say nothing any more: it is out, and its own end, closed,
	 * says so. */
	:: atomic { toClient[l]?garbage ->
		if :: mutant(OWN_AGAIN_THOUGH_DEAF) -> goto yielding_deaf :: else -> isOut(me); clientCloses(l); goto at_end fi }
	:: atomic { clientIdle && mayStop(me) -> stopped[me] = true }
	:: atomic { clientIdle && stopped[me] -> isOut(me); clientCloses(l); goto at_end } /* it has waited */
	od;

yielding_deaf:
	/* Reached by the mutation alone. */
	do
	:: toClient[l]?_
	:: atomic { serverGone -> goto yielding_ends }
	od;

yielding_ends:
	if
	:: mutant(YIELD_FOR_GOOD) -> atomic { isOut(me); clientCloses(l); goto at_end }
	:: else
	fi;

owner_adopts:
	/* Nobody else can own. */
	atomic {
		if
		:: stopped[me] -> stopsForGood(me); goto at_end
		:: else -> isOwner(me)
		fi };

owner_settled:
	/* From here on it may hand over itself. Its end stays open until the
	 * predecessor has gone. */
	atomic {
		if
		:: stopped[me] -> stopsForGood(me); goto at_end
		:: else -> settled[me] = true
		fi };
	do
	:: atomic { serverGone -> clientCloses(l); break }
	:: toClient[l]?_
	od;
	goto at_end;

candidate_aborted:
	/* This process does not own, and never starts afresh because of it. */
	if
	:: mutant(ADOPT_IN_EACH_CASE) -> goto owner_adopts
	:: mutant(WAIT_AFTER_ABORT) -> false
	:: else -> goto candidate_fails
	fi;

candidate_gives_up:
	atomic { clientSays(Abort) };
	/* Once it has begun to write Abort it ignores a Commit. */
	if
	:: atomic { mutant(COMMIT_AFTER_ABORT) && toClient[l]?[Commit] -> toClient[l]?Commit; goto owner_commits }
	:: skip
	fi;

candidate_fails:
	atomic { note(declined); isOut(me); clientCloses(l) };

at_end:
	atomic { answered = false; unasked = false }
}

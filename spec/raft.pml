/*
 * Election, replication, commitment and membership change as graft does them. README.md says what
 * is modelled and what is not; check.sh has spin check it.
 *
 * The servers share this memory, and each step is one atomic deed: to win an election, to copy an entry
 * to somebody, to append one of one's own. There are no messages: one that is lost is a step not taken,
 * one that is late a step taken later. A crash is a server that does nothing for a while, for it forgets
 * nothing but that it led. Who has stored an entry is counted at once: a leader that learns of it later
 * can only do less.
 */

/* Bounds. */
#ifndef T
#define T 3		/* the last term that somebody is elected in; the first is 1 */
#endif
#ifndef L
#define L 4		/* entries in a log */
#endif
#ifndef D
#define D 1		/* entries of data in a run; all others are configurations */
#endif
#ifndef BASE
#define BASE 7		/* the voters to begin with */
#endif
#ifdef SINGLE		/* changes of one voter only */
#define TARGET(d)	(ones[(d)] == 1)
#else
#define TARGET(d)	((d) != 0)
#endif
#if T > 4
#error campaign() knows of four terms
#endif

#define N 4		/* servers */
#define ALL 15		/* of them */

/* A set of servers is a mask of bits; a configuration is two, C<old> (empty unless it is joint) and C<new>. */
#define BIT(x)		(1 << (x))
#define JOINED(o, n)	((o) << 4 | (n))
#define OLD(c)		((c) >> 4)
#define NEW(c)		((c) & ALL)

/* An entry is a term and a configuration; data has none. An index and a term name one entry, for there is one
 * leader in a term, and it never replaces what it has appended. */
#define ENTRY(t, c)	((t) << 8 | (c))
#define TERM(e)		((e) >> 8)
#define CONF(e)		((e) & 255)

#define LOG(x, k)	log[(x) * L + (k) - 1]
#define MATCH(x, y)	match[(x) * N + (y)]
#define LASTTERM(x)	TERM(LOG(x, last[x]))

/* What a server has stored. */
byte term[N];		/* the latest that it knows */
bool voted[N];		/* in that term */
byte last[N];		/* index of its last entry, 0 if it has none */
short log[N * L];

/* What follows from that. */
byte conf[N];		/* the configuration in force */
byte known[N];		/* everybody who is a voter of any configuration that it has */
byte confAt[N];		/* index of the last entry with a configuration, 0 if there is none */

/* What it knows as leader of its term, or else 0. */
bool lead[N];
byte committed[N];	/* the commit index, by its own count */
byte match[N * N];	/* how far each log is known to be like its own */

/* What nobody knows: for the invariants and the bounds. */
short truth[L];		/* the entries that anybody ever committed */
byte truthLen;
byte led;		/* the terms that had a leader, a bit each */
byte data;		/* entries so far */

/* For the course of a step. A search in breadth takes this for a part of the state too, so that no step leaves
 * anything behind. */
#ifdef BREADTH
#define hidden
#endif
hidden byte ones[ALL + 1];	/* members of a set */
hidden byte i, j, k, p, set, by;

inline forget() {
	i = 0; j = 0; k = 0; p = 0; set = 0; by = 0
}

/*
 * The rules. Each mutant breaks one.
 */

/* A majority decides, of both halves if the configuration is joint, and x itself counts where it is a voter only. */
#ifdef MUTANT_SELF
#define MAJORITY(s, c, x) (2 * (ones[(s) & (c)] + 1 - ((c) >> (x) & 1)) > ones[c])
#else
#define MAJORITY(s, c, x) (2 * ones[(s) & (c)] > ones[c])
#endif
#define BOTH(s, c, x)	(MAJORITY(s, NEW(c), x) && (OLD(c) == 0 || MAJORITY(s, OLD(c), x)))

#ifdef MUTANT_NEW_HALF
#define COMMITS(s, c, x) MAJORITY(s, NEW(c), x)
#else
#define COMMITS(s, c, x) BOTH(s, c, x)
#endif

#if defined(MUTANT_NEW_HALF)
#define ELECTS(s, c, x)	MAJORITY(s, NEW(c), x)
#elif defined(MUTANT_UNION)
#define ELECTS(s, c, x)	MAJORITY(s, NEW(c) | OLD(c), x)
#else
#define ELECTS(s, c, x)	BOTH(s, c, x)
#endif

/* A server has one vote in a term. */
#ifdef MUTANT_SECOND_VOTE
#define FREE(y, t)	(term[y] <= (t))
#else
#define FREE(y, t)	(term[y] < (t) || term[y] == (t) && !voted[y])
#endif

/* It goes to somebody whose log is at least as up to date. */
#ifdef MUTANT_SHORT_LOG
#define COVERS(x, y)	true
#else
#define COVERS(x, y)	(last[y] == 0 || last[x] > 0 && (LASTTERM(x) > LASTTERM(y) || \
			 LASTTERM(x) == LASTTERM(y) && last[x] >= last[y]))
#endif

/* A leader counts only who has entries of its own term. */
#ifdef MUTANT_OLD_TERM
#define COUNTED(x, k)	true
#else
#define COUNTED(x, k)	(TERM(LOG(x, k)) == term[x])
#endif

/* A change begins when an entry of the leader's term is committed, and the latest configuration is. */
#define SETTLED(x)	(committed[x] > 0 && COUNTED(x, committed[x]))
#define FIRST(x)	(TERM(LOG(x, confAt[x])) == term[x] && (confAt[x] == 1 || TERM(LOG(x, confAt[x] - 1)) < term[x]))
#if defined(MUTANT_NO_OWN_ENTRY)
#define MAYCHANGE(x)	(confAt[x] <= committed[x] || FIRST(x))
#elif defined(MUTANT_TWO_CHANGES)
#define MAYCHANGE(x)	SETTLED(x)
#else
#define MAYCHANGE(x)	(SETTLED(x) && confAt[x] <= committed[x])
#endif

/* C<new> is appended when C<old,new> is committed, in the term of its leader. */
#ifdef MUTANT_EARLY_NEW
#define MAYLEAVE(x)	true
#else
#define MAYLEAVE(x)	(SETTLED(x) && confAt[x] <= committed[x])
#endif

/* What is appended when the voters are to become g: C<new> at once if they differ by one server. */
#ifdef MUTANT_SKIP_JOINT
#define TOWARDS(c, g)	(g)
#elif defined(ALWAYS_JOINT)
#define TOWARDS(c, g)	JOINED(NEW(c), g)
#else
#define TOWARDS(c, g)	(ones[NEW(c) ^ (g)] == 1 -> (g) : JOINED(NEW(c), g))
#endif

/* The first entry of a term restates the configuration in force, joint if it is. */
#ifdef MUTANT_LEAD_NEW
#define RESTATED(x)	NEW(conf[x])
#elif defined(MUTANT_ON_COMMIT)
#define RESTATED(x)	(confAt[x] == 0 -> BASE : CONF(LOG(x, confAt[x])))
#else
#define RESTATED(x)	conf[x]
#endif

/* A configuration is in force as long as it is the latest in the log, committed or not. */
inline inForce(x) {
	j = last[x];
	findConf(x);
	confAt[x] = j;
#ifdef MUTANT_ON_COMMIT
	j = committed[x];
	findConf(x);
#endif
	conf[x] = (j == 0 -> BASE : CONF(LOG(x, j)));
	j = confAt[x];
	known[x] = BASE;
	do
	:: j > 0 -> known[x] = known[x] | NEW(CONF(LOG(x, j))) | OLD(CONF(LOG(x, j))); j--
	:: else -> break
	od
}

/* findConf moves j back to the last entry, from there, that has a configuration; or to 0. */
inline findConf(x) {
	do
	:: j > 0 && CONF(LOG(x, j)) == 0 -> j--
	:: else -> break
	od
}

/*
 * The invariants.
 */

mtype = { one_leader_per_term, leader_has_what_is_committed, one_log,
	  change_after_an_own_entry, change_after_the_last_one, one_change_at_a_time, quorums_meet };

inline always(condition, name) {
	if
	:: condition
	:: else -> printf("violated %e\n", name); assert(false)
	fi
}

/* Who leads has all that was ever committed. */
inline complete(x) {
	p = 1;
	do
	:: p <= truthLen -> always(last[x] >= p && LOG(x, p) == truth[p - 1], leader_has_what_is_committed); p++
	:: else -> break
	od
}

#ifdef MUTANT /* Mutants are to fail by what happens, not by the letter of the rule that they break. */
#define settled(x) skip
#define neighbours(x) skip
#else

/* What x is about to build on is committed: an entry of its term, or of a later one, and the configuration. */
inline settled(x) {
	always(truthLen > 0 && TERM(truth[truthLen - 1]) >= term[x], change_after_an_own_entry);
	always(confAt[x] > 0 && confAt[x] <= truthLen && truth[confAt[x] - 1] == LOG(x, confAt[x]),
	       change_after_the_last_one)
}

/* Who decides by one of two configurations has somebody among them without whom nobody decides by the other. */
inline meet(a, b) {
	set = 0;
	do
	:: set <= ALL -> always(!BOTH(set, a, N) || !BOTH(ALL & ~set, b, N), quorums_meet); set++
	:: else -> break
	od
}

/* From the configuration that is committed to the one that the latest leader appends it is one step at most. */
#define STEP(a, b)	((a) == (b) || OLD(a) == 0 && OLD(b) == 0 && ones[(a) ^ (b)] == 1 || \
			 OLD(a) == 0 && OLD(b) == (a) || OLD(a) != 0 && (b) == NEW(a))
inline neighbours(x) {
	if
	:: led >> (term[x] + 1) == 0 ->
		j = truthLen;
		do
		:: j > 0 && CONF(truth[j - 1]) == 0 -> j--
		:: else -> break
		od;
		by = (j == 0 -> BASE : CONF(truth[j - 1]));
		always(STEP(by, conf[x]), one_change_at_a_time);
		meet(by, conf[x])
	:: else
	fi
}
#endif

/*
 * What has to happen, so that the invariants mean something: a search for these must find them.
 */

#if defined(REACH_HANDOVER)	/* a joint change that 0 begins, and another leader ends */
#define REACHED(x)	(x != 0 && k == 4 && OLD(CONF(LOG(x, 2))) != 0 && CONF(LOG(x, 2)) == CONF(LOG(x, 3)) && \
			 CONF(LOG(x, 4)) == NEW(CONF(LOG(x, 3))))
#elif defined(REACH_TWO)	/* a change by each of two leaders */
#define STABLE(e)	(OLD(CONF(e)) == 0 && NEW(CONF(e)) != 0)
#define REACHED(x)	(x != 0 && k == 4 && STABLE(LOG(x, 2)) && CONF(LOG(x, 1)) != CONF(LOG(x, 2)) && \
			 STABLE(LOG(x, 4)) && CONF(LOG(x, 3)) != CONF(LOG(x, 4)))
#elif defined(REACH_DISJOINT)	/* a change to other voters altogether */
#define REACHED(x)	(CONF(LOG(x, k)) != 0 && ((OLD(CONF(LOG(x, k))) | NEW(CONF(LOG(x, k)))) & BASE) == 0)
#elif defined(REACH_OUTSIDE)	/* a leader commits what it has no vote on itself */
#define REACHED(x)	(((NEW(by) | OLD(by)) >> x & 1) == 0)
#else
#define REACHED(x)	false
#endif
#ifdef REACH_UNDONE		/* a joint configuration is cut off */
#define CUT(x, at)	(last[x] > at && OLD(CONF(LOG(x, last[x]))) != 0)
#else
#define CUT(x, at)	false
#endif
inline reached(condition) {
	if
	:: condition -> printf("reached\n"); assert(false)
	:: else
	fi
}

/*
 * What servers do.
 */

inline stored(x, e) {
	last[x]++;
	LOG(x, last[x]) = e;
#ifdef MUTANT_STALE_CONF
	if
	:: CONF(e) != 0 && last[x] >= confAt[x] -> conf[x] = CONF(e); confAt[x] = last[x]
	:: else
	fi;
	known[x] = ALL
#else
	inForce(x)
#endif
}

inline truncate(x, at) {
	do
	:: last[x] > at -> LOG(x, last[x]) = 0; last[x]--
	:: else -> break
	od;
#ifndef MUTANT_STALE_CONF
	inForce(x)
#endif
}

/* hear has x adopt a term; a leader of an earlier one leads no more. */
inline hear(x, t) {
	if
	:: term[x] < t ->
		term[x] = t;
		voted[x] = false;
		lead[x] = false;
		committed[x] = 0;
		j = 0;
		do
		:: j < N -> MATCH(x, j) = 0; j++
		:: else -> break
		od
#ifdef MUTANT_ON_COMMIT
		;
		inForce(x) /* who starts anew does not know what is committed */
#endif
	:: else
	fi
}

/* propose appends an entry to the log of a leader. */
inline propose(x, c) {
	stored(x, ENTRY(term[x], c));
	printf("entry %d index %d term %d conf %d old %d\n", x, last[x], term[x], NEW(c), OLD(c));
	neighbours(x);
	count(x)
}

/* count commits what enough have stored. An entry is judged by the configuration that is in force where it
 * stands, and takes along all that precede it. */
inline count(x) {
	k = last[x];
	do
	:: k > committed[x] && COUNTED(x, k) ->
		set = BIT(x);
		j = 0;
		do
		:: j < N ->
			if
			:: MATCH(x, j) >= k -> set = set | BIT(j)
			:: else
			fi;
			j++
		:: else -> break
		od;
#ifdef MUTANT_ON_COMMIT
		by = conf[x];
#else
		j = k;
		findConf(x);
		by = (j == 0 -> BASE : CONF(LOG(x, j)));
#endif
		if
		:: COMMITS(set, by, x) -> commit(x); break
		:: else -> k--
		fi
	:: else -> break
	od;
	forget()
}

inline commit(x) {
	printf("commit %d index %d\n", x, k);
	committed[x] = k;
	j = 1;
	do
	:: j <= k && j <= truthLen -> always(truth[j - 1] == LOG(x, j), one_log); j++
	:: j <= k && j > truthLen -> truth[j - 1] = LOG(x, j); truthLen = j; j++
	:: else -> break
	od;
	j = 0;
	do
	:: j < N ->
		if
		:: lead[j] && term[j] > term[x] -> complete(j)
		:: else
		fi;
		j++
	:: else -> break
	od;
	reached(REACHED(x))
#ifdef MUTANT_ON_COMMIT
	;
	inForce(x)
#endif
}

/* copy has another server store the first entry that its log and that of me, a leader, do not share; or tells me that
 * there is none. Whether it is a member does not matter: new peers catch up, removed ones linger. */
#define HEARS(y)	:: lead[me] && y != me && term[y] <= term[me] && MATCH(me, y) < last[me] -> to = y
inline copy() {
	atomic {
		if
		HEARS(0) HEARS(1) HEARS(2) HEARS(3)
		fi;
		d_step {
			p = MATCH(me, to);
			do
			:: p < last[me] && p < last[to] && LOG(me, p + 1) == LOG(to, p + 1) -> p++
			:: else -> break
			od;
			hear(to, term[me]);
			if
			:: p < last[me] ->
				votes = CUT(to, p); /* to be seen below */
				truncate(to, p);
				p++;
				stored(to, LOG(me, p))
			:: else
			fi;
			MATCH(me, to) = p;
			printf("append %d to %d index %d\n", me, to, p);
			count(me);
			reached(votes);
			votes = 0;
			to = 0
		}
	}
}

/* The others that would vote for me in term t. */
#define WILL(y, t)	(y != me && FREE(y, t) && COVERS(me, y) -> BIT(y) : 0)
#define WILLING(t)	(WILL(0, t) | WILL(1, t) | WILL(2, t) | WILL(3, t))

/* A voter of a configuration in the log, or of the first, may campaign: it may be in force again. What
 * is known to be committed rules some out, which keeps them quiet and nothing more: with ANYBODY
 * everybody may. */
#ifdef ANYBODY
#define MAYCAMPAIGN(x)	true
#else
#define MAYCAMPAIGN(x)	((known[x] >> x & 1) == 1)
#endif

/* A set of others who elect me by their votes and mine, and each of whom is needed: another vote would
 * only bind who gives it. */
#define WITH(s)		((s) | BIT(me))
#define NEEDED(s, x)	(((s) & BIT(x)) == 0 || !ELECTS(WITH(s) & ~BIT(x), conf[me], me))
#define VOTERS(s)	(((s) & ~votes) == 0 && ELECTS(WITH(s), conf[me], me) && \
			 NEEDED(s, 0) && NEEDED(s, 1) && NEEDED(s, 2) && NEEDED(s, 3))

#define WINS(t)		(term[me] < t && t <= T && MAYCAMPAIGN(me) && ELECTS(WITH(WILLING(t)), conf[me], me))

/* campaign has me win an election, in any term that it has not been in. Elections that nobody wins
 * would only raise terms. */
#define IN(t)		:: WINS(t) -> to = t
#define BY(s)		:: VOTERS(s) -> votes = WITH(s)
inline campaign() {
	atomic {
		if
		IN(2) IN(3) IN(4)
		fi;
		votes = WILLING(to);
		if
		BY(0) BY(1) BY(2) BY(3) BY(4) BY(5) BY(6) BY(7) BY(8) BY(9) BY(10) BY(11) BY(12) BY(13) BY(14)
		fi;
		d_step {
			win(to);
			votes = 0;
			to = 0
		}
	}
}

/* win makes me leader. Without room for its first entry, which nothing may come before, it only shows that
 * it could have been. */
inline win(t) {
	printf("elect %d term %d votes %d\n", me, t, votes);
	always((led & BIT(t)) == 0, one_leader_per_term);
	complete(me);
	if
	:: last[me] < L ->
		do
		:: i < N ->
			if
			:: votes & BIT(i) -> hear(i, t); voted[i] = true
			:: else
			fi;
			i++
		:: else -> break
		od;
		led = led | BIT(t);
		lead[me] = true;
		to = RESTATED(me);
		propose(me, to)
	:: else
	fi;
	forget()
}

/* write appends data. */
inline write() {
	d_step {
		lead[me] && last[me] < L && data < D ->
		data++;
		propose(me, 0)
	}
}

/* change begins a change of the voters, to any others. */
#define TO(g)		:: TARGET(NEW(conf[me]) ^ g) -> to = g
inline change() {
	atomic {
		lead[me] && last[me] < L && OLD(conf[me]) == 0 && MAYCHANGE(me) ->
		if
		TO(1) TO(2) TO(3) TO(4) TO(5) TO(6) TO(7) TO(8) TO(9) TO(10) TO(11) TO(12) TO(13) TO(14) TO(15)
		fi;
		d_step {
			printf("change %d to %d\n", me, to);
			settled(me);
			to = TOWARDS(conf[me], to);
			propose(me, to);
			to = 0
		}
	}
}

/* leave ends a joint change. */
inline leave() {
	d_step {
		lead[me] && last[me] < L && OLD(conf[me]) != 0 && MAYLEAVE(me) ->
		printf("leave %d\n", me);
		settled(me);
		propose(me, NEW(conf[me]))
	}
}

/* begin is right after the first election, of a voter that can as well be called 0: nobody else could win
 * another one in that term. */
inline begin() {
	d_step {
		do
		:: i <= ALL -> ones[i] = (i & 1) + (i >> 1 & 1) + (i >> 2 & 1) + (i >> 3 & 1); i++
		:: else -> break
		od;
		i = 0;
		do
		:: i < N -> term[i] = 1; voted[i] = true; conf[i] = BASE; known[i] = BASE; i++
		:: else -> break
		od;
		lead[0] = true;
		led = BIT(1);
		printf("base %d\n", BASE);
		propose(0, BASE)
	}
}

proctype server(byte me) {
	byte votes, to;
end:	do
	:: copy()
	:: write()
	:: change()
	:: leave()
	:: campaign()
	od
}

init {
	atomic {
		begin();
		run server(0);
		run server(1);
		run server(2);
		run server(3)
	}
}

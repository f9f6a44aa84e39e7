#!/usr/bin/env bash
# Has spin check the model: that nothing is violated within the bounds below, that each mutant of it violates
# something, and that what should happen does. It needs spin and gcc. "check.sh update" writes the runs
# it finds to traces/; otherwise it writes nothing into the tree, and fails if they differ from those there, unless
# another version of spin made them.
set -euo pipefail
export LC_ALL=C # numbers with a point
cd "$(dirname "${BASH_SOURCE[0]}")"
jobs=${JOBS:-2}     # at a time; one takes 0.9 GB at most
rounds=${ROUNDS:-3} # of 3 s, of each search that cannot be complete

# The bounds are T, terms; L, entries in a log; D, those with data; BASE, the first voters as a mask of bits.
# all: visits every state, and nothing is violated. long: likewise, with LONG=1 only. some: as far as it comes,
# each round at random. mutant, reach: finds the shortest run that violates something, or reaches what it should.
searches() {
	cat <<-'END'
	all    three          -DBASE=7 -DT=3 -DL=4 -DD=0
	long   three-data     -DBASE=7 -DT=3 -DL=4 -DD=1
	all    four           -DBASE=15 -DT=3 -DL=4 -DD=0
	all    three-terms    -DBASE=7 -DT=4 -DL=3 -DD=0
	all    four-terms     -DBASE=15 -DT=4 -DL=3 -DD=0
	all    always-joint   -DBASE=7 -DT=3 -DL=4 -DD=0 -DALWAYS_JOINT
	all    anybody        -DBASE=7 -DT=3 -DL=3 -DD=1 -DANYBODY
	some   three-large    -DBASE=7 -DT=4 -DL=5 -DD=1
	some   four-large     -DBASE=15 -DT=4 -DL=5 -DD=1
	mutant NEW_HALF       -DBASE=7 -DT=3 -DL=4 -DD=0
	mutant UNION          -DBASE=7 -DT=3 -DL=4 -DD=0
	mutant NO_OWN_ENTRY   -DBASE=15 -DT=3 -DL=2 -DD=0 -DSINGLE
	mutant EARLY_NEW      -DBASE=7 -DT=3 -DL=4 -DD=0
	mutant LEAD_NEW       -DBASE=7 -DT=3 -DL=4 -DD=0
	mutant SKIP_JOINT     -DBASE=7 -DT=3 -DL=4 -DD=0
	mutant TWO_CHANGES    -DBASE=7 -DT=3 -DL=4 -DD=0 -DSINGLE
	mutant ON_COMMIT      -DBASE=7 -DT=2 -DL=4 -DD=1
	mutant STALE_CONF     -DBASE=15 -DT=3 -DL=3 -DD=1 -DSINGLE
	mutant OLD_TERM       -DBASE=7 -DT=4 -DL=2 -DD=0
	mutant SELF           -DBASE=7 -DT=3 -DL=4 -DD=0
	mutant SECOND_VOTE    -DBASE=7 -DT=3 -DL=3 -DD=0
	mutant SHORT_LOG      -DBASE=7 -DT=3 -DL=3 -DD=0
	reach  HANDOVER       -DBASE=7 -DT=2 -DL=4 -DD=0
	reach  TWO            -DBASE=7 -DT=2 -DL=4 -DD=0 -DSINGLE
	reach  DISJOINT       -DBASE=3 -DT=2 -DL=4 -DD=0
	reach  OUTSIDE        -DBASE=7 -DT=2 -DL=4 -DD=0
	reach  UNDONE         -DBASE=7 -DT=3 -DL=3 -DD=0
	END
}

# search KIND NAME DEFINES... runs one of these in $tmp/NAME, and leaves a line for the table there.
search() {
	local kind=$1 name=$2 begin=$EPOCHREALTIME
	shift 2
	mkdir "$tmp/$name"
	cp raft.pml "$tmp/$name"
	cd "$tmp/$name"
	"$kind" "$name" "$@" >log 2>&1 || { printf '%s %s FAILED:\n' "$kind" "$name"; cat log; return 1; }
	awk -v kind="$kind" -v name="$name" -v bounds="${*//-D/}" -v result="$(cat result)" \
		-v begin="$begin" -v end="$EPOCHREALTIME" '
		/states, stored/ { states += $1 }
		END { printf "%-7s %-13s %9d states %6.1f s  %-45s %s\n", kind, name, states, end - begin, result, bounds }' log >line
}

# build FLAGS -- DEFINES... makes the verifier.
build() {
	local flags=(-w -DSAFETY -DNOREDUCE -DNOFAIR)
	while [ "$1" != -- ]; do
		flags+=("$1")
		shift
	done
	shift
	spin -a "$@" raft.pml
	gcc "${flags[@]}" -o pan pan.c
}

all() {
	shift
	build -O1 -DMEMLIM=3000 -- "$@"
	./pan -n -m1000 -w23 >found
	cat found
	echo 'exhaustive: no violation' >result
	grep -q 'errors: 0$' found && ! grep -qi 'not completed\|too small\|reached -DMEMLIM' found
}

long() { all "$@"; }

some() {
	shift
	build -O1 -DBITSTATE -DT_RAND -DP_RAND -- "$@"
	local round seed
	for round in $(seq "$rounds"); do
		seed=$((RANDOM + round))
		printf 'seed %d\n' "$seed"
		timeout -k 5 -s INT 3 ./pan -n -m1000 -w27 "-RS$seed" >found || true # it is cut short
		cat found
		grep -q 'errors: 0$' found || return 1
	done
	echo 'bitstate, cut short: no violation' >result
}

mutant() {
	local name=$1
	shift
	shortest "violated" "$@" -DMUTANT "-DMUTANT_$name"
}

reach() {
	local name=$1
	shift
	shortest "reached" "$@" "-DREACH_$name"
}

# shortest END DEFINES... searches in breadth for a run that ends so.
shortest() {
	local end=$1
	shift
	build -O0 -DBFS -DMEMLIM=3000 -- -DBREADTH "$@"
	./pan -n
	{ printf '# %s\n' "${*//-D/}" && spin -t -T -DBREADTH "$@" raft.pml | readable; } >trace
	tail -n 1 trace >result
	grep "^$end" result
}

# readable makes a trace of what the model prints: its first violation ends it, and sets of servers are a digit
# for each instead of a mask.
readable() {
	awk '
	function set(mask,   s, x) { for (x = 0; x < 4; x++) if (int(mask / 2 ^ x) % 2) s = s x; return s }
	$1 == "base" { print $1, set($2) }
	$1 == "elect" { print $1, $2, $3, $4, $5, set($6) }
	$1 == "change" { print $1, $2, $3, set($4) }
	$1 == "entry" { print $1, $2, $3, $4, $5, $6, ($8 ? "conf " set($8) ($10 ? " old " set($10) : "") : "data") }
	$1 ~ /^(append|commit|leave|violated|reached)$/
	$1 ~ /^(violated|reached)$/ { exit }'
}

# walks are runs of the model at random.
walks() {
	local seed
	for seed in $(seq 24); do
		printf '# walk %d\n' "$seed"
		spin -T -u20000 "-n$seed" "-DBASE=$((seed % 2 ? 7 : 15))" -DT=4 -DL=8 -DD=3 raft.pml | readable
	done
}

if [ "${1:-}" = search ]; then # called below, in a process of its own
	tmp=$2
	shift 2
	search "$@"
	exit
fi

for command in spin gcc; do
	command -v "$command" >/dev/null || { printf 'check.sh: %s is not installed (Debian: %s)\n' "$command" "$command" >&2; exit 1; }
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
status=0
without=long
[ -z "${LONG:-}" ] || without=none
selected() { searches | awk -v without="$without" '$1 != without'; }
selected | xargs -P "$jobs" -L 1 ./check.sh search "$tmp" >"$tmp/out" 2>&1 || status=1
mkdir "$tmp/traces"
while read -r kind name _; do
	[ ! -e "$tmp/$name/line" ] || cat "$tmp/$name/line"
	[ ! -e "$tmp/$name/trace" ] || mv "$tmp/$name/trace" "$tmp/traces/$kind-$name.txt"
	[ -s "$tmp/$name/line" ] || { printf '%-7s %-13s FAILED, see below\n' "$kind" "$name"; status=1; }
done < <(selected)
cat "$tmp/out"
walks >"$tmp/traces/walks.txt"
spin -V >"$tmp/traces/version.txt"
if [ "${1:-}" = update ]; then
	rm -rf traces
	cp -r "$tmp/traces" traces
elif ! cmp -s traces/version.txt "$tmp/traces/version.txt"; then
	printf 'the runs are not compared with traces/, which another version of spin has found\n'
elif ! diff -ru traces "$tmp/traces" >"$tmp/diff"; then
	head -n 20 "$tmp/diff"
	printf 'traces/ holds other runs than the model has: run spec/check.sh update\n'
	status=1
fi
[ "$status" -eq 0 ] && verdict='as it should be' || verdict='FAILED'
printf 'the model: %s, after %d s\n' "$verdict" "$SECONDS"
exit "$status"

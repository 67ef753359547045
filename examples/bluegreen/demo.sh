#!/usr/bin/env bash
# Replaces a running HTTP server under load, twenty times, each time by a process
# that this shell starts on its own, and prints what the clients noticed. Every
# third one is on probation and is sent away again: its predecessor resumes.
# It needs Go and bash, and ends only what it has started.
#
# Usage: demo.sh [-turns N] [-answers N] [-cold]
#
#   -turns N    replace the server N times (default 20)
#   -answers N  let each server answer N requests before its turn ends (default 300)
#   -cold       stop each server before starting the next, as without the library.
#               This must fail; it shows that the demo notices.
#
# Exit status 0: not one request has failed, on new connections or on those that
# are kept, every server answered, and each ended without force.
set -euo pipefail
cd "$(dirname "$0")"

turns=20
answers=300
cold=''

address=127.0.0.1:0 # the first server chooses the port
server=''           # pid of the server that owns the service
line=''             # the last one that was read
trouble=''          # what this shell has noticed

main() {
	arguments "$@"
	# In seconds, without the build. It is for a run that hangs; a slow machine
	# must not come near it.
	limit=$((120 + turns * (5 + answers / 20)))
	work=$(mktemp -d "${TMPDIR:-/tmp}/bluegreen.XXXXXX")
	trap cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 141' PIPE
	trap 'exit 143' TERM
	build v1
	build v2
	open_channels
	start_watchdog

	start_server v1
	start_load
	await_answers
	for ((turn = 1; turn <= turns; turn++)); do
		if ((turn % 3 == 0)); then
			try_server "v$((turn % 2 + 1))"
		else
			replace_server "v$((turn % 2 + 1))"
			await_answers
		fi
	done
	end "$load" 'the load generator'
	end "$server" 'the last server'
	kill "$watchdog"
	verdict
}

arguments() {
	while (($# > 0)); do
		case $1 in
		-cold | --cold) cold=yes ;;
		-turns | --turns)
			turns=$(number "${2:-}") || usage 2 >&2
			shift
			;;
		-answers | --answers)
			answers=$(number "${2:-}") || usage 2 >&2
			shift
			;;
		-h | -help | --help) usage 0 ;;
		*) usage 2 >&2 ;;
		esac
		shift
	done
}

number() {
	[[ $1 =~ ^[1-9][0-9]{0,3}$ ]] && echo "$1"
}

usage() {
	sed -n '/^# Usage/,/^set/s/^# \{0,1\}//p' demo.sh
	exit "$1"
}

# build puts a version of the server into a directory of its own, as a deployment
# would. The first one brings the tools along. A build that is interrupted leaves
# its temporary files, here among those that are removed in the end.
build() {
	local -x GOTMPDIR=$work
	echo "building $1"
	go build -ldflags "-X main.version=$1" -o "$work/$1/server" ./server
	[[ -x $work/tools/load ]] || go build -o "$work/tools/" ./load ./verdict
}

# open_channels makes the FIFOs that this shell waits on. It holds both ends of
# each, so that opening one never blocks and writing to one never fails.
open_channels() {
	mkfifo "$work/ready" "$work/answers" "$work/never"
	exec 3<>"$work/ready" 4<>"$work/answers" 5<>"$work/never"
}

# start_watchdog ends the run if it hangs. What waits in it is the shell itself,
# since an external sleep would stay behind.
start_watchdog() {
	(
		trap - EXIT HUP INT PIPE TERM
		read -r -t "$limit" <&5 && exit
		echo "demo: not finished after $limit s" >&2
		kill -TERM $$
	) &
	watchdog=$!
}

# start_server starts a version on its own and returns when it owns the service.
start_server() {
	"$work/$1/server" -socket "$work/control.sock" -listen "$address" \
		-journal "$work/journal" -ready "$work/ready" ${cold:+-cold} \
		3>&- 4>&- 5>&- >>"$work/log" 2>&1 &
	server=$!
	next_line 3 "$server" || fail "$1, pid $server, has ended without getting the service"
	address=$line
	echo "$1, pid $server, serves on $address"
}

start_load() {
	"$work/tools/load" -address "$address" -journal "$work/journal" -report "$work/report" \
		-slow 40ms -tell "$answers" -for "${limit}s" -requests $((20000 + 60 * turns * answers)) 3>&- 5>&- >&4 4>&- 2>>"$work/log" &
	load=$!
}

# await_answers returns when the server has answered enough for its turn to count, or,
# if it had before, new connections again.
await_answers() {
	line=''
	while [[ $line != "$server" ]]; do
		next_line 4 "$server" "$load" || fail "pid $server has not answered $answers requests, or the load generator has ended"
	done
}

# next_line reads the next line from a descriptor into $line. It fails if one of
# the processes that have to bring it about is no more. A read whose time is up may
# have got the first part of the line.
next_line() {
	local pid part
	line=''
	until read -r -t 1 part <&"$1"; do
		line+=$part
		for pid in "${@:2}"; do
			kill -0 "$pid" 2>/dev/null || return
		done
	done
	line+=$part
}

# replace_server starts a version as the successor. Nobody tells the predecessor:
# it learns from the successor and exits when it has finished what it had.
replace_server() {
	local predecessor=$server
	if [[ -n $cold ]]; then
		end "$predecessor" 'the old server'
		start_server "$1"
	else
		start_server "$1"
		await_exit "$predecessor" 'the predecessor'
	fi
}

# try_server starts a version on probation, and stops it when it has served for a
# while. The predecessor, which has stood by, serves again.
try_server() {
	local predecessor=$server
	if [[ -n $cold ]]; then
		replace_server "$1"
		await_answers
		return
	fi
	CROSSFADE_PROBATION=1h start_server "$1"
	await_answers
	echo "$1, pid $server, is sent away again: its predecessor, pid $predecessor, resumes"
	end "$server" 'the server on probation'
	server=$predecessor
	await_answers
}

# end asks a process to stop and waits for it.
end() {
	kill -TERM "$1" || trouble+="$2, pid $1, had ended before its time; "
	await_exit "$1" "$2"
}

await_exit() {
	local status=0
	wait "$1" || status=$?
	((status == 0)) || trouble+="$2, pid $1, ended with status $status; "
}

verdict() {
	local status=0
	echo
	"$work/tools/verdict" -report "$work/report" -journal "$work/journal" -servers $((turns + 1)) || status=1
	[[ -z $trouble ]] || fail "${trouble%; }"
	((status == 0)) || exit "$status"
	echo
	echo 'not one request has failed'
}

fail() {
	echo "demo: $1" >&2
	[[ ! -s $work/log ]] || tail -n 20 "$work/log" >&2
	exit 1
}

# cleanup ends whatever this shell has started and still runs, in the end by
# force, and removes the files.
cleanup() {
	local status=$? running killer
	trap '' HUP INT PIPE TERM
	running=$(jobs -rp)
	# shellcheck disable=SC2086 # numbers, one word each
	if [[ -n $running ]]; then
		kill -TERM $running 2>/dev/null || true
		(
			trap - EXIT
			trap - TERM
			read -r -t 20 <>"$work/never" || kill -KILL $running 2>/dev/null
		) &
		killer=$!
		wait $running 2>/dev/null || true
		kill -TERM "$killer" 2>/dev/null || true
		wait "$killer" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit "$status"
}

main "$@"

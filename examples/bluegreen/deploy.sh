#!/usr/bin/env bash
# Installs a release of a service and puts it into service, without a client
# noticing; or says why not, and leaves the old one serving.
#
# Usage: deploy.sh [OPTION...] RELEASE [-- ARGUMENT...]
#
# RELEASE is a directory or a tar archive. Its name, without the suffix, becomes
# the name of the release. What follows -- are the arguments of the service.
#
#   --root DIR       where the service lives (default /opt/app)
#   --program NAME   what to start, a path inside the release (default app)
#   --socket PATH    control socket (default $CROSSFADE_SOCKET, else DIR/run/control.sock)
#   --expect NAMES   the descriptors that this release takes over: http,admin
#   --health CHECK   a URL or a command that must succeed, else it is rolled back
#   --timeout D      how long it may take to get ready (default 60s)
#   --probation D    how long the old one stands by, able to resume
#   --log FILE       output of the service (default DIR/log/NAME.log)
#   --keep N         releases to keep, those in use not counted (default 3)
#
# Exit status, as of every command of crossfade, is who serves now. 0: the new
# release. 2: the command line is wrong. 4: another deployment is under way. 5: it
# failed or was rolled back, the old one serves. 7: not permitted. 8: the old one
# refuses it. 9: not known. 10: it failed and nobody serves. 11: the new one serves
# and is not healthy.
#
# DIR/releases/NAME is a release, DIR/current a link to the one that serves. The
# service is started in DIR as DIR/current/PROGRAM: by that name a supervisor, and
# the service itself when it is told to upgrade, find the new code.
set -euo pipefail

root=/opt/app
program=app
socket=${CROSSFADE_SOCKET:-}
expect=''
keep=3
log=''
options=() # for crossfade run
arguments=()

source=''   # what is to be installed
release=''  # its name
previous='' # the release that current named before
staged=''   # a directory that is not a release yet
switched='' # whether current names a release that may not serve

main() {
	parse "$@"
	require crossfade find flock jq tar
	prepare
	acquire
	trap finish EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	repair
	install_release
	rehearse
	point_to "$release"
	replace
	clean || say "not all old releases could be removed"
}

parse() {
	while (($# > 0)); do
		case $1 in
		-h | -help | --help) usage 0 ;;
		--)
			shift
			arguments=("$@")
			break
			;;
		-*)
			(($# > 1)) || wrong "$1 needs a value"
			option "${1/#--/-}" "$2"
			shift
			;;
		*)
			[[ -z $source ]] || wrong "one release at a time: $source or $1?"
			source=$1
			;;
		esac
		shift
	done
	[[ -n $source ]] || wrong 'which release?'
	[[ -e $source ]] || wrong "there is no $source"
	source=$(realpath -e -- "$source")
	release=${source##*/}
	[[ -d $source ]] || release=${release%.tar*} release=${release%.t?z}
	# The name goes into paths, into a list that is read line by line, and, with a
	# dot in front, would hide from both.
	[[ $release =~ ^[A-Za-z0-9_][A-Za-z0-9_.+-]*$ ]] || wrong "$release is not the name of a release"
}

option() {
	case $1 in
	-root) root=$2 ;;
	-program) program=$2 ;;
	-socket) socket=$2 ;;
	-expect) expect=$2 ;;
	-log) log=$2 ;;
	-health | -timeout | -probation) options+=("-$1" "$2") ;;
	-keep)
		[[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || wrong "$2 is not a number of releases to keep"
		keep=$2
		;;
	*) wrong "there is no option $1" ;;
	esac
}

usage() {
	sed -n '/^# Usage/,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
	exit "$1"
}

require() {
	local command
	for command in "$@"; do
		command -v "$command" >/dev/null || wrong "this script needs $command, which is not in PATH"
	done
}

prepare() {
	mkdir -p "$root/releases" || fail 7 "$root cannot be written"
	# /proc names the files of processes without symbolic links.
	root=$(realpath -e -- "$root")
	socket=$(realpath -m -- "${socket:-$root/run/control.sock}")
	log=$(realpath -m -- "${log:-$root/log/${program##*/}.log}")
	mkdir -p -- "${socket%/*}" "${log%/*}" || fail 7 "the directories of $socket and $log cannot be made"
	# The service inherits it, and every successor that it starts.
	cd -- "$root"
}

# acquire makes this the only deployment. The descriptor stays open on purpose in
# `crossfade run`, which gives it to nobody: if this shell is killed while that goes
# on, the next deployment still waits its turn.
acquire() {
	exec {lock}>>"$root/deploy.lock" || fail 7 "$root/deploy.lock cannot be written"
	flock -n "$lock" || fail 4 "another deployment is under way: $(<"$root/deploy.lock")"
	echo "pid $$ installs $release" >"$root/deploy.lock"
}

# repair has current name the release that serves. It names another one if an
# earlier deployment was killed, or was rolled back after it had returned.
repair() {
	previous=$(readlink -- "$root/current") || previous=''
	previous=${previous##*/}
	local serving
	serving=$(in_service)
	if [[ -n $serving && $serving != "$previous" ]]; then
		say "$root/current named ${previous:-nothing}, and $serving serves"
		point_to "$serving"
		switched=''
		previous=$serving
	fi
}

# install_release makes the release appear under its name all at once. One that is
# there already is taken if it is the same: a deployment may be repeated.
install_release() {
	local target=$root/releases/$release
	rm -rf -- "$root"/releases/.new.* # of a deployment that was killed
	if [[ $source != "$target" ]]; then
		staged=$(mktemp -d "$root/releases/.new.XXXXXX")
		unpack || unchanged "$source could not be unpacked into $root/releases"
		if [[ ! -e $target ]]; then
			# The link may survive a crash of the machine, so its target must.
			sync -f -- "$staged"
			mv -T -- "$staged" "$target"
		elif ! diff -rq -- "$staged" "$target" >&2; then
			wrong "$target is another release of that name"
		fi
		rm -rf -- "$staged"
		staged=''
	fi
	[[ -f $target/$program && -x $target/$program ]] || wrong "$target/$program is not executable"
	touch -- "$target" # by its age it is kept
}

# unpack fills the staged directory. Whoever asks for its status turns -e off in it.
unpack() {
	if [[ -d $source ]]; then
		cp -a -- "$source/." "$staged" || return
	else
		tar -xf "$source" -C "$staged" --no-same-owner || return
		# An archive of one directory is meant to be that directory.
		local entries outer=$staged
		entries=$(find "$staged" -mindepth 1 -maxdepth 1 -printf '%y %f\n') || return
		if [[ $entries =~ ^d\ ([^$'\n']+)$ && ! -e $staged/$program ]]; then
			staged=$(mktemp -d "$root/releases/.new.XXXXXX") || return
			mv -T -- "$outer/${BASH_REMATCH[1]}" "$staged" && rmdir -- "$outer" || return
		fi
	fi
	chmod 755 -- "$staged" # mktemp makes it private
}

# rehearse asks the owner, if there is one, whether the release could take over,
# before anything is changed.
rehearse() {
	local status=0
	crossfade check --socket "$socket" ${expect:+--expect "$expect"} >/dev/null || status=$?
	case $status in
	0) ;;
	3) say 'nobody serves yet: this will be the first' ;;
	*) fail "$status" "$release was not started" ;;
	esac
}

# point_to has current name another release. A link cannot be changed; it can be
# replaced, so that at each moment there is one.
point_to() {
	ln -sfn -- "releases/$1" "$root/current.new"
	switched=yes
	mv -T -- "$root/current.new" "$root/current"
}

# replace runs the release in the place of the old one. It runs in the background,
# because a shell that waits for a command in the foreground notices a signal only
# afterwards. The tool takes SIGTERM for "cancel" or "roll back", and is waited for.
replace() {
	local status interrupted='' tool=''
	trap 'interrupted=yes; [[ -z $tool ]] || kill -TERM "$tool" 2>/dev/null || true' HUP INT TERM
	crossfade run --socket "$socket" --log "$log" "${options[@]}" -- "$root/current/$program" "${arguments[@]}" &
	tool=$!
	[[ -z $interrupted ]] || kill -TERM "$tool"
	while
		interrupted=''
		status=0
		wait "$tool" || status=$?
		[[ -n $interrupted ]]
	do :; done
	trap '' HUP INT TERM # what follows is short
	case $status in
	0 | 11) switched='' ;;
	2 | 4 | 5 | 7 | 8 | 10) ;; # not the new one: finish takes the link back
	9) look ;;
	*)
		say "crossfade run has ended with status $status"
		status=9
		look
		;;
	esac
	((status == 0)) || exit "$status"
}

# look has current name who serves, after an end that does not tell.
look() {
	local serving
	serving=$(in_service)
	say "${serving:-nobody, as far as is known,} serves; see crossfade status --socket $socket"
	if [[ -z $serving || $serving == "$release" ]]; then
		switched=''
	fi
}

# finish is run at every end.
finish() {
	local status=$?
	trap '' HUP INT TERM
	[[ -z $staged ]] || rm -rf -- "$staged"
	if [[ -n $switched && -n $previous ]]; then
		point_to "$previous"
		say "$root/current names $previous again"
	elif [[ -n $switched ]]; then
		rm -f -- "$root/current"
	fi
	if ((status == 10)) && [[ -n $previous ]]; then
		say "to start it: crossfade run --socket $socket --log $log -- $root/current/$program ${arguments[*]@Q}"
	fi
	exit "$status"
}

# clean removes old releases, and none that a process runs from: one that drains
# may still open its templates, and one on probation may be told to resume.
clean() {
	local versions running name seen=0
	versions=$(processes | cut -f 2) || return
	running=$(open_files)
	while read -r _ name; do
		((++seen > keep)) || continue
		! in_use "$name" || continue
		rm -rf --one-file-system -- "$root/releases/$name" || return
		say "removed the old release $name"
	done < <(find "$root/releases" -mindepth 1 -maxdepth 1 -type d -name '[^.]*' -printf '%T@ %f\n' | LC_ALL=C sort -rn)
}

in_use() {
	[[ $1 == "$release" ]] || grep -Fxq -- "$1" <<<"$versions" || grep -Fq -- "$root/releases/$1/" <<<"$running"
}

# in_service prints the release of the process that serves, or nothing if nobody
# serves or it is not known. What its executable is counts more than what it says.
in_service() {
	local known pid version executable
	known=$(processes) && [[ -n $known ]] || return 0
	IFS=$'\t' read -r pid version <<<"$known"
	executable=$(readlink -- "/proc/$pid/exe") || executable=''
	if [[ $executable == "$root"/releases/*/* ]]; then
		executable=${executable#"$root/releases/"}
		echo "${executable%%/*}"
	elif [[ $version =~ ^[A-Za-z0-9_][A-Za-z0-9_.+-]*$ && -d $root/releases/$version ]]; then
		echo "$version"
	fi
}

# processes prints pid and version of each process of the service, the one that
# serves first. That nobody serves is no failure.
processes() {
	local answer status=0
	answer=$(crossfade status --socket "$socket" --json 2>/dev/null) || status=$?
	((status != 3)) || return 0
	((status == 0)) || return "$status"
	jq -r '.serving, .draining[], .attempt.successor, .probation.predecessor
		| select(. != null) | [.pid, .version] | @tsv' <<<"$answer"
}

# open_files prints the executables and the directories of all processes that this
# user may look at.
open_files() {
	find /proc -mindepth 2 -maxdepth 2 \( -name exe -o -name cwd \) -printf '%l/\n' 2>/dev/null || true
}

# unchanged ends a deployment that has not come to touch the service.
unchanged() {
	local status=0
	crossfade status --socket "$socket" --json >/dev/null 2>&1 || status=$?
	((status == 3)) && fail 10 "$1; nobody serves"
	fail 5 "$1"
}

wrong() {
	fail 2 "$1"
}

fail() {
	say "$2"
	exit "$1"
}

say() {
	echo "deploy: $1" >&2
}

main "$@"

#!/usr/bin/env bash
# Puts a release into service by starting the one of app@blue and app@green that is not
# running; or says why not, and leaves the other one serving.
#
# Usage: switch.sh [--health COMMAND] [--tries N] RELEASE
#
# RELEASE is a directory in /opt/app/releases. With --health the command must succeed at
# one of N tries, a second apart (default 30), else the new process gives the service
# back. Run it as root. If it is killed before the health is known, the new process stays
# when its probation is over.
#
# Exit status, as of every command of crossfade, is who serves now. 0: the new release.
# 2: the command line is wrong. 4: the last but one still drains. 5: it failed, the old
# one serves. 9: not known. 10: it failed, and nobody serves.
set -euo pipefail

root=/opt/app
export CROSSFADE_SOCKET=/run/app/control.sock
health=true
tries=30

main() {
	while (($# > 1)); do
		case $1 in
		--health) health=$2 ;;
		--tries) tries=$2 ;;
		*) break ;;
		esac
		shift 2
	done
	[[ $# -eq 1 && $1 != -* ]] || fail 2 'which release? see the head of this script'
	[[ -x $root/releases/$1/app ]] || fail 2 "there is no $root/releases/$1/app"
	local old new
	old=$(serving)
	new=blue
	[[ $old != blue ]] || new=green
	# To start a unit that is active would do nothing, and succeed.
	! systemctl --quiet is-active "app@$new" ||
		fail 4 "app@$new still finishes what it has: wait, or systemctl stop app@$new"
	ln -sfn "releases/$1" "$root/$new.new"
	mv -T "$root/$new.new" "$root/$new"
	systemctl reset-failed "app@$new" 2>/dev/null || true # it may not be known yet
	systemctl start "app@$new" || given_up "$new"
	healthy || give_back "$new"
	crossfade settle
	[[ -z $old ]] || systemctl --quiet disable "app@$old"
	systemctl --quiet enable "app@$new" # it is the one that the next boot starts
}

# serving prints the unit whose process owns the service, if there is one.
serving() {
	local pid status=0 unit
	pid=$(crossfade status --json 2>/dev/null) || status=$?
	((status == 0 || status == 3)) || fail 9 "who serves is not known: crossfade status"
	pid=$(jq -r '.serving.pid // empty' <<<"$pid")
	for unit in blue green; do
		if [[ -n $pid && $(systemctl show --property MainPID --value "app@$unit") == "$pid" ]]; then
			echo "$unit"
		fi
	done
}

healthy() {
	local try
	for ((try = 1; ; try++)); do
		! bash -c "$health" >&2 || return 0
		((try < tries)) || return 1
		sleep 1
	done
}

give_back() {
	crossfade rollback || fail 9 "app@$1 is not healthy, and has not given the service back: crossfade status"
	failed "$1" 'is not healthy'
}

# given_up is for a unit that has not started. Restart= would try it again and again, also
# when this is over, and into the next deployment. One that has the service by now is on
# probation, and gives it back.
given_up() {
	systemctl stop "app@$1"
	failed "$1" 'has not started'
}

# failed ends a deployment that has come to nothing.
failed() {
	[[ -n $(serving) ]] || fail 10 "app@$1 $2, and nobody serves: journalctl -u app@$1"
	fail 5 "app@$1 $2, and app@$(serving) serves: journalctl -u app@$1"
}

fail() {
	echo "switch: $2" >&2
	exit "$1"
}

main "$@"

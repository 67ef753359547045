#!/usr/bin/env bash
# Plants imports and calls in a scratch module of the same shape and name, and
# checks that .golangci.yml reports exactly those that it should. A rule whose
# glob matches no file, or whose prefix matches too much, passes every lint of
# the real tree; it does not pass this.
#
# Usage: tools/lint-selftest.sh golangci-lint-command...
set -euo pipefail
cd "$(dirname "$0")/.."

module=github.com/crossfade-go/crossfade
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# file                        import                                            verdict
table=$(sed "s| M/| $module/|; s| M | $module |" <<'EOF'
scm/x.go                      M/handoff                                         denied
scm/x.go                      M/internal/rendezvous                             denied
scm/x.go                      M/proto/crossfade/handoff/v1                      denied
scm/x.go                      google.golang.org/protobuf/proto                  denied
scm/x.go                      log                                               denied
scm/x.go                      io/ioutil                                         denied
scm/x.go                      golang.org/x/sys/unix                             allowed
scm/x.go                      syscall                                           allowed
scm/x.go                      log/slog                                          allowed
scm/x_test.go                 M/internal/leak                                   allowed
scm/x_test.go                 io/ioutil                                         denied
handoff/x.go                  M                                                 denied
handoff/x.go                  M/internal/rendezvous                             denied
handoff/x.go                  M/systemd                                         denied
handoff/x.go                  golang.org/x/sys/unix                             denied
handoff/x.go                  syscall                                           denied
handoff/x.go                  M/scm                                             allowed
handoff/x.go                  M/proto/crossfade/handoff/v1                      allowed
handoff/x.go                  google.golang.org/protobuf/proto                  allowed
proto/crossfade/handoff/v1/x.go M/scm                                           denied
proto/crossfade/handoff/v1/x.go google.golang.org/protobuf/proto                allowed
systemd/x.go                  M/handoff                                         denied
systemd/x.go                  golang.org/x/sys/unix                             denied
systemd/x.go                  M/scm                                             allowed
internal/rendezvous/x.go      M/handoff                                         denied
internal/rendezvous/x.go      M/internal/pidfile                                denied
internal/rendezvous/x.go      golang.org/x/sys/unix                             allowed
internal/rendezvous/x.go      M/scm                                             allowed
internal/pausable/x.go        M/handoff                                         denied
internal/pausable/x.go        golang.org/x/sys/unix                             denied
internal/pausable/x.go        M/scm                                             allowed
internal/pidfile/x.go         M/scm                                             denied
internal/pidfile/x.go         golang.org/x/sys/unix                             allowed
internal/statefile/x.go       M/handoff                                         denied
internal/statefile/x.go       golang.org/x/sys/unix                             allowed
internal/statefile/x.go       M/scm                                             allowed
internal/unit/x.go            golang.org/x/sys/unix                             denied
internal/unit/x.go            M/internal/rendezvous                             denied
internal/unit/x.go            M/handoff                                         allowed
internal/unit/x.go            M/systemd                                         allowed
internal/generations/x.go     golang.org/x/sys/unix                             denied
internal/generations/x.go     M/handoff                                         allowed
internal/generations/x.go     M/scm                                             allowed
internal/chaos/x.go           M/internal/rendezvous                             denied
internal/chaos/x.go           M/internal/leak                                   denied
internal/chaos/x.go           M                                                 allowed
internal/chaos/x.go           M/handoff                                         allowed
internal/chaos/x.go           golang.org/x/sys/unix                             allowed
internal/flood/x.go           M/internal/reexec                                 allowed
internal/fakemanager/x.go     M/systemd                                         denied
internal/fakemanager/x.go     M/scm                                             allowed
internal/leak/x.go            M/scm                                             denied
internal/leak/x.go            golang.org/x/sys/unix                             denied
internal/leak/x.go            testing                                           allowed
internal/reexec/x.go          M/scm                                             denied
internal/reexec/x.go          testing                                           allowed
x.go                          M/proto/crossfade/handoff/v1                      denied
x.go                          M/httphandoff                                     denied
x.go                          M/internal/fakemanager                            denied
x.go                          M/internal/leak                                   denied
x.go                          M/internal/reexec                                 denied
x.go                          M/internal/transcript                             denied
x.go                          google.golang.org/protobuf/proto                  denied
x.go                          golang.org/x/sys/unix                             denied
x.go                          M/handoff                                         allowed
x.go                          M/internal/rendezvous                             allowed
x.go                          M/scm                                             allowed
x.go                          M/systemd                                         allowed
httphandoff/x.go              M/handoff                                         denied
httphandoff/x.go              M/scm                                             denied
httphandoff/x.go              M                                                 allowed
tableflip/x.go                M/httphandoff                                     denied
tableflip/x.go                M/internal/rendezvous                             denied
tableflip/x.go                M                                                 allowed
cmd/crossfade/x.go            M/handoff                                         denied
cmd/crossfade/x.go            M/proto/crossfade/handoff/v1                      denied
cmd/crossfade/x.go            M/scm                                             denied
cmd/crossfade/x.go            M/internal/rendezvous                             denied
cmd/crossfade/x.go            google.golang.org/protobuf/proto                  denied
cmd/crossfade/x.go            golang.org/x/sys/unix                             allowed
cmd/crossfade/x.go            M                                                 allowed
httphandoff/x.go              golang.org/x/sys/unix                             denied
examples/hello/x.go           M/handoff                                         denied
examples/hello/x.go           M/internal/rendezvous                             denied
examples/hello/x.go           golang.org/x/sys/unix                             denied
examples/hello/x.go           log                                               denied
examples/hello/x.go           M/httphandoff                                     allowed
EOF
)

main() {
	stubs
	local importer failed=0
	# One importer at a time: the imports of two of them would often be a cycle.
	# shellcheck disable=SC2013 # no line has more than one word
	for importer in $(awk '{ sub(/[^\/]*$/, "", $1); print "./" $1 }' <<<"$table" | sort -u); do
		plant_imports "$importer"
		check "$importer" depguard "$@" || failed=1
		rm "$scratch/$importer"x*.go
	done
	plant_calls
	check ./scm/ forbidigo "$@" || failed=1
	((failed == 0)) || exit 1
	echo "every rule bites: $(wc -l <<<"$table") imports, 5 calls"
}

# stubs makes an empty package for each package that the table names.
stubs() {
	cp go.mod go.sum .golangci.yml "$scratch"
	local dir
	# shellcheck disable=SC2013 # no line has more than one word
	for dir in $(awk '{ sub(/[^\/]*$/, "", $1); print $1 "."; }
		index($2, m) == 1 { sub(m, ".", $2); print $2 }' m="$module" <<<"$table" | sort -u); do
		mkdir -p "$scratch/$dir"
		echo 'package x' >"$scratch/$dir/stub.go"
	done
}

# plant_imports writes the files of one importer. A comment on each import says
# what the linter is expected to say.
plant_imports() {
	local file import verdict
	while read -r file import verdict; do
		[[ ./${file%"${file##*/}"} == "$1" ]] || continue
		[[ -e $scratch/$file ]] || echo 'package x' >"$scratch/$file"
		echo "import _ \"$import\" // $verdict" >>"$scratch/$file"
	done <<<"$table"
}

plant_calls() {
	cat >"$scratch/scm/x.go" <<'EOF'
package x

import (
	"os"
	"time"
)

type frame struct{ Fd int }

func calls(f *os.File, d frame) {
	print()              // denied
	time.Sleep(1)        // denied
	_ = f.Fd()           // denied
	_ = os.Stdin.Fd      // denied
	_ = d.Fd             // allowed
	_ = time.NewTimer(1) // allowed
}
EOF
	cat >"$scratch/scm/x_test.go" <<'EOF'
package x

import "time"

func wait() {
	time.Sleep(1) // denied
}
EOF
}

# check runs one linter over one package and compares the lines that it reports
# with the lines that are marked as denied.
check() {
	local package=$1 linter=$2 reported denied
	shift 2
	reported=$(cd "$scratch" && "$@" run --enable-only="$linter" --issues-exit-code=0 --show-stats=false \
		--output.text.print-issued-lines=false --output.text.colors=false --output.text.path=stdout "$package" |
		sed -n "s/^\([^ :]*:[0-9]*\):.*($linter)\$/\1/p" | sort -u)
	denied=$(cd "$scratch" && grep -n ' // denied$' "$package"*.go | sed 's|^\./||; s|^\([^:]*:[0-9]*\):.*|\1|' | sort -u)
	[[ $reported != "$denied" ]] || return 0
	echo "$linter, $package: expected (-) and reported (+) lines differ" >&2
	diff -u <(echo "$denied") <(echo "$reported") | tail -n +4 | while IFS= read -r line; do
		printf '%s   %s\n' "$line" "$(location "${line:1}")"
	done >&2
	return 1
}

# location prints the source line behind file:line.
location() {
	[[ $1 == *:* ]] && sed -n "${1##*:}p" "$scratch/${1%%:*}"
}

main "$@"

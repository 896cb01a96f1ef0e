#!/usr/bin/env bash
# Runs every fuzz target of the repository's modules for the time given, all at
# once, each with one worker. What they link is built anew for a target, so they
# are built one package after the other, to share that.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-30s}
work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-fuzz-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
	sed -nE "s|^func (Fuzz[A-Za-z0-9_]*)\\(.*|$(dirname "$file") \\1|p" "$file"
done >"$work/targets"
cut -d ' ' -f 1 "$work/targets" | sort -u | while read -r dir; do
	(cd "$dir" && go test -c -fuzz . -o "$work/$(echo "$dir" | tr / _)" .)
done
# What is new to the corpus goes where go test has it.
corpus=$(go env GOCACHE)/fuzz
xargs -P 64 -L 1 sh -c '
	(cd "$3" && "$0/$(echo "$3" | tr / _)" -test.run "^$" -test.fuzz "^$4\$" -test.fuzztime "$1" \
		-test.fuzzcachedir "$2/$(go list .)" -test.parallel 1) >"$0/$4.out" 2>&1
	code=$?
	sed "s/^/$4: /" "$0/$4.out"
	exit $code' "$work" "$time" "$corpus" <"$work/targets"

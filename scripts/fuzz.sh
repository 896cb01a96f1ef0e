#!/usr/bin/env bash
# Runs every fuzz target of the repository's modules for the time given, eight at a
# time, each with one worker.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-30s}
grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
	sed -nE "s|^func (Fuzz[A-Za-z0-9_]*)\\(.*|$(dirname "$file") \\1|p" "$file"
done | xargs -P 8 -L 1 sh -c '
	(cd "$1" && go test -run "^$" -fuzz "^$2\$" -fuzztime "$0" -parallel 1 .) >"${TMPDIR:-/tmp}/sluice-fuzz-$2" 2>&1
	code=$?
	sed "s/^/$2: /" "${TMPDIR:-/tmp}/sluice-fuzz-$2"
	rm -f "${TMPDIR:-/tmp}/sluice-fuzz-$2"
	exit $code' "$time"

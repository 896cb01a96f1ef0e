#!/bin/sh
# Formatting, lint, types, tests and the wheel, in a virtual environment of its own (.venv).
#
#   ./check.sh              PYTHON=python3.12 ./check.sh for another interpreter
#   ./check.sh -k spool     arguments go to pytest
#
# With SLUICE_URL, the tests that need a real server run too.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}

die() {
	echo "check.sh: $*" >&2
	exit 1
}

command -v "$python" >/dev/null || die "$python is missing"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$python is older than 3.10"

# The environment is made anew when the interpreter or the pinned versions change.
wanted="$("$python" -VV) $(cat requirements-dev.txt)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
	"$python" -c 'import ensurepip, venv' 2>/dev/null ||
		die "$python cannot make virtual environments; on Debian: apt-get install python3-venv"
	rm -rf .venv
	"$python" -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	printf '%s\n' "$wanted" >.venv/installed
fi

.venv/bin/ruff format --check --quiet . || die "not formatted; run .venv/bin/ruff format"
.venv/bin/ruff check --quiet .
.venv/bin/mypy
.venv/bin/pytest -q "$@"
rm -rf dist
.venv/bin/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .
ls dist

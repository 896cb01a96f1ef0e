#!/bin/sh
# Plays the script of a directory, records it, and renders the recording beside it:
#
#   walkthrough.sh DIR      from DIR/script: DIR/walkthrough.cast, .svg and .mp4
#
# It needs bin/sluice, bin/sluice-bench and bin/walkthrough-servers, and what "make walkthrough" installs. The renderer's
# packages are installed in the user's cache directory. Nothing in DIR changes when a step fails.
set -eu

die() {
	echo "walkthrough: $*" >&2
	exit 1
}

tools=$(cd "$(dirname "$0")" && pwd)
dir=$1
[ -f "$dir/script" ] || die "$dir has no script"

# The same directory as Go's os.UserCacheDir.
case "$(uname -s)" in
Darwin) cache=$HOME/Library/Caches ;;
*) cache=${XDG_CACHE_HOME:-$HOME/.cache} ;;
esac
venv=$cache/sluice/walkthrough-venv

# The environment is made anew when the interpreter or the pinned versions change.
wanted="$(python3 -VV) $(cat "$tools/requirements.txt")"
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
	rm -rf "$venv"
	python3 -m venv "$venv"
	"$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$tools/requirements.txt"
	printf '%s\n' "$wanted" >"$venv/installed"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
"$venv/bin/python" "$tools/record.py" "$dir/script" "$work/walkthrough.cast"
"$venv/bin/python" "$tools/render.py" "$work/walkthrough.cast" "$work/walkthrough.svg" "$work/walkthrough.mp4"
mv "$work"/walkthrough.* "$dir"

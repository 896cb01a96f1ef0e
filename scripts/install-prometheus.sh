#!/bin/sh
# Builds Prometheus and promtool, with which the tests run the dashboard and the alerts, where
# they look for them: in the user's cache directory, under their version. No-op when they are there.
#
# It needs Go alone; the first build takes four minutes of CPU and 2.4 GB of Go's own caches, the
# programs 100 MB. Several runs at once are safe: each works in a directory of its own, and the last
# step is a rename.
set -eu

die() {
	echo "install-prometheus: $*" >&2
	exit 1
}

module=$(cd "$(dirname "$0")/../deploy/monitoring/tools" && pwd)
version=$(sed -n 's|^require github.com/prometheus/prometheus ||p' "$module/go.mod")
[ -n "$version" ] || die "$module/go.mod names no version"

# The same directory as Go's os.UserCacheDir.
case "$(uname -s)" in
Darwin) cache=$HOME/Library/Caches ;;
*) cache=${XDG_CACHE_HOME:-$HOME/.cache} ;;
esac
target=$cache/sluice/prometheus-$version

if [ -d "$target" ]; then
	echo "$target"
	exit 0
fi

command -v go >/dev/null || die "go is needed and not on the PATH"

mkdir -p "$cache/sluice"
work=$(mktemp -d "$cache/sluice/.prometheus.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Of the service discoveries only DNS: the others are most of what there would be to build.
(cd "$module" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -tags remove_all_sd,enable_dns_sd -o "$work/new/" \
	github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool) || die "go could not build Prometheus $version"

# Whoever comes second finds the same programs in place.
[ -e "$target" ] || mv "$work/new" "$target"
[ -x "$target/prometheus" ] || die "could not move Prometheus to $target"
echo "$target"

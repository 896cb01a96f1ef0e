#!/bin/sh
# Installs Apache Kafka's jars, with which the tests start a real broker, where they look
# for them: in the user's cache directory, under their version. No-op when they are there.
#
# It needs mvn, and 45 MB. Java 17 or later is needed to run what it installs. Several runs
# at once are safe: each works in a directory of its own, and the last step is a rename.
set -eu

# kafkatest.Version says the same; a test holds the two together. Another one is for the
# images that are built for the test of the compose files.
version=4.3.1
version=${KAFKA_VERSION:-$version}

die() {
	echo "install-kafka: $*" >&2
	exit 1
}

# The same directory as Go's os.UserCacheDir.
case "$(uname -s)" in
Darwin) cache=$HOME/Library/Caches ;;
*) cache=${XDG_CACHE_HOME:-$HOME/.cache} ;;
esac
target=$cache/sluice/kafka-$version
libs=$target/libs

if [ -d "$libs" ]; then
	echo "$libs"
	exit 0
fi

command -v mvn >/dev/null || die "mvn is needed and not on the PATH"
pom=$(cd "$(dirname "$0")" && pwd)/kafka/pom.xml

mkdir -p "$cache/sluice"
work=$(mktemp -d "$cache/sluice/.kafka.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

mvn -q -B -f "$pom" -Dkafka.version="$version" dependency:copy-dependencies \
	-DoutputDirectory="$work/new/libs" >&2 || die "mvn could not fetch Kafka $version"
[ -f "$work/new/libs/kafka_2.13-$version.jar" ] || die "mvn left no broker jar"

# Whoever comes second finds the same jars in place.
[ -e "$target" ] || mv "$work/new" "$target"
[ -d "$libs" ] || die "could not move the jars to $target"
echo "$libs"

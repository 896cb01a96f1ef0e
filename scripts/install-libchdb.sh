#!/bin/sh
# Installs libchdb, the library in which the embedded ClickHouse engine comes, where
# Sluice looks for it: in the user's cache directory, under the version it was built for.
#
#   scripts/install-libchdb.sh          install, or do nothing when it is there
#   LIBCHDB_INTEGRITY=sha512-… scripts/install-libchdb.sh
#                                       on a platform whose checksum is not kept below
#
# It needs npm (the library is published as one npm package per platform), openssl, tar,
# 750 MB of free space while it runs, and 570 MB afterwards. Several runs at once are safe:
# each works in a directory of its own, and the last step is a rename.
set -eu

# engine.LibraryVersion says the same; a test holds the two together.
version=26.7.3-stable.1

die() {
	echo "install-libchdb: $*" >&2
	exit 1
}

# Checksums of the npm tarballs. npm checks what the registry announces; this checks that
# the registry still announces what was tested. A platform without one here needs
# LIBCHDB_INTEGRITY, so that nothing unknown is ever loaded into a process by default.
integrity=${LIBCHDB_INTEGRITY:-}
case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
	package=@chdb/lib-linux-x64-gnu
	integrity=${integrity:-sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==}
	;;
Linux-aarch64) package=@chdb/lib-linux-arm64-gnu ;;
Darwin-arm64) package=@chdb/lib-darwin-arm64 ;;
Darwin-x86_64) package=@chdb/lib-darwin-x64 ;;
*) die "no libchdb is published for $(uname -s) on $(uname -m)" ;;
esac

# The same directory as Go's os.UserCacheDir.
case "$(uname -s)" in
Darwin) cache=$HOME/Library/Caches ;;
*) cache=${XDG_CACHE_HOME:-$HOME/.cache} ;;
esac
target=$cache/sluice/libchdb-$version
library=$target/libchdb.so

if [ -f "$library" ]; then
	echo "$library"
	exit 0
fi

for tool in npm openssl tar; do
	command -v "$tool" >/dev/null || die "$tool is needed and not on the PATH"
done
[ -n "$integrity" ] || die "no checksum is kept for $package@$version: read it with
  npm view $package@$version dist.integrity
and pass it as LIBCHDB_INTEGRITY=sha512-…"

mkdir -p "$cache/sluice"
work=$(mktemp -d "$cache/sluice/.libchdb.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

npm pack --silent --pack-destination "$work" "$package@$version" >/dev/null ||
	die "npm pack $package@$version: no such package on this registry, or no network"
set -- "$work"/*.tgz
[ $# -eq 1 ] && [ -f "$1" ] || die "npm pack left no tarball"
tarball=$1

got=sha512-$(openssl dgst -sha512 -binary "$tarball" | openssl base64 -A)
[ "$got" = "$integrity" ] || die "checksum of $package@$version is
  $got, expected
  $integrity"

mkdir "$work/new"
tar -xzf "$tarball" -C "$work/new" --strip-components=1 package/libchdb.so
rm "$tarball"
chmod 755 "$work/new/libchdb.so"

# mv would move into the directory if it exists, so the file is what is renamed: over
# whatever a run beside this one put there, which is the same bytes.
mkdir -p "$target"
mv -f "$work/new/libchdb.so" "$library"
echo "$library"

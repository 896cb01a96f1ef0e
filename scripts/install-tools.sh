#!/bin/sh
# Installs the commands named as arguments, where they are missing, from the distribution's
# packages. It needs apt-get and root for that; elsewhere it says what is missing.
#
#   scripts/install-tools.sh java mvn gcc curl
set -eu

die() {
	echo "install-tools: $*" >&2
	exit 1
}

packages=
for tool; do
	case "$tool" in
	python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null && continue ;;
	fonts-dejavu-core) [ -e /usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf ] && continue ;;
	*) command -v "$tool" >/dev/null && continue ;;
	esac
	case "$tool" in
	java) packages="$packages default-jre-headless" ;;
	mvn) packages="$packages maven" ;;
	gcc) packages="$packages gcc libc6-dev" ;;
	docker | dockerd) packages="$packages docker.io" ;;
	systemd-analyze) packages="$packages systemd" ;;
	protoc) packages="$packages protobuf-compiler" ;;
	*) packages="$packages $tool" ;;
	esac
done
[ -n "$packages" ] || exit 0

command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "missing; please install:$packages"
apt-get update -q >&2
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages >&2

#!/usr/bin/env bash
# Builds stand-ins for the images that the compose files name, under their names,
# on the Docker daemon of DOCKER_HOST, from what package registries have:
#
#   clickhouse/clickhouse-server   the same engine, out of libchdb
#   apache/kafka                   the same jars, from Maven
#   golang                         this machine's Go
#
# It changes nothing where an image of the name is there already.
set -euo pipefail
cd "$(dirname "$0")/../.."

scripts/install-tools.sh debootstrap java mvn >&2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice
mkdir -p "$cache"
work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-standins-XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The classic builder: BuildKit's own front end would have to be pulled.
export DOCKER_BUILDKIT=0

missing() { ! docker image inspect "$1" >/dev/null 2>&1; }
build() { docker build -q -t "$@" >/dev/null && echo "built $1"; }

debian() {
	missing sluice-standin-debian || return 0
	if [ ! -f "$cache/debian-bookworm.tar" ]; then
		debootstrap --variant=minbase --include=ca-certificates,wget bookworm "$work/debian" >"$work/debootstrap.log" ||
			{ tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
		rm -rf "$work"/debian/var/cache/apt/* "$work"/debian/var/lib/apt/lists/*
		tar -C "$work/debian" -cf "$work/debian.tar" .
		mv "$work/debian.tar" "$cache/debian-bookworm.tar"
	fi
	docker import "$cache/debian-bookworm.tar" sluice-standin-debian >/dev/null
}

kafka() {
	local image=apache/kafka:$1 context=$work/kafka-$1
	missing "$image" || return 0
	mkdir -p "$context"
	cp -r deploy/standins/kafka/. "$context"
	cp -r "$(KAFKA_VERSION=$1 scripts/install-kafka.sh)" "$context/libs"
	# Debian has a part of its files in /etc, behind links, some of which lead nowhere.
	mkdir "$context/java"
	tar -C "$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")" -ch --ignore-failed-read \
		--exclude=src.zip --exclude=jmods --exclude=man . | tar -C "$context/java" -x
	build "$image" "$context"
}

clickhouse() {
	local image=clickhouse/clickhouse-server:$1 context=$work/clickhouse
	missing "$image" || return 0
	mkdir "$context"
	cp deploy/standins/clickhouse/Dockerfile "$context"
	cp "$(scripts/install-libchdb.sh)" "$context/libchdb.so"
	CGO_ENABLED=0 go build -trimpath -o "$context/clickhouse" ./deploy/standins/clickhouse
	build "$image" "$context"
}

golang() {
	local image=golang:$1 context=$work/golang modules=$work/modules
	missing "$image" || return 0
	mkdir -p "$context" "$modules"
	cp deploy/standins/golang.Dockerfile "$context/Dockerfile"
	cp -r "$(go env GOROOT)" "$context/go"
	# Only the modules of the build, from this machine's where it has them.
	local proxy bill
	proxy=file://$(go env GOMODCACHE)/cache/download,$(go env GOPROXY)
	GOMODCACHE=$modules GOPROXY=$proxy go mod download
	bill=$(sed -nE 's|.*go install .* ([^ ]*/cyclonedx-gomod@[^ ]*)$|\1|p' Dockerfile)
	GOMODCACHE=$modules GOPROXY=$proxy GOBIN=$work/bin CGO_ENABLED=0 go install -trimpath "$bill"
	mv "$modules/cache/download" "$context/proxy"
	build "$image" "$context"
}

images() { sed -nE "s|^ *image: $1:||p; s|^FROM $1:([^ ]*).*|\1|p" compose.yaml compose.zookeeper.yaml Dockerfile | sort -u; }

debian
for version in $(images golang); do golang "$version"; done
for version in $(images apache/kafka); do kafka "$version"; done
for version in $(images clickhouse/clickhouse-server); do clickhouse "$version"; done

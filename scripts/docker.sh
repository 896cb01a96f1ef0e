#!/usr/bin/env bash
# Runs a command with a Docker daemon of its own, started by hand on a directory
# that is removed afterwards, and with Docker Compose v2:
#
#   scripts/docker.sh COMMAND [ARGUMENT...]
#
# Where DOCKER_HOST is set, that daemon is used instead. Exit code 75 says that no
# daemon can run here: no root, no namespaces, no iptables.
set -euo pipefail

compose_version=v2.40.3
unavailable=75

die() {
	echo "docker: $*" >&2
	exit 1
}

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice
mkdir -p "$cache"

if [ -z "${DOCKER_HOST:-}" ]; then
	"$(dirname "$0")/install-tools.sh" docker dockerd iptables >&2 || exit $unavailable
	dir=$(mktemp -d /var/tmp/sluice-docker-XXXXXX) # on a disk, whatever TMPDIR is
	dockerd --data-root "$dir/data" --exec-root "$dir/exec" -p "$dir/pid" -H "unix://$dir/sock" >"$dir/log" 2>&1 &
	daemon=$!
	stop() {
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
		# The daemon leaves the mounts of a container that it could not end.
		sed -n "s|^[^ ]* \($dir/[^ ]*\) .*|\1|p" /proc/mounts | sort -r | xargs -r umount 2>/dev/null || true
		rm -rf --one-file-system "$dir"
	}
	trap stop EXIT
	trap 'exit 1' HUP INT TERM
	export DOCKER_HOST=unix://$dir/sock
	for _ in $(seq 300); do
		docker version >/dev/null 2>&1 && break
		if ! kill -0 "$daemon" 2>/dev/null; then
			tail -n 20 "$dir/log" >&2
			echo "docker: no daemon can run here" >&2
			exit $unavailable
		fi
		sleep 0.1
	done
	docker version >/dev/null || { tail -n 20 "$dir/log" >&2; die "the daemon does not answer"; }
fi

# Compose is published as a Go module too.
if ! docker compose version >/dev/null 2>&1; then
	plugin=$cache/docker-compose-$compose_version
	if [ ! -x "$plugin" ]; then
		work=$(mktemp -d "$cache/.compose.XXXXXX")
		(cd "$work" && go mod init compose && go mod edit -require "github.com/docker/compose/v2@$compose_version" &&
			go mod tidy -e && go build -mod=mod -trimpath -ldflags "-X github.com/docker/compose/v2/internal.Version=$compose_version" -o plugin github.com/docker/compose/v2/cmd) >"$work/log" 2>&1 ||
			{ cat "$work/log" >&2; die "could not build Docker Compose"; }
		mv "$work/plugin" "$plugin"
		rm -rf "$work"
	fi
	mkdir -p "$HOME/.docker/cli-plugins"
	ln -sf "$plugin" "$HOME/.docker/cli-plugins/docker-compose"
fi

"$@"

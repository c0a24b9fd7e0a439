# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts that source this
# Names and helpers that the scripts of this folder share. To be sourced.
#
# Every name on the machine outside the checkout (network namespace, cgroup, run
# folder, clusters, Docker network) holds a digest of the checkout's path, so two
# checkouts never meet.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
checkout_id=$(printf %s "$checkout" | sha256sum | cut -c1-8)
work=$checkout/.work
tools=$checkout/e2e/tools.sh
network=standfast-$checkout_id

# Of our own Docker (own-docker.sh). Sockets are in a folder with a short path, as a
# checkout's path may be longer than the 108 characters that a socket's may have.
run=/run/standfast-$checkout_id
own_socket=$run/docker.sock

say() { echo "cluster: $*" >&2; }
die() {
  say "$*"
  exit 1
}

wait_for() { # TENTHS_OF_A_SECOND COMMAND...
  local left=$1
  shift
  while ! "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || return 1
    sleep 0.1
  done
}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

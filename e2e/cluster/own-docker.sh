#!/usr/bin/env bash
# A Docker of this checkout's own, for a machine where no working one is found.
#
#   own-docker.sh up                  start it; clean up first what a killed run left
#   own-docker.sh is-up
#   own-docker.sh down                stop it and leave nothing behind
#   own-docker.sh exec COMMAND...     run a command in its network namespace
#   own-docker.sh relay PORT          make 127.0.0.1:PORT of that namespace reachable as
#                                     127.0.0.1:PORT of the machine
#   own-docker.sh unrelay PORT
#
# It runs in a network namespace of its own: the machine's network (bridges, firewall,
# routes) is not touched, and nothing inside can reach outside. Everything that it
# starts is in one cgroup, so that whatever became of it can be found and ended.
# Needs root and asks sudo for it.
set -euo pipefail

# shellcheck source=e2e/cluster/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH "$0" "$@"
fi
PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH

namespace=standfast-$checkout_id
data=$work/docker
cgroup=standfast-$checkout_id

# One hierarchy in which every process of ours can be found.
cgroup_root() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
  else
    echo /sys/fs/cgroup/pids
  fi
}

in_namespace() { # `ip netns exec` would remount /sys and hide the cgroups
  nsenter --net="/run/netns/$namespace" "$@"
}

# Starts a program that outlives this script, in our cgroup and with no file of the
# caller's open (a lock would be held, a pipe never close).
daemon() { # NAME COMMAND...
  local name=$1
  shift
  (
    echo "$BASHPID" >"$(cgroup_root)/$cgroup/daemons/cgroup.procs"
    exec setsid "$@" </dev/null >>"$run/$name.log" 2>&1 9>&-
  ) &
}

our_processes() {
  find "$(cgroup_root)/$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null
}

is_ours() { our_processes | grep -qx "$1"; } # PID
is_gone() { ! is_ours "$1"; }

is_up() { /usr/bin/docker -H "unix://$own_socket" version >/dev/null 2>&1; }

has_every_capability() { # CAP_SYS_RESOURCE, that is: number 24
  local bounding
  bounding=$(awk '/^CapBnd:/ {print $2}' /proc/self/status)
  (((16#$bounding >> 24) & 1))
}

write_configuration() {
  local runtime=runc
  has_every_capability || runtime=standfast
  # A containerd of our own: dockerd would otherwise join the machine's, if that runs.
  cat >"$run/containerd.toml" <<TOML
version = 2
root = "$data/containerd"
state = "$run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$run/containerd.sock"
TOML
  jq -n --arg run "$run" --arg data "$data" --arg cgroup "/$cgroup/containers" \
    --arg runtime "$runtime" --arg group "${SUDO_GID:-0}" \
    --arg wrapper "$checkout/e2e/cluster/runc-without-missing-capabilities" '{
      "data-root": "\($data)/docker",
      "exec-root": "\($run)/docker",
      "pidfile": "\($run)/docker.pid",
      "hosts": ["unix://\($run)/docker.sock"],
      "group": $group,
      "containerd": "\($run)/containerd.sock",
      "cgroup-parent": $cgroup,
      "exec-opts": ["native.cgroupdriver=cgroupfs"],
      "oom-score-adjust": 0,
      "default-runtime": $runtime,
      "runtimes": {"standfast": {"path": $wrapper}}
    }' >"$run/docker.json"
}

up() {
  ! is_up || return 0
  down # what a killed run left
  mkdir -p "$run" "$data" "$(cgroup_root)/$cgroup/daemons"
  chmod 755 "$run"
  ip netns add "$namespace"
  in_namespace ip link set lo up
  write_configuration
  daemon containerd nsenter --net="/run/netns/$namespace" containerd --config "$run/containerd.toml"
  wait_for 300 test -S "$run/containerd.sock" || fail containerd
  daemon docker nsenter --net="/run/netns/$namespace" dockerd --config-file "$run/docker.json"
  wait_for 600 is_up || fail docker
}

fail() { # NAME
  say "$1 does not start:"
  tail -n 20 "$run/$1.log" >&2
  exit 1
}

down() {
  stop_dockerd
  kill_processes
  remove_sockets
  remove_mounts
  if [ -e "/run/netns/$namespace" ]; then
    ip netns del "$namespace"
  fi
  find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
  rm -rf "$run" "$data"
}

# Asked to stop, Docker takes down its bridges and containers by itself.
stop_dockerd() {
  local pid
  pid=$(cat "$run/docker.pid" 2>/dev/null) || return 0
  ! is_ours "$pid" || kill "$pid"
  wait_for 150 is_gone "$pid" || say "dockerd does not stop; killing it"
}

kill_processes() {
  local processes
  for _ in $(seq 100); do
    mapfile -t processes < <(our_processes)
    [ ${#processes[@]} -gt 0 ] || return 0
    kill -KILL "${processes[@]}" 2>/dev/null || true
    sleep 0.1
  done
  die "these processes cannot be ended: ${processes[*]}"
}

# A shim that was killed leaves its socket in a folder that all containerds share.
remove_sockets() {
  local file
  for file in "$run"/containerd/*/*/*/address; do
    [ ! -e "$file" ] || rm -f "$(sed 's|^unix://||' "$file")"
  done
}

remove_mounts() {
  local mount
  # Field 5 is the mount point; the last mounted comes first.
  awk -v run="$run/" -v data="$data/" 'index($5, run) == 1 || index($5, data) == 1 {print $5}' \
    /proc/self/mountinfo | tac | while read -r mount; do
    umount "$(printf '%b' "$mount")" 2>/dev/null || umount --lazy "$(printf '%b' "$mount")" || true
  done
}

# Two processes with a socket file between them, one on each side: files, unlike
# ports, are seen from every network namespace.
relay() { # PORT
  local port=$1 socket=$run/relay-$1.sock
  daemon "relay-$port" nsenter --net="/run/netns/$namespace" \
    socat -t 10 "UNIX-LISTEN:$socket,fork,unlink-early" "TCP:127.0.0.1:$port"
  daemon "relay-$port" \
    socat -t 10 "TCP-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork" "UNIX-CONNECT:$socket"
  echo "$!" >"$run/relay-$port.pid"
  wait_for 50 listening "$port" || die "cannot listen on 127.0.0.1:$port"
}

listening() { # PORT: whether our own relay listens there, not somebody else
  local pid inode
  pid=$(cat "$run/relay-$1.pid")
  inode=$(awk -v address="0100007F:$(printf %04X "$1")" \
    '$2 == address && $4 == "0A" {print $10}' /proc/net/tcp)
  [ -n "$inode" ] && find "/proc/$pid/fd" -lname "socket:\[$inode\]" | grep -q .
}

unrelay() { # PORT
  local pid
  for pid in $(our_processes); do
    if grep -qs "$run/relay-$1\.sock" "/proc/$pid/cmdline"; then
      kill "$pid" 2>/dev/null || true
    fi
  done
  rm -f "$run/relay-$1".{sock,pid,log}
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  up | down | relay | unrelay) "$verb" "$@" ;;
  is-up) is_up ;;
  exec)
    # Only to enter the namespace takes root.
    if [ -n "${SUDO_UID:-}" ]; then
      in_namespace setpriv --reuid "$SUDO_UID" --regid "$SUDO_GID" --init-groups \
        env "HOME=$(getent passwd "$SUDO_UID" | cut -d: -f6)" "$@"
    else
      in_namespace "$@"
    fi
    ;;
  *) die "usage: own-docker.sh up | is-up | down | exec COMMAND... | relay PORT | unrelay PORT" ;;
esac

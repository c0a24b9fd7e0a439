#!/usr/bin/env bash
# Kubernetes clusters with real nodes (kind), for the end-to-end tests and the demo.
#
#   cluster.sh up NAME [--two-regions] [--workers N]
#                                  create the cluster NAME (with --two-regions the
#                                  clusters NAME-east and NAME-west); one of that name
#                                  that is still there is deleted first
#   cluster.sh down NAME           delete it, and NAME-east and NAME-west
#   cluster.sh down --all          delete all clusters of this checkout
#   cluster.sh list                their names
#   cluster.sh load NAME IMAGE...  copy images into the nodes: names of images that
#                                  `make images` has built, or archives
#   cluster.sh fetch               build or pull what clusters are made of
#   cluster.sh kubeconfig NAME     print the path of the cluster's own kubeconfig
#   cluster.sh exec NAME -- COMMAND...
#                                  run a command where the nodes' and services' own
#                                  addresses can be reached, with KUBECONFIG set
#   cluster.sh with NAME [--load IMAGE]... -- COMMAND...
#                                  up, COMMAND, down, whatever happens; the logs of
#                                  a run that failed are kept in .work/logs/NAME
#   cluster.sh logs NAME FOLDER    copy the logs of the nodes and their pods
#   cluster.sh cut NAME            take the nodes off the network that regions share
#   cluster.sh heal NAME           put them back
#   cluster.sh docker ARGUMENT...  the client of the Docker that is used
#
# `.work/NAME/` holds what belongs to a cluster: its kubeconfig, which works for any
# client on this machine, and the commands `kubectl` and `helm` that already use it.
#
# STANDFAST_DOCKER=host uses the machine's Docker and kind's published node image,
# STANDFAST_DOCKER=own a Docker of this checkout's own (own-docker.sh) and a node
# image that is built here. By default: host if it works and the image can be had.
set -euo pipefail

# shellcheck source=e2e/cluster/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=e2e/tools.env
source "$checkout/e2e/tools.env"

here=$checkout/e2e/cluster
export KIND_EXPERIMENTAL_DOCKER_NETWORK=$network

# --- Which Docker ---------------------------------------------------------------

# own or host. What runs already decides, so that every verb means the same Docker.
docker_mode() {
  if [ -e "$work/docker.mode" ]; then
    cat "$work/docker.mode"
  else
    choose_docker
  fi
}

choose_docker() {
  case ${STANDFAST_DOCKER:-} in
    own | host) echo "$STANDFAST_DOCKER" ;;
    '') if host_docker_works; then echo host; else echo own; fi ;;
    *) die "STANDFAST_DOCKER is '$STANDFAST_DOCKER'; it can be own or host" ;;
  esac
}

host_docker_works() {
  command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1 || return 1
  docker image inspect "$KIND_NODE_IMAGE" >/dev/null 2>&1 && return 0
  say "pulling $KIND_NODE_IMAGE"
  timeout 900 docker pull --quiet "$KIND_NODE_IMAGE" >/dev/null 2>&1
}

# Sets up this process for the Docker of this mode: kind and docker find it by
# themselves afterwards.
use_docker() { # MODE
  [ "$1" = own ] || return 0
  export DOCKER_HOST=unix://$own_socket
  # Ahead of a placeholder of the same name that some machines carry.
  mkdir -p "$work/bin"
  ln -sfn /usr/bin/docker "$work/bin/docker"
  PATH=$work/bin:$PATH
}

start_docker() {
  local mode image
  mkdir -p "$work"
  mode=$(docker_mode)
  if [ "$mode" = own ]; then
    "$tools" apt build cluster
    [ -x /usr/bin/docker ] || "$tools" apt docker-client # apart, in newer distributions
    "$here/own-docker.sh" up
  fi
  echo "$mode" >"$work/docker.mode"
  use_docker "$mode"
  docker network inspect "$network" >/dev/null 2>&1 || create_network
  image=$(node_image "$mode")
  docker image inspect "$image" >/dev/null 2>&1 || import_node_image "$image"
}

# The digest in the name makes a change of the node's files a new image.
node_image() { # MODE
  if [ "$1" = own ]; then
    echo "standfast-node:$(basename "$(dirname "$("$tools" node-image)")")"
  else
    echo "$KIND_NODE_IMAGE"
  fi
}

# kind would make the network by itself, but only in one whose range was asked for can
# a node that was cut off get its address back. The range is one that Docker has picked.
create_network() {
  local range
  docker network create "$network" >/dev/null
  range=$(docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' "$network")
  docker network rm "$network" >/dev/null
  docker network create --subnet "$range" "$network" >/dev/null
}

import_node_image() { # IMAGE
  say "importing the node image"
  docker import \
    --change 'ENTRYPOINT ["/usr/local/bin/entrypoint"]' \
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin container=docker' \
    "$("$tools" node-image)" "$1" >/dev/null
}

stop_docker() {
  if [ "$(docker_mode)" = own ]; then
    "$here/own-docker.sh" down
  elif docker network inspect "$network" >/dev/null 2>&1; then
    docker network rm "$network" >/dev/null
  fi
  rm -f "$work/docker.mode" "$work/bin/docker"
  rmdir "$work/bin" 2>/dev/null || true
}

# --- One cluster ----------------------------------------------------------------

kind_name() { echo "$1-$checkout_id"; }
kind() { "$(with_tool kind)" "$@"; }
with_tool() { "$tools" "$1"; }
node_names() { kind get nodes --name "$(kind_name "$1")" 2>/dev/null; }

# The folder of a cluster is there from before its creation until after its deletion,
# so it also tells which clusters have to be cleaned up.
clusters() {
  local file
  for file in "$work"/*/port; do
    [ ! -e "$file" ] || basename "$(dirname "$file")"
  done
}

expect_cluster() { # NAME
  [ -e "$work/$1/kubeconfig" ] || die "there is no cluster $1; there are: $(clusters | paste -sd ' ')"
}

# Only one process of a checkout starts or stops Docker, or picks a port, at a time.
locked() {
  mkdir -p "$work"
  (
    flock 9
    "$@"
  ) 9>"$work/cluster.lock"
}

# Below the range from which the system takes ports for connections, so that none
# gets in the way while the cluster starts. Where to begin depends on the checkout.
free_port() {
  local port=$((20000 + 16#$checkout_id % 8000))
  while cat "$work"/*/port 2>/dev/null | grep -qx "$port" || in_use "$port"; do
    port=$((port + 1))
  done
  echo "$port"
}

in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

prepare() { # NAME: what has to happen before kind creates it
  local name=$1 port
  if [ "$(cat "$work/docker.mode" 2>/dev/null)" = own ] && ! "$here/own-docker.sh" is-up; then
    forget_everything
  fi
  if [ -n "${STANDFAST_DOCKER:-}" ] && [ "$(docker_mode)" != "$STANDFAST_DOCKER" ]; then
    die "clusters of this checkout are up with STANDFAST_DOCKER=$(docker_mode); take them down first"
  fi
  [ ! -e "$work/$name/port" ] || delete "$name"
  port=$(free_port)
  mkdir -p "$work/$name"
  echo "$port" >"$work/$name/port"
  start_docker
  if [ "$(docker_mode)" = own ]; then
    "$here/own-docker.sh" relay "$port"
  fi
}

# After a crash or a reboot nothing of our own Docker is worth keeping.
forget_everything() {
  local name
  "$here/own-docker.sh" down
  for name in $(clusters); do
    rm -rf "${work:?}/$name"
  done
  rm -f "$work/docker.mode"
}

kind_config() { # NAME WORKERS
  cat <<YAML
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  apiServerAddress: 127.0.0.1
  apiServerPort: $(cat "$work/$1/port")
YAML
  if [ "$(docker_mode)" = own ]; then
    cat <<YAML
  kubeProxyMode: nftables
kubeadmConfigPatches:
  - |
    kind: ClusterConfiguration
    controllerManager:
      extraArgs:
        enable-hostpath-provisioner: "true"
YAML
  fi
  echo "nodes:"
  echo "  - role: control-plane"
  for _ in $(seq "$2"); do
    echo "  - role: worker"
  done
}

create() { # NAME WORKERS
  local name=$1 workers=$2 mode
  SECONDS=0
  locked prepare "$name"
  mode=$(docker_mode)
  use_docker "$mode"
  kind_config "$name" "$workers" >"$work/$name/kind.yaml"
  say "creating $name ($mode Docker)"
  if ! kind create cluster --name "$(kind_name "$name")" --image "$(node_image "$mode")" \
    --config "$work/$name/kind.yaml" --kubeconfig "$work/$name/kubeconfig" \
    --wait 180s --retain >"$work/$name/kind.log" 2>&1; then
    cat "$work/$name/kind.log" >&2
    logs "$name" "$work/logs/$name"
    die "cannot create $name; the logs of its nodes are in $work/logs/$name"
  fi
  write_command "$name" kubectl
  write_command "$name" helm
  say "$name is up after ${SECONDS} s; kubeconfig: $work/$name/kubeconfig"
}

write_command() { # NAME TOOL
  cat >"$work/$1/$2" <<SH
#!/bin/sh
# $2 for the cluster $1.
KUBECONFIG='$work/$1/kubeconfig' exec '$(with_tool "$2")' "\$@"
SH
  chmod +x "$work/$1/$2"
}

delete() { # NAME
  local name=$1
  use_docker "$(docker_mode)"
  if docker version >/dev/null 2>&1; then
    kind delete cluster --quiet --name "$(kind_name "$name")" --kubeconfig "$work/$name/kubeconfig"
    if [ "$(docker_mode)" = own ]; then
      "$here/own-docker.sh" unrelay "$(cat "$work/$name/port")"
    fi
  fi
  rm -rf "${work:?}/$name"
}

delete_and_tidy() { # NAME...
  local name
  for name in "$@"; do
    [ ! -e "$work/$name/port" ] || delete "$name"
  done
  [ -n "$(clusters)" ] || stop_docker
}

# --- Verbs ----------------------------------------------------------------------

up() { # NAME [--two-regions] [--workers N]
  local name=${1:?the name of the cluster} workers=0 regions=()
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --two-regions) regions=(east west) ;;
      --workers)
        workers=$2
        shift
        ;;
      *) die "up: unknown option $1" ;;
    esac
    shift
  done
  expect_name "$name"
  if [ ${#regions[@]} -eq 0 ]; then
    create "$name" "$workers"
  else
    create "$name-${regions[0]}" "$workers" &
    create "$name-${regions[1]}" "$workers"
    wait $!
  fi
}

expect_name() { # NAME
  case $1 in
    docker | images | logs | bin | bots | control-plane | control-planes) die "$1 is taken; call the cluster something else" ;;
  esac
  [[ $1 =~ ^[a-z]([a-z0-9-]{0,20}[a-z0-9])?$ ]] ||
    die "'$1' is no name for a cluster: use lower-case letters, digits and dashes, at most 22"
}

down() { # NAME | --all
  local names
  if [ "${1:?the name of the cluster, or --all}" = --all ]; then
    mapfile -t names < <(clusters)
  else
    names=("$1" "$1-east" "$1-west")
  fi
  locked delete_and_tidy "${names[@]}"
}

load() { # NAME IMAGE...
  local name=$1 image archive
  shift
  expect_cluster "$name"
  use_docker "$(docker_mode)"
  for image in "$@"; do
    archive=$image
    [ -f "$archive" ] || archive=$work/images/$(basename "${image//:/-}").tar
    [ -f "$archive" ] || die "no image $image; \`make images\` builds them"
    kind load image-archive "$archive" --name "$(kind_name "$name")"
  done
}

# Without starting anything.
fetch() {
  [ "$(docker_mode)" = own ] || return 0 # pulled when that was found out
  "$tools" apt build cluster
  "$tools" node-image >/dev/null
}

kubeconfig() { # NAME
  expect_cluster "$1"
  echo "$work/$1/kubeconfig"
}

run_inside() { # NAME -- COMMAND...
  local name=$1
  shift
  [ "${1:-}" != -- ] || shift
  expect_cluster "$name"
  use_docker "$(docker_mode)"
  export KUBECONFIG=$work/$name/kubeconfig
  PATH=$work/$name:$PATH
  if [ "$(docker_mode)" = own ]; then
    exec "$here/own-docker.sh" exec env "PATH=$PATH" "KUBECONFIG=$KUBECONFIG" "$@"
  else
    exec "$@"
  fi
}

with() { # NAME [--load IMAGE]... -- COMMAND...
  local name=$1 images=() status=0
  shift
  while [ "${1:-}" != -- ]; do
    [ "${1:-}" = --load ] || die "with: --load IMAGE or -- is expected, not '${1:-}'"
    images+=("$2")
    shift 2
  done
  shift
  # shellcheck disable=SC2064 # the name of now
  trap "'$here/cluster.sh' down '$name'" EXIT
  up "$name"
  [ ${#images[@]} -eq 0 ] || load "$name" "${images[@]}"
  env "PATH=$work/$name:$PATH" "KUBECONFIG=$work/$name/kubeconfig" "KUBECONFIG_E2E=$work/$name/kubeconfig" \
    "STANDFAST_CLUSTER=$name" "$@" || status=$?
  if [ "$status" -ne 0 ]; then
    logs "$name" "$work/logs/$name"
    say "failed with status $status; the logs of the nodes and pods are in $work/logs/$name"
  fi
  return "$status"
}

logs() { # NAME FOLDER
  local node
  use_docker "$(docker_mode)"
  rm -rf "$2"
  for node in $(node_names "$1"); do
    mkdir -p "$2/$node"
    docker logs "$node" >"$2/$node/node.log" 2>&1 || true
    docker cp "$node:/var/log" "$2/$node/" >/dev/null || true
  done
}

cut_off() { # NAME
  local node
  expect_cluster "$1"
  use_docker "$(docker_mode)"
  for node in $(node_names "$1"); do
    docker inspect --format "{{(index .NetworkSettings.Networks \"$network\").IPAddress}}" "$node" \
      >"$work/$1/$node.address"
    docker network disconnect "$network" "$node"
  done
}

heal() { # NAME
  local node
  expect_cluster "$1"
  use_docker "$(docker_mode)"
  for node in $(node_names "$1"); do
    # The nodes' certificates and the routes between them name the addresses.
    docker network connect --ip "$(cat "$work/$1/$node.address")" "$network" "$node"
    rm "$work/$1/$node.address"
  done
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  up | down | load | fetch | kubeconfig | with | logs | heal) "$verb" "$@" ;;
  cut) cut_off "$@" ;;
  exec) run_inside "$@" ;;
  list) clusters ;;
  docker)
    use_docker "$(docker_mode)"
    exec docker "$@"
    ;;
  *)
    sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac

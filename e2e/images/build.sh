#!/usr/bin/env bash
# Builds the images of the product and of the demo, all or those named:
#
#   build.sh [standfast] [standfast-paper-venue] [standfast-demo-bot]
#   build.sh clean     remove from the machine's Docker what this checkout has built
#
# as localhost/NAME:dev, and as the archive .work/images/NAME-dev.tar, from which
# `cluster.sh load` takes it: where two checkouts use the machine's Docker, the name
# belongs to the one that was last. The binaries have to be there already, in
# target/release or, with STANDFAST_PROFILE=debug, in target/debug (`make images` says
# when which).
# Uses Docker where it works and its base image can be had, otherwise buildah, with a
# base image made from the distribution's packages. STANDFAST_DOCKER decides as in
# cluster.sh: host is Docker, own is buildah.
set -euo pipefail

# shellcheck source=e2e/cluster/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cluster/lib.sh"

images=$work/images
binaries=${CARGO_TARGET_DIR:-$checkout/target}/${STANDFAST_PROFILE:-release}
tag=dev
label=standfast.dev/checkout=$checkout_id # of what Docker keeps

# The published image of the distribution that the binaries were built on.
published_base() {
  # shellcheck source=/dev/null
  (
    source /etc/os-release
    case $ID in
      debian) echo "debian:$VERSION_CODENAME-slim" ;;
      ubuntu) echo "ubuntu:$VERSION_ID" ;;
      *)
        say "the images are based on Debian; the binaries of $ID may need a newer C library"
        echo debian:trixie-slim
        ;;
    esac
  )
}

docker_answers() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

docker_works() {
  local base
  base=$(published_base)
  docker_answers || return 1
  docker image inspect "$base" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$base" >/dev/null 2>&1
}

choose_builder() {
  case ${STANDFAST_DOCKER:-} in
    host) echo docker ;;
    own) echo buildah ;;
    '') if docker_works; then echo docker; else echo buildah; fi ;;
    *) die "STANDFAST_DOCKER is '$STANDFAST_DOCKER'; it can be own or host" ;;
  esac
}

# Needs no daemon and no namespaces; the storage is this checkout's own.
run_buildah() {
  as_root buildah --root "$images/storage" --runroot "$images/run" --storage-driver vfs "$@"
}

buildah_base() {
  local archive base container
  archive=$("$tools" base-image)
  base=localhost/standfast-base:$(basename "$(dirname "$archive")")
  if ! run_buildah inspect --type image "$base" >/dev/null 2>&1; then
    container=$(run_buildah from scratch)
    run_buildah add --quiet "$container" "$archive" / >/dev/null
    run_buildah commit --quiet --rm "$container" "$base" >/dev/null
  fi
  echo "$base"
}

# The context of a build: the Dockerfile and what it copies, with modes that do not
# depend on the umask of whoever checked out.
stage() { # NAME
  local context=$images/context/$1
  rm -rf "$context"
  mkdir -p "$context"
  case $1 in
    standfast)
      install -m 644 "$checkout/images/standfast/Dockerfile" "$context/Dockerfile"
      stage_binary standfast "$context"
      ;;
    standfast-paper-venue)
      install -m 644 "$checkout/e2e/images/paper-venue/Dockerfile" "$context/Dockerfile"
      stage_binary paper-venue "$context"
      ;;
    standfast-demo-bot)
      cp -R "$checkout/e2e/bot/." "$context"
      chmod -R a+rX "$context"
      ;;
    *) die "there is no image $1" ;;
  esac
}

stage_binary() { # BINARY CONTEXT
  [ -x "$binaries/$1" ] || die "$binaries/$1 is missing; \`make images\` builds it first"
  # Without symbols: those of a debug build are ten times the program.
  install --strip -m 755 "$binaries/$1" "$2/$1"
}

build_with_docker() { # NAME
  local archive=$images/$1-$tag.tar image=localhost/$1:$tag own=localhost/$1:$tag-$checkout_id id
  docker build --quiet --build-arg "BASE=$(published_base)" --label "$label" --tag "$own" "$images/context/$1" >/dev/null
  id=$(image_id "$own")
  docker tag "$own" "$image"
  docker image prune --force --filter "label=$label" >/dev/null # the build before
  if [ -e "$archive" ] && [ "$(cat "$archive.stamp" 2>/dev/null)" = "$id" ]; then
    return
  fi
  # The name goes into the archive, so it has to be ours from here until it was saved.
  while :; do
    docker tag "$own" "$image"
    docker save --output "$archive.partial" "$image"
    [ "$(image_id "$image")" != "$id" ] || break
  done
  keep "$archive" "$id"
}

image_id() { docker image inspect --format '{{.Id}}' "$1"; } # IMAGE

# Puts the archive in place, with what tells whether it is out of date.
keep() { # ARCHIVE STAMP
  rm -f "$1.stamp"
  mv "$1.partial" "$1"
  echo "$2" >"$1.stamp"
}

clean() {
  local found
  docker_answers || return 0
  mapfile -t found < <(docker image ls --quiet --filter "label=$label" | sort -u)
  # By force: each has two names.
  [ ${#found[@]} -eq 0 ] || docker image rm --force "${found[@]}" >/dev/null
}

# Packages are fetched while an image is built, maybe through a proxy whose authority
# only this machine knows. pip is told of it for the time of the build; the images
# themselves do not get to trust it.
pip_configuration() {
  local bundle=/etc/ssl/certs/ca-certificates.crt
  [ -e "$bundle" ] || return 0
  printf '[global]\ncert = /run/machine-authorities.crt\n' >"$images/pip.conf"
  echo "--volume=$bundle:/run/machine-authorities.crt:ro"
  echo "--volume=$images/pip.conf:/etc/xdg/pip/pip.conf:ro"
}

build_with_buildah() { # NAME BASE
  local archive=$images/$1-$tag.tar volumes stamp
  # Without a daemon even a build that changes nothing copies whole file systems.
  stamp=$(cd "$images/context/$1" && { echo "$2" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } | sha256sum)
  if [ -e "$archive" ] && [ "$(cat "$archive.stamp" 2>/dev/null)" = "$stamp" ]; then
    say "$1 is up to date"
    return
  fi
  mapfile -t volumes < <(pip_configuration)
  run_buildah build --quiet --pull-never --layers --isolation chroot --network host "${volumes[@]}" \
    --build-arg "BASE=$2" --tag "localhost/$1:$tag" "$images/context/$1"
  rm -f "$archive.partial"
  run_buildah push --quiet "localhost/$1:$tag" "docker-archive:$archive.partial:localhost/$1:$tag"
  keep "$archive" "$stamp"
}

build() { # NAME...
  local name builder base
  builder=$(choose_builder)
  if [ "$builder" = buildah ]; then
    "$tools" apt images
    base=$(buildah_base)
  fi
  for name in "$@"; do
    stage "$name"
    say "building localhost/$name:$tag with $builder"
    "build_with_$builder" "$name" "${base:-}"
  done
}

mkdir -p "$images"
exec 9>"$images/lock"
flock 9
if [ "${1:-}" = clean ]; then
  clean
elif [ $# -gt 0 ]; then
  build "$@"
else
  build standfast standfast-paper-venue standfast-demo-bot
fi

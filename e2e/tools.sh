#!/usr/bin/env bash
# Builds the tools that the tests and the demo need and prints where they are.
#
#   tools.sh NAME...      print the path of each program, building what is missing
#   tools.sh apt GROUP... install the Debian packages that are missing, of the groups
#                         build, lint, tests, images, cluster, docker-client, bench
#   tools.sh clean        throw away everything built
#
# NAME is one of
#   controlplane   all Kubernetes components in one binary; in the same folder a
#                  symlink for each: kube-apiserver, etcd, kube-controller-manager,
#                  kube-scheduler, kube-proxy, kubelet, kubeadm, kubectl
#   kubectl        the symlink above
#   coredns        the DNS server of a cluster, for the node image
#   helm, kind
#   node-image     the root filesystem of a cluster node, as a tar for `docker import`
#   base-image     a minimal root filesystem of this machine's own distribution, as a
#                  tar, for images that cannot be pulled
#
# Everything is built from source with the machine's Go, because prebuilt binaries
# cannot be had everywhere. Results are shared by all checkouts of a machine, in
# ${STANDFAST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/standfast}, under a name that
# holds the version. Two callers never build the same thing twice or see half of it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=e2e/tools.env
source "$here/tools.env"

cache=${STANDFAST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/standfast}
components=(
  kube-apiserver etcd kube-controller-manager kube-scheduler kube-proxy
  kubelet kubeadm kubectl
)

say() { echo "tools: $*" >&2; }
die() { say "$*"; exit 1; }

need_go() {
  command -v go >/dev/null || die "Go is missing; install it (the go directive of" \
    "e2e/controlplane/go.mod says which) and run this again"
}

# once FOLDER COMMAND...: runs COMMAND with the name of an empty folder to fill, and
# puts that folder in place in one step. Whoever comes second waits for the first.
once() {
  local folder=$1 partial
  shift
  [ -e "$folder" ] && return
  mkdir -p "$(dirname "$folder")"
  (
    flock --nonblock 9 || { say "waiting for $(basename "$folder"), which is being built" && flock 9; }
    [ -e "$folder" ] && exit
    partial=$folder.partial
    rm -rf "$partial" # a build that was killed
    mkdir "$partial"
    SECONDS=0
    say "building $(basename "$folder")"
    "$@" "$partial"
    mv "$partial" "$folder"
    say "built $(basename "$folder") in ${SECONDS} s"
  ) 9>"$folder.lock"
}

go_install() { # PACKAGE@VERSION FOLDER
  GOBIN=$2 CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install -ldflags "-s -w" "$1"
}

# A module of this repository. Its name in the cache holds a digest of the sources,
# so that a change of any dependency is a new version.
module_folder() { # MODULE VERSION
  local sources
  sources=$(cat "$here/$1"/{go.mod,go.sum,main.go} | sha256sum | cut -c1-12)
  echo "$cache/$1-$2-$sources"
}

# The versions in tools.env and in go.mod have to be the same.
expect_requirement() { # MODULE REQUIREMENT VERSION
  grep -Eq "^(require|	)? ?$2 $3$" "$here/$1/go.mod" ||
    die "e2e/$1/go.mod does not ask for $2 $3, as e2e/tools.env does"
}

build_module() { # MODULE LDFLAGS FOLDER
  cd "$here/$1"
  CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly" GOWORK=off \
    go build -ldflags "$2" -o "$3/$1" .
}

build_controlplane() { # FOLDER
  local folder=$1 flags="-s -w" package version name
  version=${KUBERNETES_VERSION#v}
  # Without these the server reports a version that clients cannot parse.
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=v$version"
    flags+=" -X $package.gitMajor=$(cut -d. -f1 <<<"$version")"
    flags+=" -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
  done
  (build_module controlplane "$flags" "$folder")
  for name in "${components[@]}"; do
    ln -s controlplane "$folder/$name"
  done
}

build_coredns() { # FOLDER
  (build_module coredns "-s -w" "$1")
}

# What the node image is made of, in one word.
node_image_folder() {
  local parts
  parts=$(
    basename "$(module_folder controlplane "$KUBERNETES_VERSION")"
    basename "$(module_folder coredns "$COREDNS_VERSION")"
    cd "$here/cluster/node"
    find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  )
  echo "$cache/node-image-$KUBERNETES_VERSION-$NODE_DEBIAN_SUITE-$(sha256sum <<<"$parts" | cut -c1-12)"
}

build_node_image() { # FOLDER
  local controlplane coredns
  controlplane=$(tool controlplane)
  coredns=$(tool coredns)
  as_root env "CONTROLPLANE=$controlplane" "COREDNS=$coredns" "$here/cluster/node/build.sh" "$1"
}

# The suite of this machine: what is built here needs a C library that is not older.
base_suite() {
  # shellcheck source=/dev/null
  (source /etc/os-release && echo "${UBUNTU_CODENAME:-$VERSION_CODENAME}")
}

build_base_image() { # FOLDER
  # Small, as published images are: no documentation, and no caches when an image
  # that is based on this installs packages of its own.
  as_root mmdebstrap --quiet --variant=minbase \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --aptopt='Dir::Cache::pkgcache ""' \
    --aptopt='Dir::Cache::srcpkgcache ""' \
    --aptopt='DPkg::Post-Invoke {"rm -f /var/cache/apt/archives/*.deb";}' \
    "$(base_suite)" "$1/base.tar"
}

tool() { # NAME: builds what is missing and prints the path
  local folder
  case $1 in
    controlplane | kubectl)
      expect_requirement controlplane k8s.io/kubernetes "$KUBERNETES_VERSION"
      folder=$(module_folder controlplane "$KUBERNETES_VERSION")
      [ -e "$folder" ] || need_go
      once "$folder" build_controlplane
      ;;
    coredns)
      expect_requirement coredns github.com/coredns/coredns "$COREDNS_VERSION"
      folder=$(module_folder coredns "$COREDNS_VERSION")
      [ -e "$folder" ] || need_go
      once "$folder" build_coredns
      ;;
    helm)
      folder=$cache/helm-$HELM_VERSION
      [ -e "$folder" ] || need_go
      once "$folder" go_install "helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
      ;;
    kind)
      folder=$cache/kind-$KIND_VERSION
      [ -e "$folder" ] || need_go
      once "$folder" go_install "sigs.k8s.io/kind@$KIND_VERSION"
      ;;
    node-image)
      folder=$(node_image_folder)
      once "$folder" build_node_image
      # These are large. Others that nobody has used for two weeks are not missed.
      touch "$folder" 2>/dev/null || true # a cache of somebody else's
      find "$cache" -maxdepth 1 -name 'node-image-*' -mtime +14 -exec rm -rf {} + 2>/dev/null || true
      echo "$folder/node.tar"
      return
      ;;
    base-image)
      folder=$cache/base-$(base_suite)
      once "$folder" build_base_image
      echo "$folder/base.tar"
      return
      ;;
    *) die "no tool is called $1" ;;
  esac
  echo "$folder/$1"
}

# The Debian packages of each purpose.
apt_packages() { # GROUP
  case $1 in
    build) echo gcc libc6-dev make pkg-config git ca-certificates ;;
    lint) echo shellcheck ;;
    tests) echo postgresql python3-venv tmux ;;
    images) echo buildah mmdebstrap ;;
    cluster)
      echo debian-archive-keyring iproute2 jq mmdebstrap procps python3-minimal socat util-linux
      # Those of a Docker that did not come from the distribution do as well, and its
      # own packages would take their place.
      have_docker_programs || echo docker.io iptables runc
      ;;
    docker-client) echo docker-cli ;;
    bench) echo curl ;;
    *) die "no group of packages is called $1" ;;
  esac
}

# What own-docker.sh runs. (A client elsewhere would be no sign of one: some machines
# carry placeholders by the name of docker.)
have_docker_programs() {
  local program PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  for program in /usr/bin/docker dockerd containerd runc iptables; do
    command -v "$program" >/dev/null || return 1
  done
}

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

apt_install() { # GROUP...
  local group wanted present missing
  wanted=$(for group in "$@"; do apt_packages "$group"; done | tr ' ' '\n' | sort -u)
  # dpkg-query fails when it knows one of the names not at all, as on a new machine.
  # shellcheck disable=SC2086,SC2016 # a list of names; dpkg's own variables
  present=$({ dpkg-query -W -f '${Package} ${Status}\n' $wanted 2>/dev/null || true; } |
    sed -n 's/ install ok installed$//p' | sort -u)
  mapfile -t missing < <(comm -23 <(echo "$wanted") <(echo "$present"))
  if [ ${#missing[@]} -eq 0 ]; then
    # No service of this machine could be started any more.
    ! policy_is_ours || as_root "$here/tools.sh" apt-quietly
    return
  fi
  command -v apt-get >/dev/null || die "this machine has no apt-get; install yourself: ${missing[*]}"
  say "installing ${missing[*]}"
  as_root "$here/tools.sh" apt-quietly "${missing[@]}"
}

# Installs without starting any service: a Docker that starts by itself changes the
# network of the machine, and the tests want it as it was. policy-rc.d is how Debian's
# packages ask; one of somebody else's stays as it is. Without a package, only what a
# run left that was killed is removed.
policy=/usr/sbin/policy-rc.d
policy_mark='# Of e2e/tools.sh of Standfast, for the time of an installation.'

policy_is_ours() { grep -qsxF "$policy_mark" "$policy"; }

apt_quietly() { # [PACKAGE...]
  # One at a time: the first to finish would remove the file of all.
  exec 9>/run/standfast-apt.lock
  flock --nonblock 9 || { say "waiting for another installation" && flock 9; }
  ! policy_is_ours || rm -f "$policy"
  [ $# -gt 0 ] || return 0
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy.standfast"
    chmod 755 "$policy.standfast"
    mv "$policy.standfast" "$policy" # in one step, so that it always carries the mark
  fi
  # Hundreds of lines that nobody reads, unless it fails: as it does where something
  # that the machine has would have to go.
  local said
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  said=$(DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    install -y --no-install-recommends --no-remove "$@" 2>&1) || { echo "$said" >&2; die "apt-get could not install $*"; }
}

main() {
  [ $# -gt 0 ] || die "usage: tools.sh NAME... | apt GROUP... | clean"
  case $1 in
    apt) shift && apt_install "$@" ;;
    apt-quietly) shift && apt_quietly "$@" ;;
    clean) rm -rf "$cache" ;;
    *) for name in "$@"; do tool "$name"; done ;;
  esac
}

main "$@"

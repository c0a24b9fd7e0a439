#!/usr/bin/env bash
# Makes the root filesystem of a cluster node, as a tar for `docker import`.
#
# usage: build.sh FOLDER    writes FOLDER/node.tar; needs root; called by e2e/tools.sh
#
# It stands in for kind's own node image where nothing can be pulled. What kind
# expects of a node is little: a line in the log that says it is up, systemctl for
# two services, containerd's socket, kubeadm and kubectl, /kind/version, the
# manifests of the network and the storage, and all images present.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=e2e/tools.env
source "$here/../../tools.env"
: "${CONTROLPLANE:?the path of the control plane binary}" "${COREDNS:?the path of coredns}"

out=$1
work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

packages=(
  ca-certificates conntrack containerd containernetworking-plugins ethtool hostname
  iproute2 iptables jq kmod mount nftables openssl procps runc socat util-linux
)

debian() {
  local list=${packages[*]}
  mmdebstrap --quiet --variant=minbase --include="${list// /,}" "$NODE_DEBIAN_SUITE" "$root"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
    "$root"/usr/share/{doc,man,locale,info} "$root"/usr/bin/containerd-stress
}

kubernetes() {
  local name
  install -m 755 "$CONTROLPLANE" "$root/usr/bin/controlplane"
  for name in kubelet kubeadm kubectl; do
    ln -s controlplane "$root/usr/bin/$name"
  done
}

images() {
  cc -Os -static -o "$work/pause" "$here/pause.c"
  "$(dirname "$CONTROLPLANE")/kubeadm" config images list \
    --kubernetes-version "$KUBERNETES_VERSION" >"$work/names"
  python3 "$here/images.py" "$work/images.tar" "$root" "$CONTROLPLANE" "$COREDNS" "$work/pause" \
    <"$work/names"
}

configuration() {
  local pause
  pause=$(grep /pause: "$work/names")
  install -m 755 -D -t "$root/usr/local/bin" "$here"/files/{entrypoint,systemctl,node-kubelet}
  install -m 644 -D -t "$root/kind/manifests" "$here"/files/default-{cni,storage}.yaml
  install -m 644 -D "$here/files/template.conflist" "$root/etc/cni/template.conflist"
  mkdir -p "$root/etc/cni/net.d" "$root/etc/containerd"
  sed "s|@PAUSE_IMAGE@|$pause|" "$here/files/containerd.toml" >"$root/etc/containerd/config.toml"
  echo "$KUBERNETES_VERSION" >"$root/kind/version"
  mv "$work/images.tar" "$root/kind/images.tar"
}

debian
kubernetes
images
configuration
tar --create --numeric-owner --one-file-system --directory "$root" --file "$out/node.tar" .

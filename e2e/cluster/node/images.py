"""Writes the images that kubeadm asks for, made of our own builds, as one archive.

usage: images.py OUT ROOT CONTROLPLANE COREDNS PAUSE < names

The names come from `kubeadm config images list`, one a line. ROOT is the root of
the node, from which kube-proxy gets nft and the libraries that it is linked with.
The format is that of `docker save`, which containerd imports.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

FOLDERS = ("dev", "etc", "lib/modules", "proc", "run", "sys", "tmp", "var/lib")
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd")
PATH = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def layer(files, links=(), folders=FOLDERS):
    """A tar of files (target -> source) and symlinks (target -> what it points at)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            info.mode = 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for target, source in sorted(dict(files).items()):
            info = tarfile.TarInfo(target)
            info.size = os.path.getsize(source)
            info.mode = 0o755
            with open(source, "rb") as content:
                tar.addfile(info, content)
        for target, destination in sorted(dict(links).items()):
            info = tarfile.TarInfo(target)
            info.type = tarfile.SYMTYPE
            info.linkname = destination
            tar.addfile(info)
    return data.getvalue()


def with_libraries(root, program):
    """The program inside root and everything that the loader opens for it."""
    listing = subprocess.run(["chroot", root, "ldd", program], check=True, capture_output=True, text=True).stdout
    paths = [program] + [word for word in listing.split() if word.startswith("/")]
    return {path.lstrip("/"): os.path.join(root, inside(root, path)) for path in paths}


def inside(root, path):
    """Follows symlinks as they mean inside root."""
    resolved = subprocess.run(["chroot", root, "readlink", "-f", path], check=True, capture_output=True, text=True)
    return resolved.stdout.strip().lstrip("/")


def main():
    out, root, controlplane, coredns, pause = sys.argv[1:]
    plane = layer(
        {"usr/local/bin/controlplane": controlplane},
        {f"usr/local/bin/{name}": "controlplane" for name in COMPONENTS},
    )
    contents = {name: ([plane], None) for name in COMPONENTS}
    contents["kube-proxy"] = ([plane, layer(with_libraries(root, "/usr/sbin/nft"), folders=())], None)
    contents["coredns"] = ([layer({"coredns": coredns})], ["/coredns"])
    contents["pause"] = ([layer({"pause": pause})], ["/pause"])

    blobs, manifest = {}, []
    for name in sys.stdin.read().split():
        layers, entrypoint = contents[name.rsplit("/", 1)[1].split(":")[0]]
        digests = [hashlib.sha256(content).hexdigest() for content in layers]
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "Env": [PATH]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
        encoded = json.dumps(config).encode()
        config_name = hashlib.sha256(encoded).hexdigest() + ".json"
        blobs[config_name] = encoded
        for digest, content in zip(digests, layers):
            blobs[f"{digest}/layer.tar"] = content
        layer_names = [f"{digest}/layer.tar" for digest in digests]
        manifest.append({"Config": config_name, "RepoTags": [name], "Layers": layer_names})
    blobs["manifest.json"] = json.dumps(manifest).encode()

    with tarfile.open(out, "w") as tar:
        for name, content in blobs.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    main()

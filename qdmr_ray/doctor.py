"""Examines an installation: what it has, and how to get what it lacks (``qdmr doctor``)."""

import ipaddress
import os
import platform
import secrets
import shutil
import socket
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from urllib.parse import urlsplit

from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.storage import open_location

PACKAGES = ("ray", "torch", "torchvision", "numpy", "pyarrow", "pydantic", "safetensors", "lpips")
OLDEST_PYTHON = (3, 11)
# Ray keeps its object store in shared memory; with too little of it, Ray uses a slow disk.
SHARED_MEMORY = "/dev/shm"
LEAST_SHARED_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check; a run fails if a ``needed`` one does."""

    what: str
    found: str
    ok: bool
    remedy: str = ""
    needed: bool = True


def examine(storage: str, address: str | None = None) -> list[Finding]:
    """Runs every check; none of them stops the others. One file is written into ``storage`` and
    deleted. With ``address``, a cluster's jobs API, a check tells whether strangers could use
    it."""
    new_enough = sys.version_info >= OLDEST_PYTHON
    return [
        *(_dashboard(address) if address else ()),
        Finding("Python", platform.python_version(), new_enough, "install Python 3.11 or newer"),
        *(_package(name) for name in PACKAGES),
        _device(),
        _shared_memory(),
        _ray(),
        _storage(storage),
        _weights("VGG16 (LPIPS loss)", "vgg"),
        _weights("VGG19 (semantic term)", "vgg19"),
        _weights("AlexNet (LPIPS metric)", "alex"),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name), ok=True)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", ok=False, remedy=f"pip install {name}")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("GPU", ", ".join(names), ok=True)
    cores = f"none; {os.cpu_count()} CPUs, {torch.get_num_threads()} PyTorch threads"
    remedy = "fine for the demo; full-size training wants a GPU and its CUDA driver"
    return Finding("GPU", cores, ok=False, remedy=remedy, needed=False)


def _shared_memory() -> Finding:
    if not os.path.isdir(SHARED_MEMORY):
        return Finding("shared memory", "none", ok=True)
    free = shutil.disk_usage(SHARED_MEMORY).free
    remedy = f"Ray's object store wants 1 GiB of {SHARED_MEMORY} (docker run --shm-size=2g)"
    ok = free >= LEAST_SHARED_BYTES
    return Finding("shared memory", f"{free / 2**30:.1f} GiB free", ok, remedy, needed=False)


def _ray() -> Finding:
    from qdmr_ray.ray_cluster import ensure_ray

    where = os.environ.get("RAY_ADDRESS", "embedded")
    try:
        ensure_ray()
        import ray

        resources = ray.cluster_resources()
    except QdmrError as error:
        return Finding("Ray", where, ok=False, remedy=str(error))
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return Finding("Ray", f"{where}: {cpus:g} CPUs, {gpus:g} GPUs", ok=True)


def _dashboard(address: str) -> list[Finding]:
    """Checks for a token and for an address that isn't public: anybody who reaches a dashboard
    without a token can run any code on the cluster."""
    host, status = urlsplit(address).hostname or "", 200
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=10):
            pass
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        remedy = f"does not answer ({one_line(error)}); is the tunnel up?"
        return [Finding("dashboard", address, ok=False, remedy=remedy)]
    asks = status in (401, 403)
    if not asks and status != 200:
        remedy = f"no jobs API of a Ray cluster (HTTP status {status})"
        return [Finding("dashboard", address, ok=False, remedy=remedy)]
    token = Finding(
        "dashboard's token",
        "asked for" if asks else "NOT asked for: anybody who reaches it can run code",
        ok=asks,
        remedy="start every node with RAY_AUTH_MODE=token and a token (cluster/README.md)",
    )
    public = _is_public(host)
    reach = Finding(
        "dashboard's address",
        f"{host} is {'public' if public else 'not public'}",
        ok=not public,
        remedy="let it listen on loopback and reach it through a tunnel (ssh -L, kubectl "
        "port-forward, ray dashboard)",
    )
    return [token, reach]


def _is_public(host: str) -> bool:
    """Returns whether a host's name or address is one that the internet reaches."""
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return any(ipaddress.ip_address(address).is_global for address in found)


def _storage(uri: str) -> Finding:
    try:
        location = open_location(uri)
        existed = location.exists()
        file = location.join(f".qdmr-doctor-{secrets.token_hex(4)}")
        file.write_bytes_atomic(b"qdmr")
        file.delete()
        if not existed and not location.is_s3:
            location.delete()
    except QdmrError as error:
        return Finding("storage", uri, ok=False, remedy=str(error))
    return Finding("storage", f"{location.uri} can be written", ok=True)


def _weights(what: str, network: str) -> Finding:
    from qdmr_ray.nets.weights import find_backbone_weights

    try:
        return Finding(what, str(find_backbone_weights(network)), ok=True)
    except QdmrError as error:
        return Finding(what, "missing", ok=False, remedy=str(error), needed=False)

"""A small Ray for tests that need the real thing, shared by the files that one process runs.

Starting Ray and its first workers takes 7 to 13 s of both CPUs, more than most of these tests.
``local_ray`` therefore leaves it running for the next file that asks for the same one;
``conftest.py`` stops it before a file that has no use for it.
"""

from __future__ import annotations

import gc
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private import node, ray_constants, services
from ray._private.parameter import RayParams

# Variables that Ray's processes take over when they start, and that tests change.
_INHERITED = ("AWS_", "QDMR_", "RAY_TRAIN_")
CPUS = 2
_NODE_START_SECONDS = 240.0
_RELEASE_SECONDS = 15.0
_RECEIVING_SECONDS = 120.0
# Below the ports that Linux gives to outgoing connections.
_PORTS = range(20000, 32000)
# Where a node's agents listen. The raylet waits for those that choose a port themselves.
_AGENTS = (
    "dashboard_agent_listen_port",
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
)

# What the running Ray was started with; None while there is none.
_running: tuple[Any, ...] | None = None
_rays_get_node = services.get_node
_rays_init = node.Node.__init__
_rays_start = services.start_ray_process


@contextmanager
def local_ray(*, object_store: int = 200_000_000) -> Iterator[None]:
    """This process's own cluster of one node with 2 CPUs; ``object_store`` in bytes.

    It outlives the block. A later block with the same arguments and environment uses it again.
    """
    global _running
    environment = {k: v for k, v in os.environ.items() if k.startswith(_INHERITED)}
    wanted = (object_store, environment)
    if _running != wanted or not ray.is_initialized() or not is_free():
        stop_local_ray()
        # "local", because without an address Ray joins whichever cluster was started last on the
        # machine, which may be that of a test running beside this one.
        ray.init("local", num_cpus=CPUS, object_store_memory=object_store, include_dashboard=False)
        _running = wanted
    yield


def is_free() -> bool:
    """Whether what earlier tests held is given back: an actor that one of them has lost, and that
    Ray has replaced, would keep a CPU that the next test waits for."""
    gc.collect()
    end = time.monotonic() + _RELEASE_SECONDS
    while ray.available_resources().get("CPU") != CPUS:
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def stop_local_ray() -> None:
    """Ends the Ray that ``local_ray`` has left running, if there is one."""
    global _running
    if _running is not None:
        _running = None
        shut_down()


def shut_down() -> None:
    """Leaves Ray, as soon as no stream's thread uses it: Ray ends a process in which one still asks
    it for a block."""
    for thread in threading.enumerate():
        if thread.name == "blocks":
            thread.join(_RECEIVING_SECONDS)
            assert not thread.is_alive(), "a test has left a stream open, or a shard that waits"
    ray.shutdown()


# Two of Ray's limits are fixed, and too short beside other tests that keep both CPUs busy. They are
# lifted for every Ray that this process starts, those of ``ray.cluster_utils`` included.


def _init_node(self: node.Node, ray_params: RayParams, *args: Any, **options: Any) -> None:
    """Chooses the ports of a node's agents. Where an agent does, its raylet waits 15 s for the port
    and then ends itself."""
    if not options.get("connect_only"):
        for agent in _AGENTS:
            if not getattr(ray_params, agent):
                setattr(ray_params, agent, _free_port())
    _rays_init(self, ray_params, *args, **options)


def _start_process(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
    """Tells a raylet where its agent listens: Ray forgets to, and so it would wait after all."""
    if process_type == ray_constants.PROCESS_TYPE_RAYLET:
        (port,) = re.findall(r"--listen-port=(\d+)", " ".join(command))
        command = [*command, f"--dashboard_agent_listen_port={port}"]
    return _rays_start(command, process_type, *args, **options)


def _get_node(address: str, node_id: str) -> Any:
    """Repeats the question for a node until the node is there. Ray gives it 30 s."""
    end = time.monotonic() + _NODE_START_SECONDS
    while True:
        try:
            return _rays_get_node(address, node_id)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


node.Node.__init__ = _init_node
services.get_node = _get_node
services.start_ray_process = _start_process

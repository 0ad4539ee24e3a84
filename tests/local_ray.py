"""A small Ray for tests that need the real thing, shared by the files that one process runs.

Starting Ray and its first workers takes 7 to 13 s of both CPUs, more than most of these tests.
``local_ray`` therefore leaves it running for the next file that asks for the same one;
``conftest.py`` stops it before a file that has no use for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services

# Variables that Ray's processes take over when they start, and that tests change.
_INHERITED = ("AWS_", "QDMR_", "RAY_TRAIN_")
_NODE_START_SECONDS = 240.0

# What the running Ray was started with; None while there is none.
_running: tuple[Any, ...] | None = None
_rays_get_node = services.get_node


@contextmanager
def local_ray(*, object_store: int = 200_000_000) -> Iterator[None]:
    """This process's own cluster of one node with 2 CPUs; ``object_store`` in bytes.

    It outlives the block. A later block with the same arguments and environment uses it again.
    """
    global _running
    environment = {k: v for k, v in os.environ.items() if k.startswith(_INHERITED)}
    wanted = (object_store, environment)
    if _running != wanted or not ray.is_initialized():
        stop_local_ray()
        # "local", because without an address Ray joins whichever cluster was started last on the
        # machine, which may be that of a test running beside this one.
        ray.init("local", num_cpus=2, object_store_memory=object_store, include_dashboard=False)
        _running = wanted
    yield


def stop_local_ray() -> None:
    """Ends the Ray that ``local_ray`` has left running, if there is one."""
    global _running
    if _running is not None:
        _running = None
        ray.shutdown()


def _get_node(address: str, node_id: str) -> Any:
    """Ray's ``get_node``, repeated until the node is there.

    A node's start fails where it isn't after 30 s, which Ray lets nobody change. Beside other tests
    that keep both CPUs busy it may take longer.
    """
    end = time.monotonic() + _NODE_START_SECONDS
    while True:
        try:
            return _rays_get_node(address, node_id)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


services.get_node = _get_node

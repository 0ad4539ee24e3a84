"""A small Ray for tests that need the real thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_ray(*, object_store: int = 200_000_000) -> Iterator[None]:
    """This process's own cluster of one node with 2 CPUs; ``object_store`` in bytes.

    "local", because without an address Ray joins whichever cluster was started last on the
    machine, which may be that of a test running beside this one.
    """
    ray.init("local", num_cpus=2, object_store_memory=object_store, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()

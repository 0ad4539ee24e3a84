"""Several Ray nodes on this machine, each with an address and a folder for copies of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from local_ray import shut_down
from ray.cluster_utils import Cluster


@contextmanager
def nodes_with_disks(folder: Path, addresses: Sequence[str], cpus: int) -> Iterator[Cluster]:
    """Nodes of ``cpus`` CPUs at ``addresses`` (127.0.1.1 and so on), whose folder for caches is
    ``folder / ADDRESS``; this process belongs to the first."""
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / addresses[0]))
        try:
            for address in addresses:
                cluster.add_node(
                    num_cpus=cpus,
                    object_store_memory=100_000_000,
                    include_dashboard=False,
                    node_ip_address=address,
                    env_vars={"XDG_CACHE_HOME": str(folder / address)},
                )
            ray.init(cluster.address, logging_level="error")
            yield cluster
        finally:
            shut_down()
            cluster.shutdown()

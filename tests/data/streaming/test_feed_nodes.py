"""A feed over several nodes, one of which dies: the order is kept, nothing lost or repeated."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from data_executions import executions, wait_until
from fed import fed_streams
from local_ray import shut_down
from ray.cluster_utils import Cluster

from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.stream import DataSettings, FedStream, InProcessStream
from qdmr_ray.photographs.decode import write_png

NODES, WORKERS, END = 4, 8, 240


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """Four nodes; the first one is the driver's, where consumers take no CPU."""
    cluster = Cluster()
    try:
        for number in range(NODES):
            size = {"num_cpus": 1, "object_store_memory": 100_000_000}
            cluster.add_node(**size, include_dashboard=False, resources={f"node{number}": 1})
        ray.init(cluster.address, logging_level="error")
        yield cluster
    finally:
        shut_down()
        cluster.shutdown()


@pytest.fixture
def packed(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    (tmp_path / "real").mkdir()
    for number in range(7):
        pixels = random.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        write_png(tmp_path / f"real/{number}.png", pixels)
    pack(tmp_path, str(tmp_path / "out"), settings=PackSettings(target_images="real"))
    return str(tmp_path / "out")


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_node_that_dies_changes_no_sample(nodes: Cluster, packed: str) -> None:
    data = DataSettings(path=packed, loader_workers=1, batches_per_block=4)
    samples: dict[str, Any] = {
        "batch_size": WORKERS,
        "crop": 16,
        "same_place": False,
        "sets": ("target",),
        "seed": 5,
        "start_iteration": 0,
        "end_iteration": END,
    }
    ids = [node["NodeID"] for node in ray.nodes()]
    streams = fed_streams(data, workers=WORKERS, nodes=ids, **samples)
    wait_until(lambda: all(stream.is_fed for stream in streams), seconds=120)
    assert len(executions()) == 1
    dead = nodes.list_all_nodes()[2]

    def read(stream: FedStream) -> list[np.ndarray]:
        found = []
        for batch in stream:
            found.append(batch["positions"])
            if stream is streams[0] and len(found) == END // 3:
                nodes.remove_node(dead, allow_graceful=False)
        return found

    with ThreadPoolExecutor(WORKERS) as threads:
        found = list(threads.map(read, streams))
    assert sum(node["Alive"] for node in ray.nodes()) == NODES - 1
    whole = [batch["positions"] for batch in InProcessStream(data, **samples)]
    np.testing.assert_array_equal(np.stack(found, axis=1).reshape(END, WORKERS), whole)

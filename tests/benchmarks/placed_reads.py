"""Crops of a store's shards on one of several nodes: by range, and cut where their copies are kept.

    PYTHONPATH=.:tests python tests/benchmarks/placed_reads.py --nodes 4 --latency 0.005

The nodes are of this machine, with addresses and folders of their own, so what goes between them
crosses no network. A block has 128 samples, as with batch 4 and 32 batches a block.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from file_store import sent, serving
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import CropRequest, Cutter
from qdmr_ray.data.streaming.keepers import keepers_of_cluster
from qdmr_ray.data.streaming.stream import DataSettings, InProcessStream
from qdmr_ray.photographs.decode import write_png

PAIRS, BLOCK, BLOCKS = 16, 128, 24
ARGUMENTS: dict[str, Any] = {
    "batch_size": 4,
    "crop": 256,
    "same_place": False,
    "sets": ("source",),
    "seed": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.005, help="seconds of each answer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        _pack(Path(name))
        with serving(Path(name), latency=arguments.latency) as endpoint:
            cluster = Cluster()
            for number in range(1, arguments.nodes + 1):
                cluster.add_node(
                    num_cpus=1,
                    object_store_memory=400_000_000,
                    include_dashboard=False,
                    node_ip_address=f"127.0.1.{number}",
                    env_vars={"XDG_CACHE_HOME": f"{name}/{number}"},
                )
            ray.init(cluster.address, logging_level="error")
            here = NodeAffinitySchedulingStrategy(ray.nodes()[0]["NodeID"], soft=False)
            measure = ray.remote(_measure).options(num_cpus=1, scheduling_strategy=here)
            for line in ray.get(measure.remote(Path(name), endpoint)):
                print(line)
            ray.shutdown()
            cluster.shutdown()


def _measure(folder: Path, endpoint: str) -> list[str]:
    """Runs on a node, as loading tasks do."""
    store = {"path": "s3://bucket/packed", "s3_endpoint": endpoint}
    request = _request(DataSettings(**store, cache_copies=1))
    keepers = keepers_of_cluster(request)
    assert keepers is not None
    found = []

    def line(name: str, cut: Callable[[np.ndarray], object]) -> None:
        times, before = [], sent(endpoint).bytes
        for block in range(BLOCKS):
            start = time.perf_counter()
            cut(np.arange(block * BLOCK, (block + 1) * BLOCK))
            times.append(time.perf_counter() - start)
        read = (sent(endpoint).bytes - before) / BLOCKS / BLOCK / 1e6
        found.append(
            f"{name}: {np.median(times) * 1e3:.0f} ms a block, {read:.2f} MB a pair from the store"
        )

    line("by range", Cutter(_request(DataSettings(**store, cache_bytes=0))).cut)
    line("kept, while copies are made", lambda positions: keepers.cut(request, positions))
    while len(list(folder.rglob("[0-9]*/**/*.parquet"))) < PAIRS:
        keepers.cut(request, np.arange(BLOCK))
    line("kept by all nodes together", lambda positions: keepers.cut(request, positions))
    line("on this disk", Cutter(_request(DataSettings(path=str(folder / "packed")))).cut)
    return found


def _request(settings: DataSettings) -> CropRequest:
    return InProcessStream(settings, start_iteration=0, end_iteration=1, **ARGUMENTS).request


def _pack(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("aberrated", "clean"):
        (folder / name).mkdir()
        for i in range(PAIRS):
            pixels = random.integers(0, 256, (1280, 1920, 3), dtype=np.uint8)
            write_png(folder / name / f"{i}.png", pixels)
    names = {"source_images": "aberrated", "source_ground_truth": "clean"}
    pack(folder, str(folder / "packed"), settings=PackSettings(**names, shard_records=1))


if __name__ == "__main__":
    main()

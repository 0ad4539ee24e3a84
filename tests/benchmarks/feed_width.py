"""How many blocks a second one feed delivers to how many workers, whatever the blocks hold.

    PYTHONPATH=. python tests/benchmarks/feed_width.py 8 64 256 1024

Blocks are as small as they can be, a crop of 16 pixels, so that what is measured is Ray Data's
execution and its split. The consumers are threads of four processes and do nothing else. A training
of n workers needs n / (seconds of an iteration x data.batches_per_block) blocks a second.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray
from ray.data import DataIterator

from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.feed import Feed, new_pace
from qdmr_ray.data.streaming.plan import Portion
from qdmr_ray.data.streaming.stream import BlockSize, DataSettings, InProcessStream
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.ray_cluster import ensure_ray

PROCESSES = 4
AHEAD = 8
ARGUMENTS = {"batch_size": 1, "crop": 16, "same_place": False, "sets": ("target",), "seed": 0}


@ray.remote(num_cpus=0)
class Consumers:
    """Some of the feed's workers."""

    def run(
        self, feed: Feed, shards: dict[int, DataIterator], workers: int, seconds: float
    ) -> tuple[float, float, int]:
        """Returns when the first block came, when the last one that counts did, and how many."""
        threads = ThreadPoolExecutor(len(shards))
        found = threads.map(
            lambda item: self._consume(feed, *item, workers, seconds), shards.items()
        )
        times = np.concatenate(list(found))
        return float(times.min()), float(times.max()), len(times)

    def _consume(
        self, feed: Feed, rank: int, shard: DataIterator, workers: int, seconds: float
    ) -> list[float]:
        times: list[float] = []
        for block in shard.iter_batches(batch_size=None, batch_format="numpy"):
            expected = feed.portions(workers)[rank].positions(len(times) + 1, len(times) + 2)
            assert block["positions"][0].tolist() == expected.tolist()
            times.append(time.time())
            feed.pace.reach.remote(rank, workers, len(times))
            if times[-1] - times[0] > seconds:
                break
        return times


def portions(workers: int) -> list[Portion]:
    return [Portion(rank, 1, workers) for rank in range(workers)]


def measure(path: str, workers: int, seconds: float) -> None:
    data = DataSettings(path=path, loader_workers=1)
    stream = InProcessStream(data, **ARGUMENTS, start_iteration=0, end_iteration=2**20)
    size = BlockSize(block=1, ahead=AHEAD)
    feed = Feed("width", stream.request, portions, size, 2**16, new_pace())
    began = time.time()
    here = ray.get_runtime_context().get_node_id()
    shards = feed.split(feed.rounds(0), workers, [here])
    consumers = [Consumers.options(max_concurrency=2).remote() for _ in range(PROCESSES)]
    results = ray.get(
        [
            consumer.run.remote(
                feed, {r: shards[r] for r in range(i, workers, PROCESSES)}, workers, seconds
            )
            for i, consumer in enumerate(consumers)
        ]
    )
    first, last = min(r[0] for r in results), max(r[1] for r in results)
    count = sum(r[2] for r in results)
    print(
        f"{workers} workers: {count / (last - first):.1f} blocks/s, first after "
        f"{first - began:.1f} s ({count} blocks)",
        flush=True,
    )
    for consumer in consumers:
        ray.kill(consumer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "real").mkdir()
        pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
        write_png(Path(folder) / "real/0.png", pixels)
        pack(Path(folder), f"{folder}/out", settings=PackSettings(target_images="real"))
        ensure_ray()
        for workers in arguments.workers:
            measure(f"{folder}/out", workers, arguments.seconds)


if __name__ == "__main__":
    main()

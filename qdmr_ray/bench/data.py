"""Measures the source pairs per second that reach training workers, beside a plain loader.

    qdmr bench data --workers 8 --json bench.json

Processes read a packed dataset as the workers of a training do, out of one feed; more than eight
workers share eight processes. With a single one, another then reads the same shards, on a disk,
through a plain ``torch.utils.data.DataLoader``, as a yardstick.
Without ``data`` the bench packs a dataset of noise, because no page of it can then be shared or
compressed.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.exceptions
import torch
import torch.utils.data
from ray.data import DataIterator

from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import Cutter
from qdmr_ray.data.streaming.feed import Feed, new_pace
from qdmr_ray.data.streaming.plan import Portion
from qdmr_ray.data.streaming.stream import Batch, DataSettings, FedStream, InProcessStream
from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.ray_cluster import ensure_ray
from qdmr_ray.storage import open_location

SEED = 0
_LOOK_SECONDS = 0.05
# A process for each of many workers would measure their imports: PyTorch and Ray take 0.6 GB each.
_PROCESSES = 8
# More than a measurement ever reaches.
_ITERATIONS = 2**22


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """The measurement covers ``seconds`` of batches after the first ``warm_up`` seconds of them.
    There are ``loader_workers`` loading tasks for each of the ``workers``; ``cache_bytes`` of the
    shards of a dataset in a store are copied to this machine."""

    data: str | None = None
    pairs: int = 32
    height: int = 1280
    width: int = 1920
    crop: int = 256
    batch_size: int = 4
    workers: int = 1
    loader_workers: int = 2
    cache_bytes: int = DataSettings().cache_bytes
    seconds: float = 10.0
    warm_up: float = 3.0


class Rate(NamedTuple):
    """What a worker measured: ``waiting`` is the share of its time that it waits for a batch."""

    pairs_per_second: float
    first_batch_seconds: float
    waiting: float


def bench_data(bench: DataBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures both rates; starts Ray when it isn't running. ``image_size`` is (height, width);
    megabytes are those of the delivered uint8 tensors. Raises QdmrError where ``data`` is no packed
    dataset with source pairs, or Ray can't be started."""
    with tempfile.TemporaryDirectory(prefix="qdmr-bench-") as folder:
        path = bench.data or _made_dataset(bench, Path(folder), say)
        location = open_location(path)
        size = read_manifest(location).set("source").sizes[0]
        ensure_ray()
        say(f"reading, by {bench.workers} processes")
        feed = _feed(bench, path)
        here = ray.get_runtime_context().get_node_id()
        shards = feed.split(feed.rounds(0), bench.workers, [here])
        try:
            groups = [dict(list(enumerate(shards))[i::_PROCESSES]) for i in range(_PROCESSES)]
            measured = [_fed_rates.remote(bench, feed, group) for group in groups if group]
            rates = [rate for group in ray.get(measured) for rate in group]
            # The store's client has threads, which PyTorch's forked processes would be without.
            compared = bench.workers == 1 and not location.is_s3
            loader = ray.get(_loader_rate.remote(bench, path)) if compared else None
        except ray.exceptions.RayTaskError as error:
            raise QdmrError(f"bench data failed: {one_line(error.cause)}") from error
    pairs = sum(rate.pairs_per_second for rate in rates)
    result = {
        "pairs_per_second": pairs,
        "megabytes_per_second": pairs * 2 * 3 * bench.crop**2 / 1e6,
        "workers": bench.workers,
        "loader_workers": bench.loader_workers,
        "image_size": (size.height, size.width),
        "crop": bench.crop,
        "batch_size": bench.batch_size,
        "first_batch_seconds": max(rate.first_batch_seconds for rate in rates),
        "slowest_worker_wait_fraction": min(rates).waiting,
    }
    if loader is not None:
        result["torch_loader_pairs_per_second"] = loader.pairs_per_second
        result["torch_loader_first_batch_seconds"] = loader.first_batch_seconds
    return result


def _made_dataset(bench: DataBench, folder: Path, say: Callable[[str], None]) -> str:
    say(f"packing {bench.pairs} pairs of {bench.width} x {bench.height}")
    random = np.random.default_rng(SEED)
    shape = (bench.height, bench.width, 3)
    for name in ("aberrated", "clean"):
        (folder / name).mkdir()
        for number in range(bench.pairs):
            pixels = random.integers(0, 256, shape, dtype=np.uint8)
            write_png(folder / name / f"{number:04d}.png", pixels)
    settings = PackSettings(source_images="aberrated", source_ground_truth="clean")
    out = str(folder / "packed")
    pack(folder, out, settings=settings)
    return out


@ray.remote(num_cpus=0)
def _fed_rates(bench: DataBench, feed: Feed, shards: dict[int, DataIterator]) -> list[Rate]:
    """Runs in a process, in a thread for each of the workers with these ranks."""
    # A step on a GPU would leave the loader one thread.
    torch.set_num_threads(1)
    began = time.perf_counter()
    with ThreadPoolExecutor(len(shards)) as threads:
        return list(threads.map(partial(_fed_rate, bench, feed, began), shards, shards.values()))


def _fed_rate(bench: DataBench, feed: Feed, began: float, rank: int, shard: DataIterator) -> Rate:
    portion = _portions(bench, bench.workers)[rank]
    stream = FedStream(
        feed.request.settings,
        connect=lambda _: shard,
        reached=partial(feed.pace.reach.remote, rank, bench.workers),
        first=portion.first,
        total=portion.total,
        **_arguments(bench),
    )
    with closing(stream):
        return _rate(iter(stream), bench, began, lambda: stream.is_fed)


@ray.remote(num_cpus=0)
def _loader_rate(bench: DataBench, path: str) -> Rate:
    torch.set_num_threads(1)
    began = time.perf_counter()
    return _rate(_torch_loader(bench, path), bench, began)


def _rate(
    batches: Iterator[Batch],
    bench: DataBench,
    began: float,
    is_running: Callable[[], bool] = lambda: True,
) -> Rate:
    """Measures a loader that began to be built at ``began``, from the ``warm_up`` on after it is
    running."""
    next(batches)
    first = time.perf_counter() - began
    while not is_running():
        time.sleep(_LOOK_SECONDS)
    warm = time.perf_counter() + bench.warm_up
    count, waited, since = 0, 0.0, 0.0
    while True:
        before = time.perf_counter()
        batch = next(batches)
        now = time.perf_counter()
        if since:
            waited += now - before
            count += len(batch["source"])
            if now - since > bench.seconds:
                return Rate(count / (now - since), first, waited / (now - since))
        elif now > warm:
            since = now


def _feed(bench: DataBench, path: str) -> Feed:
    first = InProcessStream(_settings(bench, path), **_arguments(bench))
    return Feed(
        name="bench",
        request=first.request,
        portions=partial(_portions, bench),
        size=first.block_size,
        end=_ITERATIONS,
        pace=new_pace(),
    )


def _settings(bench: DataBench, path: str) -> DataSettings:
    return DataSettings(
        path=path, loader_workers=bench.loader_workers, cache_bytes=bench.cache_bytes
    )


def _portions(bench: DataBench, world_size: int) -> list[Portion]:
    size = bench.batch_size
    return [Portion(size * rank, size, size * world_size) for rank in range(world_size)]


def _arguments(bench: DataBench) -> dict[str, Any]:
    return {
        "batch_size": bench.batch_size,
        "crop": bench.crop,
        "same_place": False,
        "sets": ("source",),
        "seed": SEED,
        "start_iteration": 0,
        "end_iteration": _ITERATIONS,
    }


class _Samples(torch.utils.data.Dataset):
    """The stream's samples as a map-style dataset, as a user of PyTorch would write it."""

    def __init__(self, bench: DataBench, path: str) -> None:
        arguments = _arguments(bench) | {"batch_size": 1}
        self._request = InProcessStream(_settings(bench, path), **arguments).request
        self._cutter: Cutter | None = None

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        if self._cutter is None:
            self._cutter = Cutter(self._request)
        sample = self._cutter.cut(np.array([position]))
        return {name: torch.from_numpy(sample[name][0]) for name in ("source", "ground_truth")}


def _torch_loader(bench: DataBench, path: str) -> Iterator[Batch]:
    loader = torch.utils.data.DataLoader(
        _Samples(bench, path),
        batch_size=bench.batch_size,
        num_workers=bench.loader_workers,
        prefetch_factor=16,
    )
    yield from loader

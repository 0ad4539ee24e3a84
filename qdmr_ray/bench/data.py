"""Measures the source pairs per second that reach a training worker, beside a plain loader.

    qdmr bench data --json bench.json

A Ray Train worker reads a packed dataset through ``CropStream``; the same process then reads the
same shards through a plain ``torch.utils.data.DataLoader``, as a yardstick. Without ``data`` the
bench packs a dataset of noise, because no page of it can then be shared or compressed.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.utils.data
from ray.train.torch import TorchTrainer

from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import Cutter
from qdmr_ray.data.streaming.stream import Batch, CropStream, DataSettings, InProcessStream
from qdmr_ray.errors import QdmrError, one_line
from qdmr_ray.photographs.decode import write_png
from qdmr_ray.ray_cluster import ensure_ray
from qdmr_ray.storage import open_location
from qdmr_ray.train.ray_trainer import started

SEED = 0
# The training worker leaves its rates in this file.
_RESULT_FILE = "rates.json"


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """The measurement covers ``seconds`` of batches after the first ``warm_up`` seconds of them."""

    data: str | None = None
    pairs: int = 32
    height: int = 1280
    width: int = 1920
    crop: int = 256
    batch_size: int = 4
    loader_workers: int = 2
    seconds: float = 10.0
    warm_up: float = 3.0


def bench_data(bench: DataBench, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures both rates; starts Ray when it isn't running. ``image_size`` is (height, width);
    megabytes are those of the delivered uint8 tensors. Raises QdmrError where ``data`` is no packed
    dataset with source pairs, or Ray can't be started."""
    with tempfile.TemporaryDirectory(prefix="qdmr-bench-") as folder:
        path = bench.data or _made_dataset(bench, Path(folder), say)
        manifest = read_manifest(open_location(path))
        size = manifest.set("source").sizes[0]
        ensure_ray()
        say("reading, in a Ray Train worker")
        trainer = TorchTrainer(
            _measure,
            train_loop_config={"bench": asdict(bench), "path": path, "out": folder},
            scaling_config=ray.train.ScalingConfig(num_workers=1, use_gpu=False),
            run_config=ray.train.RunConfig(name="bench", storage_path=folder),
        )
        try:
            started(trainer).result()
        except ray.train.TrainingFailedError as error:
            raise QdmrError(f"bench data failed: {one_line(error)}") from error
        stream, loader = json.loads((Path(folder) / _RESULT_FILE).read_text())
    return {
        "pairs_per_second": stream[0],
        "megabytes_per_second": stream[0] * 2 * 3 * bench.crop**2 / 1e6,
        "workers": bench.loader_workers,
        "image_size": (size.height, size.width),
        "crop": bench.crop,
        "batch_size": bench.batch_size,
        "first_batch_seconds": stream[1],
        "torch_loader_pairs_per_second": loader[0],
        "torch_loader_first_batch_seconds": loader[1],
    }


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


def _measure(config: dict[str, Any]) -> None:
    """Runs in the training worker: measures both loaders and writes their rates."""
    bench = DataBench(**config["bench"])
    # A step on a GPU would leave the loader one thread.
    torch.set_num_threads(1)
    rates = [_rate(loader(bench, config["path"]), bench) for loader in (_stream, _torch_loader)]
    (Path(config["out"]) / _RESULT_FILE).write_text(json.dumps(rates))


def _rate(batches: Iterator[Batch], bench: DataBench) -> tuple[float, float]:
    """Returns (pairs per second once running, seconds to the first batch, which starts it)."""
    began = time.perf_counter()
    next(batches)
    first = time.perf_counter() - began
    count, since = 0, None
    for batch in batches:
        now = time.perf_counter()
        if since is None and now - began > first + bench.warm_up:
            since, count = now, 0
            continue
        count += len(batch["source"])
        if since is not None and now - since > bench.seconds:
            return count / (now - since), first
    raise RuntimeError("an endless stream ended")


def _arguments(bench: DataBench) -> dict[str, Any]:
    return {
        "batch_size": bench.batch_size,
        "crop": bench.crop,
        "same_place": False,
        "sets": ("source",),
        "seed": SEED,
        "start_iteration": 0,
        "end_iteration": 2**40,
    }


def _stream(bench: DataBench, path: str) -> Iterator[Batch]:
    settings = DataSettings(path=path, loader_workers=bench.loader_workers)
    stream = CropStream(settings, **_arguments(bench))
    try:
        yield from stream
    finally:
        stream.close()


class _Samples(torch.utils.data.Dataset):
    """The stream's samples as a map-style dataset, as a user of PyTorch would write it."""

    def __init__(self, bench: DataBench, path: str) -> None:
        arguments = _arguments(bench) | {"batch_size": 1}
        self._request = InProcessStream(DataSettings(path=path), **arguments).request
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

"""Crops out of a store by ranged requests: pairs per second and CPU time of the reading process.

    python tests/benchmarks/store_reads.py

The store is ``file_store.py``, which costs next to nothing: what is measured is our side. Pairs of
1920 x 1280 noise, crop 256.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from file_store import serving

from qdmr_ray.data.format.index import NO_OFFSET, RecordEntry, encode_index, index_table
from qdmr_ray.data.format.layout import STRIP_PIXELS, count_bands
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.data.streaming.crops import Cutter
from qdmr_ray.data.streaming.stream import DataSettings, InProcessStream
from qdmr_ray.photographs.decode import write_png

PAIRS, BLOCK, BLOCKS = 16, 64, 8
INDEXED = 20_000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        _pack(Path(name))
        with serving(Path(name)) as endpoint:
            _measure(endpoint)
    for truth in (True, False):
        print(f"index, {'pairs' if truth else 'photographs'}: {_index_bytes(truth):.0f} B a record")


def _measure(endpoint: str) -> None:
    for requests in (1, 4, 16):
        settings = DataSettings(
            path="s3://bucket/packed", s3_endpoint=endpoint, cache_bytes=0, requests=requests
        )
        stream = InProcessStream(
            settings,
            batch_size=1,
            crop=256,
            same_place=False,
            sets=("source",),
            seed=0,
            start_iteration=0,
            end_iteration=1,
        )
        cutter = Cutter(stream.request)
        cutter.cut(np.arange(BLOCK))
        start, used = time.perf_counter(), time.process_time()
        for block in range(BLOCKS):
            cutter.cut(np.arange(block * BLOCK, (block + 1) * BLOCK))
        pairs = BLOCKS * BLOCK
        seconds, used = time.perf_counter() - start, time.process_time() - used
        rate, cost = pairs / seconds, used / pairs * 1e3
        print(f"{requests:2} requests at a time: {rate:4.0f} pairs/s, {cost:.1f} ms CPU a pair")


def _pack(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("aberrated", "clean"):
        (folder / name).mkdir()
        for i in range(PAIRS):
            pixels = random.integers(0, 256, (1280, 1920, 3), dtype=np.uint8)
            write_png(folder / name / f"{i}.png", pixels)
    settings = PackSettings(source_images="aberrated", source_ground_truth="clean")
    start = time.perf_counter()
    pack(folder, str(folder / "packed"), settings=settings)
    print(f"packing, one process: {(time.perf_counter() - start) / PAIRS / 2:.2f} s an image")


def _index_bytes(paired: bool) -> float:
    size = np.array([1280]), np.array([1920])
    bands = [0] * int(count_bands(*size, STRIP_PIXELS)[0])
    entries = [
        RecordEntry(
            name=f"{i:08d}",
            height=1280,
            width=1920,
            origin=f"Syn/S1/train/{i:08d}.png",
            ground_truth_origin=f"Syn/gt/{i:08d}.png" if paired else None,
            image_offset=i,
            ground_truth_offset=i if paired else NO_OFFSET,
            sha256=bytes(32),
            image_bands=bands,
            ground_truth_bands=bands if paired else [],
        )
        for i in range(INDEXED)
    ]
    return len(encode_index(index_table(entries))) / INDEXED


if __name__ == "__main__":
    main()

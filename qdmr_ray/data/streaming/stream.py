"""Endless, exact streams of crops into one training worker, through Ray Data or without it.

    stream = CropStream(settings, batch_size=4, crop=256, same_place=False,
                        sets=("source", "target"), seed=0, start_iteration=0, end_iteration=200_000)
    for batch in stream: ...

Every training worker runs a pipeline of its own, in segments of bounded length (``loading``), so
that a long run never makes one huge plan; the next segment starts well before the current one ends,
so that there is no stall at the seam. The first block is cut in the training process: the loading
processes take seconds to start (measured: 3.8 s to the first batch without it, 0.5 s with).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdmr_ray.data.format.index import CHANNELS
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.streaming.crops import FIELDS, CropRequest, Cutter, checked_fields, crop_plan
from qdmr_ray.errors import SettingsError
from qdmr_ray.settings import Settings, setting
from qdmr_ray.storage import open_location

if TYPE_CHECKING:
    from qdmr_ray.data.streaming.loading import Segment

# One iteration's data: images as uint8 tensors (B, 3, c, c) under "source", "ground_truth",
# "target"; "positions" as int64 array (B,), and per set "SET_index", "SET_place" and "SET_skipped"
# (see ``Cutter.cut``).
Batch = dict[str, Any]

# The next segment starts when this share of the current one is left: seconds of work ahead of a
# start that takes 0.2 s.
_LEAD = 0.5


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Where the packed dataset lies and how much is spent on feeding it to one worker."""

    path: str = setting("", "packed dataset, a local path or s3://bucket/path")
    s3_endpoint: str | None = setting(
        None, "address of an S3-compatible store; AWS_ENDPOINT_URL when not set"
    )
    cache_bytes: int = setting(
        64 * 2**30,
        "disk that each node may use for copies of shards that lie in a store; 0 for none",
        unit="bytes",
        minimum=0,
    )
    cache_folder: str | None = setting(
        None, "where those copies lie; ~/.cache/qdmr_ray/shards when not set"
    )
    requests: int = setting(
        16, "ranged requests at a time of each loading task to a store", minimum=1
    )
    skip_broken: bool = setting(
        False, "pass over a broken record, count it and take the next one, instead of stopping"
    )
    batches_per_block: int = setting(
        32,
        "batches that one loading task cuts; fewer where object_store_bytes or the loading tasks "
        "side by side would not allow so many",
        minimum=1,
    )
    loader_workers: int = setting(2, "loading tasks at a time per training worker", minimum=1)
    loader_cpus: float = setting(
        0.25, "CPUs that Ray sets aside for each loading task", unit="CPUs", minimum=0
    )
    object_store_bytes: int = setting(
        512 * 2**20,
        "bound on the crops that lie ready in the object store for each training worker (Ray "
        "frees used ones up to a second later)",
        unit="bytes",
        minimum=1,
    )


@dataclass(frozen=True)
class SegmentSize:
    """The reach of one Ray Data plan: ``iterations``, in blocks of ``block`` of them."""

    iterations: int
    block: int


def segment_size(settings: DataSettings, *, batch_size: int, crop: int, fields: int) -> SegmentSize:
    """Returns the longest plan of which two, one in use and one in the making, respect the bound;
    raises SettingsError where ``object_store_bytes`` holds less than two batches."""
    batch_bytes = batch_size * fields * CHANNELS * crop * crop
    iterations = settings.object_store_bytes // (2 * batch_bytes)
    if iterations < 1:
        raise SettingsError(
            f"data.object_store_bytes={settings.object_store_bytes} is less than two batches "
            f"({2 * batch_bytes} bytes); raise it, or lower batch_size or crop"
        )
    # Ray Data looks for finished tasks ten times a second, so blocks that take less time to cut
    # leave loaders idle (1,330 pairs/s with 16 batches a block, 1,740 with 32); and every loader
    # should have one to cut while another lies ready.
    block = min(settings.batches_per_block, max(1, iterations // (2 * settings.loader_workers)))
    return SegmentSize(iterations - iterations % block, block)


def required_cpus(settings: DataSettings, world_size: int) -> float:
    """Returns the CPUs that the loading tasks of ``world_size`` workers need beside the workers'
    own. Check this first: Ray Data waits silently for ever where a cluster has fewer to spare."""
    return world_size * settings.loader_workers * settings.loader_cpus


class _Stream:
    """The base of both streams: checks, the range of iterations, batches out of blocks."""

    def __init__(
        self,
        settings: DataSettings,
        *,
        batch_size: int,
        crop: int,
        same_place: bool,
        sets: tuple[str, ...],
        seed: int,
        start_iteration: int,
        end_iteration: int,
        fields: tuple[str, ...] | None = None,
        first: int = 0,
        total: int | None = None,
    ) -> None:
        if not settings.path:
            raise SettingsError("path of the packed dataset is not set; give a folder or s3:// URI")
        total = batch_size if total is None else total
        if not 0 <= first <= total - batch_size or batch_size < 1 or crop < 1:
            raise ValueError(f"{batch_size} samples from {first} on of {total}, crop {crop}")
        location = open_location(settings.path, endpoint=settings.s3_endpoint)
        self.manifest = read_manifest(location)
        self._settings = settings
        self._start = start_iteration
        self._end = end_iteration
        self.request = CropRequest(
            uri=location.uri,
            endpoint=settings.s3_endpoint,
            cache_bytes=settings.cache_bytes,
            cache_folder=settings.cache_folder,
            requests=settings.requests,
            skip_broken=settings.skip_broken,
            digest=self.manifest.digest,
            batch_size=batch_size,
            crop=crop,
            same_place=same_place,
            sets=sets,
            fields=checked_fields(sets, fields),
            seed=seed,
            first=first,
            total=total,
        )
        # An unknown set, or a crop larger than an image, is found here and not in a task. Making
        # copies on disk is the loading processes' business.
        self._reader = self.request.reader(fill_cache=False)
        crop_plan(self.request, {name: self._reader.index(name) for name in sets})
        self._segment_size = segment_size(
            settings, batch_size=batch_size, crop=crop, fields=len(self.request.fields)
        )
        self._open()

    def __iter__(self) -> Iterator[Batch]:
        size = self.request.batch_size
        try:
            for block in self._blocks():
                for first in range(0, len(block["positions"]), size):
                    # Rows are copied: a block lies read-only in shared memory, which it would hold.
                    rows = {name: np.array(c[first : first + size]) for name, c in block.items()}
                    yield {n: torch.from_numpy(r) if n in FIELDS else r for n, r in rows.items()}
        finally:
            self.close()

    def close(self) -> None:
        """Frees what loading holds; iterating ends."""
        raise NotImplementedError

    def _open(self) -> None:
        """Prepares the stream before its first batch is asked for."""

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns of one or more batches at a time, in order (see ``Cutter.cut``)."""
        raise NotImplementedError


class InProcessStream(_Stream):
    """The batches of ``CropStream`` with the same arguments, cut in this process without Ray."""

    def close(self) -> None:
        """Frees nothing; it exists so that both streams are used alike."""

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        cutter = Cutter(self.request)
        for iteration in range(self._start, self._end):
            yield cutter.cut(np.array([iteration]))


class CropStream(_Stream):
    """One training worker's batches for iterations ``start_iteration`` .. ``end_iteration - 1``.

    ``sets`` is ("source",) or ("source", "target"); ``fields`` are the images wanted, all that the
    sets hold when ``None``. Of the ``total`` samples of an iteration (``batch_size`` when not
    given) this worker takes ``batch_size`` from its ``first`` on. Loading starts at once, while the
    networks are still being built. Iterating yields a ``Batch`` per iteration; it can be done once
    and closes the stream. Raises QdmrError without a dataset, for a missing set and a crop larger
    than an image; while iterating, for a shard that is missing or damaged.
    """

    _segments: list[Segment]

    def close(self) -> None:
        """Stops the loading tasks and threads; iterating ends."""
        for segment in self._segments:
            segment.stop()
        self._segments.clear()
        self._closed = True
        # Ray Data's plans refer to themselves; until they are collected, unused blocks stay.
        gc.collect()

    def _open(self) -> None:
        self._closed = False
        self._loaded_from = min(self._start + self._segment_size.block, self._end)
        more = self._loaded_from < self._end
        self._segments = [self._segment(self._loaded_from)] if more else []

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        cutter = Cutter(self.request, self._reader)
        for iteration in range(self._start, self._loaded_from):
            if self._closed:
                return
            yield cutter.cut(np.array([iteration]))
        while self._segments:
            block = self._segments[0].next_block()
            if block is not None:
                self._start_next(int(block["positions"][0]) // self.request.total)
                yield block
            elif self._segments:  # Empty when it was closed meanwhile.
                self._segments.pop(0).stop()

    def _start_next(self, iteration: int) -> None:
        """Starts the next segment where the newest one is nearly used up at ``iteration``."""
        newest = self._segments[-1]
        lead = max(_LEAD * self._segment_size.iterations, self._segment_size.block)
        if newest.end < self._end and iteration >= newest.end - lead:
            self._segments.append(self._segment(newest.end))

    def _segment(self, first: int) -> Segment:
        # The module needs Ray, which InProcessStream does without.
        from qdmr_ray.data.streaming.loading import Segment

        end = min(first + self._segment_size.iterations, self._end)
        return Segment(self._settings, self.request, first, end, self._segment_size.block)

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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from qdmr_ray.data.format.index import CHANNELS
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.streaming.crops import (
    FIELDS,
    CropRequest,
    Cutter,
    DataSettings,
    checked_fields,
    crop_plan,
)
from qdmr_ray.errors import SettingsError
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


class SegmentSize(NamedTuple):
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


class InProcessStream:
    """The batches of ``CropStream`` with the same arguments, cut in this process without Ray."""

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
        self._start, self._end = start_iteration, end_iteration
        self.request = CropRequest(
            settings=replace(settings, path=location.uri),
            digest=read_manifest(location).digest,
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

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns of one or more batches at a time, in order (see ``Cutter.cut``)."""
        cutter = Cutter(self.request)
        for iteration in range(self._start, self._end):
            yield cutter.cut(np.array([iteration]))


class CropStream(InProcessStream):
    """One training worker's batches for iterations ``start_iteration`` .. ``end_iteration - 1``.

    ``sets`` is ("source",) or ("source", "target"); ``fields`` are the images wanted, all that the
    sets hold when ``None``. Of the ``total`` samples of an iteration (``batch_size`` when not
    given) this worker takes ``batch_size`` from its ``first`` on. Loading starts at once, while the
    networks are still being built. Iterating yields a ``Batch`` per iteration; it can be done once
    and closes the stream. Raises QdmrError without a dataset, for a missing set and a crop larger
    than an image; while iterating, for a shard that is missing or damaged.
    """

    def __init__(self, settings: DataSettings, **samples: Any) -> None:
        super().__init__(settings, **samples)
        self._closed = False
        self._loaded_from = min(self._start + self._segment_size.block, self._end)
        self._segments: list[Segment] = []
        if self._loaded_from < self._end:
            self._segments.append(self._segment(self._loaded_from))

    def close(self) -> None:
        """Stops the loading tasks and threads; iterating ends."""
        for segment in self._segments:
            segment.stop()
        self._segments.clear()
        self._closed = True
        # Ray Data's plans refer to themselves; until they are collected, unused blocks stay.
        gc.collect()

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
        return Segment(self.request, first, end, self._segment_size.block)

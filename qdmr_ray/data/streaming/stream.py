"""Endless, exact streams of crops into one training worker, from a feed or without Ray.

    stream = FedStream(settings, batch_size=4, crop=256, same_place=False,
                       sets=("source", "target"), seed=0, start_iteration=0, end_iteration=200_000,
                       connect=lambda request: shard)
    for batch in stream: ...

``feed`` says where the shard comes from. Its blocks hold the same numbers as those that a stream
cuts by itself, which it does while the loading processes start: they take seconds (measured: 3.8 s
to the first batch without it, 0.5 s with).
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from qdmr_ray.data.format.layout import CHANNELS
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.streaming.crops import (
    FIELDS,
    CropRequest,
    Cutter,
    DataSettings,
    checked_fields,
    crop_plan,
    opened_dataset,
)
from qdmr_ray.data.streaming.plan import Portion
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.storage import open_location

if TYPE_CHECKING:
    from ray.data import DataIterator

# One iteration's data: images as uint8 tensors (B, 3, c, c) under "source", "ground_truth",
# "target"; "positions" as int64 array (B,), and per set "SET_index", "SET_place" and "SET_skipped"
# (see ``Cutter.cut``).
Batch = dict[str, Any]

# A block with this column holds an error instead of samples.
ERROR = "error"
# A worker that waits this long for its data is probably short of CPUs; it says so once.
_PATIENCE_SECONDS = 60.0
# How often a thread with a block that nobody takes looks whether its stream was closed.
_CLOSED_SECONDS = 0.5

_log = logging.getLogger(__name__)


class BlockSize(NamedTuple):
    """How loading is cut up: ``block`` iterations at a time, those of ``ahead`` iterations at most
    before the training reaches them."""

    block: int
    ahead: int


def block_size(settings: DataSettings, *, batch_size: int, crop: int, fields: int) -> BlockSize:
    """Returns the largest blocks, one in use and the others ahead, that respect the bound; raises
    SettingsError where ``object_store_bytes`` holds less than two batches."""
    batch_bytes = batch_size * fields * CHANNELS * crop * crop
    iterations = settings.object_store_bytes // batch_bytes
    if iterations < 2:
        raise SettingsError(
            f"data.object_store_bytes={settings.object_store_bytes} is less than two batches "
            f"({2 * batch_bytes} bytes); raise it, or lower batch_size or crop"
        )
    # Ray Data looks for finished tasks ten times a second, so blocks that take less time to cut
    # leave loaders idle (1,330 pairs/s with 16 batches a block, 1,740 with 32); and every loader
    # should have one to cut while another lies ready and a third is in use.
    blocks = 2 * settings.loader_workers + 1
    block = min(settings.batches_per_block, max(1, iterations // blocks))
    return BlockSize(block, (iterations // block - 1) * block)


def required_cpus(settings: DataSettings) -> float:
    """Returns the CPUs that a feed needs at least beside the workers' own, those of one loading
    task. Check this first: Ray Data waits silently for ever where a cluster has fewer to spare."""
    return settings.loader_cpus


class InProcessStream:
    """One training worker's batches for iterations ``start_iteration`` .. ``end_iteration - 1``,
    cut in this process, without Ray.

    ``sets`` is ("source",) or ("source", "target"); ``fields`` are the images wanted, all that the
    sets hold when ``None``. Of the ``total`` samples of an iteration (``batch_size`` when not
    given) this worker takes ``batch_size`` from its ``first`` on. Iterating yields a ``Batch`` per
    iteration. Raises QdmrError without a dataset, for a missing set and a crop larger than an
    image; while iterating, for a shard that is missing or damaged.
    """

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
        manifest = read_manifest(location)
        self._start, self._end = start_iteration, end_iteration
        self.portion = Portion(first, batch_size, total)
        self.request = CropRequest(
            settings=replace(settings, path=location.uri),
            digest=manifest.digest,
            bytes=sum(shard.bytes for shard in manifest.shards),
            crop=crop,
            same_place=same_place,
            sets=sets,
            fields=checked_fields(sets, fields),
            seed=seed,
        )
        # An unknown set, or a crop larger than an image, is found here and not in a task. Making
        # copies on disk is the loading processes' business.
        self._reader = opened_dataset(settings, self.request.digest, fill_cache=False)
        crop_plan(self.request, {name: self._reader.index(name) for name in sets})
        self.block_size = block_size(
            settings, batch_size=batch_size, crop=crop, fields=len(self.request.fields)
        )

    def __iter__(self) -> Iterator[Batch]:
        size = self.portion.count
        try:
            for block in self._blocks():
                for first in range(0, len(block["positions"]), size):
                    # Rows are copied: a block lies read-only in shared memory, which it would hold.
                    rows = {name: np.array(c[first : first + size]) for name, c in block.items()}
                    yield {n: torch.from_numpy(r) if n in FIELDS else r for n, r in rows.items()}
                # Its memory isn't held while the next one is waited for.
                del block
        finally:
            self.close()

    def close(self) -> None:
        """Frees what loading holds; iterating ends."""

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns of one or more batches at a time, in order (see ``Cutter.cut``)."""
        cutter = Cutter(self.request)
        for iteration in range(self._start, self._end):
            yield cutter.cut(self.portion.positions(iteration, iteration + 1))


class FedStream(InProcessStream):
    """The batches of ``InProcessStream`` with the same other arguments, out of the blocks of a
    shard; those that come before its first block are cut here.

    ``connect`` is called once, in a thread, with the crops that are wanted, and returns the shard.
    ``reached`` is called about once a block with the iteration that the training has reached.
    Receiving starts at once, while the networks are still being built. Iterating can be done once
    and closes the stream. Raises QdmrError where a block isn't the one that is due.
    """

    def __init__(
        self,
        settings: DataSettings,
        *,
        connect: "Callable[[CropRequest], DataIterator]",
        reached: Callable[[int], Any] | None = None,
        **samples: Any,
    ) -> None:
        super().__init__(settings, **samples)
        self._reached = reached or (lambda _: None)
        self._began = False
        self._received = _Received(partial(connect, self.request))

    @property
    def is_fed(self) -> bool:
        """Whether the first block has arrived, before which this process cuts its batches."""
        return self._began or self._received.any

    def close(self) -> None:
        """Stops receiving; iterating ends."""
        self._received.close()

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        cutter, at = Cutter(self.request, self._reader), self._start

        def own(end: int) -> Iterator[dict[str, np.ndarray]]:
            for iteration in range(at, end):
                if iteration % self.block_size.block == 0:
                    self._reached(iteration)
                yield cutter.cut(self.portion.positions(iteration, iteration + 1))

        while at < self._end and not self._received.any:
            yield from own(at + 1)
            at += 1
        while at < self._end:
            block = self._received.take()
            first = int(block["positions"][0]) // self.portion.total
            end = first + len(block["positions"]) // self.portion.count
            if first > at and not self._began:
                yield from own(first)
                at = first
            self._began = True
            due = self.portion.positions(first, end)
            if first > at or not np.array_equal(block["positions"], due):
                raise QdmrError(
                    f"{self.request.settings.path}: Ray Data delivered the samples at "
                    f"{block['positions'][:3]}… to a worker whose next ones are at "
                    f"{self.portion.positions(at, at + 1)[:3]}…; please report this"
                )
            # A block of iterations that were cut here while the loading started is passed over.
            if end > at:
                self._reached(at)
                begin = (at - first) * self.portion.count
                yield {name: column[begin:] for name, column in block.items()}
                at = end
            # Its memory isn't held while the next one is waited for.
            del block


class _Received:
    """Receives the blocks of a shard in a thread, one ahead of the one in use."""

    def __init__(self, connect: "Callable[[], DataIterator]") -> None:
        self._queue: queue.Queue[dict[str, np.ndarray] | Exception | None] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        # A daemon, as it may be waiting for a block that never comes.
        threading.Thread(target=self._run, args=(connect,), daemon=True, name="blocks").start()

    @property
    def any(self) -> bool:
        """Whether a block, or an error, is there already."""
        return not self._queue.empty()

    def take(self) -> dict[str, np.ndarray]:
        """Returns the next block, a dictionary of columns, when it is there; raises the error that
        came in its place, and QdmrError where a shard is missing or damaged."""
        item = self._next_item()
        if isinstance(item, Exception):
            raise item
        if item is None:
            raise QdmrError("Ray Data ended before the last block; see its logs")
        if ERROR in item:
            raise QdmrError(str(item[ERROR][0]))
        return {name: column[0] for name, column in item.items()}

    def close(self) -> None:
        """Lets the thread end with the block that it waits for."""
        self._closed.set()

    def _next_item(self) -> dict[str, np.ndarray] | Exception | None:
        warned = False
        while True:
            try:
                return self._queue.get(timeout=_PATIENCE_SECONDS)
            except queue.Empty:
                if not warned:
                    _log.warning(
                        "no training data for %d s; are there CPUs to spare for the loading "
                        "tasks (loader_workers x loader_cpus for each training worker)?",
                        _PATIENCE_SECONDS,
                    )
                warned = True

    def _run(self, connect: "Callable[[], DataIterator]") -> None:
        try:
            # This may wait for the other workers.
            shard = connect()
            if self._closed.is_set():
                return
            # Without a size, which its annotation lacks, every block is a view of shared memory.
            whole: Any = None
            for block in shard.iter_batches(batch_size=whole, batch_format="numpy"):
                if not self._put(block):
                    return
                del block
            self._put(None)
        except Exception as error:  # The consumer raises it.
            self._put(error)

    def _put(self, item: dict[str, np.ndarray] | Exception | None) -> bool:
        """Returns whether somebody may take the item; false when the stream was closed."""
        while not self._closed.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=_CLOSED_SECONDS)
                return True
        return False

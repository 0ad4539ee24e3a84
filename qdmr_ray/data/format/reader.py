"""Reads records of a packed dataset by their position; opened once per process.

On a local disk the shards are memory-mapped: a crop touches only its own rows, and the operating
system's page cache is the cache. In a store, the rows of a crop are a ranged request for each strip
that it touches (``layout``), and shards that the node has copied (``cache``) are mapped like local
ones.
"""

import math
import threading
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from qdmr_ray.data.format.cache import ShardCache, default_cache_folder
from qdmr_ray.data.format.index import SetIndex, set_index
from qdmr_ray.data.format.layout import BAND_ROWS, CHANNELS, Piece, pieces, runs
from qdmr_ray.data.format.manifest import SetEntry, ShardEntry, read_manifest
from qdmr_ray.data.format.placement import Placement
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import disk_error, open_location

# A piece that differs from its checksum may have been damaged in transit: it is fetched again.
_FETCHES = 2
# The shards that a reader keeps mapped. Linux allows a process 65,530 maps by default, its other
# readers and libraries included; mapping a shard again takes 0.07 ms.
_MOST_MAPPED = 2048


class BrokenRecordError(QdmrError):
    """The bytes of a record were read, and are not those that were packed. A store that doesn't
    answer, or a file that isn't there, proves nothing about a record."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One photograph, uint8 (H, W, 3) RGB; ``name`` is its file name without ending."""

    name: str
    image: np.ndarray
    ground_truth: np.ndarray | None


class RecordReader:
    """The records of the packed dataset at ``uri`` (local path or ``s3://…``).

    ``endpoint`` is the address of an S3-compatible store. ``cache_bytes`` bounds what this node
    keeps of a dataset in a store, in ``cache_folder``; 0 keeps nothing. Without ``fill_cache`` this
    reader copies no shards but uses the copies of others. ``placement`` says what this node keeps
    where several share the work; without it, the first shards that fit. Every band of pixels is
    checked against its checksum the first time that it is read. Several threads may use one reader.
    Raises QdmrError where there is no dataset, or its manifest is damaged.
    """

    def __init__(
        self,
        uri: str,
        *,
        endpoint: str | None = None,
        cache_bytes: int = 0,
        cache_folder: Path | None = None,
        fill_cache: bool = True,
        placement: Placement | None = None,
    ) -> None:
        self._location = open_location(uri, endpoint=endpoint)
        # Whether reading may wait for a store.
        self.is_remote = self._location.is_s3
        self.manifest = read_manifest(self._location)
        self._ends = {
            name: list(accumulate(shard.rows for shard in entry.shards))
            for name, entry in self.manifest.sets.items()
        }
        self._indexes: dict[str, SetIndex] = {}
        self._mapped = MappedFiles(_MOST_MAPPED)
        # Tells which bands have been checked, bool (bands of the set,) by set and kind of image.
        self._checked: dict[tuple[str, bool], np.ndarray] = {}
        self._cache: ShardCache | None = None
        self._placement: Placement | None = None
        # The numbers of each shard's keepers, by set, where there is a placement.
        self._keepers: dict[str, np.ndarray] = {}
        if self.is_remote and cache_bytes:
            shards = self.manifest.shards
            kept = None
            if placement is not None:
                self._placement = placement
                keepers = placement.keepers(shards, cache_bytes)
                kept = [s for s, mine in zip(shards, placement.keeps(keepers), strict=True) if mine]
                for name, entry in self.manifest.sets.items():
                    self._keepers[name], keepers = np.split(keepers, [len(entry.shards)])
            self._cache = ShardCache(
                self._location,
                shards,
                cache_folder or default_cache_folder(),
                cache_bytes,
                fills=fill_cache,
                kept=kept,
            )

    def count(self, set_name: str) -> int:
        """Returns the number of records in a set."""
        return self.manifest.set(set_name).images

    def index(self, set_name: str) -> SetIndex:
        """Returns the index of a set, read when it is first needed; raises QdmrError where there is
        no such set, or its index is missing or damaged."""
        if set_name not in self._indexes:
            entry = self.manifest.set(set_name)
            table = self._indexes[set_name] = self._read_index(entry)
            for ground_truth, columns in ((False, table.image), (True, table.ground_truth)):
                self._checked[set_name, ground_truth] = np.zeros(len(columns.bands), dtype=bool)
        return self._indexes[set_name]

    def ask(self, set_name: str, records: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the numbers of the nodes that are to be asked for ``records`` at the global
        ``positions``, as ``Placement.ask`` does; there has to be a placement."""
        assert self._placement is not None
        shards = np.searchsorted(self._ends[set_name], records, side="right")
        return self._placement.ask(self._keepers[set_name][shards], positions)

    def read(self, set_name: str, index: int) -> Record:
        """Reads a whole record, as writable copies; raises QdmrError where the set does not exist,
        or its shard is missing or damaged."""
        self._find(set_name, index)
        table = self.index(set_name)
        height, width = table.size(index)
        images = []
        for ground_truth in (False, True) if self.manifest.set(set_name).paired else (False,):
            image = np.empty((height, width, CHANNELS), dtype=np.uint8)
            found = self._read_pieces(set_name, index, (0, height), (0, width), ground_truth)
            for piece, lines in found:
                image[:, piece.left : piece.left + lines.shape[2]] = lines.transpose(0, 2, 1)
            images.append(image)
        image, *truth = images
        return Record(name=table[index].name, image=image, ground_truth=truth[0] if truth else None)

    def crop(
        self,
        set_name: str,
        index: int,
        *,
        top: int,
        left: int,
        size: int,
        ground_truth: bool = False,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Reads the square of ``size`` pixels at (top, left), uint8 (3, size, size), into ``out``;
        without it, returns a view where the square lies in one strip. Raises QdmrError, which names
        shard and row, where the set or its ground truth does not exist, or the shard is missing,
        and BrokenRecordError where the shard is damaged; IndexError for no such record, ValueError
        for a square over the edge."""
        self._find(set_name, index)
        height, width = self.index(set_name).size(index)
        if not (0 <= top <= height - size and 0 <= left <= width - size):
            raise ValueError(f"crop {size} at ({top}, {left}) does not fit {width} x {height}")
        rows, columns = (top, top + size), (left, left + size)
        views = []
        for piece, lines in self._read_pieces(set_name, index, rows, columns, ground_truth):
            inside = slice(max(left - piece.left, 0), left + size - piece.left)
            views.append(lines[top - piece.top :][:size, :, inside].transpose(1, 0, 2))
        if out is None and len(views) == 1:
            return views[0]
        if out is None:
            out = np.empty((CHANNELS, size, size), dtype=np.uint8)
        return np.concatenate(views, axis=2, out=out)

    def _read_pieces(
        self,
        set_name: str,
        index: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
        ground_truth: bool,
    ) -> list[tuple[Piece, np.ndarray]]:
        """Reads the pieces that hold these pixels, read-only, views where possible; raises as
        ``crop``."""
        shard, row = self._find(set_name, index)
        table = self.index(set_name)
        image = table.ground_truth if ground_truth else table.image
        offset, first = int(image.offsets[index]), int(image.first_bands[index])
        if offset < 0:
            raise QdmrError(f"the {set_name} set of {self._location.uri} has no ground truth")
        strip_pixels = self.manifest.set(set_name).strip_pixels
        found: list[tuple[Piece, np.ndarray]] = []
        for run in runs(pieces(table.size(index), strip_pixels, rows, columns)):
            bands = slice(first + run[0].bands.start, first + run[-1].bands.stop)
            checked = self._checked[set_name, ground_truth][bands]
            try:
                lines = self._checked_run(shard, offset, run, image.bands[bands], checked)
            except QdmrError as error:
                raise type(error)(f"{error} (row {row}, {table.origin(index)})") from error
            found += zip(run, lines, strict=True)
        return found

    def _read_index(self, entry: SetEntry) -> SetIndex:
        """Reads an index from this node's copy, which is mapped, and so held once by all processes
        of the node; from the dataset's own place where there is no copy, or none that is whole."""
        if self._cache is not None:
            for doubted in (False, True):
                copy = self._cache.fetch(entry.index, doubted=doubted)
                if copy is None:
                    break
                with suppress(QdmrError):
                    return set_index(open_location(copy.parent), entry)
        return set_index(self._location, entry)

    def _find(self, set_name: str, index: int) -> tuple[ShardEntry, int]:
        """Returns the shard of a record and its row there."""
        entry = self.manifest.set(set_name)
        if not 0 <= index < entry.images:
            raise IndexError(f"{set_name} record {index} of {entry.images}")
        ends = self._ends[set_name]
        number = bisect_right(ends, index)
        shard = entry.shards[number]
        return shard, index - (ends[number] - shard.rows)

    def _checked_run(
        self,
        shard: ShardEntry,
        offset: int,
        run: Sequence[Piece],
        bands: np.ndarray,
        checked: np.ndarray,
    ) -> list[np.ndarray]:
        """Reads the pieces of ``run``, which follow one another in the photograph at ``offset``,
        and agree with their checksums ``bands``. Bands marked in ``checked`` need no comparing any
        more; those compared here get marked."""
        offset += run[0].offset
        length = sum(math.prod(piece.shape) for piece in run)
        mapped = self._mapped.get(shard.file)
        if mapped is None:
            mapped = self._map(shard)
        if mapped is not None:
            lines = _split(mapped[offset : offset + length], run)
            if _agree(lines, bands, checked):
                return lines
            # Another thread may have mapped a new copy meanwhile.
            if self._cache is not None and self._mapped.drop(shard.file, mapped):
                self._cache.doubt(shard.file)
        place = self._location.join(shard.file)
        if self.is_remote:
            for _ in range(_FETCHES):
                data, size = place.read_piece(offset, length)
                if size == shard.bytes:
                    lines = _split(np.frombuffer(data, dtype=np.uint8), run)
                    # A fetched piece is new each time, so it is checked each time.
                    if _agree(lines, bands, np.zeros_like(checked)):
                        return lines
            _check_size(place.uri, size, shard)
        raise BrokenRecordError(f"{place.uri}: wrong checksum; pack the dataset again")

    def _map(self, shard: ShardEntry) -> np.ndarray | None:
        """Maps the shard where it lies on a disk of this machine, and returns its bytes, else
        None."""
        place = self._location.join(shard.file)
        path = place.local_path
        if path is not None:
            size = place.size()
            if size is None:
                raise QdmrError(f"{path}: is missing; pack the dataset again")
            _check_size(str(path), size, shard)
        elif self._cache is not None:
            path = self._cache.path(shard.file)
        if path is None:
            return None
        try:
            # Slicing np.memmap costs ten times as much as slicing a plain array over it.
            mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except OSError as error:
            if self.is_remote:
                return None  # Another process has dropped the copy just now.
            raise disk_error(str(path), "read", error) from error
        self._mapped.keep(shard.file, mapped)
        return mapped


class MappedFiles:
    """The ``most`` mapped files that were used last, by name; several threads may use it. One that
    is let go stays mapped as long as somebody has a view of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._files: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> np.ndarray | None:
        """Returns the bytes of a file, ``None`` where it isn't mapped."""
        with self._lock:
            if name in self._files:
                self._files.move_to_end(name)
            return self._files.get(name)

    def keep(self, name: str, mapped: np.ndarray) -> None:
        """Adds a file, and lets go of those that were used longest ago."""
        with self._lock:
            self._files[name] = mapped
            self._files.move_to_end(name)
            while len(self._files) > self._most:
                self._files.popitem(last=False)

    def drop(self, name: str, mapped: np.ndarray) -> bool:
        """Lets go of a file if these are still its bytes; returns whether they were."""
        with self._lock:
            found = self._files.get(name) is mapped
            if found:
                del self._files[name]
            return found


def _split(data: np.ndarray, run: Sequence[Piece]) -> list[np.ndarray]:
    """Returns the pieces of ``run`` as views of its bytes ``data``."""
    found, start = [], 0
    for piece in run:
        end = start + math.prod(piece.shape)
        found.append(data[start:end].reshape(piece.shape))
        start = end
    return found


def _agree(pieces: Sequence[np.ndarray], bands: np.ndarray, checked: np.ndarray) -> bool:
    """Compares bands of ``pieces`` not yet ``checked`` with their checksums, and marks them."""
    in_piece = len(bands) // len(pieces)
    for band in np.flatnonzero(~checked).tolist():
        piece, top = pieces[band // in_piece], band % in_piece * BAND_ROWS
        if zlib.crc32(piece[top : top + BAND_ROWS].data) != bands[band]:
            return False
        checked[band] = True
    return True


def _check_size(place: str, size: int, shard: ShardEntry) -> None:
    if size != shard.bytes:
        raise BrokenRecordError(
            f"{place}: has {size} bytes instead of {shard.bytes}; pack the dataset again"
        )

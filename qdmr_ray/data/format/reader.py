"""Reads records of a packed dataset by their position; opened once per process.

On a local disk the shards are memory-mapped: a crop touches only its own rows, and the operating
system's page cache is the cache. In a store, the rows of a crop are one ranged request, and shards
that the node has copied (``cache``) are mapped like local ones.
"""

import math
import zlib
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from qdmr_ray.data.format.cache import ShardCache, default_cache_folder
from qdmr_ray.data.format.index import BAND_ROWS, CHANNELS, SetIndex, set_index
from qdmr_ray.data.format.manifest import SetEntry, ShardEntry, read_manifest
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, disk_error, open_location

# A piece that differs from its checksum may have been damaged in transit: it is fetched again.
_FETCHES = 2


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
    reader copies no shards but uses the copies of others. Every band of pixels is checked against
    its checksum the first time that it is read. Several threads may use one reader. Raises
    QdmrError where there is no dataset, or its manifest is damaged.
    """

    def __init__(
        self,
        uri: str,
        *,
        endpoint: str | None = None,
        cache_bytes: int = 0,
        cache_folder: Path | None = None,
        fill_cache: bool = True,
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
        self._mapped: dict[str, np.ndarray] = {}
        # Tells which bands have been checked, bool (bands of the set,) by set and kind of image.
        self._checked: dict[tuple[str, bool], np.ndarray] = {}
        self._cache: ShardCache | None = None
        if self.is_remote and cache_bytes:
            shards = [s for entry in self.manifest.sets.values() for s in entry.shards]
            folder = cache_folder or default_cache_folder()
            self._cache = ShardCache(self._location, shards, folder, cache_bytes, fills=fill_cache)

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

    def read(self, set_name: str, index: int) -> Record:
        """Reads a whole record, as writable copies; raises QdmrError where the set does not exist,
        or its shard is missing or damaged."""
        self._find(set_name, index)
        table = self.index(set_name)
        kinds = (False, True) if self.manifest.set(set_name).paired else (False,)
        rows = [self.lines(set_name, index, 0, table.size(index)[0], ground_truth=k) for k in kinds]
        image, *truth = (np.ascontiguousarray(lines.transpose(0, 2, 1)) for lines in rows)
        return Record(name=table[index].name, image=image, ground_truth=truth[0] if truth else None)

    def lines(
        self, set_name: str, index: int, top: int, bottom: int, *, ground_truth: bool = False
    ) -> np.ndarray:
        """Reads rows ``top`` .. ``bottom - 1``, uint8 (rows, 3, W), read-only, a view where
        possible. Raises QdmrError, which names shard and row, where the set or its ground truth
        does not exist, or the shard is missing, and BrokenRecordError where the shard is damaged;
        IndexError for no such record."""
        shard, row = self._find(set_name, index)
        table = self.index(set_name)
        columns = table.ground_truth if ground_truth else table.image
        offset = int(columns.offsets[index])
        if offset < 0:
            raise QdmrError(f"the {set_name} set of {self._location.uri} has no ground truth")
        height, width = table.size(index)
        # Only whole bands can be checked.
        first_band, end_band = top // BAND_ROWS, -(-bottom // BAND_ROWS)
        first, end = first_band * BAND_ROWS, min(end_band * BAND_ROWS, height)
        start = int(columns.first_bands[index])
        bands = slice(start + first_band, start + end_band)
        shape, checked = (end - first, CHANNELS, width), self._checked[set_name, ground_truth]
        offset += first * CHANNELS * width
        try:
            lines = self._checked_bytes(shard, offset, shape, columns.bands[bands], checked[bands])
        except QdmrError as error:
            raise type(error)(f"{error} (row {row}, {table.origin(index)})") from error
        return lines[top - first : bottom - first]

    def crop(
        self,
        set_name: str,
        index: int,
        *,
        top: int,
        left: int,
        size: int,
        ground_truth: bool = False,
    ) -> np.ndarray:
        """Reads the square of ``size`` pixels at (top, left), as a view, uint8 (3, size, size);
        raises QdmrError as ``lines``, and ValueError for a square that reaches over the edge."""
        height, width = self.index(set_name).size(index)
        if not (0 <= top <= height - size and 0 <= left <= width - size):
            raise ValueError(f"crop {size} at ({top}, {left}) does not fit {width} x {height}")
        lines = self.lines(set_name, index, top, top + size, ground_truth=ground_truth)
        return lines[:, :, left : left + size].transpose(1, 0, 2)

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

    def _checked_bytes(
        self,
        shard: ShardEntry,
        offset: int,
        shape: tuple[int, int, int],
        bands: np.ndarray,
        checked: np.ndarray,
    ) -> np.ndarray:
        """Reads whole bands of pixels, uint8 ``shape``, that agree with their checksums ``bands``.
        Bands marked in ``checked`` need no comparing any more; those compared here get marked."""
        length, place = math.prod(shape), self._location.join(shard.file)
        mapped = self._mapping(shard, place)
        if mapped is not None:
            lines = mapped[offset : offset + length].reshape(shape)
            if _agree(lines, bands, checked):
                return lines
            # Another thread may have mapped a new copy meanwhile.
            if self._cache is not None and self._mapped.get(shard.file) is mapped:
                self._mapped.pop(shard.file, None)
                self._cache.doubt(shard.file)
        if self.is_remote:
            for _ in range(_FETCHES):
                data, size = place.read_piece(offset, length)
                if size == shard.bytes:
                    lines = np.frombuffer(data, dtype=np.uint8).reshape(shape)
                    # A fetched piece is new each time, so it is checked each time.
                    if _agree(lines, bands, np.zeros_like(checked)):
                        return lines
            _check_size(place.uri, size, shard)
        raise BrokenRecordError(f"{place.uri}: wrong checksum; pack the dataset again")

    def _mapping(self, shard: ShardEntry, place: Location) -> np.ndarray | None:
        """Returns the shard's bytes where it lies on a disk of this machine, else None."""
        mapped = self._mapped.get(shard.file)
        path = place.local_path
        if mapped is None and path is not None:
            size = place.size()
            if size is None:
                raise QdmrError(f"{path}: is missing; pack the dataset again")
            _check_size(str(path), size, shard)
        elif mapped is None and self._cache is not None:
            path = self._cache.path(shard.file)
        if mapped is None and path is not None:
            try:
                # Slicing np.memmap costs ten times as much as slicing a plain array over it.
                mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            except OSError as error:
                if self.is_remote:
                    return None  # Another process has dropped the copy just now.
                raise disk_error(str(path), "read", error) from error
            self._mapped[shard.file] = mapped
        return mapped


def _agree(lines: np.ndarray, bands: np.ndarray, checked: np.ndarray) -> bool:
    """Compares bands of ``lines`` not yet ``checked`` with their checksums, and marks them."""
    for band in np.flatnonzero(~checked).tolist():
        top = band * BAND_ROWS
        if zlib.crc32(lines[top : top + BAND_ROWS].data) != bands[band]:
            return False
        checked[band] = True
    return True


def _check_size(place: str, size: int, shard: ShardEntry) -> None:
    if size != shard.bytes:
        raise BrokenRecordError(
            f"{place}: has {size} bytes instead of {shard.bytes}; pack the dataset again"
        )

"""Reading records of a packed dataset by their position; opened once per process.

On a local disk the shards are memory-mapped: a crop touches only its own rows, and the operating
system's page cache is the cache. From a store, whole photographs are fetched and kept in a cache
that is bounded in bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from qdmr_ray.data.manifest import CHANNELS, RecordEntry, ShardEntry, read_manifest
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import open_location

DEFAULT_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class Record:
    """One photograph, uint8 (H, W, 3) RGB; ``name`` is its file name without ending."""

    name: str
    image: np.ndarray
    ground_truth: np.ndarray | None


class RecordReader:
    """The records of the packed dataset at ``uri`` (local path or ``s3://…``).

    ``cache_bytes`` bounds what is kept of photographs fetched from a store; ``endpoint`` is the
    address of an S3-compatible one. Not safe for use by several threads at once.

    Raises:
        QdmrError: there is no dataset, or its manifest is damaged.
    """

    def __init__(
        self,
        uri: str,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        endpoint: str | None = None,
    ) -> None:
        self._location = open_location(uri, endpoint=endpoint)
        self.manifest = read_manifest(self._location)
        self._ends = {
            name: list(accumulate(len(shard.records) for shard in entry.shards))
            for name, entry in self.manifest.sets.items()
        }
        self._mapped: dict[str, np.ndarray] = {}
        self._fetched = _ByteBoundedCache(cache_bytes)

    def count(self, set_name: str) -> int:
        """Records in a set."""
        return self.manifest.set(set_name).images

    def read(self, set_name: str, index: int) -> Record:
        """A whole record, as writable copies.

        Raises:
            QdmrError: the set does not exist, or its shard is missing or damaged.
        """
        _, _, entry = self._find(set_name, index)
        image = self.planes(set_name, index)
        ground_truth = None
        if entry.ground_truth_offset is not None:
            ground_truth = _interleaved(self.planes(set_name, index, ground_truth=True))
        return Record(name=entry.name, image=_interleaved(image), ground_truth=ground_truth)

    def planes(self, set_name: str, index: int, *, ground_truth: bool = False) -> np.ndarray:
        """A photograph's planes, uint8 (3, H, W), read-only and without copying where possible.

        Raises:
            QdmrError: the set or its ground truth does not exist, or the shard is missing or
                damaged.
        """
        shard, row, entry = self._find(set_name, index)
        offset = entry.ground_truth_offset if ground_truth else entry.image_offset
        if offset is None:
            raise QdmrError(f"the {set_name} set of {self._location.uri} has no ground truth")
        try:
            data = self._bytes(shard, offset, entry.image_bytes)
        except QdmrError as error:
            raise QdmrError(f"{error} (row {row}, {entry.origin})") from error
        return data.reshape(CHANNELS, entry.height, entry.width)

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
        """The square of ``size`` pixels at (top, left), as a view, uint8 (3, size, size).

        Raises:
            QdmrError: as ``planes``.
            ValueError: the square reaches over the photograph's edge.
        """
        planes = self.planes(set_name, index, ground_truth=ground_truth)
        _, height, width = planes.shape
        if not (0 <= top <= height - size and 0 <= left <= width - size):
            raise ValueError(f"crop {size} at ({top}, {left}) does not fit {width} x {height}")
        return planes[:, top : top + size, left : left + size]

    def _find(self, set_name: str, index: int) -> tuple[ShardEntry, int, RecordEntry]:
        entry = self.manifest.set(set_name)
        ends = self._ends[set_name]
        if not 0 <= index < (ends[-1] if ends else 0):
            raise IndexError(f"{set_name} record {index} of {entry.images}")
        number = bisect_right(ends, index)
        shard = entry.shards[number]
        row = index - (ends[number] - len(shard.records))
        return shard, row, shard.records[row]

    def _bytes(self, shard: ShardEntry, offset: int, length: int) -> np.ndarray:
        """uint8 (length,), read-only, of one shard."""
        if self._location.local_path is None:
            return self._fetch(shard, offset, length)
        if shard.file not in self._mapped:
            self._mapped[shard.file] = self._map(shard)
        return self._mapped[shard.file][offset : offset + length]

    def _map(self, shard: ShardEntry) -> np.ndarray:
        file = self._location.join(shard.file)
        size = file.size()
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
            raise QdmrError(f"{file.uri}: {found}; pack the dataset again")
        # A plain array over the mapping: slicing np.memmap costs ten times as much.
        return np.asarray(np.memmap(file.path, dtype=np.uint8, mode="r"))

    def _fetch(self, shard: ShardEntry, offset: int, length: int) -> np.ndarray:
        key = (shard.file, offset)
        data = self._fetched.get(key)
        if data is None:
            file = self._location.join(shard.file)
            data = np.frombuffer(file.read_bytes(offset, length), dtype=np.uint8)
            self._fetched.put(key, data)
        return data


class _ByteBoundedCache:
    """Least recently used arrays, dropped when together they exceed ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._items: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def get(self, key: tuple[str, int]) -> np.ndarray | None:
        data = self._items.get(key)
        if data is not None:
            self._items.move_to_end(key)
        return data

    def put(self, key: tuple[str, int], data: np.ndarray) -> None:
        self._items[key] = data
        self._size += data.nbytes
        while self._size > self._limit:
            _, dropped = self._items.popitem(last=False)
            self._size -= dropped.nbytes


def _interleaved(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.transpose(1, 2, 0))

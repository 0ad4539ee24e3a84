"""Checks that a packed dataset is complete and that every record of it is whole.

qdmr data inspect data/s1 --verify
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qdmr_ray.data.format.index import SetIndex, set_index
from qdmr_ray.data.format.manifest import Manifest, ShardEntry, read_manifest
from qdmr_ray.data.format.shards import record_digest, record_pixels
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location

_AGAIN = "pack the dataset again"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One bad record, or one bad file when ``row`` is ``None``."""

    shard: str
    row: int | None
    text: str


def verify(
    uri: str,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    endpoint: str | None = None,
) -> tuple[Problem, ...]:
    """Reads every record against its checksum and returns a problem for each bad one; raises
    QdmrError where there is no dataset, or its manifest or an index is damaged."""
    location = open_location(uri, endpoint=endpoint)
    manifest = read_manifest(location)
    total = sum(entry.images for entry in manifest.sets.values())
    done = 0
    problems: list[Problem] = []
    for entry in manifest.sets.values():
        index = set_index(location, entry)
        first = 0
        for shard in entry.shards:
            problems.extend(_shard_problems(location.join(shard.file), shard, index, first))
            first += shard.rows
            done += shard.rows
            progress(done, total)
    return tuple(problems)


def check_complete(location: Location, manifest: Manifest, sets: tuple[str, ...]) -> None:
    """Refuses a dataset whose ``sets`` lack a file or part of one; lists files, reads none. The
    QdmrError names the first such file and says how many there are."""
    present = location.file_sizes()
    entries = [manifest.set(name) for name in sets]
    files = [file for entry in entries for file in (*entry.shards, entry.index)]
    bad = [file for file in files if present.get(file.file) != file.bytes]
    if bad:
        size = present.get(bad[0].file)
        found = "is missing" if size is None else f"has {size} bytes, not {bad[0].bytes}"
        rest = f" (and {len(bad) - 1} more files)" if len(bad) > 1 else ""
        raise QdmrError(f"{location.join(bad[0].file).uri}: {found}; {_AGAIN}{rest}")


def _shard_problems(
    file: Location, shard: ShardEntry, index: SetIndex, first: int
) -> Iterator[Problem]:
    """Yields the problems of a shard whose first row is record ``first`` of ``index``."""
    try:
        data = file.read_bytes()
    except QdmrError as error:
        yield Problem(shard=shard.file, row=None, text=str(error))
        return
    if hashlib.sha256(data).hexdigest() == shard.sha256:
        return
    bad = list(_bad_rows(np.frombuffer(data, dtype=np.uint8), shard, index, first))
    if len(data) != shard.bytes:
        text = f"{file.uri}: {len(data)} bytes instead of {shard.bytes}; {_AGAIN}"
        yield Problem(shard=shard.file, row=None, text=text)
    elif not bad:
        text = f"{file.uri}: wrong checksum, outside the pixels; {_AGAIN}"
        yield Problem(shard=shard.file, row=None, text=text)
    for row, what in bad:
        text = f"{file.uri}: row {row} ({index.origin(first + row)}) {what}; {_AGAIN}"
        yield Problem(shard=shard.file, row=row, text=text)


def _bad_rows(
    data: np.ndarray, shard: ShardEntry, index: SetIndex, first: int
) -> Iterator[tuple[int, str]]:
    for row in range(shard.rows):
        entry = index[first + row]
        end = max(entry.image_offset, entry.ground_truth_offset) + entry.image_bytes
        if end > len(data):
            yield row, "is cut off"
        elif record_digest(*record_pixels(entry, data)) != entry.sha256:
            yield row, "has a wrong checksum"

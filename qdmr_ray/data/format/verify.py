"""What a packed dataset holds, and whether every record of it is whole.

qdmr data inspect data/s1 --verify
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qdmr_ray.data.format.index import SetIndex, open_index
from qdmr_ray.data.format.manifest import (
    Manifest,
    SetEntry,
    ShardEntry,
    missing_files,
    read_manifest,
)
from qdmr_ray.data.format.shards import record_digest, record_pixels
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One bad record, or one bad file when ``row`` is ``None``."""

    shard: str
    row: int | None
    text: str


def inspect(uri: str, *, endpoint: str | None = None) -> Manifest:
    """Counts, sizes and bytes of a packed dataset, without reading its shards.

    Raises:
        QdmrError: there is no dataset, or its manifest is damaged.
    """
    return read_manifest(open_location(uri, endpoint=endpoint))


def verify(
    uri: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    endpoint: str | None = None,
) -> tuple[Problem, ...]:
    """Reads every record against its checksum; each bad one is named, none when all is well.

    Raises:
        QdmrError: there is no dataset, or its manifest or an index is damaged.
    """
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
            if progress is not None:
                progress(done, total)
    return tuple(problems)


def check_complete(location: Location, manifest: Manifest, sets: tuple[str, ...]) -> None:
    """Refuses a dataset of which ``sets`` lack a file or part of one; lists, reads nothing.

    Raises:
        QdmrError: names the first such file and says how many there are.
    """
    problems = missing_files(location, manifest, sets)
    if problems:
        rest = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise QdmrError(problems[0] + rest)


def set_index(location: Location, entry: SetEntry) -> SetIndex:
    """The index of one set of the dataset in ``location``.

    Raises:
        QdmrError: it is missing or damaged.
    """
    file = entry.index
    index = open_index(location.join(file.file), file.bytes, file.sha256)
    if len(index) != entry.images or sum(shard.rows for shard in entry.shards) != entry.images:
        raise QdmrError(f"{location.uri}: index and manifest disagree; pack the dataset again")
    return index


def _shard_problems(
    file: Location, shard: ShardEntry, index: SetIndex, first: int
) -> list[Problem]:
    try:
        data = file.read_bytes()
    except QdmrError as error:
        return [Problem(shard=shard.file, row=None, text=str(error))]
    if hashlib.sha256(data).hexdigest() == shard.sha256:
        return []
    bad = _bad_rows(np.frombuffer(data, dtype=np.uint8), shard, index, first)
    again = "pack the dataset again"
    problems = [
        Problem(
            shard=shard.file,
            row=row,
            text=f"{file.uri}: row {row} ({index.origin(first + row)}) {what}; {again}",
        )
        for row, what in bad
    ]
    if len(data) != shard.bytes:
        text = f"{file.uri}: {len(data)} bytes instead of {shard.bytes}; {again}"
        problems.insert(0, Problem(shard=shard.file, row=None, text=text))
    if problems:
        return problems
    text = f"{file.uri}: wrong checksum, outside the pixels; {again}"
    return [Problem(shard=shard.file, row=None, text=text)]


def _bad_rows(
    data: np.ndarray, shard: ShardEntry, index: SetIndex, first: int
) -> list[tuple[int, str]]:
    bad = []
    for row in range(shard.rows):
        entry = index[first + row]
        end = max(entry.image_offset, entry.ground_truth_offset or 0) + entry.image_bytes
        if end > len(data):
            bad.append((row, "is cut off"))
        elif record_digest(*record_pixels(entry, data)) != entry.sha256:
            bad.append((row, "has a wrong checksum"))
    return bad

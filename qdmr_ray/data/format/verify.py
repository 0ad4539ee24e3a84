"""Checks that a packed dataset is complete and that every record of it is whole.

qdmr data inspect data/s1 --verify
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qdmr_ray.data.format.index import SetIndex, content_digest, set_index
from qdmr_ray.data.format.layout import band_checksums
from qdmr_ray.data.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    SetEntry,
    ShardEntry,
    read_manifest,
)
from qdmr_ray.data.format.shards import record_digest, record_strips
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
    """Reads every record where the index says that it lies, against all of its checksums, and
    returns a problem for each bad one; raises QdmrError where there is no dataset, or its manifest
    or an index is damaged."""
    location = open_location(uri, endpoint=endpoint)
    manifest = read_manifest(location)
    total = sum(entry.images for entry in manifest.sets.values())
    done = 0
    problems: list[Problem] = []
    for entry in manifest.sets.values():
        index, before = set_index(location, entry), done
        problems += _disagreements(location, entry, index)
        for shard in entry.shards:
            file, first = location.join(shard.file), done - before
            problems += _problems(file, shard, index, first, entry.strip_pixels)
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


def _disagreements(location: Location, entry: SetEntry, index: SetIndex) -> list[Problem]:
    """Returns the problems of what manifest and index say about the same records."""
    texts = {}
    if content_digest(index.table) != entry.content:
        texts[entry.index.file] = "names, sizes or checksums of other records than the manifest's"
    sizes = Counter(zip(index.heights.tolist(), index.widths.tolist(), strict=True))
    if sizes != {(size.height, size.width): size.images for size in entry.sizes}:
        texts[MANIFEST_NAME] = "sizes of other records than the index's"
    return [
        Problem(shard=file, row=None, text=f"{location.join(file).uri}: {what}; {_AGAIN}")
        for file, what in texts.items()
    ]


def _problems(
    file: Location, shard: ShardEntry, index: SetIndex, first: int, strip_pixels: int | None
) -> list[Problem]:
    """Returns the problems of a shard whose first row is record ``first`` of ``index``."""
    try:
        data = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    except QdmrError as error:
        return [Problem(shard=shard.file, row=None, text=str(error))]
    whole = hashlib.sha256(data.data).hexdigest() == shard.sha256
    found: list[tuple[int | None, str]] = []
    for row in range(shard.rows):
        entry = index[first + row]
        end = max(entry.image_offset, entry.ground_truth_offset) + entry.image_bytes
        if end > len(data):
            found.append((row, f"row {row} ({entry.origin}) is cut off"))
            continue
        images = record_strips(entry, strip_pixels, data)
        bands = [band for image in images for band in band_checksums(image)]
        expected = entry.image_bands + entry.ground_truth_bands
        if bands != expected or record_digest(images) != entry.sha256:
            found.append((row, f"row {row} ({entry.origin}) has a wrong checksum"))
    if len(data) != shard.bytes:
        found.insert(0, (None, f"{len(data)} bytes instead of {shard.bytes}"))
    elif not whole and not found:
        found.append((None, "wrong checksum, outside the pixels"))
    texts = [(row, f"{file.uri}: {what}; {_AGAIN}") for row, what in found]
    return [Problem(shard=shard.file, row=row, text=text) for row, text in texts]

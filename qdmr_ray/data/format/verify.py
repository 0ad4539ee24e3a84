"""Checks that a packed dataset is complete and that every record of it is whole.

qdmr data inspect data/s1 --verify
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import pyarrow as pa

from qdmr_ray.data.format.index import RecordEntry, SetIndex, content_digest, set_index
from qdmr_ray.data.format.layout import band_checksums
from qdmr_ray.data.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    SetEntry,
    ShardEntry,
    read_manifest,
)
from qdmr_ray.data.format.shards import record_digest, record_strips
from qdmr_ray.data.tasks import TASK_MEMORY, Sees, Tasks
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location

_AGAIN = "pack the dataset again"
# Bytes that take longer to read and check than Ray takes to start.
_WORTH_STARTING_RAY = 10 * 10**9


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One bad record, or one bad file when ``row`` is ``None``."""

    shard: str
    row: int | None
    text: str


@dataclass(frozen=True)
class _Job:
    """A shard to check: its rows of the index as an Arrow stream, so that nodes needn't read the
    whole index, and how wide the strips of its pixels are."""

    shard: ShardEntry
    rows: bytes
    strip_pixels: int | None

    def records(self) -> list[RecordEntry]:
        """Returns what the index says about the shard's records."""
        return [RecordEntry(**row) for row in pa.ipc.open_stream(self.rows).read_all().to_pylist()]


class _Jobs(Sequence[_Job]):
    """The shards of all ``sets``; what travels with each is made when it is asked for."""

    def __init__(self, sets: Sequence[tuple[SetEntry, SetIndex]]) -> None:
        self._shards = [
            (entry, index, shard, end - shard.rows)
            for entry, index in sets
            for shard, end in zip(
                entry.shards, accumulate(shard.rows for shard in entry.shards), strict=True
            )
        ]

    def __len__(self) -> int:
        return len(self._shards)

    # Nobody asks for a slice of the shards.
    def __getitem__(self, place: int) -> _Job:  # type: ignore[override]
        entry, index, shard, first = self._shards[place]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, index.table.schema) as stream:
            stream.write_table(index.table.slice(first, shard.rows))
        return _Job(shard, sink.getvalue().to_pybytes(), entry.strip_pixels)


def verify(
    uri: str,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    endpoint: str | None = None,
    start_ray: Callable[[], None] | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Problem, ...]:
    """Reads every record where the index says that it lies, against all of its checksums, and
    returns a problem for each bad one; raises QdmrError where there is no dataset, or its manifest
    or an index is damaged. Where Ray runs, or ``start_ray`` starts it for a large dataset, the
    shards are read on all nodes that see them; ``say`` is told of the others."""
    location = open_location(uri, endpoint=endpoint)
    manifest = read_manifest(location)
    sets = [(entry, set_index(location, entry)) for entry in manifest.sets.values()]
    jobs = _Jobs(sets)
    local = location.join(MANIFEST_NAME).local_path
    results = Tasks("verifying", start_ray, say).results(
        partial(_problems, location),
        jobs,
        sees=Sees() if local is None else Sees.of([local]),
        is_large=sum(shard.bytes for entry, _ in sets for shard in entry.shards)
        > _WORTH_STARTING_RAY,
        memory=lambda job: job.shard.bytes + TASK_MEMORY,
    )
    total = sum(entry.images for entry, _ in sets)
    done = 0
    found: dict[int, list[Problem]] = {}
    for place, (rows, problems) in results:
        found[place] = problems
        done += rows
        progress(done, total)
    ordered: list[Problem] = []
    place = 0
    for entry, index in sets:
        ordered += _disagreements(location, entry, index)
        for _ in entry.shards:
            ordered += found[place]
            place += 1
    return tuple(ordered)


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


def _problems(location: Location, job: _Job) -> tuple[int, list[Problem]]:
    """Returns the number of a shard's rows, and its problems."""
    file, shard = location.join(job.shard.file), job.shard
    try:
        data = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    except QdmrError as error:
        return shard.rows, [Problem(shard=shard.file, row=None, text=str(error))]
    whole = hashlib.sha256(data.data).hexdigest() == shard.sha256
    found: list[tuple[int | None, str]] = []
    for row, entry in enumerate(job.records()):
        end = max(entry.image_offset, entry.ground_truth_offset) + entry.image_bytes
        if end > len(data):
            found.append((row, f"row {row} ({entry.origin}) is cut off"))
            continue
        images = record_strips(entry, job.strip_pixels, data)
        bands = [band for image in images for band in band_checksums(image)]
        expected = entry.image_bands + entry.ground_truth_bands
        if bands != expected or record_digest(images) != entry.sha256:
            found.append((row, f"row {row} ({entry.origin}) has a wrong checksum"))
    if len(data) != shard.bytes:
        found.insert(0, (None, f"{len(data)} bytes instead of {shard.bytes}"))
    elif not whole and not found:
        found.append((None, "wrong checksum, outside the pixels"))
    texts = [(row, f"{file.uri}: {what}; {_AGAIN}") for row, what in found]
    return shard.rows, [Problem(shard=shard.file, row=row, text=text) for row, text in texts]

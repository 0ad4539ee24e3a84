"""Resumes an interrupted packing by a note beside each shard, kept until the manifest is there.

A note names the files a shard was made from (names, lengths, times of change) and holds its rows of
the index. Packing again takes a shard over when its note still fits; the result is the same as
packing undisturbed, because a shard depends on its files and settings alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from qdmr_ray.data.format.index import encode_index
from qdmr_ray.data.format.manifest import LeftOut, Manifest, ShardEntry
from qdmr_ray.data.format.shards import PackedShard, ShardJob, write_shard
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.document import Document

UNFINISHED_FOLDER = "unfinished"
_METADATA = b"qdmr"


class _Note(Document):
    """The metadata of a note, which is an Arrow file of the shard's rows of the index. ``levels``
    holds the counts of pixel values of the photographs and of the ground truths."""

    fingerprint: str
    shard: ShardEntry | None
    levels: tuple[list[list[int]], list[list[int]]]
    left_out: tuple[LeftOut, ...]


def write_and_note(job: ShardJob, folder_uri: str, endpoint: str | None = None) -> PackedShard:
    """Writes a job's shard, then its note; raises QdmrError as ``write_shard``."""
    # Computed before the files are read: one that changes meanwhile must not pass for packed.
    fingerprint = _fingerprint(job)
    packed = write_shard(job, folder_uri, endpoint)
    note = _Note(
        fingerprint=fingerprint,
        shard=packed.shard,
        levels=(packed.image_levels.tolist(), packed.ground_truth_levels.tolist()),
        left_out=packed.left_out,
    )
    metadata = {_METADATA: note.to_json(indent=None).encode()}
    file = _note_file(open_location(folder_uri, endpoint=endpoint), job)
    file.write_bytes_atomic(encode_index(packed.index.replace_schema_metadata(metadata)))
    return packed


def finished_before(
    location: Location, jobs: Sequence[ShardJob]
) -> list[tuple[ShardJob, PackedShard]]:
    """Returns the jobs that an interrupted packing into ``location`` did, with their results."""
    names = {file.name for file in location.join(UNFINISHED_FOLDER).list()}
    present = location.file_sizes() if names else {}
    found = []
    for job in jobs:
        file = _note_file(location, job)
        packed = _decode(file.read_bytes(), _fingerprint(job)) if file.name in names else None
        if packed is None:
            continue
        if packed.shard is None or present.get(packed.shard.file) == packed.shard.bytes:
            found.append((job, packed))
    return found


def _note_file(location: Location, job: ShardJob) -> Location:
    return location.join(UNFINISHED_FOLDER, f"{job.set_name}-{job.number:06d}.arrow")


def _fingerprint(job: ShardJob) -> str:
    """Returns a checksum over everything that decides what the job's shard will hold."""
    files = []
    for path in job.paths():
        try:
            found = path.stat()
        except OSError as error:
            raise QdmrError(f"{path}: cannot be read ({error.strerror})") from error
        files.append([job.origin(path), found.st_size, found.st_mtime_ns])
    decides = [Manifest.FORMAT, job.set_name, job.number, job.leave_out, files]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _decode(data: bytes, fingerprint: str) -> PackedShard | None:
    """Returns the result in a note; ``None`` when it is damaged or was made from other files."""
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        note = _Note.parse(table.schema.metadata[_METADATA], "note")
    except (pa.ArrowException, KeyError, TypeError, QdmrError):
        return None
    if note.fingerprint != fingerprint:
        return None
    image, truth = (np.array(levels, dtype=np.int64) for levels in note.levels)
    return PackedShard(
        shard=note.shard,
        index=table.replace_schema_metadata(None),
        image_levels=image,
        ground_truth_levels=truth,
        left_out=note.left_out,
    )

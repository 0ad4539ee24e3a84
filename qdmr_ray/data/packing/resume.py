"""What an interrupted packing has finished: a note beside each shard until the manifest is there.

A note says which files a shard was made from (names, lengths, times of change) and holds its
rows of the index. Packing again takes a shard over when its note still fits; the result is the
same as packing undisturbed, because a shard depends on its files and settings alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from qdmr_ray.data.format.index import CHANNELS
from qdmr_ray.data.format.manifest import SCHEMA_VERSION, LeftOut, ShardEntry
from qdmr_ray.data.format.shards import LEVELS, PackedShard, ShardJob, write_shard
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location, open_location

UNFINISHED_FOLDER = "unfinished"
_METADATA = b"qdmr"


def write_and_note(job: ShardJob, folder_uri: str, endpoint: str | None = None) -> PackedShard:
    """Writes a job's shard, then its note.

    Raises:
        QdmrError: as ``write_shard``.
    """
    # Before the files are read: one that changes meanwhile must not pass for packed.
    fingerprint = _fingerprint(job)
    packed = write_shard(job, folder_uri, endpoint)
    note = _note(open_location(folder_uri, endpoint=endpoint), job)
    note.write_bytes_atomic(_encode(packed, fingerprint))
    return packed


def finished_before(
    location: Location, jobs: Sequence[ShardJob]
) -> list[tuple[ShardJob, PackedShard]]:
    """The jobs that an interrupted packing into ``location`` has done, with what came of them."""
    names = {file.name for file in location.join(UNFINISHED_FOLDER).list()}
    present = location.file_sizes() if names else {}
    found = []
    for job in jobs:
        note = _note(location, job)
        if note.name not in names:
            continue
        packed = _decode(note.read_bytes(), _fingerprint(job))
        shard = packed.shard if packed else None
        if packed and (shard is None or present.get(shard.file) == shard.bytes):
            found.append((job, packed))
    return found


def _note(location: Location, job: ShardJob) -> Location:
    return location.join(UNFINISHED_FOLDER, f"{job.set_name}-{job.number:06d}.arrow")


def _fingerprint(job: ShardJob) -> str:
    """A checksum over everything that decides what the job's shard will hold."""
    files = []
    for record in job.records:
        for path in (record.image, record.ground_truth):
            if path is not None:
                try:
                    found = path.stat()
                except OSError as error:
                    raise QdmrError(f"{path}: cannot be read ({error.strerror})") from error
                files.append([job.origin(path), found.st_size, found.st_mtime_ns])
    decides = [SCHEMA_VERSION, job.set_name, job.number, job.leave_out, files]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _encode(packed: PackedShard, fingerprint: str) -> memoryview:
    facts = {
        "fingerprint": fingerprint,
        "shard": asdict(packed.shard) if packed.shard else None,
        "levels": [packed.image_levels.tolist(), packed.ground_truth_levels.tolist()],
        "left_out": [asdict(file) for file in packed.left_out],
    }
    table = packed.index.replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _decode(data: bytes, fingerprint: str) -> PackedShard | None:
    """What a note holds; ``None`` when it is damaged or was made from other files."""
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        facts = json.loads(table.schema.metadata[_METADATA])
        if facts["fingerprint"] != fingerprint:
            return None
        image, truth = np.array(facts["levels"], dtype=np.int64).reshape(2, CHANNELS, LEVELS)
        return PackedShard(
            shard=ShardEntry(**facts["shard"]) if facts["shard"] else None,
            index=table.replace_schema_metadata(None),
            image_levels=image,
            ground_truth_levels=truth,
            left_out=tuple(LeftOut(**file) for file in facts["left_out"]),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError):
        return None

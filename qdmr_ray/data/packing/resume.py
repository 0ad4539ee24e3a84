"""What lies beside shards until the manifest is there: notes to go on from, and who packs them.

A note names the files a shard was made from (names, lengths, times of change) and holds its rows of
the index. Packing again takes a shard over when its note still fits; the result is the same as
packing undisturbed, because a shard depends on its files and settings alone.

One process at a time packs into a folder (``claimed``): another one's shards would not be in its
manifest, and be deleted at its end.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from qdmr_ray.data.format.index import encode_index, read_index
from qdmr_ray.data.format.shards import PackedShard, ShardJob, write_shard
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import TEMPORARY_PREFIX, Location
from qdmr_ray.storage.claims import Claim, Claims

UNFINISHED_FOLDER = "unfinished"
_CLAIMS = "claims"
_NOTE = re.compile(rf"(source|target|test)-\d{{6,}}\.arrow|{re.escape(TEMPORARY_PREFIX)}.*")
# A note is an Arrow file of the shard's rows of the index; this metadata holds the PackedShard.
_METADATA = b"qdmr"


def write_and_note(
    folder: Location, may_write: Callable[[], None], job: ShardJob
) -> tuple[PackedShard, pa.Table]:
    """Writes a job's shard, then its note; calls ``may_write``, returns and raises as
    ``write_shard``."""
    packed, index = write_shard(job, folder, may_write)
    may_write()
    noted = index.replace_schema_metadata({_METADATA: packed.to_json(indent=None).encode()})
    _note_file(folder, job).write_bytes_atomic(encode_index(noted))
    return packed, index


def finished_before(
    folder: Location, jobs: Sequence[ShardJob]
) -> dict[int, tuple[PackedShard, pa.Table]]:
    """Returns the results of an interrupted packing into ``folder``, by their job's place."""
    names = {file.name for file in folder.join(UNFINISHED_FOLDER).list()}
    present = folder.file_sizes() if names else {}
    found = {}
    for place, job in enumerate(jobs):
        file = _note_file(folder, job)
        if file.name not in names:
            continue
        try:
            index = read_index(pa.py_buffer(file.read_bytes()), file.uri)
            packed = PackedShard.parse(index.schema.metadata[_METADATA], "note")
        except (pa.ArrowException, KeyError, TypeError, QdmrError):
            continue  # The note is damaged.
        is_whole = packed.shard is None or present.get(packed.shard.file) == packed.shard.bytes
        if is_whole and packed.fingerprint == job.fingerprint():
            found[place] = packed, index.replace_schema_metadata(None)
    return found


@contextmanager
def claimed(
    folder: Location,
    say: Callable[[str], None],
    *,
    work: str = "packing",
    within: str = UNFINISHED_FOLDER,
) -> Iterator[Claim]:
    """Holds the claim on ``work`` in ``folder``, whose files lie ``within`` it, and leaves no trace
    of it. Raises QdmrError where another process holds it; ``say`` receives a line while that isn't
    known yet."""

    def refuse(owner: str) -> None:
        raise QdmrError(
            f"{folder.uri}: {owner} is {work} into this folder; let it finish, or name another "
            "folder with --out"
        )

    unfinished = folder.join(within)
    existed = folder.exists()
    claims = Claims(unfinished.join(_CLAIMS), traceless=True)
    try:
        claim = claims.acquire(lambda: False, lambda whom: say(f"{folder.uri}: {whom}"), refuse)
        assert claim is not None
        with claim:
            yield claim
    finally:
        unfinished.delete_empty()
        if not existed:
            folder.delete_empty()


def delete_notes(folder: Location) -> None:
    """Deletes the notes of a packing into ``folder`` that nobody will go on with."""
    for file in folder.join(UNFINISHED_FOLDER).list():
        if _NOTE.fullmatch(file.name):
            file.delete()


def _note_file(folder: Location, job: ShardJob) -> Location:
    return folder.join(UNFINISHED_FOLDER, f"{job.name}.arrow")

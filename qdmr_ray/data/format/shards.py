"""One shard: a Parquet file whose pixels can be cut without decoding anything.

A photograph is stored raw, interleaved by line and in vertical strips (``layout``). What other ways
cost, measured on 1920 x 1280 with sensor noise (one core of an AMD EPYC, 2026-11-28, other work
beside it: ``tests/benchmarks/layouts.py``; ``qdmr bench data`` times the whole path):

======================  =================  ================  ==========================
layout                  bytes on disk      a crop of 256     bytes read for the crop
======================  =================  ================  ==========================
PNG                     3.7 MB             88 ms (decode)    3.7 MB
raw (H, W, 3)           7.4 MB             0.14 ms           1.5 MB in one piece
raw planes (3, H, W)    7.4 MB             0.06 ms           1.5 MB in three pieces
raw lines (H, 3, W)     7.4 MB             0.04 ms           1.5 MB in one piece
lines, zstd bands       7.0 MB             1.4 ms            1.4 MB in one piece
lines, lz4 bands        7.3 MB             0.06 ms           1.5 MB in one piece
512 tiles, step 256     28 MB              0.04 ms           0.8 MB in one piece
======================  =================  ================  ==========================

Noise does not compress, so compression would save 1 to 5 % and cost time on every crop. Tiles
with enough overlap to hold every crop halve the bytes of a read and take four times the disk.

Strips need no more disk. A crop is read in whole bands, so that they can be checked: on the average
of 512 places, with all checksums, from a mapped file, and from stores of 5 ms of latency, one with
125 MB/s (16 requests at a time, three runs, client and server on the same two busy cores):

===========  ========  ================  =======  =================  ==================  ========
strips       requests  MB (at most)      mapped   pairs/s, CPU       ... with 125 MB/s   index
===========  ========  ================  =======  =================  ==================  ========
whole rows   1         1.84 (1.84)       0.46 ms  195-276, 2.2 ms    32-34 pairs/s       308 B
960 wide     1.17      1.07 (1.84)       0.28 ms  283-481, 1.4 ms    57                  468 B
640 wide     1.29      0.79 (1.23)       0.21 ms  437-538, 0.9 ms    74-75               628 B
512 wide     1.50      0.70 (0.98)       0.19 ms  353-407, 1.2 ms    87                  788 B
384 wide     1.62      0.59 (0.74)       0.17 ms  428-574, 0.9 ms    107                 948 B
256 wide     2         0.48 (0.49)       0.14 ms  315-577, 1.1 ms    129                 1,428 B
===========  ========  ================  =======  =================  ==================  ========

Without checksums, which a mapped band needs once, a crop takes 0.044 ms in strips of 512 and 0.038
in whole rows. Narrower strips take more requests, which a store counts and charges, and a larger
index, for few bytes less. In strips of 512 a crop of up to 512 lies in one or two.

Why one row per row group: an uncompressed, plain-encoded column chunk with a single value ends
with that value's bytes. They lie in one piece at an offset that the index keeps, so a crop is a
slice of the mapped file, while every Parquet reader still sees ordinary rows.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from qdmr_ray.data.format.index import NO_OFFSET, RecordEntry, index_table
from qdmr_ray.data.format.layout import (
    CHANNELS,
    STRIP_PIXELS,
    band_checksums,
    lines,
    stored,
    strips,
)
from qdmr_ray.data.format.manifest import FileEntry, LeftOut, Manifest, ShardEntry
from qdmr_ray.data.packing.folders import RecordFiles
from qdmr_ray.data.tasks import TASK_MEMORY
from qdmr_ray.errors import QdmrError, printable
from qdmr_ray.photographs.decode import read_checked
from qdmr_ray.storage import AnyPath, Location, location_of
from qdmr_ray.storage.document import Document
from qdmr_ray.storage.names import is_text

# Digits of the checksum in a file name: enough to keep different contents apart.
_DIGEST_DIGITS = 16
# The number of values of a uint8 pixel.
LEVELS = 256
_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("ground_truth_origin", pa.string()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("ground_truth", pa.binary()),
    ],
    metadata={
        "pixels": f"uint8; vertical strips {STRIP_PIXELS} wide, the last what is left, each "
        "(height, 3, width of the strip): a line of red, of green, of blue; from the top"
    },
)
_PIXEL_COLUMNS = [_SCHEMA.get_field_index(name) for name in ("image", "ground_truth")]


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The arguments of one packing task: these records of this set become shard ``number``. Origins
    are paths below ``root``; relative paths begin at ``base``, on whichever node the task runs.
    Unusable records are left out with ``leave_out``, else an error."""

    set_name: str
    number: int
    records: tuple[RecordFiles, ...]
    root: AnyPath
    base: Path
    leave_out: bool = False

    @property
    def name(self) -> str:
        """The name of the shard, as its file's begins."""
        return f"{self.set_name}-{self.number:06d}"

    @property
    def memory(self) -> int:
        """The bytes that writing the shard takes, measured with pairs of 15 and of 144 MB: its
        buffer grows by doubling, and one record is decoded at a time."""
        largest = max(record.pixel_bytes for record in self.records)
        shard = sum(record.pixel_bytes for record in self.records)
        return TASK_MEMORY + 3 * shard + 2 * largest

    def fingerprint(self) -> str:
        """Returns a checksum over everything that decides what the shard will hold."""
        paths = [self.base / path for record in self.records for path in record.paths]
        files = [[origin_of(path, self.root), *location_of(path).version()] for path in paths]
        decides = [Manifest.FORMAT, self.set_name, self.number, self.leave_out, files]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


class PackedShard(Document):
    """The result of a job of this ``fingerprint``, beside its rows of the index. ``shard`` is
    ``None`` when every record was left out. The levels are (2, 3, 256): how many pixels of each
    channel of the photographs, and of the ground truths, have each value."""

    fingerprint: str
    shard: ShardEntry | None
    levels: list[list[list[int]]]
    left_out: tuple[LeftOut, ...]


def write_shard(
    job: ShardJob, folder: Location, may_write: Callable[[], None]
) -> tuple[PackedShard, pa.Table]:
    """Decodes the job's files, writes its shard, and returns its index, too; the same files give
    the same bytes. ``may_write`` is called just before and raises where the folder is another
    process's by then. Raises QdmrError where an image is unreadable, constant or not of the size
    that its header promised, or the shard cannot be written."""
    # Computed before the files are read: one that changes meanwhile must not pass for packed.
    fingerprint = job.fingerprint()
    levels = np.zeros((2, CHANNELS, LEVELS), dtype=np.int64)
    left_out: list[LeftOut] = []
    entries: list[RecordEntry] = []
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, _SCHEMA, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for row, files in enumerate(job.records):
            try:
                decoded = [_pixels(job.base, files, path) for path in files.paths]
            except QdmrError as error:
                if not job.leave_out:
                    place = f"{job.set_name} shard {job.number}, row {row}"
                    raise QdmrError(f"{error} ({place})") from error
                left_out.append(
                    left_out_of(job.set_name, job.base / files.image, job.root, str(error))
                )
                continue
            image, *truths = (pixels for pixels, _ in decoded)
            truth = truths[0] if truths else None
            for kind, (_, counts) in enumerate(decoded):
                levels[kind] += counts
            entries.append(_entry(job, files, image, truth))
            images = {"image": image.data, "ground_truth": None if truth is None else truth.data}
            record = {"set": job.set_name, **vars(entries[-1]), **images}
            writer.write_table(pa.Table.from_pylist([record], schema=_SCHEMA))
    data = memoryview(sink.getvalue())
    shard = None
    if entries:
        entries = _located(entries, data)
        may_write()
        written = write_by_content(folder, job.name, "parquet", data)
        shard = ShardEntry(**vars(written), rows=len(entries))
    packed = PackedShard(
        fingerprint=fingerprint, shard=shard, levels=levels.tolist(), left_out=tuple(left_out)
    )
    return packed, index_table(entries)


def write_by_content(folder: Location, name: str, ending: str, data: memoryview) -> FileEntry:
    """Writes a file whose name carries its content's checksum, so that packing again never touches
    the files of a dataset that is in use."""
    checksum = hashlib.sha256(data).hexdigest()
    file = f"{name}-{checksum[:_DIGEST_DIGITS]}.{ending}"
    folder.join(file).write_bytes_atomic(data)
    return FileEntry(file=file, bytes=len(data), sha256=checksum)


def origin_of(path: AnyPath, root: AnyPath) -> str:
    """Returns a whole path as the dataset names it: below ``root`` where it lies there, else whole.
    What is no text in the names of folders becomes escapes."""
    origin = str(path).removeprefix(f"{str(root).rstrip('/')}/")
    return origin if is_text(origin) else printable(origin)


def left_out_of(set_name: str, file: AnyPath, root: AnyPath, reason: str) -> LeftOut:
    """Makes the manifest's note on a file that was not packed."""
    reason = reason if is_text(reason) else printable(reason)
    return LeftOut(set=set_name, origin=origin_of(file, root), reason=reason)


def record_digest(images: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Returns the sha256 of one record's lines, whatever the strips of its ``images``."""
    digest = hashlib.sha256()
    for image in images:
        for some in lines(image):
            digest.update(some.data)
    return digest.digest()


def record_strips(
    entry: RecordEntry, strip_pixels: int | None, data: np.ndarray
) -> list[list[np.ndarray]]:
    """Returns the strips of the photograph, and of the ground truth if there is one, as views of
    ``data``, a whole shard's bytes."""
    offsets = [o for o in (entry.image_offset, entry.ground_truth_offset) if o != NO_OFFSET]
    size = entry.height, entry.width
    return [strips(data[o : o + entry.image_bytes], size, strip_pixels) for o in offsets]


def _pixels(base: Path, files: RecordFiles, path: AnyPath) -> tuple[np.ndarray, np.ndarray]:
    """Returns the file's pixels as they are stored, and how often each channel has each value."""
    pixels = read_checked(base / path, str(path))
    height, width = pixels.shape[:2]
    if (height, width) != (files.height, files.width):
        raise QdmrError(
            f"{path} is {width} x {height} pixels where {files.width} x {files.height} were "
            "expected; check its orientation mark, or that nothing changes it meanwhile"
        )
    levels = np.array(Image.fromarray(pixels).histogram(), dtype=np.int64)
    levels = levels.reshape(CHANNELS, LEVELS)
    if (np.count_nonzero(levels, axis=1) == 1).all():
        raise QdmrError(f"{path}: every pixel has the same value; replace or remove the file")
    return stored(pixels, STRIP_PIXELS), levels


def _entry(
    job: ShardJob, files: RecordFiles, image: np.ndarray, truth: np.ndarray | None
) -> RecordEntry:
    """Makes the record's entry; the offsets of its pixels are known when the shard is complete."""
    origins = [origin_of(job.base / path, job.root) for path in files.paths]
    size = files.height, files.width
    images = [strips(p, size, STRIP_PIXELS) for p in (image, truth) if p is not None]
    bands = [band_checksums(image) for image in images]
    return RecordEntry(
        name=files.name,
        height=files.height,
        width=files.width,
        origin=origins[0],
        ground_truth_origin=None if truth is None else origins[1],
        image_offset=0,
        ground_truth_offset=NO_OFFSET,
        sha256=record_digest(images),
        image_bands=bands[0],
        ground_truth_bands=[] if truth is None else bands[1],
    )


def _located(entries: list[RecordEntry], data: memoryview) -> list[RecordEntry]:
    metadata = pq.read_metadata(pa.BufferReader(data))
    content = np.frombuffer(data, dtype=np.uint8)
    located = []
    for row, entry in enumerate(entries):
        # The only value of a column chunk fills the chunk's end.
        image, truth = (
            chunk.data_page_offset + chunk.total_compressed_size - entry.image_bytes
            for chunk in map(metadata.row_group(row).column, _PIXEL_COLUMNS)
        )
        truth = truth if entry.ground_truth_bands else NO_OFFSET
        entry = replace(entry, image_offset=image, ground_truth_offset=truth)
        # Reading relies on where the library puts the bytes, so this proves it for every record.
        if record_digest(record_strips(entry, STRIP_PIXELS, content)) != entry.sha256:
            raise RuntimeError("this version of pyarrow lays out Parquet pages in another way")
        located.append(entry)
    return located

"""One shard: a Parquet file whose pixels can be cut without decoding anything.

A photograph is stored raw and interleaved by line, (height, 3, width): one row of red, the same
row of green, of blue, then the next. What that costs, measured on 1920 x 1280 with sensor noise
(one core of an Intel Xeon, 2026-11-23; `qdmr bench data` times the whole path):

======================  =================  ================  ==========================
layout                  bytes on disk      a crop of 256     bytes read for the crop
======================  =================  ================  ==========================
PNG                     3.7 MB             93 ms (decode)    3.7 MB
raw (H, W, 3)           7.4 MB             0.15 ms           1.5 MB in one piece
raw planes (3, H, W)    7.4 MB             0.04 ms           1.5 MB in three pieces
raw lines (H, 3, W)     7.4 MB             0.04 ms           1.5 MB in one piece
lines, zstd bands       7.0 MB             1.5 ms            1.4 MB in one piece
lines, lz4 bands        7.3 MB             0.1 ms            1.5 MB in one piece
512 tiles, step 256     28 MB              0.04 ms           0.8 MB in one piece
======================  =================  ================  ==========================

Noise does not compress, so compression would save 1 to 5 % and cost time on every crop. Tiles
with enough overlap to hold every crop halve the bytes of a read and take four times the disk.
Lines make a crop one range of the file: one request where the shards lie in a store.

Why one row per row group: an uncompressed, plain-encoded column chunk with a single value ends
with that value's bytes. They lie in one piece at an offset that the index keeps, so a crop is a
slice of the mapped file, while every Parquet reader still sees ordinary rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from qdmr_ray.data.format.index import CHANNELS, RecordEntry, band_checksums, index_table
from qdmr_ray.data.format.manifest import LeftOut, ShardEntry
from qdmr_ray.data.packing.folders import RecordFiles
from qdmr_ray.errors import QdmrError
from qdmr_ray.photographs.decode import read_image
from qdmr_ray.storage import open_location

# As many digits of the checksum as keep the names of different contents apart.
DIGEST_DIGITS = 16
# Values of a uint8 pixel.
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
    metadata={"pixels": "uint8 (height, 3, width): a line of red, of green, of blue; from the top"},
)
_IMAGE_COLUMN = _SCHEMA.get_field_index("image")
_GROUND_TRUTH_COLUMN = _SCHEMA.get_field_index("ground_truth")


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What one packing task does: these records of this set become shard ``number``.

    Origins are paths below ``root``. With ``leave_out`` a record that cannot be used is left
    out; else it is an error.
    """

    set_name: str
    number: int
    records: tuple[RecordFiles, ...]
    root: Path
    leave_out: bool = False

    def origin(self, path: Path) -> str:
        """How a file is named in the dataset."""
        return origin_of(path, self.root)

    def paths(self) -> list[Path]:
        """Every file of the job: a photograph, its ground truth, the next photograph …"""
        both = ((record.image, record.ground_truth) for record in self.records)
        return [path for pair in both for path in pair if path is not None]


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """What came of a job.

    ``shard`` is ``None`` when every record was left out. ``image_levels`` and
    ``ground_truth_levels`` are int64 (3, 256): how many pixels of each channel have each value.
    """

    shard: ShardEntry | None
    index: pa.Table
    image_levels: np.ndarray
    ground_truth_levels: np.ndarray
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class _Pixels:
    """A record, decoded: uint8 (H, 3, W) each."""

    files: RecordFiles
    origin: str
    ground_truth_origin: str | None
    image: np.ndarray
    ground_truth: np.ndarray | None

    def digest(self) -> bytes:
        return record_digest(self.image, self.ground_truth)


def write_shard(job: ShardJob, folder_uri: str, endpoint: str | None = None) -> PackedShard:
    """Decodes the job's files and writes its shard; the same files give the same bytes.

    The file name carries the content's checksum, so that packing again never touches the shards
    of a dataset that is in use.

    Raises:
        QdmrError: an image is unreadable, constant or not of the size that its header promised,
            or the shard cannot be written.
    """
    levels = np.zeros((2, CHANNELS, LEVELS), dtype=np.int64)
    left_out: list[LeftOut] = []
    entries: list[RecordEntry] = []
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, _SCHEMA, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for row, files in enumerate(job.records):
            try:
                pixels = _decode(job, files, levels)
            except QdmrError as error:
                if not job.leave_out:
                    place = f"{job.set_name} shard {job.number}, row {row}"
                    raise QdmrError(f"{error} ({place})") from error
                origin = job.origin(files.image)
                left_out.append(LeftOut(set=job.set_name, origin=origin, reason=str(error)))
                continue
            writer.write_table(_row(job.set_name, pixels))
            entries.append(_entry(pixels))
    data = memoryview(sink.getvalue())
    shard = None
    if entries:
        entries = _located(entries, data)
        shard = _write(job, data, len(entries), folder_uri, endpoint)
    return PackedShard(
        shard=shard,
        index=index_table(entries),
        image_levels=levels[0],
        ground_truth_levels=levels[1],
        left_out=tuple(left_out),
    )


def origin_of(path: Path, root: Path) -> str:
    """``path`` as the dataset names it: below ``root`` where it lies there, else whole."""
    path = path.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def record_digest(image: np.ndarray, ground_truth: np.ndarray | None) -> bytes:
    """The sha256 of one record's pixels, uint8, C-contiguous."""
    digest = hashlib.sha256(image.data)
    if ground_truth is not None:
        digest.update(ground_truth.data)
    return digest.digest()


def record_pixels(entry: RecordEntry, data: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Photograph and ground truth, uint8 (H, 3, W), in ``data``, the bytes of a whole shard."""
    shape = (entry.height, CHANNELS, entry.width)
    length = entry.image_bytes
    image = data[entry.image_offset : entry.image_offset + length].reshape(shape)
    if entry.ground_truth_offset is None:
        return image, None
    truth = data[entry.ground_truth_offset : entry.ground_truth_offset + length]
    return image, truth.reshape(shape)


def _decode(job: ShardJob, files: RecordFiles, levels: np.ndarray) -> _Pixels:
    """The record's pixels; their values are counted into ``levels``, int64 (2, 3, 256)."""
    image, image_levels = _lines(files, files.image)
    counted = [image_levels]
    ground_truth, truth_origin = None, None
    if files.ground_truth is not None:
        truth_origin = job.origin(files.ground_truth)
        ground_truth, truth_levels = _lines(files, files.ground_truth)
        counted.append(truth_levels)
    # Only now: a record that is left out must not be counted in part.
    levels[: len(counted)] += np.stack(counted)
    return _Pixels(files, job.origin(files.image), truth_origin, image, ground_truth)


def _lines(files: RecordFiles, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The file's pixels as lines (H, 3, W), and how often each channel has each value."""
    pixels = read_image(path)
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
    return np.ascontiguousarray(pixels.transpose(0, 2, 1)), levels


def _row(set_name: str, pixels: _Pixels) -> pa.Table:
    files, truth = pixels.files, pixels.ground_truth
    row = {
        "set": set_name,
        "name": files.name,
        "origin": pixels.origin,
        "ground_truth_origin": pixels.ground_truth_origin,
        "height": files.height,
        "width": files.width,
        "image": pixels.image.data,
        "ground_truth": None if truth is None else truth.data,
    }
    return pa.Table.from_pylist([row], schema=_SCHEMA)


def _entry(pixels: _Pixels) -> RecordEntry:
    """The record's entry; where its pixels lie is known when the shard is complete."""
    files, truth = pixels.files, pixels.ground_truth
    none = np.empty(0, dtype=np.uint32)
    return RecordEntry(
        name=files.name,
        height=files.height,
        width=files.width,
        origin=pixels.origin,
        ground_truth_origin=pixels.ground_truth_origin,
        image_offset=0,
        ground_truth_offset=None if truth is None else 0,
        sha256=pixels.digest(),
        image_bands=band_checksums(pixels.image),
        ground_truth_bands=none if truth is None else band_checksums(truth),
    )


def _located(entries: list[RecordEntry], data: memoryview) -> list[RecordEntry]:
    metadata = pq.read_metadata(pa.BufferReader(data))
    content = np.frombuffer(data, dtype=np.uint8)
    located = []
    for row, entry in enumerate(entries):
        group, length, truth = metadata.row_group(row), entry.image_bytes, entry.ground_truth_offset
        image_offset = _value_offset(group.column(_IMAGE_COLUMN), length)
        if truth is not None:
            truth = _value_offset(group.column(_GROUND_TRUTH_COLUMN), length)
        entry = replace(entry, image_offset=image_offset, ground_truth_offset=truth)
        # Reading relies on where the library puts the bytes: prove it for every record.
        if record_digest(*record_pixels(entry, content)) != entry.sha256:
            raise RuntimeError("this version of pyarrow lays out Parquet pages in another way")
        located.append(entry)
    return located


def _write(
    job: ShardJob, data: memoryview, rows: int, folder_uri: str, endpoint: str | None
) -> ShardEntry:
    checksum = hashlib.sha256(data).hexdigest()
    file = f"{job.set_name}-{job.number:06d}-{checksum[:DIGEST_DIGITS]}.parquet"
    open_location(folder_uri, endpoint=endpoint).join(file).write_bytes_atomic(data)
    return ShardEntry(file=file, bytes=len(data), sha256=checksum, rows=rows)


def _value_offset(chunk: pq.ColumnChunkMetaData, length: int) -> int:
    """Where the only value of a column chunk starts: it fills the chunk's end."""
    return chunk.data_page_offset + chunk.total_compressed_size - length

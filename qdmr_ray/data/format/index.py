"""The index of one set: where every record's pixels lie, their checksums, and where it came from.

The index is an Arrow IPC file beside the shards. It is memory-mapped, so that ten million records
cost each process the pages that it touches and not a parsed list; any Arrow reader opens it.

Pixels are checked by bands (``layout``). CRC-32 takes 0.15 ms for those of a crop of 256 out of
1920 x 1280 (sha256: 0.4 ms; tests/benchmarks/layouts.py, one core of an AMD EPYC, 2026-11-28), and
a reader does it once per band.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qdmr_ray.data.format.layout import CHANNELS, count_bands
from qdmr_ray.data.format.manifest import SetEntry
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.storage import Location
from qdmr_ray.storage.names import MOST_NAME_BYTES, NOT_A_NAME, NOT_TEXT, check_name, check_text

_AGAIN = "pack the dataset again"
# The offset of a ground truth that there isn't.
NO_OFFSET = -1

INDEX_SCHEMA = pa.schema(
    [
        pa.field("name", pa.large_string(), nullable=False),
        pa.field("origin", pa.large_string(), nullable=False),
        pa.field("ground_truth_origin", pa.large_string()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("image_offset", pa.int64(), nullable=False),
        pa.field("ground_truth_offset", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("image_bands", pa.large_list(pa.uint32()), nullable=False),
        pa.field("ground_truth_bands", pa.large_list(pa.uint32()), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class RecordEntry:
    """One photograph, or a pair: where it came from and where its pixels lie in its shard.

    ``origin`` and ``ground_truth_origin`` are paths below the packed folder; the offsets are the
    bytes before the uint8 pixels in the shard file, ``NO_OFFSET`` without a ground truth;
    ``sha256`` is over the photograph's lines (height, 3, width) followed by the ground truth's,
    however they are stored; bands are the CRC-32 of each (``layout`` says how pixels lie in them).
    """

    name: str
    height: int
    width: int
    origin: str
    ground_truth_origin: str | None
    image_offset: int
    ground_truth_offset: int
    sha256: bytes
    image_bands: list[int]
    ground_truth_bands: list[int]

    @property
    def image_bytes(self) -> int:
        """The bytes of the photograph's pixels; the ground truth has as many."""
        return CHANNELS * self.width * self.height


@dataclass(frozen=True)
class ImageColumns:
    """Offsets and checksums of the photographs, or of the ground truths, by record. ``offsets`` are
    int64 (N,), as in ``RecordEntry``; the checksums of record i are ``bands[first_bands[i] :
    first_bands[i + 1]]``, uint32."""

    offsets: np.ndarray
    first_bands: np.ndarray
    bands: np.ndarray


class SetIndex:
    """The records of one set by position; ``heights`` and ``widths`` are int32 (N,)."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        # An index file holds one batch: each column is one piece of the mapped file.
        self._columns = {name: table[name].chunk(0) for name in table.column_names}
        self.heights = self._numbers("height")
        self.widths = self._numbers("width")
        self.image = self._image_columns("image")
        self.ground_truth = self._image_columns("ground_truth")

    def __len__(self) -> int:
        return len(self.heights)

    def __getitem__(self, position: int) -> RecordEntry:
        return RecordEntry(**{k: column[position].as_py() for k, column in self._columns.items()})

    def size(self, position: int) -> tuple[int, int]:
        """Returns a record's height and width."""
        return int(self.heights[position]), int(self.widths[position])

    def origin(self, position: int) -> str:
        """Returns the path of a record's photograph below the packed folder, for messages."""
        return self._columns["origin"][position].as_py()

    def pixels(self, position: int, *, ground_truth: bool = False) -> tuple[int, ...]:
        """Returns size and checksums of a record's photograph, or of its ground truth: the same for
        the same pixels, wherever two sets lie in strips of the same width."""
        image = self.ground_truth if ground_truth else self.image
        bands = image.first_bands[position : position + 2]
        return (*self.size(position), *image.bands[slice(*bands)].tolist())

    def _image_columns(self, kind: str) -> ImageColumns:
        bands = self._columns[f"{kind}_bands"]
        return ImageColumns(
            offsets=self._numbers(f"{kind}_offset"),
            first_bands=bands.offsets.to_numpy(),
            bands=bands.values.to_numpy(),
        )

    def _numbers(self, name: str) -> np.ndarray:
        return self._columns[name].to_numpy(zero_copy_only=False)


def index_table(entries: list[RecordEntry]) -> pa.Table:
    """Makes a table with a row for each of ``entries``."""
    return pa.Table.from_pylist([vars(entry) for entry in entries], schema=INDEX_SCHEMA)


def content_digest(table: pa.Table) -> str:
    """Returns the sha256 over name, size and pixels of every record, not over shards or offsets."""
    digest = hashlib.sha256()
    for batch in table.select(["name", "height", "width", "sha256"]).to_batches():
        for name, height, width, pixels in zip(*map(pa.Array.to_pylist, batch), strict=True):
            digest.update(f"{len(name.encode())} {name} {height} {width} ".encode() + pixels)
    return digest.hexdigest()


def encode_index(table: pa.Table) -> memoryview:
    """Returns the bytes of an index file, the same for the same rows and metadata."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        # Readers see every column of one batch in one piece of the mapped file.
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())


def set_index(location: Location, entry: SetEntry) -> SetIndex:
    """Reads the index of one set of the dataset in ``location``, mapped where it lies on a local
    disk; raises QdmrError where it is missing, or not the file that the manifest describes, or
    names a record as no file can be named."""
    file = location.join(entry.index.file)
    local = file.local_path
    try:
        data = file.read_bytes() if local is None else pa.memory_map(str(local)).read_buffer()
    except OSError as error:
        raise QdmrError(f"{file.uri}: is missing or unreadable; pack the dataset again") from error
    buffer = pa.py_buffer(data)
    if hashlib.sha256(buffer).hexdigest() != entry.index.sha256:
        raise QdmrError(f"{file.uri}: damaged index; pack the dataset again")
    table = read_index(buffer, file.uri)
    _check_names(table, file.uri)
    index = SetIndex(table)
    if len(index) != entry.images:
        raise QdmrError(f"{location.uri}: index and manifest disagree; {_AGAIN}")
    _check_places(index, entry, file.uri)
    return index


def read_index(buffer: pa.Buffer, uri: str) -> pa.Table:
    """Returns the one batch of rows of an index file, as views of ``buffer``. Raises QdmrError
    where it is no Arrow file of ``INDEX_SCHEMA``, is compressed, or a list or text reaches beyond
    its values: Arrow itself would read there, or end the process."""
    damaged = QdmrError(f"{uri}: damaged index; {_AGAIN}")
    try:
        # After its first 8 bytes, a file is a stream; its footer would only repeat where it lies.
        messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer.slice(8)))
        described, message = messages.read_next_message(), messages.read_next_message()
        # pyarrow doesn't ask for the type, and reads another message as if it were a schema.
        if (described.type, message.type) != ("schema", "record batch"):
            raise damaged
        schema = pa.ipc.read_schema(described)
        if not schema.equals(INDEX_SCHEMA) or _is_compressed(message.metadata):
            raise damaged
        table = pa.Table.from_batches([pa.ipc.read_record_batch(message, schema)])
        table.validate(full=True)
    except (pa.ArrowException, StopIteration, OSError, ValueError, struct.error) as error:
        raise damaged from error
    for field in INDEX_SCHEMA:
        column = table[field.name].chunk(0)
        values = column.values.null_count if pa.types.is_large_list(field.type) else 0
        if values or (column.null_count and not field.nullable):
            raise damaged
    return table


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Returns whether the columns of a record batch are compressed, when a few bytes may stand for
    any number of them. pyarrow doesn't tell, so its message is read as Arrow's ``Message.fbs``
    defines it: a table's first number leads back to its fields' places."""
    data = bytes(metadata)

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from(kind, data, place)[0])

    def field(table: int, position: int) -> int:
        fields = table - number("<i", table)
        inside = 4 + 2 * position < number("<H", fields)
        return number("<H", fields + 4 + 2 * position) if inside else 0

    # Message: version, header_type, header. RecordBatch: length, nodes, buffers, compression.
    message = number("<I", 0)
    header = message + field(message, 2)
    batch = header + number("<I", header)
    return field(batch, 3) != 0


def _check_places(index: SetIndex, entry: SetEntry, uri: str) -> None:
    """Refuses records without pixels, pixels outside their shard, and lists of checksums that are
    not one for each band."""
    heights, widths = index.heights, index.widths
    lengths = CHANNELS * heights.astype(np.float64) * widths
    shards = np.array([shard.bytes for shard in entry.shards], dtype=np.int64)
    room = np.repeat(shards, [shard.rows for shard in entry.shards])
    bad = {"has no pixels": (heights < 1) | (widths < 1)}
    for kind, columns in (("image", index.image), ("ground truth", index.ground_truth)):
        count = np.diff(columns.first_bands)
        if kind == "image" or entry.paired:
            wrong = (columns.offsets < 0) | (columns.offsets + lengths > room)
            bad[f"has its {kind} outside its shard"] = wrong
            expected = count_bands(heights, widths, entry.strip_pixels)
        else:
            bad[f"has a {kind}, unlike its set"] = columns.offsets != NO_OFFSET
            expected = np.zeros_like(count)
        bad[f"has {kind} checksums of other bands"] = count != expected
    for what, rows in bad.items():
        if rows.any():
            row = int(rows.argmax())
            raise QdmrError(f"{uri}: record {row} ({index.origin(row)}) {what}; {_AGAIN}")


def _check_names(table: pa.Table, uri: str) -> None:
    """Refuses names that cannot be a folder's, and origins that are no text."""
    too_long = pc.greater(pc.binary_length(table["name"]), MOST_NAME_BYTES)
    bad_name = pc.or_(too_long, pc.match_substring_regex(table["name"], NOT_A_NAME))
    rules: list[tuple[str, Any, Callable[[str], str]]] = [("name", bad_name, check_name)]
    for column in ("origin", "ground_truth_origin"):
        rules.append((column, pc.match_substring_regex(table[column], NOT_TEXT), check_text))
    for column, bad, check in rules:
        if pc.any(bad).as_py():
            row = pc.index(bad, True).as_py()
            try:
                check(table[column][row].as_py())
            except SettingsError as error:
                raise QdmrError(f"{uri}: record {row}: {column} {error}; {_AGAIN}") from None

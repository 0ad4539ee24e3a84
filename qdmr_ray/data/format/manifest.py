"""``manifest.json``: what a packed dataset holds, and how to tell whether it is whole.

The manifest is written last; a folder without one is not a dataset. It names every shard and, per
set, the index of its records (``index``): ten million records would not fit in a JSON file that
every process parses. Its digest covers every pixel, name and size, but not the machine, the path or
the way the shards are cut.
"""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location
from qdmr_ray.storage.document import Document, FileName, Line, Part
from qdmr_ray.untrusted import parse_json

MANIFEST_NAME = "manifest.json"
_AGAIN = "pack the dataset again"
# The format that stored whole rows. Its datasets stay readable, and packing their photographs again
# changes no digest, since that says nothing of the layout.
_WHOLE_ROWS = _DIGEST_FORMAT = 2
# What a file or an array may have of anything: numpy and pyarrow count in 64 bits.
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]


class FileEntry(Part):
    """A file beside the manifest: its name, length in bytes and checksum."""

    file: FileName
    bytes: Count
    sha256: str


class ShardEntry(FileEntry):
    """One Parquet file of ``rows`` records."""

    rows: Positive


class ValueStatistics(Part):
    """Statistics per channel (R, G, B) over all pixels of a set, in pixel values 0 .. 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[int, ...]
    maximum: tuple[int, ...]


class SizeCount(Part):
    """The number of records of one size in pixels."""

    height: Positive
    width: Positive
    images: Positive


class LeftOut(Part):
    """A file that was not packed, and why."""

    set: FileName
    origin: Line
    reason: Line


class SetEntry(Part):
    """One set (source, target or test). ``images`` counts records (a pair once), ``content`` is the
    checksum of names, sizes and pixels, ``shards`` are in the order of their records,
    ``ground_truth`` is ``None`` where the set is not ``paired``, ``strip_pixels`` where photographs
    are stored as whole rows, as format 2 did (``layout``)."""

    paired: bool
    images: Count
    content: str
    sizes: tuple[SizeCount, ...]
    image: ValueStatistics
    ground_truth: ValueStatistics | None
    strip_pixels: Positive | None = None
    index: FileEntry
    shards: tuple[ShardEntry, ...]

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        # A record is found by its position among the rows of all shards.
        if (rows := sum(shard.rows for shard in self.shards)) != self.images:
            raise ValueError(f"the shards hold {rows} records, images says {self.images}")
        return self


class Manifest(Document):
    """A packed dataset; ``sets`` maps "source", "target" and "test", as far as they exist. The file
    calls its format ``schema_version`` and holds a checksum over its own content."""

    FORMAT: ClassVar[int] = 3

    lens: Line | None
    sets: dict[FileName, SetEntry]
    left_out: tuple[LeftOut, ...] = ()

    def set(self, name: str) -> SetEntry:
        """Returns the set called ``name``; raises QdmrError where the dataset has none."""
        if name not in self.sets:
            raise QdmrError(f"the dataset has no {name} set; it has: {', '.join(self.sets)}")
        return self.sets[name]

    @property
    def digest(self) -> str:
        """The sha256 over lens, names, sizes and pixels of every record of every set. Every stage's
        digest contains it, so the hashed content must not change."""
        content = {name: entry.content for name, entry in self.sets.items()}
        return _sha256([_DIGEST_FORMAT, self.lens, content])

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        """The shards of all sets, one set after the other."""
        return tuple(shard for entry in self.sets.values() for shard in entry.shards)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every shard and index."""
        return tuple(file for entry in self.sets.values() for file in (*entry.shards, entry.index))

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Self:
        """Parses plain values; raises QdmrError for a damaged manifest or another format."""
        damaged = QdmrError(f"{source}: damaged manifest; {_AGAIN}")
        if not isinstance(values, dict) or "schema_version" not in values:
            raise damaged
        if values["schema_version"] not in (_WHOLE_ROWS, cls.FORMAT):
            raise QdmrError(
                f"{source}: schema_version {values['schema_version']}, but this program reads "
                f"{_WHOLE_ROWS} and {cls.FORMAT}; {_AGAIN}, or update qdmr_ray if the number is "
                "higher"
            )
        content = {name: value for name, value in values.items() if name != "checksum"}
        try:
            manifest = super().from_dict(content, source)
        except QdmrError as error:
            told = str(error).removeprefix(f"{source}: ")
            raise QdmrError(f"{source}: damaged manifest ({told}); {_AGAIN}") from error
        if values.get("checksum") != _sha256(content) or content.get("digest") != manifest.digest:
            raise damaged
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``manifest.json``, with digest and checksum."""
        content = super().to_dict() | {"schema_version": self.FORMAT, "digest": self.digest}
        del content["format"]
        return content | {"checksum": _sha256(content)}

    def to_json(self, *, indent: int | None = 1) -> str:
        """Returns the text of ``manifest.json``: the same bytes for the same content."""
        return json.dumps(self.to_dict(), indent=indent, sort_keys=True) + "\n"


def read_manifest(folder: Location) -> Manifest:
    """Reads the manifest of the packed dataset in ``folder``; raises QdmrError where there is none,
    it is damaged, or another version of the program wrote it."""
    file = folder.join(MANIFEST_NAME)
    if not file.exists():
        missing = f"no packed dataset ({MANIFEST_NAME} is missing)"
        raise QdmrError(f"{folder.uri}: {missing}; make one with `qdmr data pack`")
    try:
        values = parse_json(file.read_bytes())
    except ValueError as error:
        raise QdmrError(f"{file.uri}: damaged manifest ({error}); {_AGAIN}") from error
    return Manifest.from_dict(values, file.uri)


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

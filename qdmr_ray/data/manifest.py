"""``manifest.json``: what a packed dataset holds, and how to tell whether it is whole.

The manifest is written last; a folder without one is not a dataset. Its digest covers every
pixel, name and size, and nothing of the machine, the path or the way the shards are cut.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class RecordEntry:
    """One photograph, or a pair: where it came from and where its pixels lie in its shard.

    ``origin`` and ``ground_truth_origin`` are file names; the offsets are the bytes before the
    planar uint8 pixels (3, height, width) in the shard file; ``sha256`` is over the photograph's
    pixels followed by the ground truth's.
    """

    name: str
    height: int
    width: int
    origin: str
    ground_truth_origin: str | None
    image_offset: int
    ground_truth_offset: int | None
    sha256: str

    @property
    def image_bytes(self) -> int:
        return CHANNELS * self.height * self.width


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One Parquet file: its name, length in bytes, checksum and rows."""

    file: str
    bytes: int
    sha256: str
    records: tuple[RecordEntry, ...]


@dataclass(frozen=True, kw_only=True)
class SetEntry:
    """One set (source, target or test): its shards in order; ``paired`` says ground truth."""

    paired: bool
    shards: tuple[ShardEntry, ...]

    @property
    def records(self) -> tuple[RecordEntry, ...]:
        """Every record in the order of its index."""
        return tuple(record for shard in self.shards for record in shard.records)

    @property
    def images(self) -> int:
        """How many records there are; a pair counts once."""
        return sum(len(shard.records) for shard in self.shards)

    def sizes(self) -> np.ndarray:
        """int64 (N, 2): height and width of every record."""
        pairs = [(record.height, record.width) for record in self.records]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def size_counts(self) -> list[tuple[int, int, int]]:
        """(height, width, how many records), sorted by size."""
        counts = Counter((record.height, record.width) for record in self.records)
        return [(height, width, count) for (height, width), count in sorted(counts.items())]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed dataset; ``sets`` maps "source", "target" and "test", as far as they exist."""

    lens: str | None
    sets: dict[str, SetEntry]

    def set(self, name: str) -> SetEntry:
        """The set called ``name``.

        Raises:
            QdmrError: the dataset has no such set.
        """
        if name not in self.sets:
            raise QdmrError(f"the dataset has no {name} set; it has: {', '.join(self.sets)}")
        return self.sets[name]

    @property
    def digest(self) -> str:
        """sha256 over lens, names, sizes and pixels of every record of every set."""
        content = {
            name: [[r.name, r.height, r.width, r.sha256] for r in entry.records]
            for name, entry in self.sets.items()
        }
        text = json.dumps([SCHEMA_VERSION, self.lens, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """The text of ``manifest.json``: the same bytes for the same content."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "lens": self.lens,
            "sets": {name: _set_to_dict(entry) for name, entry in self.sets.items()},
        }
        return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Location) -> Manifest:
    """The manifest of the packed dataset in ``folder``.

    Raises:
        QdmrError: there is none, it is damaged, or another version of the program wrote it.
    """
    file = folder.join(MANIFEST_NAME)
    if not file.exists():
        raise QdmrError(
            f"{folder.uri}: no packed dataset ({MANIFEST_NAME} is missing); "
            "make one with `qdmr data pack`"
        )
    try:
        content = json.loads(file.read_bytes())
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file) from error
    if version != SCHEMA_VERSION:
        raise QdmrError(
            f"{file.uri}: schema_version {version}, but this program reads {SCHEMA_VERSION}; "
            "pack the dataset again"
        )
    try:
        manifest = Manifest(
            lens=content["lens"],
            sets={name: _set_from_dict(entry) for name, entry in content["sets"].items()},
        )
        intact = manifest.digest == content["digest"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file) from error
    if not intact:
        raise _damaged(file)
    return manifest


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Puts ``manifest.json`` into ``folder``, completely or not at all."""
    folder.join(MANIFEST_NAME).write_bytes_atomic(manifest.to_json().encode())


def _damaged(file: Location) -> QdmrError:
    return QdmrError(f"{file.uri}: damaged manifest; pack the dataset again")


def _set_to_dict(entry: SetEntry) -> dict[str, Any]:
    # Counts and sizes are for people and other programs; reading takes them from the records.
    return {
        "paired": entry.paired,
        "images": entry.images,
        "sizes": [
            {"height": height, "width": width, "images": count}
            for height, width, count in entry.size_counts()
        ],
        "shards": [{"rows": len(shard.records), **asdict(shard)} for shard in entry.shards],
    }


def _set_from_dict(content: dict[str, Any]) -> SetEntry:
    shards = [
        ShardEntry(
            file=shard["file"],
            bytes=shard["bytes"],
            sha256=shard["sha256"],
            records=tuple(RecordEntry(**record) for record in shard["records"]),
        )
        for shard in content["shards"]
    ]
    return SetEntry(paired=content["paired"], shards=tuple(shards))

"""``manifest.json``: what a packed dataset holds, and how to tell whether it is whole.

The manifest is written last; a folder without one is not a dataset. It names every shard and,
per set, the index of its records (``index``): ten million records would not fit in a JSON file
that every process parses. Its digest covers every pixel, name and size, and nothing of the
machine, the path or the way the shards are cut.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file beside the manifest: its name, length in bytes and checksum."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry(FileEntry):
    """One Parquet file of ``rows`` records."""

    rows: int


@dataclass(frozen=True, kw_only=True)
class ValueStatistics:
    """Per channel (R, G, B) over all pixels of a set, in pixel values 0 .. 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SizeCount:
    """How many records have one size in pixels."""

    height: int
    width: int
    images: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that was not packed, and why."""

    set: str
    origin: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SetEntry:
    """One set (source, target or test).

    ``images`` counts records (a pair once), ``content`` is the checksum of names, sizes and
    pixels, ``shards`` are in the order of their records, ``ground_truth`` is ``None`` where the
    set is not ``paired``.
    """

    paired: bool
    images: int
    content: str
    sizes: tuple[SizeCount, ...]
    image: ValueStatistics
    ground_truth: ValueStatistics | None
    index: FileEntry
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed dataset; ``sets`` maps "source", "target" and "test", as far as they exist."""

    lens: str | None
    sets: dict[str, SetEntry]
    left_out: tuple[LeftOut, ...] = ()

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
        content = {name: entry.content for name, entry in self.sets.items()}
        text = json.dumps([SCHEMA_VERSION, self.lens, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every shard and index."""
        return tuple(file for entry in self.sets.values() for file in (*entry.shards, entry.index))

    def to_json(self) -> str:
        """The text of ``manifest.json``: the same bytes for the same content."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "lens": self.lens,
            "left_out": [asdict(file) for file in self.left_out],
            "sets": {name: asdict(entry) for name, entry in self.sets.items()},
        }
        return json.dumps(content | {"checksum": _checksum(content)}, indent=1, sort_keys=True)


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
        checksum = content.pop("checksum")
        manifest = Manifest(
            lens=content["lens"],
            left_out=tuple(LeftOut(**entry) for entry in content["left_out"]),
            sets={name: _set_from_dict(entry) for name, entry in content["sets"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(file) from error
    if checksum != _checksum(content) or content["digest"] != manifest.digest:
        raise _damaged(file)
    return manifest


def write_manifest(folder: Location, manifest: Manifest) -> None:
    """Puts ``manifest.json`` into ``folder``, completely or not at all."""
    folder.join(MANIFEST_NAME).write_bytes_atomic(manifest.to_json().encode() + b"\n")


def missing_files(folder: Location, manifest: Manifest, sets: tuple[str, ...]) -> list[str]:
    """A line for each file of ``sets`` that is missing or has another length; one listing."""
    present = folder.file_sizes()
    problems = []
    for name in sets:
        entry = manifest.set(name)
        for file in (*entry.shards, entry.index):
            size = present.get(file.file)
            if size != file.bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {file.bytes}"
                place = folder.join(file.file).uri
                problems.append(f"{place}: {found}; pack the dataset again")
    return problems


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(file: Location) -> QdmrError:
    return QdmrError(f"{file.uri}: damaged manifest; pack the dataset again")


def _set_from_dict(content: dict[str, Any]) -> SetEntry:
    truth = content["ground_truth"]
    return SetEntry(
        paired=content["paired"],
        images=content["images"],
        content=content["content"],
        sizes=tuple(SizeCount(**size) for size in content["sizes"]),
        image=_statistics(content["image"]),
        ground_truth=None if truth is None else _statistics(truth),
        index=FileEntry(**content["index"]),
        shards=tuple(ShardEntry(**shard) for shard in content["shards"]),
    )


def _statistics(content: dict[str, Any]) -> ValueStatistics:
    return ValueStatistics(**{name: tuple(values) for name, values in content.items()})

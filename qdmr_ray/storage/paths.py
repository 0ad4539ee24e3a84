"""Folders and files of a user's, on a disk or in a store, for code that asks both the same way.

    source = any_path("s3://bucket/Realab")
    for photograph in (source / "Syn" / "gt").iterdir():
        ...

A path on a disk is a ``pathlib.Path`` and keeps the spelling that the user gave it.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from qdmr_ray.storage.location import S3_SCHEME, Location, open_location

# As much as a photograph's header takes: EXIF and colour profile may stand before the size.
_READ_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class StorePath:
    """A place in a store, with the methods of ``pathlib.Path`` that reading folders takes. ``size``
    is the file's as its folder's listing said, where the path comes from one."""

    place: Location
    size: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.place.uri

    def __truediv__(self, part: object) -> "StorePath":
        return StorePath(self.place.join(str(part)))

    def __rtruediv__(self, folder: Path) -> "StorePath":
        # A whole path below a folder is that path, as with pathlib.
        return self

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.place.name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name's ending, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "StorePath":
        """The folder above; that of a bucket is the bucket."""
        above, _, _ = self.place.path.rstrip("/").rpartition("/")
        return StorePath(Location(above or self.place.path, self.place.store))

    def is_dir(self) -> bool:
        """Whether anything lies below this place."""
        return self.place.is_folder()

    def is_file(self) -> bool:
        """Whether there is a file; one from a listing isn't asked for again."""
        return self.size is not None or self.place.size() is not None

    def iterdir(self) -> "Iterator[StorePath]":
        """Yields what lies directly in this folder, each file with its size."""
        for name, size in self.place.entries().items():
            yield StorePath(self.place.join(name), size)

    def read_bytes(self) -> bytes:
        """Returns the file's content; raises QdmrError as ``Location`` does."""
        return self.place.read_bytes()

    def open(self, mode: str) -> IO[bytes]:
        """Opens the file for reading (mode "rb"), by ranges as they are asked for."""
        assert mode == "rb"
        return io.BufferedReader(_Ranges(self), _READ_AT_ONCE)

    def absolute(self) -> "StorePath":
        """The path itself."""
        return self


AnyPath = Path | StorePath


def any_path(text: str | Path, *, endpoint: str | None = None) -> AnyPath:
    """Returns the place that ``text`` names: ``s3://…`` in the store at ``endpoint``, as for
    ``open_location``, or a path as it is written. Raises QdmrError as that does."""
    written = os.fspath(text)
    if written.startswith(S3_SCHEME):
        return StorePath(open_location(written, endpoint=endpoint))
    return Path(text)


def location_of(path: AnyPath) -> Location:
    """Returns the ``Location`` of a path."""
    if isinstance(path, StorePath):
        return path.place
    # Not ``open_location``, which drops ``..`` and so leads elsewhere behind a link.
    return Location(str(path.absolute()))


class _Ranges(io.RawIOBase):
    """A file in a store that asks for the bytes that are read, and no others."""

    def __init__(self, path: StorePath) -> None:
        self._place, self._size, self._position = path.place, path.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        if whence == os.SEEK_END and self._size is None:
            self._size = self._place.size() or 0
        base = start.get(whence, self._size or 0)
        if base + offset < 0:
            raise OSError("a position before the file's start")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        data, self._size = self._place.read_piece(self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._size is not None and self._position >= self._size:
            return 0
        data, self._size = self._place.read_piece(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

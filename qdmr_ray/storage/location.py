"""Files on local disks and in S3-compatible stores behind one small interface.

    location = open_location("s3://bucket/realab")
    location.join("manifest.json").write_bytes_atomic(b"...")

Credentials come from the usual AWS chain (environment, profile, instance role); the endpoint of
an S3-compatible store from ``endpoint`` or the environment variable ``AWS_ENDPOINT_URL``. What
fails in a store is tried again as ``qdmr_ray.storage.retry`` says; what fails on a disk is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage.retry import (
    LARGEST_SINGLE_REQUEST,
    S3Store,
    ShortAnswer,
    has_answered,
    no_bucket,
    persistently,
    s3_store,
    store_error,
)

S3_SCHEME = "s3://"
ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
TEMPORARY_PREFIX = ".tmp-"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A file or folder: ``filesystem`` and ``path`` are what pyarrow and Ray take.

    ``path`` carries no ``s3://``: Ray and pyarrow refuse it when a filesystem is given.
    """

    filesystem: fs.FileSystem
    path: str
    is_s3: bool = False

    @property
    def uri(self) -> str:
        """What ``open_location`` takes: an absolute local path or ``s3://bucket/key``."""
        return f"{S3_SCHEME}{self.path}" if self.is_s3 else self.path

    @property
    def local_path(self) -> Path | None:
        """The path on this machine, ``None`` in a store."""
        return None if self.is_s3 else Path(self.path)

    def join(self, *parts: str) -> Location:
        """The file or folder below this one."""
        path = "/".join([self.path.rstrip("/"), *(part.strip("/") for part in parts)])
        return Location(self.filesystem, path, self.is_s3)

    def read_bytes(self, offset: int = 0, length: int | None = None) -> bytes:
        """The file's content, or ``length`` bytes of it from ``offset``.

        Raises:
            QdmrError: the file is missing, unreadable or ends before ``offset + length``.
        """
        if self.is_s3:
            return self._call("read", lambda store: self._read_object(store, offset, length))
        return self._call("read", lambda disk: self._read_file(disk, offset, length))

    def write_bytes_atomic(self, data: bytes | memoryview) -> None:
        """Writes the file completely or not at all, making the folders above it.

        Raises:
            QdmrError: the disk is full or the place is not writable.
        """
        if self.is_s3:
            self._write_object(data)
            return
        self._call("written", lambda _: Path(self.path).parent.mkdir(parents=True, exist_ok=True))
        write_file_atomic(Path(self.path), data)

    def exists(self) -> bool:
        """Whether there is a file or folder here."""
        info = self._call("read", lambda files: files.get_file_info(self.path))
        return info.type != fs.FileType.NotFound

    def size(self) -> int | None:
        """Bytes of the file, ``None`` when there is no file."""
        info = self._call("read", lambda files: files.get_file_info(self.path))
        return info.size if info.type == fs.FileType.File else None

    def list(self) -> list[Location]:
        """What lies directly in this folder, sorted by name; empty when there is no folder."""
        return [
            Location(self.filesystem, info.path, self.is_s3)
            for info in sorted(self._listing(), key=lambda info: info.path)
        ]

    def file_sizes(self) -> dict[str, int]:
        """Bytes of each file directly in this folder, by name, with one listing for all."""
        return {
            info.base_name: info.size for info in self._listing() if info.type == fs.FileType.File
        }

    def delete(self) -> None:
        """Removes the file, or the folder with everything in it; nothing there is fine."""
        self._call("deleted", self._delete)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def _listing(self) -> Sequence[fs.FileInfo]:
        folder = fs.FileSelector(self.path, allow_not_found=True)
        return self._call("listed", lambda files: files.get_file_info(folder))

    def _read_file(self, disk: fs.FileSystem, offset: int, length: int | None) -> bytes:
        with disk.open_input_file(self.path) as file:
            if length is None:
                file.seek(offset)
                return file.read()
            data = file.read_at(length, offset)
        if len(data) != length:
            raise self._ends_early(offset + len(data), offset + length)
        return data

    def _read_object(self, store: fs.FileSystem, offset: int, length: int | None) -> bytes:
        with store.open_input_file(self.path) as file:
            size = file.size()
            end = max(size, offset) if length is None else offset + length
            if end > max(size, offset):
                raise self._ends_early(size, end)
            return _read_exactly(file, offset, end - offset)

    def _ends_early(self, end: int, wanted: int) -> QdmrError:
        return QdmrError(
            f"{self.uri}: ends at byte {end} instead of {wanted}; "
            "the file is damaged, write it again"
        )

    def _write_object(self, data: bytes | memoryview) -> None:
        # An object becomes visible when its upload is complete, never before.
        def write(store: fs.FileSystem) -> None:
            with store.open_output_stream(self.path) as stream:
                stream.write(data)

        if memoryview(data).nbytes <= LARGEST_SINGLE_REQUEST:
            self._call("written", write)
            return
        store = self.filesystem
        if isinstance(store, S3Store) and not has_answered(store.address):
            # The AWS library's own attempts would tell of a wrong address minutes later.
            self._call("written", lambda files: files.get_file_info(self.path))
        self._call("written", write, in_parts=True)

    def _delete(self, files: fs.FileSystem) -> None:
        kind = files.get_file_info(self.path).type
        if kind == fs.FileType.Directory:
            files.delete_dir(self.path)
        elif kind == fs.FileType.File:
            files.delete_file(self.path)

    def _call(
        self, what: str, operation: Callable[[fs.FileSystem], T], *, in_parts: bool = False
    ) -> T:
        """The result of ``operation``; its errors name this place and say what to do."""
        store = self.filesystem
        if not isinstance(store, S3Store):
            try:
                return operation(store)
            except (OSError, pa.ArrowException) as error:
                raise disk_error(self.uri, what, error) from error
        files = store.uploading_in_parts() if in_parts else store.trying_once()
        try:
            return persistently(lambda: operation(files), address=store.address)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError) and self._bucket_is_missing(files):
                raise no_bucket(self.uri, store.address) from error
            explained = store_error(self.uri, what, store.address, error)
            raise explained or disk_error(self.uri, what, error) from error

    def _bucket_is_missing(self, store: fs.FileSystem) -> bool:
        bucket = self.path.split("/")[0]
        try:
            return store.get_file_info(bucket).type == fs.FileType.NotFound
        except (OSError, pa.ArrowException):
            # Whoever may read an object need not be allowed to look at its bucket.
            return False


class ObjectReader:
    """Pieces of one object of a store; its size is asked for once, a piece is one request.

    Unlike ``Location.read_bytes`` it does not notice a piece that arrives short (pyarrow fills it
    up with junk): for readers who compare checksums. Safe for use by several threads.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._file: pa.NativeFile | None = None

    def size(self) -> int:
        """Bytes of the object.

        Raises:
            QdmrError: as ``Location.read_bytes``.
        """
        return self._location._call("read", lambda store: self._opened(store).size())

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; fewer where the object ends.

        Raises:
            QdmrError: as ``Location.read_bytes``.
        """
        return self._location._call(
            "read", lambda store: self._opened(store).read_at(length, offset)
        )

    def _opened(self, store: fs.FileSystem) -> pa.NativeFile:
        if self._file is None:
            self._file = store.open_input_file(self._location.path)
        return self._file


def open_location(uri: str | Path, *, endpoint: str | None = None) -> Location:
    """The place that ``uri`` names: a local path (relative ones become absolute) or ``s3://…``.

    ``endpoint`` is the address of an S3-compatible store, such as ``http://minio:9000``; without
    it ``AWS_ENDPOINT_URL`` counts, and without that Amazon's own.

    Raises:
        QdmrError: another scheme, or ``s3://`` without a bucket.
    """
    text = os.fspath(uri)
    if text.startswith(S3_SCHEME):
        path = text[len(S3_SCHEME) :].strip("/")
        if not path:
            raise QdmrError(f"{text}: names no bucket; write s3://bucket/path")
        return Location(
            s3_store(endpoint or os.environ.get(ENDPOINT_VARIABLE), _region()), path, is_s3=True
        )
    if text.startswith("file://"):
        text = text[len("file://") :]
    if "://" in text:
        raise QdmrError(f"{text}: unknown kind of storage; use a local path or s3://bucket/path")
    if not text:
        raise QdmrError("the path of a file or folder is empty; name one")
    return Location(fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))


def write_file_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes a local file under a temporary name, then renames it; nothing half-written stays.

    Raises:
        QdmrError: the folder is missing or not writable, or the disk is full.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            # A rename may reach the disk before the data do; after a power cut the file would
            # then be there, and empty.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(str(path), "written", error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read_exactly(file: pa.NativeFile, offset: int, length: int) -> bytes:
    """``length`` bytes of an object that has them.

    pyarrow (26) takes a body shorter than asked for the whole and leaves the rest of the memory
    as it was. So the last byte is marked: where the mark is still there afterwards, the byte
    never came, or it happens to be the same; another mark settles that.
    """
    if not length:
        return b""
    data = bytearray(length)
    for mark in (b"\xa5", b"\x5a"):
        data[-1:] = mark
        file.seek(offset)
        if file.readinto(data) == length and not data.endswith(mark):
            return bytes(data)
    raise ShortAnswer(f"fewer than {length} bytes arrived")


def _region() -> str | None:
    return next((os.environ[name] for name in _REGION_VARIABLES if os.environ.get(name)), None)


def disk_error(uri: str, what: str, error: Exception) -> QdmrError:
    """One line that names the file and what to do, from an error of the system.

    ``what`` is the participle of what was wanted: read, written, listed, deleted.
    """
    number = getattr(error, "errno", None)
    if number in _FULL_DISK:
        return QdmrError(f"{uri}: the disk is full; free space there or choose another folder")
    if number in (errno.ENOENT, errno.ENOTDIR) or isinstance(error, FileNotFoundError):
        return QdmrError(f"{uri}: no such file or folder; check the path")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return QdmrError(f"{uri}: no permission, it cannot be {what}; choose another folder")
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return QdmrError(f"{uri}: cannot be {what} ({reason})")

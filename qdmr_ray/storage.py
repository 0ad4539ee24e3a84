"""Files on local disks and in S3-compatible stores behind one small interface.

    location = open_location("s3://bucket/realab")
    location.join("manifest.json").write_bytes_atomic(b"...")

Credentials come from the usual AWS chain (environment, profile, instance role); the endpoint of
an S3-compatible store from ``endpoint`` or the environment variable ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from qdmr_ray.errors import QdmrError

S3_SCHEME = "s3://"
ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
# S3-compatible stores ignore the region, but a signature needs one.
_DEFAULT_REGION = "us-east-1"
TEMPORARY_PREFIX = ".tmp-"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


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
        with self._named_errors("read"), self.filesystem.open_input_file(self.path) as file:
            if length is None:
                file.seek(offset)
                return file.read()
            data = file.read_at(length, offset)
        if len(data) != length:
            raise QdmrError(
                f"{self.uri}: ends at byte {offset + len(data)} instead of {offset + length}; "
                "the file is damaged, write it again"
            )
        return data

    def write_bytes_atomic(self, data: bytes | memoryview) -> None:
        """Writes the file completely or not at all, making the folders above it.

        Raises:
            QdmrError: the disk is full or the place is not writable.
        """
        if self.is_s3:
            # An object becomes visible when its upload is complete, never before.
            with (
                self._named_errors("written"),
                self.filesystem.open_output_stream(self.path) as stream,
            ):
                stream.write(data)
            return
        with self._named_errors("written"):
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        write_file_atomic(Path(self.path), data)

    def exists(self) -> bool:
        """Whether there is a file or folder here."""
        with self._named_errors("read"):
            return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def size(self) -> int | None:
        """Bytes of the file, ``None`` when there is no file."""
        with self._named_errors("read"):
            info = self.filesystem.get_file_info(self.path)
        return info.size if info.type == fs.FileType.File else None

    def list(self) -> list[Location]:
        """What lies directly in this folder, sorted by name; empty when there is no folder."""
        with self._named_errors("listed"):
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [
            Location(self.filesystem, info.path, self.is_s3)
            for info in sorted(found, key=lambda info: info.path)
        ]

    def delete(self) -> None:
        """Removes the file, or the folder with everything in it; nothing there is fine."""
        with self._named_errors("deleted"):
            kind = self.filesystem.get_file_info(self.path).type
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @contextlib.contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise _explained(self.uri, what, error) from error


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
        return Location(_s3(endpoint or os.environ.get(ENDPOINT_VARIABLE)), path, is_s3=True)
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
        raise _explained(str(path), "written", error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@lru_cache(maxsize=8)
def _s3(endpoint: str | None) -> fs.S3FileSystem:
    region = next((os.environ[name] for name in _REGION_VARIABLES if os.environ.get(name)), None)
    if endpoint is None:
        return fs.S3FileSystem(region=region)
    return fs.S3FileSystem(endpoint_override=endpoint, region=region or _DEFAULT_REGION)


def _explained(uri: str, what: str, error: Exception) -> QdmrError:
    """One line that names the file and what to do, from a system's or a store's error."""
    number = getattr(error, "errno", None)
    if number in _FULL_DISK:
        return QdmrError(f"{uri}: the disk is full; free space there or choose another folder")
    if number in (errno.ENOENT, errno.ENOTDIR) or isinstance(error, FileNotFoundError):
        return QdmrError(f"{uri}: no such file or folder; check the path")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return QdmrError(f"{uri}: no permission, it cannot be {what}; choose another folder")
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return QdmrError(f"{uri}: cannot be {what} ({reason})")

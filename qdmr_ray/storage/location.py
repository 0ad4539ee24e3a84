"""Files on local disks and in S3-compatible stores behind one small interface.

    location = open_location("s3://bucket/realab")
    location.join("manifest.json").write_bytes_atomic(b"...")

Credentials come from the usual AWS chain (environment, profile, instance role), the endpoint of an
S3-compatible store from ``endpoint`` or the environment variable ``AWS_ENDPOINT_URL``. Failed
operations in a store are retried (``qdmr_ray.storage.retry``); those on a disk are not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage.retry import (
    STORE_ERRORS,
    Failure,
    ShortAnswer,
    Store,
    open_bucket,
    persistently,
    store_error,
)
from qdmr_ray.untrusted import read_regular

S3_SCHEME = "s3://"
ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"
TEMPORARY_PREFIX = ".tmp-"
# A larger object is uploaded in parts of this size, four at a time.
LARGEST_SINGLE_REQUEST = 8 << 20
# A larger object gets the time of an upload over a slow line.
_SMALL = 1 << 20
_NOT_IMPLEMENTED = 501
_RANGE_REFUSED = 416
# So many bytes of a file's name are in that of its temporary file, for who finds one.
_NAME_BYTES_KEPT = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A file or folder on a disk (absolute ``path``) or in a ``store`` (``bucket/key``)."""

    path: str
    store: Store | None = None
    # Below this folder every file has to lie, wherever links lead; see ``enclosed``.
    root: str | None = field(default=None, compare=False)

    @property
    def is_s3(self) -> bool:
        """Whether the place lies in a store."""
        return self.store is not None

    @property
    def uri(self) -> str:
        """The address for ``open_location``: an absolute local path or ``s3://bucket/key``."""
        return f"{S3_SCHEME}{self.path}" if self.is_s3 else self.path

    @property
    def local_path(self) -> Path | None:
        """The path on this machine, ``None`` in a store."""
        return None if self.is_s3 else Path(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def join(self, *parts: str) -> Location:
        """Returns the file or folder below this one."""
        path = "/".join([self.path.rstrip("/"), *(part.strip("/") for part in parts)])
        return replace(self, path=path)

    def enclosed(self) -> Location:
        """Returns this folder as one to which nobody trusted has added links: a file in it that
        lies elsewhere can't be read, and its folders that lie elsewhere can't be listed."""
        return self if self.is_s3 else replace(self, root=os.path.realpath(self.path))

    def read_bytes(self, offset: int = 0, length: int | None = None) -> bytes:
        """Returns the file's content, or ``length`` bytes of it from ``offset``; raises QdmrError
        if the file is missing, unreadable or ends before ``offset + length``."""
        data, size = self.read_piece(offset, length)
        if length is not None and len(data) != length:
            ends = f"ends at byte {size} instead of {offset + length}"
            raise QdmrError(f"{self.uri}: {ends}; the file is damaged, write it again")
        return data

    def read_piece(self, offset: int, length: int | None = None) -> tuple[bytes, int]:
        """Returns ``length`` bytes from ``offset``, fewer where the file ends, and the file's
        size; in a store, this takes one request. Raises QdmrError if the file is missing or
        unreadable."""
        end = None if length is None else offset + length
        return self._do(
            "read",
            lambda: read_regular(self.path, offset, length),
            lambda bucket, key: _read_object(bucket, key, offset, end),
        )

    def write_bytes_atomic(self, data: bytes | memoryview) -> None:
        """Writes the file completely or not at all, and makes the folders above it; raises
        QdmrError if the disk is full or the place is not writable."""
        # obstore would take pyarrow's buffers for iterables of their bytes.
        view = memoryview(data).cast("B")

        def write_object(bucket: S3Store, key: str) -> bool:
            # An object becomes visible when its upload is complete, never before.
            part, in_parts = LARGEST_SINGLE_REQUEST, view.nbytes > LARGEST_SINGLE_REQUEST
            obstore.put(
                bucket, key, view, use_multipart=in_parts, chunk_size=part, max_concurrency=4
            )
            return True

        large = view.nbytes > _SMALL
        self._do("written", lambda: self._write_file(data), write_object, uploading=large)

    def _write_file(self, data: bytes | memoryview, *, new: bool = False) -> bool:
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        return write_file_atomic(Path(self.path), data, new=new)

    def create(self, data: bytes) -> bool:
        """Writes a small file unless it exists, and returns whether it wrote it. Of several
        processes that try at once only one succeeds, provided that their ``data`` differ. Raises
        QdmrError if the place is not writable."""
        attempts = 0

        def create_object(bucket: S3Store, key: str) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                obstore.put(bucket, key, data, mode="create")
            except AlreadyExistsError:
                # The answer to an earlier attempt may have been lost, and the object be ours.
                return attempts > 1 and obstore.get(bucket, key).bytes().to_bytes() == data
            except BaseError as error:
                if Failure.of(error).status != _NOT_IMPLEMENTED:
                    raise
                # A store without conditional writes leaves a gap of one request.
                if _object_size(bucket, key) is not None:
                    return False
                obstore.put(bucket, key, data)
            return True

        return self._do("written", lambda: self._write_file(data, new=True), create_object)

    def exists(self) -> bool:
        """Returns whether there is a file or folder here."""
        if self.size() is not None or (self.store is None and os.path.isdir(self.path)):
            return True
        # A store has a folder as long as something lies in it.
        return bool(self.entries())

    def is_folder(self) -> bool:
        """Returns whether there is a folder here; in a store, whether anything lies below."""
        return self._do("read", lambda: os.path.isdir(self.path), _has_objects)

    def version(self) -> tuple[int, int | str]:
        """Returns what tells this file from one that has replaced it: its bytes, and its time of
        change in nanoseconds or the store's tag. Raises QdmrError where there is no file."""
        return self._do("read", lambda: _file_version(self.path), _object_version)

    def size(self) -> int | None:
        """Returns the file's size in bytes, ``None`` when there is no file."""
        return self._do("read", lambda: _file_size(self.path), _object_size)

    def list(self) -> list[Location]:
        """Returns what lies directly in this folder, sorted by name; empty without a folder."""
        return [self.join(name) for name in sorted(self.entries())]

    def file_sizes(self) -> dict[str, int]:
        """Returns the bytes of each file directly in this folder, by name, from one listing."""
        return {name: size for name, size in self.entries().items() if size is not None}

    def newest(self) -> float:
        """Returns when the newest file directly in this folder was written, in seconds since 1970
        by the clock of the disk or store; 0 without a file."""
        return self._do("listed", lambda: _newest_file(self.path), _newest_object)

    def entries(self) -> dict[str, int | None]:
        """Returns what lies directly in this folder: bytes of files, None for folders."""
        return self._do("listed", lambda: _files_in(self.path), _objects_in)

    def delete(self) -> None:
        """Removes the file, or the folder with everything in it; a missing one is no error."""

        def delete_local() -> None:
            path = Path(self.path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        def delete_objects(bucket: S3Store, key: str) -> None:
            if _object_size(bucket, key) is not None:
                obstore.delete(bucket, key)
                return
            for chunk in obstore.list(bucket, key or None):
                obstore.delete(bucket, [item["path"] for item in chunk])

        self._do("deleted", delete_local, delete_objects)

    def delete_empty(self) -> None:
        """Removes the folder if it is empty; a store has no empty folders."""
        with contextlib.suppress(OSError):
            if self.store is None:
                os.rmdir(self.path)

    def _do(
        self,
        what: str,
        on_disk: Callable[[], T],
        in_store: Callable[[S3Store, str], T],
        *,
        uploading: bool = False,
    ) -> T:
        """Returns the operation's result for this place; errors name the place and say what to do.
        ``what`` is the participle of the operation: read, written, listed, deleted."""
        self._check()
        if self.store is None:
            try:
                return on_disk()
            except OSError as error:
                raise disk_error(self.uri, what, error) from error
        name, _, key = self.path.partition("/")
        bucket = open_bucket(self.store, name, uploading)
        try:
            return persistently(lambda: in_store(bucket, key), self.store.address)
        except STORE_ERRORS as error:
            raise store_error(self.uri, what, self.store.address, error) from error

    def _check(self) -> None:
        try:
            encoded = self.path.encode() if self.is_s3 else os.fsencode(self.path)
        except UnicodeEncodeError:
            encoded = b"\0"
        if b"\0" in encoded:
            raise QdmrError(f"{self.uri!a}: no file can have this name; check the path")
        if self.root is not None:
            target = os.path.realpath(self.path)
            if os.path.commonpath([self.root, target]) != self.root:
                raise QdmrError(f"{self.uri}: leads out of {self.root} over a link; copy the file")


def _read_object(bucket: S3Store, key: str, start: int, end: int | None) -> tuple[bytes, int]:
    """Returns the bytes from ``start`` to ``end`` or the object's end, and the object's size."""
    if start == end:
        return b"", obstore.head(bucket, key)["size"]
    try:
        # A range is requested even for the whole object: the answer to it holds the object's size,
        # which tells a complete body from one that a proxy has cut.
        wanted: Any = {"offset": start} if end is None else (start, end)
        result = obstore.get(bucket, key, options={"range": wanted})
    except BaseError as error:
        # The range lies beyond the object, or the object is empty, which some stores send whole.
        is_whole = "non-partial response" in str(error)
        if Failure.of(error).status != _RANGE_REFUSED and not is_whole:
            raise
        size = obstore.head(bucket, key)["size"]
        if start < size:
            raise
        return b"", size
    size = result.meta["size"]
    data = result.bytes().to_bytes()
    if len(data) != (size if end is None else min(end, size)) - start:
        raise ShortAnswer(f"{len(data)} bytes arrived of {size}")
    return data, size


def _object_size(bucket: S3Store, key: str) -> int | None:
    try:
        return obstore.head(bucket, key)["size"] if key else None
    except FileNotFoundError:
        return None


def _object_version(bucket: S3Store, key: str) -> tuple[int, int | str]:
    head = obstore.head(bucket, key)
    return head["size"], head["e_tag"] or head["last_modified"].isoformat()


def _has_objects(bucket: S3Store, key: str) -> bool:
    # The listing is read as far as its first answer.
    return any(map(len, obstore.list(bucket, key or None, chunk_size=1)))


def _objects_in(bucket: S3Store, key: str) -> dict[str, int | None]:
    try:
        listing = obstore.list_with_delimiter(bucket, key or None)
    except BaseError as error:
        if Failure.of(error).code == "NoSuchBucket":
            return {}
        raise
    found: dict[str, int | None] = dict.fromkeys(listing["common_prefixes"])
    found |= {item["path"]: item["size"] for item in listing["objects"]}
    # Consoles mark an empty folder by an object with the folder's own name.
    found.pop(key, None)
    return {path.rstrip("/").rsplit("/", 1)[-1]: size for path, size in found.items()}


def _newest_object(bucket: S3Store, key: str) -> float:
    objects = obstore.list_with_delimiter(bucket, key or None)["objects"]
    return max((item["last_modified"].timestamp() for item in objects), default=0.0)


def _newest_file(path: str) -> float:
    found = 0.0
    for name in _files_in(path):
        # A file may be deleted meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found = max(found, os.stat(os.path.join(path, name)).st_mtime)
    return found


def _file_size(path: str) -> int | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _file_version(path: str) -> tuple[int, int | str]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _files_in(path: str) -> dict[str, int | None]:
    try:
        return {name: _file_size(os.path.join(path, name)) for name in os.listdir(path)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def open_location(uri: str | Path, *, endpoint: str | None = None) -> Location:
    """Returns the place that ``uri`` names: a local path (made absolute) or ``s3://…``.
    ``endpoint`` is the address of an S3-compatible store, such as ``http://minio:9000``; without it
    ``AWS_ENDPOINT_URL`` counts, and without that Amazon's own. Raises QdmrError for another scheme,
    ``s3://`` without a bucket, or credentials in one of the two addresses."""
    text = os.fspath(uri)
    if text.startswith(S3_SCHEME):
        path = text.removeprefix(S3_SCHEME).strip("/")
        if not path:
            raise QdmrError(f"{text}: names no bucket; write s3://bucket/path")
        if "@" in path.partition("/")[0]:
            raise QdmrError(
                f"{text}: has credentials in it; write s3://bucket/path, and set AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY"
            )
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
        return Location(path, Store(endpoint or os.environ.get(ENDPOINT_VARIABLE), region))
    text = text.removeprefix("file://")
    if "://" in text:
        raise QdmrError(f"{text}: unknown kind of storage; use a local path or s3://bucket/path")
    if not text:
        raise QdmrError("the path of a file or folder is empty; name one")
    return Location(os.path.abspath(os.path.expanduser(text)))


def write_file_atomic(path: Path, data: bytes | memoryview, *, new: bool = False) -> bool:
    """Writes a local file under a temporary name, then renames it; no half-written file stays. A
    ``new`` file is written unless it exists; returns whether it was written. Raises QdmrError if
    the folder is missing or not writable, or the disk is full."""
    # A long name's end is left out: with it, the temporary name would exceed the system's limit.
    start = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES_KEPT])
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{start}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            # A rename may reach the disk before the data: a power cut would leave an empty file.
            os.fsync(file.fileno())
        # A link, unlike a rename, fails if the file exists.
        (os.link if new else os.replace)(temporary, path)
        return True
    except OSError as error:
        if new and isinstance(error, FileExistsError):
            return False
        raise disk_error(str(path), "written", error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_error(uri: str, what: str, error: OSError) -> QdmrError:
    """Returns a system error as one line that names the file and says what to do. ``what`` is the
    participle of the operation: read, written, listed, deleted."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return QdmrError(f"{uri}: the disk is full; free space there or choose another folder")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return QdmrError(f"{uri}: no such file or folder; check the path")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return QdmrError(f"{uri}: no permission, it cannot be {what}; choose another folder")
    return QdmrError(f"{uri}: cannot be {what} ({error.strerror or error})")

"""Archives, unpacked beside themselves.

An archive from the network is not trusted: no member may leave the folder, links and devices are
refused, and the room it takes is checked first.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import TEMPORARY_PREFIX

ZIP_SUFFIX = ".zip"
ARCHIVE_SUFFIXES = (ZIP_SUFFIX, ".tar", ".tar.gz", ".tgz")
# What fetching keeps beside the data, in the folder it fetches into; no member may write there.
STATE_FOLDER = ".qdmr-fetch"
_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    UnicodeError,
)
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class _Member:
    """What an archive holds under one name; a folder has no ``content``."""

    name: str
    size: int
    content: IO[bytes] | None


def is_archive(path: str) -> bool:
    """Whether the name is that of an archive that ``unpack`` can unpack."""
    return path.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, advance: Callable[[int], None]) -> dict[str, int]:
    """Unpacks an archive beside itself; files that are there already are replaced.

    Args:
        archive: a file whose name ends in one of ``ARCHIVE_SUFFIXES``.
        advance: called with bytes of the archive as they are worked through.

    Returns:
        How many files each folder got; folders relative to the archive's own.

    Raises:
        QdmrError: the archive is damaged or encrypted, holds a link or a path that leads elsewhere
            (of a zip, nothing is written then), or the disk is too small or not writable. Every
            file that was written is whole.
    """
    counts: Counter[str] = Counter()
    with _named_errors(archive), open(archive, "rb") as raw:
        is_zip = archive.name.lower().endswith(ZIP_SUFFIX)
        members = _zip_members(archive, raw) if is_zip else _tar_members(archive, raw)
        position = 0
        for member in members:
            target = safe_path(archive.parent, member.name, archive)
            if member.content is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            if target == archive:
                raise QdmrError(f"{archive}: holds a file of its own name; it is not unpacked")
            _write(member, member.content, target, archive)
            counts[target.parent.relative_to(archive.parent).as_posix()] += 1
            # Where the archive is being read: that counts compressed bytes, for every format.
            advance(max(raw.tell() - position, 0))
            position = max(raw.tell(), position)
    return dict(counts)


def is_complete(folder: Path, counts: dict[str, int]) -> bool:
    """Whether the folders that ``unpack`` filled still hold as many files."""
    try:
        return all(
            sum(entry.is_file() for entry in os.scandir(folder / name)) >= count
            for name, count in counts.items()
        )
    except OSError:
        return False


def safe_path(root: Path, name: str, source: Path | str) -> Path:
    """``root / name``, for a name that was made elsewhere; ``source`` is named in the error.

    Raises:
        QdmrError: the name leads out of ``root`` or into ``STATE_FOLDER``.
    """
    # Windows programs have written backslashes into archives.
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or STATE_FOLDER in path.parts:
        raise QdmrError(
            f"{source}: holds the path {name!r}, which leads out of {root}; nothing is written "
            "there, don't use this file"
        )
    return root / path


def require_room(folder: Path, size: int, purpose: str) -> None:
    """Raises QdmrError when the disk under ``folder`` has no room for ``size`` bytes more."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise QdmrError(
            f"{folder}: {purpose} takes {in_gigabytes(size)} and {in_gigabytes(free)} are free; "
            "free space there or choose another folder with --out"
        )


def in_gigabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def disk_error(path: Path | str, error: OSError) -> QdmrError:
    """One line that names the file, or the one that the system names, and what to do."""
    named = error.filename2 or error.filename or path
    if error.errno in _FULL_DISK:
        return QdmrError(
            f"{named}: the disk is full; free space there and run the same command again, it goes "
            "on where it stopped"
        )
    if error.errno in _NO_PERMISSION:
        return QdmrError(f"{named}: no permission to write; choose another folder with --out")
    reason = error.strerror or str(error)
    return QdmrError(f"{named}: cannot be used ({reason}); choose another folder with --out")


def _zip_members(archive: Path, raw: BinaryIO) -> Iterator[_Member]:
    with zipfile.ZipFile(raw) as opened:
        members = sorted(opened.infolist(), key=lambda info: info.header_offset)
        for info in members:
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, info.filename)
            safe_path(archive.parent, info.filename, archive)
        require_room(
            archive.parent, sum(info.file_size for info in members), f"unpacking {archive.name}"
        )
        for info in members:
            if info.is_dir():
                yield _Member(name=info.filename, size=0, content=None)
                continue
            with opened.open(info) as content:
                yield _Member(name=info.filename, size=info.file_size, content=content)


def _tar_members(archive: Path, raw: BinaryIO) -> Iterator[_Member]:
    require_room(archive.parent, archive.stat().st_size, f"unpacking {archive.name}")
    # Read from front to end, once: a compressed archive has no table of contents.
    with tarfile.open(fileobj=raw, mode="r|*") as opened:
        for info in opened:
            if not info.isreg() and not info.isdir():
                raise _refused(archive, info.name)
            content = opened.extractfile(info) if info.isreg() else None
            yield _Member(name=info.name, size=info.size, content=content)


def _write(member: _Member, content: IO[bytes], target: Path, archive: Path) -> None:
    """Writes a file under a temporary name first, so that a kill leaves no half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(TEMPORARY_PREFIX + target.name)
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
            written = file.tell()
        if written != member.size:
            raise _damaged(archive, f"{member.name} ends after {written} of {member.size} bytes")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise _damaged(archive, str(error) or type(error).__name__) from error
    except RuntimeError as error:  # zipfile's: encrypted, or compressed in a way it can't read
        raise QdmrError(
            f"{archive}: cannot be unpacked ({error}); unpack it with another program, in the same "
            "folder"
        ) from error
    except OSError as error:
        raise disk_error(archive, error) from error


def _damaged(archive: Path, reason: str) -> QdmrError:
    return QdmrError(
        f"{archive}: the archive is damaged ({reason}); delete it and run the same command again, "
        "and if it stays so, leave it out with --include"
    )


def _refused(archive: Path, name: str) -> QdmrError:
    return QdmrError(
        f"{archive}: {name!r} is a link or a device, which are not unpacked; don't use this file"
    )

"""Reading what a stranger may have made: within limits that no honest file comes near.

values = parse_json(data)
with open_regular(path) as file: ...

``qdmr_ray.parsing`` reads YAML by the same rules.
"""

import errno
import json
import lzma
import math
import os
import resource
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# The deepest file of this package has 12 levels; code that walks values recurses once for each.
DEEPEST = 64
TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"
# Numbers of files and settings fit in 64 bits, with or without a sign.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
# Their digits with sign, base and underscores, or those of a float.
_LONGEST_NUMBER = 100
# Characters of a wrong key or number that a message shows.
_SHOWN = 80
# Bytes for which nobody asks how much memory is free.
_SMALL = 64 << 20

# What zipfile raises for damaged content; LZMA takes as much memory as the file asks for.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, MemoryError)


def parse_json(data: bytes | str) -> Any:
    """Returns the plain values of a JSON text; raises ValueError, whose message is one line, for no
    JSON, a key that stands twice in one object, an integer of over 64 bits, or values that are
    nested deeper than ``DEEPEST``."""
    try:
        values = json.loads(data, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level, depth = [values], 0
    while level := [inner for value in level for inner in _inside(value)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(TOO_DEEP)
    return values


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Returns the object in a JSON text; raises ValueError as :func:`parse_json`, and where it is
    something else."""
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} where an object is expected")
    return values


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        check_distinct(name for name, _ in pairs)
    return values


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _integer(digits: str) -> int:
    check_length(digits)
    return check_integer(int(digits))


def check_length(digits: str) -> None:
    """Raises ValueError for a number of more characters than any number of a file needs."""
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"the number {digits[:20]}… has {len(digits)} digits")


def check_integer(number: int) -> int:
    """Returns the number; raises ValueError for one of over 64 bits."""
    if _SMALLEST <= number <= _LARGEST:
        return number
    raise ValueError(f"the number {str(number)[:20]}… has more than 64 bits")


def check_distinct(names: Iterable[str]) -> None:
    """Raises ValueError, which quotes the name, where one of an object's keys stands twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name[:_SHOWN]!r} stands twice among the keys of one object")
        seen.add(name)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading; raises OSError, also for a pipe, a socket or a device, which could
    block for ever or never end."""
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, no file", str(path))


def read_regular(path: str | Path, offset: int = 0, length: int | None = None) -> tuple[bytes, int]:
    """Returns a file's bytes, or ``length`` of them from ``offset``, and its size; raises OSError
    as :func:`open_regular`, and where the bytes are more than the memory that is free."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        rest = max(0, size - offset)
        wanted = rest if length is None else min(length, rest)
        check_memory(wanted, "it")
        file.seek(offset)
        return file.read(wanted), size


@contextmanager
def open_npz(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """Opens an ``.npz`` file, whose arrays are read when they are asked for. Raises OSError as
    :func:`read_regular`, and ValueError for anything else than whole arrays of plain numbers."""
    # Imported late: the rest of this module needs the standard library only.
    import numpy as np

    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            check_memory(sum(member.file_size for member in archive.zip.infolist()), "it")
            yield archive
    # numpy raises TypeError for an array without an archive; zipfile RuntimeError for an encrypted
    # member.
    except (TypeError, RuntimeError, *ZIP_ERRORS) as error:
        raise ValueError("it is no .npz file of plain numbers, or it is damaged") from error


def check_memory(size: int, what: str) -> None:
    """Raises OSError where ``size`` bytes, whose name is ``what``, are more than the memory that
    this process may still take."""
    if size > _SMALL and size > (free := _free_memory()):
        told = f"{what} takes {size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"
        raise OSError(errno.ENOMEM, told)


def _free_memory() -> float:
    """Returns the bytes that the machine, the container and the process's own limit leave; infinity
    where the system tells none of them."""
    free = [math.inf]
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {name: int(text.split()[0]) for name, text in (x.split(":") for x in lines)}
        free.append(1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        statistics = (group / "memory.stat").read_text().split()
        # Pages of files are given back when memory runs short.
        cached = int(statistics[statistics.index("inactive_file") + 1])
        used = int((group / "memory.current").read_text()) - cached
        free.append(int((group / "memory.max").read_text()) - used)
    with suppress(OSError, ValueError, IndexError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        free += [limit - used] if limit != resource.RLIM_INFINITY else []
    return min(free)


def check_archive(file: BinaryIO, largest: int) -> None:
    """Raises OSError where ``file`` is a zip archive whose content would fill more than ``largest``
    bytes; an archive that can't be read is left to its reader."""
    with suppress(zipfile.BadZipFile, NotImplementedError, UnicodeError, struct.error):
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > largest:
            told = f"its content would fill {size / 1e6:,.0f} MB, more than {largest / 1e6:,.0f} MB"
            raise OSError(errno.EFBIG, told)

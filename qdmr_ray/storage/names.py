"""Names that come from elsewhere, checked before any of them becomes part of a path.

    check_name("../../etc/passwd")      # SettingsError: '../../etc/passwd' holds a / …

A name is one file or folder directly in another: it cannot lead elsewhere, every file system takes
it, and it can be printed and written as UTF-8.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

from qdmr_ray.errors import SettingsError

# Patterns that pyarrow understands as ``re`` does, for columns of millions of names.
NOT_TEXT = r"[\x00-\x1f\x7f-\x9f]"
NOT_A_NAME = rf"/|^\.{{0,2}}$|{NOT_TEXT}"
# What Linux, macOS and Windows take at most for one part of a path.
MOST_NAME_BYTES = 255
_SHOWN = 80


def check_text(text: str) -> str:
    """Returns ``text``; raises SettingsError, which quotes it, where it holds control characters or
    cannot be written as UTF-8."""
    if not is_text(text):
        raise SettingsError(f"{_quoted(text)} holds control characters or is not UTF-8")
    return text


def check_name(name: str) -> str:
    """Returns ``name``; raises SettingsError, which quotes it, where it is no text, empty, ``.`` or
    ``..``, holds a ``/``, or is longer than ``MOST_NAME_BYTES``."""
    check_text(name)
    if "/" in name:
        raise SettingsError(f"{_quoted(name)} holds a /, so it is no name of a file")
    if re.search(NOT_A_NAME, name):
        raise SettingsError(f"{_quoted(name)} is no name of a file")
    if len(name.encode()) > MOST_NAME_BYTES:
        raise SettingsError(f"{_quoted(name)} is a name of more than {MOST_NAME_BYTES} bytes")
    return name


def unique_names(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Returns the names, each of which can have a file of its own in one folder: of ``a``, ``b``
    and ``A`` the last becomes ``A (2)``. A name that is the first of its kind stays. None is one of
    ``taken``, and none has more than ``MOST_NAME_BYTES`` because of its number."""
    used = {_folded(name) for name in taken}
    found: list[str | None] = []
    for name in names:
        found.append(None if _folded(name) in used else name)
        used.add(_folded(name))
    numbers: dict[str, int] = {}
    unique: list[str] = []
    for name, own in zip(names, found, strict=True):
        while own is None:
            number = numbers[name] = numbers.get(name, 1) + 1
            numbered = _numbered(name, number)
            if _folded(numbered) not in used:
                used.add(_folded(numbered))
                own = numbered
        unique.append(own)
    return unique


def _numbered(name: str, number: int) -> str:
    end = f" ({number})"
    return name.encode()[: MOST_NAME_BYTES - len(end)].decode(errors="ignore") + end


def _folded(name: str) -> str:
    """Returns what disks that don't tell letters of two cases, or two ways to write an accent,
    compare."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def is_text(text: str) -> bool:
    """Returns whether ``text`` can be written as UTF-8 and holds no control character."""
    # Surrogates stand for the bytes of a file's name that are not UTF-8.
    return not re.search(NOT_TEXT, text) and not re.search("[\ud800-\udfff]", text)


def _quoted(text: str) -> str:
    return f"'{text[:_SHOWN]}{'…' * (len(text) > _SHOWN)}'"

"""Finds the photographs that files, folders and patterns name."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdmr_ray.errors import one_line
from qdmr_ray.photographs.decode import IMAGE_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A file that could not be corrected; ``reason`` names it and the cause in one line, ``error``
    is the exception, if any."""

    path: Path
    reason: str
    error: BaseException | None = None


def failure_of(path: Path, error: BaseException) -> Failure:
    """Turns any error into one line that names the file."""
    reason = one_line(error)
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, MemoryError):
        reason = "too little memory"
    reason = reason if str(path) in reason else f"{path}: {reason}"
    return Failure(path=path, reason=reason, error=error)


def expand(files: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """Returns the photographs named, each once, in the order given, with folders and patterns
    sorted; and a failure for each name that can't be looked into or holds none."""
    found: dict[tuple[str, str], Path] = {}
    failures = []
    for named in files:
        path = Path(named)
        try:
            photographs = _photographs(path)
        except OSError as error:
            failures.append(failure_of(path, error))
            continue
        if not photographs:
            kind = "folder" if path.is_dir() else "pattern"
            failures.append(Failure(path=path, reason=f"{path}: the {kind} holds no photographs"))
        for photograph in photographs:
            # The name is part of the key: two links to one file have two results.
            found.setdefault((os.path.realpath(photograph), photograph.name), photograph)
    return list(found.values()), failures


def _photographs(path: Path) -> list[Path]:
    if path.is_dir():
        items = [item for item in path.iterdir() if not item.name.startswith(".")]
    elif not path.exists() and glob.has_magic(str(path)):
        items = [Path(item) for item in glob.glob(str(path), recursive=True)]
    else:
        return [path]
    return sorted(p for p in items if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())

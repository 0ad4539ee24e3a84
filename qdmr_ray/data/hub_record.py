"""What fetching remembers in its folder: which files are verified, which archives unpacked."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdmr_ray.data.archives import STATE_FOLDER, is_complete
from qdmr_ray.data.hub_client import HubFile
from qdmr_ray.errors import QdmrError


@contextmanager
def locked_state(out: Path) -> Iterator[Path]:
    """The folder for partial files and the record, locked for this process."""
    state = out / STATE_FOLDER
    state.mkdir(parents=True, exist_ok=True)
    with open(state / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise QdmrError(f"{out}: another fetch-realab is at work there; wait for it") from error
        except OSError:
            pass  # a network disk without locks
        yield state


class Record:
    """Which files were verified and which archives unpacked: one JSON object per line.

    Lines are only appended, so a kill costs the last one at most; the last about a path counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._verified: dict[str, dict[str, Any]] = {}
        self._unpacked: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                self._remember(line)

    def is_verified(self, file: HubFile, place: Path) -> bool:
        """Whether the file was verified and hasn't changed since, nor on the hub."""
        entry = self._verified.get(file.path)
        return entry is not None and place.is_file() and entry == _verified_entry(file, place)

    def is_unpacked(self, file: HubFile, folder: Path) -> bool:
        """Whether the archive was unpacked into ``folder`` and its files are still there."""
        entry = self._unpacked.get(file.path, {})
        if entry.get("checksum") != file.checksum:
            return False
        return is_complete(folder, entry["unpacked"])

    def add_verified(self, file: HubFile, place: Path) -> None:
        self._add(_verified_entry(file, place))

    def add_unpacked(self, file: HubFile, counts: dict[str, int]) -> None:
        self._add({"path": file.path, "checksum": file.checksum, "unpacked": counts})

    def _add(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        with self._lock, open(self._path, "a") as file:
            # First the line's end: the line before may have been cut off.
            file.write(f"\n{line}")
            self._remember(line)

    def _remember(self, line: str) -> None:
        try:
            entry = json.loads(line)
            kind = self._unpacked if "unpacked" in entry else self._verified
            kind[entry["path"]] = entry
        except (ValueError, TypeError, KeyError):
            return


def _verified_entry(file: HubFile, place: Path) -> dict[str, Any]:
    found = place.stat()
    return {
        "path": file.path,
        "checksum": file.checksum,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
    }

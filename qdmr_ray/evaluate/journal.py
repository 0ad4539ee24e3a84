"""The results of an evaluation while it goes on, so that one that is killed can go on.

``results.jsonl`` is written by the driver alone: a first line that says what is being evaluated,
then a line per photograph as it is done. A line that a crash cut short is measured again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location

RESULTS_FILE = "results.jsonl"
# Nothing can be appended to an object of a store, so it is written anew, but not for each line.
STORE_SECONDS = 10.0

Row = dict[str, Any]


class ResultsFile:
    """Rows ``{"index", "name", "figures"}`` in ``file``, each photograph once.

    ``rows`` holds those by index that an evaluation of the same ``digest`` has left, and is
    added to. What belongs to another digest is dropped.
    """

    def __init__(self, file: Location, digest: str) -> None:
        self._file, self._digest = file, digest
        self._local: Path | None = file.local_path
        self._written = -STORE_SECONDS
        self.rows: dict[int, Row] = self._earlier()

    def keep(self, indexes: set[int]) -> None:
        """Drops every other row and starts the file again with what is left."""
        self.rows = {index: row for index, row in self.rows.items() if index in indexes}
        self.flush()

    def add(self, row: Row) -> None:
        """Appends a row, unless the photograph has one.

        Raises:
            QdmrError: the place can't be written to.
        """
        if row["index"] in self.rows:
            return
        self.rows[row["index"]] = row
        if self._local is None:
            if time.monotonic() - self._written >= STORE_SECONDS:
                self.flush()
            return
        try:
            with self._local.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise QdmrError(f"{self._local}: cannot be written ({error.strerror})") from error

    def flush(self) -> None:
        """Writes the whole file, completely or not at all."""
        lines = [{"digest": self._digest}, *self.rows.values()]
        self._file.write_bytes_atomic("".join(map(_line, lines)).encode())
        self._written = time.monotonic()

    def _earlier(self) -> dict[int, Row]:
        if not self._file.exists():
            return {}
        first, *lines = [_parsed(line) for line in self._file.read_bytes().split(b"\n")]
        if first is None or first.get("digest") != self._digest:
            return {}
        return {row["index"]: row for row in lines if row and _is_row(row)}


def _line(row: Row) -> str:
    # An infinite PSNR is written as Python writes it: the file is read by this module alone.
    return json.dumps(row) + "\n"


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _is_row(row: Row) -> bool:
    return isinstance(row.get("index"), int) and {"name", "figures"} <= row.keys()

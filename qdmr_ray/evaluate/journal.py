"""The journal of an evaluation in progress, from which a killed evaluation goes on.

The driver alone writes ``results.jsonl``: a first line that names the evaluation by its digest,
then a line for each photograph as it is done. A photograph whose line a crash cut short is measured
again.
"""

import time
from contextlib import suppress

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.results import JournalHead, Judged
from qdmr_ray.storage import Location
from qdmr_ray.storage.document import Document

RESULTS_FILE = "results.jsonl"
# A store can't append to an object: the file is written anew, at most once in so many seconds.
STORE_SECONDS = 10.0


class ResultsFile:
    """The photographs in ``file``, each once. ``rows`` holds, by index, those that an evaluation of
    the same ``digest`` has left and those that are added; rows of another digest are dropped."""

    def __init__(self, file: Location, digest: str) -> None:
        self._file, self._head = file, JournalHead(digest=digest)
        self._written = -STORE_SECONDS
        self.rows: dict[int, Judged] = self._earlier()

    def keep(self, indexes: set[int]) -> None:
        """Drops every other row and writes the file anew."""
        self.rows = {index: row for index, row in self.rows.items() if index in indexes}
        self.flush()

    def add(self, row: Judged) -> None:
        """Appends a row, unless the photograph has one; raises QdmrError where writing fails."""
        if row.index in self.rows:
            return
        self.rows[row.index] = row
        local = self._file.local_path
        if local is None:
            if time.monotonic() - self._written >= STORE_SECONDS:
                self.flush()
            return
        try:
            with local.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise QdmrError(f"{local}: cannot be written ({error.strerror})") from error

    def flush(self) -> None:
        """Writes the whole file, completely or not at all."""
        lines = [_line(self._head), *map(_line, self.rows.values())]
        self._file.write_bytes_atomic("".join(lines).encode())
        self._written = time.monotonic()

    def _earlier(self) -> dict[int, Judged]:
        if not self._file.exists():
            return {}
        first, *lines = self._file.read_bytes().split(b"\n")
        found: dict[int, Judged] = {}
        with suppress(QdmrError):
            if JournalHead.parse(first, self._file.uri) == self._head:
                for line in lines:
                    with suppress(QdmrError):
                        row = Judged.parse(line, self._file.uri)
                        found[row.index] = row
        return found


def _line(document: Document) -> str:
    return document.to_json(indent=None) + "\n"

"""A node's own copies of shards that lie in a store, shared by every process of the node.

Crops are read from the store by range at first; meanwhile a thread copies whole shards to a folder
on this node's disk, one process at a time for each, and from then on they are mapped from there.
The first shards are copied, as many as ``cache_bytes`` allow. Every record is read once an epoch in
random order, so no choice of what to keep could hit more often, and nothing is ever dropped only to
be fetched again.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import shutil
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile
from pathlib import Path

from qdmr_ray.data.format.manifest import FileEntry
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import TEMPORARY_PREFIX, Location, write_file_atomic

# A disk that is nearly full slows down, and other programs need some of it.
_FREE_SHARE = 0.05

_log = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """Returns ``$XDG_CACHE_HOME/qdmr_ray/shards``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "qdmr_ray", "shards")


class ShardCache:
    """Copies in ``folder`` of the first ``limit`` bytes of ``files``, which lie in ``location``.

    Without ``fills`` it makes no copies and uses those of other processes. Several threads and
    processes may use it at once. File names carry their content's checksum, so datasets share the
    folder without collisions.
    """

    def __init__(
        self,
        location: Location,
        files: Sequence[FileEntry],
        folder: Path,
        limit: int,
        *,
        fills: bool = True,
    ) -> None:
        self._location, self._folder = location, folder
        self._limit, self._fills = limit, fills
        ends = accumulate(file.bytes for file in files)
        fitting = takewhile(lambda end: end <= limit, ends)
        self._wanted = {file.file: file for file, _ in zip(files, fitting, strict=False)}
        self._asked: set[str] = set()
        self._queue: queue.SimpleQueue[FileEntry] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def path(self, name: str) -> Path | None:
        """Returns the copy of a file; ``None`` while there is none, which the thread then makes."""
        path, file = self._folder / name, self._wanted.get(name)
        if file is None:
            return None
        with contextlib.suppress(OSError):
            if path.stat().st_size == file.bytes:
                return path
        if self._fills:
            self._ask_for(file)
        return None

    def fetch(self, file: FileEntry) -> Path | None:
        """Returns a copy of ``file``, made now by one process of the node while the others wait;
        ``None`` when the folder cannot hold it. Raises QdmrError where the store lacks the file."""
        target = self._folder / file.file
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._claimed(file, wait=True):
                if not target.exists():
                    write_file_atomic(target, self._location.join(file.file).read_bytes())
            return target
        except OSError as error:
            _log.warning("%s cannot be used: %s", self._folder, error)
            return None

    @contextlib.contextmanager
    def _claimed(self, file: FileEntry, *, wait: bool = False) -> Iterator[bool]:
        """Yields whether this process holds the file's lock, which ends with the process. The lock
        stays: removing it would let a third process lock another one of the same name."""
        with open(self._folder / f"{TEMPORARY_PREFIX}{file.file}.lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def _ask_for(self, file: FileEntry) -> None:
        with self._lock:
            if file.file in self._asked:
                return
            self._asked.add(file.file)
            self._queue.put(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="shard-cache")
                self._thread.start()

    def _run(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop_other_datasets()
            while True:
                self._copy(self._queue.get())
        except (OSError, QdmrError) as error:
            # Training goes on without copies, only slower.
            _log.warning("no more shards are kept in %s: %s", self._folder, error)

    def _copy(self, file: FileEntry) -> None:
        target = self._folder / file.file
        with self._claimed(file) as ours:
            if not ours or target.exists():
                return
            disk = shutil.disk_usage(self._folder)
            if disk.free - file.bytes < _FREE_SHARE * disk.total:
                raise QdmrError(
                    f"the disk has {disk.free / 1e9:.1f} GB left; set data.cache_folder"
                )
            data = self._location.join(file.file).read_bytes()
            if hashlib.sha256(data).hexdigest() != file.sha256:
                # The shard is read from the store, where broken records are found one by one.
                _log.warning("%s: wrong checksum, not kept", self._location.join(file.file).uri)
                return
            write_file_atomic(target, data)

    def _drop_other_datasets(self) -> None:
        """Makes room: deletes files that this dataset doesn't want, the longest unused first."""
        # Indexes stay: they are small, and may be another training run's.
        shards = self._folder.glob("*.parquet")
        others = [file for file in shards if file.name not in self._wanted]
        sizes = {file: file.stat() for file in others}
        excess = sum(found.st_size for found in sizes.values())
        excess += sum(file.bytes for file in self._wanted.values()) - self._limit
        for file, found in sorted(sizes.items(), key=lambda item: item[1].st_atime):
            if excess <= 0:
                return
            # A process that has mapped the file keeps it; the disk space is freed afterwards.
            file.unlink(missing_ok=True)
            excess -= found.st_size

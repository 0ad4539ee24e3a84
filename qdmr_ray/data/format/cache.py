"""A node's own copies of shards that lie in a store, shared by every process of the node.

Crops are read from the store by range at first; meanwhile a thread copies whole shards to a folder
on this node's disk, one process at a time for each, and from then on they are mapped from there.
The first shards are copied, as many as ``cache_bytes`` allow, or those that a placement gives to
this node (``placement``). Every record is read once an epoch in random order, so no choice of what
to keep could hit more often, and nothing is ever dropped only to be fetched again.

Beside each copy lies its marker, a file that only this module makes: processes lock it, and it
holds the checksum of what arrived. A file without a marker is somebody else's: it is neither used
nor replaced nor deleted. A copy that turns out to be damaged is made again, once; whatever fails,
the store is read instead.
"""

import contextlib
import errno
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
from typing import BinaryIO

from qdmr_ray.data.format.manifest import FileEntry
from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import TEMPORARY_PREFIX, Location

# A disk that is nearly full slows down, and other programs need some of it: copies leave this share
# of it, in bytes of a large one.
_FREE_SHARE, _FREE_BYTES = 0.05, 5 * 10**9
# A file that differs from its checksum may have been damaged in transit: it is fetched again.
_FETCHES = 2
_SHARD, _MARKER, _PART = ".parquet", ".lock", ".part"

_log = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """Returns ``$XDG_CACHE_HOME/qdmr_ray/shards``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "qdmr_ray", "shards")


class ShardCache:
    """Copies in ``folder`` of the first ``limit`` bytes of ``files``, which lie in ``location``, or
    of those that are ``kept``.

    Without ``fills`` it makes no copies and uses all of other processes. Several threads and
    processes may use it at once. A marker holds the checksum of its copy, so datasets may share the
    folder, whatever their files are called.
    """

    def __init__(
        self,
        location: Location,
        files: Sequence[FileEntry],
        folder: Path,
        limit: int,
        *,
        fills: bool = True,
        kept: Sequence[FileEntry] | None = None,
    ) -> None:
        self._location, self._folder = location, folder
        self._limit, self._fills = limit, fills
        if kept is None:
            ends = accumulate(file.bytes for file in files)
            fitting = takewhile(lambda end: end <= limit, ends)
            kept = [file for file, _ in zip(files, fitting, strict=False)]
        self._files = {file.file: file for file in files}
        self._wanted = {file.file: file for file in kept}
        self._asked: set[str] = set()
        # Names of copies in which wrong bytes were found, and of those that the thread was asked
        # for once more.
        self._doubted: set[str] = set()
        self._renewed: set[str] = set()
        self._given_up = False
        self._queue: queue.SimpleQueue[FileEntry] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def path(self, name: str) -> Path | None:
        """Returns the copy of a file; ``None`` while there is none, which the thread then makes if
        it is to be kept."""
        file = (self._wanted if self._fills else self._files).get(name)
        if file is None:
            return None
        if name not in self._doubted and self._is_marked(file):
            return self._folder / name
        if self._fills:
            self._ask_for(file)
        return None

    def doubt(self, name: str) -> None:
        """Takes back the copy of a file, in which wrong bytes were found: ``path`` returns ``None``
        until the thread has compared it with its checksum or made it again, which happens once."""
        with self._lock:
            self._doubted.add(name)
            if name not in self._renewed:
                self._renewed.add(name)
                self._asked.discard(name)

    def fetch(self, file: FileEntry, *, doubted: bool = False) -> Path | None:
        """Returns a copy of ``file``, made now by one process of the node while the others wait;
        ``None`` when the folder cannot hold it, or the store's bytes are wrong. A copy that is
        ``doubted`` is compared with its checksum. Raises QdmrError where the store lacks the file
        or doesn't answer."""
        if self._given_up:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return self._whole_copy(file, doubted)
        except OSError as error:
            self._give_up(error)
            return None

    def _is_marked(self, file: FileEntry) -> bool:
        """Whether there is a copy of the file's length, whose marker says that it arrived whole."""
        marker = self._beside(file.file, _MARKER)
        with contextlib.suppress(OSError):
            whole = (self._folder / file.file).stat().st_size == file.bytes
            # What isn't as long isn't read: it may be anything, even a pipe.
            if whole and marker.stat().st_size == len(file.sha256):
                return marker.read_bytes() == file.sha256.encode()
        return False

    def _whole_copy(self, file: FileEntry, doubted: bool) -> Path | None:
        """Returns the copy, made now if there is none that is whole; ``None`` where its place is
        taken or the store's bytes are wrong."""
        target = self._folder / file.file
        taken = os.path.lexists(target) and not self._beside(file.file, _MARKER).exists()
        if taken or file.file.startswith(TEMPORARY_PREFIX):
            _log.warning(
                "%s: is no copy that qdmr made, so the store is read instead; move it away, or set "
                "data.cache_folder to another folder",
                target,
            )
            return None
        with self._claimed(file.file) as marker:
            assert marker is not None
            if not doubted and self._is_marked(file):
                return target
            marker.truncate(0)
            if not _is_whole(target, file):
                if target.exists():
                    _log.warning("%s: the copy is damaged; it is made again", target)
                if file.file in self._wanted:
                    self._check_room(file)
                data = self._from_store(file)
                if data is None:
                    uri = self._location.join(file.file).uri
                    _log.warning("%s: wrong checksum, not kept in %s", uri, self._folder)
                    return None
                self._write(target, data)
            marker.write(file.sha256.encode())
        return target

    def _check_room(self, file: FileEntry) -> None:
        disk = shutil.disk_usage(self._folder)
        if disk.free - file.bytes < min(_FREE_SHARE * disk.total, _FREE_BYTES):
            raise OSError(errno.ENOSPC, f"the disk has {disk.free / 1e9:.1f} GB left")

    def _from_store(self, file: FileEntry) -> bytes | None:
        """Returns the file's bytes, ``None`` where the store's are wrong each time."""
        for _ in range(_FETCHES):
            data = self._location.join(file.file).read_bytes()
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return data
        return None

    def _write(self, target: Path, data: bytes) -> None:
        """Writes a file whose lock this process holds. What a power cut leaves of it is found when
        it is read, so this doesn't wait for the disk."""
        part = self._beside(target.name, _PART)
        try:
            # A process that was killed may have left one, and a link may lead elsewhere.
            part.unlink(missing_ok=True)
            with open(part, "xb") as file:
                file.write(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _beside(self, name: str, ending: str) -> Path:
        return self._folder / f"{TEMPORARY_PREFIX}{name}{ending}"

    @contextlib.contextmanager
    def _claimed(self, name: str, *, wait: bool = True) -> Iterator[BinaryIO | None]:
        """Yields the marker of a file, locked until the end of the block or of the process;
        ``None`` if another process holds it and this one doesn't ``wait``."""
        path = self._beside(name, _MARKER)
        while True:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(number, "r+b", buffering=0) as marker:
                try:
                    fcntl.flock(marker, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield None
                    return
                # Whoever held the lock before may have deleted the file together with its copy.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(number), path.lstat()):
                        yield marker
                        return

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
            while not self._given_up:
                self._copy(self._queue.get())
        except OSError as error:
            self._give_up(error)

    def _copy(self, file: FileEntry) -> None:
        try:
            if self._whole_copy(file, file.file in self._doubted):
                self._doubted.discard(file.file)
        except QdmrError as error:
            _log.warning("a shard is not kept in %s: %s", self._folder, error)

    def _give_up(self, error: OSError) -> None:
        """Training goes on without more copies, only slower; that is said once."""
        if not self._given_up:
            self._given_up = True
            _log.warning(
                "%s: no more copies are kept here (%s), the store is read instead; free space or "
                "set data.cache_folder to another folder",
                self._folder,
                error.strerror or error,
            )

    def _drop_other_datasets(self) -> None:
        """Makes room: deletes copies that this dataset doesn't want, the longest unused first."""
        # Indexes stay: they are small, and may be another training run's.
        markers = self._folder.glob(f"{TEMPORARY_PREFIX}*{_SHARD}{_MARKER}")
        names = {m.name[len(TEMPORARY_PREFIX) : -len(_MARKER)] for m in markers} - {*self._wanted}
        files = {name: (self._folder / name, self._beside(name, _PART)) for name in names}
        found = {name: [s for f in files[name] for s in _status(f)] for name in names}
        excess = sum(status.st_size for statuses in found.values() for status in statuses)
        excess += sum(file.bytes for file in self._wanted.values()) - self._limit
        used = {name: max((s.st_atime for s in found[name]), default=0.0) for name in names}
        for name in sorted(names, key=used.__getitem__):
            if excess <= 0:
                return
            with self._claimed(name, wait=False) as marker:
                if marker is None:
                    continue
                # A process that has mapped the copy keeps it; the space is freed afterwards.
                for file in (*files[name], self._beside(name, _MARKER)):
                    file.unlink(missing_ok=True)
            excess -= sum(status.st_size for status in found[name])


def _status(file: Path) -> list[os.stat_result]:
    """Returns the file's own status, none where another process has deleted it."""
    with contextlib.suppress(FileNotFoundError):
        return [file.lstat()]
    return []


def _is_whole(path: Path, file: FileEntry) -> bool:
    """Whether the file at ``path`` is there and agrees with its checksum."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as copy:
        if os.fstat(copy.fileno()).st_size == file.bytes:
            return hashlib.file_digest(copy, "sha256").hexdigest() == file.sha256
    return False

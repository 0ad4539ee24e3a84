"""Downloads the Realab benchmark: resumable, with checksums.

    qdmr data fetch-realab --out data/Realab

Files are received into ``.qdmr-fetch`` inside the folder, compared with the hub's checksums, and
only then moved to their place; a record there says what was verified, so that a second run hashes
and downloads nothing again.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from qdmr_ray.data.archives import (
    disk_error,
    in_gigabytes,
    is_archive,
    require_room,
    safe_path,
    unpack,
)
from qdmr_ray.data.hub_client import DATASET, HubClient, HubFile
from qdmr_ray.data.hub_record import Record, locked_state
from qdmr_ray.data.packing.folders import is_realab
from qdmr_ray.errors import QdmrError

Progress = Callable[[str, int, int], None]

# Most of Realab are small files, where waiting for the hub takes longer than receiving.
_THREADS = 8
# How often a file is received before it counts as damaged on the hub.
_TRIES = 2
_SECONDS_BETWEEN_REPORTS = 0.1
# How many levels below the folder the Realab layout is looked for.
_LEVELS = 2


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """What was asked for is in the folder.

    ``files`` and ``size`` (bytes) count what the hub has of it, ``fetched`` the files received now,
    ``commit`` is the revision they are of. ``realab`` is the folder to pack, ``None`` where the
    layout was not found; ``found`` are the names at the top, folders with a slash.
    """

    files: int
    size: int
    fetched: int
    commit: str
    realab: Path | None
    found: tuple[str, ...]

    def lines(self, out: Path) -> list[str]:
        """What was fetched into ``out``, and what to do next."""
        size = in_gigabytes(self.size)
        lines = [
            f"{self.files} files ({size}) of revision {self.commit[:12]} in {out}, "
            f"{self.fetched} of them received now; all agree with the hub's checksums"
        ]
        if self.realab is None:
            lines.append(
                f"no Realab layout in {out}; there are: {', '.join(self.found)}; "
                "datasets/README.md (section Realab) describes the expected folders"
            )
        else:
            folder = shlex.quote(str(self.realab))
            lines.append(
                f"Realab layout in {self.realab}; next:  qdmr data pack {folder} "
                "--out data/realab-s1 --lens S1 --target-set Real-Sim"
            )
        return lines


def fetch_realab(
    out: Path,
    *,
    endpoint: str | None,
    revision: str = "main",
    include: Sequence[str] = (),
    keep_archives: bool = False,
    progress: Progress | None = None,
) -> FetchResult:
    """Downloads Realab into ``out``, checks it and unpacks its archives; goes on where it stopped.

    Args:
        out: folder; it is made.
        endpoint: the hub's address; without it ``HF_ENDPOINT`` counts, then huggingface.co.
        revision: branch, tag or commit.
        include: patterns such as "Syn/*", of which a file's path must match one; none is all files.
        keep_archives: leave archives where they are after they are unpacked.
        progress: called with (step, bytes done, bytes in all).

    Raises:
        QdmrError: the hub is unreachable, refuses or is busy; the disk is short, full or not
            writable; a file differs from the hub's checksum twice; an archive is damaged or
            unsafe; or another run is at work in ``out``. What is verified stays.
    """
    client = HubClient(endpoint, revision)
    files = _chosen(client.files(), include)
    try:
        with locked_state(out) as state:
            fetch = _Fetch(out, state, client)
            missing = [file for file in files if not fetch.is_done(file)]
            fetch.require_room(missing, files, keep_archives)
            fetched = fetch.receive(missing, progress)
            fetch.unpack(files, keep_archives, progress)
            if not include:
                # Partial files of another revision, which nothing will go on with.
                shutil.rmtree(fetch.partials, ignore_errors=True)
        names = sorted(path.name + "/" * path.is_dir() for path in out.iterdir())
        realab = _find_layout(out)
    except OSError as error:
        raise disk_error(out, error) from error
    return FetchResult(
        files=len(files),
        size=sum(file.size for file in files),
        fetched=fetched,
        commit=client.commit,
        realab=realab,
        found=tuple(name for name in names if not name.startswith(".")),
    )


class _Fetch:
    """One run: the folder, its state, and what several threads share."""

    def __init__(self, out: Path, state: Path, client: HubClient) -> None:
        self.out = out
        self.partials = state / "partial"
        self.partials.mkdir(exist_ok=True)
        self.client = client
        self.record = Record(state / "record.jsonl")

    def is_done(self, file: HubFile) -> bool:
        """Whether the file is here and verified, or was an archive and is unpacked."""
        if self.record.is_verified(file, self._place(file)):
            return True
        return is_archive(file.path) and self.record.is_unpacked(file, self._place(file).parent)

    def require_room(
        self, missing: list[HubFile], files: list[HubFile], keep_archives: bool
    ) -> None:
        """What is still to be received, and at least as much again for what is in archives."""
        partial = sum(self._partial(file).stat().st_size for file in missing if self._started(file))
        packed = [
            file.size
            for file in files
            if is_archive(file.path) and not self.record.is_unpacked(file, self._place(file).parent)
        ]
        unpacked = sum(packed) if keep_archives else max(packed, default=0)
        size = sum(file.size for file in missing) - partial + unpacked
        purpose = f"what is missing of {DATASET}" + " and its unpacking" * bool(packed)
        require_room(self.out, size, purpose)

    def receive(self, missing: list[HubFile], progress: Progress | None) -> int:
        """Receives the files, several at once; returns how many.

        A file that stays wrong doesn't stop the others; any other failure does.
        """
        meter = _Meter("download", sum(file.size for file in missing), progress)
        received = 0
        damaged: list[QdmrError] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            futures = [pool.submit(self._receive_one, file, meter) for file in missing]
            try:
                for future in as_completed(futures):
                    try:
                        received += future.result()
                    except _WrongBytesError as error:
                        damaged.append(error)
            except BaseException:
                self.client.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if damaged:
            more = f" (and {len(damaged) - 1} more files)" if len(damaged) > 1 else ""
            raise QdmrError(f"{damaged[0]}{more}")
        meter.finish()
        return received

    def unpack(self, files: list[HubFile], keep_archives: bool, progress: Progress | None) -> None:
        """Unpacks the archives that aren't yet, one after the other."""
        archives = {file: self._place(file) for file in files if is_archive(file.path)}
        packed = {
            file
            for file, place in archives.items()
            if not self.record.is_unpacked(file, place.parent)
        }
        meter = _Meter("unpack", sum(file.size for file in packed), progress)
        done = 0
        for file, place in archives.items():
            if file in packed:
                counts = unpack(place, meter.advance)
                # The record must not claim, after a power cut, what the disk has lost.
                os.sync()
                self.record.add_unpacked(file, counts)
                done += file.size
                meter.set(done)
            if not keep_archives:
                place.unlink(missing_ok=True)
        meter.finish()

    def _receive_one(self, file: HubFile, meter: _Meter) -> bool:
        """Whether the file had to be received; it is in its place and verified in any case."""
        place, partial = self._place(file), self._partial(file)
        if file.agrees(place):
            meter.advance(file.size)
            self.record.add_verified(file, place)
            return False
        meter.advance(partial.stat().st_size if self._started(file) else 0)
        for _ in range(_TRIES):
            partial.touch()  # an empty file needs no request
            self.client.receive(file, partial, meter.advance)
            if self.client.stop.is_set():
                return False
            if file.agrees(partial):
                self._keep(file, partial, place)
                return True
            meter.advance(-partial.stat().st_size)
            partial.unlink()
        raise _WrongBytesError(
            f"{place}: differs from the hub's checksum, also when received again; run the same "
            "command again later, or try another hub with --endpoint"
        )

    def _keep(self, file: HubFile, partial: Path, place: Path) -> None:
        with open(partial, "rb") as received:
            os.fsync(received.fileno())
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, place)
        self.record.add_verified(file, place)

    def _place(self, file: HubFile) -> Path:
        return safe_path(self.out, file.path, self.client.page)

    def _partial(self, file: HubFile) -> Path:
        """Where the file is received: of its path and content, so that no other gets in."""
        name = hashlib.sha256(f"{file.path}\n{file.checksum}".encode()).hexdigest()
        return self.partials / name

    def _started(self, file: HubFile) -> bool:
        return self._partial(file).exists()


class _WrongBytesError(QdmrError):
    """A file that differs from the hub's checksum."""


class _Meter:
    """Adds up the bytes of several threads. The end is reported once, when all is verified."""

    def __init__(self, step: str, total: int, progress: Progress | None) -> None:
        self._step, self._total, self._progress = step, total, progress
        self._lock = threading.Lock()
        self._done = 0
        self._reported = 0.0

    def advance(self, count: int) -> None:
        with self._lock:
            self._set(self._done + count)

    def set(self, done: int) -> None:
        with self._lock:
            self._set(done)

    def finish(self) -> None:
        if self._progress is not None and self._total:
            self._progress(self._step, self._total, self._total)

    def _set(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        if self._progress is None or now - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported = now
        self._progress(self._step, max(min(done, self._total - 1), 0), self._total)


def _chosen(files: list[HubFile], include: Sequence[str]) -> list[HubFile]:
    """The files that match a pattern or lie in a folder that does, sorted by path."""
    patterns = [*include, *(f"{pattern.rstrip('/')}/*" for pattern in include)] or ["*"]
    chosen = [
        file
        for file in sorted(files, key=lambda file: file.path)
        if any(fnmatchcase(file.path, pattern) for pattern in patterns)
    ]
    if not chosen:
        tops = sorted({file.path.partition("/")[0] for file in files})
        raise QdmrError(
            f"{DATASET}: no file matches {', '.join(include) or 'anything'}; at the top there are: "
            f"{', '.join(tops) or 'no files at all'}"
        )
    return chosen


def _find_layout(out: Path) -> Path | None:
    """The uppermost folder that ``qdmr data pack`` takes as Realab."""
    level = [out]
    for _ in range(_LEVELS + 1):
        for folder in level:
            if is_realab(folder):
                return folder
        level = [
            path
            for folder in level
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ]
    return None

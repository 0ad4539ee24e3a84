"""Checkpoints of a stage: written beside training, complete or not there, checked when read.

    store = CheckpointStore(run.join("uda", "checkpoints"), keep=2)
    store.save(Progress(5000, "uda", digest), stage.state_dict(), [random_state(device)])
    store.wait()  # ``save`` returned once everything was copied to memory; now it is stored
    found = store.newest()

A checkpoint is a folder ``checkpoint_000005000`` with ``state.pt`` (the stage's ``state_dict``:
its iteration is the position in the data, and the learning rates follow from it) and
``rank_00000.pt``, ... (random states of each rank). ``complete.json`` is written last and names
size and SHA-256 of each file: only what agrees with it counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location
from qdmr_ray.train.snapshot import HostMemory

STATE_FILE = "state.pt"
COMPLETE_FILE = "complete.json"
FORMAT = 1
_FOLDER = re.compile(r"checkpoint_(\d{9,})")
_log = logging.getLogger(__name__)


def rank_file(rank: int) -> str:
    """Name of the file with the random states of ``rank``."""
    return f"rank_{rank:05d}.pt"


@dataclass(frozen=True)
class Progress:
    """What a checkpoint says about itself; ``metrics`` are the figures logged last."""

    iteration: int
    stage: str
    digest: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files (those in ``contents``) agree with their checksums."""

    folder: Location
    progress: Progress
    world_size: int
    contents: Mapping[str, bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    def state(self) -> dict[str, Any]:
        """The stage's state, on the CPU."""
        return self._loaded(STATE_FILE)

    def random_state(self, rank: int) -> dict[str, Any]:
        """What ``snapshot.random_state`` gave on ``rank``."""
        return self._loaded(rank_file(rank))

    def _loaded(self, name: str) -> dict[str, Any]:
        # Nothing in a checkpoint may run code.
        loaded: dict[str, Any] = torch.load(
            io.BytesIO(self.contents[name]), map_location="cpu", weights_only=True
        )
        return loaded


class CheckpointStore:
    """The checkpoints in a folder on disk or in a store; one process writes, any may read.

    Args:
        location: the folder, which need not exist.
        keep: how many of the newest are kept.
        best_metric: a name in ``Progress.metrics``; the checkpoint with the best value is kept too.
        best_mode: whether the smallest or the largest value is the best.
        warn: takes the line that names a damaged checkpoint.
    """

    def __init__(
        self,
        location: Location,
        *,
        keep: int = 1,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        self._location = location
        self._keep, self._best_metric, self._best_mode = keep, best_metric, best_mode
        self._warn = warn
        self._memory = HostMemory()
        self._records: dict[str, dict[str, Any]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    # -- writing -----------------------------------------------------------------------------

    def save(
        self,
        progress: Progress,
        state: Mapping[str, Any],
        random_states: Sequence[Mapping[str, Any]],
        before_complete: Callable[[], None] | None = None,
    ) -> None:
        """Copies ``state`` to memory and writes it in a thread, after the write before it.

        ``random_states`` has an entry per rank. ``before_complete`` is called in the thread just
        before the checkpoint counts.

        Raises:
            QdmrError: the write before this one failed.
        """
        self.wait()
        copied = self._memory.copy(state)
        self._writing = self._thread.submit(
            self._write, progress, copied, list(random_states), before_complete
        )

    def wait(self) -> None:
        """Returns when everything saved is stored.

        Raises:
            QdmrError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self,
        progress: Progress,
        state: Mapping[str, Any],
        random_states: Sequence[Mapping[str, Any]],
        before_complete: Callable[[], None] | None,
    ) -> None:
        self._remove_leftovers(progress.iteration)
        folder = self._location.join(f"checkpoint_{progress.iteration:09d}")
        files = {}
        contents = [(STATE_FILE, state)]
        contents += [(rank_file(rank), own) for rank, own in enumerate(random_states)]
        for name, content in contents:
            data = _serialised(content)
            files[name] = {"bytes": data.nbytes, "sha256": hashlib.sha256(data).hexdigest()}
            folder.join(name).write_bytes_atomic(data)
        if before_complete is not None:
            before_complete()
        record = {
            "format": FORMAT,
            "iteration": progress.iteration,
            "stage": progress.stage,
            "digest": progress.digest,
            "world_size": len(random_states),
            # JSON has no NaN.
            "metrics": {k: v if math.isfinite(v) else None for k, v in progress.metrics.items()},
            "files": files,
        }
        folder.join(COMPLETE_FILE).write_bytes_atomic(json.dumps(record, indent=1).encode())
        self._records[folder.name] = record
        self._prune()

    def _remove_leftovers(self, iteration: int) -> None:
        """Removes what was never completed, and what lies ahead: training goes on from the newest
        usable checkpoint, so anything later is damaged."""
        for folder in self._folders():
            ahead = _iteration_of(folder) >= iteration
            if ahead or (folder.name not in self._records and not _is_completed(folder)):
                self._delete(folder)

    def _prune(self) -> None:
        folders = [folder for folder in self._folders() if self._record(folder) is not None]
        kept = {folder.name for folder in folders[-self._keep :]}
        rated = [folder for folder in folders if self._rating(folder) is not None]
        if rated:
            # Of equals the earliest: it is not replaced as long as nothing is better.
            kept.add(min(rated, key=lambda folder: self._rating(folder) or 0.0).name)
        for folder in folders:
            if folder.name not in kept:
                self._delete(folder)

    def _rating(self, folder: Location) -> float | None:
        """The smaller, the better; None where there is no value."""
        record = self._record(folder)
        metrics = record["metrics"] if record else {}
        value = metrics.get(self._best_metric)
        if value is None:
            return None
        return float(value) if self._best_mode == "min" else -float(value)

    def _record(self, folder: Location) -> dict[str, Any] | None:
        """What complete.json says; None where it is missing or damaged."""
        if folder.name not in self._records:
            try:
                self._records[folder.name] = _read_record(folder)
            except _Damaged:
                return None
        return self._records[folder.name]

    def _delete(self, folder: Location) -> None:
        # A folder that is half deleted must not look like a damaged checkpoint.
        folder.join(COMPLETE_FILE).delete()
        folder.delete()
        self._records.pop(folder.name, None)

    # -- reading -----------------------------------------------------------------------------

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is complete and undamaged.

        Raises:
            QdmrError: the place can't be read.
        """
        for folder in reversed(self._folders()):
            if not _is_completed(folder):
                continue
            try:
                return _checked(folder)
            except _Damaged as damage:
                self._warn(f"{damage}; going back to the checkpoint before it")
        return None

    def named(self, name: str, rank: int) -> Checkpoint:
        """The checkpoint in the folder ``name``, with the files that ``rank`` needs.

        Raises:
            QdmrError: it is not there or damaged.
        """
        try:
            return _checked(self._location.join(name), rank)
        except _Damaged as damage:
            raise QdmrError(str(damage)) from damage

    def _folders(self) -> list[Location]:
        """Folders of checkpoints, complete or not, by iteration."""
        found = [place for place in self._location.list() if _FOLDER.fullmatch(place.name)]
        return sorted(found, key=_iteration_of)


class _Damaged(Exception):  # noqa: N818
    """One line that names the file and what is wrong with it."""


def _iteration_of(folder: Location) -> int:
    match = _FOLDER.fullmatch(folder.name)
    assert match
    return int(match[1])


def _is_completed(folder: Location) -> bool:
    return folder.join(COMPLETE_FILE).exists()


def _read_record(folder: Location) -> dict[str, Any]:
    file = folder.join(COMPLETE_FILE)
    if not file.exists():
        raise _Damaged(f"{folder.uri}: {COMPLETE_FILE} is missing")
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise _Damaged(f"{file.uri}: format {record['format']} is of another version")
        _progress(record)
        for stored in record["files"].values():
            int(stored["bytes"]), str(stored["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{file.uri}: is damaged ({error})") from error
    return dict(record)


def _progress(record: Mapping[str, Any]) -> Progress:
    metrics = {k: math.nan if v is None else float(v) for k, v in record["metrics"].items()}
    return Progress(int(record["iteration"]), record["stage"], record["digest"], metrics)


def _checked(folder: Location, rank: int | None = None) -> Checkpoint:
    """The checkpoint after comparing all its files with their checksums, or what ``rank`` needs."""
    record = _read_record(folder)
    files, sizes = record["files"], folder.file_sizes()
    for name, stored in files.items():
        if name not in sizes:
            raise _Damaged(f"{folder.join(name).uri}: is missing")
        if sizes[name] != stored["bytes"]:
            raise _Damaged(
                f"{folder.join(name).uri}: has {sizes[name]} bytes, not {stored['bytes']}"
            )
    wanted = files if rank is None else [n for n in (STATE_FILE, rank_file(rank)) if n in files]
    contents = {}
    for name in wanted:
        contents[name] = folder.join(name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != files[name]["sha256"]:
            raise _Damaged(f"{folder.join(name).uri}: differs from its checksum")
    return Checkpoint(folder, _progress(record), int(record["world_size"]), contents)


def _serialised(content: Mapping[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()

"""Checkpoints of a stage: written beside training, complete or absent, checked when read.

    store = CheckpointStore(run.join("uda", "checkpoints"), keep=2)
    store.save(CheckpointState(iteration=5000, stage="uda", digest=digest), stage.state_dict())
    store.wait()  # ``save`` returns once everything is copied to memory; now it is stored
    found = store.newest()

A checkpoint is a folder ``checkpoint_000005000`` with ``state.pt``, the stage's ``state_dict``. The
position in the data and the learning rates follow from its iteration. It holds no random state: a
step draws nothing, or draws from a generator seeded with its iteration. ``complete.json`` is
written last and holds size and SHA-256 of each file; only files that agree with it count.
"""

import hashlib
import io
import logging
import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location
from qdmr_ray.storage.document import Document, Part
from qdmr_ray.train.snapshot import HostMemory

STATE_FILE = "state.pt"
COMPLETE_FILE = "complete.json"
_FOLDER = re.compile(r"checkpoint_\d{9,}")
_log = logging.getLogger(__name__)


class StoredFile(Part):
    """A file of a checkpoint as it was written."""

    bytes: int
    sha256: str


class CheckpointState(Document):
    """``complete.json``: what a checkpoint says about itself; ``metrics`` are those logged last.
    Format 1 had a file of random states for each worker beside ``state.pt``, which is ignored."""

    FORMAT: ClassVar[int] = 2

    iteration: int
    stage: str
    digest: str
    metrics: dict[str, float] = Field(default_factory=dict)
    files: dict[str, StoredFile] = Field(default_factory=dict)

    @field_validator("metrics", mode="before")
    @classmethod
    def _nan_for_null(cls, metrics: Any) -> Any:
        if not isinstance(metrics, Mapping):
            return metrics
        return {name: math.nan if value is None else value for name, value in metrics.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files agree with their checksums; ``data`` is ``state.pt``'s content."""

    folder: Location
    state: CheckpointState
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder."""
        return self.folder.name

    def load(self) -> dict[str, Any]:
        """Returns the stage's ``state_dict``, on the CPU."""
        # Nothing in a checkpoint may run code.
        return torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)


class DamagedError(QdmrError):
    """The error names a checkpoint's file and what is wrong with it, in one line."""


class CheckpointStore:
    """The checkpoints in a folder on disk or in a store; one process writes, any may read. Kept are
    the newest ``keep``, and the one with the smallest or largest ``best_metric`` in its metrics;
    ``warn`` takes the line that names a damaged one. ``check`` raises QdmrError where another
    process has taken over, whose checkpoints must stay: nothing is written or deleted then."""

    def __init__(
        self,
        location: Location,
        *,
        keep: int = 1,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        warn: Callable[[str], None] = _log.warning,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._location = location
        self._keep, self._best_metric, self._best_mode = keep, best_metric, best_mode
        self._warn, self._check = warn, check
        self._memory = HostMemory()
        self._states: dict[str, CheckpointState] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        state: CheckpointState,
        content: Mapping[str, Any],
        before_complete: Callable[[], None] = lambda: None,
    ) -> None:
        """Copies ``content`` to memory and writes it in a thread, after the previous write.
        ``before_complete`` is called in the thread just before the checkpoint counts. Raises
        QdmrError if the previous write failed."""
        self.wait()
        copied = self._memory.copy(content)
        self._writing = self._thread.submit(self._write, state, copied, before_complete)

    def wait(self) -> None:
        """Returns when everything saved is stored; raises QdmrError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: CheckpointState, content: Any, before_complete: Any) -> None:
        self._check()
        self._remove_leftovers(state.iteration)
        folder = self._location.join(f"checkpoint_{state.iteration:09d}")
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getbuffer()
        stored = StoredFile(bytes=data.nbytes, sha256=hashlib.sha256(data).hexdigest())
        folder.join(STATE_FILE).write_bytes_atomic(data)
        # Writing a large state takes long enough to lose the claim.
        self._check()
        before_complete()
        state = state.model_copy(update={"files": {STATE_FILE: stored}})
        state.write(folder.join(COMPLETE_FILE))
        self._states[folder.name] = state
        self._check()
        self._prune()

    def _remove_leftovers(self, iteration: int) -> None:
        """Removes incomplete checkpoints and those after ``iteration``: training goes on from the
        newest usable checkpoint, so any later one is damaged."""
        for folder in self._folders():
            ahead = _iteration_of(folder) >= iteration
            if ahead or (folder.name not in self._states and not _is_completed(folder)):
                self._delete(folder)

    def _prune(self) -> None:
        found = {folder: self._state(folder) for folder in self._folders()}
        usable = {folder: state for folder, state in found.items() if state is not None}
        kept = [*usable][-self._keep :]
        values = {f: s.metrics.get(self._best_metric or "", math.nan) for f, s in usable.items()}
        rated = {folder: value for folder, value in values.items() if math.isfinite(value)}
        if rated:
            # Of equals the earliest is kept: it is not replaced as long as nothing is better.
            kept.append((min if self._best_mode == "min" else max)(rated, key=rated.__getitem__))
        for folder in usable:
            if folder not in kept:
                self._delete(folder)

    def _state(self, folder: Location) -> CheckpointState | None:
        """Returns the content of complete.json, or None where it is missing or damaged."""
        if folder.name not in self._states:
            try:
                self._states[folder.name] = _read_state(folder)
            except DamagedError:
                return None
        return self._states[folder.name]

    def _delete(self, folder: Location) -> None:
        # A folder that is half deleted must not look like a damaged checkpoint.
        folder.join(COMPLETE_FILE).delete()
        folder.delete()
        self._states.pop(folder.name, None)

    def newest(self) -> Checkpoint | None:
        """Returns the newest complete and undamaged checkpoint; raises QdmrError if the place can't
        be read."""
        for folder in filter(_is_completed, reversed(self._folders())):
            try:
                return _checked(folder)
            except DamagedError as damage:
                self._warn(f"{damage}; going back to the checkpoint before it")
        return None

    def newest_iteration(self) -> int:
        """Returns the iteration of the newest complete checkpoint, whose content isn't read and may
        be damaged; 0 without one."""
        completed = filter(_is_completed, reversed(self._folders()))
        return next(map(_iteration_of, completed), 0)

    def named(self, name: str) -> Checkpoint:
        """Returns the checkpoint in the folder ``name``; raises QdmrError if it is missing or
        damaged."""
        return _checked(self._location.join(name))

    def _folders(self) -> list[Location]:
        """Returns the folders of checkpoints, complete or not, by iteration."""
        found = filter(lambda place: _FOLDER.fullmatch(place.name), self._location.list())
        return sorted(found, key=_iteration_of)


def _iteration_of(folder: Location) -> int:
    return int(folder.name.removeprefix("checkpoint_"))


def _is_completed(folder: Location) -> bool:
    return folder.join(COMPLETE_FILE).exists()


def _read_state(folder: Location) -> CheckpointState:
    file = folder.join(COMPLETE_FILE)
    if not file.exists():
        raise DamagedError(f"{folder.uri}: {COMPLETE_FILE} is missing")
    data = file.read_bytes()
    try:
        return CheckpointState.parse(data, file.uri)
    except QdmrError as error:
        raise DamagedError(str(error)) from None


def _checked(folder: Location) -> Checkpoint:
    """Returns the checkpoint after comparing its files' sizes and the checksum of its state."""
    state, sizes = _read_state(folder), folder.file_sizes()
    for name, stored in state.files.items():
        place = folder.join(name).uri
        if name not in sizes:
            raise DamagedError(f"{place}: is missing")
        if sizes[name] != stored.bytes:
            raise DamagedError(f"{place}: has {sizes[name]} bytes, not {stored.bytes}")
    file = folder.join(STATE_FILE)
    if STATE_FILE not in state.files:
        raise DamagedError(f"{file.uri}: is missing in {COMPLETE_FILE}")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != state.files[STATE_FILE].sha256:
        raise DamagedError(f"{file.uri}: differs from its checksum")
    return Checkpoint(folder, state, data)

"""What is known of one trial of a sweep: a file in its folder, written whenever it changes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.storage import Location

TRIALS_FOLDER = "trials"
RECORD_FILE = "trial.json"
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
ENDED = (FINISHED, STOPPED, FAILED)


@dataclass
class Record:
    """One trial. ``settings`` are those of the space; ``seed`` is added to the experiment's.

    ``history`` holds ``{"iteration", "seconds", "values"}`` for each time that the metrics were
    logged; ``progress`` the iterations of each stage that this trial has trained by itself.
    """

    id: str
    number: int
    settings: dict[str, Any]
    seed: int = 0
    name: str | None = None
    state: str = RUNNING
    metrics: dict[str, float | None] = field(default_factory=dict)
    values: list[float | None] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, int] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    seconds: float = 0.0
    begun: float | None = None
    ended: float | None = None
    error: str | None = None

    @property
    def is_repeat(self) -> bool:
        """Whether it trains settings again, with another seed."""
        return "-s" in self.id

    @property
    def place(self) -> str:
        """Its run folder, relative to the sweep's."""
        return f"{TRIALS_FOLDER}/{self.id}"

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state in ENDED

    def add(self, iteration: int, seconds: float, values: list[float | None]) -> bool:
        """Takes the metrics logged at an iteration; whether they are news."""
        if any(line["iteration"] >= iteration for line in self.history):
            return False
        self.history.append({"iteration": iteration, "seconds": seconds, "values": values})
        self.values = values
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``sweep.json``."""
        return {
            **asdict(self),
            "iterations": sum(self.progress.values()),
            "run": self.place,
        }


def write_record(sweep: Location, record: Record) -> None:
    """Raises QdmrError when the sweep's folder can't be written."""
    text = json.dumps(asdict(record), indent=1).encode()
    sweep.join(TRIALS_FOLDER, record.id, RECORD_FILE).write_bytes_atomic(text)


def read_records(sweep: Location) -> list[Record]:
    """All trials of a sweep, by id.

    Raises:
        QdmrError: a record is damaged.
    """
    records = []
    for folder in sweep.join(TRIALS_FOLDER).list():
        file = folder.join(RECORD_FILE)
        if not file.exists():
            continue
        try:
            records.append(Record(**json.loads(file.read_bytes())))
        except (ValueError, TypeError) as error:
            raise QdmrError(
                f"{file.uri}: is damaged ({error}); delete its folder, and its trial is done again"
            ) from error
    return sorted(records, key=lambda record: record.id)


def finite(value: Any) -> float | None:
    """A figure as JSON can hold it: None where it is not finite, or none."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else None

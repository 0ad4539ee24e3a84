"""The trials of a sweep: their records, the next one to train, and the budget. Every change is on
storage before it counts: a trial has its record before it begins. A sweep that is killed at any
moment therefore finds each of its trials exactly once when it is started again."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.sweep_file import (
    FAILED,
    FINISHED,
    MAX,
    RECORD_FILE,
    RUNNING,
    STOPPED,
    TRIALS_FOLDER,
    TrialRecord,
)
from qdmr_ray.storage import Location
from qdmr_ray.sweeps.optuna_study import STUDY_FILE, Study
from qdmr_ray.sweeps.plan import VARIANT, Plan
from qdmr_ray.sweeps.trial import TrialReport
from qdmr_ray.untrusted import parse_json

TIME_FILE = "seconds.json"
# The shortest time between two updates of TIME_FILE.
_TIME_SECONDS = 5.0

Say = Callable[[str], None]


class Trials:
    """The trials of ``plan`` in the folder ``sweep``. Optuna's database lies in ``scratch`` while
    the sweep runs; ``problem`` is the reason why the sweep has to end, or None."""

    def __init__(self, plan: Plan, sweep: Location, scratch: Path, say: Say) -> None:
        self.plan, self.sweep, self._say = plan, sweep, say
        self.records = _read_records(sweep)
        self.baseline: str | None = None
        self.problem: str | None = None
        self._study_file = scratch / STUDY_FILE
        self.study = Study(plan, list(self.records.values()), self._study_file)
        self._began = time.monotonic()
        file = sweep.join(TIME_FILE)
        self._earlier = _seconds_in(file) if file.exists() else 0.0
        self._time_written = -_TIME_SECONDS
        # The time at which this process began each running trial.
        self._running: dict[str, float] = {}
        self._failed_in_a_row = 0
        self._repeats: list[TrialRecord] | None = None
        self._wanted = self._first_settings()

    def next(self) -> TrialRecord | None:
        """Returns the next trial to train, an interrupted or a new one, with its record on storage;
        None when there is nothing left to begin."""
        if self.problem is not None:
            return None
        record = next((r for r in self._waiting() if r.id not in self._running), None)
        if record is None and self._repeats is None:
            record = self._new()
        if record is None:
            return None
        self._running[record.id] = time.monotonic()
        record.state = RUNNING
        record.begun = record.begun or time.time()
        self.records[record.id] = record
        self._write(record)
        return record

    def begin_repeats(self) -> bool:
        """Limits the sweep to its best settings with other seeds; returns whether any remain."""
        self._repeats = []
        for first in self._to_repeat():
            for seed in range(1, self.plan.settings.repeat):
                same = first.model_dump(include={"number", "settings", "name"})
                new = TrialRecord(id=f"{first.id}-s{seed}", seed=seed, **same)
                self._repeats.append(self.records.get(new.id, new))
        return any(not record.has_ended for record in self._repeats)

    def _waiting(self) -> list[TrialRecord]:
        first = [record for record in self.records.values() if not record.is_repeat]
        waiting = first if self._repeats is None else self._repeats
        return [record for record in waiting if not record.has_ended]

    def _new(self) -> TrialRecord | None:
        number = sum(not record.is_repeat for record in self.records.values())
        if self._budget_is_spent(number):
            return None
        name = f"{number:04}"
        fixed = self.plan.fixed()
        wanted = self._wanted[number] if number < len(self._wanted) else None
        if wanted is None and fixed is not None:
            return None
        # {} stands for the unchanged experiment where it lies outside the space.
        settings = {} if wanted == {} else self.study.ask(name, wanted)
        return TrialRecord(id=name, number=number, settings=settings, name=settings.get(VARIANT))

    def _first_settings(self) -> list[dict[str, Any]]:
        """Returns the settings to try before the sampler's: the experiment's own first."""
        settings, fixed = self.plan.settings, self.plan.fixed()
        first = [dict(row) for row in settings.first] if fixed is None else fixed
        if settings.variants or not settings.baseline:
            return first
        self.baseline = f"{0:04}"
        own = self.plan.baseline()
        return [own, *(row for row in first if row != own)]

    def _budget_is_spent(self, begun: int) -> bool:
        settings = self.plan.settings
        limits = settings.trials, settings.iterations, settings.hours
        used = begun, self.iterations(), self.seconds() / 3600
        return any(limit is not None and u >= limit for u, limit in zip(used, limits, strict=True))

    def _to_repeat(self) -> list[TrialRecord]:
        if self.plan.settings.repeat == 1:
            return []
        if self.plan.settings.variants:
            chosen = [r for r in self.records.values() if not r.is_repeat]
        else:
            names = [*self.front(), *([self.baseline] if self.baseline else [])]
            chosen = [self.records[name] for name in dict.fromkeys(names)]
        return [record for record in chosen if record.state == FINISHED]

    def progressed(self, name: str, report: TrialReport) -> None:
        """Notes a report of a trial."""
        record = self.records[name]
        for stage, iteration in report.progress.items():
            record.progress[stage] = max(iteration, record.progress.get(stage, 0))
        record.stages |= report.stages
        record.metrics |= report.metrics
        # A trial that goes on after a kill finds its earlier stages in the store.
        record.trained += [stage for stage in report.trained if stage not in record.trained]
        seconds = record.seconds + time.monotonic() - self._running[name]
        iteration, values = report.iteration, report.values
        if values is not None and record.add(iteration, round(seconds, 2), values):
            self.study.report(name, iteration, values)
        self._write(record.model_copy(update={"seconds": seconds}))

    def ended(self, name: str, report: TrialReport | None, lost: str | None = None) -> None:
        """Notes the end of a trial. ``report`` is its last one, None if the scheduler stopped it;
        ``lost`` says why its process is gone."""
        record = self.records[name]
        record.seconds += time.monotonic() - self._running.pop(name)
        record.ended = time.time()
        record.error = lost or (report.error if report is not None else None)
        record.state = FAILED if record.error else STOPPED if report is None else FINISHED
        self._failed_in_a_row = self._failed_in_a_row + 1 if record.error else 0
        limit = self.plan.settings.failures
        if report is not None and report.hopeless:
            self.problem = record.error
        elif self._failed_in_a_row >= limit:
            self.problem = (
                f"the last {limit} trials failed (failures={limit}), {name} with: {record.error}; "
                "mend it and run the same command with --retry-failed"
            )
        self._write(record)
        if not record.is_repeat:
            self.study.tell(record)
        self._say(self._line(record))

    def _line(self, record: TrialRecord) -> str:
        shown = "  ".join(
            f"{name} {value:.4g}"
            for name, value in zip(self.plan.settings.metrics, record.values or [], strict=False)
            if value is not None
        )
        text = f"trial {record.id} {record.state}, {record.seconds:.0f} s  {record.error or shown}"
        best = self.front()
        if len(self.plan.settings.metrics) == 1 and best and not record.is_repeat:
            values = self.records[best[0]].values
            assert values is not None
            text += f"  (best {best[0]}: {values[0]:.4g})"
        return text

    def retry_failed(self) -> None:
        """Puts failed trials among those that are still to be trained."""
        for record in self.records.values():
            if record.state == FAILED:
                record.state, record.error, record.ended = RUNNING, None, None
                self._write(record)
        self.study = Study(self.plan, list(self.records.values()), self._study_file)

    def _write(self, record: TrialRecord) -> None:
        record.write(self.sweep.join(record.run, RECORD_FILE))
        now = time.monotonic()
        if now - self._time_written >= _TIME_SECONDS:
            self._time_written = now
            self.write_time()

    def front(self) -> list[str]:
        """Returns the ids of the finished trials on the Pareto front, best first metric first."""
        signs = [1 if mode == MAX else -1 for mode in self.plan.settings.modes]
        rows: dict[str, list[float]] = {}
        for record in self.records.values():
            known = [value for value in record.values or [] if value is not None]
            if record.state == FINISHED and not record.is_repeat and len(known) == len(signs):
                rows[record.id] = [sign * v for sign, v in zip(signs, known, strict=True)]
        front = [n for n, row in rows.items() if not any(_beats(r, row) for r in rows.values())]
        front.sort(key=lambda name: -rows[name][0])
        # With one metric the front holds equal trials; the first of them is enough.
        return front[:1] if len(signs) == 1 else front

    @property
    def planned(self) -> int | None:
        """The number of trials to train without repeats; None where only time or iterations bound
        it."""
        listed = None if self.plan.fixed() is None else len(self._wanted)
        limits = (self.plan.settings.trials, listed)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def total(self) -> int:
        """The number of trials to train with repeats, as far as it is known by now."""
        first = sum(not record.is_repeat for record in self.records.values())
        repeats = len(self._repeats or ())
        if self._repeats is None and self.plan.settings.variants:
            repeats = (self.planned or 0) * (self.plan.settings.repeat - 1)
        return max(first, self.planned or 0) + repeats

    def counts(self) -> dict[str, int]:
        """Returns how many trials are in each state."""
        return dict(Counter(record.state for record in self.records.values()))

    def iterations(self) -> int:
        """Returns the iterations trained in all; a stage that several trials used counts once."""
        furthest: dict[tuple[str, str], int] = {}
        for record in self.records.values():
            for stage, iteration in record.progress.items():
                key = (stage, record.stages.get(stage, record.id))
                furthest[key] = max(iteration, furthest.get(key, 0))
        return sum(furthest.values())

    def seconds(self) -> float:
        """Returns how long the sweep has run, interruptions left out."""
        return self._earlier + time.monotonic() - self._began

    def write_time(self) -> None:
        """Writes down how long the sweep has run so far."""
        self.sweep.join(TIME_FILE).write_bytes_atomic(json.dumps(round(self.seconds(), 2)).encode())


def _read_records(sweep: Location) -> dict[str, TrialRecord]:
    """Returns the records of all trials in the folder, by id; raises QdmrError for a damaged
    one."""
    records = {}
    for folder in sweep.join(TRIALS_FOLDER).list():
        try:
            record = TrialRecord.read_if_there(folder.join(RECORD_FILE))
        except QdmrError as error:
            raise QdmrError(
                f"{error}, or delete {folder.uri}: its trial is then trained again"
            ) from None
        if record is not None:
            records[record.id] = record
    return records


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _seconds_in(file: Location) -> float:
    try:
        return float(parse_json(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise QdmrError(
            f"{file.uri}: holds no number of seconds ({error}); delete it, and the sweep's time "
            "counts from now"
        ) from error

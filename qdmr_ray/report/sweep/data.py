"""A sweep as its report shows it: trials, objectives, search space."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.sweep_file import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Repeats,
    SweepFile,
    TrialRecord,
    Values,
    finite,
)
from qdmr_ray.storage import Location

STATE_LABELS = {
    FINISHED: "finished",
    STOPPED: "stopped early",
    RUNNING: "running",
    FAILED: "failed",
}
# Stands for a conditional parameter that did not apply; ``None`` is a value that it may have.
MISSING = object()


@dataclass(frozen=True, kw_only=True)
class PlainMetric(MetricInfo):
    """A metric of unknown size and unit: four significant digits; a change is never too small."""

    digits: int = 300

    def text(self, value: float | None, *, signed: bool = False) -> str:
        value = finite(value)
        return "n/a" if value is None else f"{value:{'+' if signed else ''}.4g}".replace("-", "−")


class Trial(TrialRecord):
    """A trial as its report shows it: ``values`` has an entry for each objective."""

    values: Values

    @property
    def label(self) -> str:
        """The name of the trial's variant, else its id."""
        return self.name or self.id

    @property
    def title(self) -> str:
        """``trial 0003`` or ``source-only (trial 0003)``."""
        return f"{self.name} (trial {self.id})" if self.name else f"trial {self.id}"

    @property
    def state_label(self) -> str:
        """The state in words."""
        return STATE_LABELS.get(self.state, self.state)

    def taken(self, name: str, otherwise: str) -> str:
        """Returns a setting as text, ``otherwise`` where it did not apply."""
        return setting_text(self.settings[name]) if name in self.settings else otherwise


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; the latter is ``None`` for a single seed."""

    mean: float | None
    std: float | None
    seeds: int

    def text(self, style: MetricInfo) -> str:
        """Returns ``27.10 ± 0.08``, or the mean alone where the deviation isn't known."""
        mean = style.text(self.mean)
        return mean if self.mean is None or self.std is None else f"{mean} ± {style.text(self.std)}"


@dataclass(kw_only=True)
class Sweep:
    """``sweep.json`` and ``best.yaml``. The objectives are the metrics that it optimises by their
    full names, with ``better`` 1 to maximise one; ``problems`` names what could not be read."""

    place: Location
    content: SweepFile
    name: str
    space: dict[str, dict[str, Any]]
    importances: dict[str, float]
    objectives: list[MetricInfo]
    trials: list[Trial]
    best: Trial | None
    front: list[Trial]
    baseline: Trial | None
    repeats: list[Repeats]
    best_text: str
    problems: list[str]

    @property
    def is_ablation(self) -> bool:
        """Whether it compares named variants instead of searching a space."""
        return not self.space

    @cached_property
    def searched(self) -> list[Trial]:
        """The trials by number, without their repeats with other seeds."""
        ordered = sorted(self.trials, key=lambda trial: (len(trial.id), trial.id), reverse=True)
        first = {trial.number: trial for trial in ordered}
        return [first[number] for number in sorted(first)]

    @property
    def parameters(self) -> list[str]:
        """The parameters by importance, as far as it is known; then in the order of the space."""
        return sorted(self.space, key=lambda name: -self.importances.get(name, 0.0))

    @cached_property
    def short(self) -> dict[str, str]:
        """The shortest ends of the settings' names that tell them apart."""
        named = [name for trial in self.trials for name in trial.settings]
        return short_names(dict.fromkeys([*self.space, *named, *self.importances]))

    def spread(self, trial: Trial, index: int) -> Spread:
        """Returns objective ``index`` of a trial and its repeats, from the file where it has it."""
        for repeats in self.repeats:
            if repeats.of == trial.id and repeats.mean[index] is not None:
                count = sum(row[index] is not None for row in repeats.values if row)
                return Spread(repeats.mean[index], repeats.std[index], count)
        return spread([value for _, value in self.seeded(trial, index)])

    def seeded(self, trial: Trial, index: int) -> list[tuple[Trial, float]]:
        """Returns the trial and its repeats with their values, as far as they have a result."""
        return [
            (seeded, value)
            for seeded in self.trials
            if seeded.number == trial.number
            if self.counts(seeded) and (value := seeded.values[index]) is not None
        ]

    def scale_values(self, index: int) -> list[float]:
        """Returns the values that an axis has to show: the results, or all where there are hardly
        any. Trials that were stopped early stand below the others and would squeeze them."""
        known = [(t, v) for t in self.searched if (v := t.values[index]) is not None]
        results = [value for trial, value in known if self.counts(trial)]
        return results if len(set(results)) > 1 else [value for _, value in known]

    def counts(self, trial: Trial) -> bool:
        """Returns whether the value is a result: a trial stopped early could have become better."""
        return trial.state == FINISHED or trial is self.best or trial in self.front


def spread(values: Sequence[float]) -> Spread:
    """Returns the spread of ``values``, of which there may be none."""
    return Spread(
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
        len(values),
    )


def setting_text(value: Any) -> str:
    """Returns a setting's value as an experiment writes it, numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Shortens ``stages.uda.gan`` to ``gan``, or to ``uda.gan`` where another ends in ``.gan``."""
    parts = {name: name.split(".") for name in names}
    ends = {
        name: [".".join(part[-length:]) for length in range(1, len(part) + 1)]
        for name, part in parts.items()
    }
    known = Counter(end for found in ends.values() for end in found)
    return {
        name: next((end for end in found if known[end] == 1), name) or name or "?"
        for name, found in ends.items()
    }

"""``sweep.json`` and the record of each trial: one definition for the sweep and for its report.

    results = SweepFile.read(open_location("runs/sweeps/try1").join(SWEEP_FILE))
    best = results.trial(results.best)

``sweeps`` writes these files and ``report`` reads them; the classes lie here because both rooms may
import this one. Every field that a reader can do without has a default, so that the files of
earlier versions and of sweeps that went wrong can be read.
"""

from typing import Any

from pydantic import ConfigDict, Field, computed_field

from qdmr_ray.evaluate.metrics.metric import json_value
from qdmr_ray.evaluate.results import Values as Metrics
from qdmr_ray.storage.document import Document, Part

SWEEP_FILE = "sweep.json"
# The best trial's settings as an experiment.
BEST_FILE = "best.yaml"
# Each folder in here is a trial's run folder, which also holds its RECORD_FILE.
TRIALS_FOLDER = "trials"
RECORD_FILE = "trial.json"

# States of a trial, and of the sweep itself.
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
ENDED = (FINISHED, STOPPED, FAILED)
MAX, MIN = "max", "min"

# One value for each metric of the sweep; None where it is not known or not finite.
Values = list[float | None]


class Measurement(Part):
    """The sweep's metrics at one iteration of their stage, ``seconds`` after the trial began."""

    iteration: int
    seconds: float | None = None
    values: Values


class TrialRecord(Document):
    """One trial, as in its ``trial.json`` and in ``sweep.json``; the only document that changes.

    ``settings`` are those of the search space, and ``seed`` is added to the experiment's. Trials
    with the same ``number`` differ in their seeds only. ``progress`` holds the iterations of each
    stage that this trial has trained by itself, ``trained`` the stages among them that it
    completed, and ``stages`` the digests of all its stages. ``metrics`` has every metric that was
    validated, and ``values`` those that the sweep is judged by.
    """

    model_config = ConfigDict(frozen=False)

    id: str
    number: int
    settings: dict[str, Any]
    seed: int = 0
    name: str | None = None
    state: str = RUNNING
    metrics: Metrics = Field(default_factory=dict)
    values: Values | None = None
    history: list[Measurement] = Field(default_factory=list)
    progress: dict[str, int] = Field(default_factory=dict)
    stages: dict[str, str] = Field(default_factory=dict)
    trained: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    begun: float | None = None
    ended: float | None = None
    error: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def iterations(self) -> int:
        """The iterations that this trial has trained by itself, over all stages."""
        return sum(self.progress.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def run(self) -> str:
        """The trial's run folder, relative to the sweep's."""
        return f"{TRIALS_FOLDER}/{self.id}"

    @property
    def is_repeat(self) -> bool:
        """Whether this trial trains the settings of an earlier one again, with another seed."""
        return "-s" in self.id

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do for this trial."""
        return self.state in ENDED

    def add(self, iteration: int, seconds: float, values: Values) -> bool:
        """Appends a measurement and returns True. A trial that goes on after a kill measures some
        iterations again; such a measurement is left out and False returned."""
        if any(line.iteration >= iteration for line in self.history):
            return False
        self.history.append(Measurement(iteration=iteration, seconds=seconds, values=values))
        self.values = values
        return True


class Objective(Part):
    """A metric that the sweep maximises or minimises, such as ``uda/validation/psnr``."""

    name: str
    mode: str = MAX


class Stopping(Part):
    """The rule by which trials were given up before their end."""

    rule: str
    grace: int
    reduction: float


class Repeats(Part):
    """A trial that was trained again with other seeds: ``values`` for each seed, and their mean and
    standard deviation for each metric."""

    of: str
    seeds: list[int] = Field(default_factory=list)
    trials: list[str] = Field(default_factory=list)
    values: list[Values | None] = Field(default_factory=list)
    mean: Values = Field(default_factory=list)
    std: Values = Field(default_factory=list)


class UnseenMetrics(Part):
    """Means over ``images`` photographs that the search never saw: of the aberrated input, and of
    each trial's restorations."""

    images: int
    input: Metrics = Field(default_factory=dict)
    trials: dict[str, Metrics] = Field(default_factory=dict)


class SweepFile(Document):
    """``sweep.json``. ``front`` are the trials that no other one beats in every metric, ``best``
    the first of them; ``space`` is empty where named variants are compared. The file is written
    after each trial: ``state`` is ``running`` until the sweep ends (``stopped`` by its user,
    ``failed`` with an ``error``), ``updated`` the time of writing in seconds since 1970, and
    ``planned`` the number of trials without repeats, if it is known."""

    name: str = ""
    state: str = FINISHED
    error: str | None = None
    updated: float | None = None
    planned: int | None = None
    code_version: str = ""
    metrics: list[Objective]
    sampler: str = ""
    stopping: Stopping | None = None
    space: dict[str, dict[str, Any]] = Field(default_factory=dict)
    trials: list[TrialRecord] = Field(default_factory=list)
    best: str | None = None
    front: list[str] = Field(default_factory=list)
    baseline: str | None = None
    repeats: list[Repeats] = Field(default_factory=list)
    test: UnseenMetrics | None = None
    importances: dict[str, float] = Field(default_factory=dict)
    stages_trained: dict[str, int] = Field(default_factory=dict)
    seconds: float | None = None

    def trial(self, name: str | None) -> TrialRecord | None:
        """Returns the trial with this id, None where there is none."""
        return next((trial for trial in self.trials if trial.id == name), None)


def finite(value: Any) -> float | None:
    """Returns a metric as JSON can hold it: None where it is no finite number."""
    return json_value(float(value)) if isinstance(value, int | float) else None

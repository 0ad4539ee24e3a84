"""A sweep's file: an experiment, what varies in it, the metric that judges it, and a budget.

plan = load_sweep(Path("experiments/sweeps/demo.yaml"))
plan.experiment({"network.codebook_size": 64}, name="0003", seed=0)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qdmr_ray import config, parsing
from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.errors import SettingsError
from qdmr_ray.evaluate.sweep_file import MAX, MIN
from qdmr_ray.settings import Settings, setting
from qdmr_ray.stages import STAGES
from qdmr_ray.sweeps.space import Space, check_plain

TPE, GP, RANDOM, GRID = "tpe", "gp", "random", "grid"
ASHA, MEDIAN = "asha", "median"
# In a metric, this name stands for the last stage of a trial's run.
LAST = "last"
# A sweep over named variants has only this parameter.
VARIANT = "variant"
# Settings with these beginnings change no weights.
_FIXED = ("name", "notes", "logging.", "evaluation.", "guard.", "weights.")
# A sweep reserves the same CPUs and GPUs for each trial.
_RESERVED = ("scaling.", "data.loader_workers", "data.loader_cpus")


@dataclass(frozen=True, kw_only=True)
class StoppingSettings(Settings):
    """The rule by which trials are stopped before their end."""

    rule: str = setting(
        ASHA,
        "asha: at grace, grace x reduction, ... iterations, only the best 1/reduction of the "
        "trials that have come so far go on; median: a trial that is worse than the median of the "
        "others' running means stops",
        choices=(ASHA, MEDIAN),
    )
    grace: int = setting(1, "training before a trial may be stopped", unit="iterations", minimum=1)
    reduction: float = setting(3.0, "asha: one in so many trials goes on", above=1)
    least_trials: int = setting(
        3, "median: how many others must have come as far before a trial may be stopped", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """The settings of a sweep: its ``space`` is searched, or each of its ``variants`` trained."""

    name: str = setting(
        "", "name of the sweep's folder, by default that of the file; --name replaces it"
    )
    experiment: str = setting("", "the experiment's file, relative to the sweep's")
    set: dict[str, Any] = setting(
        dict, "settings of the experiment that are replaced in every trial"
    )
    metric: str | tuple[str, ...] = setting(
        f"{LAST}/validation/psnr",
        "metric that trials are judged by, as stage/name in metrics.jsonl, where the stage may be "
        "`last`; several metrics make a Pareto front",
    )
    mode: str | tuple[str, ...] = setting(MAX, "max or min, one for all metrics or one for each")
    space: dict[str, Any] = setting(
        dict,
        "what varies: setting: {choice: [...]}, {float: [low, high]} or {int: [low, high]}, with "
        "log: true, step: s, when: {other setting: value}",
    )
    variants: dict[str, Any] = setting(
        dict, "instead of a space: settings by the name of a variant"
    )
    sampler: str = setting(
        TPE,
        "how trials are proposed: tpe (tree-structured Parzen estimator), gp (Gaussian process), "
        "random or grid",
        choices=(TPE, GP, RANDOM, GRID),
    )
    startup_trials: int = setting(
        10, "random trials before the first proposal of tpe or gp", minimum=1
    )
    seed: int = setting(0, "seed of the sampler", minimum=0)
    trials: int | None = setting(None, "number of trials", minimum=1)
    iterations: int | None = setting(
        None, "no trial begins once all of them together have trained so many iterations", minimum=1
    )
    hours: float | None = setting(
        None, "no trial begins once the sweep has run so many hours", above=0
    )
    concurrent: int | None = setting(
        None, "trials at the same time; by default as many as the cluster has room for", minimum=1
    )
    baseline: bool = setting(
        True, "whether the first trial has the experiment's own settings, for comparison"
    )
    first: tuple[dict[str, Any], ...] = setting(
        (), "settings to try before the sampler's proposals"
    )
    repeat: int = setting(
        1, "seeds with which the best trial and the baseline, or each variant, train", minimum=1
    )
    stopping: StoppingSettings | None = setting(None, "rule by which bad trials are stopped early")
    failures: int = setting(3, "failed trials in a row that end the sweep", minimum=1)
    store: str | None = setting(
        None, "folder or s3:// in which trials share stages; by default in the sweep's folder"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name and not config.RUN_NAME.fullmatch(self.name):
            raise SettingsError(f"name {config.NOT_A_NAME.format('sweep')}; it is {self.name!r}")
        if bool(self.space) == bool(self.variants):
            raise SettingsError("write either space (what varies) or variants (settings by name)")
        if len(self.metrics) != len(self.modes):
            raise SettingsError(
                f"mode must have a value for each of {len(self.metrics)} metrics; it has "
                f"{len(self.modes)}"
            )
        if wrong := [mode for mode in self.modes if mode not in (MAX, MIN)]:
            raise SettingsError(f"mode must be max or min; it is {wrong[0]!r}")
        if self.stopping is not None and len(self.metrics) > 1:
            raise SettingsError("stopping works with a single metric; take the others away")
        budgets = (self.trials, self.iterations, self.hours)
        if self.space and self.sampler != GRID and budgets == (None, None, None):
            raise SettingsError("set a budget: trials, iterations or hours")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics, one or several."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def modes(self) -> tuple[str, ...]:
        """The mode of each metric."""
        if isinstance(self.mode, str):
            return (self.mode,) * len(self.metrics)
        return tuple(self.mode)


@dataclass(frozen=True)
class Plan:
    """A sweep with the experiment that it varies."""

    settings: SweepSettings
    # Plain values of the experiment, in which the sweep's ``set`` is applied.
    values: Mapping[str, Any]
    source: str

    @cached_property
    def _variants(self) -> dict[str, dict[str, Any]]:
        """The settings of each variant by their dotted names."""
        known, found = config.experiment_type(self.values), {}
        for name, changed in self.settings.variants.items():
            if changed is not None and not isinstance(changed, dict):
                raise SettingsError(f"variants.{name} must be setting: value lines")
            found[name] = parsing.unfolded(f"variants.{name}", changed or {}, known)
        return found

    @cached_property
    def varied(self) -> set[str]:
        """The dotted names of the settings that differ between trials; raises SettingsError for an
        unknown one."""
        if self.settings.variants:
            return {name for changed in self._variants.values() for name in changed}
        for name in self.space.parameters:
            parsing.check_known("space", name, config.experiment_type(self.values))
        return {*self.space.parameters}

    @cached_property
    def space(self) -> Space:
        """The parameters that vary: the sweep's space, or the names of its variants."""
        if self.settings.variants:
            return Space.parse({VARIANT: {"choice": list(self.settings.variants)}})
        return Space.parse(self.settings.space)

    def experiment(self, settings: Mapping[str, Any], *, name: str, seed: int) -> Experiment:
        """Returns the experiment of a trial; ``seed`` is added to the experiment's own. Raises
        SettingsError if the settings don't go together."""
        values = dict(self.values)
        if self.settings.variants and settings:
            settings = self._variants[settings[VARIANT]]
        for setting_name, value in settings.items():
            parsing.put_setting(values, setting_name, value)
        values["name"] = name
        values["seed"] = int(values.get("seed") or 0) + seed
        return experiment_from_dict(values, source=self.source)

    def baseline(self) -> dict[str, Any]:
        """Returns the experiment's own values of the parameters; {} if they are not in the space.
        Raises SettingsError if the experiment itself is wrong."""
        if self.settings.variants:
            return {}
        plain = self.experiment({}, name="baseline", seed=0).to_dict()
        found = self.space.sample(lambda p: reduce(getitem, p.name.split("."), plain))
        return found if self.space.holds(found) else {}

    def fixed(self) -> list[dict[str, Any]] | None:
        """Returns the ordered settings of a grid or of variants; None if a sampler proposes
        them."""
        if self.settings.variants or self.settings.sampler == GRID:
            return list(self.space.grid())
        return None

    def stage_metrics(self, experiment: Experiment) -> list[tuple[str, str]]:
        """Returns each metric as (stage of a trial's run, name in the stage's metrics.jsonl)."""
        pairs = [metric.partition("/")[::2] for metric in self.settings.metrics]
        return [(experiment.run[-1] if stage == LAST else stage, name) for stage, name in pairs]


def load_sweep(path: Path | str, overrides: Sequence[str] = (), *, name: str | None = None) -> Plan:
    """Reads a sweep's YAML file and its experiment, and checks both as far as possible without
    data.

    Raises:
        QdmrError: a file is missing or is no YAML.
        SettingsError: a setting is unknown, out of range, or a combination of the space is wrong.
    """
    path = Path(path)
    values = parsing.read_yaml(path)
    # A sweep's folder has its settings and the experiment's in one file (sweeps.run.BegunSweep).
    begun = values["experiment"] if isinstance(values.get("experiment"), dict) else None
    if begun is not None:
        values = dict(values["sweep"]) if isinstance(values.get("sweep"), dict) else {}
    for override in overrides:
        parsing.apply_override(values, override)
    values["name"] = name or values.get("name") or path.stem
    settings: SweepSettings = parsing.parse_settings(TypeAdapter(SweepSettings), values, str(path))
    if begun is not None:
        plain = dict(begun)
    elif settings.experiment:
        plain = parsing.read_yaml(experiment_file(path, settings))
        plain.pop(config.VERSION_KEY, None)
    else:
        raise SettingsError(f"{path}: experiment is not set: name the experiment's file")
    known = config.experiment_type(plain)
    for setting_name, value in parsing.unfolded(f"{path}: set", settings.set, known).items():
        parsing.put_setting(plain, setting_name, value)
    plan = Plan(settings, plain, str(path))
    _check(plan, path)
    return plan


def experiment_file(path: Path, settings: SweepSettings) -> Path:
    """Returns the file of the experiment that the sweep at ``path`` varies; raises SettingsError
    where no file can have its name."""
    try:
        return (path.parent / settings.experiment).resolve()
    except ValueError as error:
        raise SettingsError(f"{path}: experiment is {settings.experiment!r}: {error}") from None


def _check(plan: Plan, path: Path) -> None:
    settings = plan.settings
    try:
        for name in sorted(plan.varied):
            if name.startswith(_FIXED):
                raise SettingsError(f"{name} changes no weights; set it in `set` instead")
            if name.startswith(_RESERVED):
                raise SettingsError(
                    f"{name} is the same for all trials of a sweep, which reserves as much for "
                    "each; set it in `set` instead"
                )
        plan.experiment({}, name="trial", seed=0)
        for row in settings.first:
            check_plain("first", row)
            if not plan.space.holds(row):
                raise SettingsError(f"first: {row} is not in the space")
        plan.fixed()
        for example in _examples(plan):
            _check_metrics(plan, plan.experiment(example, name="trial", seed=0))
    except SettingsError as error:
        text = str(error)
        raise SettingsError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _examples(plan: Plan) -> list[dict[str, Any]]:
    """Returns settings with each parameter at its extremes and the others at their first value."""

    def example(name: str, value: Any) -> dict[str, Any]:
        # The parameters that this one depends on have the first value that lets it vary.
        chosen = {name: value, **_conditions_of(plan.space, name)}
        return plan.space.sample(lambda p: chosen.get(p.name, p.extremes()[0]))

    return [example(p.name, v) for p in plan.space.parameters.values() for v in p.extremes()]


def _conditions_of(space: Space, name: str) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    for other, values in space.parameters[name].when.items():
        wanted |= _conditions_of(space, other) | {other: values[0]}
    return wanted


def _check_metrics(plan: Plan, experiment: Experiment) -> None:
    pairs = plan.stage_metrics(experiment)
    for metric, (stage, name) in zip(plan.settings.metrics, pairs, strict=True):
        if stage not in STAGES or not name:
            raise SettingsError(
                f"metric {metric}: write stage/metric, such as uda/validation/psnr; stages are "
                f"{', '.join(STAGES)} and {LAST}"
            )
        if stage not in experiment.run:
            raise SettingsError(
                f"metric {metric}: the stages of a trial are {', '.join(experiment.run)}"
            )
        if name.startswith("validation/") and experiment.logging.validation_interval is None:
            raise SettingsError(
                f"metric {metric} is only logged with logging.validation_interval; set it under "
                "`set`"
            )

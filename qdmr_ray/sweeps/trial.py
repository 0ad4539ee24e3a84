"""One trial of a sweep, in a process of its own: trains what the store hasn't yet, tells Tune.

A trial of a single worker trains in the trial's process, which Tune keeps for the next trial:
nothing is started but the first time. With several workers Ray Train runs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from qdmr_ray.config import Experiment, ScalingSettings
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.streaming.stream import required_cpus
from qdmr_ray.errors import QdmrError
from qdmr_ray.models.documents import read_metrics
from qdmr_ray.models.layout import METRICS_FILE
from qdmr_ray.storage import open_location
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.sweeps.record import TRIALS_FOLDER, finite
from qdmr_ray.train.failures import root_cause
from qdmr_ray.train.loop import Task
from qdmr_ray.train.preemption import Preempted
from qdmr_ray.train.ray_trainer import InThisProcess, Launch, with_workers
from qdmr_ray.train.run import stage_digests, train_run
from qdmr_ray.train.validation import VALIDATED
from qdmr_ray.train.worker_context import Watch

# What a trial tells: Tune's schedulers read the first two, the sweep's books the third, in which
# "error" (perhaps None) stands in the last word alone.
ITERATION, VALUE, NEWS = "iteration", "value", "news"
Report = dict[str, Any]
# Takes a report, and returns when the trial may go on.
Tell = Callable[[Report], None]


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share. Relative paths of the experiment start in ``folder``;
    ``concurrent`` trials run at the same time."""

    plan: Plan
    sweep: str
    store: str
    folder: str
    gpu: bool
    concurrent: int


def runs_alone(scaling: ScalingSettings) -> bool:
    """Whether a trial needs no worker beside its own process."""
    return scaling.workers == 1


def trial_cpus(experiment: Experiment) -> float:
    """CPUs of a trial: its workers', and their loading tasks'."""
    scaling = experiment.scaling
    loading = required_cpus(experiment.data, scaling.workers)
    return scaling.workers * scaling.cpus_per_worker + loading


def _sharing(experiment: Experiment, concurrent: int) -> int:
    """How many trials run on this machine at the same time, so far as Ray's resources say."""
    here = ray.get_runtime_context().get_node_id()
    cpus = next((n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["NodeID"] == here), 0.0)
    return max(1, min(concurrent, int(cpus / trial_cpus(experiment) + 1e-6)))


def run_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> Report:
    """Trains the trial that ``config`` describes; ``tell`` takes reports on the way, the last one
    is returned. What goes wrong is told, not raised.

    Raises:
        Preempted: this process's node is about to be taken away; the trial has saved itself.
    """
    return Trial(config, context, tell).run()


def failed_report(failure: BaseException) -> Report:
    """The last word of a trial that could not even say what went wrong."""
    news = {"progress": {}, "stages": {}, "trained": [], "metrics": {}, "error": _gist(failure)}
    return {NEWS: json.dumps(news)}


def _gist(failure: BaseException) -> str:
    cause = root_cause(failure)
    text = " ".join(str(cause).split()) or "no message"
    return text if isinstance(cause, QdmrError) else f"{type(cause).__name__}: {text}"


def trial_experiment(
    context: TrialContext, settings: Mapping[str, Any], *, name: str, seed: int
) -> Experiment:
    """A trial's experiment, with absolute paths and on the sweep's kind of device."""
    experiment = context.plan.experiment(settings, name=name, seed=seed)

    def absolute(path: str) -> str:
        return path if "://" in path else str(Path(context.folder, Path(path).expanduser()))

    named = {name: file for name, file in vars(experiment.weights).items() if file is not None}
    weights = {name: absolute(file) for name, file in named.items()}
    return replace(
        experiment,
        data=replace(experiment.data, path=absolute(experiment.data.path)),
        weights=replace(experiment.weights, **weights),
        scaling=replace(experiment.scaling, gpu=context.gpu),
    )


class Trial:
    """The run of one trial in this process."""

    def __init__(self, config: Mapping[str, Any], context: TrialContext, tell: Tell) -> None:
        self._config, self._context, self._tell = config, context, tell
        self._trained: list[str] = []
        self._progress: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._metrics: dict[str, float | None] = {}
        # Newest values of the sweep's metrics, by (stage, figure).
        self._newest: dict[tuple[str, str], float | None] = {}
        # (stage, figure) of each of the sweep's metrics, and iterations by stage.
        self._figures: list[tuple[str, str]] = []
        self._lengths: dict[str, int] = {}
        self._told = 0
        self._iteration = 0

    def run(self) -> Report:
        """Trains and reports."""
        error, hopeless = None, False
        try:
            experiment = trial_experiment(
                self._context,
                self._config["settings"],
                name=self._config["id"],
                seed=self._config["seed"],
            )
            self._train(experiment)
            self._check_reported(experiment)
        except Preempted:
            raise
        except MissingMetricError as missing:
            error, hopeless = str(missing), True
        except Exception as failure:  # whatever a trial breaks, the others go on
            error = _gist(failure)
        return self._report({"error": error, "hopeless": hopeless}, with_values=error is None)

    def _train(self, experiment: Experiment) -> None:
        context = self._context
        self._figures = context.plan.figures(experiment)
        self._lengths = {name: experiment.stage(name).iterations for name in experiment.run}
        sweep = open_location(context.sweep, endpoint=experiment.data.s3_endpoint)
        trials = sweep.join(TRIALS_FOLDER)
        packed = open_location(experiment.data.path, endpoint=experiment.data.s3_endpoint)
        digest = read_manifest(packed).digest
        run = trials.join(experiment.name)
        self._digests = {
            stage: found
            for stage, found in stage_digests(experiment, run, digest).items()
            if stage in experiment.run
        }
        train_run(
            experiment,
            storage=trials.uri,
            store=context.store,
            launch=self._launched(experiment),
            watch=self._watch,
            say=lambda _: None,
        )

    def _launched(self, experiment: Experiment) -> Launch:
        """Training that is noted as this trial's own."""
        if runs_alone(experiment.scaling):
            sharing = _sharing(experiment, self._context.concurrent)
            launch: Launch = InThisProcess(sharing=sharing)
        else:
            launch = with_workers

        def launched(experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None) -> None:
            def own(stage: str, iteration: int, figures: Mapping[str, float]) -> None:
                self._progress[stage] = max(iteration, self._progress.get(stage, 0))
                self._watch(stage, iteration, figures)

            launch(experiment, task, gpu=gpu, watch=own)
            self._trained.append(task.stage)

        return launched

    def _watch(self, stage: str, iteration: int, figures: Mapping[str, Any]) -> None:
        """A line of a stage's log, perhaps not for the first time."""
        for name in VALIDATED:
            if name in figures:
                self._metrics[f"{stage}/{name}"] = finite(figures[name])
        ours = [key for key in self._figures if key[0] == stage and key[1] in figures]
        if not ours:
            return
        self._newest |= {key: finite(figures[key[1]]) for key in ours}
        # The metric's own stage counts; where there are several, the last one that is trained.
        if stage != self._figures[-1][0] or len(self._newest) < len(set(self._figures)):
            return
        self._iteration = iteration
        # The last values are told with the result: a trial that has done everything must not be
        # stopped before it is stored.
        if iteration > self._told and iteration < self._lengths[stage]:
            self._told = iteration
            self._tell(self._report({}))

    def _report(self, more: Mapping[str, Any], *, with_values: bool = True) -> Report:
        values = [self._newest.get(key) for key in self._figures]
        news = {
            "progress": self._progress,
            "stages": self._digests,
            "trained": self._trained,
            "metrics": self._named_metrics(),
            "iteration": self._iteration,
            **more,
        }
        report: dict[str, Any] = {}
        if with_values:
            news["values"] = values
            report = {ITERATION: self._iteration, VALUE: self._comparable(values)}
        return {**report, NEWS: json.dumps(news)}

    def _named_metrics(self) -> dict[str, float | None]:
        newest = {f"{stage}/{name}": value for (stage, name), value in self._newest.items()}
        return self._metrics | newest

    def _comparable(self, values: list[float | None]) -> float:
        """The first metric for the scheduler; one that is not finite is the worst there is."""
        if values[0] is not None:
            return values[0]
        return float("-inf") if self._context.plan.settings.modes[0] == "max" else float("inf")

    def _check_reported(self, experiment: Experiment) -> None:
        for (stage, figure), metric in zip(
            self._figures, self._context.plan.settings.metrics, strict=True
        ):
            if (stage, figure) not in self._newest:
                raise MissingMetricError(
                    f"metric {metric}: stage {stage} logs no {figure}; take one of "
                    f"{', '.join(sorted(self._logged(experiment, stage)))}"
                )

    def _logged(self, experiment: Experiment, stage: str) -> list[str]:
        sweep = open_location(self._context.sweep, endpoint=experiment.data.s3_endpoint)
        lines = read_metrics(sweep.join(TRIALS_FOLDER, experiment.name, stage, METRICS_FILE))
        return list(lines[-1].metrics) if lines else []


class MissingMetricError(QdmrError):
    """The sweep's metric is never logged: no trial can be judged by it."""

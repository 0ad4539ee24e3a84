"""One trial of a sweep, in a process of its own: it trains what the store doesn't have yet. A trial
with a single worker trains in the trial's own process, which Tune keeps for the next trial: only
the first one waits for a process to start. With several workers Ray Train runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qdmr_ray.config import Experiment
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.errors import QdmrError, reason
from qdmr_ray.evaluate.sweep_file import MAX, TRIALS_FOLDER, Metrics, Values, finite
from qdmr_ray.models.documents import read_metrics
from qdmr_ray.models.layout import METRICS_FILE
from qdmr_ray.sweeps.plan import Plan
from qdmr_ray.train.failures import root_cause
from qdmr_ray.train.loop import Task
from qdmr_ray.train.preemption import Preempted
from qdmr_ray.train.ray_trainer import InThisProcess, Launch, with_workers
from qdmr_ray.train.run import stage_digests, train_run
from qdmr_ray.train.validation import VALIDATED
from qdmr_ray.train.worker_context import Watch, node_cpus

# Tune's schedulers read the first two of a result, TrialSearch the third.
ITERATION, VALUE, REPORT = "iteration", "value", "report"


@dataclass(frozen=True, kw_only=True)
class TrialReport:
    """A trial's report to its sweep on the way, and when it ends by itself (``is_last``).
    ``values`` is None where the metrics are not news, and in the last report of a failed trial.
    ``hopeless`` says that every other trial would fail for the same ``error``. The other fields are
    those of :class:`~qdmr_ray.evaluate.sweep_file.TrialRecord`."""

    iteration: int = 0
    values: Values | None = None
    progress: dict[str, int] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)
    is_last: bool = False
    error: str | None = None
    hopeless: bool = False

    def for_tune(self, mode: str) -> dict[str, Any]:
        """Returns the result that Tune passes on, with the first metric for its schedulers; a value
        that is not finite becomes the worst there is."""
        result: dict[str, Any] = {REPORT: self, "done": self.is_last}
        if self.values is not None:
            worst = float("-inf") if mode == MAX else float("inf")
            value = worst if self.values[0] is None else self.values[0]
            result |= {ITERATION: self.iteration, VALUE: value}
        return result


# Takes a report, and returns when the trial may go on.
Tell = Callable[[TrialReport], None]


@dataclass(frozen=True)
class TrialContext:
    """The common context of a sweep's trials: its ``plan``, the URIs of its folder and of the
    ``store`` of stages, the ``folder`` in which the experiment's relative paths start, and how many
    trials run at the same time."""

    plan: Plan
    sweep: str
    store: str
    folder: str
    gpu: bool
    concurrent: int


def trial_cpus(experiment: Experiment) -> float:
    """Returns the CPUs that a trial's workers and all their loading tasks take."""
    scaling, data = experiment.scaling, experiment.data
    return scaling.workers * (scaling.cpus_per_worker + data.loader_workers * data.loader_cpus)


def run_trial(config: Mapping[str, Any], context: TrialContext, tell: Tell) -> TrialReport:
    """Trains the trial that ``config`` describes and returns its last report; ``tell`` takes the
    earlier ones. A failure is reported; only Preempted is raised: this process's node is about to
    be taken away, and the trial has saved itself."""
    return Trial(config, context, tell).run()


def failed_report(failure: BaseException) -> TrialReport:
    """Returns the last report of a trial that ended without one."""
    return TrialReport(is_last=True, error=reason(root_cause(failure)))


class Trial:
    """The run of one trial in this process."""

    def __init__(self, config: Mapping[str, Any], context: TrialContext, tell: Tell) -> None:
        self._config, self._context, self._tell = config, context, tell
        self._trained: list[str] = []
        self._progress: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        # Validation metrics of all stages by "stage/name".
        self._metrics: Metrics = {}
        # (stage, name) of each of the sweep's metrics, and the newest value of each.
        self._judged_by: list[tuple[str, str]] = []
        self._newest: dict[tuple[str, str], float | None] = {}
        self._lengths: dict[str, int] = {}
        self._told = 0
        self._iteration = 0

    def run(self) -> TrialReport:
        """Trains, reports on the way, and returns the last report."""
        try:
            self._train(self._experiment())
        except Preempted:
            raise
        except Exception as failure:  # whatever breaks one trial, the others go on
            hopeless = isinstance(failure, MissingMetricError)
            report = replace(
                self._report(), values=None, error=reason(root_cause(failure)), hopeless=hopeless
            )
        else:
            report = self._report()
        return replace(report, is_last=True)

    def _experiment(self) -> Experiment:
        """Returns the trial's experiment with absolute paths and the sweep's kind of device."""
        config, context = self._config, self._context
        experiment = context.plan.experiment(
            config["settings"], name=config["id"], seed=config["seed"]
        )

        def absolute(path: str) -> str:
            return path if "://" in path else str(Path(context.folder, Path(path).expanduser()))

        weights = {name: absolute(file) for name, file in vars(experiment.weights).items() if file}
        return replace(
            experiment,
            data=replace(experiment.data, path=absolute(experiment.data.path)),
            weights=replace(experiment.weights, **weights),
            scaling=replace(experiment.scaling, gpu=context.gpu),
        )

    def _train(self, experiment: Experiment) -> None:
        context = self._context
        self._judged_by = context.plan.stage_metrics(experiment)
        self._lengths = {name: experiment.stage(name).iterations for name in experiment.run}
        trials = experiment.open(context.sweep).join(TRIALS_FOLDER)
        run = trials.join(experiment.name)
        data = read_manifest(experiment.open(experiment.data.path))
        digests = stage_digests(experiment, run, data.digest)
        self._digests = {stage: digests[stage] for stage in digests if stage in experiment.run}
        train_run(
            experiment,
            storage=trials.uri,
            store=context.store,
            launch=self._launched(experiment),
            watch=self._watch,
            label=f"{context.plan.settings.name}/{experiment.name}",
            say=lambda _: None,
        )
        for (stage, name), metric in zip(
            self._judged_by, context.plan.settings.metrics, strict=True
        ):
            if (stage, name) not in self._newest:
                lines = read_metrics(run.join(stage, METRICS_FILE))
                logged = sorted(lines[-1].metrics) if lines else []
                raise MissingMetricError(
                    f"metric {metric}: stage {stage} logs no {name}; take one of "
                    f"{', '.join(logged)}"
                )

    def _launched(self, experiment: Experiment) -> Launch:
        """Returns a launch that notes which stages this trial trains by itself."""
        launch: Launch = with_workers
        if experiment.scaling.workers == 1:
            # The trials that run on this machine at the same time, by Ray's resources.
            room = int(node_cpus() / trial_cpus(experiment) + 1e-6)
            launch = InThisProcess(sharing=max(1, min(self._context.concurrent, room)))

        def launched(experiment: Experiment, task: Task, *, gpu: bool, watch: Watch | None) -> None:
            def own(stage: str, iteration: int, metrics: Mapping[str, float]) -> None:
                self._progress[stage] = max(iteration, self._progress.get(stage, 0))
                self._watch(stage, iteration, metrics)

            launch(experiment, task, gpu=gpu, watch=own)
            self._trained.append(task.stage)

        return launched

    def _watch(self, stage: str, iteration: int, logged: Mapping[str, Any]) -> None:
        """Takes a line of a stage's log, perhaps not for the first time."""
        for name in VALIDATED:
            if name in logged:
                self._metrics[f"{stage}/{name}"] = finite(logged[name])
        ours = [key for key in self._judged_by if key[0] == stage and key[1] in logged]
        if not ours:
            return
        self._newest |= {key: finite(logged[key[1]]) for key in ours}
        # The metric's own stage counts, and of several stages the last one that is trained.
        if stage != self._judged_by[-1][0] or len(self._newest) < len(set(self._judged_by)):
            return
        self._iteration = iteration
        # The last report holds the values of the last iteration: a trial that has trained to its
        # end must not be stopped before its result is stored.
        if iteration > self._told and iteration < self._lengths[stage]:
            self._told = iteration
            self._tell(self._report())

    def _report(self) -> TrialReport:
        newest = {f"{stage}/{name}": value for (stage, name), value in self._newest.items()}
        return TrialReport(
            iteration=self._iteration,
            values=[self._newest.get(key) for key in self._judged_by],
            progress=dict(self._progress),
            stages=self._digests,
            trained=list(self._trained),
            metrics=self._metrics | newest,
        )


class MissingMetricError(QdmrError):
    """The sweep's metric is never logged, so no trial can be judged by it."""

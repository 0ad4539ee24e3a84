"""Running a sweep: Ray Tune trains the trials that the books name, and the results are written.

    results = sweep_run(load_sweep(Path("experiments/sweeps/demo.yaml")), storage="runs/sweeps")

Run again with the same name and storage, it goes on: trials that have ended stay, those that were
interrupted go on from their checkpoints, and the sampler knows all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.ray_cluster import capacity, check_cpus, ensure_ray, uses_gpu
from qdmr_ray.storage import Location, open_location
from qdmr_ray.storage.claims import Claims
from qdmr_ray.sweeps.actor import Body, TrialActor
from qdmr_ray.sweeps.plan import ASHA, Plan
from qdmr_ray.sweeps.record import Record
from qdmr_ray.sweeps.results import write_results
from qdmr_ray.sweeps.trial import (
    ITERATION,
    NEWS,
    VALUE,
    TrialContext,
    run_trial,
    runs_alone,
    trial_cpus,
)
from qdmr_ray.sweeps.trials import Book
from qdmr_ray.train.logging.prometheus import TrialGauge
from qdmr_ray.train.run import check_run

PLAN_FILE = "sweep.yaml"
STAGES_FOLDER = "stages"
CLAIMS_FOLDER = "claims"
# What changes no trial's result, and may differ when a sweep is started again.
_MAY_CHANGE = ("name", "trials", "iterations", "hours", "concurrent", "repeat", "failures", "store")
# What a trial's process that waits for Ray Train's workers reserves; Tune takes no zero.
_WAITING_CPUS = 0.1
# A resource that nodes offer which are not taken away (cluster/): one for each process that waits.
CONTROLLER = "controller"


def sweep_run(
    plan: Plan,
    *,
    storage: str,
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
    body: Body = run_trial,
) -> dict[str, Any]:
    """Trains the sweep's trials below ``storage``/name; gives what ``sweep.json`` holds.

    Args:
        retry_failed: begin trials again that have failed.
        progress: called with trials ended and in all, where their number is known.
        body: what a trial does: ``run_trial``, or a stand-in with its arguments.

    Raises:
        QdmrError: the data, the cluster, the sweep's folder, or too many failed trials.
        SettingsError: a setting of the sweep or of its experiment.
    """
    experiment = plan.experiment({}, name="trial", seed=0)
    endpoint = experiment.data.s3_endpoint
    sweep = open_location(storage, endpoint=endpoint).join(plan.settings.name)
    check_run(experiment)
    _check_same(sweep, plan)
    ensure_ray()
    claims = Claims(sweep.join(CLAIMS_FOLDER), endpoint=endpoint)
    claim = claims.acquire(lambda: False, lambda whom: say(f"{whom}, who runs this sweep"))
    assert claim is not None
    scratch = Path(tempfile.mkdtemp(prefix="qdmr-sweep-"))
    with claim:
        # Once more: whoever held the claim may have begun this sweep with other settings meanwhile.
        _check_same(sweep, plan)
        try:
            sweep.join(PLAN_FILE).write_bytes_atomic(_plan_text(plan).encode())
            book = Book(plan, sweep, scratch, say)
            if retry_failed:
                book.retry_failed()
            runner = Runner(book, body, scratch, progress)
            try:
                runner.run()
            finally:
                book.write_time()
            return write_results(book, say)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _plan_text(plan: Plan) -> str:
    return json.dumps({"sweep": asdict(plan.settings), "experiment": plan.values}, indent=1)


def _check_same(sweep: Location, plan: Plan) -> None:
    """A sweep that was begun goes on with the same trials, or not at all."""
    file = sweep.join(PLAN_FILE)
    if not file.exists():
        return
    before, now = json.loads(file.read_bytes()), json.loads(_plan_text(plan))
    for part in ("sweep", "experiment"):
        for name in {**before[part], **now[part]}:
            if part == "sweep" and name in _MAY_CHANGE:
                continue
            old, new = before[part].get(name), now[part].get(name)
            if old != new:
                raise QdmrError(
                    f"{sweep.uri}: this sweep was begun with other settings ({part} {name} was "
                    f"{_short(old)}, now {_short(new)}); choose another --name, or take the change "
                    "back"
                )


def _short(value: Any) -> str:
    text = json.dumps(value)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return text if len(text) <= 80 else f"{text[:60]}… (digest {digest})"


class Runner:
    """Lets Ray Tune train what the books name."""

    def __init__(
        self,
        book: Book,
        body: Body,
        scratch: Path,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.book, self._body = book, body
        self._scratch, self._progress = scratch, progress
        plan = book.plan
        # A trial reserves what the experiment asks for, whatever its own settings are.
        self._experiment = plan.experiment({}, name="trial", seed=0)
        check_cpus(self._experiment)
        gpu = uses_gpu(self._experiment)
        self._concurrent = plan.settings.concurrent or self._room(gpu)
        self._context = TrialContext(
            plan=plan,
            sweep=book.sweep.uri,
            store=plan.settings.store or book.sweep.join(STAGES_FOLDER).uri,
            folder=str(Path.cwd()),
            gpu=gpu,
            concurrent=self._concurrent,
        )
        self._alone = runs_alone(self._experiment.scaling)
        self._resources = self._reserved(gpu)

    def run(self) -> None:
        """Trains all trials and then the repeats.

        Raises:
            QdmrError: trials fail one after the other, or none can be judged.
        """
        self._fit("trials", self._scheduler())
        if self.book.problem is None and self.book.begin_repeats():
            self._fit("repeats", FIFOScheduler())
        if self.book.problem is not None:
            raise QdmrError(f"{self.book.sweep.uri}: {self.book.problem}")

    def _room(self, gpu: bool) -> int:
        """How many trials fit on the cluster, their loading tasks included.

        Raises:
            SettingsError: none does.
        """
        scaling, resources = self._experiment.scaling, capacity()
        cpus = trial_cpus(self._experiment) + (0 if runs_alone(scaling) else _WAITING_CPUS)
        if math.isinf(resources.get("CPU", 0)):
            raise SettingsError(
                "concurrent is not set, and the cluster grows as it is asked to: set how many "
                "trials run at the same time"
            )
        room = int(resources.get("CPU", 0) / cpus + 1e-6)
        if gpu:
            gpus = scaling.workers * scaling.gpus_per_worker
            room = min(room, int(resources.get("GPU", 0) / gpus + 1e-6))
        if room < 1:
            raise SettingsError(
                f"a trial needs {cpus:g} CPUs, and Ray has {resources.get('CPU', 0):g}: lower "
                "scaling.cpus_per_worker or data.loader_cpus"
            )
        return room

    def _reserved(self, gpu: bool) -> dict[str, float]:
        scaling = self._experiment.scaling
        if not self._alone:
            # Ray Train reserves for the workers; this process mostly waits for them. Where the
            # cluster has a place for such processes, on nodes that stay, it goes there.
            if ray.cluster_resources().get(CONTROLLER):
                return {CONTROLLER: 1}
            return {"cpu": _WAITING_CPUS}
        return {
            "cpu": scaling.cpus_per_worker,
            **({"gpu": scaling.gpus_per_worker} if gpu else {}),
        }

    def _fit(self, name: str, scheduler: TrialScheduler) -> None:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        # Ctrl-C ends the sweep; what matters is on storage.
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        # The books are kept here, not in Tune's snapshots.
        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        # How long a trial may take to leave (see actor.py), before its process is killed.
        os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = "120"
        search = BookSearch(self.book, self._progress)
        trainable = tune.with_parameters(TrialActor, context=self._context, body=self._body)
        tuner = tune.Tuner(
            tune.with_resources(trainable, self._resources),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=self._concurrent,
                reuse_actors=self._alone,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self._scratch / "tune"),
                verbose=0,
                # A trial's checkpoints are its stages', in the store.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(
                    max_failures=self._experiment.scaling.max_failures
                ),
            ),
        )
        tuner.fit()
        if search.failure is not None:
            raise search.failure

    def _scheduler(self) -> TrialScheduler:
        stopping, plan = self.book.plan.settings.stopping, self.book.plan
        if stopping is None:
            return FIFOScheduler()
        common: dict[str, Any] = {
            "time_attr": ITERATION,
            "metric": VALUE,
            "mode": plan.settings.modes[0],
        }
        scheduler: TrialScheduler
        if stopping.rule == ASHA:
            (stage, _), *_ = plan.figures(self._experiment)
            scheduler = AsyncHyperBandScheduler(
                **common,
                # A trial ends by itself, when its result is stored.
                max_t=max(self._experiment.stage(stage).iterations, stopping.grace) + 1,
                grace_period=stopping.grace,
                reduction_factor=stopping.reduction,
            )
        else:
            scheduler = MedianStoppingRule(
                **common,
                grace_period=stopping.grace,
                min_samples_required=stopping.least_trials,
            )
        self._replay(scheduler)
        return scheduler

    def _replay(self, scheduler: TrialScheduler) -> None:
        """Lets the scheduler know the trials of earlier starts of this sweep."""
        past = [PastTrial(record) for record in self.book.records.values()]
        ended = [trial for trial in past if trial.record.has_ended and not trial.record.is_repeat]
        nobody: Any = NobodyElse()
        for trial in ended:
            scheduler.on_trial_add(nobody, cast(Trial, trial))
        lines = [(line, trial) for trial in ended for line in trial.record.history]
        for line, trial in sorted(lines, key=lambda pair: pair[0]["iteration"]):
            if line["values"][0] is not None:
                result = {ITERATION: line["iteration"], VALUE: line["values"][0]}
                scheduler.on_trial_result(nobody, cast(Trial, trial), result)


class NobodyElse:
    """Tune's controller, as a scheduler sees it while past trials are told: none of them runs."""

    def get_live_trials(self) -> list[Trial]:
        """The trials that could still be paused or stopped."""
        return []


class PastTrial:
    """A trial of an earlier start, as a scheduler sees it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.trial_id = f"past-{record.id}"
        self.status = "TERMINATED"


class BookSearch(Searcher):
    """Hands the books' trials to Ray Tune, and Tune's news to the books."""

    def __init__(self, book: Book, progress: Callable[[int, int], None] | None) -> None:
        super().__init__(metric=VALUE, mode="max")
        self._book, self._progress = book, progress
        self._names: dict[str, str] = {}
        self._gauge = TrialGauge(book.plan.settings.name)
        # What went wrong here: Tune would only log it.
        self.failure: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune's snapshots are not what a sweep goes on from

    def suggest(self, trial_id: str) -> Any:
        """The next trial, as Tune's config."""
        if self.failure is not None:
            return Searcher.FINISHED
        record = self._guarded(self._book.next)
        if record is None:
            return Searcher.FINISHED
        self._names[trial_id] = record.id
        self._show()
        return {"id": record.id, "settings": record.settings, "seed": record.seed}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """What a trial reported."""
        if NEWS in result:
            news = json.loads(result[NEWS])
            self._guarded(partial(self._book.progressed, self._names[trial_id], news))
        # Prometheus forgets a value that is not shown again.
        self._gauge.set(self._book.counts())

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial's end: by itself, by the scheduler, or by losing its process too often."""
        name = self._names[trial_id]
        # What a scheduler stops a trial for is told here only.
        news = json.loads(result[NEWS]) if result and NEWS in result else None
        if news is not None:
            self._guarded(partial(self._book.progressed, name, news))
        last = news if news is not None and "error" in news else None
        lost = None
        if error:
            lost = (
                "its process was lost scaling.max_failures + 1 times, perhaps for want of memory; "
                "see Ray's logs"
            )
        self._guarded(partial(self._book.ended, name, last, lost))
        self._show()

    def save(self, checkpoint_path: str) -> None:
        """The books save themselves."""

    def restore(self, checkpoint_path: str) -> None:
        """The books restore themselves."""

    def _show(self) -> None:
        settings = self._book.plan.settings
        self._gauge.set(self._book.counts())
        if self._progress is not None:
            counts = self._book.counts()
            ended = sum(count for state, count in counts.items() if state != "running")
            self._progress(ended, settings.trials or sum(counts.values()))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """An error in Tune's loop would be one of many lines in a log."""
        try:
            return call()
        except Exception as error:
            self.failure = self.failure or error
            return None

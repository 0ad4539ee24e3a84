"""Running a sweep: Ray Tune trains the sweep's trials, and the results are written.

    results = sweep_run(load_sweep(Path("experiments/sweeps/demo.yaml")), storage="runs/sweeps")

A sweep that is run again with the same name and storage resumes: ended trials stay, interrupted
ones go on from their checkpoints, and the sampler and the stopping rule know all of them.
"""

import hashlib
import json
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from qdmr_ray.config import Experiment, experiment_from_dict
from qdmr_ray.data.streaming.stream import required_cpus
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.sweep_file import SweepFile
from qdmr_ray.parsing import flat
from qdmr_ray.ray_cluster import capacity, check_cpus, ensure_ray, uses_gpu
from qdmr_ray.storage import Location
from qdmr_ray.storage.claims import Claims
from qdmr_ray.storage.document import Document
from qdmr_ray.sweeps.actor import Body, TrialActor
from qdmr_ray.sweeps.files import Report, SweepFiles
from qdmr_ray.sweeps.optuna_study import quiet_optuna
from qdmr_ray.sweeps.plan import Plan, SweepSettings
from qdmr_ray.sweeps.schedulers import stopping_scheduler
from qdmr_ray.sweeps.status import telling
from qdmr_ray.sweeps.trial import TrialContext, run_trial, trial_cpus
from qdmr_ray.sweeps.trials import Trials
from qdmr_ray.sweeps.tune_search import TrialSearch
from qdmr_ray.train.run import check_run

PLAN_FILE = "sweep.yaml"
STAGES_FOLDER = "stages"
CLAIMS_FOLDER = "claims"
# Settings that change no trial's result and may differ when a sweep is started again.
_MAY_CHANGE = ("name", "trials", "iterations", "hours", "concurrent", "repeat", "failures", "store")
# A trial's process reserves these CPUs while it waits for Ray Train's workers; Tune takes no zero.
_WAITING_CPUS = 0.1
# A resource of nodes that are not taken away (cluster/): one for each waiting process.
CONTROLLER = "controller"
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the sweep; everything that it needs to resume is on storage.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A sweep resumes from its trials' records, so Tune's snapshots are not needed.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # The last report of a failed trial has no metrics.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial may take so long to leave (see actor.py) before its process is killed.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "120",
}


def sweep_run(
    plan: Plan,
    *,
    storage: str,
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
    status: Callable[[str], None] | None = None,
    report: Report = lambda _: None,
    body: Body = run_trial,
) -> SweepFile:
    """Trains the sweep's trials below ``storage``/name and returns the content of ``sweep.json``.
    Its files are up to date after each trial, and when it ends in any way.

    Args:
        retry_failed: train failed trials again.
        progress: called with the number of ended trials and of all, as far as that is known.
        status: receives a line every ten seconds: how many trials have ended, and where those
            that run are.
        report: writes the page of the sweep's folder, which it is called with, beside the trials.
        body: what a trial does: ``run_trial``, or a stand-in with its arguments.

    Raises:
        QdmrError: the data, the cluster, the sweep's folder, or too many failed trials.
        SettingsError: a setting of the sweep or of its experiment.
    """
    experiment = plan.experiment({}, name="trial", seed=0)
    sweep = experiment.open(storage).join(plan.settings.name)
    check_run(experiment)
    check_same(sweep, plan)
    ensure_ray(experiment.outside_modules)
    claims = Claims(sweep.join(CLAIMS_FOLDER))
    claim = claims.acquire(lambda: False, lambda whom: say(f"{whom}, who runs this sweep"))
    assert claim is not None
    with (
        claim,
        quiet_optuna(),
        _environment(_TUNE_ENVIRONMENT),
        tempfile.TemporaryDirectory(prefix="qdmr-sweep-", ignore_cleanup_errors=True) as scratch,
    ):
        # The previous holder of the claim may have begun this sweep with other settings meanwhile.
        check_same(sweep, plan)
        begun(plan).write(sweep.join(PLAN_FILE))
        trials = Trials(plan, sweep, Path(scratch), say)
        if retry_failed:
            trials.retry_failed()
        files = SweepFiles(trials, report, claim.check, say)
        files.update()
        with sigterm_as_interrupt():
            try:
                with telling(trials, status):
                    Runner(trials, body, Path(scratch), progress, files.update).run()
                trials.write_time()
            except BaseException as cause:
                files.give_up(cause)
                with suppress(QdmrError):
                    trials.write_time()
                raise
            return files.finish()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables until the block ends: a program may use Tune for other things, too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM end the sweep as Ctrl-C does. Ray's own handler would end the process at once,
    and with it every trial, before anything is written down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        # None stands for a handler that was not set from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class BegunSweep(Document):
    """``sweep.yaml`` of a sweep's folder (JSON is YAML): the settings that it was begun with."""

    sweep: dict[str, Any]
    experiment: dict[str, Any]


def begun(plan: Plan) -> BegunSweep:
    """Returns what the sweep's folder keeps of its settings."""
    return BegunSweep(sweep=asdict(plan.settings), experiment=dict(plan.values))


def check_same(sweep: Location, plan: Plan) -> None:
    """Raises QdmrError where the sweep was begun with settings that would make other trials."""
    earlier = BegunSweep.read_if_there(sweep.join(PLAN_FILE))
    if earlier is None:
        return
    # Both are compared as JSON holds them, where a tuple is a list.
    before, now = earlier.to_dict(), begun(plan).to_dict()
    # A setting that is new since then had its default.
    defaults = json.loads(json.dumps(asdict(SweepSettings(variants={"": None})) | {"variants": {}}))
    sweeps = [{**defaults, **one["sweep"]} for one in (before, now)]
    experiments = [one["experiment"] for one in (before, now)]
    # Otherwise one of them has a setting that is none any more.
    with suppress(SettingsError):
        experiments = [_in_full(experiment) for experiment in experiments]
    for section, (theirs, ours) in (("sweep", sweeps), ("experiment", experiments)):
        for name in {**theirs, **ours}:
            old, new = theirs.get(name), ours.get(name)
            if old != new and not (section == "sweep" and name in _MAY_CHANGE):
                raise QdmrError(
                    f"{sweep.uri}: this sweep was begun with other settings ({section} {name} was "
                    f"{_short(old)}, now {_short(new)}); choose another --name, or take the change "
                    "back"
                )


def _in_full(experiment: dict[str, Any]) -> dict[str, Any]:
    """Returns an experiment's settings by their dotted names, with the defaults of those that are
    not written. Raises SettingsError where they are wrong."""
    found: dict[str, Any] = json.loads(json.dumps(experiment_from_dict(experiment).to_dict()))
    return flat(found)


def _short(value: Any) -> str:
    text = json.dumps(value)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return text if len(text) <= 80 else f"{text[:60]}… (digest {digest})"


def _room(experiment: Experiment, resources: Mapping[str, float], *, gpu: bool, alone: bool) -> int:
    """Returns how many trials fit into a cluster of these ``resources``, all their loading tasks
    included; one fits also with room for a single loading task. A trial that is not ``alone`` in
    its process has workers beside it. Raises SettingsError if none fits, or the cluster grows."""
    scaling, available = experiment.scaling, resources.get("CPU", 0)
    if math.isinf(available):
        raise SettingsError(
            "concurrent is not set, and the cluster grows as it is asked to: set how many "
            "trials run at the same time"
        )
    waiting = 0 if alone else _WAITING_CPUS
    least = scaling.workers * scaling.cpus_per_worker + required_cpus(experiment.data) + waiting
    room = available / (trial_cpus(experiment) + waiting)
    if least <= available:
        room = max(room, 1)
    if gpu:
        room = min(room, resources.get("GPU", 0) / scaling.workers / scaling.gpus_per_worker)
    fitting = int(room + 1e-6)
    if fitting < 1:
        raise SettingsError(
            f"a trial needs {least:g} CPUs, and Ray has {available:g}: lower "
            "scaling.cpus_per_worker or data.loader_cpus"
        )
    return fitting


def store_of(plan: Plan, sweep: Location, experiment: Experiment) -> str:
    """Returns the address of the stages that trials share, from wherever a trial works: a process
    of Tune's has a working directory of its own."""
    named = plan.settings.store
    return sweep.join(STAGES_FOLDER).uri if named is None else experiment.open(named).uri


class Runner:
    """Lets Ray Tune train the trials."""

    def __init__(
        self,
        trials: Trials,
        body: Body,
        scratch: Path,
        progress: Callable[[int, int], None] | None,
        ended: Callable[[], None],
    ) -> None:
        self._trials, self._body = trials, body
        self._scratch, self._progress, self._ended = scratch, progress, ended
        plan = trials.plan
        # A trial reserves what the experiment asks for, whatever its own settings are.
        self._experiment = plan.experiment({}, name="trial", seed=0)
        check_cpus(self._experiment)
        gpu = uses_gpu(self._experiment)
        # Such a trial needs no worker beside its own process.
        self._alone = self._experiment.scaling.workers == 1
        self._concurrent = plan.settings.concurrent or _room(
            self._experiment, capacity(), gpu=gpu, alone=self._alone
        )
        self._context = TrialContext(
            plan=plan,
            sweep=trials.sweep.uri,
            store=store_of(plan, trials.sweep, self._experiment),
            folder=str(Path.cwd()),
            gpu=gpu,
            concurrent=self._concurrent,
        )
        self._resources = self._reserved(gpu)

    def run(self) -> None:
        """Trains all trials and then the repeats; raises QdmrError if trials fail one after the
        other, or none can be judged."""
        trials = self._trials
        self._fit("trials", stopping_scheduler(trials, self._experiment))
        if trials.problem is None and trials.begin_repeats():
            self._fit("repeats", FIFOScheduler())
        if trials.problem is not None:
            raise QdmrError(f"{trials.sweep.uri}: {trials.problem}")

    def _reserved(self, gpu: bool) -> dict[str, float]:
        """Returns what Tune reserves for a trial's own process."""
        scaling = self._experiment.scaling
        if self._alone:
            gpus = {"gpu": scaling.gpus_per_worker} if gpu else {}
            return {"cpu": scaling.cpus_per_worker, **gpus}
        # Ray Train reserves for the workers, for which the trial's process mostly waits. Where the
        # cluster has places for such processes, on nodes that stay, the process goes there.
        if ray.cluster_resources().get(CONTROLLER):
            return {CONTROLLER: 1}
        return {"cpu": _WAITING_CPUS}

    def _fit(self, name: str, scheduler: TrialScheduler) -> None:
        search = TrialSearch(self._trials, self._progress, self._ended)
        trainable = tune.with_parameters(TrialActor, context=self._context, body=self._body)
        failures = self._experiment.scaling.max_failures
        tune.Tuner(
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
                # A trial's checkpoints are those of its stages, in the store.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=failures),
            ),
        ).fit()
        if search.failure is not None:
            raise search.failure
